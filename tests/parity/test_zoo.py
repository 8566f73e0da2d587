"""Every family of the zoo, every runner, three precisions: clean runs must never be called different."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
import torch

import twinrun as tr
from tests.support import zoo
from tests.support.state import fingerprint
from twinrun.bench.remembered import Remembered

ALL_RUNNERS = ("recompute", *zoo.CANDIDATES)
COMBINATIONS = [(family, dtype) for family in zoo.FAMILIES for dtype in zoo.DTYPES]
QUICK = {"float32": ("single-pass", "kv-cache:static"), "bfloat16": ("single-pass", "kv-cache:dynamic")}
"""Runners of the quick tests; the slow ones take every runner in every precision."""
SHORT, LONG = 33, 310
"""Longest probe, in tokens. Short ones hold padding, pad ids, the future, and windows of 16; long ones also
positions beyond 256, where bfloat16 rotary tables collide."""


def ids(count: int, seed: int = 0) -> list[int]:
    """Random ids, none of them special."""
    pick = random.Random(seed)
    return [pick.randrange(3, 320) for _ in range(count)]


def clean_verdicts(
    family: str, dtype: str, max_tokens: int, names: tuple[str, ...] = zoo.CANDIDATES, seed: int = 0
) -> dict[str, tr.Verdict]:
    """Verdict of each of these runners that is not known to fail, against recomputing."""
    model = zoo.make(family, dtype, seed)
    reference = Remembered(tr.Recompute(model))
    probes = tr.probes(model, max_tokens=max_tokens)
    fair = [name for name in names if (family, name, dtype) not in zoo.KNOWN]
    return {name: tr.verify(reference, zoo.runner(name, model), probes) for name in fair}


def assert_clean(verdicts: dict[str, tr.Verdict]) -> None:
    for name, verdict in verdicts.items():
        assert verdict.verdict in ("identical", "equivalent"), f"{name}: {verdict.reason}"
        assert verdict.sweep.gap is not None, f"{name}: {verdict.sweep.why_not}"


def without_known(combinations: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave out families whose every runner is listed in KNOWN; those have a test of their own."""
    return [(f, d) for f, d in combinations if any((f, name, d) not in zoo.KNOWN for name in zoo.CANDIDATES)]


@pytest.mark.parametrize(("family", "dtype"), without_known([(f, d) for f, d in COMBINATIONS if d in QUICK]))
def test_clean_runs_pass(family: str, dtype: str) -> None:
    assert_clean(clean_verdicts(family, dtype, SHORT, QUICK[dtype]))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dtype"), without_known(COMBINATIONS))
def test_clean_runs_pass_on_long_probes(family: str, dtype: str) -> None:
    assert_clean(clean_verdicts(family, dtype, LONG))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_single_pass_can_be_the_reference(family: str, dtype: str) -> None:
    model = zoo.make(family, dtype)
    verdict = tr.verify(tr.SinglePass(model), tr.KVCache(model), tr.probes(model, max_tokens=SHORT))
    assert verdict.verdict in ("identical", "equivalent"), verdict.reason


@pytest.mark.parametrize(("family", "name", "dtype"), sorted(zoo.KNOWN))
def test_a_known_failure_still_fails(family: str, name: str, dtype: str) -> None:
    model = zoo.make(family, dtype)
    probes = tr.probes(model, max_tokens=SHORT)
    try:
        word: str = tr.verify(tr.Recompute(model), zoo.runner(name, model), probes).verdict
    except (RuntimeError, tr.errors.UnsupportedModelError) as error:
        word = "different" if "size" in str(error) else f"failed otherwise: {error}"
    assert word == "different", f"take it out of KNOWN: {zoo.KNOWN[family, name, dtype]}"


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("family", zoo.ROUTED)
def test_router_ties_are_no_bug(family: str, seed: int) -> None:
    assert_clean(clean_verdicts(family, "bfloat16", 31, QUICK["bfloat16"], seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 13))
@pytest.mark.parametrize("family", zoo.ROUTED)
def test_router_ties_are_no_bug_over_many_seeds(family: str, seed: int) -> None:
    assert_clean(clean_verdicts(family, "bfloat16", SHORT, seed=seed))


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_all_runners_generate_the_same_tokens(family: str) -> None:
    model = zoo.make(family)
    prompts = [ids(5, 1), ids(11, 2), ids(2, 3)]
    names = [n for n in ALL_RUNNERS if (family, n, "float32") not in zoo.KNOWN]
    runs = {
        n: zoo.runner(n, model).generate(prompts, max_new_tokens=5, stop_at_eos=False).tokens for n in names
    }
    alone = [tr.KVCache(model).generate(p, max_new_tokens=5, stop_at_eos=False).tokens[0] for p in prompts]
    for name in names:
        assert runs[name] == runs["recompute"], name
    assert alone == runs["recompute"]


# Largest change of a log-probability when a row is scored in a batch, not alone, over the largest absolute
# log-probability of the row, in float32 eps: worst of 20 seeds of 21 families on two CPU cores, 2026-11.
# The bound is twice that.
MEASURED_BATCH_EPS = 2.7


def batch_error_in_eps(family: str, name: str, seed: int = 0) -> float:
    """Worst change of any row of a padded batch against the row alone."""
    model = zoo.make(family, seed=seed)
    rows, starts = [ids(5, 4), ids(31, 5), ids(12, 6)], [3, 23, 12]
    if family == "phi3-long":
        rows = [row[:20] for row in rows]
        starts = [min(start, 17) for start in starts]
    runner = zoo.runner(name, model)
    worst = 0.0
    for row, start, together in zip(rows, starts, runner.score_batch(rows, starts), strict=True):
        alone = runner.score(row, start)
        a, b = (
            torch.log_softmax(s.logits.rows(0, s.logits.num_rows).double(), -1) for s in (alone, together)
        )
        assert a.shape == b.shape
        worst = max(worst, float((a - b).abs().max() / a.abs().max()))
    return worst / torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", ["single-pass", "kv-cache:dynamic"])
@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_row_of_a_batch_equals_the_row_alone(family: str, name: str) -> None:
    assert batch_error_in_eps(family, name) <= 2 * MEASURED_BATCH_EPS


def test_a_batch_whose_padding_is_seen_breaks_that_bound() -> None:
    model = zoo.make("llama")
    runner = tr.SinglePass(model)
    padded = model.core.forward

    def blind(**kwargs: Any) -> Any:
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = torch.ones_like(kwargs["attention_mask"])
        return padded(**kwargs)

    together = runner.score_batch([ids(5, 4), ids(12, 6)], [3, 12])[0]
    model.core.forward = blind
    broken = runner.score_batch([ids(5, 4), ids(12, 6)], [3, 12])[0]
    a, b = (torch.log_softmax(s.logits.rows(0, 3).double(), -1) for s in (together, broken))
    assert (
        float((a - b).abs().max() / a.abs().max())
        > 2 * MEASURED_BATCH_EPS * torch.finfo(torch.float32).eps * 100
    )


@pytest.mark.parametrize("family", zoo.FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_running_and_raising_leave_the_model_as_it_was(family: str, dtype: str) -> None:
    model = zoo.make(family, dtype)
    text = ids(9, 7)
    first = tr.SinglePass(model).score(text, 2).logits.rows(0, 8).clone()
    before = fingerprint(model.core)
    runners = [zoo.runner(name, model) for name in ALL_RUNNERS if (family, name, dtype) not in zoo.KNOWN]
    for runner in runners:
        runner.score_batch([text, text[:4]], [2, 3])
        with runner.raised():
            runner.score(text, 2)
        with contextlib.suppress(KeyError), runner.raised():
            raise KeyError
    assert fingerprint(model.core) == before
    assert torch.equal(tr.SinglePass(model).score(text, 2).logits.rows(0, 8), first)
