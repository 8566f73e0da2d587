"""Every planted fault is caught, the clean run beside it passes, and nothing stays behind."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

import twinrun as tr
from tests.support import zoo
from tests.support.state import fingerprint
from twinrun.bench.remembered import Remembered
from twinrun.faults.fault import broken_copy, candidate_for, trusted_side
from twinrun.faults.registry import FAULTS, get_fault
from twinrun.runners.registry import is_pruned

MAX_TOKENS = 41
DTYPES = ("float32", "bfloat16")
FAMILIES = {
    "double-bos": ("llama", "gpt2"),
    "position-off-by-one": ("llama", "gpt2"),
    "position-from-rows-kept": ("mistral", "gemma2"),
    "frozen-decode-position": ("llama", "gpt2"),
    "padded-positions-shared": ("llama", "gpt2"),
    "chunked-prefill-positions": ("llama", "gpt2"),
    "chunked-prefill-keys": ("llama", "gemma2"),
    "cache-slot-not-written": ("llama", "gptj"),
    "static-cache-without-mask": ("llama", "phi", "gpt-pre"),
    "float8-cache": ("llama", "gpt2"),
    "prefix-cache-pollution": ("llama", "gpt2"),
    "stale-cache-after-rollback": ("llama", "gpt2"),
    "pruned-prefill-not-decoded": ("llama", "gpt2"),
    "positions-renumbered-after-prune": ("llama", "phi"),
    "causal-mask-dropped": ("llama", "gemma2"),
    "left-padding-attended": ("llama", "gpt2"),
    "pad-id-masked": ("llama", "gptj"),
    "window-off-by-one": ("mistral", "gemma2"),
    "window-lost": ("mistral", "gemma2"),
    "nan-from-padding": ("llama", "gpt2"),
    "embedding-scaled-twice": ("gemma2", "gemma3"),
    "residual-multiplier-ignored": ("granite",),
    "rope-table-bfloat16": ("llama", "phi"),
    "rope-frequencies-off": ("llama", "phi"),
    "rope-scaling-ignored": ("llama-linear", "llama-yarn"),
    "norm-epsilon-off": ("llama", "gpt2"),
    "qk-norm-dropped": ("qwen3", "gemma3"),
    "attention-scale-off": ("llama", "gptj"),
    "attention-softcap-missing": ("gemma2-cap",),
    "decode-step-differs": ("llama", "gemma2"),
    "value-scale-off": ("llama", "gemma2"),
    "gqa-heads-tiled": ("llama", "gemma2"),
    "gelu-form-swapped": ("gpt2", "gemma2"),
    "router-normalisation-swapped": ("qwen3moe", "deepseek3"),
    "activations-overflow-float16": ("llama", "gpt2"),
    "head-not-loaded": ("llama", "gpt2"),
    "head-bias-dropped": ("phi", "gptj"),
    "softcap-missing": ("gemma2", "gemma3"),
    "logit-scale-off": ("llama", "gemma2"),
    "scores-off-by-one": ("llama", "gptj"),
    "padded-row-read": ("llama", "gpt2"),
    "scores-after-sorting": ("llama", "gpt2"),
    "softmax-in-half": ("llama", "gemma2"),
    "cached-position-always-zero": ("gpt-pre", "gpt-post", "gpt2"),
}
CAUSAL = [name for name, factory in FAULTS.items() if factory().way == "causal"]
"""Faults that verdict and blame judge; those of a canvas are judged by the trace (test_canvas_faults.py)."""
PLANTED = [
    (name, family, dtype)
    for name, pair in FAMILIES.items()
    for family in pair
    for dtype in DTYPES
    if family == pair[0] or dtype == "bfloat16"
]
"""float32 of a second family shows little more; the slow test below has it."""
SPREAD = (
    "llama", "mistral", "gemma2", "gpt2", "gptj", "phi", "qwen3moe", "bloom", "granite", "olmo2", "gpt-post",
)  # fmt: skip
"""Families that differ in positions, masks, norms, heads and experts, for the grid of faults and runners."""
CLEAN = sorted({(FAULTS[name]().runners[0], family, dtype) for name, family, dtype in PLANTED})


@functools.cache
def reference(family: str, dtype: str, runner: str = "recompute") -> Remembered:
    """Plain recomputation; for a runner that prunes the same runner, without a fault."""
    return Remembered(trusted_side(runner if is_pruned(runner) else "recompute", zoo.make(family, dtype)))


def judged(name: str, family: str, dtype: str, runner: str | None = None) -> tr.Verdict:
    """Verdict on one planted fault."""
    fault = get_fault(name)
    ours = reference(family, dtype, runner or fault.runners[0])
    candidate = candidate_for(fault, ours.model, runner)
    with fault.planted(candidate):
        return tr.verify(ours, candidate, tr.probes(ours.model, max_tokens=MAX_TOKENS))


def test_every_fault_has_its_families() -> None:
    assert list(FAMILIES) == CAUSAL


@pytest.mark.parametrize(("name", "family", "dtype"), PLANTED)
def test_a_planted_fault_is_caught(name: str, family: str, dtype: str) -> None:
    verdict = judged(name, family, dtype)
    assert verdict.verdict == "different", verdict.reason
    assert verdict.blame


@pytest.mark.parametrize(("runner", "family", "dtype"), CLEAN)
def test_the_same_run_without_a_fault_passes(runner: str, family: str, dtype: str) -> None:
    ours = reference(family, dtype, runner)
    candidate = zoo.runner(runner, broken_copy(ours.model))
    verdict = tr.verify(ours, candidate, tr.probes(ours.model, max_tokens=MAX_TOKENS))
    assert verdict.verdict in ("identical", "equivalent"), verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize("family", SPREAD)
@pytest.mark.parametrize("name", CAUSAL)
def test_a_fault_is_caught_in_every_runner_of_families_that_can_have_it(name: str, family: str) -> None:
    fault, model = get_fault(name), reference(family, "float32").model
    if fault.applies(model) is not None:
        with pytest.raises(tr.errors.UnsupportedModelError), fault.planted(candidate_for(fault, model)):
            pass
        return
    for runner in fault.runners:
        if (family, runner, "float32") not in zoo.KNOWN:
            verdict = judged(name, family, "float32", runner)
            assert verdict.verdict == "different", f"{runner}: {verdict.reason}"


def rows_of(runner: object) -> list[Tensor]:
    assert isinstance(runner, (tr.Recompute, tr.SinglePass, tr.KVCache))
    scores = runner.score_batch([[5, 0, 9, 7, 8, 3], [4, 6, 11]], [2, 2])
    return [s.logits.rows(0, s.logits.num_rows).clone() for s in scores]


@pytest.mark.parametrize(
    ("name", "family"), [(name, family) for name, chosen in FAMILIES.items() for family in chosen]
)
def test_planting_leaves_nothing_behind(name: str, family: str) -> None:
    fault = get_fault(name)
    runner = candidate_for(fault, reference(family, "bfloat16").model)
    right, attributes, before = rows_of(runner), dict(vars(runner)), fingerprint(runner.model.core)
    with fault.planted(runner):
        rows_of(runner)
    with pytest.raises(KeyError), fault.planted(runner):
        raise KeyError
    assert fingerprint(runner.model.core) == before
    assert vars(runner) == attributes
    assert all(torch.equal(a, b) for a, b in zip(right, rows_of(runner), strict=True))


def test_a_copy_shares_no_weight_and_no_config_with_its_model() -> None:
    model = reference("gemma2", "float32").model
    own = broken_copy(model)
    theirs = {p.data_ptr() for p in model.core.parameters()}
    assert not theirs & {p.data_ptr() for p in own.core.parameters()}
    assert own.core.config is not model.core.config


def test_every_fault_says_where_it_was_seen() -> None:
    for name, factory in FAULTS.items():
        fault = factory()
        assert fault.name == name
        assert fault.summary
        assert fault.where
        assert fault.thread or fault.name in {
            "head-bias-dropped",
            "logit-scale-off",
            "factor-off-by-one",
        }  # no public thread known
        assert all(link.startswith("https://github.com/") for link in fault.thread)


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(tr.errors.ConfigError, match="Did you mean 'norm-epsilon-off'"):
        get_fault("norm-epsilon-of")


@pytest.mark.parametrize(
    ("name", "family", "why"),
    [
        ("head-bias-dropped", "llama", "no bias"),
        ("softcap-missing", "llama", "no soft cap"),
        ("window-off-by-one", "llama", "no sliding window"),
        ("gqa-heads-tiled", "gptj", "tiling and repeating are the same"),
        ("rope-table-bfloat16", "gpt2", "rotary"),
        ("position-from-rows-kept", "llama", "no sliding window"),
        ("frozen-decode-position", "bloom", "no position_ids"),
        ("stale-cache-after-rollback", "mistral", "nothing can be rolled back"),
        ("rope-scaling-ignored", "llama", "no scaling"),
        ("rope-scaling-ignored", "llama-rope", "where its context ends"),
        ("qk-norm-dropped", "llama", "not normalised"),
        ("attention-softcap-missing", "llama", "no soft cap on its attention"),
        ("gelu-form-swapped", "llama", "no GELU"),
        ("router-normalisation-swapped", "mixtral", "no routers"),
        ("residual-multiplier-ignored", "llama", "no residual multiplier"),
        ("embedding-scaled-twice", "llama", "no factor"),
        ("cached-position-always-zero", "llama", "learned positions"),
    ],
)
def test_a_fault_that_cannot_exist_says_why(name: str, family: str, why: str) -> None:
    model = reference(family, "float32").model
    fault = get_fault(name)
    assert why in str(fault.applies(model))
    with (
        pytest.raises(tr.errors.UnsupportedModelError, match=why),
        fault.planted(candidate_for(fault, model)),
    ):
        pass


def test_a_runner_that_cannot_show_a_fault_is_refused() -> None:
    model = reference("llama", "float32").model
    fault = get_fault("cache-slot-not-written")
    with pytest.raises(tr.errors.ConfigError, match="kv-cache:dynamic"), fault.planted(tr.SinglePass(model)):
        pass
    with pytest.raises(tr.errors.ConfigError, match="choose from"):
        candidate_for(fault, model, "single-pass")
