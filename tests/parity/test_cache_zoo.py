"""Kinds of cache on the families: exact ones are called so, lossy ones stay in a budget, the rest is refused."""

from __future__ import annotations

import random

import pytest
import torch

import twinrun as tr
from tests.support import zoo
from twinrun.bench.remembered import Remembered
from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.runners.forward import forward
from twinrun.runners.window import Window, causal

WINDOW = 12
KL = 0.011
"""Budget of an 8-bit cache on random weights, nats: twice the worst of 25 families (nemotron, 0.0054), 2026-11."""
SHIFTING = [f for f in zoo.FAMILIES if (f, "rolling") not in zoo.REFUSED]
SOME = ("mistral", "gemma2", "gpt2", "gptj", "bloom", "falcon", "qwen3moe", "deepseek3", "gpt-post")
QUICK = [
    ("llama", "prefix"),
    ("phi", "rolling"),
    ("gemma3", "rolling"),
    ("gemma3", "sliding"),
    ("gpt2", "rolling"),
    ("qwen3", "quantized"),
]


def ids(count: int, seed: int = 0) -> list[int]:
    pick = random.Random(seed)
    return [pick.randrange(3, 320) for _ in range(count)]


def check(family: str, kind: str, dtype: str, max_tokens: int = 33) -> None:
    """One verdict over the probes: padding, pad ids, the future, prompts longer than the window."""
    model = zoo.make(family, dtype)
    cases = tr.probes(model, max_tokens=max_tokens)
    slides = kind == "rolling" and family not in zoo.LEARNED
    reference = tr.Recompute(model, window=WINDOW) if slides else tr.Recompute(model)
    candidate = tr.KVCache(model, kind, **({"window": WINDOW} if slides else {}))
    verdict = tr.verify(reference, candidate, cases, budget={"kl": KL}, explain=False)
    expected = ("lossy", "equivalent") if kind == "quantized" else ("identical", "equivalent")
    assert verdict.verdict in expected, verdict.reason
    assert verdict.sweep.gap is not None, verdict.sweep.why_not


@pytest.mark.parametrize(("family", "kind"), QUICK)
def test_kinds_on_a_few_families(family: str, kind: str) -> None:
    check(family, kind, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("family", SHIFTING)
def test_the_ring_on_all_families(family: str) -> None:
    check(family, "rolling", "float32", 24)


@pytest.mark.slow
@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("kind", ["prefix", "offloaded", "quantized"])
def test_kinds_on_more_families(family: str, kind: str) -> None:
    if (family, kind) not in zoo.REFUSED:
        check(family, kind, "float32", 24)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "prefix"),
        ("mistral", "sliding"),
        ("gemma2", "rolling"),
        ("gptoss", "rolling"),
        ("opt", "rolling"),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kinds_in_half_precision(family: str, kind: str, dtype: str) -> None:
    check(family, kind, dtype, 24)


@pytest.mark.parametrize(("family", "kind"), sorted(zoo.REFUSED))
def test_what_a_family_cannot_have_is_refused_before_anything_runs(family: str, kind: str) -> None:
    model = zoo.make(family)
    with pytest.raises((ConfigError, UnsupportedModelError), match=zoo.REFUSED[family, kind]):
        tr.KVCache(model, kind, **({"window": WINDOW} if kind == "rolling" else {}))


@pytest.mark.parametrize("family", zoo.LEARNED)
def test_a_ring_of_learned_positions_is_a_windowed_mask_with_positions_that_stop(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stated difference, held against one forward of the model itself over 41 tokens; the table has 20 rows."""
    name, settings = zoo.CONFIGS[family]
    rows = next(key for key in ("n_positions", "block_size", "max_position_embeddings") if key in settings)
    monkeypatch.setitem(zoo.CONFIGS, family, (name, {**settings, rows: 20}))
    model, text = zoo.make(family), ids(41)
    mask = causal(41, Window.of(model, WINDOW, who="a test"))
    placed = torch.arange(41).clamp_max(19)[None]
    with model.raised(), torch.inference_mode():
        whole = forward(model, torch.tensor([text]), mask=mask, positions=placed, last=False)[0]
        found = tr.KVCache(model, "rolling", window=WINDOW).score(text, 3).logits.rows(0, 99)
    assert float((found - whole[2:]).abs().max()) < 1e-12


def test_a_reference_without_the_window_is_told_apart() -> None:
    """The control: the same verdict says different when one side forgets the window."""
    model = zoo.make("llama")
    reference = Remembered(tr.Recompute(model))
    for kind, options, passes in (("rolling", {"window": WINDOW}, False), ("rolling", {"window": 33}, True)):
        verdict = tr.verify(reference, tr.KVCache(model, kind, **options), [ids(33)], explain=False)
        assert verdict.passed is passes
