"""Saliency against finite differences, padding against single rows, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import twinrun as tr
from tests.conftest import fingerprint
from tests.support.prune_oracles import answer_loss, saliency_by_differences
from tests.support.prune_tiny import samples, tiny_gpt2, tiny_llama
from twinrun.errors import CheckpointError, ConfigError, NonFiniteError, UnsupportedModelError
from twinrun.prune import marking, targets
from twinrun.prune.marking import mark
from twinrun.prune.saliency import saliency
from twinrun.prune.samples import Listed, Sample
from twinrun.prune.targets import Targets
from twinrun.runners.forward import Padded

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def model() -> tr.Model:
    return tiny_llama()


@pytest.fixture(scope="module")
def exact() -> tr.Model:
    return tiny_gpt2()


def test_saliency_is_the_derivative_of_the_answers_loss(exact: tr.Model) -> None:
    sample = samples(3)[2]
    (found,) = saliency(exact, [sample], LAYERS)
    for at, layer in enumerate(LAYERS):
        want = torch.tensor(
            saliency_by_differences(exact.model, exact.layout.layers[layer], sample.prompt, sample.answer)
        )
        torch.testing.assert_close(found.values[at], want.float(), rtol=1e-4, atol=1e-7)
        with pytest.raises(AssertionError):  # the control: every value one token too early
            torch.testing.assert_close(found.values[at].roll(-1), want.float(), rtol=1e-4, atol=1e-7)
    assert found.output == pytest.approx(answer_loss(exact.model, sample.prompt, sample.answer), rel=1e-6)


def test_a_logit_is_differentiated_when_asked_for(exact: tr.Model) -> None:
    sample = samples(3)[2]
    (found,) = saliency(exact, [sample], [3], output="logit")
    with torch.no_grad():
        logits = exact.model(input_ids=torch.tensor([[*sample.prompt, *sample.answer]])).logits[0]
    own = [logits[len(sample.prompt) + i - 1, token] for i, token in enumerate(sample.answer)]
    assert found.output == pytest.approx(float(sum(own)) / len(own), rel=1e-6)
    (loss,) = saliency(exact, [sample], [3])
    assert not torch.allclose(loss.values, found.values)


def test_a_row_in_a_batch_is_the_row_alone(exact: tr.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [samples(5)[i] for i in range(5)]
    together = saliency(exact, own, LAYERS)
    for sample, found in zip(own, together, strict=True):
        assert found.values.shape == (2, len(sample.prompt))
        torch.testing.assert_close(
            found.values, saliency(exact, [sample], LAYERS)[0].values, rtol=1e-5, atol=1e-9
        )
    whole = Padded.of
    monkeypatch.setattr(Padded, "of", lambda *a: Padded(whole(*a).ids, None, whole(*a).positions))
    blind = saliency(exact, own, LAYERS)  # the control: padding that attention sees
    assert not all(
        torch.allclose(a.values, b.values, rtol=1e-3) for a, b in zip(together, blind, strict=True)
    )


def test_bfloat16_points_the_same_way_and_the_sum_is_float32(model: tr.Model) -> None:
    half = tr.Model(tiny_llama().model.to(torch.bfloat16))
    (exact_,), (rough,) = (saliency(m, [samples(1)[0]], LAYERS) for m in (model, half))
    assert rough.values.dtype == torch.float32
    for a, b in zip(exact_.values, rough.values, strict=True):
        assert torch.cosine_similarity(a, b, dim=0) > 0.95


def test_the_model_is_as_before(model: tr.Model) -> None:
    before = fingerprint(model.model)
    next(iter(model.model.parameters())).requires_grad_(False)
    saliency(model, [samples(1)[0]], [2])
    flags = [p.requires_grad for p in model.model.parameters()]
    assert (flags[0], all(flags[1:])) == (False, True)
    next(iter(model.model.parameters())).requires_grad_(True)
    assert all(p.grad is None for p in model.model.parameters())
    assert fingerprint(model.model) == before


@pytest.mark.parametrize(
    ("layers", "message"),
    [([0], "layer 0 cannot"), ([4], "layer 4 cannot"), ([], "must be given"), ([1, 1], "once")],
)
def test_layers_that_cannot_be_pruned_are_refused(model: tr.Model, layers: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        saliency(model, [samples(1)[0]], layers)


def test_models_without_gradients_are_refused(model: tr.Model) -> None:
    one = [samples(1)[0]]
    packed = tr.int8_weight_only(tr.load(tiny_llama(torch.bfloat16).model))
    with pytest.raises(UnsupportedModelError, match="quantised weights"):
        saliency(packed, one, [1])
    with pytest.raises(ConfigError, match="gradients underflow"):
        saliency(tr.Model(tiny_llama().model.half()), one, [1])
    with pytest.raises(UnsupportedModelError, match="no causal model"):
        saliency(tr.load("builtin:diffusion"), one, [1])
    with pytest.raises(ConfigError, match="unknown output"):
        saliency(model, one, [1], output="score")
    broken = tiny_llama()
    with torch.no_grad():
        broken.model.lm_head.weight[one[0].answer[0]] = 3e38
    with pytest.raises(NonFiniteError, match="sample s/0"):
        saliency(broken, one, [1])


def test_an_empty_prompt_or_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="sample a has an empty answer"):
        Sample("a", (1,), ())
    with pytest.raises(ConfigError, match="sample a has an empty prompt"):
        Sample("a", (), (1,))
    with pytest.raises(ConfigError, match="two samples are called 'a'"):
        Listed([Sample("a", (1,), (1,))] * 2)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_job_cut_off_between_any_two_shards_ends_with_the_same_bytes(
    model: tr.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "SHARD", 4)
    data = samples(10)
    assert mark(model, data, LAYERS, tmp_path / "whole", batch_size=3) is not None
    calls: list[int] = []
    real = targets.write_shard

    def dies(folder: Path, number: int, found: object) -> Path:
        calls.append(number)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return real(folder, number, found)

    monkeypatch.setattr(marking.targets, "write_shard", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            mark(model, data, LAYERS, tmp_path / "cut", batch_size=3)
        with pytest.raises(ConfigError, match="not finished"):
            Targets(tmp_path / "cut", model)
    found = mark(model, data, LAYERS, tmp_path / "cut", batch_size=3)
    assert calls == [0, 1, 1, 2, 2]  # no shard is written twice
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert found is not None
    assert len(found) == 10
    for i in range(10):
        (alone,) = saliency(model, [data[i]], LAYERS)
        torch.testing.assert_close(found.of(data[i]), alone.values, rtol=1e-3, atol=1e-7)


def test_processes_share_the_shards(model: tr.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "SHARD", 4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, finished in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert (mark(model, samples(10), LAYERS, tmp_path) is not None) == finished


def test_a_target_meets_no_other_sample(model: tr.Model, tmp_path: Path) -> None:
    data = samples(6)
    found = mark(model, data, LAYERS, tmp_path)
    assert found is not None
    mine = data[2]
    assert found.of(mine).shape == (2, len(mine.prompt))
    for other in (
        Sample(mine.name, (*mine.prompt[:-1], 96 - mine.prompt[-1]), mine.answer),
        Sample(mine.name, mine.prompt, (*mine.answer, 5)),
        Sample(mine.name, mine.prompt[:-1], (mine.prompt[-1], *mine.answer)),
        Sample(mine.name, data[3].prompt, data[3].answer),
    ):
        with pytest.raises(ConfigError, match="computed for other tokens"):
            found.of(other)
    with pytest.raises(ConfigError, match="has no target"):
        found.of(Sample("unknown", mine.prompt, mine.answer))
    with pytest.raises(ConfigError, match="other weights or another config"):
        Targets(tmp_path, tiny_llama(seed=1))


def test_another_request_and_damage_are_refused(model: tr.Model, tmp_path: Path) -> None:
    mark(model, samples(3), LAYERS, tmp_path)
    for wrong, key in (({"layers": [2]}, "layers"), ({"layers": LAYERS, "output": "logit"}, "output")):
        with pytest.raises(ConfigError, match=key):
            mark(model, samples(3), folder=tmp_path, **wrong)
    with pytest.raises(ConfigError, match="data"):
        mark(model, samples(4), LAYERS, tmp_path)
    shard = tmp_path / targets.shard_name(0)
    shard.write_bytes(shard.read_bytes()[:-3] + b"xyz")
    with pytest.raises(CheckpointError, match="not the shard that was written"):
        Targets(tmp_path)
    shard.unlink()
    with pytest.raises(CheckpointError, match="lacks targets-00000"):
        Targets(tmp_path)
    with pytest.raises(ConfigError, match="holds no targets"):
        Targets(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="batch size"):
        mark(model, samples(3), LAYERS, tmp_path / "x", batch_size=0)
