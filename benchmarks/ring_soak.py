"""A ring that is fed 20,000 tokens one by one: do its scores drift, does its memory grow, does it slow down?

Two models: `builtin:gpt` (learned positions; its ring has a slot for each of its 1,024 positions) and
`builtin:amateur` (rotary, a window of 256). For each of them

- a verdict over all 20,000 positions against a plain windowed decoder in `tests/support/plain_window.py`, which has no
  cache and shares no code with the ring, in float32 and one precision up;
- the ring's error against that oracle in its last thousand tokens over that in the thousand behind the first slide;
- resident memory of the process while the ring is fed, from twice the window on;
- seconds for each hundred tokens, early and late.

  python benchmarks/ring_soak.py                       some minutes on one core
  python benchmarks/ring_soak.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from _record import at_most, ratios_json, run, say, timings_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the oracle is that of the tests

import torch

import twinrun as tr
from tests.support.plain_window import PlainWindow
from twinrun.bench.timing import AGAIN, Timing, ratio
from twinrun.tasks.texts import python_docs

ABOUT = "a rolling cache fed token by token: scores, memory and speed after many turns of the ring"
DRIFT, GROWTH_BYTES, SLOWER = 2.0, 4 * 2**20, 1.15
BLOCK = 100
"""Tokens that are timed together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    tokens: int = field(default=20_000, metadata={"help": "tokens fed to each ring"})
    window: int = field(default=256, metadata={"help": "window of the rotary model"})
    learned_window: int = field(default=0, metadata={"help": "window of the learned one; 0 is its table"})
    learned: str = field(default="builtin:gpt", metadata={"help": "a small GPT; its window is its table"})
    rotary: str = field(default="builtin:amateur", metadata={"help": "a decoder of the Llama kind"})
    compared: int = field(default=1000, metadata={"help": "tokens at either end that are compared"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(tokens=600, window=64, learned_window=64, compared=200)


def text_of(model: tr.Model, count: int) -> list[int]:
    """The first `count` tokens of held-out documentation, one text after another."""
    ids: list[int] = []
    for text in python_docs("heldout"):
        ids += model.tokenizer(text)["input_ids"]
        if len(ids) >= count:
            break
    return ids[:count]


def fed(ring: tr.KVCache, ids: list[int], window: int) -> tuple[list[float], list[int], int]:
    """Feed `ids` one by one; return seconds a block, resident bytes after each block, and the bytes of the ring."""
    process = psutil.Process()
    running = ring.open(ids[:1], room=len(ids) - 1)
    seconds, resident = [], []
    for first in range(1, len(ids) - BLOCK + 1, BLOCK):
        began = time.perf_counter()
        for token in ids[first : first + BLOCK]:
            running.feed([[token]])
        seconds.append(time.perf_counter() - began)
        if first >= min(2 * window, len(ids) // 2) and len(seconds) % every(len(ids)) == 0:
            gc.collect()
            resident.append(process.memory_info().rss)
    layers = running._state.cache.layers
    return seconds, resident, sum(t.untyped_storage().nbytes() for r in layers for t in (r.keys, r.values))


def every(tokens: int) -> int:
    """Blocks between two looks at resident memory: about twenty looks in all."""
    return max(1, tokens // BLOCK // 20)


def drift(verdict: tr.Verdict, window: int, compared: int) -> dict[str, float]:
    """Median error against the oracle, one precision up, behind the first slide and at the end."""
    errors = [float(v) for v in verdict.table["gap_up_max"]]
    early, late = errors[window : window + compared], errors[-compared:]
    found = {"nats_early": statistics.median(early), "nats_late": statistics.median(late)}
    return {**found, "nats_late_max": max(late), "late_over_early": found["nats_late"] / found["nats_early"]}


def timings(name: str, seconds: Sequence[float], window: int, compared: int) -> dict[str, Timing]:
    """Blocks behind the first slide and at the end; the double of the first arm is its odd blocks."""
    count = max(2, 2 * (compared // BLOCK // 2))
    first = window // BLOCK + 1
    early, late = seconds[first : first + 2 * count], seconds[-count:]
    arms = {f"{name}: {BLOCK} tokens behind the first slide": early[::2][:count]}
    arms[next(iter(arms)) + AGAIN] = early[1::2][:count]
    arms[f"{name}: {BLOCK} tokens at the end"] = late
    shortest = min(map(len, arms.values()))
    return {key: Timing.of(values[:shortest]) for key, values in arms.items()}


def measure(config: Config) -> dict[str, Any]:
    """Soak both rings."""
    found: dict[str, Any] = {"arms": {}, "ratios": {}, "bars": [], "verdicts": {}, "drift": {}, "memory": {}}
    for name, window in ((config.learned, config.learned_window), (config.rotary, config.window)):
        model = tr.load(name, dtype="float32", device=config.device)
        slots = window or model.max_context or 0
        ids = text_of(model, config.tokens)
        ring = tr.KVCache(model, "rolling", window=slots)
        say(f"{name}: {len(ids)} tokens through a ring of {slots}")
        seconds, resident, ring_bytes = fed(ring, ids, slots)
        growth = max(resident) - resident[0]
        found["memory"][name] = {
            "ring_bytes": ring_bytes,
            "growing_cache_bytes_at_the_end": ring_bytes // slots * len(ids),
            "resident_bytes": resident,
            "resident_growth_bytes": growth,
            "tokens_between_samples": every(len(ids)) * BLOCK,
        }
        arms = timings(name, seconds, slots, config.compared)
        early, again, late = arms.values()
        slower = ratio(late, early)
        found["arms"] |= timings_json(arms)
        found["ratios"] |= ratios_json(
            {f"{name}: A/A noise": ratio(again, early), f"{name}: end over start": slower}
        )
        say(f"{name}: verdict over {len(ids)} positions")
        whole = tr.Case(label="the whole text", rows=(tuple(ids),), starts=(1,))
        verdict = tr.verify(PlainWindow.of(model, slots), ring, [whole], explain=False)
        found["verdicts"][name] = verdict.to_json()
        del found["verdicts"][name]["env"]  # the record has it once
        found["drift"][name] = drift(verdict, slots, config.compared)
        found["bars"] += [
            at_most(
                f"{name}: positions that are not the oracle's", int(not exact(verdict, len(ids))), 0, "count"
            ),
            at_most(
                f"{name}: error at the end over error at the start",
                found["drift"][name]["late_over_early"],
                DRIFT,
            ),
            at_most(f"{name}: growth of resident memory", growth, GROWTH_BYTES, "bytes"),
            at_most(f"{name}: time of a token at the end over the start", slower.median, SLOWER),
        ]
    return found


def exact(verdict: tr.Verdict, positions: int) -> bool:
    """Whether both witnesses were heard over every position and acquit."""
    whole = verdict.positions == positions and verdict.sweep.gap is not None
    return whole and verdict.verdict in ("identical", "equivalent")


def main(argv: Sequence[str] | None = None) -> int:
    torch.set_num_threads(1)
    return run("ring_soak", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
