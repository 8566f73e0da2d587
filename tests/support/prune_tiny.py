"""A small model of four layers and a few samples for the tests of scorer training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import twinrun as tr
from twinrun.prune.protection import Protection
from twinrun.prune.samples import Listed, Sample
from twinrun.prune.schedule import Schedule
from twinrun.prune.settings import TrainSettings

VOCAB, WIDTH, DEPTH = 97, 32, 4
SCHEDULE = Schedule.of({1: 0.7, 3: 0.4})
PROTECTION = Protection(first=2, last=2)


def tiny_llama(dtype: torch.dtype = torch.float32, seed: int = 0) -> tr.Model:
    """Random Llama: grouped queries, four layers."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=DEPTH, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, attn_implementation="sdpa",
    )  # fmt: skip
    return tr.load(LlamaForCausalLM(config).to(dtype).eval())


def samples(count: int, seed: int = 0) -> Listed:
    """Random samples of unequal lengths; the answer repeats two tokens of the prompt, so the loss can hang on them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        length = int(torch.randint(12, 30, (1,), generator=generator))
        ids = torch.randint(1, VOCAB, (length,), generator=generator).tolist()
        found.append(Sample(f"s/{i}", tuple(ids), (ids[5], ids[8], ids[3])[: 1 + i % 3]))
    return Listed(found)


def settings(**given: object) -> TrainSettings:
    """Few steps, two rows a forward."""
    plain: dict[str, object] = {"batch_size": 4, "rows": 2, "watch": 2, "save_every": 2, "epochs": 2}
    return TrainSettings(schedule=SCHEDULE, protection=PROTECTION, **{**plain, **given})


def jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def tiny_gpt2(attention: str = "sdpa") -> tr.Model:
    """Random GPT-2 in float64 throughout: its norms do not round to float32, so differences can be taken."""
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=DEPTH, n_head=4, n_positions=128, initializer_range=0.3,
        attn_implementation=attention,
    )  # fmt: skip
    return tr.load(GPT2LMHeadModel(config).double().eval())
