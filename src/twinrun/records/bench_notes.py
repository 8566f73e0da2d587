"""What the tables of a sweep must not be read without: how it was measured, ceilings, who did not run and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from twinrun.records.bench_words import Row, size

SPENT = (("capture", "capture"), ("compile", "compilation"))
LEGEND = (
    "MFU: operations a second over those of that matrix product; decode reads: the bytes of weights and cache that "
    "a token must read, a second, over that reading"
)


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
