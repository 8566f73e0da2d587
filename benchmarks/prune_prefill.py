"""Prefill with prompt tokens dropped layer by layer, against the whole prefill and what the operations allow.

A prompt of 4,096 tokens through the shape of Qwen2.5-0.5B in bfloat16, random weights, the paper's schedule (0.9,
0.81, ... from layer 4, every third), untrained scorers of the size that training makes. Both arms fill a cache and ask
for the logits of the last token. Bar: the measured speed-up is at least 90 % of that in counted operations
(`twinrun.bench.flops`). Beside it stand mean keep, mean keep squared, peak memory, and two verdicts: against masked
full attention, which must be equivalent, and against no pruning, which on random weights says nothing of trained ones.

  python benchmarks/prune_prefill.py                       the full measurement, about six minutes on two cores
  python benchmarks/prune_prefill.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from _prune import Request, measure_length
from _record import run, say
from _shapes import build, random_ids

ABOUT = "prefill with tokens dropped layer by layer, against the whole prefill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    shape: str = field(default="qwen2.5-0.5b", metadata={"help": "shape of the model"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    length: int = field(default=4096, metadata={"help": "tokens of the prompt"})
    ratio: float = field(default=0.9, metadata={"help": "stage i keeps ratio ** i"})
    first: int = field(default=4, metadata={"help": "first layer that prunes, from 0"})
    every: int = field(default=3, metadata={"help": "layers between stages"})
    repeats: int = field(default=10, metadata={"help": "interleaved rounds"})
    judge: int = field(default=1, metadata={"help": "1: verdicts too"})
    seed: int = field(default=0, metadata={"help": "of weights, tokens and scorers"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(shape="quick", length=64, ratio=0.5, first=1, every=1, repeats=3)


def measure(config: Config) -> dict[str, Any]:
    """Run both arms and the verdicts; return the measured part of the record."""
    say(f"building {config.shape} on {config.device}")
    model = build(config.shape, device=config.device, seed=config.seed)
    request = Request(
        length=config.length,
        ratio=config.ratio,
        first=config.first,
        every=config.every,
        repeats=config.repeats,
        judge=bool(config.judge),
        seed=config.seed,
    )
    ids = random_ids(config.length, model.vocab_size, config.seed)
    return {"model": repr(model), **measure_length(model, ids, request, say)}


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("prune_prefill", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
