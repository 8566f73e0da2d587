"""One planted fault: what it is, where the bug was seen in public, and how to break a runner the same way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.models.model import Model
from twinrun.runners.kvcache import KVCache
from twinrun.runners.recompute import Recompute
from twinrun.runners.registry import build_runner, is_pruned
from twinrun.runners.runner import ModelScorer
from twinrun.runners.singlepass import SinglePass

Plant = Callable[[Any], AbstractContextManager[None]]
CACHED = ("kv-cache:dynamic", "kv-cache:static")
PADDED = ("single-pass", *CACHED)
"""Names of the runners that keep a cache, and of those that pad a batch."""


SiteKind = Literal[
    "input ids", "positions", "mask", "cache", "module", "scores",
    "skip decision", "head input", "keys", "mask id", "prompt", "commit set",
    "loss terms", "targets", "samples",
]  # fmt: skip


Way = Literal["causal", "diffusion", "training", "sampling", "tuning"]


@dataclass(frozen=True, slots=True)
class Site:
    """Where a fault sits, so that whatever claims to find it can be judged.

    Attributes:
        kind: "input ids" (what is fed), "positions" (the position ids handed to the model), "mask" (what
            attention gets as mask allows other keys than it should), "cache" (what is stored or read is wrong),
            "module" (a module computes something else), "scores" (every module is right, the rows handed out are
            not). In diffusion decoding also "skip decision" (what is compared, or what is made of it), "head input"
            (states that are not final), "keys" (what is stored), "mask id" and "prompt" (what is written to the
            canvas) and "commit set" (the rule). In a training of scorers "loss terms" and "targets" (those of
            other samples). In sampling "samples" (which problems are there, and how often).
        modules: for "module" the modules that compute it, for "cache" the attention modules that store it, as paths
            in `model.core.named_modules()`. Any of them is a right answer, or any module inside it; "" means the
            whole model and not what is inside: the place behind the head. Of a fault in every layer this is
            the place that runs first.
    """

    kind: SiteKind
    modules: Callable[[Model], Sequence[str]] | None = None

    def __post_init__(self) -> None:
        """Refuse a module or a cache without its place."""
        if (self.modules is None) == (self.kind in ("module", "cache")):
            raise ConfigError(f"a site of kind {self.kind!r} with modules={self.modules}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A bug that can be planted and taken out again.

    Attributes:
        name: how the registry calls it.
        summary: what goes wrong, in one sentence.
        thread: public reports of this kind of bug; empty where we know of none.
        kind: "model" (any runner shows it) or "runner" (it lives in one way of running).
        where: what a good explanation should point at, in words.
        site: the same place, for a program.
        needs: what a prompt or a model must have for the fault to show.
        runners: names of the runners that show it, the best one first.
        way: "causal" (scored from left to right, judged by verdict and blame), "diffusion" (decoded on a canvas,
            judged by the trace), "training" (scorers of prompt pruning, judged by the training check), "sampling"
            (LightReasoner's, judged beside a clean run) or "tuning" (on its steps, judged by the training check).
        reason_against: why the fault does not exist in a model, or None.
        plant: breaks a runner inside a block.
    """

    name: str
    summary: str
    thread: tuple[str, ...]
    kind: Literal["model", "runner"]
    where: str
    site: Site
    needs: tuple[str, ...] = ()
    runners: tuple[str, ...] = ("single-pass", "kv-cache:dynamic", "kv-cache:static", "recompute")
    way: Way = "causal"
    reason_against: Callable[[Model], str | None]
    plant: Plant

    def applies(self, model: Model) -> str | None:
        """Return None if this model can have the fault, else the reason why not."""
        return self.reason_against(model)

    @contextmanager
    def planted(self, runner: ModelScorer) -> Iterator[None]:
        """Break `runner` inside the block; every bit and hook is as before afterwards, also after an error.

        A fault in the model is seen by every runner that shares it: plant on a `broken_copy`.

        Raises:
            ConfigError: the fault does not show in this kind of runner.
            UnsupportedModelError: the fault does not exist in this model.
        """
        if runner.name not in self.runners:
            raise ConfigError(
                f"fault {self.name!r} does not show in {runner.name}; plant it in {' or '.join(self.runners)}"
            )
        reason = self.applies(runner.model)
        if reason is not None:
            raise UnsupportedModelError(
                f"fault {self.name!r} does not exist in {runner.model.name}: {reason}"
            )
        _ = runner.model.layout  # found on the model as it is, not on the broken one
        with self.plant(runner):
            yield


def broken_copy(model: Model) -> Model:
    """Return a deep copy of a small model: a fault planted in it must not reach the reference.

    Cost: the memory of the whole model once more.
    """
    return Model(copy.deepcopy(model.core), model.tokenizer, name=model.name, choices=dict(model.choices))


def candidate_for(fault: Fault, model: Model, runner: str | None = None) -> Any:
    """Build a runner on a copy of `model` for `fault`: the one that shows it best, or the one named."""
    name = runner or fault.runners[0]
    if name not in fault.runners:
        raise ConfigError(
            f"fault {fault.name!r} does not show in {name}; choose from {', '.join(fault.runners)}"
        )
    own = broken_copy(model)
    if fault.way != "causal":
        from twinrun.faults.subjects import build_subject

        return build_subject(fault.way, name, own)
    if is_pruned(name):
        return build_runner(name, own)
    if name == "recompute":
        return Recompute(own)
    return SinglePass(own) if name == "single-pass" else KVCache(own, cache=name.partition(":")[2])


def trusted_side(name: str, model: Model) -> Any:
    """What a runner called `name` is held against: plain recomputation, or, for one that prunes, the same runner."""
    return build_runner(name, model) if is_pruned(name) else Recompute(model)


def always(_model: Model) -> str | None:
    """Say that every model can have the fault."""
    return None
