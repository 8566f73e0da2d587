"""LongBench v1: 21 tasks over long texts in English, Chinese and code, from its own data files.

Source: Bai et al. 2023, arXiv:2308.14508; prompts, lengths and rules of its repository (THUDM/LongBench, 2e00731, MIT
licence). The data are not part of this package: give the folder with one `TASK.jsonl` a task, or its `data.zip`.

Example:
    >>> LONGBENCH["trec"].max_new_tokens, LONGBENCH["trec"].first_line, LONGBENCH["trec"].chat
    (64, True, False)
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from twinrun.errors import ConfigError, MissingBackendError, near_names
from twinrun.tasks import longbench_metrics as metrics
from twinrun.tasks.longbench_metrics import Metric

HUB = "THUDM/LongBench"
"""Where `data.zip` lies on the model hub."""
FIELDS = ("input", "context", "answers", "all_classes")


@dataclass(frozen=True, slots=True, kw_only=True)
class LongTask:
    """How one of the tasks is asked and scored.

    Attributes:
        name: of the task and its file.
        group: the paper's category.
        language: "en", "zh" or "code".
        metric: what an answer is worth.
        max_new_tokens: tokens an answer may have.
        chat: whether a chat model gets its template. The few-shot and code tasks are continued as they are.
        first_line: whether only the first line of an answer counts.
        ends_at_newline: whether an answer ends at its first line break (samsum), and has one token at least.
    """

    name: str
    group: str
    language: str
    metric: Metric
    max_new_tokens: int
    chat: bool = True
    first_line: bool = False
    ends_at_newline: bool = False

    @property
    def template(self) -> str:
        """The prompt with `{context}` and, in most tasks, `{input}`."""
        return _prompts()[self.name]


def _tasks() -> Iterator[LongTask]:
    def some(
        group: str, language: str, metric: Metric, lengths: dict[str, int], **rules: bool
    ) -> Iterator[LongTask]:
        for name, most in lengths.items():
            yield LongTask(
                name=name, group=group, language=language, metric=metric, max_new_tokens=most, **rules
            )

    m = metrics
    shot: dict[str, bool] = {"chat": False, "first_line": True}
    yield from some(
        "single-document QA", "en", m.qa_f1, {"narrativeqa": 128, "qasper": 128, "multifieldqa_en": 64}
    )
    yield from some("single-document QA", "zh", m.qa_f1_zh, {"multifieldqa_zh": 64})
    yield from some("multi-document QA", "en", m.qa_f1, {"hotpotqa": 32, "2wikimqa": 32, "musique": 32})
    yield from some("multi-document QA", "zh", m.rouge_zh, {"dureader": 128})
    yield from some("summarization", "en", m.rouge, {"gov_report": 512, "qmsum": 512, "multi_news": 512})
    yield from some("summarization", "zh", m.rouge_zh, {"vcsum": 512})
    yield from some("few-shot", "en", m.classification, {"trec": 64}, **shot)
    yield from some("few-shot", "en", m.qa_f1, {"triviaqa": 32}, **shot)
    yield from some("few-shot", "en", m.rouge, {"samsum": 128}, **shot, ends_at_newline=True)
    yield from some("few-shot", "zh", m.classification, {"lsht": 64}, **shot)
    yield from some("synthetic", "en", m.count, {"passage_count": 32})
    yield from some("synthetic", "en", m.retrieval, {"passage_retrieval_en": 32})
    yield from some("synthetic", "zh", m.retrieval, {"passage_retrieval_zh": 32})
    yield from some("code", "code", m.code_similarity, {"lcc": 64, "repobench-p": 64}, chat=False)


LONGBENCH: dict[str, LongTask] = {task.name: task for task in _tasks()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LongItem:
    """One question of a task with what it is asked about."""

    task: LongTask
    index: int
    context: str
    input: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The whole prompt, not truncated."""
        return _filled(self.task.template, self.context, self.input)

    @property
    def tail(self) -> str:
        """What of the prompt stands behind the context: the question."""
        return _filled(self.task.template.split("{context}", 1)[1], self.context, self.input)

    def score(self, prediction: str) -> float:
        """What an answer is worth against the best of the references, 0 to 1."""
        said = prediction.lstrip("\n").split("\n")[0] if self.task.first_line else prediction
        return max((self.task.metric(said, ref, self.all_classes) for ref in self.answers), default=0.0)


def longbench_task(name: str) -> LongTask:
    """Return a task by its name.

    Raises:
        ConfigError: there is none; names near ones.
    """
    if name not in LONGBENCH:
        raise ConfigError(
            f"no LongBench task named {name!r}.{near_names(name, LONGBENCH)} There are: {', '.join(LONGBENCH)}"
        )
    return LONGBENCH[name]


def longbench_items(task: str, data: str | Path, limit: int | None = None) -> list[LongItem]:
    """Read the items of a task.

    Args:
        task: one of `LONGBENCH`.
        data: the folder with `TASK.jsonl` (or `data/TASK.jsonl` in it), the official `data.zip`, one `.jsonl` file of
            that task, or "hub" to fetch `data.zip` from the model hub.
        limit: the first so many only.

    Raises:
        ConfigError: no such task or file, or a line that is not as the official files are.
        MissingBackendError: "hub", and it cannot be reached.
    """
    kind = longbench_task(task)
    found: list[LongItem] = []
    given = Path(data).name
    source = given if given.endswith(".jsonl") else f"{task}.jsonl"
    for number, line in enumerate(_lines(task, data), 1):
        if limit is not None and len(found) >= limit:
            break
        if line.strip():
            found.append(_item(kind, line, f"line {number} of {source}", len(found)))
    if not found:
        raise ConfigError(f"{data} holds no item of {task}; give the folder with the official files")
    return found


def middle_cut(ids: Sequence[int], limit: int, decode: Callable[[list[int]], str]) -> str | None:
    """Text of the first and last halves of a prompt that is longer than `limit` tokens; None if it is not.

    Both halves have `limit // 2` tokens and are decoded by themselves, so the text may be some tokens longer or shorter
    than `limit` when it is encoded again, as in the official code.

    Raises:
        ConfigError: a limit below two tokens.

    Example:
        >>> middle_cut([1, 2, 3, 4, 5, 6], 4, lambda ids: "".join(map(str, ids)))
        '1256'
    """
    if limit < 2:
        raise ConfigError(f"a prompt can be cut to 2 tokens at least, got {limit}; give a longer limit")
    half = limit // 2
    return None if len(ids) <= limit else decode(list(ids[:half])) + decode(list(ids[-half:]))


def _filled(template: str, context: str, question: str) -> str:
    """Put both texts in, at once, so that a brace or a name in one of them stays what it is."""
    parts = template.split("{context}")
    return context.join(part.replace("{input}", question) for part in parts)


@cache
def _prompts() -> dict[str, str]:
    found: dict[str, str] = json.loads(
        files("twinrun.tasks").joinpath("longbench_prompts.json").read_text("utf-8")
    )
    return found


def _lines(task: str, data: str | Path) -> Iterator[str]:
    place = _from_hub() if str(data) == "hub" else Path(data)
    if place.is_dir():
        places = [place / f"{task}.jsonl", place / "data" / f"{task}.jsonl"]
        one = next((p for p in places if p.is_file()), None)
        if one is None:
            raise ConfigError(f"{place} has no {task}.jsonl; give the folder with the official files")
        return _text_lines(one)
    if place.suffix == ".jsonl" and place.is_file():
        return _text_lines(place)
    if place.is_file() and zipfile.is_zipfile(place):
        return _zip_lines(place, task)
    raise ConfigError(f"{place} is no folder, zip or .jsonl file; give LongBench's data folder or data.zip")


def _text_lines(place: Path) -> Iterator[str]:
    try:
        with open(place, encoding="utf-8") as lines:
            yield from lines
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {place}: {error}") from error


def _zip_lines(place: Path, task: str) -> Iterator[str]:
    with zipfile.ZipFile(place) as packed:
        name = next((n for n in packed.namelist() if n.split("/")[-1] == f"{task}.jsonl"), None)
        if name is None:
            raise ConfigError(f"{place} has no {task}.jsonl; it is not LongBench's data.zip")
        with packed.open(name) as lines:
            for line in lines:
                yield line.decode("utf-8")


def _from_hub() -> Path:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(HUB, "data.zip", repo_type="dataset"))
    except Exception as error:  # offline mode, no network, a missing file: each is the same to the user
        raise MissingBackendError(
            f"LongBench's data.zip cannot be fetched from the hub ({HUB}): {' '.join(str(error).split())[:120]}; "
            "give a folder that has its files"
        ) from error


def _item(task: LongTask, line: str, where: str, index: int) -> LongItem:
    try:
        row: dict[str, Any] = json.loads(line)
        given = {name: row[name] for name in FIELDS}
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON ({error}); mend or remove the line") from error
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{where} lacks {error}; LongBench's lines have {', '.join(FIELDS)}") from error
    answers = given["answers"]
    if not isinstance(answers, list) or not answers:
        raise ConfigError(f"{where} has no list of answers; LongBench's lines have one or more")
    return LongItem(
        task=task,
        index=index,
        context=str(given["context"]),
        input=str(given["input"]),
        answers=tuple(map(str, answers)),
        all_classes=tuple(map(str, given["all_classes"] or ())),
    )
