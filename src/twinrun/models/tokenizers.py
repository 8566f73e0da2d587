"""Prove that two models read token ids alike before their distributions are compared."""

from __future__ import annotations

from collections.abc import Iterable

from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.records.tokens import first_difference


def check_same_tokens(a: Model, b: Model, texts: Iterable[str] = ()) -> None:
    """Refuse two models whose token ids mean different things.

    Where both have tokenizers, their vocabularies must agree on every shared id, and `texts` must be
    encoded alike. Unequal sizes are fine (padding rows). A model without a tokenizer is taken at its word.

    Raises:
        ConfigError: names the first id that differs, with both tokens.
    """
    if a.tokenizer is None or b.tokenizer is None:
        return
    mine, theirs = ({i: t for t, i in m.tokenizer.get_vocab().items()} for m in (a, b))
    for i in sorted(mine.keys() & theirs.keys()):
        if mine[i] != theirs[i]:
            raise ConfigError(
                f"the tokenizers of {a.name} and {b.name} disagree: id {i} is {mine[i]!r} in one "
                f"and {theirs[i]!r} in the other; "
                "use two models of one family"
            )
    for number, text in enumerate(texts, 1):
        first, second = a.encode(text), b.encode(text)
        if first != second:
            at = first_difference(first, second)
            raise ConfigError(
                f"text {number} is tokenised differently by {a.name} and {b.name}, first at token "
                f"{at}; use one family"
            )
