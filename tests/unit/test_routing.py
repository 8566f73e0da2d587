"""Router choices: a tie inside the reference's noise is excused, anything else is not."""

from __future__ import annotations

import torch
from torch import Tensor

from twinrun.records.scores import Routes, Scores
from twinrun.verify.routing import router_ties

# layers x tokens x experts; token 1 of layer 0 nearly ties between experts 0 and 1
TRUTH = torch.tensor([[[3.0, 0.0, -1.0], [2.0, 1.9999, -1.0]], [[0.0, 3.0, 1.0], [0.0, 1.0, 3.0]]])


def scores(logits: Tensor, experts: Tensor | None = None) -> Scores:
    chosen = logits.argmax(-1, keepdim=True) if experts is None else experts
    routes = Routes(
        experts=[chosen[:, : i + 1] for i in range(2)], logits=[logits[:, : i + 1] for i in range(2)]
    )
    plain = Scores.of_logits([1, 2], 1, torch.zeros(2, 4))
    return Scores(tokens=plain.tokens, positions=plain.positions, logits=plain.logits, routes=routes)


def noisy(amount: float) -> Tensor:
    return TRUTH + amount * torch.tensor([1.0, -1.0, 1.0])


def test_equal_choices_are_no_tie() -> None:
    assert router_ties(scores(noisy(1e-4)), scores(noisy(1e-6)), scores(TRUTH)).tolist() == [False, False]


def test_a_choice_inside_the_noise_is_a_tie_from_there_on() -> None:
    other = noisy(1e-4)
    other[0, 1] = torch.tensor([1.9999, 2.0, -1.0])
    found = router_ties(scores(noisy(1e-4)), scores(other), scores(TRUTH))
    assert found.tolist() == [False, True]


def test_a_noisy_candidate_cannot_excuse_itself() -> None:
    """The reference is exact to 1e-6, so a gap of 1e-4 is no tie for it."""
    other = noisy(1e-6)
    other[0, 1] = torch.tensor([1.9999, 2.0, -1.0])
    assert router_ties(scores(noisy(1e-6)), scores(other), scores(TRUTH)).tolist() == [False, False]


def test_a_choice_behind_a_tie_follows_from_it() -> None:
    other = noisy(1e-4)
    other[0, 1] = torch.tensor([1.9999, 2.0, -1.0])
    other[1, 1] = torch.tensor([3.0, 1.0, 0.0])
    assert router_ties(scores(noisy(1e-4)), scores(other), scores(TRUTH)).tolist() == [False, True]


def test_a_wrong_choice_without_a_tie_before_it_is_not_excused() -> None:
    other = noisy(1e-4)
    other[0, 1] = torch.tensor([1.9999, 2.0, -1.0])
    other[0, 0] = torch.tensor([0.0, 3.0, -1.0])
    assert router_ties(scores(noisy(1e-4)), scores(other), scores(TRUTH)).tolist() == [False, False]


def test_where_the_reference_itself_is_off_nothing_is_measured() -> None:
    wrong = noisy(1e-6)
    wrong[0, 0] = torch.tensor([0.0, 3.0, -1.0])
    assert router_ties(scores(wrong), scores(TRUTH), scores(TRUTH)).tolist() == [True, True]


def test_dense_models_have_no_ties() -> None:
    dense = Scores.of_logits([1, 2], 1, torch.zeros(2, 4))
    assert router_ties(dense, dense, dense).tolist() == [False, False]
