"""Running one precision up: the numbers are those of a raised copy, and every bit is back afterwards."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from tests.conftest import fingerprint
from tests.support.zoo import make
from twinrun.errors import UnsupportedModelError
from twinrun.models import linear_up
from twinrun.models.raised import raised, raised_part, raised_to

IDS = torch.arange(12)[None] * 5


@pytest.mark.parametrize("budget", [0, 60_000, math.inf])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
def test_bfloat16_raised_equals_a_float32_copy(family: str, budget: float) -> None:
    model = make(family, "bfloat16")
    before = fingerprint(model.model)
    with torch.inference_mode():
        low = model.model(IDS).logits
        with raised(model.model, model.layout.layers, torch.float32, budget_bytes=budget):
            up = model.model(IDS).logits
        want = copy.deepcopy(model.model).float()(IDS).logits
        again = model.model(IDS).logits
    assert up.dtype == torch.float32
    assert torch.equal(up, want)
    assert not torch.equal(up, low.float())
    assert torch.equal(again, low)
    assert fingerprint(model.model) == before


def test_float64_is_not_rounded_to_float32_on_the_way() -> None:
    """Norms and rotary tables ask for float32 by name; inside they must get float64."""
    model = make("llama", "float32")
    seen: set[torch.dtype] = set()
    norm = model.model.get_submodule(model.layout.norm_name or "")
    handle = norm.register_forward_hook(lambda _m, args, out: seen.update({args[0].dtype, out.dtype}))
    with torch.inference_mode(), raised(model.model, model.layout.layers, torch.float64):
        a = model.model(IDS).logits
        b = torch.cat([model.model(IDS[:, : i + 1]).logits[:, -1:] for i in range(IDS.shape[1])], dim=1)
    handle.remove()
    assert seen == {torch.float64}
    assert float((a - b).abs().max()) < 1e-13


def test_an_error_inside_puts_everything_back() -> None:
    model = make("llama", "bfloat16")
    before = fingerprint(model.model)
    with (
        pytest.raises(RuntimeError, match="boom"),
        raised(model.model, model.layout.layers, torch.float32, budget_bytes=math.inf),
    ):
        raise RuntimeError("boom")
    assert fingerprint(model.model) == before
    with pytest.raises(IndexError), raised(model.model, model.layout.layers, torch.float32):
        model.model(torch.tensor([[10_000]]))
    assert fingerprint(model.model) == before


def test_streaming_holds_one_unit_at_a_time_and_no_weight_of_a_linear_layer() -> None:
    model = make("llama", "bfloat16")
    norms: list[int] = []
    weights: set[torch.dtype] = set()

    def look(_module: object, _args: object, _out: object) -> None:
        norms.append(
            sum(layer.input_layernorm.weight.dtype == torch.float32 for layer in model.layout.layers)
        )
        weights.update(m.weight.dtype for m in model.core.modules() if isinstance(m, torch.nn.Linear))

    handles = [layer.mlp.register_forward_hook(look) for layer in model.layout.layers]
    with torch.inference_mode(), raised(model.model, model.layout.layers, torch.float32):
        model.model(IDS)
    for handle in handles:
        handle.remove()
    assert norms == [1, 1, 1]
    assert weights == {torch.bfloat16}


def test_a_part_alone() -> None:
    layer = torch.nn.Linear(3, 3).bfloat16()
    weight, x = layer.weight, torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), raised_part(layer, torch.float32):
        got = layer(x)
    assert layer.weight is weight
    assert torch.equal(got, copy.deepcopy(layer).float()(x))
    with raised_part(layer, torch.float16):  # down, the other way
        assert layer.weight.dtype == torch.float16


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 7, 41), (150, 96)])
def test_a_product_in_slices_is_that_of_a_raised_copy(
    low: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_up, "SLICE_BYTES", 2048)  # several slices and a rest
    layer = torch.nn.Linear(shape[-1], 37).to(low)
    up = {torch.float32: torch.float64, torch.bfloat16: torch.float32}[low]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(up)
    want = x.double() @ layer.weight.detach().double().T + layer.bias.detach().double()
    with torch.inference_mode(), linear_up.Up(up):
        got = layer(x)
        assert torch.equal(torch.matmul(x, layer.weight.T), x @ layer.weight.to(up).T)
    bound = 16 * torch.finfo(up).eps * float(want.abs().max())  # measured: below 2 over ten seeds
    assert got.dtype == up
    assert float((got.double() - want).abs().max()) < bound
    assert float((got.double() * 1.001 - want).abs().max()) > bound  # the control
    with linear_up.Up(up):  # gradients take the plain way
        layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_a_block_inside_a_block_shares_the_raised_copy() -> None:
    model = make("llama", "bfloat16")
    with model.raised() as outer:
        weight = model.layout.layers[0].mlp.up_proj.weight
        with model.raised() as inner:
            assert model.layout.layers[0].mlp.up_proj.weight is weight
        assert (outer, inner, model.dtype) == (torch.float32,) * 3
    assert model.dtype == torch.bfloat16
    assert raised_to(model.core) is None


class Int8Linear(torch.nn.Module):
    """Weight-only int8, as quantisation libraries keep it."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__()
        self.scale = torch.nn.Buffer(plain.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.weight = torch.nn.Buffer((plain.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale.to(x.dtype)).T


def test_quantised_weights_have_no_precision_above() -> None:
    model = make("llama", "float32")
    layer = model.model.get_submodule("model.layers.1.mlp")
    layer.up_proj = Int8Linear(layer.up_proj)
    with (
        pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.up_proj .* holds quantised weights"),
        raised(model.model, [], torch.float64),
    ):
        pass
    assert "quantised" in (model.can_raise() or "")
