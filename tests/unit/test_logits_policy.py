"""LogitsPolicy: which rows there are, in what precision they are read, and that every runner honours it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import twinrun as tr
from tests.support.zoo import make
from twinrun.bench.memory import peak_extra_bytes
from twinrun.errors import ConfigError
from twinrun.numerics.blocks import StoredLogits, last_rows, row_blocks
from twinrun.numerics.divergence import token_stats

IDS = [5, 60, 7, 200, 9, 31, 4]
START = 3


@pytest.fixture(scope="module")
def model() -> tr.Model:
    return make("llama", "bfloat16")


def runners(model: tr.Model, policy: tr.LogitsPolicy) -> list[Any]:
    return [
        tr.Recompute(model, logits=policy),
        tr.KVCache(model, logits=policy),
        tr.SinglePass(model, policy),
    ]


def exact_logprobs(model: tr.Model) -> Tensor:
    """Log-probability of each following token from the model's own logits, in float64, by the definition."""
    with torch.inference_mode():
        logits = model.model(torch.tensor([IDS])).logits[0].double()
    shares = (logits - logits.amax(-1, keepdim=True)).exp()
    return (shares / shares.sum(-1, keepdim=True)).log()[torch.arange(len(IDS) - 1), torch.tensor(IDS[1:])]


@pytest.mark.parametrize(("keep", "count"), [("all", 5), ("last", 1), (3, 3), (99, 5)])
def test_every_runner_keeps_the_rows_asked_for(model: tr.Model, keep: Any, count: int) -> None:
    whole = tr.SinglePass(model).score(IDS, START)
    for runner in runners(model, tr.LogitsPolicy(keep=keep)):
        found = runner.score(IDS, START)
        assert found.positions.tolist() == whole.positions.tolist()[-count:], runner.name
        got, want = found.logits.rows(0, count), whole.logits.rows(5 - count, 5)
        torch.testing.assert_close(got, want, rtol=0, atol=0.05)
        assert found.logits.num_rows == count


def test_the_last_row_stands_at_the_last_position_of_each_row_of_a_batch(model: tr.Model) -> None:
    rows = [IDS, IDS[:4]]
    for runner in runners(model, tr.LogitsPolicy(keep=2)):
        found = runner.score_batch(rows, [1, 1])
        assert [s.positions.tolist() for s in found] == [[5, 6], [2, 3]], runner.name


def test_routes_follow_the_rows() -> None:
    mixture = make("mixtral")
    for runner in runners(mixture, tr.LogitsPolicy(keep=2)):
        whole = type(runner)(mixture).score(IDS, START).routes
        kept = runner.score(IDS, START).routes
        assert len(kept.experts) == 2
        assert torch.equal(kept.experts[-1], whole.experts[-1]), runner.name


def test_float64_is_closer_than_float32_can_be(model: tr.Model) -> None:
    want = exact_logprobs(model)
    errors = {}
    for dtype in ("float32", "float64"):
        stats = tr.SinglePass(model, tr.LogitsPolicy(dtype=dtype)).score(IDS, 1).stats()
        assert stats.logprob.dtype == getattr(torch, dtype)
        errors[dtype] = float((stats.logprob[:-1].double() - want).abs().max())
    assert errors["float64"] < 1e-12
    assert 1e-9 < errors["float32"] < 1e-5  # the control: the precision is really another one


def test_a_block_is_as_many_rows_as_asked_for_and_changes_no_bit() -> None:
    logits = torch.randn(10, 33)
    seen = []
    for block in (1, 4, 99):
        policy = tr.LogitsPolicy(block=block)
        sizes = [
            len(part)
            for _, (part,) in row_blocks(StoredLogits(logits), block_bytes=policy.block_bytes(33, 1))
        ]
        assert max(sizes) == min(block, 10)
        seen.append(token_stats(StoredLogits(logits), torch.arange(10), policy=policy).logprob)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_a_larger_block_holds_more_memory() -> None:
    logits, ids = torch.randn(64, 4096), torch.zeros(64, dtype=torch.long)
    peaks = [
        peak_extra_bytes(lambda p=p: token_stats(StoredLogits(logits), ids, top_k=1, policy=p))
        for p in (
            tr.LogitsPolicy(block=2),
            tr.LogitsPolicy(block=64),
            tr.LogitsPolicy(block=64, dtype="float64"),
        )
    ]
    assert peaks[1] > 20 * peaks[0]
    assert 1.8 < peaks[2] / peaks[1] < 2.5


def test_kept_rows_let_go_of_the_others() -> None:
    logits = torch.randn(100, 50)
    kept = tr.Scores.of_logits(list(range(100)), 1, logits).kept(tr.LogitsPolicy(keep="last"))
    assert kept.logits.rows(0, 1).untyped_storage().nbytes() == 50 * 4
    assert torch.equal(kept.logits.rows(0, 1), logits[-1:])


def test_a_source_of_somebody_else_is_cut_too() -> None:
    class Foreign:
        num_rows, vocab_size = 6, 3

        def rows(self, start: int, stop: int) -> Tensor:
            return torch.arange(18.0).view(6, 3)[start:stop]

    assert last_rows(Foreign(), 2).rows(0, 2).tolist() == [[12, 13, 14], [15, 16, 17]]


def test_only_the_rows_asked_for_are_made_where_scores_cannot_be_streamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model whose forward was patched is served by its own logits: the policy then asks it for fewer rows."""
    model = make("llama")
    asked: list[int] = []
    whole = model.model.forward

    def patched(*args: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        asked.append(logits_to_keep)
        out = whole(*args, logits_to_keep=logits_to_keep, **kwargs)
        out.logits = out.logits * 1.5
        return out

    monkeypatch.setattr(model.model, "forward", patched)
    monkeypatch.setitem(model.__dict__, "accepts", frozenset({"input_ids", "logits_to_keep"}))
    found = tr.SinglePass(model, tr.LogitsPolicy(keep=2)).score(IDS, 1)
    assert found.path == "the model's own forward"
    assert asked[-1] == 2
    tr.SinglePass(model).score(IDS, 1)
    assert asked[-1] == len(IDS)


def test_scored_texts_have_scores_where_rows_are_kept(model: tr.Model) -> None:
    whole = tr.score(model, [IDS])[0]
    cut = tr.score(model, [IDS], logits=tr.LogitsPolicy(keep=3))[0]
    assert cut.logprobs == [None] * 5 + whole.logprobs[5:]
    assert cut.top1 == [None] * 5 + whole.top1[5:]
    assert cut.perplexity == pytest.approx(float(torch.tensor(whole.logprobs[5:]).mean().neg().exp()))
    last = tr.score(model, [IDS], logits=tr.LogitsPolicy(keep="last"))[0]
    assert last.logprobs == [None] * len(IDS)
    assert last.perplexity is None


def test_verify_compares_what_both_sides_keep(model: tr.Model) -> None:
    last = tr.LogitsPolicy(keep="last")
    verdict = tr.verify(tr.Recompute(model, logits=last), tr.SinglePass(model, last), [IDS])
    assert verdict.passed
    assert verdict.positions == 1
    other = tr.verify(tr.Recompute(model), tr.SinglePass(model, last), [IDS])
    assert other.verdict == "different"  # rows that are missing are a finding, not a smaller comparison


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": 0}, "at least 1; got 0"),
        ({"keep": True}, "got True"),
        ({"keep": "lst"}, "Did you mean 'last'"),
        ({"keep": 1.5}, r"got 1\.5"),
        ({"dtype": "float16"}, r"overflows above 65,504.*float32 or float64"),
        ({"dtype": torch.bfloat16}, "8 bits of mantissa.*float32 or float64"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"block": 0}, "block must be at least 1 row, got 0"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        tr.LogitsPolicy(**settings)
    assert "\n" not in str(caught.value)


def test_a_policy_that_is_none_is_refused(model: tr.Model) -> None:
    with pytest.raises(ConfigError, match="must be a LogitsPolicy or None, got 'last'"):
        tr.SinglePass(model, "last")
    assert tr.LogitsPolicy(dtype="fp64").to_json() == {"keep": "all", "dtype": "float64", "block": None}
