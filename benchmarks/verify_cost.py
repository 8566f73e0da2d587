"""What a verdict costs: time of a side's pass one precision up, over its own pass.

Bar: the oracle and the sweep take at most three times the side's own pass ("one up / own"). Beside it, without a bar,
stands the time of both passes over the own pass alone ("both / own"), which is one more. "streamed" is the same with
no room for a raised copy of the weights: they are cast in slices during every forward. A candidate on the weights of
the reference shares its copy.

  python benchmarks/verify_cost.py                       two or three minutes
  python benchmarks/verify_cost.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import transformers
from _record import at_most, ratios_json, run, say, timings_json
from _shapes import random_ids

import twinrun as tr
from twinrun.bench.timing import Timing, ratio
from twinrun.models import model as model_module

ABOUT = "time of a side's pass one precision up over its own pass, with a raised copy and without"
BAR = 3.0
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    layers: int = field(default=8, metadata={"help": "decoder layers"})
    width: int = field(default=512, metadata={"help": "hidden size"})
    vocab: int = field(default=8192, metadata={"help": "vocabulary"})
    tokens: int = field(default=160, metadata={"help": "length of the text"})
    steps: int = field(default=16, metadata={"help": "tokens scored one by one"})
    repeats: int = field(default=7, metadata={"help": "verdicts of each kind"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(layers=2, width=64, vocab=512, tokens=24, steps=4, repeats=2)


def build(config: Config, dtype: torch.dtype) -> tr.Model:
    """Return a Qwen3 with random weights."""
    torch.manual_seed(0)
    shape = transformers.Qwen3Config(
        vocab_size=config.vocab,
        hidden_size=config.width,
        intermediate_size=3 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=config.width // 8,
    )
    make: Any = transformers.AutoModelForCausalLM.from_config
    return tr.load(make(shape, dtype=dtype).eval())


def measure(config: Config) -> dict[str, Any]:
    """Take verdicts in turns and collect the seconds of their four passes."""
    models = {str(dtype).removeprefix("torch."): build(config, dtype) for dtype in DTYPES}
    ids = tuple(random_ids(config.tokens, config.vocab, 1))
    case = tr.Case(label="text", rows=(ids,), starts=(config.tokens - config.steps,))
    seconds: dict[str, list[tuple[float, float]]] = {}
    verdicts = {}
    for number in range(config.repeats + 1):
        say(f"round {number} of {config.repeats}")
        for dtype, model in models.items():
            for way, free in (("raised copy", None), ("streamed", 0)):
                for candidate in (tr.KVCache(model), tr.SinglePass(model)):
                    found = judged(candidate, case, free)
                    verdicts[f"{dtype}, {way}, {candidate.name}"] = found.to_json()
                    sides = {candidate.name: "candidate"}
                    if candidate.kind == "kv-cache":
                        sides["recompute"] = "reference"
                    for name, side in sides.items() if number else ():  # round 0 warms up
                        once = found.seconds[side]
                        up = found.seconds["oracle" if side == "reference" else "candidate_up"]
                        seconds.setdefault(f"{dtype}, {way}, {name}", []).append((once, up))
    own = {key: Timing.of([a for a, _ in found]) for key, found in seconds.items()}
    raised = {key: Timing.of([b for _, b in found]) for key, found in seconds.items()}
    both = {key: Timing.of([a + b for a, b in found]) for key, found in seconds.items()}
    once_more = {key: ratio(raised[key], own[key]) for key in seconds}
    in_all = {key: ratio(both[key], own[key]) for key in seconds}
    bars = [at_most(f"{key}, one up / own", found.median, BAR) for key, found in once_more.items()]
    return {
        "arms": timings_json(
            {
                **{f"{key}, own pass": found for key, found in own.items()},
                **{f"{key}, one up": found for key, found in raised.items()},
            }
        ),
        "ratios": ratios_json(
            {
                **{f"{key}, one up / own": found for key, found in once_more.items()},
                **{f"{key}, both / own": found for key, found in in_all.items()},
            }
        ),
        "verdicts": verdicts,
        "bars": bars,
    }


def judged(candidate: tr.KVCache | tr.SinglePass, case: tr.Case, free: int | None) -> tr.Verdict:
    """Take one verdict against recomputing; with `free=0` no raised copy is made."""
    sides = tr.Recompute(candidate.model), candidate
    if free is None:
        return tr.verify(*sides, [case])
    with mock.patch.object(model_module, "free_bytes", return_value=free):
        return tr.verify(*sides, [case])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    return run("verify_cost", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
