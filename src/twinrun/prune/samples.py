"""One training sample of prompt pruning: the ids of a prompt and of its answer, with a name and a content hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from twinrun.errors import ConfigError
from twinrun.models.model import Model


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and the answer that follows it, as token ids.

    Attributes:
        name: unique in its data set: `file.jsonl:17`, `niah_single/train/0/5`.
        prompt: at least one id; these tokens are scored and pruned.
        answer: at least one id; the loss is taken here and nowhere else.
    """

    name: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse a sample without a prompt or an answer."""
        for part, ids in (("prompt", self.prompt), ("answer", self.answer)):
            if not ids:
                raise ConfigError(
                    f"sample {self.name} has an empty {part}; give at least one token or drop the sample"
                )

    def __len__(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def hash(self) -> str:
        """32 hexadecimal digits of SHA-256 over both lists of ids: another text, split or tokenizer changes it."""
        text = f"{' '.join(map(str, self.prompt))}|{' '.join(map(str, self.answer))}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class Samples(Protocol):
    """A data set: random access, the same sample for the same index at every call."""

    @property
    def identity(self) -> dict[str, object]:
        """What names the data set, as JSON types; part of every request that is resumed."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


def each(samples: Samples) -> Iterator[Sample]:
    """Yield every sample in order."""
    return (samples[i] for i in range(len(samples)))


class Listed:
    """Samples that are in memory already."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        """Keep them.

        Raises:
            ConfigError: two with one name.
        """
        self._samples = list(samples)
        names = [s.name for s in self._samples]
        double = next((n for n in names if names.count(n) > 1), None)
        if double is not None:
            raise ConfigError(f"two samples are called {double!r}; names must be unique")

    @property
    def identity(self) -> dict[str, object]:
        """Hash over all samples."""
        digest = hashlib.sha256(" ".join(s.hash for s in self._samples).encode()).hexdigest()
        return {"kind": "list", "samples": len(self._samples), "sha256": digest}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


def encode_sample(
    model: Model, name: str, prompt: str | list[int], answer: str, *, end: bool = True
) -> Sample:
    """Encode a prompt (text with the tokenizer's own special tokens, or ids) and its answer (without, plus end).

    Prompt and answer are encoded apart, as they are when the answer is generated.

    Raises:
        ConfigError: an empty prompt or answer, no tokenizer, or more tokens than the context has; names the sample.
    """
    if model.tokenizer is None:
        raise ConfigError(f"{model.name} was loaded without a tokenizer; texts cannot be encoded")
    if not answer.strip():
        raise ConfigError(f"{name} has an empty answer; the loss needs at least one answer token")
    try:
        given = model.encode_within(prompt, None)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    ids = list(model.tokenizer(answer, add_special_tokens=False)["input_ids"])
    last = getattr(model.tokenizer, "eos_token_id", None)
    wanted = [*ids, last] if end and isinstance(last, int) else ids
    sample = Sample(name, tuple(given), tuple(wanted))
    limit = model.max_context
    if limit is not None and len(sample) > limit:
        raise ConfigError(
            f"{name} has {len(given)} prompt and {len(wanted)} answer tokens, more than the context of {model.name} "
            f"({limit}); shorten it, or leave long samples out (--too-long skip)"
        )
    return sample
