"""Identity before numbers: both sides must have scored the same tokens at the same positions and vocabulary."""

from __future__ import annotations

from twinrun.records.scores import Scores
from twinrun.records.tokens import first_difference


def misalignment(reference: Scores, candidate: Scores) -> str | None:
    """Return why two rows must not be compared, in words, or None when they line up.

    A misaligned comparison is itself the finding: comparing on would hold position 0 against position 19.
    """
    if reference.tokens != candidate.tokens:
        at = first_difference(reference.tokens, candidate.tokens)
        return (
            f"the sides scored different tokens, first at position {at}: {_at(reference, at)} and "
            f"{_at(candidate, at)}"
        )
    ours, theirs = reference.positions.tolist(), candidate.positions.tolist()
    for step, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return f"step {step} compares position {b} of the candidate with position {a} of the reference"
    if len(ours) != len(theirs):
        return f"the candidate scored {len(theirs)} positions and the reference {len(ours)}"
    if reference.logits.vocab_size != candidate.logits.vocab_size:
        return (
            f"the candidate has {candidate.logits.vocab_size} logits a row and the reference "
            f"{reference.logits.vocab_size}"
        )
    return None


def _at(scores: Scores, index: int) -> str:
    return f"token {scores.tokens[index]}" if index < len(scores.tokens) else "no token"
