"""Inputs built from a model's own config that straddle its boundaries: where half of all cache and mask bugs hide."""

from __future__ import annotations

import random
from typing import Any

from twinrun.verify.case import Case


def probes(model: Any, *, max_tokens: int = 2048, seed: int = 0) -> list[Case]:
    """Build probes for one model.

    Covered: one token; a short and a longer text with a prompt's forward and single steps; a batch of
    unequal rows (left padding); the pad id inside a text; a changed last token (earlier rows must not
    move); positions beyond 256 (where bfloat16 rotary tables alias); each sliding window -1/0/+1; the RoPE
    switch of long-context scalings; the last position of the context.

    Args:
        model: what `twinrun.load` returns (`config`, `vocab_size`, `max_context` and `pad_id` are read).
        max_tokens: longest row to build; boundaries beyond it are left out. See `uncovered`.
        seed: of the random token ids.

    Returns:
        Cases for `twinrun.verify(..., prompts=...)`; long ones score few positions, so a probe costs a
        handful of forwards.

    Example:
        >>> [case.label for case in probes(load("builtin:amateur"))][:2]
        ['one token', 'short']
    """
    limit = min(max_tokens, model.max_context or max_tokens)
    pick = random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(pick.randrange(model.vocab_size) for _ in range(count))

    def case(label: str, length: int, start: int) -> Case:
        return Case(label=label, rows=(ids(length),), starts=(max(1, min(start, length)),))

    found = [
        case("one token", 1, 1),
        case("short", min(7, limit), 3),
        case("prompt and steps", min(41, limit), 19),
    ]
    if limit >= 31:
        rows = (ids(5), ids(31), ids(12))
        found.append(Case(label="batch with padding", rows=rows, starts=(3, 23, 12)))
        text = list(ids(23))
        text[4] = text[9] = text[20] = model.pad_id
        found.append(Case(label="pad id inside the text", rows=(tuple(text), ids(29)), starts=(11, 13)))
    if limit >= 24:
        row = ids(24)
        changed = (*row[:-1], (row[-1] + 1) % model.vocab_size)
        found.append(Case(label="last token", rows=(row,), starts=(2,)))
        found.append(
            Case(label="last token changed", rows=(changed,), starts=(2,), same_before=("last token", 23))
        )
    for name, edge in boundaries(model):
        for length in (edge - 1, edge, edge + 1, edge + 9):
            if 2 <= length <= limit:
                found.append(case(f"{name} {edge}{length - edge:+d}", length, length - 4))
    if limit >= 300:
        found.append(case("positions beyond 256", 300, 290))
    if model.max_context and model.max_context <= limit:
        found.append(case("end of the context", limit, limit - 3))
    return found


def boundaries(model: Any) -> list[tuple[str, int]]:
    """Lengths at which this model's computation changes: sliding windows and RoPE switches, named, ascending."""
    config, found = model.config, []
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    uses = (
        any("sliding" in str(kind) for kind in kinds)
        if kinds
        else getattr(config, "use_sliding_window", True)
    )
    if isinstance(window, int) and window > 1 and uses:
        found.append(("sliding window", window))
    chunk = getattr(config, "attention_chunk_size", None)
    if isinstance(chunk, int) and chunk > 1:
        found.append(("attention chunk", chunk))
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    per_layer_type = [v for v in scaling.values() if isinstance(v, dict)]
    for part in per_layer_type or [scaling]:
        if part.get("rope_type", part.get("type")) in {"longrope", "dynamic"}:
            edge = part.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            edge = edge or getattr(config, "max_position_embeddings", None)
            if isinstance(edge, int):
                found.append(("RoPE switch", edge))
    return sorted(set(found), key=lambda item: item[1])


def uncovered(model: Any, max_tokens: int = 2048) -> list[str]:
    """Say which boundaries of the model are not crossed by probes of `max_tokens`.

    A switch at the end of the context (dynamic RoPE scaling) cannot be crossed at all: longer rows are refused.
    """
    limit = min(max_tokens, model.max_context or max_tokens)
    found = [f"{name} at {edge}" for name, edge in boundaries(model) if edge >= limit]
    if model.max_context and model.max_context > max_tokens:
        found.append(f"end of the context at {model.max_context}")
    return found
