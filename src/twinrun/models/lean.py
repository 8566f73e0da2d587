"""A decoder layer of Llama or Qwen2 without the calls of its modules: the same operators on the same numbers.

In a small model a layer is mostly Python between its products. Here the operators of the layer's own forward are called
one behind the other, so its output is the same bit for bit (`tests/unit/test_lean.py`). Whatever stands in the way of
that is looked for: another module, a forward put in another's place, training, autocast when rotary tables are made
(`LeanLayer.look`, once a run); hooks, modes, precision and device at every call. Then the answer is None and the layer
itself has to run. Only a pre-hook of the layer that says `only_looks = True` is no obstacle: it is called.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.activations import SiLUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2

from twinrun.models.rotary import attention_kind

Tables = tuple[Tensor, Tensor]
"""Cosines and signed sines `[rows, tokens, 1, head_dim]`: the first half of the sines is negative."""

_KINDS: dict[type, tuple[type, type, type]] = {
    llama.LlamaDecoderLayer: (llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm),
    qwen2.Qwen2DecoderLayer: (qwen2.Qwen2Attention, qwen2.Qwen2MLP, qwen2.Qwen2RMSNorm),
}
_FORWARDS: dict[type, Any] = {
    kind: kind.forward  # type: ignore[attr-defined]  # every module has one
    for kind in (nn.Linear, SiLUActivation, *_KINDS, *(kind for kinds in _KINDS.values() for kind in kinds))
}
_FIXED: dict[str, type] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), nn.Linear),
    "act_fn": SiLUActivation,
}
_READERS = ("q_proj", "k_proj", "v_proj")
_CLASSES, _OWN = tuple(_FORWARDS), list(_FORWARDS.values())
_ROTATE = llama.apply_rotary_pos_emb, qwen2.apply_rotary_pos_emb
_SDPA = ALL_ATTENTION_FUNCTIONS.get("sdpa")


def tables(rotary: tuple[Tensor, Tensor]) -> Tables:
    """Cosines and sines `[rows, tokens, head_dim]` as a lean layer takes them: made once for all layers of a step."""
    cos, sin = rotary
    half = sin.shape[-1] // 2
    return cos[:, :, None], torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)[:, :, None]


class LeanLayer:
    """One layer, taken apart once; what it consists of is compared with that at every call."""

    __slots__ = (
        "_attention", "_children", "_hooks", "_kinds", "_layer", "_lookers", "_mlp", "_modules", "_own", "_seen",
    )  # fmt: skip

    def __init__(self, layer: nn.Module) -> None:
        """Take `layer` apart; one that is not known is never run here."""
        self._layer: Any = layer
        self._attention: Any = None
        self._mlp: Any = None
        self._seen, self._hooks = False, tuple[Any, ...]()
        self._lookers: dict[int, Any] = {}
        kinds = _KINDS.get(type(layer))
        self._modules: list[nn.Module] = []
        self._own: list[dict[str, Any]] = []
        if kinds is None:
            return
        attention, mlp, norm = kinds
        self._attention, self._mlp = self._layer.self_attn, self._layer.mlp
        known = (self._layer, self._attention, self._mlp)
        self._modules = [*known, *(child for m in known for child in m.children() if child not in known)]
        self._own = [vars(module) for module in self._modules]
        self._children = [(module._modules, dict(module._modules)) for module in known]
        names = [_FIXED.get(name) for m in known for name, child in m._modules.items() if child not in known]
        self._kinds = [type(layer), attention, mlp, *(kind or norm for kind in names)]

    def __call__(self, hidden: Tensor, turn: Tables, mask: Tensor | None, slots: Any | None) -> Tensor | None:
        """The layer on `[rows, tokens, width]`; None if only its own forward can run it as it stands.

        Args:
            hidden: its input.
            turn: from `tables`, of the same tokens.
            mask: as the layer takes it.
            slots: keys and values to write to and to attend to (its `update`); None attends to these tokens alone.

        Cost: the products, and about forty calls of operators; looking at the modules takes some microseconds.
        """
        if not self._seen or any(self._hooks) or _is_watched() or not self._may_look():
            return None
        if hidden.dtype != torch.float32 or hidden.device.type != "cpu":
            return None
        attention = self._attention
        rows, tokens, width = hidden.shape
        parts, inner = self._layer._modules, attention._modules
        flat = hidden.reshape(-1, width)
        normed = _normed(parts["input_layernorm"], flat)
        q, k, v = (_product(inner[name], normed) for name in _READERS)
        size = attention.head_dim
        heads = q.shape[-1] // size
        both = torch.cat((q, k), dim=-1).view(rows, tokens, -1, size)
        cos, sin = turn
        both = (both * cos).add_(both.roll(size // 2, -1).mul_(sin)).transpose(1, 2)
        query, keys = both[:, :heads], both[:, heads:]
        values = v.view(rows, tokens, -1, size).transpose(1, 2)
        if slots is not None:
            keys, values = slots.update(keys, values, attention.layer_idx)
        seen = _attended(attention, query, keys, values, mask)
        flat = _product(inner["o_proj"], seen.reshape(rows * tokens, -1)).add_(flat)
        normed, inner = _normed(parts["post_attention_layernorm"], flat), self._mlp._modules
        gate = F.silu(_product(inner["gate_proj"], normed), inplace=True)
        gate = gate.mul_(_product(inner["up_proj"], normed))
        return _product(inner["down_proj"], gate).add_(flat).view(rows, tokens, width)

    def look(self) -> None:
        """See whether every module is still there, exactly of its class, and nothing is put in its forward's place."""
        self._seen = (
            bool(self._modules)
            and all(now == then for now, then in self._children)
            and [type(module) for module in self._modules] == self._kinds
            and not any(own["training"] or "forward" in own for own in self._own)
            and [kind.forward for kind in _CLASSES] == _OWN  # type: ignore[attr-defined]  # every module has one
            and (llama.apply_rotary_pos_emb, qwen2.apply_rotary_pos_emb) == _ROTATE
            and ALL_ATTENTION_FUNCTIONS.get("sdpa") is _SDPA
            and attention_kind(self._attention.config) == "sdpa"
            and not torch.is_autocast_enabled("cpu")
            and not torch.is_grad_enabled()
        )
        hooks = [own[name] for own in self._own for name in ("_forward_hooks", "_forward_pre_hooks")]
        self._lookers = self._layer._forward_pre_hooks
        others = (of_module for of_module in hooks if of_module is not self._lookers)
        self._hooks = (*others, torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)

    def show(self, hidden: Tensor, given: dict[str, Any]) -> None:
        """Call the hooks that only look, with what the layer was handed."""
        for hook in self._lookers.values():
            hook(self._layer, (hidden,), given)

    def _may_look(self) -> bool:
        return all(getattr(hook, "only_looks", False) for hook in self._lookers.values())


def _is_watched() -> bool:
    """Whether a mode takes part in every operator."""
    return bool(torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack())


def _attended(attention: Any, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention, `[rows, tokens, heads, head_dim]`; what transformers does about masks and groups is left to it."""
    if mask is None and attention.num_key_value_groups == 1:
        found = F.scaled_dot_product_attention(query, keys, values, scale=attention.scaling)
        return found.transpose(1, 2)
    out: Tensor = sdpa_attention_forward(
        attention, query, keys, values, mask, scaling=attention.scaling, is_causal=False
    )[0]
    return out


def _normed(norm: Any, hidden: Tensor) -> Tensor:
    return torch.rms_norm(hidden, (hidden.shape[-1],), norm._parameters["weight"], norm.variance_epsilon)


def _product(linear: Any, hidden: Tensor) -> Tensor:
    own = linear._parameters
    return F.linear(hidden, own["weight"], own["bias"])
