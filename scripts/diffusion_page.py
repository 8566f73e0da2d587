"""Draw the measured tables of docs/diffusion.md from the records of the diffusion benchmarks.

python benchmarks/diffusion_speed.py
python benchmarks/diffusion_quality.py
python benchmarks/diffusion_shape.py
python benchmarks/diffusion_answers.py
python scripts/diffusion_page.py
"""

from __future__ import annotations

from typing import Any

from measured_page import DOCS, drawn, read

PAGE = DOCS / "diffusion.md"
RULES = {"one token a step": "", "threshold 0.9": ", threshold 0.9", "factor 1": ", factor 1"}


def _place(record: dict[str, Any]) -> str:
    """Where it was measured, and how far the first arm was from itself."""
    others = record["machine"]["cores_used_by_others_mean"]
    quiet = "a quiet machine" if record["machine"]["quiet"] else f"a SHARED machine ({others:.1f} cores busy)"
    noise = [r["ratio_median"] for name, r in record["ratios"].items() if "A/A noise" in name]
    return f"Measured on {quiet}; the first arm against itself: {min(noise):.2f} to {max(noise):.2f}."


def _word(verdict: dict[str, Any]) -> str:
    kl, top1 = verdict["kl_mean"], verdict["top1_agreement"]
    return f"{verdict['verdict']}, KL {kl:.2g}, {top1:.1%}"


def quality() -> str:
    """Answers under every refresh and rule, with the verdict on the cache."""
    record = read("diffusion_quality")
    scores = record["accuracy"]
    lines = [
        "| block: cache | " + " | ".join(RULES) + " | verdict, mean KL (nats), same top token |",
        "|---|" + "---|" * (len(RULES) + 1),
    ]
    for name in (n for n in scores if not n.endswith(tuple(filter(None, RULES.values())))):
        cells = []
        for suffix in RULES.values():
            low, high = (100 * x for x in scores[name + suffix]["interval_95"])
            cells.append(f"{scores[name + suffix]['hits']} ({low:.1f} to {high:.1f} %)")
        judged = record["verdicts"].get(name)
        lines.append(f"| {name} | {' | '.join(cells)} | {'reference' if judged is None else _word(judged)} |")
    count = next(iter(scores.values()))["problems"]
    return "\n".join([*lines, "", f"Exact answers of {count}, 95 % Wilson intervals behind them."])


def speed() -> str:
    """Whole decodes of the built-in model, one table a size."""
    record = read("diffusion_speed")
    plain = {
        (r["room"], r["block"], r["early_stop"]): r["seconds_median"] for r in record["rows"] if _plain(r)
    }
    lines = [
        "| canvas / block: setting | forwards, full + block | seconds | times plain | tokens/s to the end of the text "
        "| verdict on the cache |",
        "|---|---|---|---|---|---|",
    ]
    for r in record["rows"]:
        if "(A/A)" in r["arm"]:
            continue
        times = plain[r["room"], r["block"], r["early_stop"]] / r["seconds_median"]
        rate = "–" if r["tokens_per_second"] is None else f"{r['tokens_per_second']:.0f}"
        mark = " (estimated)" if r["estimated"] else ""
        lines.append(
            f"| {r['room']} / {r['block']}: {r['arm']} | {r['nfe_full']} + {r['nfe_block']} | "
            f"{r['seconds_median']:.2f}{mark} | {times:.1f}x | {rate} | {_cache_verdict(record, r['arm'])} |"
        )
    checks = record["estimates_against_whole_decodes"].values()
    return "\n".join(
        [
            *lines,
            "",
            f"{_place(record)} Whole decodes over their estimates: {min(checks):.2f} to {max(checks):.2f}.",
            "",
            "To the end of each text, early stop on both sides, dual cache with threshold 0.9 against plain: "
            + "; ".join(_question(q) for q in record["by_question"])
            + ".",
            "",
            *([_around(record["products"]), ""] if "products" in record else []),
            *(_bar(bar) for bar in record["bars"]),
            *(f"- no bar, {name}: {value:.1f}" for name, value in record.get("without_a_bar", {}).items()),
        ]
    )


def _around(found: dict[str, Any]) -> str:
    """What of a decode is arithmetic of the model, and what is around it."""
    shares = (f"{arm} {100 * share:.0f} %" for arm, share in found["share_of_decode"].items())
    return (
        f"Matrix products and attention alone take {1e3 * found['full_seconds']:.1f} ms of a full forward and "
        f"{1e3 * found['block_seconds']:.2f} ms of a block's; of the decodes they are: {'; '.join(shares)}. "
        "The rest is norms, rotations, gates, the head, the choice of what to commit, and calls."
    )


def _bar(bar: dict[str, Any]) -> str:
    word = "passed" if bar["passed"] else "MISSED"
    return f"- bar, {bar['name']}: {bar['value']:.1f}, at least {bar['at_least']:g}: {word}"


def _question(q: dict[str, Any]) -> str:
    rates = (q["fast_tokens"] / q["fast_seconds"]) / (q["plain_tokens"] / q["plain_seconds"])
    return (
        f"question of {q['steps']} step{'s' * (q['steps'] > 1)}, {q['fast_nfe']} forwards for {q['plain_nfe']}, "
        f"{rates:.1f}x in tokens a second"
    )


def _plain(row: dict[str, Any]) -> bool:
    return str(row["arm"]).removesuffix(", early stop") == "plain"


def _cache_verdict(record: dict[str, Any], arm: str) -> str:
    """The verdict on an arm's cache: the longest name of a cache that the arm's begins with."""
    mine = max((n for n in record["verdicts"] if arm.startswith(n)), key=len, default=None)
    return "reference" if mine is None else _word(record["verdicts"][mine])


def shape() -> str:
    """Estimated decodes at the shape of 0.3B."""
    record = read("diffusion_shape")
    lines = [
        "| canvas / block, tokens a step: cache | forwards, full + block | seconds, estimated "
        "| times plain (p10 to p90) |",
        "|---|---|---|---|",
    ]
    for r in record["rows"]:
        lines.append(
            f"| {r['room']} / {r['block']}, {r['per_step']}: {r['arm']} | {r['nfe_full']} + {r['nfe_block']} | "
            f"{r['seconds_estimated']:.1f} | {r['times_plain']:.1f}x ({r['times_plain_p10']:.1f} to "
            f"{r['times_plain_p90']:.1f}) |"
        )
    words = "; ".join(f"{name} {_word(v)}" for name, v in record["verdicts"].items())
    trained = read("diffusion_speed")["verdicts"]
    same = "; ".join(f"{name} {_word(trained[name])}" for name in record["verdicts"] if name in trained)
    return "\n".join(
        [
            *lines,
            "",
            f"{_place(record)} Verdicts on random weights: {words}.",
            "",
            f"The same caches on the trained `builtin:diffusion`, inside the same budget of KL: {same}.",
        ]
    )


def answers() -> str:
    """Answers beside speed for every combination and size."""
    record = read("diffusion_answers")
    lines = [
        "| canvas / block: setting | exact | 95 % | minus plain, 95 %, pairs | forwards, full + block "
        "| tokens a forward | tokens/s | times plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in record["rows"]:
        low, high = (100 * x for x in r["interval_95"])
        a, b = (100 * x for x in r["difference_95"])
        gap = "reference" if r["arm"] == "plain" else f"{a:+.1f} to {b:+.1f} points, {r['pairs']}"
        size = r["size"].replace("/", " / ")
        lines.append(
            f"| {size}: {r['arm']} | {r['hits']} of {r['problems']} | {low:.1f} to {high:.1f} % | {gap} | "
            f"{r['nfe_full']} + {r['nfe_block']} | {r['tokens_per_forward']:.2f} | {r['tokens_per_second_cpu']:.0f} | "
            f"{r['times_plain']:.1f}x |"
        )
    return "\n".join([*lines, "", *(_bar(bar) for bar in record["bars"])])


DRAWN = {"quality": quality, "answers": answers, "speed": speed, "shape": shape}


def page() -> str:
    """The page with its tables as the records have them."""
    return drawn(PAGE, DRAWN)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
