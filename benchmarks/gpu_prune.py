"""The measurement of prune_prefill.py on a CUDA device: the shape of Qwen2.5-7B, prompts of 4k to 128k tokens.

  python benchmarks/gpu_prune.py                          every length
  python benchmarks/gpu_prune.py --lengths 4096,32768     some
  python benchmarks/gpu_prune.py --quick --out x.json     a smoke test

Without a CUDA device it says so in one line and ends with exit code 3. Memory at 128k: 15 GB of weights, 7 GB of cache
and a few GB of activations. Verdicts are taken up to `judge_up_to` tokens: masked full attention needs a mask of the
squared length. The paper's speed-ups of a 7B model stand beside ours (table 2: 4k to 128k; its GPU is not named).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _gpu import run_on_gpu
from _prune import Request, measure_length
from _record import say
from _shapes import build, random_ids

ABOUT = "prefill with tokens dropped layer by layer on a CUDA device, by length"
PAPER = {4096: 1.52, 8192: 1.58, 16384: 1.67, 32768: 1.79, 65536: 1.87, 131072: 2.15}
"""Prefill speed-up by prompt length, SDTP table 2 (Mistral-7B)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    shape: str = field(default="qwen2.5-7b", metadata={"help": "shape of the model"})
    device: str = field(default="cuda", metadata={"help": "device"})
    lengths: str = field(default="4096,32768,131072", metadata={"help": "prompt tokens, separated by commas"})
    ratio: float = field(default=0.9, metadata={"help": "stage i keeps ratio ** i"})
    first: int = field(default=4, metadata={"help": "first layer that prunes, from 0"})
    every: int = field(default=3, metadata={"help": "layers between stages"})
    repeats: int = field(default=10, metadata={"help": "interleaved rounds"})
    judge_up_to: int = field(default=4096, metadata={"help": "longest prompt with verdicts"})
    seed: int = field(default=0, metadata={"help": "of weights, tokens and scorers"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(shape="quick", lengths="64,96", ratio=0.5, first=1, every=1, repeats=3)


def measure(config: Config) -> dict[str, Any]:
    """Run the measurement at every length; names of arms, ratios, verdicts and bars start with the length."""
    found: dict[str, Any] = {"parts": {}, "arms": {}, "ratios": {}, "verdicts": {}, "bars": []}
    model = build(config.shape, device=config.device, seed=config.seed)
    for length in map(int, config.lengths.split(",")):
        request = Request(
            length=length,
            ratio=config.ratio,
            first=config.first,
            every=config.every,
            repeats=config.repeats,
            judge=length <= config.judge_up_to,
            seed=config.seed,
        )
        ids = random_ids(length, model.vocab_size, config.seed)
        part = measure_length(model, ids, request, say)
        for key in ("arms", "ratios", "verdicts"):
            found[key].update({f"{length}: {name}": value for name, value in part.pop(key).items()})
        found["bars"] += [{**bar, "name": f"{length}: {bar['name']}"} for bar in part.pop("bars")]
        found["parts"][str(length)] = {**part, "paper_ratio": PAPER.get(length)}
        if config.device == "cuda":
            torch.cuda.empty_cache()
    return {"model": repr(model), **found}


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request, 3 no CUDA device."""
    return run_on_gpu("gpu_prune", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
