"""Laws of step selection that hold for every pair of distributions, searched by hypothesis."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from twinrun.contrast.select import select
from twinrun.numerics.blocks import StoredLogits

number = st.floats(-20, 20, width=32)
pairs = st.tuples(st.integers(1, 9), st.integers(1, 5)).flatmap(
    lambda size: st.tuples(
        *[st.lists(st.lists(number, min_size=size[0], max_size=size[0]), min_size=size[1], max_size=size[1])]
        * 2
    )
)


@given(pairs, st.floats(0, 3), st.floats(0.001, 1))
def test_labels_are_distributions_on_the_plausible_set_in_order_of_steps(pair, beta, alpha) -> None:
    e, a = (torch.tensor(rows) for rows in pair)
    found = select(StoredLogits(e), StoredLogits(a), beta=beta, alpha=alpha)
    steps = [label.step for label in found.labels]
    assert steps == sorted(set(steps)) == [t for t, kl in enumerate(found.kl) if kl > beta]
    for label in found.labels:
        assert abs(math.fsum(label.weights) - 1) < 1e-5
        assert list(label.weights) == sorted(label.weights, reverse=True)
        p = torch.softmax(e[label.step].double(), 0)
        share = p / p.max()
        assert len(set(label.token_ids)) == len(label.token_ids)
        assert all(share[i] >= alpha * (1 - 1e-4) for i in label.token_ids)
        outside = [float(s) for i, s in enumerate(share) if i not in label.token_ids]
        assert all(s < alpha * (1 + 1e-4) for s in outside)
        assert int(p.argmax()) in label.token_ids or float(share.max()) == 1


@given(pairs, st.floats(-20, 20))
def test_a_constant_added_to_the_logits_of_a_row_changes_nothing(pair, shift) -> None:
    e, a = (torch.tensor(rows) for rows in pair)
    plain = select(StoredLogits(e), StoredLogits(a), beta=0)
    moved = select(StoredLogits(e + shift), StoredLogits(a - shift), beta=0)
    gaps = [abs(x - y) for x, y in zip(plain.kl, moved.kl, strict=True)]
    assert max(gaps) < 1e-3


@given(pairs)
def test_a_side_against_itself_teaches_nothing(pair) -> None:
    rows = StoredLogits(torch.tensor(pair[0]))
    assert select(rows, rows, beta=1e-5).labels == ()
