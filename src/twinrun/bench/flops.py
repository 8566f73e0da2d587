"""Floating-point operations of a run, counted by torch as it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from twinrun.bench.passage import run_forced


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Operations of one run (a multiplication and an addition are two). Zero where no torch operator ran."""

    prefill: int
    token_first: int
    """Of the first token after the prompt's."""
    token_last: int | None
    """Of the last; None where a prompt of nearly the whole text does not run (memory, say)."""

    @property
    def reached_end(self) -> bool:
        """Whether the last token was counted, or the prompt's is the last."""
        return self.token_last is not None

    @property
    def token_mean(self) -> float:
        """Of a decoded token on average: the count grows linearly with the text, but for a small square term.

        Without the last token's count it is that of the first, a little too small.
        """
        return (self.token_first + (self.token_first if self.token_last is None else self.token_last)) / 2


def counter() -> FlopCounterMode:
    """Return torch's counter with what it lacks: fused attention on a CPU is not in its table (torch 2.13).

    Matrix products and attention are counted, nothing else. Attention counts every query with every key it
    is given, the masked half of a causal prompt included, as torch does for all its attention kernels.
    """
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: _attention})


def count_flops(runner: Any, ids: Sequence[int], length: int, new_tokens: int) -> Flops:
    """Count one run: its prompt, its first and its last token.

    Args:
        runner: anything that `run_forced` takes.
        ids: at least `length + new_tokens` token ids.
        length: prompt tokens, at least 1.
        new_tokens: tokens of the whole run.

    Cost: at most three forwards over the prompt and four single tokens, under a Python dispatch mode.

    Example:
        >>> count_flops(KVCache(load("builtin:amateur")), list(range(5, 30)), 8, 4).token_first > 500_000
        True
    """
    first = _steps(runner, ids[:length], new_tokens)
    if new_tokens == 1:
        return Flops(prefill=first[0], token_first=0, token_last=0)
    # Two tokens before its end the run is set up anew, so that its second token is the last.
    try:
        last = first if new_tokens < 3 else _steps(runner, ids[: length + new_tokens - 2], 2)
    except Exception:  # a longer prompt than the one that is timed: its failure is not the timed run's
        return Flops(prefill=first[0], token_first=first[1], token_last=None)
    return Flops(prefill=first[0], token_first=first[1], token_last=last[1])


def _steps(runner: Any, ids: Sequence[int], new_tokens: int) -> list[int]:
    """Operations of the first two steps of a run."""
    totals = [0]
    with counter() as counted:
        run_forced(
            runner, ids, new_tokens, stop_after=2, on_step=lambda _: totals.append(counted.get_total_flops())
        )
    return [b - a for a, b in pairwise(totals)]


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]  # unannotated there
