"""What the candidate's model was handed: token ids, position ids, masks, cache lengths. Identity before numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from twinrun.verify.activations import Activations
from twinrun.verify.culprit import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something handed over that is not what the reference was handed."""

    kind: Kind
    row: int
    position: int
    text: str
    module: str | None = None
    order: int = -1
    """When the module that got it finished; -1 for what the whole model was handed."""


def findings(reference: Activations, candidate: Activations) -> list[Finding]:
    """Everything that was handed over differently, the earliest position first; at one position the earliest module."""
    found = [
        *_ids(candidate),
        *_cache(candidate),
        *_unread(reference, candidate),
        *_positions(reference, candidate),
        *_masks(reference, candidate),
    ]
    return sorted(found, key=lambda f: (f.row, f.position, f.order))


def _ids(candidate: Activations) -> Iterator[Finding]:
    for forward in candidate.forwards:
        for row, (position, token) in forward.strays.items():
            right = candidate.rows[row].tokens
            steps = candidate.rows[row].step_of
            if position < len(right) and steps is not None and int(steps[position]) >= 0:
                continue  # fed rightly by another forward (a rejected draft, say)
            there = (
                f"where the text has {right[position]}"
                if position < len(right)
                else "behind the end of the text"
            )
            yield Finding(
                kind="input ids",
                row=row,
                position=min(position, len(right) - 1),
                text=f"the model was fed id {token} {there}",
            )


def _cache(candidate: Activations) -> Iterator[Finding]:
    caches = [name for name in candidate.order if name in candidate.attentions]
    for forward in candidate.forwards:
        for row, (claimed, told) in forward.behind.items():
            yield Finding(
                kind="cache",
                row=row,
                position=told,
                module=next(iter(caches), None),
                text=f"the cache holds {claimed} tokens where {told} came before",
            )
        lengths = set(forward.cache)
        if len(lengths) > 1:
            usual = max(lengths, key=forward.cache.count)
            layer = next(i for i, n in enumerate(forward.cache) if n != usual)
            for row, start in enumerate(forward.starts):
                yield Finding(
                    kind="cache",
                    row=row,
                    position=max(0, start),
                    module=caches[layer] if len(caches) == len(forward.cache) else None,
                    text=f"the cache of layer {layer} holds {forward.cache[layer]} tokens, the others {usual}",
                )


def _unread(reference: Activations, candidate: Activations) -> Iterator[Finding]:
    """Positions that the reference computes from a pruned cache and the candidate from the text, without one."""
    caches = [name for name in candidate.order if name in candidate.attentions]
    # Of a reference whose rows ran one by one the forwards of the first are known.
    for number, (ours, theirs) in enumerate(zip(reference.rows[:1], candidate.rows[:1], strict=True)):
        if ours.step_of is None or theirs.step_of is None:
            continue
        for at, (right, given) in enumerate(zip(ours.step_of.tolist(), theirs.step_of.tolist(), strict=True)):
            if min(right, given) < 0:
                continue
            told, run = reference.forwards[right], candidate.forwards[given]
            if not any(told.cache) or not any(told.dropped) or any(run.cache):
                continue
            layer = next(i for i, n in enumerate(told.dropped) if n)
            yield Finding(
                kind="cache",
                row=number,
                position=at,
                module=caches[layer] if len(caches) == len(told.dropped) else None,
                text=f"the pruned cache is not read: {run.width} tokens are run anew without it, where the reference "
                f"reads {told.cache[layer] - told.dropped[layer]} keys in layer {layer}",
            )
            break


def _positions(reference: Activations, candidate: Activations) -> Iterator[Finding]:
    for number, (ours, theirs) in enumerate(zip(reference.rows, candidate.rows, strict=True)):
        if ours.position_ids is None or theirs.position_ids is None:
            continue
        known = (ours.position_ids >= 0) & (theirs.position_ids >= 0)
        for at in (known & (ours.position_ids != theirs.position_ids)).nonzero()[:, 0].tolist()[:1]:
            given, right = int(theirs.position_ids[at]), int(ours.position_ids[at])
            yield Finding(
                kind="positions",
                row=number,
                position=at,
                text=f"the model was handed position id {given} for the token at {at}"
                + ("" if right == at else f", the reference {right}"),
            )


def _masks(reference: Activations, candidate: Activations) -> Iterator[Finding]:
    order = {name: i for i, name in enumerate(candidate.order)}
    for number, (ours, theirs) in enumerate(zip(reference.rows, candidate.rows, strict=True)):
        for module, keys in theirs.keys.items():
            right = ours.keys.get(module)
            if right is None:
                continue
            wrong = ((right >= 0) & (keys >= 0) & (right != keys)).nonzero()[:, 0].tolist()
            for at in wrong[:1]:
                yield Finding(
                    kind="mask",
                    row=number,
                    position=at,
                    module=module,
                    order=order.get(module, 0),
                    text=f"its query may attend to {int(keys[at])} keys where the reference's sees {int(right[at])}",
                )
