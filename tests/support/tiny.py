"""A checkpoint folder with random weights and a real tokenizer: like a user's own folder, in 100 ms."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from twinrun.tasks.arithmetic import problem

SPECIALS = ("<|end|>", "<|pad|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""


@cache
def _core(vocab_size: int) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([problem(i, seed=1).question for i in range(50)], trainer)
    return core


def tiny_tokenizer(vocab_size: int = 320, *, chat: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE; every text survives encode and decode."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_core(vocab_size).to_str()),
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE if chat else None,
        clean_up_tokenization_spaces=False,
    )


def tiny_folder(path: Path, *, seed: int = 0, layers: int = 2, width: int = 48, chat: bool = True) -> Path:
    """Write a small random Qwen3 checkpoint with tokenizer and chat template to `path`, and return it."""
    tokenizer = tiny_tokenizer(chat=chat)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config).eval()
    model.save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))
    return path
