"""twinrun: run a language model two ways and say what the speed cost. Nothing heavy is imported until it is used."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "load": "twinrun.models.load",
    "Model": "twinrun.models.model",
    "int8_weight_only": "twinrun.models.int8",
    "Runner": "twinrun.runners.runner",
    "Recompute": "twinrun.runners.recompute",
    "KVCache": "twinrun.runners.kvcache",
    "SinglePass": "twinrun.runners.singlepass",
    "Pruned": "twinrun.prune.pruned",
    "Schedule": "twinrun.prune.schedule",
    "Diffusion": "twinrun.diffusion.diffusion",
    "Quota": "twinrun.diffusion.commit",
    "Threshold": "twinrun.diffusion.commit",
    "Factor": "twinrun.diffusion.commit",
    "TokenSkip": "twinrun.diffusion.skip",
    "ImportanceSkip": "twinrun.diffusion.importance",
    "SuffixWindow": "twinrun.diffusion.suffix",
    "Scorer": "twinrun.prune.scorer",
    "Sampling": "twinrun.runners.sampling",
    "Scores": "twinrun.records.scores",
    "Run": "twinrun.records.run",
    "Step": "twinrun.records.run",
    "DiffusionRun": "twinrun.records.diffusion_run",
    "verify": "twinrun.verify.verify",
    "blame": "twinrun.verify.blame",
    "Blame": "twinrun.verify.culprit",
    "probes": "twinrun.verify.probes",
    "Case": "twinrun.verify.case",
    "Budget": "twinrun.verify.budget",
    "Verdict": "twinrun.verify.verdict",
    "score": "twinrun.runners.score",
    "LogitsPolicy": "twinrun.numerics.logits_policy",
    "plan_memory": "twinrun.plan.plan",
    "MemoryPlan": "twinrun.plan.record",
    "trace": "twinrun.trace.trace",
    "bench": "twinrun.bench.bench",
    "Bench": "twinrun.records.bench",
    "Trace": "twinrun.trace.record",
    "contrast": "twinrun.contrast.contrast",
}
__all__ = ["__version__", *_EXPORTS, "errors", "testing"]

if TYPE_CHECKING:
    from twinrun import errors as errors
    from twinrun import testing as testing
    from twinrun.bench.bench import bench as bench
    from twinrun.contrast.contrast import contrast as contrast
    from twinrun.diffusion.commit import Factor as Factor
    from twinrun.diffusion.commit import Quota as Quota
    from twinrun.diffusion.commit import Threshold as Threshold
    from twinrun.diffusion.diffusion import Diffusion as Diffusion
    from twinrun.diffusion.importance import ImportanceSkip as ImportanceSkip
    from twinrun.diffusion.skip import TokenSkip as TokenSkip
    from twinrun.diffusion.suffix import SuffixWindow as SuffixWindow
    from twinrun.models.int8 import int8_weight_only as int8_weight_only
    from twinrun.models.load import load as load
    from twinrun.models.model import Model as Model
    from twinrun.numerics.logits_policy import LogitsPolicy as LogitsPolicy
    from twinrun.plan.plan import plan_memory as plan_memory
    from twinrun.plan.record import MemoryPlan as MemoryPlan
    from twinrun.prune.pruned import Pruned as Pruned
    from twinrun.prune.schedule import Schedule as Schedule
    from twinrun.prune.scorer import Scorer as Scorer
    from twinrun.records.bench import Bench as Bench
    from twinrun.records.diffusion_run import DiffusionRun as DiffusionRun
    from twinrun.records.run import Run as Run
    from twinrun.records.run import Step as Step
    from twinrun.records.scores import Scores as Scores
    from twinrun.runners.kvcache import KVCache as KVCache
    from twinrun.runners.recompute import Recompute as Recompute
    from twinrun.runners.runner import Runner as Runner
    from twinrun.runners.sampling import Sampling as Sampling
    from twinrun.runners.score import score as score
    from twinrun.runners.singlepass import SinglePass as SinglePass
    from twinrun.trace.record import Trace as Trace
    from twinrun.trace.trace import trace as trace
    from twinrun.verify.blame import blame as blame
    from twinrun.verify.budget import Budget as Budget
    from twinrun.verify.case import Case as Case
    from twinrun.verify.culprit import Blame as Blame
    from twinrun.verify.probes import probes as probes
    from twinrun.verify.verdict import Verdict as Verdict
    from twinrun.verify.verify import verify as verify


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in ("errors", "testing"):
        return importlib.import_module(f"twinrun.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'twinrun' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `twinrun.verify` the function: importing the subpackage of the same name must not replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _EXPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
