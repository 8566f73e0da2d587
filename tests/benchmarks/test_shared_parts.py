"""What the benchmark scripts share: sampled prefixes, the remembered reference, bars, the record on disk."""

import importlib
import types
from pathlib import Path

import pytest
import torch

from twinrun.bench.timing import Timing

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("_compare", "_machine", "_record")
    return types.SimpleNamespace(**{name[1:]: importlib.import_module(name) for name in names})


def test_one_prefix_from_each_equal_stratum(parts):
    model = types.SimpleNamespace(device=torch.device("cpu"))
    sampled = parts.compare.Sampled(model, list(range(640)), 128, max_strata=20, seed=0)
    assert (sampled.strata, sampled.size) == (19, 27)  # 513 prefixes
    draws = [sampled.draw() for _ in range(200)]
    for draw in draws:
        assert [(length - 128) // 27 for length in draw] == list(range(19))
    assert {length for draw in draws for length in draw} == set(range(128, 641))
    assert sampled.scale(Timing.of([2.0])).samples == (54.0,)


@pytest.mark.parametrize(("count", "most", "strata"), [(10, 20, 10), (13, 5, 1), (12, 5, 4), (1, 20, 1)])
def test_strata_divide_the_prefixes(parts, count, most, strata):
    model = types.SimpleNamespace(device=torch.device("cpu"))
    assert parts.compare.Sampled(model, list(range(count + 4)), 5, max_strata=most, seed=0).strata == strata


def test_the_sum_of_a_smooth_cost_is_estimated_without_bias(parts):
    model = types.SimpleNamespace(device=torch.device("cpu"))
    sampled = parts.compare.Sampled(model, list(range(640)), 128, max_strata=20, seed=0)
    cost = [sum(0.1 + length / 500 for length in sampled.draw()) for _ in range(100)]
    found = sampled.estimate(sampled.scale(Timing.of(cost)), complete_seconds=None)
    exact = sum(0.1 + length / 500 for length in range(128, 641))
    assert found["seconds_mean"] == pytest.approx(exact, rel=3e-3)
    assert found["seconds_stderr"] < 3e-3 * exact
    assert found["complete_run_over_estimate_ratio"] is None


class Counted:
    dtype, name, model, model_name = "bfloat16", "counted", None, "nothing"

    def __init__(self):
        self.calls = []

    def score(self, tokens, start):
        self.calls.append((tuple(tokens), start))
        return len(self.calls)


def test_a_text_is_scored_once(parts):
    runner = Counted()
    remembered = parts.compare.Remembered(runner)
    assert [remembered.score([1, 2], 1), remembered.score([1, 2], 1), remembered.score([1, 2], 2)] == [
        1,
        1,
        2,
    ]
    assert runner.calls == [((1, 2), 1), ((1, 2), 2)]


def test_an_unknown_value_passes_no_bar(parts):
    assert parts.record.at_least("speed", 2.0, 2.0)["passed"]
    assert not parts.record.at_least("speed", None, 2.0)["passed"]
    assert parts.record.at_most("memory", 0.05, 0.05)["passed"]
    assert not parts.record.at_most("memory", None, 0.05)["passed"]


def test_a_write_that_fails_leaves_the_old_record(parts, tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    parts.record.write_atomically(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(parts.record.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        parts.record.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["record.json"]


def test_a_record_with_nan_is_refused_before_anything_is_written(parts, tmp_path):
    request = parts.record.Request(Timing.of([1.0]), tmp_path / "record.json", False)
    found = {"arms": {}, "ratios": {}, "bars": [], "number": float("nan")}
    with pytest.raises(ValueError, match="not JSON compliant"):
        parts.record.finish(request, "x", "x", found, parts.machine.Machine())
    assert list(tmp_path.iterdir()) == []
