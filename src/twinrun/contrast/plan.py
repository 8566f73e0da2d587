"""What a run of sampling will do, known before it starts: prompts as ids, numbered batches, and its identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from twinrun.contrast.problems import Questions
from twinrun.contrast.sampler import Prompt, Sampler
from twinrun.errors import ConfigError
from twinrun.models.digest import model_digest
from twinrun.models.model import Model
from twinrun.numerics.precision import dtype_name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Prompts of a run and how they fall into batches. Which batches were done before does not change it.

    Attributes:
        sampler: the models and settings.
        prompts: in the order of the data.
        bad: problems that were passed over, each with its reason (malformed, or beyond the context).
        duplicates: problems that were there twice and are taken once.
    """

    sampler: Sampler
    prompts: tuple[Prompt, ...]
    bad: tuple[str, ...]
    duplicates: int

    @classmethod
    def of(cls, sampler: Sampler, questions: Questions, *, skip_bad: bool = False) -> Plan:
        """Tokenise every prompt, and refuse those that do not fit before anything runs.

        Args:
            sampler: models and settings.
            questions: what `read_questions` returned.
            skip_bad: pass over prompts that do not fit the context, and count them.

        Raises:
            ConfigError: a prompt beyond the context (file and line), or none left.
        """
        prompts: list[Prompt] = []
        bad = list(questions.bad)
        for question in questions.items:
            try:
                prompts.append(sampler.prompt(question, len(prompts)))
            except ConfigError as error:
                if "exceeds the context" not in str(error):
                    raise
                if not skip_bad:
                    raise ConfigError(f"{error}, or pass --skip-bad") from error
                bad.append(str(error))
        if not prompts:
            raise ConfigError(f"no problem is left: {bad[0]}")
        return cls(sampler=sampler, prompts=tuple(prompts), bad=tuple(bad), duplicates=questions.duplicates)

    @property
    def num_batches(self) -> int:
        """Batches in all."""
        return -(-len(self.prompts) // self.sampler.settings.batch_size)

    def batch(self, number: int) -> tuple[Prompt, ...]:
        """Prompts of one batch."""
        size = self.sampler.settings.batch_size
        return self.prompts[number * size : (number + 1) * size]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued: settings, both models, every prompt."""
        digest = hashlib.sha256()
        for p in self.prompts:
            digest.update(json.dumps([p.question.prompt_id, p.question.text, p.ids]).encode() + b"\n")
        return {
            "settings": self.sampler.settings.to_json(),
            "expert": _identity(self.sampler.expert),
            "amateur": _identity(self.sampler.amateur),
            "data": {"problems": len(self.prompts), "sha256": digest.hexdigest()[:16]},
        }


def _identity(model: Model) -> dict[str, Any]:
    return {"digest": model_digest(model), "dtype": dtype_name(model.dtype), "device": model.device.type}
