"""Sampling on a Ray cluster with Ray Data: one replica of both models a GPU, or a CPU slot where there is none.

Workers only compute. The process that started the run commits what comes back, so the folder has one writer; a batch
that Ray runs again, because its worker died, comes back once, and is the same.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from twinrun.contrast.plan import Plan
from twinrun.contrast.problems import Question
from twinrun.contrast.sampler import Prompt, Sampler
from twinrun.contrast.samples import StepSample, Trajectory
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.store import Sampled
from twinrun.errors import MissingBackendError, SamplesError
from twinrun.models.digest import model_digest
from twinrun.models.model import Model
from twinrun.numerics.precision import dtype_name

ADDRESS = "RAY_ADDRESS"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where a worker finds a model, and what it must then hold."""

    name: str
    dtype: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What every worker is given once."""

    expert: _Source
    amateur: _Source
    settings: dict[str, Any]
    device: str


def ray_batches(plan: Plan, todo: Sequence[int]) -> Iterator[tuple[int, list[Sampled]]]:
    """Yield (number, what became of its problems) of each batch in `todo`, in the order in which they are done.

    A cluster that runs already is used if `RAY_ADDRESS` names it or `ray.init` was called; else one is started on
    this machine and ended with the run.

    Raises:
        MissingBackendError: ray is not installed.
        SamplesError: a worker loads other weights than this process did.

    Cost: both models are loaded once a replica, from the names that they have here: folders must be reachable from
    every machine of the cluster.
    """
    if not todo:
        return
    ray = _import_ray()
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(
            address=os.environ.get(ADDRESS),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    try:
        for row in _dataset(ray, plan, todo).iter_rows():
            if row["error"]:
                raise SamplesError(row["error"])
            yield int(row["number"]), [_unpacked(item) for item in json.loads(row["found"])]
    finally:
        if own:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingBackendError(
            f"--engine ray needs Ray Data ({error}); pip install twinrun[ray], or use --engine process"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _dataset(ray: Any, plan: Plan, todo: Sequence[int]) -> Any:
    """One block a batch, through a pool of replicas. Dead replicas are started again and their batches with them."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.verbose_progress = False
    work = _work(plan)
    slots = ray.cluster_resources()
    on_gpu = work.device == "cuda"
    count = max(1, int(slots.get("GPU" if on_gpu else "CPU", 1)))
    rows = [{"number": n, "prompts": json.dumps([_packed(p) for p in plan.batch(n)])} for n in todo]
    return ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Replica,
        fn_constructor_args=(work,),
        compute=ray.data.ActorPoolStrategy(size=min(count, len(rows))),
        num_cpus=0 if on_gpu else 1,
        num_gpus=1 if on_gpu else 0,
    )


class _Replica:
    """Both models on one slot."""

    def __init__(self, work: _Work) -> None:
        import torch

        from twinrun.models.load import load, quiet_transformers

        quiet_transformers()
        if work.device == "cpu":
            torch.set_num_threads(1)
        self._error = ""
        pair = []
        for source in (work.expert, work.amateur):
            model = load(source.name, dtype=source.dtype, device=work.device)
            pair.append(model)
            if model_digest(model) != source.digest:
                self._error = (
                    f"{source.name} holds other weights on a worker than here; give the same checkpoint"
                )
        self._sampler = Sampler(pair[0], pair[1], SampleSettings(**work.settings))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Sample one batch. An error that is not Ray's to mend is handed back: it would be tried again otherwise."""
        if self._error:
            return {"number": row["number"], "found": "[]", "error": self._error}
        batch = [
            Prompt(question=Question(**p["question"]), index=p["index"], ids=tuple(p["ids"]))
            for p in json.loads(row["prompts"])
        ]
        found = [_result(s) for s in self._sampler.sample(batch)]
        return {"number": row["number"], "found": json.dumps(found), "error": ""}


def _work(plan: Plan) -> _Work:
    sampler = plan.sampler
    return _Work(
        expert=_source(sampler.expert),
        amateur=_source(sampler.amateur),
        settings=sampler.settings.to_json(),
        device=sampler.expert.device.type,
    )


def _source(model: Model) -> _Source:
    name = os.path.abspath(model.name) if os.path.isdir(model.name) else model.name
    return _Source(name=name, dtype=dtype_name(model.dtype), digest=model_digest(model))


def _packed(prompt: Prompt) -> dict[str, Any]:
    q = prompt.question
    return {
        "question": {"prompt_id": q.prompt_id, "text": q.text, "where": q.where},
        "index": prompt.index,
        "ids": list(prompt.ids),
    }


def _result(found: Sampled) -> dict[str, Any]:
    return {
        "trajectory": found.trajectory.to_json(),
        "steps": [step.to_json() for step in found.steps],
        "refused": found.refused,
    }


def _unpacked(item: dict[str, Any]) -> Sampled:
    return Sampled(
        trajectory=Trajectory.of(item["trajectory"]),
        steps=tuple(StepSample.of(step) for step in item["steps"]),
        refused=item["refused"],
    )
