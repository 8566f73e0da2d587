"""Casebook: fine-tuning that reads the last column of right-padded rows. The loss falls; what falls is not it.

python examples/padded_training.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import twinrun as tr
from twinrun.contrast.adapt import adapt
from twinrun.contrast.lesson import Lesson, Packed
from twinrun.contrast.lessons import contrast_lessons, split
from twinrun.contrast.loss import chosen_logits, soft_kl
from twinrun.contrast.problems import read_questions
from twinrun.contrast.proof import TrainingForward, check_lessons
from twinrun.contrast.sample import sample
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.store import SampleStore
from twinrun.contrast.train_settings import ALL_LINEAR, LoraSettings

PROBLEMS, STEPS, ROWS = 40, 24, 8
BETA = 0.01
PAD = 1
Read = Callable[[nn.Module, Sequence[Lesson]], Tensor]


def packed(module: nn.Module, lessons: Sequence[Lesson]) -> Tensor:
    """Ours: all tuned steps of all answers in one forward, each read at its own position."""
    return chosen_logits(module, Packed.of(lessons))


def last_column(module: nn.Module, lessons: Sequence[Lesson]) -> Tensor:
    """As published: a row a step, padded on the right, and of every row the last column."""
    rows = prefixes(lessons)
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logits: Tensor = module(input_ids=ids, attention_mask=mask).logits[:, -1]
    return logits


def prefixes(lessons: Sequence[Lesson]) -> list[tuple[int, ...]]:
    """One row a tuned step: everything before the tuned token."""
    return [lesson.ids[: row + 1] for lesson in lessons for row in lesson.rows]


class Published(TrainingForward):
    """The published forward as a runner, for the training check."""

    def logits_of(self, module: nn.Module, lessons: Sequence[Lesson]) -> Tensor:
        """Read the last column."""
        return last_column(module, lessons)


def loss_of(read: Read, module: nn.Module, lessons: Sequence[Lesson]) -> Tensor:
    """Mean KL of the labels against what is read."""
    batch = Packed.of(lessons)
    return soft_kl(read(module, lessons), batch.label_ids, batch.label_weights).mean()


def gradient(model: tr.Model, read: Read, lessons: Sequence[Lesson]) -> Tensor:
    """Gradient of a fresh adapter, behind one another."""
    with adapt(model, LoraSettings(dropout=0.0), seed=0) as module:
        loss_of(read, module, lessons).backward()
        return torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])


def trained(
    model: tr.Model, read: Read, lessons: list[Lesson], kept: list[Lesson]
) -> tuple[float, float, float]:
    """Loss that training sees in its first and last four steps, and the true one on answers that were kept apart."""
    lora = LoraSettings(dropout=0.0, targets=(ALL_LINEAR,))
    with adapt(model, lora, seed=0) as module:
        optimizer = torch.optim.AdamW((p for p in module.parameters() if p.requires_grad), lr=1e-3)
        rng, seen = Random(0), []
        for _ in range(STEPS):
            loss = loss_of(read, module, rng.sample(lessons, ROWS // 2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(float(loss.detach()))
        with torch.no_grad():
            return sum(seen[:4]) / 4, sum(seen[-4:]) / 4, float(loss_of(packed, module, kept))


def sampled(expert: tr.Model) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons of a few problems."""
    settings = SampleSettings(beta=BETA, system_prompt="", max_new_tokens=110)
    with TemporaryDirectory() as folder:
        questions = read_questions("builtin:arithmetic", limit=PROBLEMS)
        sample(expert, tr.load("builtin:amateur", dtype="float32"), questions, folder, settings=settings)
        return split(contrast_lessons(SampleStore(folder).sampled()), 0.2)


def main() -> None:
    """Print what a user of the code saw, and then where it comes from."""
    torch.set_num_threads(1)
    expert = tr.load("builtin:expert", dtype="float32")
    lessons, kept = sampled(expert)
    rng = Random(1)
    rows = prefixes(lessons)
    batches = [rng.sample(rows, ROWS) for _ in range(200)]
    short = sum(len(row) < max(map(len, batch)) for batch in batches for row in batch)
    print(
        f"batches of {ROWS} rows: {100 * short / (200 * ROWS):.0f} % of the rows end in padding and are read there\n"
    )
    some = lessons[:4]
    right = gradient(expert, packed, some)
    cases: dict[str, tuple[Read, Any]] = {
        "packed": (packed, TrainingForward(expert)),
        "published": (last_column, Published(expert)),
    }
    with torch.no_grad():
        before = float(loss_of(packed, expert.model, kept))
    head = "cosine with the true gradient | loss it sees, first and last steps"
    print(f"way         | {head} | true loss, answers kept apart")
    print(f"{'untrained':<11} | {'':>29} | {'':>34} | {before:.5f}")
    for name, (read, _) in cases.items():
        cosine = float(torch.nn.functional.cosine_similarity(gradient(expert, read, some), right, dim=0))
        first, last, true = trained(expert, read, lessons, kept)
        print(f"{name:<11} | {cosine:>29.3f} | {first:>23.5f} to {last:.5f} | {true:.5f}")
    print()
    for name, (_, forward) in cases.items():
        verdict = check_lessons(forward, some)
        print(f"training check, {name}: {verdict.verdict}: {verdict.reason}")


if __name__ == "__main__":
    main()
