"""Simulated pruning against the slow oracle, against real pruning, and its gradient against differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import twinrun as tr
from tests.support.plain_prune import PlainPruned
from tests.support.prune_oracles import slope
from tests.support.prune_tiny import PROTECTION, SCHEDULE, samples, tiny_gpt2, tiny_llama
from tests.support.zoo import make
from twinrun.errors import UnsupportedModelError
from twinrun.prune import simulate as subject
from twinrun.prune.objective import seeded
from twinrun.prune.protection import Protection
from twinrun.prune.rows import Rows
from twinrun.prune.schedule import Schedule
from twinrun.prune.scorer import Scorer
from twinrun.prune.simulate import Relaxation, simulate, top_scores


@pytest.fixture(scope="module")
def exact() -> tr.Model:
    return tiny_llama(torch.float64)


def relaxed(rows: Rows, noise: float, temperature: float = 0.3) -> Relaxation:
    made = [seeded("noise", s.name) for s in rows.samples]
    return Relaxation(noise=noise, temperature=temperature, generators=made)


def kept_of(rows: Rows, kept: dict[int, Tensor]) -> dict[tuple[int, ...], dict[int, list[int]]]:
    """For the oracle: positions of each row that each stage kept."""
    return {
        s.prompt: {layer: rows.padded.positions[row][mask[row]].tolist() for layer, mask in kept.items()}
        for row, s in enumerate(rows.samples)
    }


@pytest.mark.parametrize("noise", [None, 0.0, 2.0])
def test_masking_is_pruning(exact: tr.Model, noise: float | None) -> None:
    scorer = Scorer.new(exact, SCHEDULE.layers, 4).double()
    rows = Rows.of([samples(4)[i] for i in range(4)], exact)
    relaxation = None if noise is None else relaxed(rows, noise)
    with torch.no_grad():
        done = simulate(exact, rows, SCHEDULE, PROTECTION, scorer.score, relaxation)
        whole = rows.logits(exact)
    oracle = PlainPruned(exact, kept_of(rows, done.kept))
    wrong = PlainPruned(exact, kept_of(rows, done.kept), wrong="late")
    for row, sample in enumerate(rows.samples):
        tokens, start = [*sample.prompt, *sample.answer], len(sample.prompt)
        own = done.logits[row, -len(sample.answer) - 1 :]
        torch.testing.assert_close(own, oracle.score(tokens, start), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(own, wrong.score(tokens, start), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(own, whole[row, -len(sample.answer) - 1 :], rtol=1e-3, atol=1e-3)
    if not noise:  # without noise the budget is met to the token
        for row, sample in enumerate(rows.samples):
            counts = tuple(int(mask[row].sum()) for mask in done.kept.values())
            assert counts == SCHEDULE.kept(len(sample.prompt), PROTECTION)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "qwen3"])
def test_real_pruning_gives_the_same_scores(family: str) -> None:
    model = make(family, "float32")
    layer = len(model.layout.layers) - 1
    schedule = Schedule.of({layer: 0.5})
    scorer = Scorer.new(model, [layer], 1)
    ids = [int(i) for i in torch.randint(3, 90, (24,), generator=seeded(family))]
    from twinrun.prune.samples import Sample

    rows = Rows.of(
        [Sample("a", tuple(ids[:20]), tuple(ids[20:])), Sample("b", tuple(ids[:9]), tuple(ids[9:12]))], model
    )
    with torch.no_grad():
        done = simulate(model, rows, schedule, Protection(), scorer.score)
    pruned = tr.Pruned(model, scorer, schedule=schedule).score(ids, start=20)
    with torch.inference_mode():
        want = pruned.logits.rows(0, 5)
    torch.testing.assert_close(done.logits[0, -5:], want.float(), rtol=1e-4, atol=1e-4)
    unpruned = tr.Recompute(model).score(ids, start=20)
    with torch.inference_mode():
        assert not torch.allclose(
            done.logits[0, -5:], unpruned.logits.rows(0, 5).float(), rtol=1e-4, atol=1e-4
        )


def test_keeping_everything_changes_nothing(exact: tr.Model) -> None:
    rows = Rows.of([samples(3)[i] for i in range(3)], exact)
    scorer = Scorer.new(exact, [1], 4).double()
    with torch.no_grad():
        done = simulate(exact, rows, Schedule.of({1: 1.0}), PROTECTION, scorer.score, relaxed(rows, 1.0))
        torch.testing.assert_close(done.logits, rows.logits(exact), rtol=1e-12, atol=1e-12)


def test_masks_are_progressive_and_protected_tokens_stay(exact: tr.Model) -> None:
    scorer = Scorer.new(exact, SCHEDULE.layers, 4).double()
    rows = Rows.of([samples(6)[i] for i in range(6)], exact)
    done = simulate(exact, rows, SCHEDULE, PROTECTION, scorer.score, relaxed(rows, 3.0))
    first, second = done.kept[1], done.kept[3]
    assert bool((second <= first).all())
    assert bool((done.choice[3] <= first).all())
    for row, sample in enumerate(rows.samples):
        own = rows.prompt[row].nonzero()[:, 0]
        assert bool(second[row, own[:2]].all())
        assert bool(second[row, own[-2:]].all())
        assert int(second[row].sum()) < len(sample.prompt)
    assert not bool((first & ~rows.prompt).any())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_gradient_of_a_mask_is_that_of_masked_softmax(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d loss / d mask value, at kept and at dropped tokens, against differences of the value itself."""
    model = tiny_gpt2(attention)
    rows = Rows.of([samples(1)[0]], model)
    chosen = (torch.rand(rows.real.shape, generator=seeded(1)) < 0.5).double()
    held: dict[str, Tensor] = {"keep": chosen.clone().requires_grad_(True)}
    monkeypatch.setattr(subject, "_straight_through", lambda *_: held["keep"])

    def loss() -> Tensor:
        done = simulate(
            model, rows, Schedule.of({2: 0.5}), PROTECTION, lambda _, h: h.sum(-1), relaxed(rows, 0.0)
        )
        return rows.losses(done.logits).sum()

    (gradient,) = torch.autograd.grad(loss(), held["keep"])
    seen = set()
    for at in range(4, 12):
        start = float(chosen[0, at])

        def moved(value: float, at: int = at) -> float:
            held["keep"] = chosen.clone()
            held["keep"][0, at] = value
            with torch.no_grad():
                return float(loss())

        want = slope(moved, start) if start else slope(moved, 0.0)
        assert float(gradient[0, at]) == pytest.approx(want, rel=2e-3, abs=1e-8)
        assert abs(float(gradient[0, at])) > 1e-7
        seen.add(start)
    assert seen == {0.0, 1.0}


def test_every_scorer_gets_a_gradient_from_the_language_model_loss(exact: tr.Model) -> None:
    scorer = Scorer.new(exact, SCHEDULE.layers, 4)
    rows = Rows.of([samples(4)[i] for i in range(4)], exact)
    done = simulate(exact, rows, SCHEDULE, PROTECTION, scorer.score, relaxed(rows, 1.0))
    rows.losses(done.logits).sum().backward()
    assert all(
        float(p.grad.abs().sum()) > 0 for p in scorer.parameters() if p.grad is not None and p.ndim > 1
    )
    assert all(p.grad is not None for p in scorer.parameters())
    hard = simulate(exact, rows, SCHEDULE, PROTECTION, scorer.score)
    assert not hard.logits.requires_grad or torch.autograd.grad(
        hard.logits.sum(), list(scorer.parameters()), allow_unused=True
    ) == (None,) * len(list(scorer.parameters()))


def test_equal_scores_go_to_the_most_recent_and_a_threshold_parts_them() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0, 3.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    choice = torch.tensor([[True, True, True, True, False], [True] * 5])
    top, threshold = top_scores(scores, choice, torch.tensor([2, 3]))
    assert top.int().tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert threshold.tolist() == [1.0, 2.5]
    top, threshold = top_scores(scores, choice, torch.tensor([0, 9]))
    assert top.int().tolist() == [[0] * 5, [1] * 5]
    assert threshold.tolist() == [torch.inf, -torch.inf]


@pytest.mark.parametrize(("family", "message"), [("mistral", "sliding"), ("gemma2", "sliding")])
def test_models_that_cannot_be_pruned_are_refused(family: str, message: str) -> None:
    model: Any = make(family, "float32")
    rows = Rows.of([samples(1)[0]], model)
    with pytest.raises(UnsupportedModelError, match=message):
        simulate(model, rows, Schedule.of({1: 0.5}), PROTECTION, lambda _, h: h.sum(-1))
