"""Samples from a JSONL file: Dolly's fields (instruction, context, response), or prompt and answer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.prune.samples import Sample, encode_sample

DOLLY = ("instruction", "response")
PLAIN = ("prompt", "answer")


class JsonLines:
    """A file, one sample a line; read on demand, checked whole when it is opened.

    Args:
        model: its tokenizer and context.
        path: the file.
        limit: first samples to take; None is all.
        chat: put each prompt into the model's chat template.
        begin: text in front of each prompt (a start token that the tokenizer does not add, for example).
        too_long: "refuse" or "skip" samples that do not fit the context.

    Raises:
        ConfigError: a file that cannot be read or has no samples; a line that is no JSON object, lacks a field, or has
            an empty answer, named as `file line n`.

    Cost: reads and encodes the file once; keeps the place of each line.
    """

    def __init__(
        self,
        model: Model,
        path: str | Path,
        *,
        limit: int | None = None,
        chat: bool = False,
        begin: str = "",
        too_long: Literal["refuse", "skip"] = "refuse",
    ) -> None:
        """Check every line and remember where it begins."""
        self._model, self._path = model, Path(path)
        self._chat, self._begin, self._too_long = chat, begin, too_long
        self._lines: list[tuple[int, int]] = []
        """(line number, byte offset) of each sample."""
        self.skipped = 0
        digest = hashlib.sha256()
        try:
            with self._path.open("rb") as file:
                at = 0
                for number, line in enumerate(file, 1):
                    digest.update(line)
                    if line.strip() and (limit is None or len(self._lines) < limit):
                        self._take(number, at, line)
                    at += len(line)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}; give a JSONL file") from error
        if not self._lines:
            raise ConfigError(
                f"{path} holds no sample ({self.skipped} were too long); give at least one line"
            )
        self.identity: dict[str, object] = {
            "kind": "jsonl",
            "file": self._path.name,
            "sha256": digest.hexdigest(),
            "samples": len(self._lines),
            "chat": chat,
            "begin": begin,
        }

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        number, at = self._lines[index]
        with self._path.open("rb") as file:
            file.seek(at)
            return self._sample(number, file.readline())

    def _take(self, number: int, at: int, line: bytes) -> None:
        try:
            self._sample(number, line)
        except ConfigError as error:
            if self._too_long == "skip" and "more than the context" in str(error):
                self.skipped += 1
                return
            raise
        self._lines.append((number, at))

    def _sample(self, number: int, line: bytes) -> Sample:
        where = f"{self._path.name} line {number}"
        prompt, answer = fields_of(where, line)
        text = self._begin + prompt
        return encode_sample(self._model, where, self._model.chat(text) if self._chat else text, answer)


def fields_of(where: str, line: bytes) -> tuple[str, str]:
    r"""Prompt and answer of one line.

    A Dolly row is told as its context, an empty line, its instruction: the question stands at the end, where the model
    has read what it is about.

    Raises:
        ConfigError: no JSON object, no such fields, or a field that is no text; says where.

    Example:
        >>> fields_of("a.jsonl line 1", b'{"instruction": "Who?", "context": "Ana.", "response": "Ana"}')
        ('Ana.\n\nWho?\n', 'Ana')
    """
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON ({error}); mend or remove the line") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is {type(row).__name__}, not a JSON object; mend or remove the line")
    names = DOLLY if "instruction" in row else PLAIN
    for name in names:
        if not isinstance(row.get(name), str):
            raise ConfigError(
                f"{where} has no text in {name!r}; a sample has prompt and answer, or instruction, context and response"
            )
    if names is PLAIN:
        return row["prompt"], row["answer"]
    context = row.get("context") or ""
    return (f"{context}\n\n" if context else "") + row["instruction"] + "\n", row["response"]
