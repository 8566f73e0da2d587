"""What there is to look at in a folder of samples: answers token by token, the steps kept, what both models said there.

KL, kept steps and labels come from the folder. It holds no text of a single token beyond the labels and no
distributions, so the text of every token and the likeliest ids of both models need the two models: the same ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from twinrun.contrast.contrast import contrast
from twinrun.contrast.identity import check_identity
from twinrun.contrast.shown_text import Pair, shown_text
from twinrun.contrast.store import Sampled, SampleStore
from twinrun.errors import ConfigError, SamplesError
from twinrun.models.tokenizers import check_same_tokens
from twinrun.records.tokens import ContrastedText

SCHEMA = "twinrun.contrast-shown/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which answers of a folder are shown.

    Attributes:
        limit: the first so many; of a thousand answers the page would be slow, and nobody would read it.
        ids: these problems instead, in the order of the data.
        top_k: alternatives of each model at a token, where the models are given.

    Raises:
        ConfigError: a number below 1.

    Example:
        >>> Selection(limit=3).limit
        3
    """

    limit: int = 20
    ids: tuple[str, ...] = ()
    top_k: int = 5

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value in (("limit", self.limit), ("top_k", self.top_k)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")


def shown(
    store: SampleStore, *, models: Pair | None = None, selection: Selection | None = None
) -> dict[str, Any]:
    """Return the record that `twinrun contrast show` draws.

    Args:
        store: samples, finished or not.
        models: the expert and the amateur that sampled; None shows what the folder holds (see the module).
        selection: which answers; None is the first twenty.

    Returns:
        Plain JSON types: `counts` and `kl` of the whole folder, `texts` of the answers shown. With models, `kl_gap_max`
        is the largest difference of a KL computed here from the one in the folder, nats.

    Raises:
        SamplesError: no answers, or none with an id that was asked for.
        ConfigError: models other than those that sampled.

    Cost: one pass over the folder; with models, one forward of each an answer shown.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     store = SampleStore.create(folder, {"settings": {"beta": 0.4}}, parts=1)
        ...     store.append(0, [])
        ...     shown(store)
        Traceback (most recent call last):
        ...
        twinrun.errors.SamplesError: the folder holds no answers yet; let `twinrun contrast sample` finish a batch
    """
    selection = selection or Selection()
    if models is not None:
        for model, who in zip(models, ("expert", "amateur"), strict=True):
            check_identity(model, store.header.get(who), f"the {who}'s side of {store.folder.name}")
        check_same_tokens(*models)
    counts, kl = _whole(store)
    picked = list(_picked(store, selection))
    known = {} if models is not None else _known_tokens(store)
    found = _contrasted(models, picked, selection.top_k)
    texts = [shown_text(sampled, said, models, known) for sampled, said in zip(picked, found, strict=True)]
    return {
        "schema": SCHEMA,
        "folder": store.folder.resolve().name,
        "settings": store.settings,
        "complete": store.complete,
        "batches": {"done": len(store.done()), "all": store.parts},
        "models": {who: _named(store, models, i) for i, who in enumerate(("expert", "amateur"))},
        "counts": counts,
        "kl": kl,
        "kl_gap_max": _gap(picked, found),
        "texts": texts,
    }


def _whole(store: SampleStore) -> tuple[dict[str, int], list[float]]:
    """Counts of the folder, and KL at every answer token."""
    counts: Counter[str] = Counter(
        dict.fromkeys(("problems", "answers", "refused", "cut_off", "steps", "kept"), 0)
    )
    kl: list[float] = []
    for sampled in store.sampled():
        counts["problems"] += 1
        if sampled.refused is not None:
            counts["refused"] += 1
            continue
        row = sampled.trajectory
        counts["answers"] += 1
        counts["cut_off"] += not row.finished
        counts["steps"] += len(row.answer_ids)
        counts["kept"] += len(sampled.steps)
        kl += row.kl
    if not counts["answers"]:
        raise SamplesError(
            "the folder holds no answers yet; let `twinrun contrast sample` finish a batch"
            if not counts["refused"]
            else f"all {counts['refused']} problems of the folder were refused; see refused.jsonl"
        )
    return dict(counts), kl


def _picked(store: SampleStore, selection: Selection) -> Iterator[Sampled]:
    kept = (s for s in store.sampled() if s.refused is None)
    if not selection.ids:
        yield from islice(kept, selection.limit)
        return
    left = set(selection.ids)
    for sampled in kept:
        if sampled.trajectory.prompt_id in left:
            left.discard(sampled.trajectory.prompt_id)
            yield sampled
    if left:
        raise SamplesError(
            f"no answer to {sorted(left)[0]!r:.60} in {store.folder}; ids stand in trajectories.jsonl"
        )


def _known_tokens(store: SampleStore) -> dict[int, str]:
    """Texts of ids that stand in any label."""
    return {i: text for step in store.steps() for i, text in zip(step.token_ids, step.tokens, strict=False)}


def _contrasted(
    models: Pair | None, picked: Sequence[Sampled], top_k: int
) -> list[ContrastedText] | list[None]:
    if models is None:
        return [None] * len(picked)
    rows = [s.trajectory for s in picked]
    return contrast(
        *models,
        [[*r.prompt_ids, *r.answer_ids] for r in rows],
        starts=[len(r.prompt_ids) for r in rows],
        top_k=top_k,
    )


def _gap(picked: Sequence[Sampled], found: Sequence[ContrastedText | None]) -> float | None:
    """Largest distance between a KL in the folder and the one computed here."""
    gaps = [
        abs(old - new)
        for sampled, said in zip(picked, found, strict=True)
        if said is not None
        for old, new in zip(sampled.trajectory.kl, said.kl[said.start :], strict=False)
        if new is not None
    ]
    return max(gaps, default=0.0) if any(said is not None for said in found) else None


def _named(store: SampleStore, models: Pair | None, index: int) -> dict[str, Any]:
    told = dict(store.header.get(("expert", "amateur")[index]) or {})
    return {"name": None if models is None else models[index].name, **told}
