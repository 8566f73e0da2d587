"""Sample a set of problems into a folder, with the engine asked for; a run that was killed goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from twinrun.contrast.plan import Plan
from twinrun.contrast.problems import Questions
from twinrun.contrast.sampler import Sampler
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.store import Sampled, SampleStore
from twinrun.errors import ConfigError
from twinrun.models.model import Model

Engine = Literal["process", "ray"]
ENGINES: tuple[Engine, ...] = ("process", "ray")
Progress = Callable[[int, int], object]
"""Called with (problems done, problems in all) after every batch that was committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReport:
    """What a folder holds when a run has ended.

    Attributes:
        problems: sampled, refused ones included.
        resumed: of these, found done when the run started.
        steps: answer tokens of the answers kept, all of them candidates.
        kept: steps that were kept.
        unfinished: answers that `max_new_tokens` cut off.
        empty: answers without text; they give no steps.
        refused: (id, reason) of problems whose logits were not numbers.
        bad: input that was passed over, with its reasons.
        duplicates: problems that stood there twice.
        dropped_mass: largest mass that lay on ids that only one model has.
        seconds: of this run.
    """

    folder: str
    problems: int
    resumed: int
    steps: int
    kept: int
    unfinished: int
    empty: int
    refused: tuple[tuple[str, str], ...]
    bad: tuple[str, ...]
    duplicates: int
    dropped_mass: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"schema": "twinrun.sample/1", **asdict(self)}


def sample(
    expert: Model,
    amateur: Model,
    questions: Questions,
    out: str | Path,
    *,
    settings: SampleSettings | None = None,
    engine: Engine = "process",
    skip_bad: bool = False,
    on_progress: Progress | None = None,
) -> SampleReport:
    """Sample every problem into `out`: the expert's answer, and the steps at which it has something to teach.

    Source: LightReasoner (arXiv:2510.07962), sampling and step selection.

    Args:
        expert: generates; its steps are chosen.
        amateur: the weaker model of the same family.
        questions: what `read_questions` returned.
        out: folder; one that holds a part of the same run is continued.
        settings: None is the paper's.
        engine: "process" samples here; "ray" on every slot of a Ray cluster (`twinrun[ray]`).
        skip_bad: pass over prompts beyond the context, and count them.
        on_progress: called after every committed batch.

    Returns:
        Counts of the whole folder. Beside its parts it then holds `steps` and `trajectories` as JSONL and Parquet.

    Raises:
        ConfigError: tokenizers that disagree, prompts beyond the context, a full disk.
        SamplesError: the folder holds samples of other settings, models or data, or another run is writing to it.
        MissingBackendError: engine "ray" without ray.

    Differs from the public code: the amateur runs once an answer and not once a prefix, on ids that were never
    decoded; distributions are the models' own, not those that decoding settings made of them; the first answer
    token is a candidate.

    Cost: a free run of the expert and one forward of each model a batch.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from twinrun.contrast.problems import read_questions
        >>> from twinrun.models.load import load
        >>> pair = load("builtin:expert"), load("builtin:amateur")
        >>> data = read_questions("builtin:arithmetic", limit=2)
        >>> with TemporaryDirectory() as folder:
        ...     sample(*pair, data, folder, settings=SampleSettings(max_new_tokens=8)).problems
        2
    """
    if engine not in ENGINES:
        raise ConfigError(f"no engine called {engine!r}; use one of {', '.join(ENGINES)}")
    began = time.perf_counter()
    plan = Plan.of(Sampler(expert, amateur, settings or SampleSettings()), questions, skip_bad=skip_bad)
    store = SampleStore.create(out, plan.identity, parts=plan.num_batches)
    with store.writing():
        before = store.done()
        todo = [n for n in range(plan.num_batches) if n not in before]
        done = sum(len(plan.batch(n)) for n in before)
        resumed = done
        for number, found in _batches(engine, plan, todo):
            store.append(number, found)
            done += len(found)
            if on_progress is not None:
                on_progress(done, len(plan.prompts))
        store.export_jsonl()
        store.export_parquet()
    return _report(store, plan, resumed, time.perf_counter() - began)


def _batches(engine: Engine, plan: Plan, todo: list[int]) -> Iterator[tuple[int, list[Sampled]]]:
    if engine == "ray":
        from twinrun.contrast.ray_engine import ray_batches

        return ray_batches(plan, todo)
    return ((number, plan.sampler.sample(plan.batch(number))) for number in todo)


def _report(store: SampleStore, plan: Plan, resumed: int, seconds: float) -> SampleReport:
    steps = kept = unfinished = empty = problems = 0
    refused: list[tuple[str, str]] = []
    dropped = 0.0
    for found in store.sampled():
        problems += 1
        row = found.trajectory
        if found.refused is not None:
            refused.append((row.prompt_id, found.refused))
            continue
        steps += len(row.answer_ids)
        kept += len(found.steps)
        unfinished += not row.finished
        empty += plan.sampler.is_empty(row)
        dropped = max(dropped, row.dropped_mass)
    return SampleReport(
        folder=str(store.folder),
        problems=problems,
        resumed=resumed,
        steps=steps,
        kept=kept,
        unfinished=unfinished,
        empty=empty,
        refused=tuple(refused),
        bad=plan.bad,
        duplicates=plan.duplicates,
        dropped_mass=dropped,
        seconds=seconds,
    )
