"""The measurements of single_pass.py and streamed_kl.py on a CUDA device, at the shapes of Qwen2.5-0.5B and 7B.

  python benchmarks/gpu_score.py                       both shapes, both measurements
  python benchmarks/gpu_score.py --shapes qwen2.5-0.5b one shape
  python benchmarks/gpu_score.py --quick --out x.json  a smoke test

Without a CUDA device it says so in one line and ends with exit code 3. Memory for the 7B shape: 15 GB of weights, and
28 GB for a whole float32 copy where that fits (otherwise the oracle is cast layer by layer).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import single_pass
import streamed_kl
import torch
from _gpu import run_on_gpu

ABOUT = "teacher-forced scoring and streamed KL on a CUDA device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement. What is not named here has the defaults of the two other scripts."""

    shapes: str = field(default="qwen2.5-0.5b,qwen2.5-7b", metadata={"help": "shapes, separated by commas"})
    device: str = field(default="cuda", metadata={"help": "device"})
    new_tokens: int = field(default=512, metadata={"help": "tokens that are scored after 128 of prompt"})
    repeats: int = field(default=20, metadata={"help": "interleaved rounds"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(shapes="quick", new_tokens=9, repeats=3)


def measure(config: Config) -> dict[str, Any]:
    """Run both measurements at every shape; names of arms, ratios and bars start with the shape."""
    found: dict[str, Any] = {"parts": {}, "arms": {}, "ratios": {}, "verdicts": {}, "bars": []}
    for shape in config.shapes.split(","):
        device, rounds = config.device, config.repeats
        scoring = single_pass.Config(shape=shape, device=device, repeats=rounds, new_tokens=config.new_tokens)
        drift = streamed_kl.Config(shape=shape, device=device, repeats=rounds)
        for script, chosen in ((single_pass, scoring), (streamed_kl, drift)):
            _merge(found, f"{shape}: ", script.__name__, script.measure(chosen), asdict(chosen))
            torch.cuda.empty_cache()
    return found


def _merge(
    found: dict[str, Any], prefix: str, script: str, part: dict[str, Any], settings: dict[str, Any]
) -> None:
    for key in ("arms", "ratios", "verdicts"):
        found[key].update({f"{prefix}{script}: {name}": value for name, value in part.pop(key, {}).items()})
    found["bars"] += [{**bar, "name": prefix + bar["name"]} for bar in part.pop("bars")]
    found["parts"][prefix + script] = {"config": settings, **part}


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request, 3 no CUDA device."""
    return run_on_gpu("gpu_score", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
