"""What recording a trace costs: a traced run over the same run untraced, in memory and to disk.

Bar: at most 1.10 at the default level, also for two ways to fill in a canvas. Also checked: how long it takes from a
different token to a named module.

  python benchmarks/trace_cost.py                       some minutes
  python benchmarks/trace_cost.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _record import at_most, ratios_json, run, say, timings_json

import twinrun as tr
from twinrun.bench.timing import interleave, noise, ratio
from twinrun.faults.fault import candidate_for
from twinrun.faults.registry import get_fault
from twinrun.trace.canvas_recorder import CanvasRecorder
from twinrun.trace.canvas_run import blank_side
from twinrun.trace.canvas_watch import watching_layers
from twinrun.trace.journal import Journal
from twinrun.trace.recorder import Level, Recorder, tracing

ABOUT = "time of a traced run over the same run untraced; time from a planted fault to the module's name"
BAR, BLAME_BAR_SECONDS = 1.10, 60.0
RUNNERS: dict[str, Callable[[tr.Model], Any]] = {"kv-cache:dynamic": tr.KVCache, "recompute": tr.Recompute}
CANVASES: dict[str, Callable[[tr.Model], Any]] = {
    "diffusion": tr.Diffusion,
    "diffusion:dual+skip": lambda m: tr.Diffusion(
        m, cache="dual", skip=tr.TokenSkip.for_depth(m.config.num_hidden_layers)
    ),
}
PROMPT = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    model: str = field(default="builtin:expert", metadata={"help": "model"})
    new_tokens: int = field(default=128, metadata={"help": "tokens of a run"})
    canvas_model: str = field(default="builtin:diffusion", metadata={"help": "model that fills in a canvas"})
    canvas_tokens: int = field(default=128, metadata={"help": "masks of a canvas"})
    repeats: int = field(default=15, metadata={"help": "timed rounds"})
    fault: str = field(default="value-scale-off", metadata={"help": "fault to be named"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(model="builtin:amateur", new_tokens=6, canvas_tokens=32, repeats=2)


def arms(side: Any, config: Config, folder: Path) -> dict[str, Callable[[], object]]:
    """The same greedy run untraced, traced at two levels, and traced to disk."""
    model = side.model
    ids = model.encode(PROMPT)
    count = 0

    def plain() -> object:
        return side.generate(ids, config.new_tokens, stop_at_eos=False)

    def traced(level: Level, sink: Callable[[Any], object]) -> object:
        recorder = Recorder(ids, None, level, sink)
        with tracing(side.module, model.layout.layers, recorder):
            return side.generate(ids, config.new_tokens, recorder.observe, stop_at_eos=False)

    def to_disk() -> object:
        nonlocal count
        count += 1
        with closing(Journal(folder / f"{side.name}-{count}".replace(":", "-"))) as journal:
            return traced("fingerprints", journal.add)

    return {
        f"{side.name}, untraced": plain,
        f"{side.name}, steps": lambda: traced("steps", lambda _step: None),
        f"{side.name}, traced": lambda: traced("fingerprints", lambda _step: None),
        f"{side.name}, traced to disk": to_disk,
    }


def canvas_arms(name: str, side: Any, config: Config, folder: Path) -> dict[str, Callable[[], object]]:
    """The same filling of a canvas untraced and traced to disk."""
    model, masks, count = side.model, config.canvas_tokens, 0
    ids = side.encode(model.chat(PROMPT), new_tokens=masks)

    def to_disk() -> object:
        nonlocal count
        count += 1
        place = folder / f"{name}-{count}".replace(":", "-")
        with closing(Journal(place)) as journal, watching_layers(model.layout.layers) as watch:
            blank = blank_side("candidate", side, ids, masks)
            recorder = CanvasRecorder(side, blank, 0, watch, "fingerprints", lambda step: journal.add([step]))
            return side.generate(ids, masks, observe=recorder.observe, probe=recorder, early_stop=False)

    return {
        f"{name}, untraced": lambda: side.generate(ids, masks, early_stop=False),
        f"{name}, traced to disk": to_disk,
    }


def measure(config: Config) -> dict[str, Any]:
    """Time the arms of both runners, then plant a fault and have it named."""
    model = tr.load(config.model, dtype="float32")
    timings: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    bars = []
    with tempfile.TemporaryDirectory() as folder:
        for build in RUNNERS.values():
            side = build(model)
            say(f"timing {side.name}")
            found = interleave(arms(side, config, Path(folder)), repeats=config.repeats)
            timings |= found
            ratios[f"{side.name}, A/A noise"] = noise(found)
            for name in ("steps", "traced", "traced to disk"):
                ratios[f"{side.name}, {name}"] = ratio(
                    found[f"{side.name}, {name}"], found[f"{side.name}, untraced"]
                )
            disk = f"{side.name}, traced to disk"
            bars.append(at_most(f"{disk} / untraced", ratios[disk].median, BAR))
        canvas = tr.load(config.canvas_model, dtype="float32")
        for name, build in CANVASES.items():
            say(f"timing {name}")
            arms_of = canvas_arms(name, build(canvas), config, Path(folder))
            found = interleave(arms_of, repeats=config.repeats)
            timings |= found
            disk = f"{name}, traced to disk"
            ratios[f"{name}, A/A noise"] = noise(found)
            ratios[disk] = ratio(found[disk], found[f"{name}, untraced"])
            bars.append(at_most(f"{disk} / untraced", ratios[disk].median, BAR))
    say(f"planting {config.fault}")
    fault = get_fault(config.fault)
    candidate = candidate_for(fault, model, "kv-cache:dynamic")
    with fault.planted(candidate):
        began = time.perf_counter()
        traced = tr.trace(tr.Recompute(model), candidate, PROMPT, max_new_tokens=min(64, config.new_tokens))
        seconds = time.perf_counter() - began
    bars.append(at_most("from prompt to named module", seconds, BLAME_BAR_SECONDS, "seconds"))
    blame = traced.blame
    return {
        "arms": timings_json(timings),
        "ratios": ratios_json(ratios),
        "named": {"fault": config.fault, "seconds": seconds, "blame": None if blame is None else str(blame)},
        "bars": bars,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    return run("trace_cost", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
