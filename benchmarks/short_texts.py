"""How close clean verdicts of a trained model come to the ratio's limits over texts of few positions.

Over few positions the reference may be right by luck, so both limits are multiplied by 1 + 5 / sqrt(positions)
(`FEW_POSITIONS` in `twinrun/verify/witness.py`). This script measures what that factor must cover: held-out problems
with their worked answers, scored by `builtin:expert`, cut to a few lengths. The share of a limit must stay below 1.

  python benchmarks/short_texts.py                       some minutes on one core
  python benchmarks/short_texts.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from _record import at_most, run, say

import twinrun as tr
from twinrun.tasks.arithmetic import problem
from twinrun.verify.witness import FEW_POSITIONS, RATIO_MAX, RATIO_RMS

ABOUT = "clean error ratios of a trained model over few positions, as shares of what the rule allows"
LENGTHS = (4, 16, 48, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    model: str = field(default="builtin:expert", metadata={"help": "a trained model"})
    texts: int = field(default=40, metadata={"help": "texts of each length"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(texts=1)


def texts_of(model: tr.Model, count: int, length: int) -> Iterator[tuple[int, ...]]:
    """Yield `count` rows of at least 64 + `length` tokens: problems and answers in chat form, one after another."""
    index = 0
    for _ in range(count):
        ids: list[int] = []
        while len(ids) < 64 + length:
            one = problem(index, seed=11, split="heldout")
            ids += model.chat(one.question) + model.encode(one.answer_text)
            index += 1
        yield tuple(ids[: 64 + length])


def measure(config: Config) -> dict[str, Any]:
    """Take one verdict a text, precision and candidate."""
    rows: list[dict[str, Any]] = []
    for dtype in ("float32", "bfloat16"):
        model = tr.load(config.model, dtype=dtype)
        sides = tr.SinglePass(model), tr.KVCache(model)
        for length in LENGTHS:
            say(f"{dtype}, {length} positions, {config.texts} texts")
            for number, ids in enumerate(texts_of(model, config.texts, length)):
                case = tr.Case(label="text", rows=(ids,), starts=(65,))
                side = sides[number % 2]
                found = tr.verify(tr.Recompute(model), side, [case])
                assert found.ratio is not None
                rows.append(
                    {
                        "dtype": dtype,
                        "candidate": side.name,
                        "positions": found.positions,
                        "verdict": found.verdict,
                        "ratio_max": found.ratio_max,
                        "ratio_rms": found.ratio_rms,
                        "max_of_allowed": (found.ratio_max or 0) / found.ratio.allowed_max,
                        "rms_of_allowed": (found.ratio_rms or 0) / found.ratio.allowed_rms,
                        "sweep_of_allowed": (found.sweep.gap or 0) / (found.sweep.allowed or 1),
                    }
                )
    bars = [
        at_most(f"{key}, {length} positions", max(r[key] for r in rows if r["positions"] == length), 1.0)
        for length in sorted({r["positions"] for r in rows})
        for key in ("max_of_allowed", "rms_of_allowed", "sweep_of_allowed")
    ]
    beyond = sum(r["ratio_max"] > RATIO_MAX or r["ratio_rms"] > RATIO_RMS for r in rows)
    notes = [
        f"{beyond} of {len(rows)} clean verdicts lie beyond {RATIO_MAX:g}x / {RATIO_RMS:g}x without the factor"
    ]
    constants = {"FEW_POSITIONS": FEW_POSITIONS, "RATIO_MAX": RATIO_MAX, "RATIO_RMS": RATIO_RMS}
    return {"arms": {}, "ratios": {}, "constants": constants, "notes": notes, "rows": rows, "bars": bars}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    return run("short_texts", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
