"""Products one precision up with weights that stay as they are: cast slice by slice, no raised copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SLICE_BYTES = 2**19
"""Raised bytes of weights at a time: they stay in a core's own cache between cast and product (1 to 2 MB today)."""
PRODUCTS = frozenset(
    [
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
        torch.mm,
        torch.addmm,
        torch.bmm,
        torch.baddbmm,
        torch.einsum,
    ]
)
"""Products that refuse operands of two precisions; a patched module may use them on its weights."""


class Up(TorchFunctionMode):
    """Inside, linear layers accept weights below the precision `dtype`, and code that asks for float32 gets no less.

    Norms, softmax and rotary tables ask for float32 by name: otherwise a float64 oracle would round to float32 in
    every norm.
    """

    def __init__(self, dtype: torch.dtype, *, slices: bool = True) -> None:
        """Serve `dtype`: float32 or float64. `slices` says whether weights below it are to be met at all."""
        super().__init__()
        self.dtype, self.slices = dtype, slices
        self.is_double = dtype == torch.float64
        self._scratch: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Mend the arguments of one call of torch."""
        kwargs = kwargs or {}
        if self.slices:
            if func is torch.nn.functional.linear:
                return self._linear(*args, **kwargs)
            if func in PRODUCTS:
                return func(*(self._raised(a) for a in args), **kwargs)
        if not self.is_double:
            return func(*args, **kwargs)
        if func is Tensor.float:
            return args[0].double()
        for a in args:  # plain loops: this runs at every call of torch in a raised pass
            if a is torch.float32:
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                break
        for v in kwargs.values():
            if v is torch.float32:
                kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
                break
        return func(*args, **kwargs)

    def _raised(self, value: Any) -> Any:
        return value.to(self.dtype) if self._is_low(value) else value

    def _is_low(self, value: Any) -> bool:
        return (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.dtype.itemsize < self.dtype.itemsize
        )

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if input.dtype != self.dtype or not self._is_low(weight):
            return torch.nn.functional.linear(input, weight, bias)
        if torch.is_grad_enabled() or weight.ndim != 2:
            return torch.nn.functional.linear(input, weight.to(self.dtype), self._raised(bias))
        out_width, in_width = weight.shape
        flat = input.reshape(-1, in_width)
        out = flat.new_empty(len(flat), out_width)
        rows = max(1, SLICE_BYTES // (in_width * self.dtype.itemsize))
        scratch = self._room(rows * in_width, weight.device)
        for start in range(0, out_width, rows):
            part = weight[start : start + rows]
            torch.mm(
                flat, scratch[: part.numel()].view_as(part).copy_(part).t(), out=out[:, start : start + rows]
            )
        if bias is not None:
            out += bias
        return out.view(*input.shape[:-1], out_width)

    def _room(self, numel: int, device: torch.device) -> Tensor:
        if self._scratch is None or self._scratch.numel() < numel or self._scratch.device != device:
            self._scratch = torch.empty(numel, dtype=self.dtype, device=device)
        return self._scratch
