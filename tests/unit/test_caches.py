"""Kinds of cache: what each promises, which settings it takes, and what it refuses by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import twinrun as tr
from tests.support.zoo import make
from twinrun.errors import ConfigError, MissingBackendError, UnsupportedModelError
from twinrun.runners.caches import CACHES
from twinrun.runners.quantized import BACKENDS, PACKAGES, _is_installed
from twinrun.runners.registry import RUNNERS, build_runner

TEXT = [5, 9, 200, 31, 8, 77, 12, 44, 3, 17, 99, 250, 6, 14, 61, 90, 23, 180, 7, 33, 5, 9, 201, 31]


def scored(runner: tr.KVCache, text: list[int] = TEXT, start: int = 8) -> torch.Tensor:
    return runner.score(text, start).logits.rows(0, 99)


def test_every_kind_is_a_runner_with_its_summary_and_limits() -> None:
    for name, kind in CACHES.items():
        runner = RUNNERS[f"kv-cache:{name}"]
        assert (runner.summary, runner.exact, runner.limits) == (kind.summary, kind.is_exact, kind.limits)
        assert kind.summary
        assert kind.limits


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-pre"])
@pytest.mark.parametrize("kind", ["offloaded", "prefix", "sliding"])
def test_kinds_that_store_what_dynamic_stores_give_the_same_bits(family: str, kind: str) -> None:
    model = make(family)
    if kind == "sliding" and family != "gemma2":
        with pytest.raises(ConfigError, match="has no sliding-window layer; use cache='dynamic'"):
            tr.KVCache(model, kind)
        return
    assert torch.equal(scored(tr.KVCache(model, kind)), scored(tr.KVCache(model)))


def test_a_sliding_cache_keeps_no_more_than_the_window() -> None:
    run = tr.KVCache(make("mistral"), "sliding").open([5] * 40, room=2)
    run.feed([[7]])
    kept = [layer.keys.shape[-2] for layer in run._state.cache.layers]
    assert kept == [15, 15, 15]  # a window of 16, the next token included
    assert run.cache_lengths == (41, 41, 41)


def test_on_a_cpu_nothing_is_offloaded() -> None:
    cache = tr.KVCache(make("llama"), "offloaded").new_cache(9)
    assert cache.offloading is False


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_quantised_cache_is_lossy_inside_a_budget_and_different_without(family: str) -> None:
    model = make(family)
    sides = tr.Recompute(model), tr.KVCache(model, "quantized")
    assert tr.verify(*sides, [TEXT], explain=False).verdict == "different"
    verdict = tr.verify(*sides, [TEXT], budget={"kl": 1e-3}, explain=False)
    assert verdict.verdict == "lossy"
    assert 0 < (verdict.kl_mean or 0) < 1e-3
    assert tr.verify(*sides, [TEXT], budget={"kl": 1e-9}, explain=False).verdict == "different"


HERE = [name for name in BACKENDS if name not in PACKAGES or _is_installed(PACKAGES[name][0])]
"""Backends that this installation has; at least fp8, which needs nothing."""


@pytest.mark.parametrize(("backend", "bits"), [(name, bits) for name in HERE for bits in BACKENDS[name]])
def test_every_backend_and_width_runs_and_coarser_costs_more(backend: str, bits: int) -> None:
    model = make("llama")
    options: dict[str, Any] = {"backend": backend, "bits": bits}
    options |= {} if backend == "fp8" else {"group_size": 16, "residual_length": 4}
    runner = tr.KVCache(model, "quantized", **options)
    verdict = tr.verify(tr.Recompute(model), runner, [TEXT], budget={"kl": 0.2}, explain=False)
    assert verdict.verdict == "lossy", verdict.reason
    assert (verdict.kl_mean or 0) < {1: 0.2, 2: 0.05, 3: 0.01, 4: 0.005, 8: 0.001}[bits]
    assert len(runner.generate(TEXT, 6, stop_at_eos=False).tokens[0]) == 6


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from twinrun.runners import quantized

    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    for backend, (package, install) in PACKAGES.items():
        with pytest.raises(MissingBackendError, match=rf"needs {package}.*pip install {re.escape(install)}"):
            tr.KVCache(make("llama"), "quantized", bits=4, backend=backend)
    assert PACKAGES["quanto"][1] == "'twinrun[quantized]'"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("statik", {}, "no cache kind 'statik'.*Did you mean 'static'"),
        ("dynamic", {"window": 4}, "cache 'dynamic' has no setting 'window'; it takes none"),
        ("rolling", {"windw": 4}, "Did you mean 'window'"),
        ("prefix", {"entries": 0}, "entries must be at least 1"),
        ("quantized", {"bits": 5}, "bits=5 with backend 'quanto', which stores 2 or 4"),
        ("quantized", {"bits": 4, "backend": "fp8"}, "which stores 8"),
        ("quantized", {"backend": "int8"}, "backend must be auto, fp8, quanto or hqq"),
        ("quantized", {"residual_length": 0}, "residual_length must be at least 1"),
    ],
)
def test_bad_settings(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tr.KVCache(make("llama"), kind, **options)


def test_layers_that_a_kind_cannot_serve_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="transformers does not quantise; use cache='sliding'"):
        tr.KVCache(make("mistral"), "quantized")


def test_settings_that_are_not_the_default_stand_in_the_name() -> None:
    model = make("llama")
    assert tr.KVCache(model, "rolling", window=8).name == "kv-cache:rolling(window=8)"
    assert build_runner("kv-cache:prefix", model).name == "kv-cache:prefix"
    assert tr.Recompute(model, window=8).name == "recompute(window=8)"
