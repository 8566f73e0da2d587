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


def _three(value: float) -> str:
    """Three digits without an exponent."""
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}" if places < 3 else f"{value:.{places}f}"
