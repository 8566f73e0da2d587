"""Traces of two diffusion runs made by hand: what their page and terminal report are given. No model."""

from __future__ import annotations

from typing import Any

from tests.support.trace_record import CONTROL, HOSTILE, RTL, WORDS

START, BLOCK, BLOCKS = 11, 8, 2
MASK_ID = 99
HOSTILE_WORDS = (HOSTILE, RTL, CONTROL, "{{ 7 * 7 }}", "\ud800", "<b>", "</style>", "'", "x" * 300)


def _steps(words: tuple[str, ...], *, skips: bool, part: int | None) -> list[dict[str, Any]]:
    """One commit a step, left to right; from step `part` on the words are others."""
    found = []
    for index in range(BLOCK * BLOCKS):
        block, inside = divmod(index, BLOCK)
        begin = START + block * BLOCK
        shift = 3 if part is not None and index >= part else 0
        word = words[(index + shift) % len(words)]
        skipped = [p for p in range(begin, begin + BLOCK) if skips and inside and p % 3 == 0]
        found.append(
            {
                "step": index,
                "block": block,
                "block_step": inside,
                "full": inside == 0,
                "seconds": 0.01,
                "begin": begin,
                "size": BLOCK,
                "computed": START + BLOCK * BLOCKS if inside == 0 else BLOCK,
                "confidence": [None if i < inside else 0.9 - 0.1 * (i - inside) for i in range(BLOCK)],
                "proposals": [words[(begin + i) % len(words)] for i in range(BLOCK)],
                "commits": [[begin + inside, 100 + (index + shift) % len(words), word]],
                "writes": [],
                "skipped": skipped,
                "cosine": [0.99999 - 0.01 * i for i in range(BLOCK)] if skips and inside else None,
                "compared": [i if inside == 1 else begin + i for i in range(BLOCK)]
                if skips and inside
                else None,
            }
        )
    return found


def _side(runner: str, words: tuple[str, ...], *, skips: bool, part: int | None) -> dict[str, Any]:
    steps = _steps(words, skips=skips, part=part)
    written = [commit for step in steps for commit in step["commits"]]
    skipped = sum(len(step["skipped"]) for step in steps)
    return {
        "runner": runner,
        "settings": {"block_length": BLOCK, "cache": "dual", "skip": "TokenSkip()" if skips else None},
        "text": "".join(piece for _, _, piece in written),
        "finish": "length",
        "seconds": 0.16,
        "start": START,
        "canvas": [{"id": token, "piece": piece} for _, token, piece in written],
        "skipped": {
            "steps": 14 if skips else 0,
            "tokens": 112 if skips else 0,
            "skipped_tokens": skipped,
            "skipped_share": skipped / 112,
            "skipped_layers_share": skipped / 224,
            "by_step": [[step["step"], len(step["skipped"])] for step in steps],
        },
        "steps": steps,
    }


def _told(step: int) -> dict[str, Any]:
    return {
        "kind": "numeric", "sentence": f"step {step} of block 0 commits position {START + step}", "step": step,
        "block": 0, "block_step": step, "position": START + step, "error": 0.2, "noise": 1e-6, "margin": None,
        "first_error": 1, "by_design": True,
    }  # fmt: skip


def canvas_record(
    *, words: tuple[str, ...] = WORDS, part: int | None = 5, wrong: bool = True
) -> dict[str, Any]:
    """A dual cache against a skip that compares rows (unless `wrong` is off); other words from step `part` on."""
    finding = {
        "where": "skip decision", "sentence": "step 1 of block 0 compares position 0 with position 11",
        "side": "candidate", "step": 1, "block": 0, "block_step": 1, "position": 11,
    }  # fmt: skip
    edges = [0.0, *(10 ** (-7 + i / 2) for i in range(1, 14)), 2.0]
    told = {
        "edges": edges, "kept": [0] * 8 + [10, 20, 30, 10, 5, 1], "skipped": [1, 2, 8, 16, 9] + [0] * 9,
        "mean_kept": 0.93, "mean_skipped": 0.99998,
    }  # fmt: skip
    return {
        "schema": "twinrun.canvas-trace/1",
        "model": "builtin:diffusion",
        "dtype": "float32",
        "level": "fingerprints",
        "env": {"platform": "Linux", "cpu": "A CPU", "packages": {"torch": "2.9.0"}},
        "seconds": 0.4,
        "noise": 1e-6,
        "divergence": None if part is None else _told(part),
        "findings": [finding] if wrong else [],
        "blame": finding if wrong else None,
        "passed": not wrong,
        "cosines": {"reference": None, "candidate": told},
        "complete": True,
        "mask_id": MASK_ID,
        "prompt": {"ids": list(range(START)), "pieces": [words[i % len(words)] for i in range(START)]},
        "sides": {
            "reference": _side("diffusion:dual", words, skips=False, part=None),
            "candidate": _side("diffusion:dual+skip", words, skips=True, part=part),
        },
    }


def clean_record() -> dict[str, Any]:
    """Nothing wrong, and the runs do not part."""
    return canvas_record(part=None, wrong=False)


def hostile_record() -> dict[str, Any]:
    """Hostile text wherever a record holds text."""
    found = canvas_record(words=HOSTILE_WORDS) | {"model": f"m {HOSTILE}", "dtype": HOSTILE}
    found["env"] = {"cpu": HOSTILE, "platform": RTL}
    found["divergence"] |= {"sentence": f"{HOSTILE} {RTL} {CONTROL}"}
    found["blame"] |= {"sentence": f"{HOSTILE} {RTL}", "where": HOSTILE}
    for side in found["sides"].values():
        side |= {"runner": HOSTILE, "finish": CONTROL, "settings": {"commit": HOSTILE}}
    return found


def killed_record() -> dict[str, Any]:
    """A recording that was killed: the candidate has fewer steps, half of its canvas is open, no cosines."""
    found = canvas_record(part=None, wrong=False) | {"complete": False, "cosines": None, "noise": None}
    side = found["sides"]["candidate"]
    side["steps"] = side["steps"][:6]
    side["canvas"] = [
        *side["canvas"][:6],
        *({"id": MASK_ID, "piece": None} for _ in range(BLOCK * BLOCKS - 6)),
    ]
    side |= {"finish": None, "text": None}
    return found
