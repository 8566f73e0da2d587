"""RULER-style items for a model: texts as long as fit, asked with the question in sight and out of it.

Source: Hsieh et al. 2024, arXiv:2404.06654. The length counts the tokens of the answer, as there. Its tasks and
wording are those of `twinrun.tasks.retrieval`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.quality.item import Item
from twinrun.quality.settings import EvalSettings
from twinrun.tasks.retrieval import (
    Retrieval,
    RetrievalSettings,
    answer_text,
    fit_size,
    is_exact,
    question_text,
    recall,
    retrieval,
)

ANSWER_TOKENS = {
    "niah_single": 128,
    "niah_multikey": 128,
    "niah_multikey_uuid": 128,
    "variable_tracking": 30,
    "common_words": 120,
    "frequent_words": 50,
}
"""Tokens that RULER leaves for an answer."""
DIGITS = {"variable_tracking": 5}
OTHER_DIGITS = 7


def ruler_items(model: Model, task: str, length: int, settings: EvalSettings) -> list[Item]:
    """Return the items of a task at a length, both modes of an item from one text.

    Raises:
        ConfigError: a model without a tokenizer, or a length that the shortest text does not fit into.
    """
    count = partial(_count, model)
    room = settings.answer_tokens or ANSWER_TOKENS[task]
    plan = RetrievalSettings(
        task=task,
        size=10,
        digits=settings.digits or DIGITS.get(task, OTHER_DIGITS),
        seed=settings.seed,
        split="heldout",
    )
    # `fit_size` counts a right answer; RULER counts the room that is left for any.
    right = count(answer_text(retrieval(0, plan).asked[0]))
    spared = max(0, room - right) + (count(settings.start) if settings.start else 0)
    try:
        size = fit_size(plan, length - spared, count)
    except ConfigError as error:
        raise ConfigError(
            f"no text of {task} fits into {length} tokens of which {room} are for the answer; give a longer length or "
            "fewer --answer-tokens"
        ) from error
    found = []
    for index in range(settings.items):
        text = retrieval(index, replace(plan, size=size))
        found += [_item(model, text, mode, length, room, settings.start) for mode in settings.modes]
    return found


def _item(model: Model, text: Retrieval, mode: str, length: int, room: int, start: str) -> Item:
    read, asked = start + text.context, "\n" + question_text(text.asked[0])
    prompt, then = (read + asked, "") if mode == "end" else (read, asked)
    return Item(
        task=text.settings.task,
        length=length,
        mode=mode,
        index=text.index,
        prompt=tuple(model.encode(prompt)),
        then=tuple(plain_ids(model, then)),
        max_new_tokens=room,
        right=tuple(plain_ids(model, answer_text(text.asked[0]))),
        score=partial(_score, text),
    )


def _score(text: Retrieval, answer: str) -> dict[str, float]:
    return {"score": recall(answer, text), "exact": float(is_exact(answer, text))}


def plain_ids(model: Model, text: str) -> list[int]:
    """Ids of a text that goes on behind another: no start token before it, no end token behind it."""
    return [int(i) for i in model.tokenizer(text, add_special_tokens=False)["input_ids"]] if text else []


def _count(model: Model, text: str) -> int:
    if model.tokenizer is None:
        raise ConfigError(f"{model.name} was loaded without a tokenizer; tasks are made of text")
    return len(model.tokenizer(text, verbose=False)["input_ids"])
