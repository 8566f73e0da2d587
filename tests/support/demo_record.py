"""A small record of the demo, made by hand: what the page, the tables and the plots are given."""

from __future__ import annotations

from typing import Any

HOSTILE = "<script>window.hacked=1</script></script><img src=x onerror=window.hacked=1>\"'&"


def verdict_record(
    word: str = "equivalent", candidate: str = "kv-cache:static", **changes: Any
) -> dict[str, Any]:
    """One verdict as `Verdict.to_json` gives it, with a speed."""
    found = {
        "verdict": word,
        "reason": f"why it is {word}",
        "reference": "recompute",
        "candidate": candidate,
        "model": "builtin:expert",
        "dtype": "float32",
        "positions": 5,
        "ratio_max": 1.04,
        "ratio_rms": 0.98,
        "kl_mean": 2.3e-13,
        "flips": {"ties": 1, "real": 0, "noise": 1e-6, "worst_margin": 1e-7},
        "blame": None,
        "sweep": {"gap": 1e-14, "allowed": 1e-12, "low": "float32", "high": "float64", "why_not": None},
        "cases": [
            {"case": "text", "positions": 5, "ratio_max": 1.04, "gap_up_max": 1e-14, "kl_max": 1e-12,
             "flips": 1}
        ],
        "speed": {
            "seconds_median": 0.12, "speed_up_median": 82.7, "speed_up_p10": 77.8, "speed_up_p90": 87.8,
        },
    }  # fmt: skip
    return found | changes


def reference_record() -> dict[str, Any]:
    """The row of the plain way: no verdict, and its own time against itself."""
    speed = {"seconds_median": 9.9, "speed_up_median": 1.01, "speed_up_p10": 0.97, "speed_up_p90": 1.06}
    empty = dict.fromkeys(("ratio_max", "ratio_rms", "kl_mean"))
    return {"candidate": "recompute", "verdict": "reference", "dtype": "float32", "speed": speed, **empty}


def text_record(question: str, tokens: list[str]) -> dict[str, Any]:
    """One contrasted answer; every second token is a chosen step."""
    kl = [1.2 if i % 2 else 0.03 for i in range(len(tokens))]
    tops = [[(token, -0.1), (HOSTILE, -2.5), ("\n", -4.0)] for token in tokens]
    return {
        "question": question, "expected": 49,
        "expert_text": "#### 49", "expert_answer": 49, "expert_right": True,
        "amateur_text": HOSTILE, "amateur_answer": None, "amateur_right": False, "start": 20,
        "token_ids": list(range(len(tokens))), "tokens": tokens, "kl": kl,
        "chosen": [i for i, value in enumerate(kl) if value > 0.4], "expert_top": tops, "amateur_top": tops,
    }  # fmt: skip


def demo_record(**changes: Any) -> dict[str, Any]:
    """A whole demo: two ways and a text with hostile names, one fault caught."""
    texts = [
        text_record(
            "Ben has 8 books and buys 41.", ["more", ": ", "8", " +", " 41", " =", " 49", "\n", "####", " 49"]
        ),
        text_record(HOSTILE, [HOSTILE, "</script>", "{{ 7 * 7 }}", "\u2028", "é"]),
    ]
    caught = verdict_record(
        "different", "kv-cache:dynamic", ratio_max=14.5, ratio_rms=2.9, blame=f"text: position 51 {HOSTILE}",
        sweep={"gap": 3.0, "allowed": 1.9e-4, "low": "bfloat16", "high": "float32", "why_not": None},
    )  # fmt: skip
    gaps = [1e-5, 1e-5, 3.0, 2.0, 2.5]
    fault = {
        "name": "position-off-by-one", "summary": "positions are one late", "where": "first step",
        "caught": True,
        "verdict": caught, "trace": {"positions": [50, 51, 52, 53, 54], "gap_up": gaps, "allowed": 1.9e-4},
    }  # fmt: skip
    rows = [reference_record(), verdict_record(), verdict_record("identical", "single-pass", ratio_max=1.0)]
    found = {
        "kind": "demo", "version": "0.1.0", "passed": True, "outcome": "Every fast path is the same model.",
        "model": {"name": f"expert {HOSTILE}", "parameters": 2_632_512},
        "amateur": {"name": "builtin:amateur"},
        "text": {"tokens": 200, "start": 51, "source": "held-out problems", "token_ids": [1, 2]},
        "twins": [
            {"dtype": "float32", "repeats": 3, "rows": rows,
             "noise": {"ratio_median": 1.01, "ratio_p10": 0.97, "ratio_p90": 1.06, "pairs": 3}}
        ],
        "contrast": {
            "expert": "builtin:expert", "amateur": "builtin:amateur", "beta": 0.4, "texts": texts,
            "right": {"expert": 2, "amateur": 0}, "kl": [k for text in texts for k in text["kl"]],
        },
        "faults": [fault],
        "diffusion": {
            "model": "builtin:diffusion",
            "ways": [
                {"runner": "diffusion:none", "commit": "Quota(steps=None)", "nfe": 32, "nfe_full": 32, "nfe_block": 0,
                 "new_tokens": 36, "right": 2, "problems": 2, "texts": [HOSTILE]}
            ],
            "twins": {
                "dtype": "float32", "repeats": 2,
                "rows": [reference_record(), verdict_record("lossy", "diffusion:dual", ratio_max=7.5e4)],
                "noise": {"ratio_median": 1.01, "ratio_p10": 0.97, "ratio_p90": 1.06, "pairs": 2},
            },
        },
        "prune": {
            "model": "builtin:long", "prompt_tokens": 12, "question": f"Which number? {HOSTILE}", "expected": "12345",
            "layer_lengths": [12, 9, 5], "ways": [{"runner": "pruned:learned", "text": HOSTILE, "is_right": False}],
            "twins": {
                "dtype": "float32", "repeats": 3,
                "rows": [reference_record(), verdict_record("lossy", "pruned:learned", ratio_max=9e3)],
                "noise": {"ratio_median": 1.01, "ratio_p10": 0.97, "ratio_p90": 1.06, "pairs": 3},
            },
        },
        "env": {"platform": "Linux", "cpu": HOSTILE, "gpus": [],
                "packages": {"torch": "2.13", "numpy": None}},
        "seconds": 41.5,
    }  # fmt: skip
    return found | changes
