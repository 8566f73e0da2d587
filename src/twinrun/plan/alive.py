"""Bytes of tensors alive while a model runs without numbers: storages are counted as they come and go."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twinrun.plan.kernels import attention_output, attention_scratch, temporary_bytes, uses_fused_kernel

_SCALAR = torch.ops.aten._local_scalar_dense.default


class AliveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # unannotated there
    """Counts storages made inside the block: `level` now, `peak` at most. On the meta device nothing is allocated.

    What an operator holds only while it runs is added by `call_out`.

    Example:
        >>> with torch.no_grad(), AliveBytes() as alive:
        ...     x = torch.empty(8, 8, device="meta") + 1
        >>> alive.level, alive.peak
        (256, 512)
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """`known` tensors (weights) are there before and do not count."""
        super().__init__()  # type: ignore[no-untyped-call]  # unannotated there
        self._known = [tensor.untyped_storage() for tensor in known]
        self._sizes: dict[int, int] = {storage._cdata: 0 for storage in self._known}
        self.level = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it returns; a number read out of a tensor that has none is one.

        Models read truth values only to leave work out: "no text is packed into this row", "no frequency changes".
        """
        if func is _SCALAR and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype, device="cpu").item()
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        self.call_out(temporary_bytes(func, args))
        return result

    def call_out(self, size: int) -> None:
        """Say that `size` bytes are held for a moment on top of what is alive now."""
        self.peak = max(self.peak, self.level + size)

    def restart(self) -> None:
        """Forget the peak so far; what is alive stays counted."""
        self.peak = self.level

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.level += self._sizes[key]
            self.peak = max(self.peak, self.level)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.level -= self._sizes.pop(key, 0)


class KernelShapes(TorchFunctionMode):
    """Answers for kernels that the meta device lacks or runs otherwise: fused attention, grouped matrix products."""

    def __init__(self, alive: AliveBytes, device: str) -> None:
        """`device` is the one that is planned for, "cpu" or "cuda"."""
        super().__init__()
        self._alive, self._device = alive, device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Shapes and scratch of the kernel that would run."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is getattr(torch, "_grouped_mm", None):
            rows, weights = args[0], args[1]
            return rows.new_empty(rows.shape[0], weights.shape[-1])
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *rest: Any,
        **kw: Any,
    ) -> Tensor:
        gqa = bool(kw.get("enable_gqa"))
        if not uses_fused_kernel(query, key, value, attn_mask, gqa, self._device):
            plain = torch.ops.aten._scaled_dot_product_attention_math
            mask = attn_mask if attn_mask is None else attn_mask.to(query.dtype)
            causal = bool(kw.get("is_causal"))
            found: tuple[Tensor, Tensor] = plain(query, key, value, mask, 0.0, causal, enable_gqa=gqa)
            return found[0]
        self._alive.call_out(attention_scratch(query, key, value, attn_mask, self._device))
        return attention_output(query, value)
