"""Samples from the built-in tasks: retrieval over long texts and arithmetic word problems, without a download."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from random import Random

from twinrun.errors import ConfigError, near_names
from twinrun.models.model import Model
from twinrun.prune.samples import Sample, encode_sample
from twinrun.tasks.arithmetic import Split, problem
from twinrun.tasks.retrieval import TASKS, RetrievalSettings, fit_size, retrieval

MIXTURES = {"retrieval": ("niah_single", "niah_multikey", "variable_tracking")}
SOURCES = ("arithmetic", *MIXTURES, *TASKS)
SMALLEST = 0.3
"""Of the largest haystack that fits; sizes are drawn between the two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """Which built-in task, and how much of it.

    Attributes:
        source: "arithmetic", "retrieval" (its three needle tasks in turn), or one retrieval task.
        samples: how many.
        tokens: most tokens of a retrieval sample, prompt and answer together; the haystack is between 30 % of what
            fits and all of it.
        seed: names the stream.
        split: "train" or "heldout"; no question is in both.
        digits: digits of a number to find.
        begin: text in front of each prompt.
        chat: put each prompt into the model's chat template.
    """

    source: str
    samples: int
    tokens: int = 1024
    seed: int = 0
    split: Split = "train"
    digits: int = 5
    begin: str = ""
    chat: bool = False

    def __post_init__(self) -> None:
        """Refuse what does not exist."""
        if self.source not in SOURCES:
            raise ConfigError(
                f"no built-in data called {self.source!r}.{near_names(self.source, SOURCES)} There are "
                f"{', '.join(SOURCES)}, or give a .jsonl file"
            )
        if self.samples < 1:
            raise ConfigError(f"samples must be at least 1, got {self.samples}")


class TaskSamples:
    """Samples of a built-in task; sample `i` depends on the settings and `i` only."""

    def __init__(self, model: Model, settings: TaskSettings) -> None:
        """Check that the model can read texts of that length.

        Raises:
            ConfigError: more tokens than the context, no tokenizer, or no text that short.
        """
        limit = model.max_context
        if settings.source != "arithmetic" and limit is not None and settings.tokens > limit:
            raise ConfigError(
                f"tokens={settings.tokens} exceeds the context of {model.name} ({limit}); choose fewer"
            )
        self._model, self._settings = model, settings
        self._largest = cache(self._fit)
        _ = self[0]

    @property
    def identity(self) -> dict[str, object]:
        """The settings."""
        return {"kind": "task", **asdict(self._settings)}

    def __len__(self) -> int:
        return self._settings.samples

    def __getitem__(self, index: int) -> Sample:
        s = self._settings
        if s.source == "arithmetic":
            item = problem(index, seed=s.seed, split=s.split)
            return self._encoded(
                f"arithmetic/{s.split}/{s.seed}/{index}", item.question + "\n", item.answer_text
            )
        tasks = MIXTURES.get(s.source, (s.source,))
        task, index = tasks[index % len(tasks)], index // len(tasks)
        most = self._largest(task)
        least = 10 if task == "frequent_words" else 1
        size = Random(f"twinrun/prune/{task}/{s.seed}/{s.split}/{index}").randint(
            max(least, int(SMALLEST * most)), most
        )
        told = retrieval(index, replace(self._plan(task), size=size))
        return self._encoded(f"{task}/{s.split}/{s.seed}/{index}", told.prompt, told.answer_text)

    def _encoded(self, name: str, text: str, answer: str) -> Sample:
        s = self._settings
        prompt = self._model.chat(s.begin + text) if s.chat else s.begin + text
        return encode_sample(self._model, name, prompt, answer)

    def _plan(self, task: str) -> RetrievalSettings:
        s = self._settings
        return RetrievalSettings(
            task=task,
            size=10 if task == "frequent_words" else 1,
            digits=s.digits,
            seed=s.seed,
            split=s.split,
        )

    def _fit(self, task: str) -> int:
        if self._model.tokenizer is None:
            raise ConfigError(f"{self._model.name} was loaded without a tokenizer; texts cannot be encoded")
        tokenizer = self._model.tokenizer
        begin = len(tokenizer(self._settings.begin)["input_ids"]) if self._settings.begin else 0
        spare = begin + 4  # the end token, and names that are a little longer than those of the first text
        return fit_size(
            self._plan(task), self._settings.tokens - spare, lambda text: len(tokenizer(text)["input_ids"])
        )
