"""The untrained model of a recipe: a small Qwen3 as transformers builds it."""

from __future__ import annotations

from builtin_recipe import Recipe
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained model of the recipe, float32, initialised from the recipe's seed."""
    set_seed(recipe.seed)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|end|>", "<|endoftext|>", "<|pad|>")}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ids["<|end|>"],
        pad_token_id=ids["<|pad|>"],
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = [ids["<|end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|pad|>"]
    return model
