"""LongBench items for a model: formatted, cut in the middle, wrapped for chat, and split where the question begins."""

from __future__ import annotations

from functools import partial
from typing import Any

from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.quality.item import Item
from twinrun.quality.ruler import plain_ids
from twinrun.quality.settings import PREFIX, EvalSettings
from twinrun.tasks.longbench import LongItem, longbench_items, middle_cut


def long_items(model: Model, task: str, length: int, settings: EvalSettings) -> list[Item]:
    """Return the items of a LongBench task, prompts cut to `length` tokens as the official code cuts them.

    A tokenizer with a chat template gets it, except in the few-shot and code tasks. The ids are those of the template:
    no second start token is put before them, as the official code's second encoding may do.

    Raises:
        ConfigError: no tokenizer, no such file, or chat asked for where there is no template.
    """
    if model.tokenizer is None:
        raise ConfigError(f"{model.name} was loaded without a tokenizer; LongBench is made of text")
    if settings.chat == "on" and getattr(model.tokenizer, "chat_template", None) is None:
        raise ConfigError(f"{model.name} has no chat template; use chat='auto' or 'off'")
    assert settings.data is not None, "settings refuse LongBench without its data"
    rows = longbench_items(task.removeprefix(PREFIX), settings.data, settings.items)
    return [_item(model, row, mode, length, settings) for row in rows for mode in settings.modes]


def _item(model: Model, row: LongItem, mode: str, length: int, settings: EvalSettings) -> Item:
    text, wrapped = _prompt(model, row, length, settings)
    tail = row.tail
    cut = text.rfind(tail) if mode == "unseen" and tail else -1
    # A start token comes with the encoding, or with the chat template, never with both.
    encode = partial(plain_ids, model) if wrapped else model.encode
    ends = plain_ids(model, "\n")[-1:] if row.task.ends_at_newline else []
    if mode == "unseen" and cut <= 0:
        raise ConfigError(
            f"item {row.index} of {row.task.name}: its question alone is longer than half of {length} tokens, so it "
            "cannot be asked behind the context; give a longer length, or the mode 'end'"
        )
    return Item(
        task=PREFIX + row.task.name,
        length=length,
        mode=mode,
        index=row.index,
        prompt=tuple(encode(text if cut < 0 else text[:cut])),
        then=() if cut < 0 else tuple(plain_ids(model, text[cut:])),
        max_new_tokens=settings.answer_tokens or row.task.max_new_tokens,
        ends=frozenset(ends),
        least=int(row.task.ends_at_newline),
        right=tuple(plain_ids(model, row.answers[0])),
        score=partial(_score, row),
    )


def _prompt(model: Model, row: LongItem, length: int, settings: EvalSettings) -> tuple[str, bool]:
    """The prompt as text, and whether a chat template stands around it."""
    whole = row.prompt
    text = (
        middle_cut(model.tokenizer(whole, verbose=False)["input_ids"], length, partial(_decode, model))
        or whole
    )
    template = getattr(model.tokenizer, "chat_template", None)
    if not row.task.chat or settings.chat == "off" or template is None:
        return settings.start + text, False
    messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
    return str(
        model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ), True


def _decode(model: Model, ids: list[int]) -> str:
    return str(model.tokenizer.decode(ids, skip_special_tokens=True))


def _score(row: LongItem, answer: str) -> dict[str, float]:
    return {"score": row.score(answer)}
