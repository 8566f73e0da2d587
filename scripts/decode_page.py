"""Draw the measured tables of docs/decode.md from the records of decode_gpt, decode_gpt2 and decode_qwen.

python scripts/decode_page.py
"""

from __future__ import annotations

from typing import Any

from measured_page import DOCS, drawn, read

PAGE = DOCS / "decode.md"
TABLE_HEAD = ("| way | tokens a second | against | verdict |", "|---|---|---|---|")


def measured() -> str:
    """One table a model: every way that was timed, what it is held against, and its verdict."""
    parts = [*_gpt(read("decode_gpt")), "", *_gpt2(read("decode_gpt2")), "", *_qwen(read("decode_qwen"))]
    return "\n".join(parts)


def _gpt(record: dict[str, Any]) -> list[str]:
    theirs = "generate / ours"
    int8 = "kv-cache:static+packed, bfloat16, int8 weights"
    ways = (
        ("own forward, dynamic cache", "kv-cache:dynamic", ""),
        ("captured", "kv-cache:static+captured", _times(record, f"{theirs}, float32", "`generate`")),
        ("packed", "kv-cache:static+packed", _times(record, f"{theirs}, float32 packed", "`generate`")),
        (
            "packed, bfloat16",
            "kv-cache:static+packed, bfloat16",
            _times(record, f"{theirs}, bfloat16", "`generate`"),
        ),
        (
            "packed, int8 weights, bfloat16",
            int8,
            _times(record, f"{theirs}, int8 weights", "`generate` in float32"),
        ),
        (
            "ring, packed, 10,000 tokens",
            "kv-cache:rolling+packed",
            _times(record, "recompute / ring", "recompute"),
        ),
    )
    cached = _times(record, "recompute / cached", "recompute at 1,000 tokens")
    return [
        f"`builtin:gpt`, float32, 1,000 new tokens; captured is also {cached}. {_noise(record)}",
        "",
        *TABLE_HEAD,
        f"| `generate` on a GPT-2 of that shape | {_rate(record, 'generate, GPT-2 of the same shape')} | 1 | |",
        *(_row(record, *way) for way in ways),
    ]


def _gpt2(record: dict[str, Any]) -> list[str]:
    shares = record["bandwidth"]["share_of_ceiling"]
    ways = (
        ("own forward, dynamic cache", "own forward, float32", ""),
        ("captured, float32", "captured, float32", ""),
        ("packed, float32", "packed, float32", _times(record, "generate / ours, float32", "`generate`")),
        (
            "packed, bfloat16",
            "packed, bfloat16",
            _times(record, "generate in float32 / ours, bfloat16", "`generate` in float32"),
        ),
        (
            "packed, int8 weights, bfloat16",
            "packed, bfloat16, int8 weights",
            _times(record, "generate in float32 / ours, int8 weights", "`generate` in float32"),
        ),
    )
    against = "; ".join(
        f"{a['ratio_median']:.1f} times behind a prompt of {n} tokens (bound {a['bound']:.1f})"
        for n, a in record["against_recompute"].items()
    )
    return [
        f"GPT-2 (124M, random weights), 256 new tokens; the read bandwidth of the same run is "
        f"{record['bandwidth']['bytes_per_second'] / 1e9:.1f} GB/s. {_noise(record)}",
        "",
        *TABLE_HEAD,
        f"| `generate`, float32 | {_rate(record, 'generate, float32')} | 1 | |",
        *(_row(record, *way, share=shares[way[1]]["share_median"]) for way in ways),
        "",
        f"Cached against recompute: {against}; 13 times from {record['bar_reached_from_prompt_tokens']:.0f} tokens on.",
    ]


def _qwen(record: dict[str, Any]) -> list[str]:
    shares = record["bandwidth"]["share_of_ceiling"]
    best = record["tokens_per_second"][record["best_of_transformers"]]
    ours = ("own forward, dynamic cache", "captured", "compiled", "packed")
    theirs = ("generate, dynamic cache", "generate, static cache", "generate, static cache, compiled")
    first = record["first_run_seconds"]
    return [
        f"Shape of Qwen2.5-0.5B, random weights, bfloat16, 64 new tokens, against transformers' best. {_noise(record)}",
        "",
        *TABLE_HEAD,
        *(
            f"| {_theirs(name)} | {_rate(record, name)} | {record['tokens_per_second'][name] / best:.2f} | |"
            for name in theirs
        ),
        *(
            _row(
                record,
                name,
                name,
                f"{record['tokens_per_second'][name] / best:.2f} times",
                share=shares[name]["share_median"],
            )
            for name in ours
        ),
        "",
        f"The first run, compilation included: {first['compiled']:.0f} s compiled, {first['captured']:.0f} s captured, "
        f"{first['packed']:.0f} s packed.",
    ]


def _row(record: dict[str, Any], name: str, arm: str, against: str, share: float | None = None) -> str:
    if share is not None:
        against = f"{against}; {100 * share:.0f} % of the read bandwidth".removeprefix("; ")
    verdict = record["verdicts"][arm]
    words = verdict["verdict"]
    if words == "lossy":
        words += f", KL {verdict['kl_mean']:.1e}"
    return f"| {name} | {_rate(record, arm)} | {against} | {words} |"


def _rate(record: dict[str, Any], arm: str) -> str:
    rate = record["tokens_per_second"][arm]
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _times(record: dict[str, Any], ratio: str, what: str) -> str:
    r = record["ratios"][ratio]
    return f"{r['ratio_median']:.2f} times {what} ({r['ratio_p10']:.2f} to {r['ratio_p90']:.2f})"


def _noise(record: dict[str, Any]) -> str:
    r = record["ratios"]["A/A noise"]
    others = record["machine"]["cores_used_by_others_mean"]
    quiet = "quiet machine" if record["machine"]["quiet"] else f"SHARED machine, {others:.1f} cores busy"
    return f"A/A {r['ratio_median']:.2f} ({r['ratio_p10']:.2f} to {r['ratio_p90']:.2f}), {quiet}."


def _theirs(name: str) -> str:
    return name.replace("generate", "`generate`")


DRAWN = {"measured": measured}


def page() -> str:
    """The page with its table drawn from the records."""
    return drawn(PAGE, DRAWN)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
