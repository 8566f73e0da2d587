"""What the decode scripts share: arms with a forced length, a sampled recompute, read bandwidth, bytes a token."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _record import say
from torch import nn
from transformers.utils import logging as hf_logging

import twinrun as tr
from twinrun.bench.timing import Timing, interleave
from twinrun.models.int8 import Int8Linear
from twinrun.runners.forward import forward
from twinrun.runners.runner import ModelRunner

Arm = Callable[[], Any]
INT8_BUDGET = {"kl": 0.01}
"""What rounding weights to int8 may cost: mean KL in nats a position. On random weights top tokens are near ties, so
their share stands in the record (`top1_agreement`) and is not bounded."""
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


def bandwidth_arms(device: str, gigabytes: float) -> tuple[dict[str, Arm], int]:
    """Reads of memory much larger than a cache, two ways: a sum, and a matrix times a vector. Also their bytes."""
    rows = max(1, int(gigabytes * 1e9 / 4 / 4096))
    matrix = torch.ones(rows, 4096, device=device)
    vector = torch.ones(4096, device=device)
    return {
        "read: sum": lambda: matrix.sum(),
        "read: matrix times vector": lambda: torch.mv(matrix, vector),
    }, matrix.numel() * 4


def measure_bandwidth(device: str, gigabytes: float, repeats: int) -> dict[str, Any]:
    """Read bandwidth in bytes a second: the better of both ways, each the median of its rounds."""
    say(f"read bandwidth over {gigabytes:g} GB")
    arms, size = bandwidth_arms(device, gigabytes)
    with torch.inference_mode():
        timings = interleave(arms, repeats=repeats)
    rates = {name: size / timings[name].seconds_median for name in arms}
    return {
        "bytes_read": size,
        "bytes_per_second_by_way": rates,
        "bytes_per_second": max(rates.values()),
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


def step_costs(runs: dict[str, tr.Run]) -> dict[str, Any]:
    """Seconds that fast steps took before they were fast, and how many steps they ran, by arm."""
    keys = ("step", "capture_seconds", "compile_seconds", "steps_replayed")
    return {name: {k: run.settings[k] for k in keys if k in run.settings} for name, run in runs.items()}
