"""The scorer: its numbers, its files, its price, and the models that it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import twinrun as tr
from tests.support.prune_tiny import SCHEDULE, WIDTH, samples, tiny_llama
from twinrun.errors import CheckpointError, ConfigError, ShapeError
from twinrun.models.identity import model_fingerprint
from twinrun.prune.cost import model_flops_per_token
from twinrun.prune.marking import mark
from twinrun.prune.protection import Protection
from twinrun.prune.quality import exact_answers, layer_quality
from twinrun.prune.scorer import FACTS, WEIGHTS, Scorer


@pytest.fixture(scope="module")
def model() -> tr.Model:
    return tiny_llama()


def by_hand(scorer: Scorer, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    """GELU by the error function, in float64."""
    w = {n: t.double() for n, t in scorer.state_dict().items()}
    x = hidden.double()
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    a = x @ w[f"inner.{layer}.weight"].T + w[f"inner.{layer}.bias"]
    a = a * 0.5 * (1 + torch.erf(a / 2**0.5))
    return (a @ w[f"outer.{layer}.weight"].T + w[f"outer.{layer}.bias"])[..., 0]


def test_scores_are_those_of_the_formula(model: tr.Model) -> None:
    scorer = Scorer.new(model, [1, 3], 4)
    hidden = torch.randn(2, 5, WIDTH) * torch.tensor([1.0, 1e-3, 1e3, 1.0, 7.0])[None, :, None]
    for layer in (1, 3):
        want = by_hand(scorer, layer, hidden).float()
        torch.testing.assert_close(scorer.score(layer, hidden), want, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(
            scorer.score(4 - layer, hidden), want, rtol=1e-2
        )  # the control: the other MLP
    half = scorer.to(torch.bfloat16).score(1, hidden.bfloat16())
    assert half.dtype == torch.float32
    assert half.unique().numel() == half.numel()


def test_the_seed_decides_and_torchs_own_state_is_left_alone(model: tr.Model) -> None:
    state = torch.random.get_rng_state()
    a, b, c = (Scorer.new(model, [2], 4, seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not all(torch.equal(a[n], c[n]) for n in a)


def test_a_saved_scorer_is_the_same_and_keeps_its_facts(model: tr.Model, tmp_path: Path) -> None:
    scorer = Scorer.new(model, [3, 1], 4)
    scorer.facts["note"] = "kept"
    read = Scorer.load(scorer.save(tmp_path / "a"), model)
    assert (read.layers, read.facts["note"], read.schedule) == ((1, 3), "kept", None)
    hidden = torch.randn(1, 3, WIDTH)
    assert torch.equal(read.score(1, hidden), scorer.score(1, hidden))
    read.save(tmp_path / "b")
    for name in (WEIGHTS, FACTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_price_is_counted_and_bounded(model: tr.Model) -> None:
    scorer = Scorer.new(model, [1, 3], 4)
    per_token = model_flops_per_token(model)
    assert scorer.flops(10) == 10 * 2 * 2 * 4 * (WIDTH + 1)
    assert scorer.facts["share_of_model_flops"] == pytest.approx(scorer.flops(1) / per_token)
    linear = sum(2 * p.numel() for n, p in model.model.named_parameters() if ".layers." in n and p.ndim == 2)
    assert linear < per_token < 1.6 * linear  # attention and one row of logits come on top
    assert Scorer.new(model, [1, 2, 3]).facts["share_of_model_flops"] < 0.01
    with pytest.raises(ConfigError, match=r"cost 4.0% of .* stay under 1%"):
        Scorer.new(model, [1, 3], 32)


@pytest.mark.parametrize("name", ["builtin:expert", "builtin:gpt"])
def test_builtins_get_scorers_under_one_percent(name: str) -> None:
    found = tr.load(name)
    scorer = Scorer.new(found, range(1, len(found.layout.layers)))
    assert 0.001 < scorer.facts["share_of_model_flops"] < 0.01


def test_the_fingerprint_follows_weights_and_config_not_precision(model: tr.Model) -> None:
    same = model_fingerprint(model)
    assert (
        same == model_fingerprint(tiny_llama(torch.bfloat16)) == model_fingerprint(tiny_llama(torch.float64))
    )
    assert same != model_fingerprint(tiny_llama(seed=1))
    other = tiny_llama()
    with torch.no_grad():
        other.layout.layers[2].mlp.up_proj.weight.mul_(1.02)
    assert same != model_fingerprint(other)
    turned = tiny_llama()
    turned.model.config.rope_parameters["rope_theta"] = 500.0
    assert same != model_fingerprint(turned)
    named = tiny_llama()
    named.model.config.pad_token_id = 5
    assert same == model_fingerprint(named)


def test_a_scorer_of_another_model_is_refused(model: tr.Model, tmp_path: Path) -> None:
    place = Scorer.new(model, [1], 4).save(tmp_path)
    with pytest.raises(ConfigError, match=r"with fingerprint .* other weights"):
        Scorer.load(place, tiny_llama(seed=1))
    with pytest.raises(ConfigError, match=r"\(4 layers, width 32\), builtin:amateur has 3 layers"):
        Scorer.load(place, tr.load("builtin:amateur"))
    with pytest.raises(ConfigError, match="no MLP for layer 2; it scores 1"):
        Scorer.load(place).score(2, torch.zeros(1, 1, WIDTH))
    with pytest.raises(ShapeError, match="are 8 wide"):
        Scorer.load(place).score(1, torch.zeros(1, 1, 8))
    for layers, message in (([0], "layer 0 cannot"), ([4], "1 to 3"), ([], "must be given")):
        with pytest.raises(ConfigError, match=message):
            Scorer.new(model, layers)


@pytest.mark.parametrize("damage", ["gone", "json", "schema", "weights", "layers", "no weights"])
def test_damaged_files_are_refused_in_one_line(model: tr.Model, tmp_path: Path, damage: str) -> None:
    Scorer.new(model, [1], 4).save(tmp_path)
    facts, weights = tmp_path / FACTS, tmp_path / WEIGHTS
    record = json.loads(facts.read_text())
    match damage:
        case "gone":
            facts.unlink()
        case "json":
            facts.write_text("{")
        case "schema":
            facts.write_text(json.dumps({**record, "schema": "other/1"}))
        case "weights":
            weights.write_bytes(weights.read_bytes()[:50])
        case "layers":
            facts.write_text(json.dumps({**record, "layers": [2]}))
        case "no weights":
            weights.unlink()
    with pytest.raises(CheckpointError) as caught:
        Scorer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_quality_of_the_saliency_itself_is_perfect_and_of_its_reverse_the_worst(
    model: tr.Model, tmp_path: Path
) -> None:
    own = [samples(6)[i] for i in range(6)]
    found = mark(model, samples(6), SCHEDULE.layers, tmp_path)
    assert found is not None
    guard = Protection(first=1, last=1)

    def oracle(sign: float):
        def score(layer: int, hidden: torch.Tensor) -> torch.Tensor:
            match = next(s for s in own if torch.equal(hidden, inputs[s.name][layer]))
            scores = torch.zeros(hidden.shape[:2])
            scores[0, : len(match.prompt)] = sign * found.of(match)[found.layers.index(layer)].abs()
            return scores

        return score

    from twinrun.prune.quality import hidden_states

    inputs = {
        rows.samples[0].name: got for s in own for rows, got in hidden_states(model, [s], SCHEDULE.layers)
    }
    for sign, want in ((1.0, 1.0), (-1.0, -1.0)):
        for s in own:
            for q in layer_quality(model, [s], found, SCHEDULE, oracle(sign), protection=guard):
                assert q.spearman == pytest.approx(want, abs=1e-6)
                assert (q.overlap == 1.0) == (sign > 0)
                assert 0 < q.chance < 1


def test_exact_answers_are_what_greedy_decoding_gives(model: tr.Model) -> None:
    data = [samples(8)[i] for i in range(8)]
    right = []
    for s in data:
        run = tr.Recompute(model).generate(list(s.prompt), max_new_tokens=len(s.answer))
        right.append(type(s)(s.name, s.prompt, tuple(run.tokens[0][-len(s.answer) :])))
    wrong = exact_answers(model, data, None, lambda _: lambda _l, h: h.sum(-1))
    assert not all(wrong.values())
    assert all(exact_answers(model, right, None, lambda _: lambda _l, h: h.sum(-1), batch_size=3).values())
