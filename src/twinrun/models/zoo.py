"""Small models with random weights, one for each family: real transformers configs, nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from twinrun.models import gpt
from twinrun.models.load import load
from twinrun.models.model import Model

BASE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "initializer_range": 0.08,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SPECIAL = {k: v for k, v in BASE.items() if k.endswith("token_id")}
NO_GQA = {k: v for k, v in BASE.items() if k != "num_key_value_heads"}
GPT = {
    "vocab_size": 320,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 512,
    "initializer_range": 0.08,
    **SPECIAL,
}
OURS = {
    "vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "block_size": 512, "initializer_range": 0.08,
    **SPECIAL,
}  # fmt: skip
BLOOM = {
    "vocab_size": 320,
    "hidden_size": 64,
    "n_layer": 3,
    "n_head": 4,
    "initializer_range": 0.08,
    **SPECIAL,
}
OPT = {
    "vocab_size": 320, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "word_embed_proj_dim": 64, "max_position_embeddings": 512, "init_std": 0.08, **SPECIAL,
}  # fmt: skip
GEMMA = {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 30.0}
LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 24,
    "short_factor": [1.0] * 8, "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
YARN_ROPE = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16}
MLA = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 64, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 24,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", BASE),
    "llama-rope": (
        "LlamaConfig",
        {
            **BASE,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            "max_position_embeddings": 48,
        },
    ),
    "llama-linear": ("LlamaConfig", {**BASE, "rope_parameters": LINEAR_ROPE}),
    "llama-yarn": ("LlamaConfig", {**BASE, "rope_parameters": YARN_ROPE}),
    "mistral": ("MistralConfig", {**BASE, "sliding_window": 16}),
    "qwen2": ("Qwen2Config", BASE),
    "qwen3": ("Qwen3Config", {**BASE, "head_dim": 16}),
    "qwen3moe": ("Qwen3MoeConfig", {**BASE, **EXPERTS}),
    "mixtral": ("MixtralConfig", {**BASE, "num_local_experts": 4}),
    "deepseek3": ("DeepseekV3Config", {**BASE, **MLA}),
    "gemma2": ("Gemma2Config", {**BASE, **GEMMA}),
    "gemma2-cap": ("Gemma2Config", {**BASE, **GEMMA, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3TextConfig", {**BASE, **GEMMA}),
    "phi": ("PhiConfig", BASE),
    "phi3": ("Phi3Config", BASE),
    "phi3-long": (
        "Phi3Config",
        {**BASE, "original_max_position_embeddings": 24, "rope_parameters": LONG_ROPE},
    ),
    "gpt2": ("GPT2Config", GPT),
    "gptj": ("GPTJConfig", {**GPT, "rotary_dim": 16}),
    "neox": ("GPTNeoXConfig", NO_GQA),
    "opt": ("OPTConfig", OPT),
    "bloom": ("BloomConfig", BLOOM),
    "falcon": ("FalconConfig", {**{k: v for k, v in NO_GQA.items() if k != "intermediate_size"}}),
    "olmo2": ("Olmo2Config", BASE),
    "granite": (
        "GraniteConfig",
        {**BASE, "logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    ),
    "cohere": ("CohereConfig", BASE),
    "cohere2": ("Cohere2Config", {**BASE, "sliding_window": 16, "head_dim": 16}),
    "stablelm": ("StableLmConfig", BASE),
    "starcoder2": ("Starcoder2Config", {**BASE, "sliding_window": 16}),
    "glm4": ("Glm4Config", {**BASE, "head_dim": 16}),
    "nemotron": ("NemotronConfig", BASE),
    "gptoss": (
        "GptOssConfig",
        {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 16},
    ),
    "gpt-pre": ("GPTConfig", {**OURS, "norm": "pre"}),
    "gpt-post": ("GPTConfig", {**OURS, "norm": "post"}),
}
FAMILIES = tuple(CONFIGS)
MASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llada": (
        "LlamaConfig",
        {**BASE, "num_hidden_layers": 4, "num_key_value_heads": 4, "is_causal": False, "mask_token_id": 319},
    ),
    "llada-gqa": ("LlamaConfig", {**BASE, "num_hidden_layers": 4, "is_causal": False, "mask_token_id": 319}),
}
"""Masked-diffusion models, which look both ways. Each finds its own mask likely, as one that was hardly trained may."""
ROUTED = ("qwen3moe", "mixtral", "deepseek3", "gptoss")
DTYPES = ("float32", "bfloat16", "float16")
CANDIDATES = ("single-pass", "kv-cache:dynamic", "kv-cache:static")

_BLOOM = "transformers builds ALiBi for the tokens seen so far and the mask for the whole static cache"
_LONG_ROPE = (
    "LongRoPE turns a whole prefix to other frequencies once it passes 24 tokens; only recomputing follows"
)
KNOWN: dict[tuple[str, str, str], str] = {
    **{("bloom", "kv-cache:static", dtype): _BLOOM for dtype in DTYPES},
    **{("phi3-long", name, dtype): _LONG_ROPE for name in CANDIDATES for dtype in DTYPES},
}
"""(family, runner, dtype) that cannot pass, each with the reason. A test holds that each still fails."""
OWN_WINDOW = ("mistral", "gemma2", "gemma2-cap", "gemma3", "cohere2", "starcoder2", "gptoss")
LEARNED = ("gpt2", "opt", "gpt-pre", "gpt-post")
CACHE_KINDS = ("sliding", "rolling", "prefix", "offloaded", "quantized")
"""Kinds of cache beside the two in `CANDIDATES`."""
REFUSED: dict[tuple[str, str], str] = {
    **{(family, "sliding"): "no sliding-window layer" for family in FAMILIES if family not in OWN_WINDOW},
    **{(family, "quantized"): "sliding-window layers" for family in OWN_WINDOW},
    ("llama-rope", "rolling"): "other rotary frequencies",
    ("phi3-long", "rolling"): "other rotary frequencies",
    ("bloom", "rolling"): "ALiBi",
}
"""(family, kind of cache) that is refused before anything runs, with words of the reason."""


def make(family: str, dtype: str = "float32", seed: int = 0) -> Model:
    """Build one model. Biases and norms get noise too: at zeros and ones a fault in them would not show."""
    torch.manual_seed(seed)
    name, settings = {**CONFIGS, **MASKED}[family]
    config = getattr(gpt if hasattr(gpt, name) else hf, name)(**settings)
    build: Any = hf.AutoModelForCausalLM.from_config
    module = build(config, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter.dtype))
        if family in MASKED:
            mask = settings["mask_token_id"]
            usual = module.model(torch.full((1, 8), mask), use_cache=False).last_hidden_state.mean((0, 1))
            row = module.lm_head.weight[mask]
            row.copy_(2 * usual * row.norm() / usual.norm())
    return load(module)
