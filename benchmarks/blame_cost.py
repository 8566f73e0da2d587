"""What naming a module costs at the shape of Qwen2.5-0.5B: time in forwards, memory in activations of one run.

Bars: at most four forwards' time; at most 1.5 times the memory of all activations of one run. The memory is the peak
of the whole call, its own passes and the layer that it casts up included; nothing is subtracted.

  python benchmarks/blame_cost.py                       some minutes, 6 GB
  python benchmarks/blame_cost.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from _record import at_most, ratios_json, run, say, timings_json
from _shapes import build, random_ids
from torch import Tensor

import twinrun as tr
from twinrun.bench.memory import peak_extra_bytes
from twinrun.bench.timing import Timing, ratio
from twinrun.faults.fault import candidate_for
from twinrun.faults.registry import get_fault
from twinrun.verify.activations import flatten

ABOUT = "time and memory of blame over one forward and over one run's activations"
TIME_BAR, MEMORY_BAR = 4.0, 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    shape: str = field(default="qwen2.5-0.5b", metadata={"help": "shape of the model"})
    tokens: int = field(default=256, metadata={"help": "length of the text"})
    repeats: int = field(default=5, metadata={"help": "timed rounds"})
    fault: str = field(default="value-scale-off", metadata={"help": "fault to be named"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(shape="quick", tokens=24, repeats=2)


def measure(config: Config) -> dict[str, Any]:
    """Interleave a forward with the whole search; measure memory apart."""
    model = build(config.shape)
    ids = random_ids(config.tokens, model.vocab_size, 1)
    reference = tr.SinglePass(model)
    fault = get_fault(config.fault)
    candidate = candidate_for(fault, model, "single-pass")
    case = tr.Case(label="text", rows=(tuple(ids),), starts=(len(ids),))
    found: list[tr.Blame] = []
    samples: dict[str, list[float]] = {"one forward": [], "one forward (A/A)": [], "blame": []}
    calls: dict[str, Callable[[], object]] = {
        "one forward": lambda: reference.score(ids, len(ids)),
        "one forward (A/A)": lambda: reference.score(ids, len(ids)),
        "blame": lambda: found.append(tr.blame(reference, candidate, [case])),
    }
    with fault.planted(candidate):
        for number in range(config.repeats + 1):
            say(f"round {number} of {config.repeats}")
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                if number:  # round 0 warms up
                    samples[name].append(time.perf_counter() - began)
        say("memory")
        one_run = activation_bytes(model, ids)
        blame_bytes = peak_extra_bytes(lambda: tr.blame(reference, candidate, [case]))
    timings = {name: Timing.of(values) for name, values in samples.items()}
    ratios = {
        "blame / one forward": ratio(timings["blame"], timings["one forward"]),
        "A/A noise": ratio(timings["one forward (A/A)"], timings["one forward"]),
    }
    return {
        "arms": timings_json(timings),
        "ratios": ratios_json(ratios),
        "bytes": {
            "all activations of one run": one_run,
            "blame, peak": blame_bytes,
        },
        "named": str(found[-1]),
        "bars": [
            at_most("blame / one forward", ratios["blame / one forward"].median, TIME_BAR),
            at_most("peak of blame / all activations of one run", blame_bytes / one_run, MEMORY_BAR),
        ],
    }


def activation_bytes(model: tr.Model, ids: Sequence[int]) -> int:
    """Bytes of the outputs of all modules of one forward, what a plain dump of one side holds."""
    held: dict[int, Tensor] = {}

    def hook(_part: Any, _args: Any, output: Any) -> None:
        held.update({id(t): t for t in flatten(output)})

    with ExitStack() as undo, torch.inference_mode():
        for part in model.core.modules():
            undo.callback(part.register_forward_hook(hook).remove)
        model.core(input_ids=torch.tensor([list(ids)]), use_cache=False, logits_to_keep=1)
    return sum(t.numel() * t.element_size() for t in held.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    return run("blame_cost", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
