"""The small GPT: a decoder with learned absolute positions, written to be read and to run under every runner.

It is a transformers model like any other (its own `model_type`, transformers' cache classes, masks and attention
kernels). Importing this file tells `AutoConfig` and `AutoModelForCausalLM` about it; `twinrun.load` does so by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel, slice_logits_to_keep

from twinrun.models.gpt_config import GPTConfig


class GPTAttention(nn.Module):
    """Causal multi-head attention; keys and values of earlier tokens come from the cache if there is one."""

    is_causal = True

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.n_embd // config.n_head
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.n_embd, config.n_embd)
        self.k_proj = nn.Linear(config.n_embd, config.n_embd)
        self.v_proj = nn.Linear(config.n_embd, config.n_embd)
        self.o_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **kwargs: Any
    ) -> Tensor:
        """Mix `[batch, tokens, width]` over the tokens that each row may see."""
        split = (*x.shape[:2], -1, self.head_dim)
        query, key, value = (
            part(x).view(split).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs)
        mixed: Tensor = self.o_proj(out.reshape(x.shape))
        return mixed


def eager_attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Attention in plain steps on `[batch, heads, tokens, head_dim]`; returns `[batch, tokens, heads, head_dim]`."""
    scores = query @ key.mT * settings["scaling"]
    scores = scores if mask is None else scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


class GPTLayer(nn.Module):
    """Attention, then feed-forward, each added to what came in; the norms stand before or behind."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.is_pre_norm = config.norm == "pre"
        self.attention = GPTAttention(config, layer_idx)
        self.attention_norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.up_proj = nn.Linear(config.n_embd, inner)
        self.down_proj = nn.Linear(inner, config.n_embd)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """One layer on `[batch, tokens, width]`; keywords go to the attention."""
        if self.is_pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), **kwargs))
            x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, **kwargs)))
            x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x

    def feed_forward(self, x: Tensor) -> Tensor:
        """Widen, GELU (its tanh form, as in GPT-2), narrow."""
        out: Tensor = self.down_proj(nn.functional.gelu(self.up_proj(x), approximate="tanh"))
        return out


class GPTPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # unannotated there
    """What transformers wants to know about every model of this kind."""

    config_class = GPTConfig
    base_model_prefix = "model"
    _no_split_modules = ["GPTLayer"]  # noqa: RUF012  transformers reads it from the class
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class GPTModel(GPTPreTrainedModel):  # type: ignore[no-untyped-call]  # unannotated there
    """Embeddings, layers and the final norm (pre-norm only): token ids in, hidden states out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.embed_positions = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(GPTLayer(config, i) for i in range(config.n_layer))
        is_pre_norm = config.norm == "pre"
        self.norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon) if is_pre_norm else None
        self.post_init()  # type: ignore[no-untyped-call]  # unannotated there

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states `[batch, tokens, width]`; arguments as in `GPTForCausalLM.forward`."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(input_ids.shape[1], device=input_ids.device) + past)[None]
        embedded = self.embed_tokens(input_ids)
        x = self.dropout(embedded + self.embed_positions(position_ids))
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        for layer in self.layers:
            x = layer(x, attention_mask=mask, past_key_values=past_key_values, **kwargs)
        x = x if self.norm is None else self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x, past_key_values=past_key_values if use_cache else None
        )


class GPTForCausalLM(GPTPreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]  # unannotated there
    """The small GPT with its head: scores of the next token.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3 (pre-norm);
    Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 4.1 (post-norm).
    Differs from the papers: no dropout by default, separate projections for queries, keys and values, and every
    matrix starts from N(0, 0.02), as in the first GPT (GPT-2 starts what ends a residual branch smaller).

    Example:
        >>> model = GPTForCausalLM(GPTConfig(n_layer=1, n_embd=32, block_size=16)).eval()
        >>> model(input_ids=torch.tensor([[72, 105]])).logits.shape
        torch.Size([1, 2, 258])
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  transformers reads it from the class

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.model = GPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]  # unannotated there

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: `[batch, tokens]`, those after the cached ones.
            attention_mask: `[batch, cached + tokens]`, 1 for real tokens and 0 for padding; None if none is padded.
            position_ids: `[batch or 1, tokens]`, each below `block_size`; None counts on from the cache's length.
            past_key_values: any cache of transformers, filled in place.
            use_cache: make a dynamic cache if none is given, and return it.
            labels: `[batch, tokens]` token ids, shifted inside; -100 is left out. Adds the mean loss, in nats.
            logits_to_keep: how many last positions get logits, or which; 0 is all.
            kwargs: passed on to the attention kernel and to the loss.

        Returns:
            Logits `[batch, kept, vocab]`, the cache, and the loss if labels are given.

        Raises:
            IndexError: a position outside the table (from torch's embedding).
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        body = self.model(input_ids, attention_mask, position_ids, past_key_values, use_cache, **kwargs)
        logits = self.lm_head(slice_logits_to_keep(body.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=body.past_key_values)


AutoConfig.register(GPTConfig.model_type, GPTConfig, exist_ok=True)
AutoModelForCausalLM.register(GPTConfig, GPTForCausalLM, exist_ok=True)
