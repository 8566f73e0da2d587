"""The token ids that a sweep runs on: one text, of which every length takes the beginning."""

from __future__ import annotations

import random

from twinrun.bench.settings import BenchSettings
from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.tasks.texts import language_reference

CHARS_A_TOKEN = 6
"""First guess of how much text to encode; doubled until there are enough tokens."""


def token_row(model: Model, count: int, settings: BenchSettings) -> tuple[list[int], str]:
    """Return `count` token ids that are the same on every call, and in words where they come from.

    With a tokenizer: Python's language reference of the running installation (`tasks/texts.py`), from its
    beginning, over again where it ends. Without: ids drawn uniformly with `settings.seed`.

    Raises:
        ConfigError: text was asked for and the model has no tokenizer.
    """
    wanted = settings.prompts
    if wanted == "text" and model.tokenizer is None:
        raise ConfigError(f"{model.name} has no tokenizer for prompts='text'; use prompts='ids'")
    if wanted == "ids" or model.tokenizer is None:
        pick = random.Random(settings.seed)
        ids = [pick.randrange(model.vocab_size) for _ in range(count)]
        return ids, f"random token ids, seed {settings.seed}"
    source = language_reference()
    chars = count * CHARS_A_TOKEN
    while True:
        text = source * (chars // len(source)) + source[: chars % len(source)]
        ids = [int(i) for i in model.tokenizer(text, verbose=False)["input_ids"]]
        # The last few ids may change when the text goes on, so they are not used.
        if len(ids) >= count + 8:
            return ids[:count], "Python's language reference, from its beginning"
        chars *= 2
