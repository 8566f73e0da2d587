"""What the decode scripts share: arms with a forced length, a sampled recompute, read bandwidth, bytes a token."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from _record import say
from torch import nn
from transformers.utils import logging as hf_logging

import twinrun as tr
from twinrun.bench.timing import AGAIN, Timing, ratio
from twinrun.models.int8 import Int8Linear
from twinrun.runners.forward import forward
from twinrun.runners.runner import ModelRunner

Arm = Callable[[], Any]
INT8_BUDGET = {"kl": 0.01}
"""What rounding weights to int8 may cost: mean KL in nats a position. On random weights top tokens are near ties, so
their share stands in the record (`top1_agreement`) and is not bounded."""
WIDE = (768, 50_176)
"""Matrices of the widest reading: as deep as GPT-2 is wide, as wide as its vocabulary, in whole rows of 4,096."""
PASSES = 4
"""Passes over the buffer in one timed reading: a quarter of a second on two cores."""
hf_logging.set_verbosity_error()


def theirs(module: nn.Module, ids: Sequence[int], new_tokens: int, **settings: Any) -> Arm:
    """Transformers' own greedy `generate`, forced to `new_tokens`."""
    inputs = torch.tensor([list(ids)], device=next(module.parameters()).device)
    chosen = {"max_new_tokens": new_tokens, "min_new_tokens": None, "do_sample": False, "pad_token_id": 0}
    generate: Any = module.generate

    def run() -> Any:
        with torch.inference_mode():
            out = generate(
                inputs, attention_mask=torch.ones_like(inputs), eos_token_id=None, **chosen, **settings
            )
        assert out.shape[1] == len(ids) + new_tokens, "generate stopped early"
        return out

    return run


def ours(runner: ModelRunner, ids: Sequence[int], new_tokens: int) -> Arm:
    """Our greedy loop, forced to `new_tokens`."""

    def run() -> Any:
        found = runner.generate(list(ids), new_tokens, stop_at_eos=False)
        assert found.new_tokens == new_tokens, "the run stopped early"
        why = found.settings.get("step_fallback")
        assert why is None, f"the fast step was not used: {why}"
        return found

    return run


class SampledRecompute:
    """Forwards of one draw of prefix lengths, one from each of equal strata, over at most the last `window` tokens."""

    def __init__(
        self, model: tr.Model, start: int, new_tokens: int, *, strata: int, window: int, seed: int
    ) -> None:
        self._model, self._window, self._pick = model, window, random.Random(seed)
        self._ids = torch.randint(
            model.vocab_size, (1, start + new_tokens), generator=torch.Generator().manual_seed(seed)
        ).to(model.device)
        self._lengths = range(start, start + new_tokens)
        self.strata = min(strata, new_tokens)
        self.size = new_tokens / self.strata

    def __call__(self) -> None:
        """Run one draw: the model's own forward, logits of the last position, nothing else."""
        with torch.inference_mode():
            for k in range(self.strata):
                low, high = int(k * self.size), max(int(k * self.size) + 1, int((k + 1) * self.size))
                length = self._lengths[self._pick.randrange(low, high)]
                forward(self._model, self._ids[:, max(0, length - self._window) : length])

    def scale(self, timing: Timing) -> Timing:
        """Turn times of draws into estimates of the time of all forwards."""
        return Timing.of([seconds * self.size for seconds in timing.samples])


def bytes_per_token(model: tr.Model, context: int) -> int:
    """Bytes that one decode step must read: weights but looked-up tables, keys and values of `context` tokens."""
    core, config = model.core, model.config
    head: Any = model.layout.head
    kept = set() if isinstance(head, Int8Linear) else {id(head.weight)}
    tables = {id(m.weight) for m in core.modules() if isinstance(m, nn.Embedding)} - kept
    weights = {id(p): p for p in core.parameters() if id(p) not in tables}
    weights |= {id(b): b for m in core.modules() if isinstance(m, Int8Linear) for b in m.buffers()}
    total = sum(p.numel() * p.element_size() for p in weights.values())
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv = 2 * config.num_hidden_layers * kv_heads * head_dim * model.dtype.itemsize
    return total + kv * context


def reading_arms(device: str, gigabytes: float) -> tuple[dict[str, Arm], int]:
    """Reads of memory larger than a cache, three ways, to be timed in turns with what is held against them.

    A sum; a matrix with rows of 4,096 times a vector; a vector times matrices as wide as a vocabulary, whose long rows
    were the fastest to read of a dozen shapes. Also returns the bytes that one call of each reads.
    """
    deep, wide = WIDE
    count = max(1, round(gigabytes * 1e9 / 4 / deep / wide))
    buffer = torch.ones(count * deep * wide, device=device)
    rows, matrices = buffer.view(-1, 4096), buffer.view(count, deep, wide)
    long, short = torch.ones(4096, device=device), torch.ones(1, deep, device=device)
    out = torch.empty(1, wide, device=device)
    ways: dict[str, Arm] = {
        "read: sum": lambda: buffer.sum(),
        "read: matrix times vector": lambda: torch.mv(rows, long),
        "read: vector times wide matrices": lambda: [torch.mm(short, m, out=out) for m in matrices],
    }
    return {name: _repeated(way) for name, way in ways.items()}, PASSES * buffer.numel() * 4


def _repeated(way: Arm) -> Arm:
    def run() -> None:
        with torch.inference_mode():
            for _ in range(PASSES):
                way()

    return run


def ceiling(timings: Mapping[str, Timing], num_bytes: int) -> dict[str, Any]:
    """Read bandwidth in bytes a second: each way the median of its rounds, and the median of the rounds' best."""
    ways = {name: t for name, t in timings.items() if name.startswith("read: ") and not name.endswith(AGAIN)}
    return {
        "bytes_read": num_bytes // PASSES,
        "bytes_per_second_by_way": {name: num_bytes / t.seconds_median for name, t in ways.items()},
        "bytes_per_second": num_bytes / _least(timings).seconds_median,
    }


def _least(timings: Mapping[str, Timing]) -> Timing:
    """Seconds of the fastest way to read, round by round."""
    ways = [t.samples for name, t in timings.items() if name.startswith("read: ")]
    return Timing.of([min(samples) for samples in zip(*ways, strict=True)])


class DecodeTimes:
    """Seconds of timed runs without their prompts: `keep` is called by `interleave` with every run."""

    def __init__(self) -> None:
        self._prompts: dict[str, list[float]] = {}
        self.steps = 0

    def keep(self, name: str, result: Any) -> None:
        """Note how long the first token of a run of ours took, its prompt's forward included."""
        if isinstance(result, tr.Run):
            self._prompts.setdefault(name, []).append(result.steps[0].seconds)
            self.steps = len(result.steps) - 1

    def share(
        self, name: str, timings: Mapping[str, Timing], read_bytes: int, num_bytes: int
    ) -> dict[str, Any]:
        """Bytes a second that steps must read, over the best reading of the same round: median, p10 and p90.

        Args:
            name: an arm.
            timings: of `interleave`, reading arms among them.
            read_bytes: bytes that a step must read.
            num_bytes: bytes that a reading arm reads.
        """
        wall, prompts = timings[name].samples, self._prompts[name]
        decode = Timing.of([all_ - first for all_, first in zip(wall, prompts, strict=True)])
        at_ceiling = Timing.of([self.steps * read_bytes * s / num_bytes for s in _least(timings).samples])
        found = ratio(at_ceiling, decode)
        return {
            "share_median": found.median,
            "share_p10": found.p10,
            "share_p90": found.p90,
            "seconds_per_token": decode.seconds_median / self.steps,
            "bytes_per_token": read_bytes,
        }


def judged(
    reference: Any,
    candidates: dict[str, Any],
    rows: Sequence[Sequence[int]],
    start: int,
    *,
    budget: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Verdicts of `twinrun.verify` on each way that is timed, over the same texts."""
    cases = [tr.Case(label=f"text {i}", rows=(tuple(r),), starts=(start,)) for i, r in enumerate(rows)]
    found = {}
    for name, candidate in candidates.items():
        say(f"verify: {name}")
        found[name] = tr.verify(reference, candidate, cases, budget=budget, explain=budget is None).to_json()
        del found[name]["env"]  # the record has it once
    return found


def all_pass(verdicts: dict[str, Any]) -> dict[str, Any]:
    """A bar: every verdict is identical or equivalent."""
    good = sum(v["verdict"] in ("identical", "equivalent") for v in verdicts.values())
    bar = {"name": "verdicts identical or equivalent", "unit": "verdicts", "value": good}
    return {**bar, "at_least": len(verdicts), "passed": good == len(verdicts)}


def lossy_passes(verdicts: dict[str, Any]) -> dict[str, Any]:
    """A bar: of what is lossy by design every verdict is lossy inside its budget, or better."""
    good = sum(v["verdict"] in ("identical", "equivalent", "lossy") for v in verdicts.values())
    bar = {
        "name": "int8 weights: verdicts lossy inside the budget, or better",
        "unit": "verdicts",
        "value": good,
    }
    return {**bar, "at_least": len(verdicts), "passed": good == len(verdicts)}


def step_costs(runs: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds that fast steps took before they were fast, and how many steps they ran, by arm of ours."""
    keys = ("step", "capture_seconds", "compile_seconds", "steps_replayed")
    return {
        name: {k: run.settings[k] for k in keys if k in run.settings}
        for name, run in runs.items()
        if isinstance(run, tr.Run)
    }
