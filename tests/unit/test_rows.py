"""What a packed step makes of one row beside its products: GELU, sums without a stop, parts, a turned head."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

import twinrun as tr
from tests.support.zoo import make
from twinrun.runners import packed as packed_module
from twinrun.runners.captured import close
from twinrun.runners.forward import Reader
from twinrun.runners.gelu import fuse_gelu
from twinrun.runners.peephole import name_parts
from twinrun.runners.scratch import add_products

ROW = [5, 9, 200, 31, 8, 77, 12]
aten = torch.ops.aten


def packed(model: tr.Model) -> tr.KVCache:
    return tr.KVCache(model, "static", step="packed")


def source_of(runner: tr.KVCache) -> str:
    assert runner._steps is not None
    return next(iter(runner._steps.store.graphs.values()))[0].flat.source


def traced(function: Callable[..., Tensor], *inputs: Tensor) -> GraphModule:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), mode:
        return make_fx(function, tracing_mode="real", pre_dispatch=True)(*map(mode.from_tensor, inputs))


def formula(
    x: Tensor,
    half: float = 0.5,
    scale: float = math.sqrt(2 / math.pi),
    cubic: float = 0.044715,
    power: float = 3.0,
) -> Tensor:
    return half * x * (1.0 + torch.tanh(scale * (x + cubic * torch.pow(x, power))))


def test_gelu_is_one_operator_and_the_same_numbers() -> None:
    x = torch.linspace(-9, 9, 257, dtype=torch.float64)
    graph = traced(lambda x: formula(x), x)
    assert fuse_gelu(graph) == 1
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [aten.gelu.default]
    graph.recompile()
    k = math.sqrt(2 / math.pi)
    want = [0.5 * v * (1 + math.tanh(k * (v + 0.044715 * v**3))) for v in x.tolist()]
    torch.testing.assert_close(graph(x), torch.tensor(want, dtype=torch.float64), atol=1e-13, rtol=0)


@pytest.mark.parametrize("wrong", [{"half": 0.51}, {"scale": 0.8}, {"cubic": 0.0447}, {"power": 2.0}])
def test_another_formula_stays_as_it_is(wrong: dict[str, float]) -> None:
    x = torch.linspace(-3, 3, 11)
    graph = traced(lambda x: formula(x, **wrong), x)
    assert fuse_gelu(graph) == 0
    torch.testing.assert_close(graph(x), formula(x, **wrong), atol=0, rtol=0)


def test_a_formula_of_two_inputs_is_no_gelu() -> None:
    x, y = torch.linspace(-3, 3, 11), torch.linspace(-2, 4, 11)
    graph = traced(
        lambda x, y: 0.5 * y * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3.0))), x, y
    )
    assert fuse_gelu(graph) == 0


def test_a_step_of_gpt2_is_thirteen_operators_a_layer() -> None:
    model = make("gpt2", "float32")
    fast = packed(model)
    run = fast.generate(ROW, 4, stop_at_eos=False)
    assert run.settings.get("step_fallback") is None, run.settings
    body, layers = source_of(fast).split("def step")[1], model.config.num_hidden_layers
    counts = {
        name: body.count(f"{name}(") for name in ("addmm_out", "gelu_default", "tanh_default", "add__Tensor")
    }
    assert counts == {
        "addmm_out": 4 * layers,
        "gelu_default": layers,
        "tanh_default": 0,
        "add__Tensor": 2 * layers,
    }
    assert "split" not in body
    assert body.count("(") < 14 * layers + 14


class Sums(torch.nn.Module):
    """A stream that takes two products of one row; `reads` may read the first product once more."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        torch.manual_seed(0)
        self.bias, self.weight = (torch.nn.Parameter(torch.randn(*s)) for s in ((8,), (8, 8)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Both sums, and what reads them."""
        stream = x + y
        for _ in range(2):
            product = torch.addmm(self.bias, torch.relu(stream), self.weight)
            stream = product + stream
            if self.reads:
                stream = torch.relu(stream) * product
        return torch.relu(stream)


@pytest.mark.parametrize(("reads", "count"), [(False, 2), (True, 0)])
def test_products_go_into_the_sum_that_takes_them(reads: bool, count: int) -> None:
    """Control: a product that something else reads stays a product."""
    module, x, y = Sums(reads), torch.randn(1, 8), torch.randn(1, 8)
    with torch.no_grad():
        graph = traced(module, x, y)
        kept = x.clone(), y.clone()
        assert add_products(graph) == count
        graph.recompile()
        torch.testing.assert_close(graph(x, y), module(x, y), atol=2e-5, rtol=0)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


def test_a_stream_that_is_read_later_is_not_written() -> None:
    """The second sum reads the first stream again, behind the sum that would have overwritten it."""
    bias, weight = torch.randn(8), torch.randn(8, 8)

    def step(x: Tensor, y: Tensor) -> Tensor:
        stream = x + y
        after = torch.addmm(bias, torch.relu(stream), weight) + stream
        return torch.relu(after) * stream

    x, y = torch.randn(1, 8), torch.randn(1, 8)
    graph = traced(step, x, y)
    assert add_products(graph) == 0
    assert torch.equal(graph(x, y), step(x, y))


@pytest.mark.parametrize(("axis", "count"), [(2, 3), (-1, 3), (1, 0)])
def test_parts_of_a_row_are_named_by_a_view(axis: int, count: int) -> None:
    """Control: a split along another axis than the last stays a split."""
    x = torch.randn(1, 1, 12) if count else torch.randn(1, 12, 1)

    def step(x: Tensor) -> Tensor:
        first, second, third = torch.split(x, 4, dim=axis)
        return first.reshape(1, 2, 2) * 2 + second.reshape(1, 2, 2) - third.reshape(1, 2, 2)

    graph = traced(step, x)
    assert name_parts(graph) == count
    graph.recompile()
    assert torch.equal(graph(x), step(x))


@pytest.fixture
def _small_heads_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "TURN_BYTES", 1000)


@pytest.mark.usefixtures("_small_heads_are_large")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_large_head_on_a_narrow_vector_is_turned(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where vectors are wider than the limit, nothing is turned."""
    model, sources = make(family, "float32"), []
    for width in (packed_module.TURN_WIDTH, 4):
        monkeypatch.setattr(packed_module, "TURN_WIDTH", width)
        fast = packed(model)
        run = fast.generate(ROW, 12, stop_at_eos=False)
        assert run.settings.get("step_fallback") is None, run.settings
        assert run.tokens == tr.KVCache(model).generate(ROW, 12, stop_at_eos=False).tokens
        sources.append(source_of(fast))
    assert ["twinrun" in s or "mm_default(" in s.replace("addmm", "") for s in sources] == [True, False]


@pytest.mark.usefixtures("_small_heads_are_large")
def test_a_change_of_a_turned_head_is_seen() -> None:
    model = make("gpt2", "float32")
    fast, row = packed(model), list(range(3, 30))
    before = fast.score(row, 5).logits.rows(0, 99)
    with torch.no_grad():
        model.core.lm_head.weight[7] *= 2
    got, want = fast.score(row, 5), tr.KVCache(model).score(row, 5)
    assert close(got.logits.rows(0, 99), want.logits.rows(0, 99))
    assert not close(got.logits.rows(0, 99), before)


@pytest.mark.usefixtures("_small_heads_are_large")
def test_scores_of_a_turned_head_are_the_steps_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own head gives other bits, so nothing is streamed through it; that is known after one step."""
    taken = []

    def spy(self: Reader, outs: list[Tensor], shape: torch.Size) -> Tensor:
        taken.append(self._caught is not None)
        return took(self, outs, shape)

    took = Reader.took
    monkeypatch.setattr(Reader, "took", spy)
    model, row = make("gpt2", "float32"), list(range(3, 40))
    scores = packed(model).score(row, 5)
    assert scores.path == "the model's own forward, packed step"
    assert taken[0] is True
    assert taken.count(True) <= 2
    assert taken.count(False) == len(row) - 5
    assert close(scores.logits.rows(0, 99), tr.Recompute(model).score(row, 5).logits.rows(0, 99))
