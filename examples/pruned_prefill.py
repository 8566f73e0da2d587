"""Casebook: a prefill that prunes, and a decode that does not read what it left. About 15 seconds.

python examples/pruned_prefill.py
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import twinrun as tr
from twinrun.bench.flops import counter
from twinrun.errors import TwinrunError
from twinrun.faults.fault import candidate_for
from twinrun.faults.pruning import PRUNED
from twinrun.faults.registry import get_fault

TEXT = (
    "Tom has 3 apples and buys 4 more. Ann has 12 pears, 5 of them green, and gives 2 to Tom. How many apples does "
    "Tom have?"
)
NEW_TOKENS = 24
FAULT = "pruned-prefill-not-decoded"


def print_side(name: str, side: Any, ids: list[int]) -> list[int]:
    """What a side wrote, what its cache held, and what it cost in operations."""
    with counter() as counted:
        run = side.generate(ids, NEW_TOKENS, stop_at_eos=False)
    first, last = run.steps[0].cache_lengths, run.steps[-1].cache_lengths
    print(f"{name:<13} | {counted.get_total_flops() / 1e6:7.0f} million | {first} | {last}")
    return list(run.tokens[0])


def main() -> None:
    """Run the three sides, then ask verdict, blame and trace about the published one."""
    model = tr.load("builtin:expert", dtype="float32")
    ids, fault = model.chat(TEXT), get_fault(FAULT)
    sound: Any = candidate_for(fault, model)
    published: Any = candidate_for(fault, model)
    print(f"prompt of {len(ids)} tokens, {NEW_TOKENS} new ones, {PRUNED}\n")
    print("side          | operations      | cache behind the prompt  | cache behind the last token")
    plain = tr.KVCache(model)
    print_side("no pruning", plain, ids)
    wrote = {"sound": print_side("sound", sound, ids)}
    with fault.planted(published):
        wrote["as published"] = print_side("as published", published, ids)
    for name in ("sound", "as published"):
        first, *rest = wrote[name]
        whole = plain.generate([*ids, first], NEW_TOKENS - 1, stop_at_eos=False).tokens[0]
        same = sum(a == b for a, b in zip(rest, whole, strict=True))
        print(f"{name}: behind its first token {same} of {len(rest)} tokens are those of no pruning")
    for name, side, planted in (("sound", sound, False), ("as published", published, True)):
        print(f"\n{name}, against the pruned runner")
        with fault.planted(side) if planted else nullcontext():
            report(candidate_for(fault, model), side, ids)


def report(trusted: Any, side: Any, ids: list[int]) -> None:
    """Verdict, blame, and where the traces part."""
    case = tr.Case(label="text", rows=((*ids, *ids[:8]),), starts=(len(ids),))
    verdict = tr.verify(trusted, side, [case])
    print(f"  verdict: {verdict.verdict}")
    if verdict.culprit is not None:
        print(f"  blame: {verdict.culprit.sentence}")
    try:
        found = tr.trace(trusted, side, ids, max_new_tokens=4, by=None)
    except TwinrunError as error:
        print(f"  trace: {error}")
    else:
        print(f"  trace: {found}")


if __name__ == "__main__":
    main()
