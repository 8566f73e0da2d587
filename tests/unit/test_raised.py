"""Running one precision up: the numbers are those of a raised copy, and every bit is back afterwards."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from tests.conftest import fingerprint
from tests.support.zoo import make
from twinrun.errors import UnsupportedModelError
from twinrun.models.raised import raised, raised_part

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


def test_streaming_holds_one_unit_at_a_time() -> None:
    model = make("llama", "bfloat16")
    raised_layers: list[int] = []

    def count(_module: object, _args: object, _out: object) -> None:
        raised_layers.append(sum(next(p.parameters()).dtype == torch.float32 for p in model.layout.layers))

    handles = [layer.mlp.register_forward_hook(count) for layer in model.layout.layers]
    with torch.inference_mode(), raised(model.model, model.layout.layers, torch.float32):
        model.model(IDS)
    for handle in handles:
        handle.remove()
    assert raised_layers == [1, 1, 1]


def test_a_part_alone() -> None:
    layer = torch.nn.Linear(3, 3).bfloat16()
    weight = layer.weight
    with raised_part(layer, torch.float32):
        assert layer.weight.dtype == torch.float32
    assert layer.weight is weight


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
