"""Pruning against slow oracles that mask dropped tokens out of full attention, and controls that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import twinrun as tr
from tests.support.plain_prune import MaskedOut, PlainPruned
from tests.support.prune import OTHERS, PLAIN, SCHEDULE, full, ids
from twinrun.prune import choice, passing

TEXT, START = ids(48), 40
SHORTER = ids(31, seed=1)


def cases() -> list[tr.Case]:
    """A row alone, and three of unequal length together."""
    rows = (tuple(TEXT), tuple(SHORTER), tuple(ids(23, seed=2)))
    return [
        tr.Case(label="alone", rows=(tuple(TEXT),), starts=(START,)),
        tr.Case(label="batch", rows=rows, starts=(40, 25, 23)),
    ]


def kept_of(p: tr.Pruned, given: list[tr.Case]) -> dict[tuple[int, ...], Any]:
    """What the subject keeps of every prompt, asked row by row."""
    found = {}
    for case in given:
        for row, start in zip(case.rows, case.starts, strict=True):
            p.score(row, start)
            assert p.last is not None
            found[row[:start]] = p.last.kept_positions()
    return found


@pytest.mark.parametrize("selector", ["attention", "norm", "random"])
@pytest.mark.parametrize("family", PLAIN)
def test_scores_are_those_of_masked_full_attention(family: str, selector: str) -> None:
    p = tr.Pruned(full(family), selector=selector, schedule=SCHEDULE)
    oracle = PlainPruned(p.model, kept_of(p, cases()))
    v = tr.verify(oracle, p, cases())
    assert v.verdict == "equivalent", v
    assert v.sweep is not None
    assert v.sweep.gap is not None, v.sweep.why_not


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_equal_their_own_masked_attention(family: str) -> None:
    p = tr.Pruned(full(family), selector="norm", schedule=SCHEDULE)
    v = tr.verify(MaskedOut(p.model, kept_of(p, cases())), p, cases())
    assert v.verdict == "equivalent", v


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_eager_attention_gives_the_same(family: str) -> None:
    m = full(family)
    p = tr.Pruned(m, selector="norm", schedule=SCHEDULE)
    kept = kept_of(p, cases())
    m.config._attn_implementation = "eager"
    v = tr.verify(MaskedOut(m, kept), p, cases())
    assert v.verdict == "equivalent", v


def test_the_oracle_without_pruning_is_the_model() -> None:
    m = full("qwen3")
    untouched = {tuple(TEXT[:START]): {}}
    v = tr.verify(tr.Recompute(m), PlainPruned(m, untouched), cases()[:1], sweep=False)
    assert v.verdict == "equivalent", v


def renumbered(value: Any, at: Tensor) -> Any:
    """Positions counted anew behind a prune."""
    if isinstance(value, tuple):
        return tuple(renumbered(each, at) for each in value)
    return value[:, : at.shape[1]]


def unsorted(*args: Any) -> Tensor:
    """Kept tokens by score, as topk hands them out: here simply the other way round but for the last."""
    at = choice.choose(*args)
    return torch.cat([at[:, :-1].flip(1), at[:, -1:]], dim=1)


def corner(mask: Tensor, keys: Tensor, queries: Tensor | None = None) -> Tensor:
    """The upper left corner of a mask instead of the rows and columns that were kept."""
    count = keys.shape[1]
    return mask[..., :count] if queries is None else mask[..., : queries.shape[1], :count]


def pads_protected(scores: Tensor, positions: Tensor, lengths: Any, keep: Any, protection: Any) -> Tensor:
    """The first columns of the batch are protected, whether there are tokens or padding."""
    columns = torch.arange(positions.shape[1]).expand_as(positions)
    ranked = scores.float().masked_fill(columns < protection.first, torch.inf)
    ranked = ranked.masked_fill(positions >= positions.max() - 3, torch.inf)
    return ranked.topk(max(keep), dim=1).indices.sort(dim=1).values


CONTROLS: dict[str, tuple[str, Callable[..., Any]]] = {
    "positions renumbered": ("take_positions", renumbered),
    "kept tokens out of order": ("choose", unsorted),
    "corner of the mask": ("take_keys", corner),
    "padding protected": ("choose", pads_protected),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_wrong_prune_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = tr.Pruned(full("llama"), selector="norm", schedule=SCHEDULE)
    oracle = PlainPruned(p.model, kept_of(p, cases()))
    wrong = tr.Pruned(p.model, selector="norm", schedule=SCHEDULE)
    monkeypatch.setattr(passing, *CONTROLS[name])
    v = tr.verify(oracle, wrong, cases())
    assert v.verdict == "different"


@pytest.mark.parametrize("wrong", ["positions", "late"])
def test_a_wrong_oracle_is_refused_too(wrong: str) -> None:
    p = tr.Pruned(full("llama"), selector="norm", schedule=SCHEDULE)
    v = tr.verify(PlainPruned(p.model, kept_of(p, cases()), wrong), p, cases(), explain=False)
    assert v.verdict == "different"
