"""Casebook: softmax in half precision, and the logits of a whole prompt in float32. About 15 seconds.

python examples/half_precision_logits.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import twinrun as tr
from twinrun.bench.memory import peak_extra_bytes
from twinrun.faults.fault import candidate_for
from twinrun.faults.registry import get_fault
from twinrun.numerics.blocks import BLOCK_BYTES, HEAD_BLOCKS, block_bounds
from twinrun.numerics.divergence import kl_of_rows, token_stats

TEXT = "Tom has 3 apples and buys 4 more. How many apples does Tom have?\n3 + 4 = 7"
PROMPT_TOKENS, VOCAB = 131_072, 151_936
MEASURED_TOKENS, WIDTH = (256, 512), 16
WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "log_softmax": lambda x: torch.log_softmax(x, dim=-1),
    "softmax, then log": lambda x: torch.softmax(x, dim=-1).log(),
    "exp / sum, then log": lambda x: (x.exp() / x.exp().sum(dim=-1, keepdim=True)).log(),
}
ROWS = [
    ("float32", "float32", "log_softmax"),
    ("bfloat16", "float32", "log_softmax"),
    ("float16", "float32", "log_softmax"),
    ("bfloat16", "bfloat16", "log_softmax"),
    ("float16", "float16", "log_softmax"),
    ("float16", "float16", "softmax, then log"),
    ("float16", "float16", "exp / sum, then log"),
]
"""Precision of the head, precision of the softmax, and how it is written."""


def print_limits() -> None:
    """Where float16 ends, found by trying all of its numbers."""
    every = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16)  # zero and all positive finite ones
    last = float(every[every.exp().isfinite()].max())
    following = float(every[every > last].min())
    print(f"exp({last}) = {float(torch.tensor(last).half().exp()):.0f}, exp({following}) = inf")
    for probability in (6e-8, 3.1e-8, 2.9e-8):
        kept = torch.softmax(torch.tensor([probability, 1 - probability]).double().log().half(), dim=0)[0]
        print(f"probability {probability:.1e} is kept as {float(kept):.2e}, its log {float(kept.log()):.2f}")


def print_errors(model: tr.Model) -> None:
    """Errors of every log-probability of the text, against float64 from the same hidden states."""
    hidden, head = hidden_states(model), model.layout.head.weight
    exact = torch.log_softmax(hidden.double() @ head.double().T, dim=-1)
    print(
        f"{'head':<9} {'softmax':<9} {'written as':<20} {'max':>8} {'mean':>8} {'KL':>8}   -inf  NaN  same top"
    )
    for head_dtype, softmax_dtype, way in ROWS:
        precise = getattr(torch, head_dtype)
        logits = (hidden.to(precise) @ head.to(precise).T).to(getattr(torch, softmax_dtype))
        found = WAYS[way](logits).double()
        error = (found - exact).abs()
        kl = kl_of_rows(exact.clone(), found.clone()).mean()
        same = (found.argmax(-1) == exact.argmax(-1)).double().mean()
        print(
            f"{head_dtype:<9} {softmax_dtype:<9} {way:<20} {error.max():8.1e} {error.mean():8.1e} {kl:8.1e} "
            f"{int(found.isneginf().sum()):>6} {int(found.isnan().sum()):>4} {same:9.0%}"
        )
    print(f"{exact.numel()} log-probabilities, the smallest {exact.min():.1f}")


def hidden_states(model: tr.Model) -> Tensor:
    """What enters the head, `[tokens, width]`."""
    caught: list[Tensor] = []
    hook = model.layout.head.register_forward_pre_hook(lambda _module, args: caught.append(args[0][0]))
    try:
        model.model(input_ids=torch.tensor([model.encode(TEXT)]))
    finally:
        hook.remove()
    return caught[0]


def print_arithmetic() -> None:
    """Bytes of the logits of one prompt; nothing is allocated."""
    block = next(stop for _, stop in block_bounds(PROMPT_TOKENS, VOCAB, BLOCK_BYTES))
    called = HEAD_BLOCKS * block
    sizes = [
        ("whole prompt, half precision", PROMPT_TOKENS, 2),
        ("its float32 copy", PROMPT_TOKENS, 4),
        ("last row, float32", 1, 4),
        (f"streamed: {called} rows of the head, half", called, 2),
        (f"streamed: {block} rows of softmax, float32", block, 4),
    ]
    for what, rows, size in sizes:
        total = rows * VOCAB * size
        print(f"{what:<42} {rows:>6} x {VOCAB} x {size} = {total:>14,} bytes = {total / 1e9:9.4f} GB")


class Head:
    """Rows of logits of a head with random weights, computed when asked for."""

    vocab_size = VOCAB

    def __init__(self, num_rows: int) -> None:
        """Draw hidden states and weights."""
        self.num_rows, source = num_rows, torch.Generator().manual_seed(0)
        self.hidden = torch.randn(num_rows, WIDTH, generator=source).bfloat16()
        self.weight = torch.randn(VOCAB, WIDTH, generator=source).bfloat16()

    def rows(self, start: int, stop: int) -> Tensor:
        """Logits `[stop - start, vocab]` in bfloat16."""
        return self.hidden[start:stop] @ self.weight.T


def whole(head: Head, next_ids: Tensor) -> Tensor:
    """Log-probability of each next token, the usual way."""
    logprobs = torch.log_softmax(head.rows(0, head.num_rows).float(), dim=-1)
    return logprobs.gather(1, next_ids[:, None])[:, 0]


def streamed(head: Head, next_ids: Tensor) -> Tensor:
    """The same numbers, a block of rows at a time."""
    return token_stats(head, next_ids, top_k=1).logprob


def peak_of(way: Callable[[Head, Tensor], Tensor], tokens: int) -> tuple[float, Tensor]:
    """Peak memory in MB above what was there before, and what came out."""
    head, next_ids, found = Head(tokens), torch.arange(tokens), list[Tensor]()
    return peak_extra_bytes(lambda: found.append(way(head, next_ids))) / 1e6, found[0]


def print_peaks() -> None:
    """Both ways at sizes that fit everywhere."""
    for tokens in MEASURED_TOKENS:
        (wide_mb, usual), (narrow_mb, ours) = (peak_of(way, tokens) for way in (whole, streamed))
        apart = float((usual - ours).abs().max())
        print(
            f"{tokens} tokens: whole {wide_mb:.1f} MB, streamed {narrow_mb:.1f} MB, at most {apart:.0e} nats apart"
        )


def print_verdicts() -> None:
    """The same bug as a planted fault, and the sound runner beside it."""
    fault = get_fault("softmax-in-half")
    model = tr.load("builtin:expert", dtype="float16")
    reference, candidate = tr.Recompute(model), candidate_for(fault, model)
    print(f"sound: {tr.verify(reference, candidate, [TEXT])}")
    with fault.planted(candidate):
        verdict = tr.verify(reference, candidate, [TEXT])
    print(f"planted: {verdict}")
    if verdict.culprit is not None:
        print(f"blame ({verdict.culprit.kind}): {verdict.culprit}")


@torch.inference_mode()
def main() -> None:
    """Print the five parts of the page."""
    torch.set_num_threads(1)
    print("-- where float16 ends")
    print_limits()
    print("\n-- log-probabilities of builtin:expert over a text, nats away from float64")
    print_errors(tr.load("builtin:expert", dtype="float32"))
    print(f"\n-- logits of {PROMPT_TOKENS} tokens, vocabulary {VOCAB}")
    print_arithmetic()
    print("\n-- peak memory, measured")
    print_peaks()
    print("\n-- verdicts on builtin:expert in float16, with and without softmax-in-half")
    print_verdicts()


if __name__ == "__main__":
    main()
