"""A causal LM with what twinrun needs to know about it: tokenizer, layout, limits, and why its settings were chosen."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor, nn

from twinrun.errors import ConfigError
from twinrun.models.bidirectional import is_bidirectional
from twinrun.models.layout import Layout, find_layout
from twinrun.models.memory import free_bytes
from twinrun.models.raised import raised, raised_part, raised_to, refuse_packed
from twinrun.models.tail import text_config
from twinrun.numerics.precision import dtype_name, one_up

Prompt = str | Sequence[int] | Tensor


class Model:
    """A loaded causal LM or masked-diffusion model. `model` is the transformers module itself.

    Attributes:
        model: the module, in evaluation mode.
        tokenizer: a transformers tokenizer, or None; then prompts are token ids.
        name: what it was loaded from.
        choices: for each automatic setting, the value and the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        name: str = "",
        choices: dict[str, str] | None = None,
    ) -> None:
        """Wrap a module; use `twinrun.load`, which also checks it."""
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or type(model).__name__
        self.choices = choices or {}
        self.cast_number = 0
        """Number of the `cast` that is on, counted over this model's life; 0 outside."""
        self._casts = 0

    def __repr__(self) -> str:
        """Show name, class, size and precision."""
        size = sum(p.numel() for p in self.model.parameters())
        return (
            f"Model({self.name!r}, {type(self.core).__name__}, {size:,} parameters, "
            f"{dtype_name(self.dtype)}, {self.device})"
        )

    @property
    def core(self) -> nn.Module:
        """The module without the wrapper of `torch.compile`."""
        core = getattr(self.model, "_orig_mod", self.model)
        return core if isinstance(core, nn.Module) else self.model

    @property
    def is_compiled(self) -> bool:
        """Whether `torch.compile` stands around the module or its forward."""
        return self.core is not self.model or hasattr(self.core.forward, "_torchdynamo_orig_callable")

    @cached_property
    def layout(self) -> Layout:
        """Body, layers, norm, head and tail (found on first use by one six-token forward of the plain module)."""
        return find_layout(self.core)

    @property
    def config(self) -> Any:
        """The text part of the transformers config; None for a module without one."""
        return text_config(getattr(self.core, "config", None))

    @property
    def dtype(self) -> torch.dtype:
        """Precision that the model runs in: that of most floating-point tensors, or what a block of `raised` set."""
        up = raised_to(self.core)
        if up is not None:
            return up
        kinds = [p.dtype for p in self.core.parameters() if p.is_floating_point()]
        kinds = kinds or [torch.float32]
        return max(dict.fromkeys(kinds), key=kinds.count)

    @property
    def device(self) -> torch.device:
        """Device of the first parameter; inputs go there."""
        first = next(iter(self.core.parameters()), None)
        return first.device if first is not None else torch.device("cpu")

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding: ids from 0 up to this are valid."""
        get = getattr(self.core, "get_input_embeddings", None)
        table = get() if callable(get) else None
        rows = getattr(table, "num_embeddings", None) or getattr(self.config, "vocab_size", None)
        if not rows:
            raise ConfigError(f"{self.name} has no readable vocabulary size; set config.vocab_size")
        return int(rows)

    @property
    def max_context(self) -> int | None:
        """Positions the model was built for, in tokens; None if it names no limit (ALiBi, for example)."""
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            value = getattr(self.config, key, None)
            if isinstance(value, int) and value > 0:
                return value
        return None

    @property
    def pad_id(self) -> int:
        """Id put into masked slots; its value never matters, which `verify` checks."""
        known = getattr(self.tokenizer, "pad_token_id", None)
        known = known if known is not None else getattr(self.config, "pad_token_id", None)
        return known if isinstance(known, int) and 0 <= known < self.vocab_size else 0

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text, from the generation config, the config, and the tokenizer, the first that names any."""
        holders = (getattr(self.core, "generation_config", None), self.config, self.tokenizer)
        for holder in holders:
            value = getattr(holder, "eos_token_id", None)
            if value is not None:
                return frozenset([value] if isinstance(value, int) else value)
        return frozenset()

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it; False for a masked-diffusion model, which sees all."""
        return not is_bidirectional(self.config)

    @property
    def mask_id(self) -> int | None:
        """Id of the mask token of a masked-diffusion model, from config or tokenizer; None if neither has one."""
        for holder in (self.config, self.tokenizer):
            value = getattr(holder, "mask_token_id", None)
            if isinstance(value, int) and 0 <= value < self.vocab_size:
                return value
        return None

    @property
    def shifts_logits(self) -> bool:
        """Whether the logits at a position are those of the next one, as in a model made from a causal one (Dream).

        The logits of a position are then `cat([logits[:, :1], logits[:, :-1]], 1)`; the model's forward does not shift.
        """
        return bool(getattr(self.config, "shifts_logits", False))

    @cached_property
    def accepts(self) -> frozenset[str]:
        """Names of the forward's parameters (position_ids and logits_to_keep are not known to every model)."""
        return frozenset(inspect.signature(self.core.forward).parameters)

    def encode(self, prompt: Prompt, *, new_tokens: int = 0) -> list[int]:
        """Return the token ids of a prompt, checked.

        Args:
            prompt: a text, or token ids as they are.
            new_tokens: tokens that will follow; prompt and these must fit the context.

        Raises:
            ConfigError: empty prompt, text without a tokenizer, an id outside the vocabulary, or too long.
        """
        return self.encode_within(prompt, self.max_context, new_tokens=new_tokens)

    def encode_within(self, prompt: Prompt, limit: int | None, *, new_tokens: int = 0) -> list[int]:
        """Return the token ids of a prompt as `encode` does, with another limit than the context; None is none."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ConfigError(
                    f"{self.name} was loaded without a tokenizer; give token ids, or "
                    "tr.load(model, tokenizer)"
                )
            ids = list(self.tokenizer(prompt)["input_ids"])
        else:
            ids = [int(i) for i in prompt]
        if not ids:
            raise ConfigError(f"the prompt {prompt!r:.40} has no tokens; give at least one token")
        vocab = self.vocab_size
        wrong = [i for i in ids if not 0 <= i < vocab]
        if wrong:
            raise ConfigError(
                f"token id {wrong[0]} is outside the vocabulary of {self.name}; ids run from 0 to {vocab - 1}"
            )
        if limit is not None and len(ids) + new_tokens > limit:
            extra = f" and {new_tokens} new ones" if new_tokens else ""
            raise ConfigError(
                f"prompt of {len(ids)} tokens{extra} exceeds the context of {self.name} ({limit}); shorten it"
            )
        return ids

    def encode_cut(self, text: str, limit: int) -> list[int]:
        """Token ids of a text, at most the first `limit`; checked like `encode`."""
        if self.tokenizer is None:
            return self.encode(text)
        return self.encode(list(self.tokenizer(text)["input_ids"])[:limit])

    def chat(self, text: str, *, system: str = "") -> list[int]:
        """Token ids of one user message in the model's chat template, ready for the answer.

        Args:
            text: the message.
            system: a system message before it; empty for none.

        Raises:
            ConfigError: no tokenizer, one without a chat template, or a template that refuses the messages.
        """
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ConfigError(f"{self.name} has no chat template; give the prompt as plain text")
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        try:
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            fix = "leave the system prompt out" if system else "give the prompt as plain text"
            raise ConfigError(f"the chat template of {self.name} refuses: {error}; {fix}") from error
        return self.encode(ids)

    def decode(self, ids: Sequence[int]) -> str | None:
        """Return the text of `ids`, or None without a tokenizer."""
        return (
            None
            if self.tokenizer is None
            else str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        )

    @contextmanager
    def raised(self) -> Iterator[torch.dtype]:
        """Run this model one precision up inside the block; yields that precision. See `twinrun.models.raised`.

        As many layers as fit into two thirds of free memory are cast once, the others slice by slice in each forward.
        """
        with self.cast(raised_to(self.core) or one_up(self.dtype)) as dtype:
            yield dtype

    @contextmanager
    def cast(self, dtype: torch.dtype) -> Iterator[torch.dtype]:
        """Run this model with its weights in another precision inside the block; yields that precision."""
        budget = math.inf if self.is_compiled else free_bytes(self.device) * 2 / 3
        outer, self._casts = self.cast_number, self._casts + 1
        with raised(self.core, self.layout.layers, dtype, budget_bytes=budget):
            self.cast_number = self._casts
            try:
                yield dtype
            finally:
                self.cast_number = outer

    @contextmanager
    def raised_part(self, name: str) -> Iterator[torch.dtype]:
        """Run one module, called by itself, one precision up inside the block; yields that precision.

        Args:
            name: path of the module inside `core`.
        """
        dtype = one_up(self.dtype)
        with raised_part(self.core.get_submodule(name), dtype):
            yield dtype

    def can_raise(self) -> str | None:
        """Return None if this model can be run one precision up, else the reason why not."""
        try:
            raised_to(self.core) or one_up(self.dtype)
            refuse_packed(self.core)
        except Exception as error:  # both are typed refusals; the text is the reason
            return str(error)
        return None

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Head and tail on hidden states `[rows, width]`, in the precision of `hidden`."""
        layout = self.layout
        if layout.head is None or layout.tail is None:
            raise ConfigError(f"scores of {self.name} cannot be streamed: {layout.why_not}")
        part = (
            raised_part(layout.head, hidden.dtype)
            if hidden.is_floating_point() and hidden.dtype != self.dtype
            else nullcontext()
        )
        with torch.inference_mode(), part:
            return layout.tail(layout.head(hidden))
