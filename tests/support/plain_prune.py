"""A slow oracle of prompt pruning: every token through every layer, dropped ones masked out of full attention.

Written out plainly for decoders of the Llama kind (Llama, Mistral, Qwen2, Qwen3, Gemma), one row, no cache, no batch.
It shares no code with the subject: projections, rotary angles from original positions, softmax and masks are its own.
What it is told is which positions each stage kept.

`wrong` spoils one place: "positions" renumbers what was kept, "late" drops one layer too late.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Kept = Mapping[int, Sequence[int]]
"""Layer of a stage -> positions of the prompt that it and all behind it see."""


class PlainPruned:
    """A runner whose scores are the oracle's. `kept[prompt]` is what each stage kept of that prompt."""

    name = "plain-pruned"

    def __init__(self, model: Any, kept: Mapping[tuple[int, ...], Kept], wrong: str = "") -> None:
        self._config = model.config
        self._weights = dict(model.core.state_dict())
        self._kept, self._wrong = kept, wrong
        self._dtype = model.dtype
        self.model_name = model.name

    @property
    def dtype(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    @contextmanager
    def raised(self) -> Iterator[torch.dtype]:
        before, self._dtype = self._dtype, torch.float64 if self._dtype == torch.float32 else torch.float32
        try:
            yield self._dtype
        finally:
            self._dtype = before

    def score(self, tokens: Sequence[int], start: int) -> Tensor:
        kept = self._kept[tuple(tokens[:start])]
        with torch.inference_mode():
            return self._logits(list(tokens), start, kept)[start - 1 :]

    def _logits(self, ids: list[int], start: int, kept: Kept) -> Tensor:
        config = self._config
        w = {name: t.to(self._dtype) for name, t in self._weights.items()}
        is_gemma = config.model_type == "gemma"
        x = w["model.embed_tokens.weight"][ids]
        if is_gemma:
            x = x * torch.tensor(config.hidden_size**0.5, dtype=x.dtype)
        places = torch.arange(len(ids))
        visible = torch.ones(len(ids), dtype=torch.bool)
        for layer in range(config.num_hidden_layers):
            if layer - (self._wrong == "late") in kept:
                here = kept[layer - (self._wrong == "late")]
                visible = torch.tensor([i in set(here) or i >= start for i in range(len(ids))])
                if self._wrong == "positions":
                    places = torch.arange(len(ids)).clone()
                    places[list(here)] = torch.arange(len(here))
            own = {
                name.split(f"layers.{layer}.")[1]: t for name, t in w.items() if f".layers.{layer}." in name
            }
            x = x + self._attention(
                own, self._norm(x, own["input_layernorm.weight"], is_gemma), places, visible
            )
            h = self._norm(x, own["post_attention_layernorm.weight"], is_gemma)
            gate, up = h @ own["mlp.gate_proj.weight"].T, h @ own["mlp.up_proj.weight"].T
            acted = _gelu_tanh(gate) if is_gemma else gate / (1 + (-gate).exp())
            x = x + (acted * up) @ own["mlp.down_proj.weight"].T
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return self._norm(x, w["model.norm.weight"], is_gemma) @ head.T

    def _norm(self, x: Tensor, weight: Tensor, adds_one: bool = False) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide / ((wide * wide).mean(-1, keepdim=True) + self._config.rms_norm_eps).sqrt()
        return wide.to(x.dtype) * (weight + 1 if adds_one else weight)

    def _attention(self, own: dict[str, Tensor], x: Tensor, places: Tensor, visible: Tensor) -> Tensor:
        config = self._config
        heads, shared = config.num_attention_heads, config.num_key_value_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        query = self._turned(self._heads(own, "q", x, heads, dim), places)
        key = self._turned(self._heads(own, "k", x, shared, dim), places)
        value = self._heads(own, "v", x, shared, dim)
        out = torch.zeros_like(query)
        for head in range(heads):
            group = head * shared // heads
            scores = query[:, head] @ key[:, group].T / dim**0.5
            for row in range(len(x)):
                seen = visible[: row + 1].clone()
                seen[row] = True  # a dropped token still sees itself; nobody sees it
                chance = torch.softmax(scores[row, : row + 1][seen], dim=0)
                out[row, head] = chance @ value[: row + 1, group][seen]
        return out.flatten(1) @ own["self_attn.o_proj.weight"].T

    def _heads(self, own: dict[str, Tensor], which: str, x: Tensor, count: int, dim: int) -> Tensor:
        flat = x @ own[f"self_attn.{which}_proj.weight"].T
        if f"self_attn.{which}_proj.bias" in own:
            flat = flat + own[f"self_attn.{which}_proj.bias"]
        split = flat.reshape(len(x), count, dim)
        norm = own.get(f"self_attn.{which}_norm.weight")
        return split if norm is None else self._norm(split, norm)

    def _turned(self, x: Tensor, places: Tensor) -> Tensor:
        theta = float(self._config.rope_parameters["rope_theta"])
        dim = x.shape[-1]
        frequency = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angle = places.to(x.dtype)[:, None] * frequency.to(x.dtype)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        first, second = x[..., : dim // 2], x[..., dim // 2 :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _gelu_tanh(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class MaskedOut:
    """The same question put to any family: the model's own eager forward, a mask of our own in every layer.

    Own code is only the mask: `[tokens, tokens]` for each layer, from the positions kept. Row by row, without a cache.
    """

    name = "masked-out"

    def __init__(self, model: Any, kept: Mapping[tuple[int, ...], Kept], attention: str = "eager") -> None:
        self.model, self._kept, self.model_name = model, kept, model.name
        self._attention = attention

    @property
    def module(self) -> Any:
        return self.model.core

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    def raised(self) -> Any:
        return self.model.raised()

    def score(self, tokens: Sequence[int], start: int) -> Tensor:
        kept, count = self._kept[tuple(tokens[:start])], len(tokens)
        layers, device = self.model.layout.layers, self.model.device
        handles, visible = [], torch.ones(count, dtype=torch.bool)
        for index, layer in enumerate(layers):
            if index in kept:
                visible = torch.arange(count) >= start
                visible[list(kept[index])] = True
            hook = _masking(visible.to(device), is_float=self._attention == "eager")
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        config, kind = self.model.config, self.model.config._attn_implementation
        try:
            config._attn_implementation = self._attention
            with torch.inference_mode():
                out = self.model.core(
                    input_ids=torch.tensor([list(tokens)], device=device),
                    use_cache=False,
                    logits_to_keep=count - start + 1,
                )
        finally:
            config._attn_implementation = kind
            for handle in handles:
                handle.remove()
        found: Tensor = out.logits[0, start - 1 - count :]
        return found


def _masking(visible: Tensor, *, is_float: bool) -> Any:
    at = torch.arange(len(visible), device=visible.device)
    # A dropped token still sees itself; nobody else sees it.
    seen = (at[None] <= at[:, None]) & (visible[None] | (at[None] == at[:, None]))

    def hook(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = seen[None, None]
        if is_float:
            dtype = args[0].dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
                ~mask, torch.finfo(dtype).min
            )
        if "attention_mask" in kwargs:
            return args, {**kwargs, "attention_mask": mask}
        return (*args[:2], mask, *args[3:]), kwargs  # GPT-2 hands it over as the third argument

    return hook
