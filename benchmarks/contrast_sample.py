"""Whole sampling with the built-in pair: ours on 1,000 problems, the public algorithm told again on a share of them.

Both run in float32 on the same problems, greedily, with the paper's settings. Rounds are interleaved on the same draw
of problems, so the ratio is ours against theirs on equal work; then ours samples all 1,000 once, into a folder. On the
problems that both have sampled, the steps are compared: at every step whose ids survived being decoded and tokenised
again, both must have kept it or both not, but where KL is within 0.001 of the threshold.

Bars: at least 10 times faster, and no step kept by one side only.

  python benchmarks/contrast_sample.py                       minutes on two cores
  python benchmarks/contrast_sample.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _record import at_least, at_most, ratios_json, run, say, timings_json

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the plain algorithm lies with the tests

import twinrun as tr  # noqa: E402  needs the path above
from tests.support.plain_lightreasoner import Plain, PlainAnswer  # noqa: E402  needs the path above
from twinrun.bench.timing import interleave, noise, ratio  # noqa: E402  needs the path above
from twinrun.contrast.problems import Questions, read_questions  # noqa: E402  needs the path above
from twinrun.contrast.sample import sample  # noqa: E402  needs the path above
from twinrun.contrast.settings import SampleSettings  # noqa: E402  needs the path above
from twinrun.contrast.store import Sampled, SampleStore  # noqa: E402  needs the path above

ABOUT = "whole sampling with the built-in pair, against the public algorithm told again plainly"
FASTER = 10.0
NEAR = 1e-3
"""Nats around beta in which rounding may decide."""
OURS, PUBLIC = "ours", "public algorithm, 64 prefixes a forward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    problems: int = field(default=1000, metadata={"help": "problems that ours samples"})
    share: int = field(default=32, metadata={"help": "of these, problems of a timed round of both"})
    repeats: int = field(default=3, metadata={"help": "interleaved rounds"})
    max_new_tokens: int = field(default=128, metadata={"help": "tokens of an answer at most"})
    batch_size: int = field(default=32, metadata={"help": "problems a batch of ours"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(problems=4, share=2, repeats=2, max_new_tokens=12, batch_size=2)


class Pair:
    """Both models, and both ways to sample."""

    def __init__(self, config: Config) -> None:
        self.expert, self.amateur = (tr.load(f"builtin:{n}", dtype="float32") for n in ("expert", "amateur"))
        self.settings = SampleSettings(
            max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, first_step=1
        )
        self.plain = Plain(self.expert.model, self.amateur.model, self.expert.tokenizer)
        self.answers: dict[str, PlainAnswer] = {}

    def ours(self, questions: Questions, folder: str | None = None) -> list[Sampled]:
        """Sample into a folder, files included."""
        with tempfile.TemporaryDirectory() as own:
            place = folder or own
            sample(self.expert, self.amateur, questions, place, settings=self.settings)
            return list(SampleStore(place).sampled())

    def public(self, questions: Questions) -> None:
        """The public algorithm, answers kept for the comparison."""
        for q in questions.items:
            self.answers[q.prompt_id] = self.plain.answer(q.text, self.settings.max_new_tokens)


def compare(found: Sequence[Sampled], answers: dict[str, PlainAnswer], beta: float) -> dict[str, int]:
    """Count steps by what both sides made of them."""
    counts = dict.fromkeys(
        (
            "problems",
            "other_answers",
            "steps",
            "steps_whose_ids_changed",
            "near_beta",
            "kept_by_both",
            "kept_by_one",
        ),
        0,
    )
    for ours in found:
        row, theirs = ours.trajectory, answers.get(ours.trajectory.prompt_id)
        if theirs is None:
            continue
        counts["problems"] += 1
        if list(row.answer_ids) != theirs.answer_ids:
            counts["other_answers"] += 1
            continue
        mine, wanted = {s.step for s in ours.steps}, {s.step for s in theirs.steps}
        for step in range(1, len(row.answer_ids)):
            counts["steps"] += 1
            if not theirs.survives(step):
                counts["steps_whose_ids_changed"] += 1
            elif (step in mine) != (step in wanted):
                counts["near_beta" if abs(row.kl[step] - beta) < NEAR else "kept_by_one"] += 1
            else:
                counts["kept_by_both"] += step in mine
    return counts


def measure(config: Config) -> dict[str, Any]:
    """Time both on the share, ours on all, and compare the steps."""
    pair = Pair(config)
    data = read_questions("builtin:arithmetic", limit=config.problems)
    share = Questions(items=data.items[: config.share])
    say(f"{config.repeats} rounds of {config.share} problems")
    arms = {OURS: lambda: pair.ours(share), PUBLIC: lambda: pair.public(share)}
    timings = interleave(arms, repeats=config.repeats, warmups=0)
    say(f"ours on {config.problems} problems")
    began = time.perf_counter()
    found = pair.ours(data)
    seconds = time.perf_counter() - began
    counts = compare(found, pair.answers, pair.settings.beta)
    faster = ratio(timings[PUBLIC], timings[OURS])
    estimate = timings[PUBLIC].seconds_median * config.problems / config.share
    whole = estimate / seconds
    steps = sum(len(s.trajectory.answer_ids) for s in found)
    return {
        "model": [repr(pair.expert), repr(pair.amateur)],
        "arms": timings_json(timings),
        "ratios": ratios_json(
            {"public algorithm / ours, same problems": faster, "A/A noise": noise(timings)}
        ),
        "whole": {
            "problems": len(found),
            "seconds": seconds,
            "answer_tokens": steps,
            "steps_kept": sum(len(s.steps) for s in found),
            "public_algorithm_seconds_estimated_from_share": timings[PUBLIC].seconds_median
            * config.problems
            / config.share,
            "public_algorithm_share_of_problems": config.share / config.problems,
            "ratio_estimated": whole,
        },
        "same_steps": counts,
        "notes": [
            f"ours, {len(found)} problems: {seconds:.1f} s; the public algorithm ran on {config.share} of them",
            "same steps: " + ", ".join(f"{k} {v}" for k, v in counts.items()),
        ],
        "bars": [
            at_least("sampling against the public algorithm, same problems", faster.median, FASTER),
            at_least("ours on all problems against its estimate", whole, FASTER),
            at_most("steps kept by one side only, ids unchanged", counts["kept_by_one"], 0, "steps"),
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("contrast_sample", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
