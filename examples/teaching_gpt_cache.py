"""Casebook: a teaching GPT with two bugs in its KV cache, and a text that blamed the training. About 20 seconds.

python examples/teaching_gpt_cache.py
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

import twinrun as tr
from twinrun.faults.fault import broken_copy
from twinrun.faults.registry import get_fault
from twinrun.numerics.divergence import token_stats
from twinrun.runners.runner import ModelRunner

POSITION, MASK = "cached-position-always-zero", "static-cache-without-mask"
CASES: dict[str, tuple[str, ...]] = {
    "sound": (),
    "position 0": (POSITION,),
    "no mask": (MASK,),
    "both": (POSITION, MASK),
}
PROMPT = "Return the number of "
UNSEEN = """\
Read the next line of the file and return it as a string. If the file is empty, an empty string is returned. The
optional argument size is the number of bytes that are read at most; if it is not given, the whole line is read.
"""
"""Written for this example in the manner of the texts that the model was trained on; it has not seen it."""


class Preallocated(tr.KVCache):
    """A cache with a slot for every position the model has, zero-filled, as in the teaching GPT."""

    def new_cache(self, length: int) -> Any:
        """Allocate for the longest text instead of for this one."""
        return super().new_cache(max(length, self.model.max_context or length))


def nats_per_byte(runner: ModelRunner, text: str) -> float:
    """Loss over a text, fed token by token where the runner has a cache."""
    scores = runner.score(runner.model.encode(text), start=1)
    with torch.inference_mode():
        logprob = token_stats(scores.logits, scores.next_ids, top_k=1).logprob
    return -float(logprob[:-1].sum()) / len(text.encode())  # behind the last row comes no token


def main() -> None:
    """Print what a reader of the text saw, and then where it comes from."""
    torch.set_num_threads(1)
    model = tr.load("builtin:gpt", dtype="float32")
    plain, found = tr.Recompute(model), {}
    print(f"prompt {PROMPT!r}; one set of weights in every row\n")
    print(f"{'cache':<10} | nats per byte | {'verdict':<10} | continuation")
    for case, names in CASES.items():
        cached = Preallocated(broken_copy(model), cache="static")
        with ExitStack() as planted:
            for name in names:
                planted.enter_context(get_fault(name).planted(cached))
            loss = nats_per_byte(cached, UNSEEN)
            found[case] = tr.trace(plain, cached, PROMPT, max_new_tokens=24)
        if case == "sound":
            print_row("off", nats_per_byte(tr.SinglePass(model), UNSEEN), "", found[case].reference.text)
        print_row(case, loss, found[case].verdict.verdict, found[case].candidate.text)
    for case, trace in found.items():
        print(f"\n{case}\n  trace: {trace}")
        if trace.blame is not None:
            print(f"  blame ({trace.blame.kind}): {trace.blame}")


def print_row(cache: str, loss: float, verdict: str, text: str) -> None:
    """One line of the table."""
    print(f"{cache:<10} | {loss:13.3f} | {verdict:<10} | {text!r}")


if __name__ == "__main__":
    main()
