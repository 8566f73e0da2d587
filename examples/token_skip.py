"""Token skip as it was published: row 0 compared with row 0 of another tensor, and early states through the head.

python examples/token_skip.py

Answers "why does threshold 0.9999 repeat itself?" with what the tool says of each fault alone and of all together. Runs
on `builtin:diffusion`, in under a minute on one CPU core.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

import twinrun as tr
from twinrun.faults.registry import get_fault
from twinrun.faults.skips import AsPublished, rewired
from twinrun.tasks.arithmetic import is_exact, problem
from twinrun.trace.canvas_trace import CanvasTrace

THRESHOLD = 0.9999
TOKENS = 32
PROBLEMS = [problem(i, seed=5, split="heldout", steps=(1, 1)) for i in range(24)]
Plant = Callable[[Any], AbstractContextManager[None]]


@contextmanager
def sound(_runner: Any) -> Iterator[None]:
    """Plant nothing."""
    yield


CASES: dict[str, Plant] = {
    "sound": sound,
    "rows": get_fault("skip-compares-rows").planted,
    "positions": get_fault("skip-block-local-positions").planted,
    "early states": get_fault("skip-early-states-to-head").planted,
    "as published": rewired(AsPublished),
}


def doubled(tokens: list[int]) -> int:
    """Tokens that repeat the one before them, end of text left out."""
    return sum(a == b for a, b in pairwise(tokens))


def shown(text: str) -> str:
    """One line of a text, cut."""
    return repr(text)[:44]


def measured(model: tr.Model, runner: Any, plant: Plant) -> tuple[int, float, int, list[str]]:
    """Right answers, share of tokens skipped, doubled tokens, and the texts."""
    with plant(runner):
        runs = [runner.generate(model.chat(p.question), TOKENS) for p in PROBLEMS]
    texts = [run.texts[0] for run in runs]
    right = sum(is_exact(text, p) for text, p in zip(texts, PROBLEMS, strict=True))
    skipped = sum(run.skip_ratio for run in runs) / len(runs)
    return (
        right,
        skipped,
        sum(doubled([t for t in run.tokens[0] if t not in model.eos_ids]) for run in runs),
        texts,
    )


def proposals(found: CanvasTrace) -> tuple[int, float]:
    """What skipped open positions propose: how many there are, and the share of the commonest token of each step."""
    total = most = 0
    for step in found.candidate.steps:
        skipped = set(step.skipped)
        cells = zip(step.positions, step.tokens, step.open, strict=True)
        said = Counter(token for p, token, is_open in cells if is_open and p in skipped)
        total += sum(said.values())
        most += max(said.values(), default=0)
    return total, most / max(1, total)


def second_opinion(found: CanvasTrace) -> tuple[int, int]:
    """Tokens that were committed while skipped, and how many the same step without a skip would have proposed."""
    asked = agreed = 0
    for step in found.candidate.steps:
        mine = {p: t for p, t in step.commits.items() if p in set(step.skipped)}
        if mine:
            after = found.replay(step.step, skip=None).after
            top = dict(zip(after.positions, after.logits.argmax(-1).tolist(), strict=True))
            asked += len(mine)
            agreed += sum(top[p] == token for p, token in mine.items())
    return asked, agreed


def decisions(found: CanvasTrace) -> str:
    """Step 1 of block 0: what was compared, and what the same tokens show by position."""
    step = found.candidate.steps[1]
    assert step.skips is not None
    assert step.skips.mean is not None
    assert step.cosines is not None
    policy = found.runners["candidate"].settings.skip
    own = step.cosines[1 : policy.layer_k].mean(0).tolist()
    pairs = list(zip(step.skips.mean, own, step.skips.changed, strict=True))
    odd = sum((a is not None and a > THRESHOLD) != (b > THRESHOLD) for a, b, changed in pairs if not changed)
    compared = sum(a or 0.0 for a, _, _ in pairs) / len(pairs)
    return (
        f"mean cosine {compared:.4f} as compared, {sum(own) / len(own):.4f} by position; "
        f"{odd} of {len(pairs)} decisions would be others"
    )


def main() -> None:
    """Print what a user of the code saw, and then where it comes from."""
    torch.set_num_threads(1)
    model = tr.load("builtin:diffusion", dtype="float32")
    dual = tr.Diffusion(model, cache="dual")
    # The published rule knows no neighbours; ours computes them (docs/token-skip.md).
    skip = tr.TokenSkip.for_depth(len(model.layout.layers), threshold=THRESHOLD, neighbours=0)
    runner = tr.Diffusion(model, cache="dual", skip=skip)
    never = tr.Diffusion(model, cache="dual", skip=replace(skip, threshold=1.0))
    rows = {"none": (dual, sound), **{name: (runner, plant) for name, plant in CASES.items()}}
    rows["published, 1.0"] = (never, CASES["as published"])
    print(f"{len(PROBLEMS)} problems, {skip}\n")
    print(f"{'token skip':<14} | right | skipped | doubled | first answer")
    for name, (side, plant) in rows.items():
        right, skipped, twice, texts = measured(model, side, plant)
        print(f"{name:<14} | {right:5d} | {100 * skipped:5.0f} % | {twice:7d} | {shown(texts[0])}")
    for name, plant in CASES.items():
        with plant(runner):
            found = tr.trace(
                dual, runner, model.chat(PROBLEMS[0].question), max_new_tokens=TOKENS, level="states"
            )
            total, share = proposals(found)
            asked, agreed = second_opinion(found)
        print(f"\n{name}\n  trace: {'nothing is wrong in itself' if found.blame is None else found}")
        print(f"  step 1 of block 0: {decisions(found)}")
        print(
            f"  skipped open tokens: {total} proposals, {100 * share:.0f} % of them the commonest of their step"
        )
        print(f"  committed while skipped: {asked}; without a skip the same step proposes {agreed} of them")


if __name__ == "__main__":
    main()
