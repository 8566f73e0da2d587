"""The measurement of decode_qwen.py on a CUDA device, at the shapes of Qwen2.5-0.5B and 7B, with the bandwidth ratio.

  python benchmarks/gpu_decode.py                       both shapes
  python benchmarks/gpu_decode.py --shapes qwen2.5-0.5b one shape
  python benchmarks/gpu_decode.py --quick --out x.json  a smoke test

Without a CUDA device it says so in one line and ends with exit code 3. Memory for the 7B shape: 15 GB of weights, and
28 GB for a whole float32 copy where that fits (otherwise the oracle is cast layer by layer).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import decode_qwen
import torch
from _gpu import run_on_gpu

ABOUT = "decode on a CUDA device: our fast steps against transformers' best setting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement. What is not named here has the defaults of decode_qwen.py."""

    shapes: str = field(default="qwen2.5-0.5b,qwen2.5-7b", metadata={"help": "shapes, separated by commas"})
    device: str = field(default="cuda", metadata={"help": "device"})
    new_tokens: int = field(default=256, metadata={"help": "tokens generated after 128 of prompt"})
    repeats: int = field(default=10, metadata={"help": "interleaved rounds"})
    compiled: str = field(default="yes", metadata={"help": "yes or no: time what compiles, on both sides"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(shapes="quick", new_tokens=9, repeats=3, compiled="no")


def measure(config: Config) -> dict[str, Any]:
    """Run the measurement at every shape; names of arms, ratios and bars start with the shape."""
    found: dict[str, Any] = {"parts": {}, "arms": {}, "ratios": {}, "verdicts": {}, "bars": []}
    for shape in config.shapes.split(","):
        chosen = decode_qwen.Config(
            shape=shape,
            device=config.device,
            prompt_tokens=128,
            new_tokens=config.new_tokens,
            repeats=config.repeats,
            compiled=config.compiled,
            read_gigabytes=4.0,
        )
        part = decode_qwen.measure(chosen)
        for key in ("arms", "ratios", "verdicts"):
            found[key].update({f"{shape}: {name}": value for name, value in part.pop(key).items()})
        found["bars"] += [{**bar, "name": f"{shape}: {bar['name']}"} for bar in part.pop("bars")]
        found["parts"][shape] = {"config": asdict(chosen), **part}
        torch.cuda.empty_cache()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request, 3 no CUDA device."""
    return run_on_gpu("gpu_decode", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
