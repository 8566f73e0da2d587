"""Weight-only int8: rounding against float64, another model beside the first, verdicts that say lossy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import twinrun as tr
from tests.conftest import fingerprint
from tests.support.zoo import make
from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.models.int8 import KERNEL_ROWS, Int8Linear, rounded
from twinrun.runners import peephole

ROW = list(range(3, 40))


def packed(model: tr.Model) -> tr.KVCache:
    return tr.KVCache(model, "static", step="packed")


def is_nearest(weight: Tensor, integers: Tensor, scale: Tensor) -> bool:
    """Whether every weight is at most half a step from its integer, in float64."""
    gap = (weight.double() - integers.double() * scale.double()[:, None]).abs()
    return bool((gap <= 0.5001 * scale.double()[:, None]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_integers_are_the_nearest_to_the_scale_that_is_kept(dtype: torch.dtype) -> None:
    """Control: the same integers under a scale that is 2 % larger are not."""
    torch.manual_seed(0)
    weight = (torch.randn(41, 64) * torch.logspace(-6, 2, 41)[:, None]).to(dtype)
    weight[7] = 0
    integers, scale = rounded(weight)
    assert integers.dtype == torch.int8
    assert scale.dtype == dtype
    assert int(integers.min()) >= -127
    assert is_nearest(weight, integers, scale)
    assert not is_nearest(weight, integers, scale * 1.02)


@pytest.mark.parametrize("rows", [1, 3, KERNEL_ROWS + 1])
def test_a_layer_multiplies_like_float64(rows: int) -> None:
    """Few rows by the kernel, many by an ordinary product. Control: a scale that is 2 % off."""
    torch.manual_seed(rows)
    weight, x = torch.randn(48, 64, dtype=torch.bfloat16), torch.randn(1, rows, 64, dtype=torch.bfloat16)
    layer = Int8Linear(weight, nn.Parameter(torch.randn(48, dtype=torch.bfloat16), requires_grad=False))
    want = x.double() @ (layer.weight_int8.double() * layer.scale.double()[:, None]).mT + layer.bias.double()
    room = (
        2 * 2**-8 * float(want.abs().max())
    )  # the product rounds twice, the sum once: 1.0 measured over 20 seeds
    assert float((layer(x).double() - want).abs().max()) <= room
    layer.scale = layer.scale * 1.02
    assert float((layer(x).double() - want).abs().max()) > room


@pytest.mark.parametrize("family", ["gpt-pre", "gpt2", "llama"])
def test_it_is_another_model_and_the_first_stays(family: str) -> None:
    model = make(family, "bfloat16")
    before = fingerprint(model.core)
    small = tr.int8_weight_only(model)
    assert fingerprint(model.core) == before
    assert not any(type(part).__name__ in ("Linear", "Conv1D") for part in small.core.modules())
    assert small.core.get_input_embeddings().weight is model.core.get_input_embeddings().weight
    assert "int8" in small.name
    assert small.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["gpt-pre", "gpt2", "llama", "mistral"])
def test_the_packed_step_is_the_models_own_forward(family: str) -> None:
    """Beside the int8 model itself the step is equivalent; beside the weights it was made of it is lossy."""
    model = make(family, "bfloat16")
    fast = packed(tr.int8_weight_only(model))
    own = tr.verify(tr.Recompute(fast.model), fast, [ROW])
    assert own.verdict in ("identical", "equivalent"), own.reason
    assert own.paths["candidate"].endswith("packed step")
    assert own.paths["candidate_up"].endswith("packed step")
    told = tr.verify(tr.Recompute(model), fast, [ROW], budget={"kl": 0.05}, explain=False)
    assert told.verdict == "lossy", told.reason
    assert told.candidate.endswith("int8 weights")
    assert "int8" not in own.candidate
    assert told.sweep is not None
    assert told.sweep.gap > told.sweep.allowed > 0


def test_without_a_budget_or_outside_it_the_verdict_is_different() -> None:
    model = make("llama", "bfloat16")
    fast = packed(tr.int8_weight_only(model))
    for budget in (None, {"kl": 1e-12}):
        found = tr.verify(tr.Recompute(model), fast, [ROW], budget=budget, explain=False)
        assert found.verdict == "different", found.reason


def test_products_of_one_vector_are_one() -> None:
    """Control: with no size small enough, nothing is stacked."""
    counts = []
    for limit in (peephole.MAX_STACKED_BYTES, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(peephole, "MAX_STACKED_BYTES", limit)
            fast = packed(tr.int8_weight_only(make("gpt-pre", "bfloat16")))
            run = fast.generate(ROW[:5], 4, stop_at_eos=False)
        assert run.settings.get("step_fallback") is None, run.settings
        assert fast._steps is not None
        source = next(iter(fast._steps.store.graphs.values()))[0].flat.source
        counts.append(source.count(" f_int8_rows_biased(") - source.count("def "))
    layers = fast.model.config.n_layer
    assert counts[1] - counts[0] == 2 * layers


def test_a_wrong_scale_in_the_step_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(*parts: Tensor) -> Tensor:
        whole = torch.cat(parts)
        return whole if whole.dtype == torch.int8 else whole * 2

    doubled.__module__ = peephole.__name__
    monkeypatch.setattr(peephole, "stacked", doubled)
    run = packed(tr.int8_weight_only(make("llama", "bfloat16"))).generate(ROW[:5], 6, stop_at_eos=False)
    assert "packed step is off by" in str(run.settings.get("step_fallback"))


def test_refusals_name_the_way_out() -> None:
    model = make("llama", "float32")
    with pytest.raises(UnsupportedModelError, match="no linear layers left"):
        tr.int8_weight_only(tr.int8_weight_only(model))
    with model.raised(), pytest.raises(ConfigError, match="leave that block"):
        tr.int8_weight_only(model)
    with pytest.raises(UnsupportedModelError, match=r"before torch\.compile"):
        tr.int8_weight_only(tr.Model(torch.compile(model.core)))
