"""Merge an adapter into its base: a checkpoint of its own, written only if it is proved to be base and adapter."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinrun.contrast.adapt import base_name, load_adapted, open_adapted
from twinrun.contrast.identity import identity
from twinrun.errors import ConfigError, UnsupportedModelError, VerificationFailed
from twinrun.models.load import load
from twinrun.models.model import Model, Prompt
from twinrun.numerics.precision import dtype_name, parse_dtype
from twinrun.records.write import write_json
from twinrun.runners.singlepass import SinglePass
from twinrun.verify.budget import Budget
from twinrun.verify.probes import probes
from twinrun.verify.verify import verify

RECORD = "merge.json"
ROOM = 4
"""Units in the last place that a merged weight may be off: one for the product, one for the sum, rounded each."""


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: str = "float32",
    budget: Budget | Mapping[str, float] | None = None,
    prompts: Sequence[Prompt] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Write base + adapter as one checkpoint, after `twinrun.verify` has found it to be the same model.

    Two proofs. The weights: every adapted one is `W + scale * B A`, taken in float64 by code of our own, within
    `ROOM` units in the last place; every other one is the base's bit for bit. The function: `verify` judges the
    merged model against base + adapter, both in the precision of the checkpoint. Its precision sweep is not heard,
    because a merged weight is rounded once more than its parts, and one precision up that shows; the proof of the
    weights takes its place and is sharper.

    Args:
        adapter: folder of `twinrun contrast train`, or a plain LoRA folder of peft.
        out: folder for the checkpoint; must not exist.
        base: model that the adapter belongs to; None takes the one that its folder names.
        dtype: of the checkpoint. A half type rounds small updates away; the verdict says what that costs.
        budget: what a half type may cost where it is more than rounding, for example `{"kl": 0.01}`.
        prompts: texts or token ids to judge on; None is `twinrun.probes`.
        on_progress: see `twinrun.verify`.

    Returns:
        The record, also in `merge.json`: verdict, and how far the weights are off.

    Raises:
        VerificationFailed: the merged model is not base + adapter; nothing is written.
        UnsupportedModelError: an adapter that is no plain LoRA (DoRA, for example).
        ConfigError: an adapter of another base, or `out` exists.
        CheckpointError: no adapter there.

    Cost: three passes over the probes; three times the weights.
    """
    place, wanted = Path(out), parse_dtype(dtype)
    if place.exists():
        raise ConfigError(f"{place} exists; give another --out, or remove it")
    name = base or base_name(adapter)
    adapted = load_adapted(adapter, base=name, dtype=dtype)
    merged, weights = merged_model(name, adapter, wanted)
    if weights["ulp_max"] > ROOM:
        raise VerificationFailed(
            f"a merged weight is {weights['ulp_max']:.3g} units in the last place off its sum (at most {ROOM}); "
            "nothing was written"
        )
    cases = list(prompts) if prompts is not None else probes(adapted, max_tokens=256)
    sides = SinglePass(adapted), SinglePass(merged)
    verdict = verify(*sides, cases, budget=budget, sweep=False, on_progress=on_progress)
    if not verdict.passed:
        raise VerificationFailed(
            f"the merged model is not {name} with its adapter: {verdict.reason}; nothing was written"
        )
    record = {
        "schema": "twinrun.merge/1",
        "base": name,
        "adapter": str(adapter),
        "dtype": dtype_name(wanted),
        "merged": identity(merged),
        "weights": weights,
        "verdict": verdict.to_json(),
    }
    _write(merged, place, record)
    return record


def merged_model(name: str, adapter: str | Path, dtype: torch.dtype) -> tuple[Model, dict[str, Any]]:
    """Base with the adapter's product added to its weights, without a trace of the adapter, in `dtype`.

    Returns:
        The model, and `ulp_max` (largest error of an adapted weight, in units of the last place), `adapted` and
        `unchanged` (tensors of each kind).

    Raises:
        UnsupportedModelError: an adapter that is no plain LoRA.
    """
    base = load(name, dtype="float32")
    before = {key: tensor.clone() for key, tensor in base.core.state_dict().items()}
    module = open_adapted(base, adapter, check=False).model
    sums = _merge_layers(module)
    module = module.to(dtype)
    module.config.dtype = dtype
    worst, unchanged = 0.0, 0
    after = module.state_dict()
    for key, old in before.items():
        if key in sums:
            worst = max(worst, _ulps(after[key], sums[key]))
        elif not torch.equal(after[key], old.to(dtype)):
            raise VerificationFailed(f"merging changed {key}, which has no adapter; nothing was written")
        else:
            unchanged += 1
    facts = {"ulp_max": worst, "adapted": len(sums), "unchanged": unchanged}
    return Model(module.eval(), base.tokenizer, name=f"{base.name} merged"), facts


def _merge_layers(module: torch.nn.Module) -> dict[str, Tensor]:
    """Merge every adapted layer with peft; returns the sums in float64, from its parts, by weight name."""
    from peft.tuners.lora import LoraLayer

    sums = {}
    for path, part in list(module.named_modules()):
        if not isinstance(part, LoraLayer):
            continue
        layer: Any = part
        (which,) = layer.active_adapters
        if which not in layer.lora_A or getattr(layer, "use_dora", {}).get(which):
            raise UnsupportedModelError(
                f"{path} carries no plain LoRA, and nothing else is merged here; use peft"
            )
        down, up = layer.lora_A[which].weight.detach().double(), layer.lora_B[which].weight.detach().double()
        product = layer.scaling[which] * (up @ down)
        product = product.T if getattr(layer, "fan_in_fan_out", False) else product
        sums[f"{path}.weight"] = layer.get_base_layer().weight.detach().double() + product
        layer.merge(safe_merge=True)
        parent, _, leaf = path.rpartition(".")
        setattr(module.get_submodule(parent), leaf, layer.get_base_layer())
    return sums


def _ulps(found: Tensor, exact: Tensor) -> float:
    """Largest error in units in the last place of a number as large as the row's largest."""
    scale = exact.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(found.dtype).tiny)
    return float(((found.double() - exact).abs() / (scale * torch.finfo(found.dtype).eps)).max())


def _write(model: Model, place: Path, record: Mapping[str, Any]) -> None:
    """Write beside the place and move there, so that a folder that exists is whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as beside:
        part = Path(beside) / "checkpoint"
        saved: Any = model.model
        saved.config._name_or_path = ""
        saved.save_pretrained(str(part))
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(str(part))
        write_json(part / RECORD, dict(record))
        try:
            os.rename(part, place)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise ConfigError(
                f"cannot write {place}: {error.strerror or error}; give another --out"
            ) from error
