"""Saliency: how much the answer hangs on each prompt token's hidden state at the input of a layer.

Source: arXiv:2504.04514, Eq. 3: `pi_hat = (dT/dx) . x`, summed over the width; x is the input of the pruned layer,
T "the output of the entire network". The paper does not say which number of the output T is; here it is the mean
negative log-likelihood of the answer tokens, or their mean logit. `docs/prune-training.md` has the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from twinrun.errors import ConfigError, NonFiniteError, UnsupportedModelError
from twinrun.models.model import Model
from twinrun.numerics.precision import dtype_name
from twinrun.prune.rows import Rows
from twinrun.prune.samples import Sample
from twinrun.prune.scorer import check_layers
from twinrun.prune.taps import frozen, tapped

Output = Literal["loss", "logit"]
OUTPUTS: tuple[Output, ...] = ("loss", "logit")


@dataclass(frozen=True, slots=True)
class Saliency:
    """Gradient times hidden state of one sample.

    Attributes:
        sample: whose.
        layers: at whose input.
        values: `[layers, prompt tokens]` float32 on the CPU, signed: the sum over the width of (dT/dx) * x.
        output: the number T of this sample: nats an answer token, or a logit.
    """

    sample: Sample
    layers: tuple[int, ...]
    values: Tensor
    output: float


def saliency(
    model: Model, samples: Sequence[Sample], layers: Sequence[int], *, output: Output = "loss"
) -> list[Saliency]:
    """Compute the saliency of every prompt token of some samples, in one batch.

    Args:
        model: float32, bfloat16 or float64. Its weights get no gradients and are not changed.
        samples: the rows; a row in a batch gives what it gives alone, up to rounding.
        layers: pruned layers, 1 to the last.
        output: what T is: "loss" (mean negative log-likelihood of the answer tokens) or "logit" (their mean logit).

    Returns:
        One for each sample, in order. The product and its sum run in float32 whatever the model's precision
        (float64 models: float64, stored as float32).

    Raises:
        ConfigError: a layer that cannot be pruned, an unknown output, or a float16 model (its gradients underflow).
        UnsupportedModelError: no causal model, or one whose weights let no gradient through (int8, packed).
        NonFiniteError: a gradient that is NaN or infinite; names the sample and layer.

    Cost: one forward, and one backward from the answer to the first of `layers`.

    Example:
        >>> m = load("builtin:amateur", dtype="float32")
        >>> found = saliency(m, [Sample("a", (5, 6, 7), (8,))], [2])
        >>> found[0].values.shape
        torch.Size([1, 3])
    """
    found = check_layers(layers, len(model.layout.layers))
    if output not in OUTPUTS:
        raise ConfigError(f"unknown output {output!r}; T is one of {', '.join(OUTPUTS)}")
    refuse_without_gradients(model)
    rows = Rows.of(samples, model)
    inputs: dict[int, Tensor] = {}

    def tap(layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]] | None:
        if layer != found[0]:
            inputs[layer] = hidden
            return None
        inputs[layer] = hidden.detach().requires_grad_(
            True
        )  # nothing below the first layer is differentiated
        return inputs[layer], kwargs

    try:
        with torch.enable_grad(), frozen(model), tapped(model, found, tap):
            logits = rows.logits(model)
            each = rows.losses(logits) if output == "loss" else rows.answer_logits(logits)
            gradients = torch.autograd.grad(each.sum(), [inputs[i] for i in found])
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"{model.name} has no gradients ({str(error).splitlines()[0][:120]}); load the unquantised weights"
        ) from error
    products = [_product(g, inputs[i].detach()) for g, i in zip(gradients, found, strict=True)]
    return _by_row(rows, found, torch.stack(products, 1).cpu(), each.detach().cpu())


def refuse_without_gradients(model: Model) -> None:
    """Refuse a model that cannot be differentiated to the input of a layer.

    Raises:
        UnsupportedModelError: a masked-diffusion model, or weights of one byte or less a value.
        ConfigError: float16.
    """
    if not model.is_causal:
        raise UnsupportedModelError(f"{model.name} is no causal model; prompt pruning needs one")
    for name, part in model.core.named_modules():
        own = [*part._parameters.values(), *part._buffers.values()]
        small = any(t is not None and t.dtype.itemsize == 1 and t.dtype != torch.bool for t in own)
        if small or hasattr(part, "_packed_params"):
            raise UnsupportedModelError(
                f"{name or model.name} ({type(part).__name__}) holds quantised weights, which let no gradient through; "
                "load the unquantised weights"
            )
    if model.dtype == torch.float16:
        raise ConfigError(
            f"{model.name} runs in {dtype_name(model.dtype)}, where gradients underflow; load it with "
            "dtype='bfloat16' or 'float32'"
        )


def _product(gradient: Tensor, hidden: Tensor) -> Tensor:
    """Sum over the width, at least in float32."""
    if hidden.dtype.itemsize < 4:
        gradient, hidden = gradient.float(), hidden.float()
    return (gradient * hidden).sum(-1)


def _by_row(rows: Rows, layers: tuple[int, ...], values: Tensor, outputs: Tensor) -> list[Saliency]:
    prompt = rows.prompt.cpu()
    found = []
    for row, sample in enumerate(rows.samples):
        own = values[row][:, prompt[row]].float()
        for at, layer in enumerate(layers):
            if not torch.isfinite(own[at]).all():
                raise NonFiniteError(
                    f"saliency of sample {sample.name} at layer {layer} is NaN or infinite; load the model in float32"
                )
        found.append(Saliency(sample, layers, own, float(outputs[row])))
    return found
