"""The measurement of diffusion_shape.py on a CUDA device, at the shapes of LLaDA-8B and 0.3B, random bfloat16 weights.

  python benchmarks/gpu_diffusion.py                       both shapes
  python benchmarks/gpu_diffusion.py --shapes 8b           one shape
  python benchmarks/gpu_diffusion.py --quick --out x.json  a smoke test

Without a CUDA device it says so in one line and ends with exit code 3. Memory for the 8B shape: 16 GB of weights, and
32 GB for a whole float32 copy where that fits (otherwise the oracle is cast layer by layer).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import diffusion_shape
import torch
from _gpu import run_on_gpu

ABOUT = "masked-diffusion decoding on a CUDA device: cost of steps, and whole decodes estimated from them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement. What is not named here has the defaults of diffusion_shape.py."""

    shapes: str = field(default="0.3b-v126k,8b", metadata={"help": "shapes, separated by commas"})
    device: str = field(default="cuda", metadata={"help": "device"})
    repeats: int = field(default=10, metadata={"help": "interleaved rounds"})
    room: int = field(
        default=256, metadata={"help": "tokens of the small canvas; the large one is twice that"}
    )

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(shapes="quick", repeats=2, room=64)


def measure(config: Config) -> dict[str, Any]:
    """Run the measurement at every shape; names of arms, ratios and bars start with the shape."""
    found: dict[str, Any] = {"parts": {}, "arms": {}, "ratios": {}, "verdicts": {}, "notes": [], "bars": []}
    for shape in config.shapes.split(","):
        chosen = diffusion_shape.Config(
            shape=shape, device=config.device, dtype="bfloat16", repeats=config.repeats, room=config.room
        )
        part = diffusion_shape.measure(chosen)
        for key in ("arms", "ratios", "verdicts"):
            found[key].update({f"{shape}: {name}": value for name, value in part.pop(key).items()})
        found["notes"] += [f"{shape}: {note}" for note in part.pop("notes")]
        found["bars"] += [{**bar, "name": f"{shape}: {bar['name']}"} for bar in part.pop("bars")]
        found["parts"][shape] = {"config": asdict(chosen), **part}
        torch.cuda.empty_cache()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request, 3 no CUDA device."""
    return run_on_gpu("gpu_diffusion", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
