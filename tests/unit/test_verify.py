"""The verdict on candidates made by hand, whose faults are known because they are written here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import twinrun as tr
from tests.support.zoo import make
from twinrun.errors import ConfigError, NonFiniteError, VerificationFailed
from twinrun.verify.case import Case

ROW = [3, 141, 59, 26, 53, 58, 97, 93, 238, 46]


class Engine:
    """Somebody's engine: only `score`, on top of a model, with one thing changed."""

    def __init__(self, model: tr.Model, change: Any = None, keep: Any = None) -> None:
        self.model = model
        self.change = change
        self.keep = keep or (lambda logits: logits)
        self.dtype = "float32"

    def score(self, tokens: Sequence[int], start: int) -> Tensor | tr.Scores:
        with torch.inference_mode():
            logits = self.model.model(torch.tensor([list(tokens)])).logits[0, start - 1 :]
        return self.keep(self.change(logits) if self.change else logits)

    @contextmanager
    def raised(self) -> Iterator[None]:
        with self.model.raised():
            yield


def verdict(model: tr.Model, change: Any = None, **settings: Any) -> tr.Verdict:
    return tr.verify(tr.Recompute(model), Engine(model, change), [ROW], **settings)


def test_an_engine_of_ones_own_needs_only_score(shared_llama: tr.Model) -> None:
    found = verdict(shared_llama)
    assert found.verdict == "equivalent", found
    assert found.positions == 6
    assert found.blame is None


def test_the_same_bits_are_identical(shared_llama: tr.Model) -> None:
    found = tr.verify(tr.SinglePass(shared_llama), Engine(shared_llama), [ROW])
    assert found.verdict == "identical"
    assert found.kl_max == 0
    assert found.flips.ties == found.flips.real == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x * 1.02, "worst error"),
        (lambda x: x.roll(1, 0), "worst error"),
        (lambda x: x + torch.eye(*x.shape) * 1e-3, "worst error"),
        (lambda x: x[:-1], "the candidate scored 5 positions and the reference 6"),
        (lambda x: x[:, :-1], "319 logits a row"),
        (lambda x: x.index_fill(0, torch.tensor([2]), torch.nan), "NaN at position 6"),
    ],
    ids=["2 % scale", "off by one row", "one logit a row", "a row short", "a column short", "NaN"],
)
def test_faults_are_different_and_explained(shared_llama: tr.Model, change: Any, words: str) -> None:
    found = verdict(shared_llama, change)
    assert found.verdict == "different"
    assert words in found.reason
    assert found.blame
    assert not found.passed


def test_a_shift_of_all_logits_is_the_same_distribution(shared_llama: tr.Model) -> None:
    assert verdict(shared_llama, lambda x: x + 0.25).passed


def test_positions_are_compared_before_numbers(shared_llama: tr.Model) -> None:
    class Misplaced(Engine):
        def score(self, tokens: Sequence[int], start: int) -> tr.Scores:
            logits = super().score(tokens, start)
            assert isinstance(logits, Tensor)
            return tr.Scores.of_logits(list(tokens), 1, logits)

    found = tr.verify(tr.Recompute(shared_llama), Misplaced(shared_llama), [ROW])
    assert (
        found.reason
        == "prompt 1: step 0 compares position 0 of the candidate with position 4 of the reference"
    )


def test_other_tokens_are_a_finding(shared_llama: tr.Model) -> None:
    class Other(Engine):
        def score(self, tokens: Sequence[int], start: int) -> tr.Scores:
            logits = super().score(tokens, start)
            assert isinstance(logits, Tensor)
            return tr.Scores.of_logits([*tokens[:-1], 7], start, logits)

    found = tr.verify(tr.Recompute(shared_llama), Other(shared_llama), [ROW])
    assert "first at position 9: token 46 and token 7" in found.reason


def test_the_sweep_sees_what_bfloat16_noise_hides() -> None:
    """1 % on one V projection: the ratio lets it pass (1.4x in the reference's measurements), the sweep does not."""
    model, broken = make("llama", "bfloat16"), make("llama", "bfloat16")
    layer = broken.model.get_submodule("model.layers.1.self_attn.v_proj")
    layer.register_forward_hook(lambda _m, _a, out: out * 1.01)
    found = tr.verify(tr.Recompute(model), tr.SinglePass(broken), [ROW])
    assert found.verdict == "different"
    assert "does not shrink" in found.reason
    deaf = tr.verify(tr.Recompute(model), tr.SinglePass(broken), [ROW], sweep=False)
    assert deaf.verdict == "equivalent"
    assert "the precision sweep was not heard: it was switched off" in deaf.reason


def test_a_budget_turns_different_into_lossy_or_says_what_broke_it(shared_llama: tr.Model) -> None:
    def change(x: Tensor) -> Tensor:
        return x * 1.05

    kl = verdict(shared_llama, change).kl_mean
    assert kl is not None
    assert verdict(shared_llama, change, budget={"kl": kl * 1.01}).verdict == "lossy"
    found = verdict(shared_llama, change, budget={"kl": kl * 0.99})
    assert found.verdict == "different"
    assert "exceeds the budget" in found.reason
    assert verdict(shared_llama, budget={"kl": 1.0}).verdict == "equivalent"
    assert verdict(shared_llama, lambda x: x[:-1], budget={"kl": 9.0}).verdict == "different"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "at least one"),
        ({"kll": 1}, "Did you mean 'kl'"),
        ({"kl": -1}, "at least 0"),
        ({"top1": 2}, r"\[0, 1\]"),
    ],
)
def test_budgets_that_cannot_be(shared_llama: tr.Model, budget: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        verdict(shared_llama, budget=budget)


def test_a_changed_last_token_must_not_move_earlier_rows(shared_llama: tr.Model) -> None:
    """The engine looks at the last token of the whole row: causality is lost."""

    class Seer(Engine):
        def score(self, tokens: Sequence[int], start: int) -> Tensor:
            logits = super().score(tokens, start)
            assert isinstance(logits, Tensor)
            return logits * (1 + tokens[-1] * 1e-9)

    cases = [
        Case(label="a", rows=(tuple(ROW),), starts=(2,)),
        Case(label="b", rows=((*ROW[:-1], 300),), starts=(2,), same_before=("a", 9)),
    ]
    found = tr.verify(tr.SinglePass(shared_llama), Seer(shared_llama), cases)
    assert found.verdict == "different"
    clean = tr.verify(tr.SinglePass(shared_llama), Engine(shared_llama), cases)
    assert clean.verdict == "identical"


def test_a_reference_that_gives_nan_cannot_judge() -> None:
    model = make("llama", "float32")
    model.layout.layers[0].register_forward_hook(lambda _m, _a, out: out * torch.nan)
    with pytest.raises(NonFiniteError, match="the reference gives NaN at position 4 of prompt 1"):
        tr.verify(tr.Recompute(model), tr.SinglePass(model), [ROW], sweep=False)


def test_what_cannot_be_verified_is_said(shared_llama: tr.Model) -> None:
    with pytest.raises(ConfigError, match="no prompts"):
        tr.verify(tr.Recompute(shared_llama), tr.SinglePass(shared_llama), [])
    with pytest.raises(ConfigError, match="without a tokenizer"):
        tr.verify(tr.Recompute(shared_llama), tr.SinglePass(shared_llama), ["text"])
    bare = Engine(shared_llama)
    del bare.dtype
    no_up = type("NoUp", (), {"score": bare.score, "model": shared_llama})()
    with pytest.raises(ConfigError, match="cannot serve as the oracle: NoUp has no raised"):
        tr.verify(no_up, tr.SinglePass(shared_llama), [ROW])
    heard = tr.verify(tr.Recompute(shared_llama), no_up, [ROW])
    assert heard.verdict == "equivalent"
    assert "NoUp has no raised()" in heard.reason


def test_the_record_is_json_and_a_table_and_html(shared_llama: tr.Model) -> None:
    found = verdict(shared_llama, lambda x: x * 1.02)
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    wanted = (
        "verdict reason reference candidate model dtype positions ratio_max ratio_rms kl_mean kl_max kl_p99"
    )
    wanted += " top1_agreement flips seconds env"
    assert set(wanted.split()) <= record.keys()
    assert set(record["flips"]) >= {"ties", "real"}
    assert set(record["seconds"]) >= {"reference", "candidate"}
    table = found.to_pandas()
    assert len(table) == found.positions
    assert table["kl"].max() == pytest.approx(found.kl_max)
    assert "<script>" not in found._repr_html_().replace("&lt;script&gt;", "")


def test_asserting_in_one_line(shared_llama: tr.Model) -> None:
    assert tr.testing.assert_equivalent(shared_llama, tr.KVCache(shared_llama), [ROW]).passed
    with pytest.raises(VerificationFailed, match="It starts at prompt 1: first at position 4"):
        tr.testing.assert_equivalent(shared_llama, Engine(shared_llama, lambda x: x * 1.02), [ROW])


def test_public_names_stay_functions_when_their_rooms_are_imported() -> None:
    import importlib

    for name in ("verify", "contrast"):
        importlib.import_module(f"twinrun.{name}")
        assert callable(getattr(tr, name))


def test_infinite_gaps_are_null_in_json_and_convict(shared_llama: tr.Model) -> None:
    found = verdict(shared_llama, lambda x: x.index_fill(1, torch.tensor([7]), -torch.inf))
    assert found.verdict == "different"
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["kl_max"] is None
    assert record["ratio_max"] is None


def test_nan_that_appears_only_one_precision_up_convicts(shared_llama: tr.Model) -> None:
    found = verdict(shared_llama, lambda x: x if x.dtype == torch.float32 else x * torch.nan)
    assert found.verdict == "different"
    assert "does not shrink the difference" in found.reason


@pytest.mark.parametrize("family", ["qwen3moe", "mixtral"])
def test_a_gross_fault_in_a_router_model_is_not_excused_as_ties(family: str) -> None:
    """Its own noise would make every wrong router choice a tie; with the sweep off nothing else is left to see it."""
    from twinrun.faults.fault import candidate_for
    from twinrun.faults.registry import get_fault

    model = make(family, "bfloat16")
    fault = get_fault("gqa-heads-tiled")
    candidate = candidate_for(fault, model)
    prompts = [list(range(3 + k, 40 + k)) for k in range(0, 60, 20)]
    with fault.planted(candidate):
        found = tr.verify(tr.Recompute(model), candidate, prompts, sweep=False)
    assert found.verdict == "different", found


def test_a_candidate_without_a_tokenizer_takes_the_references_ids(amateur: tr.Model) -> None:
    bare = tr.load(amateur.model)
    assert bare.tokenizer is None
    assert tr.verify(tr.Recompute(amateur), tr.SinglePass(bare), ["3 + 4 = 7"], sweep=False).passed
    with pytest.raises(ConfigError, match="without a tokenizer"):
        tr.verify(tr.Recompute(bare), tr.SinglePass(amateur), ["3 + 4 = 7"])
