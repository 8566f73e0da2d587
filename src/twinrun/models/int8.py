"""Weight-only int8: a model whose linear layers keep a byte a weight, beside the model it was made of.

It is another model, and says so: `verify` holds it against the one it was made of and finds it lossy, with its KL. What
it buys is bytes: decoding one row reads every weight once a token, so where reading is what takes the time, half the
bytes of bfloat16 are up to twice the speed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.models.model import Model
from twinrun.models.raised import raised_to, refuse_packed

LARGEST = 127
"""Integers run from -127 to 127: the same on both sides, so that no zero point is needed."""
KERNEL_ROWS = 8
"""Up to so many rows torch's int8 kernel multiplies; a prompt's many go through an ordinary product."""


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale an output: `y = (x @ weight_int8.T) * scale + bias`.

    Activations stay in the precision of the model. In bfloat16 on a processor torch's kernel reads the bytes as they
    are; anywhere else they are cast for the product, which computes the same function and is not faster than before.
    """

    one_up = True
    """Integers and scales are the weights themselves, so their products can be computed one precision up."""

    weight_int8: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        """Round `weight` `[out, in]` to integers, one scale a row."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        integers, scale = rounded(weight.detach())
        self.register_buffer("weight_int8", integers)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", bias)

    def extra_repr(self) -> str:
        """Show the shape, as `nn.Linear` does."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )

    @property
    def weight(self) -> Tensor:
        """The weights that these integers stand for, `[out, in]`; made anew at every call."""
        return self.weight_int8.to(self.scale.dtype) * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply `[..., in]`; returns `[..., out]`."""
        rows = x.numel() // self.in_features
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and rows <= KERNEL_ROWS:
            flat = x.reshape(rows, self.in_features)
            out = torch._weight_int8pack_mm(flat, self.weight_int8, self.scale)
            out = out.view(*x.shape[:-1], self.out_features)
        else:
            out = nn.functional.linear(x, self.weight_int8.to(x.dtype)) * self.scale
        return out if self.bias is None else out + self.bias


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the integers `[out, in]` and scales `[out]` nearest to `weight`, row by row.

    A scale is the largest number of its row over 127, rounded up to the precision of the weights first: the integers
    are chosen for the scale that will be multiplied, so its rounding costs nothing.
    """
    exact = weight.double()
    wanted = exact.abs().amax(dim=1) / LARGEST
    scale = wanted.to(weight.dtype)
    scale = torch.where(
        scale.double() < wanted, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale
    )
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (exact / scale.double()[:, None]).round().to(torch.int8).contiguous(), scale


def int8_weight_only(model: Model) -> Model:
    """Return a model with the weights of all linear layers rounded to int8, one scale an output, symmetric.

    Embeddings, norms, biases and experts that are no linear layers are shared with `model`, not copied; a head tied to
    the embedding gets integers of its own. Later changes of the weights of `model` do not reach the integers. Faster
    than before in bfloat16 on a processor, with `KVCache(..., step="packed")`; elsewhere smaller, and slower.

    Source: weight-only int8 as in gpt-fast (`quantize.py`, `WeightOnlyInt8QuantHandler`) and torchao
    (`Int8WeightOnlyConfig`): the largest number of a row is 127 of its steps.
    Differs: scales are rounded up to the precision of the weights before the integers are chosen for them.

    Raises:
        ConfigError: a model that is being run in another precision just now.
        UnsupportedModelError: no linear layers, weights that are packed already, or a compiled model.

    Cost: one pass over the weights; a byte a weight.

    Example:
        >>> small = int8_weight_only(load("builtin:amateur"))
        >>> {type(p).__name__ for n, p in small.model.named_modules() if n.endswith("q_proj")}
        {'Int8Linear'}
    """
    if raised_to(model.core) is not None:
        raise ConfigError(f"{model.name} is being run in another precision; leave that block first")
    if model.is_compiled:
        raise UnsupportedModelError(f"{model.name} is compiled; take int8 weights before torch.compile")
    refuse_packed(model.core)
    tensors = [*model.core.parameters(), *model.core.buffers()]
    shared: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    core = copy.deepcopy(model.core, shared)
    count = _replace(core)
    if not count:
        raise UnsupportedModelError(f"{model.name} has no linear layers left to round to int8")
    made = Model(core, model.tokenizer, name=f"{model.name}, int8 weights", choices=dict(model.choices))
    made.choices["weights"] = f"int8: {count} linear layers, one scale an output"
    return made


def _replace(parent: nn.Module) -> int:
    """Put int8 layers in the place of linear ones below `parent`; returns how many."""
    count = 0
    for name, part in parent.named_children():
        if type(part) in (nn.Linear, Conv1D):
            found: Any = part
            weight = found.weight if type(part) is nn.Linear else found.weight.t()
            setattr(parent, name, Int8Linear(weight, found.bias).train(part.training))
            count += 1
        else:
            count += _replace(part)
    return count
