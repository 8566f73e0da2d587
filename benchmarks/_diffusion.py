"""What the diffusion scripts share: the settings that are compared, decodes as arms, and seconds from sampled steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from _record import say

import twinrun as tr
from twinrun.bench.timing import Timing

PLAIN = "plain"
FAST = "dual, threshold 0.9"
BUDGET = {"kl": 0.1, "top1": 0.9}
RULES = {"": tr.Quota(), ", threshold 0.9": tr.Threshold(0.9), ", factor 1": tr.Factor(1.0)}
EARLY = ", early stop"


def caches(layers: int) -> dict[str, dict[str, Any]]:
    """Caches by name, without a commit rule; `layers` is the depth of the model."""
    return {
        PLAIN: {},
        "prefix": {"cache": "prefix"},
        "dual": {"cache": "dual"},
        "dual, refresh every 2": {"cache": "dual", "refresh_every": 2},
        "dual, refresh every 4": {"cache": "dual", "refresh_every": 4},
        "dual, token skip": {
            "cache": "dual",
            "skip": tr.TokenSkip(layer_k=max(2, layers // 3), threshold=0.99),
        },
    }


def settings(layers: int) -> dict[str, dict[str, Any]]:
    """Every cache with every commit rule (refreshes and skip without factor); the first is plain, one token a step."""
    return {
        f"{cache}{rule}": {**how, "commit": commit}
        for cache, how in caches(layers).items()
        for rule, commit in RULES.items()
        if len(how) < 2 or not isinstance(commit, tr.Factor)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Canvases that an arm fills in, one after the other, each prompt alone."""

    prompts: Sequence[Sequence[int]]
    room: int
    block: int
    early_stop: bool = False

    def decode(self, runner: tr.Diffusion) -> list[tr.DiffusionRun]:
        """Fill in every canvas to its end."""
        return [runner.generate(list(p), self.room, early_stop=self.early_stop) for p in self.prompts]

    def sample(self, runner: tr.Diffusion) -> list[tr.DiffusionRun]:
        """Fill in the middle block of every canvas in two steps: 16 of 32 open in the second, as on average.

        The text before it is made of the prompt's own ids: what a step costs depends on numbers of tokens alone.
        """
        half = replace(runner.settings, commit=tr.Quota(2))
        short = tr.Diffusion(
            runner.model, **{k: getattr(half, k) for k in ("block_length", "commit", "cache", "skip")}
        )
        done = self.room // self.block // 2 * self.block
        return [
            short.generate(
                _filled(p, done), self.room - done, early_stop=False, observe=lambda s: s.index >= 1
            )
            for p in self.prompts
        ]


def _filled(prompt: Sequence[int], count: int) -> list[int]:
    own = list(prompt) * (count // len(prompt) + 1)
    return [*prompt, *own[:count]]


@dataclass(slots=True)
class StepCosts:
    """Seconds of a full step and of a step of the cache, from two-step decodes; one sum over the prompts."""

    full: float
    later: float

    @classmethod
    def of(cls, runs: Sequence[tr.DiffusionRun]) -> StepCosts:
        """Read them off sampled decodes; without a cache both are the second step's, whose head sees half a block."""
        later = sum(run.steps[1].seconds for run in runs)
        first = sum(run.steps[0].seconds for run in runs)
        return cls(full=later if runs[0].steps[1].full else first, later=later)

    def seconds(self, work: Work, per_step: int, refresh_every: int | None = None) -> float:
        """Estimate a whole decode of `per_step` tokens a step."""
        full, later = forwards(work, per_step, refresh_every)
        return full * self.full + later * self.later


def forwards(work: Work, per_step: int, refresh_every: int | None) -> tuple[int, int]:
    """Full forwards and others of one canvas with a cache, `per_step` tokens a step."""
    steps = -(-work.block // per_step)
    blocks = work.room // work.block
    full = 1 if refresh_every is None else -(-steps // refresh_every)
    return blocks * full, blocks * (steps - full)


def row(
    name: str, work: Work, runs: Sequence[tr.DiffusionRun], timing: Timing, plain: Sequence[tr.DiffusionRun]
) -> dict[str, Any]:
    """One complete decode in numbers. Tokens are counted up to the end of the text, whatever stands behind it."""
    new = sum(run.new_tokens for run in runs)
    agree = sum(a == b for x, y in _texts(runs, plain) for a, b in zip(x, y, strict=False))
    nfe = sum(run.nfe for run in runs)
    return {
        "arm": name, "room": work.room, "block": work.block, "early_stop": work.early_stop, "estimated": False,
        "nfe": nfe, "nfe_full": sum(run.nfe_full for run in runs), "nfe_block": sum(run.nfe_block for run in runs),
        "new_tokens": new, "tokens_per_forward": new / nfe, "seconds_median": timing.seconds_median,
        "tokens_per_second": new / timing.seconds_median, "nfe_by_prompt": [run.nfe for run in runs],
        "tokens_by_prompt": [run.new_tokens for run in runs], "seconds_by_prompt": [run.seconds for run in runs],
        "skip_ratio": runs[0].skip_ratio,
        "same_tokens_as_plain": agree, "plain_tokens": sum(len(y) for _, y in _texts(runs, plain)),
    }  # fmt: skip


def _texts(a: Sequence[tr.DiffusionRun], b: Sequence[tr.DiffusionRun]) -> list[tuple[list[int], list[int]]]:
    return [(x.tokens[0], y.tokens[0]) for x, y in zip(a, b, strict=True)]


def products(model: tr.Model, tokens: int, room: int, repeats: int = 30) -> float:
    """Seconds of the matrix products and the attention of all layers for `tokens` tokens of one row, nothing else.

    Layer by layer on random states, against `room` keys: what a forward would take if all else took no time.
    """
    layers, size = model.layout.layers, int(model.config.hidden_size)
    heads, dim = int(model.config.num_attention_heads), size // int(model.config.num_attention_heads)
    states = torch.randn(tokens, size)
    query, keys = torch.randn(1, tokens, heads, dim).transpose(1, 2), torch.randn(1, room, heads, dim)
    seen, wide = keys.transpose(1, 2), torch.randn(tokens, int(model.config.intermediate_size))
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats):
            began = time.perf_counter()
            for layer in layers:
                for name, part in layer.named_modules():
                    if isinstance(part, torch.nn.Linear):
                        torch.nn.functional.linear(wide if "down" in name else states, part.weight)
                torch.nn.functional.scaled_dot_product_attention(query, seen, seen)
            seconds.append(time.perf_counter() - began)
    return sorted(seconds)[repeats // 2]


def runners(model: tr.Model, block: int, kinds: dict[str, dict[str, Any]]) -> dict[str, tr.Diffusion]:
    """A runner for every setting, by name."""
    return {name: tr.Diffusion(model, block_length=block, **how) for name, how in kinds.items()}


def arms(made: dict[str, tr.Diffusion], call: Callable[[tr.Diffusion], Any]) -> dict[str, Callable[[], Any]]:
    """One call for every runner."""
    return {name: partial(call, runner) for name, runner in made.items()}


def verdicts(
    model: tr.Model,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    block: int,
    kinds: dict[str, Any],
    budget: dict[str, float] = BUDGET,
) -> dict[str, Any]:
    """What `twinrun.verify` says of every cache on given texts, one token a step, inside a budget."""
    case = tr.Case(label="texts", rows=tuple(map(tuple, rows)), starts=tuple(starts))
    found = {}
    for name, how in kinds.items():
        say(f"verify: {name}")
        sides = tr.Diffusion(model, block_length=block), tr.Diffusion(model, block_length=block, **how)
        found[name] = tr.verify(*sides, [case], budget=budget, explain=False).to_json()
        for key in ("env", "cases"):  # the record has the first once; the second is one case
            del found[name][key]
    return found


def all_inside(found: dict[str, Any]) -> dict[str, Any]:
    """A bar: no verdict is `different`."""
    good = sum(v["verdict"] != "different" for v in found.values())
    bar = {"name": "verdicts inside the budget", "unit": "verdicts", "value": good}
    return {**bar, "at_least": len(found), "passed": good == len(found)}
