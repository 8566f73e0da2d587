"""KL between two models at every position, streamed through their heads, against two whole tables of logits.

1,024 positions, vocabulary 151,936, width 896 (the head of Qwen2.5-0.5B), hidden states and heads in bfloat16.
The whole way is the usual code: both tables of logits, float32 log-softmax, `torch.nn.functional.kl_div`. Bars: the
streamed way needs under 5 % of its extra memory, is not slower, and comes as close to float64.

  python benchmarks/streamed_kl.py                       the full measurement, minutes; the whole way takes 4 GB
  python benchmarks/streamed_kl.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _record import at_most, ratios_json, run, say, timings_json
from _shapes import Pair
from torch import Tensor
from torch.nn import functional

from twinrun.bench.memory import peak_extra_bytes, peak_resident_bytes
from twinrun.bench.timing import interleave, noise, ratio
from twinrun.numerics.blocks import BLOCK_BYTES, HEAD_BLOCKS, block_bounds
from twinrun.numerics.divergence import kl_divergence, kl_of_rows

ABOUT = "KL at every position: streamed through the heads, against two whole tables of logits"
MEMORY_SHARE, TIME_SHARE = 0.05, 1.0
EXACTNESS = 2.0
"""At most twice the error of the usual way, as in the ratio witness of a verdict, with a floor of float32 rounding."""
FLOOR_NATS = 1e-6
STREAMED, WHOLE, IN_PLACE = "streamed", "whole", "whole, in place"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    shape: str = field(default="qwen2.5-0.5b", metadata={"help": "shape whose width and vocabulary are used"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    positions: int = field(default=1024, metadata={"help": "positions compared"})
    repeats: int = field(default=10, metadata={"help": "interleaved rounds"})
    checked_rows: int = field(default=16, metadata={"help": "positions held against float64"})
    distance: float = field(
        default=0.6, metadata={"help": "noise that sets the two models apart, per weight"}
    )
    seed: int = field(default=0, metadata={"help": "of weights and hidden states"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(shape="quick", positions=64, repeats=3, checked_rows=4)


class Ways:
    """The ways to the same numbers."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.p, self.q = pair, pair.p, pair.q

    def streamed(self) -> Tensor:
        """Ours."""
        return kl_divergence(self.p, self.q).kl

    def whole(self) -> Tensor:
        """The usual code."""
        logits_p, logits_q = self.p.rows(0, self.p.num_rows), self.q.rows(0, self.q.num_rows)
        logp, logq = torch.log_softmax(logits_p.float(), -1), torch.log_softmax(logits_q.float(), -1)
        return functional.kl_div(logq, logp, reduction="none", log_target=True).sum(-1).cpu()

    def whole_in_place(self) -> Tensor:
        """Both tables too, with the arithmetic of the streamed way: what blocks alone are worth."""
        logp = torch.log_softmax(self.p.rows(0, self.p.num_rows), -1, dtype=torch.float32)
        logq = torch.log_softmax(self.q.rows(0, self.q.num_rows), -1, dtype=torch.float32)
        return kl_of_rows(logp, logq).cpu()

    def from_hidden_float64(self, rows: list[int]) -> Tensor:
        """Head, softmax and sum in float64: what all ways approximate, the rounding of bfloat16 logits included."""
        sides = zip(self.pair.hidden, self.pair.heads, strict=True)
        return kl_float64(*(h[rows].double() @ w.double().T for h, w in sides))

    def from_logits_float64(self, rows: list[int], bounds: Iterable[tuple[int, int]]) -> Tensor:
        """Softmax and sum in float64 on the bfloat16 logits of these blocks: the rounding of softmax and sum alone."""
        parts = []
        for start, stop in bounds:
            inside = [row - start for row in rows if start <= row < stop]
            if inside:
                parts.append(
                    kl_float64(*(side.rows(start, stop)[inside].double() for side in (self.p, self.q)))
                )
        return torch.cat(parts)


def kl_float64(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL of rows of logits, written plainly."""
    logp, logq = torch.log_softmax(logits_p, -1), torch.log_softmax(logits_q, -1)
    return (logp.exp() * (logp - logq)).sum(-1).cpu()


def agreement(ways: Ways, config: Config) -> dict[str, Any]:
    """Hold the streamed and the whole way against float64 on a few rows, and against each other on all."""
    source = torch.Generator().manual_seed(config.seed)
    rows = torch.randperm(config.positions, generator=source)[: config.checked_rows].sort().values.tolist()
    found = {STREAMED: ways.streamed().double(), WHOLE: ways.whole().double()}
    blocks = {
        STREAMED: list(block_bounds(config.positions, ways.p.vocab_size, HEAD_BLOCKS * BLOCK_BYTES)),
        WHOLE: [(0, config.positions)],
    }
    exact = ways.from_hidden_float64(rows)
    from_logits = {name: ways.from_logits_float64(rows, bounds) for name, bounds in blocks.items()}
    return {
        "positions_checked": rows,
        "kl_mean_nats": found[STREAMED].mean().item(),
        "kl_max_nats": found[STREAMED].max().item(),
        "error_to_float64_from_hidden_max_nats": {name: gap(kl[rows], exact) for name, kl in found.items()},
        "error_to_float64_from_logits_max_nats": {
            name: gap(kl[rows], from_logits[name]) for name, kl in found.items()
        },
        "streamed_to_whole_max_nats": gap(found[STREAMED], found[WHOLE]),
        "same_bits": bool(torch.equal(found[STREAMED], found[WHOLE])),
    }


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference."""
    return (a - b).abs().max().item()


def peaks(arms: dict[str, Callable[[], Tensor]], device: str) -> dict[str, dict[str, int | None]]:
    """Return peak bytes of each arm: tensors, and the process's resident memory as a second witness on a CPU."""
    found: dict[str, dict[str, int | None]] = {}
    for name, arm in arms.items():
        resident = peak_resident_bytes(arm) if device == "cpu" else None
        found[name] = {"tensor_bytes": peak_extra_bytes(arm, device=device), "resident_bytes": resident}
    return found


def measure(config: Config) -> dict[str, Any]:
    """Run all arms; return the measured part of the record."""
    say(f"drawing two heads of {config.shape} on {config.device}")
    pair = Pair(config.shape, config.positions, config.distance, device=config.device, seed=config.seed)
    ways = Ways(pair)
    arms = {STREAMED: ways.streamed, WHOLE: ways.whole, IN_PLACE: ways.whole_in_place}
    with torch.inference_mode():
        say(f"{config.repeats} rounds of {len(arms) + 1} runs")
        timings = interleave(arms, repeats=config.repeats)
        say("peak memory")
        memory = peaks(arms, config.device)
        say("float64")
        agreed = agreement(ways, config)
    ratios = {
        "streamed / whole": ratio(timings[STREAMED], timings[WHOLE]),
        "streamed / whole, in place": ratio(timings[STREAMED], timings[IN_PLACE]),
        "A/A noise": noise(timings),
    }
    return {
        "vocab_size": pair.p.vocab_size,
        "width": pair.hidden[0].shape[1],
        "rows_a_block": next(block_bounds(config.positions, pair.p.vocab_size))[1],
        "rows_a_head_call": next(
            block_bounds(config.positions, pair.p.vocab_size, HEAD_BLOCKS * BLOCK_BYTES)
        )[1],
        "arms": timings_json(timings),
        "ratios": ratios_json(ratios),
        "peak_extra": memory,
        "agreement": agreed,
        "bars": _bars(memory, ratios["streamed / whole"].median, agreed),
    }


def _bars(memory: dict[str, Any], time_share: float, agreed: dict[str, Any]) -> list[dict[str, Any]]:
    """Memory counts twice: as tensors, and as the kernel saw the process grow, where it says so."""
    bars = []
    for key, label in (("tensor_bytes", "tensors"), ("resident_bytes", "resident memory")):
        ours, theirs = memory[STREAMED][key], memory[WHOLE][key]
        if ours is not None and theirs:
            bars.append(
                at_most(f"extra peak memory, streamed over whole, {label}", ours / theirs, MEMORY_SHARE)
            )
    bars.append(at_most("time, streamed over whole", time_share, TIME_SHARE))
    for source in ("hidden", "logits"):
        error = agreed[f"error_to_float64_from_{source}_max_nats"]
        limit = max(EXACTNESS * error[WHOLE], FLOOR_NATS)
        bars.append(
            at_most(f"largest error to float64 from the same {source}", error[STREAMED], limit, unit="nats")
        )
    return bars


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("streamed_kl", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
