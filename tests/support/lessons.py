"""Lessons and samples with random ids for models of any vocabulary."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np

import twinrun as tr
from twinrun.contrast.identity import identity
from twinrun.contrast.lesson import Label, Lesson
from twinrun.contrast.samples import StepSample, Trajectory
from twinrun.contrast.store import Sampled, SampleStore

SHAPES = ((3, 9, (0, 2, 3, 8)), (7, 4, (1,)), (2, 14, (0, 13)), (5, 6, (2, 3, 4)))
"""(tokens of the prompt, of the answer, tuned steps): unequal lengths, first and last steps among them."""


def label(rng: Random, vocab: int, size: int) -> Label:
    ids = rng.sample(range(vocab), size)
    parts = np.array([rng.random() + 0.1 for _ in ids], dtype=np.float32)
    weights = sorted((float(w) for w in parts / parts.sum()), reverse=True)
    return tuple(ids), tuple(weights)


def lessons(
    vocab: int, seed: int = 0, shapes: tuple[tuple[int, int, tuple[int, ...]], ...] = SHAPES
) -> list[Lesson]:
    rng = Random(seed)
    found = []
    for number, (prompt, answer, steps) in enumerate(shapes):
        ids = tuple(rng.randrange(vocab) for _ in range(prompt + answer))
        labels = tuple(label(rng, vocab, 1 + i % 3) for i in range(len(steps)))
        found.append(Lesson(prompt_id=f"p{number}", ids=ids, start=prompt, steps=steps, labels=labels))
    return found


def store(
    folder: Path, model: tr.Model, *, problems: int = 12, seed: int = 0, every_step: bool = True
) -> SampleStore:
    """Samples of `model` with random answers of 5 to 12 tokens; KL grows with a random number a step."""
    rng, vocab, batch = Random(seed), model.vocab_size, []
    for index in range(problems):
        name = f"arithmetic/train/0/{index}"
        prompt = tuple(rng.randrange(vocab) for _ in range(rng.randrange(3, 8)))
        answer = tuple(rng.randrange(vocab) for _ in range(rng.randrange(5, 13)))
        steps = []
        for step in range(len(answer)):
            size = 1 + step % 2
            ids, weights = label(rng, vocab, size)
            kl = float(np.float32(rng.random()))
            if every_step or kl > 0.4:
                steps.append(StepSample(prompt_id=name, step=step, token_ids=ids, weights=weights, kl=kl))
        row = Trajectory(
            prompt_id=name,
            question=f"question {index}",
            prompt_ids=prompt,
            answer_ids=answer,
            answer=f"#### {index}",
            finished=True,
            index=index,
        )
        batch.append(Sampled(trajectory=row, steps=tuple(steps)))
    header = {"settings": {"beta": 0.0}, "expert": identity(model), "amateur": {}, "data": {"seed": seed}}
    made = SampleStore.create(folder, header, parts=1)
    made.append(0, batch)
    return made
