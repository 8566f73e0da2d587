"""How a sweep is worded: the same tables and notes for terminal, Markdown and notebook."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
SPEED = ("prompt", "runner", "verdict", "prefill", "total", "times as fast (p10–p90)")
TOKEN = ("prompt", "runner", "a token", "p10–p90", "tokens/s", "peak memory", "cache")
CEILING = ("prompt", "runner", "operations, prompt / token", "prefill MFU", "decode MFU", "decode reads")
NONE = "–"
SPENT = (("capture", "capture"), ("compile", "compilation"))
LEGEND = (
    "MFU: operations a second over those of that matrix product; decode reads: the bytes of weights and cache that "
    "a token must read, a second, over that reading"
)


def speed_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of the table of speeds, one line a runner and length, the A/A run below the first runner."""
    found = []
    for row in rows:
        for number, cell in enumerate(row["cells"]):
            found.append([f"{row['length']:,}", cell["runner"], *_speed(cell, first=number == 0)])
            noise = row["noise"]["total"]
            if number == 0 and noise is not None:
                again = ["the same again (A/A)", "noise", *[NONE] * 2, _factor(noise)]
                found.append([f"{row['length']:,}", *again])
    return found


def token_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of the table of single tokens and memory, for the runners that were timed."""
    return [[*place, *_token(cell), *_memory(cell)] for place, cell in _timed(rows)]


def ceiling_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of the table of operations and shares of the ceilings."""
    return [[*place, *_ceiling(cell)] for place, cell in _timed(rows)]


def tables(rows: Sequence[Row]) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Return all tables: title, heads, cells."""
    return [
        ("speed", SPEED, speed_rows(rows)),
        ("a token, and memory above what was there before", TOKEN, token_rows(rows)),
        ("distance from the ceiling", CEILING, ceiling_rows(rows)),
    ]


def _timed(rows: Sequence[Row]) -> Iterator[tuple[list[str], Row]]:
    for row in rows:
        for cell in row["cells"]:
            if cell["status"] == "timed":
                yield [f"{row['length']:,}", cell["runner"]], cell


def notes(record: Mapping[str, Any]) -> list[str]:
    """Return what the tables must not be read without: how it was measured, ceilings, who did not run and why."""
    request = record["request"]
    threads = f"{request['threads']} thread{'s' if request['threads'] != 1 else ''}"
    found = [
        f"{request['model']} ({request['dtype']}, {request['device']}), one row, {threads}; "
        f"text: {request['prompts']}; {request['new_tokens']} new tokens, end of text ignored; "
        f"{request['repeats']} interleaved rounds, medians",
        "verdicts: against the first runner on the same text; the prompt and at most "
        f"{request['judged_positions']} tokens behind it",
    ]
    found += [_ceilings(row["ceilings"]) for row in record["rows"]]
    found.append(LEGEND)
    shared: dict[tuple[str, str], list[str]] = {}
    for row in record["rows"]:
        kept_out: dict[str, list[str]] = {}
        for cell in row["cells"]:
            if cell["status"] != "timed":
                kept_out.setdefault(f"{cell['status']}: {cell['reason']}", []).append(cell["runner"])
                continue
            found += list(_about(row["length"], cell))
            for part, note in _shares(cell):
                shared.setdefault((part, note), []).append(cell["runner"])
        found += [f"{', '.join(n)} at {row['length']:,} tokens: {why}" for why, n in kept_out.items()]
    found += [
        f"{part} of {', '.join(dict.fromkeys(names))}: {note}" for (part, note), names in shared.items()
    ]
    return list(dict.fromkeys(found))


def verdict_word(cell: Row) -> str:
    """The verdict of a runner; its status where it was not timed."""
    if cell["status"] != "timed":
        return str(cell["status"])
    return str(cell["verdict"]["verdict"])


def seconds(value: float | None) -> str:
    """A time with its unit in three digits.

    Example:
        >>> seconds(0.00123), seconds(0.0561), seconds(2.5), seconds(None)
        ('1.23 ms', '56.1 ms', '2.50 s', '–')
    """
    if value is None:
        return NONE
    return f"{_three(value * 1e3)} ms" if value < 0.9995 else f"{_three(value)} s"


def size(value: float | None) -> str:
    """A size in bytes: `834 kB`, `10.6 MB`, `1.31 GB` (powers of ten)."""
    if value is None:
        return NONE
    power = min(3, max(0, int(math.log10(max(value, 1)) // 3)))
    return f"{_three(value / 1000**power)} {('B', 'kB', 'MB', 'GB')[power]}"


def share(value: float | None) -> str:
    """A share of a ceiling in percent.

    Example:
        >>> share(0.5), share(0.0123), share(None)
        ('50 %', '1.2 %', '–')
    """
    if value is None:
        return NONE
    places = 0 if value >= 0.0995 else 1 if value >= 0.00995 else 2
    return f"{value * 100:.{places}f} %"


def _speed(cell: Row, *, first: bool) -> list[str]:
    if cell["status"] != "timed":
        return [verdict_word(cell), *[NONE] * 3]
    times = [seconds(cell[part]["seconds_median"]) for part in ("prefill", "total")]
    return [verdict_word(cell), *times, "1" if first else _speed_up(cell)]


def _token(cell: Row) -> list[str]:
    decode = cell["decode"]
    if decode is None:
        return [NONE] * 3
    low, middle, high = (decode[f"token_seconds_{key}"] for key in ("p10", "p50", "p90"))
    scale = 1.0 if middle >= 0.9995 else 1e3
    return [
        seconds(middle),
        f"{_three(low * scale)}–{_three(high * scale)}",
        _three(decode["tokens_per_second"]),
    ]


def _speed_up(cell: Row) -> str:
    """The ratio against the first runner; what is different has none."""
    found = (cell["speed_up"] or {}).get("total")
    if found is None or cell["verdict"]["verdict"] == "different":
        return NONE
    return _factor(found) + (", within noise" if found["within_noise"] else "")


def _factor(found: Row) -> str:
    low, mid, high = (found[f"ratio_{k}"] for k in ("p10", "median", "p90"))
    places = 2 if mid < 2 else max(0, 2 - int(math.log10(mid)))
    places = 1 if 2 <= mid < 100 else places
    return f"{mid:.{places}f}× ({low:.{places}f}–{high:.{places}f})"


def _memory(cell: Row) -> list[str]:
    memory, cache = cell["memory"], cell["cache"]
    on_cuda = memory["cuda_peak_bytes"] is not None
    peak = memory["cuda_peak_bytes" if on_cuda else "tensor_peak_bytes"]
    return [size(peak), NONE if cache is None else size(cache["bytes_end"])]


def _ceiling(cell: Row) -> list[str]:
    decode = cell["decode"]
    if decode is None:
        return [
            f"{_operations(cell['prefill']['flops'])} / {NONE}",
            share(cell["prefill"]["mfu"]),
            NONE,
            NONE,
        ]
    reads = share(decode["mbu"])
    if decode["cache_read_share"] is not None:
        reads = f"{share(decode['cache_read_share'])} (cache)"
    return [
        f"{_operations(cell['prefill']['flops'])} / {_operations(decode['flops_per_token'])}",
        share(cell["prefill"]["mfu"]),
        share(decode["mfu"]),
        reads,
    ]


def _operations(value: float | None) -> str:
    if value is None:
        return NONE
    power = min(5, max(0, int(math.log10(max(value, 1)) // 3)))
    return f"{_three(value / 1000**power)}{('', 'k', 'M', 'G', 'T', 'P')[power]}"


def _ceilings(found: Row) -> str:
    products = ", ".join(
        f"{m['dtype']} matrix product {m['flops_per_second'] / 1e9:,.0f} GFLOP/s ({m['width']:,} wide)"
        for m in found["matmul"].values()
    )
    memory, cache = found["memory_read"], found["cache_read"]
    text = (
        f"ceilings measured in this run: {products}; reading {memory['bytes_per_second'] / 1e9:,.1f} GB/s "
        f"({memory['how']} over {size(memory['num_bytes'])}"
    )
    known = found["last_level_cache_bytes"]
    if known is not None:
        where = "beyond" if found["beyond_cache"] else "NOT beyond"
        text += f", {where} the last-level cache of {known / 2**20:,.0f} MiB"
    text += ")"
    if cache is not None:
        speed = f"{cache['bytes_per_second'] / 1e9:,.1f} GB/s"
        text += f"; {speed} over as many bytes as the weights have ({size(cache['num_bytes'])})"
    return text


def _about(length: int, cell: Row) -> Iterator[str]:
    """Notes on one runner at one length where it was timed."""
    name, verdict = cell["runner"], cell["verdict"]
    if verdict["length"] != length:
        yield f"{name} at {length:,} tokens: the verdict was taken at {verdict['length']:,} tokens"
    if verdict["verdict"] in ("different", "lossy"):
        yield f"{name} at {length:,} tokens: {verdict['verdict']}: {verdict['reason']}"
    reused = cell["prefill"]["reused_tokens"]
    if reused:
        yield f"{name} at {length:,} tokens: {reused:,} of the prompt's came from a kept cache"
    spent = [f"{cell['settings'][f'{k}_seconds']:.2f} s" + f" of {w}" for k, w in SPENT if _took(cell, k)]
    if spent:
        yield f"{name}: {' and '.join(spent)} before the timed runs, not in these times"
    if "step_fallback" in cell["settings"]:
        yield f"{name} at {length:,} tokens ran the model's own forward: {cell['settings']['step_fallback']}"
    at = None if cell["text"] is None else cell["text"]["first_difference"]
    if at is not None:
        yield f"{name} at {length:,} tokens wrote another text from new token {at + 1} on (greedy; a tie can do that)"


def _took(cell: Row, kind: str) -> bool:
    return bool(cell["settings"].get(f"{kind}_seconds"))


def _shares(cell: Row) -> Iterator[tuple[str, str]]:
    """What must be said of shares of the ceilings: (part, note)."""
    for part, key in (("prefill", "mfu_note"), ("decode", "mfu_note"), ("decode", "read_note")):
        note = None if cell[part] is None else cell[part][key]
        if note is not None:
            yield part, note


def _three(value: float) -> str:
    """Three digits without an exponent."""
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}" if places < 3 else f"{value:.{places}f}"
