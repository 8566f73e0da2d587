"""The JSONL of LightReasoner's public project: written from our samples, and read with what its text form loses.

A line there is one step: `prompt_id`, `step`, `prefix` (the answer so far, decoded), `tokens`, `token_ids`, `weights`,
`kl_divergence`. It has no ids of prompt or prefix, so whoever reads it must tokenise text again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinrun.contrast.files import json_line, json_lines
from twinrun.contrast.samples import StepSample, Trajectory, short_float
from twinrun.contrast.settings import SYSTEM_PROMPT
from twinrun.errors import ConfigError, SamplesError
from twinrun.models.model import Model
from twinrun.records.write import whole_file

FIELDS = ("prompt_id", "step", "prefix", "tokens", "token_ids", "weights", "kl_divergence")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicStep:
    """One line: a step with the text that stood before it."""

    sample: StepSample
    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSamples:
    """What a public file gives when its text is tokenised.

    Attributes:
        trajectories: one a problem: its prompt, and the answer up to the last step of the file.
        steps: those that stand where they say.
        misaligned: steps whose prefix, tokenised again, has another number of tokens than the step says, or is no
            beginning of the answer. They are left out: their label would belong to another position.
    """

    trajectories: tuple[Trajectory, ...]
    steps: tuple[StepSample, ...]
    misaligned: int


def read_public_jsonl(path: str | Path) -> list[PublicStep]:
    """Return the lines of a public file, in order.

    Raises:
        SamplesError: an unreadable file, or a line that is no step; names file and line.
    """
    found = []
    for number, row in json_lines(Path(path)):
        missing = [f for f in FIELDS if not isinstance(row, dict) or f not in row]
        if missing:
            raise SamplesError(
                f"{path} line {number} has no field {missing[0]!r}; give the public project's samples"
            )
        try:
            if not isinstance(row["prefix"], str):
                raise SamplesError(f"'prefix' is {type(row['prefix']).__name__}, not text")
            found.append(PublicStep(sample=StepSample.of(_ours(row)), prefix=row["prefix"]))
        except SamplesError as error:
            raise SamplesError(f"{path} line {number}: {error}") from error
    return found


def write_public_jsonl(
    path: str | Path, steps: Iterable[StepSample], trajectories: Iterable[Trajectory], model: Model
) -> Path:
    """Write samples as the public project does: ids of a step ascending, the answer before it as text.

    Args:
        path: file to write.
        steps: in any order; written in this one.
        trajectories: those that the steps belong to.
        model: whose tokenizer decodes the prefixes.

    Raises:
        ConfigError: the model has no tokenizer, or the place cannot be written to.
        SamplesError: a step without its trajectory.
    """
    if model.tokenizer is None:
        raise ConfigError(f"{model.name} has no tokenizer; prefixes cannot be written as text")
    rows = {row.prompt_id: row for row in trajectories}
    with whole_file(path) as file:
        for step in steps:
            row = rows.get(step.prompt_id)
            if row is None:
                raise SamplesError(
                    f"step {step.step} of {step.prompt_id!r} has no trajectory; give both of one run"
                )
            file.write(json_line(_theirs(step, row, model)))
    return Path(path)


def read_public(path: str | Path, model: Model, *, system_prompt: str = SYSTEM_PROMPT) -> PublicSamples:
    """Turn a public file into steps and trajectories with ids, as far as its text allows.

    Args:
        path: JSONL whose `prompt_id` is the question, as in the public project.
        model: whose tokenizer and chat template made it.
        system_prompt: the system message it was made with.

    Raises:
        SamplesError: an unreadable file, or a line that is no step.
        ConfigError: the model has no tokenizer or no chat template.
    """
    groups: dict[str, list[PublicStep]] = {}
    for found in read_public_jsonl(path):
        groups.setdefault(found.sample.prompt_id, []).append(found)
    rows, steps, misaligned = [], [], 0
    for index, (question, group) in enumerate(groups.items()):
        answer = max((found.prefix for found in group), key=len)
        ids = _tokens(model, answer)
        rows.append(
            Trajectory(
                prompt_id=question,
                question=question,
                prompt_ids=tuple(model.chat(question, system=system_prompt)),
                answer_ids=tuple(ids),
                answer=answer,
                finished=False,
                index=index,
            )
        )
        for found in group:
            before, step = _tokens(model, found.prefix), found.sample.step
            if len(before) == step and ids[:step] == before:
                steps.append(found.sample)
            else:
                misaligned += 1
    return PublicSamples(trajectories=tuple(rows), steps=tuple(steps), misaligned=misaligned)


def _tokens(model: Model, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _ours(row: dict[str, Any]) -> dict[str, Any]:
    """A public line with our names, its ids in descending weight."""
    try:
        order = sorted(range(len(row["token_ids"])), key=lambda i: (-row["weights"][i], row["token_ids"][i]))
        lists = {key: [row[key][i] for i in order] for key in ("token_ids", "weights", "tokens")}
    except (TypeError, IndexError, KeyError) as error:
        raise SamplesError(f"its lists do not fit together ({error})") from error
    extra = {key: len(row[key]) for key in lists if len(row[key]) != len(order)}
    if extra:
        raise SamplesError(f"{len(order)} token ids with {extra}; give one of each an id")
    return {"prompt_id": row["prompt_id"], "step": row["step"], "kl": row["kl_divergence"], **lists}


def _theirs(step: StepSample, row: Trajectory, model: Model) -> dict[str, Any]:
    order = sorted(range(len(step.token_ids)), key=step.token_ids.__getitem__)
    decode = model.tokenizer.decode
    return {
        "prompt_id": row.question,
        "step": step.step,
        "prefix": decode(list(row.answer_ids[: step.step])),
        "tokens": [decode([step.token_ids[i]]) for i in order],
        "token_ids": [step.token_ids[i] for i in order],
        "weights": [short_float(step.weights[i]) for i in order],
        "kl_divergence": short_float(step.kl),
    }
