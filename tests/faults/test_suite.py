"""The suite itself: what it counts, that it can say no, and that its committed record holds for every fault."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import twinrun as tr
from twinrun.errors import ConfigError
from twinrun.faults import suite
from twinrun.faults.fault import Site
from twinrun.faults.judged import is_site, judge_fault
from twinrun.faults.registry import FAULTS, get_fault
from twinrun.models import zoo

RECORD = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "faults.json"
QUICK = ("double-bos", "position-off-by-one", "left-padding-attended", "cache-slot-not-written", "value-scale-off",
         "decode-step-differs", "scores-off-by-one", "logit-scale-off", "stale-cache-after-rollback")  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_fault_of_each_kind_is_caught_and_named(dtype):
    found = suite.run_suite(QUICK, (dtype,), clean="none")
    assert [row.fault for row in found.faults] == list(QUICK)
    assert [(row.fault, row.sentence) for row in found.faults if not (row.caught and row.right)] == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_and_named_and_the_same_run_without_it_is_clean(name, dtype):
    found = suite.run_suite((name,), (dtype,))
    assert (found.missed, found.misnamed, found.alarms) == ([], [], [])


def test_a_wrong_answer_is_counted_as_wrong():
    model = zoo.make("llama")
    fault = get_fault("value-scale-off")
    other = replace(fault, site=Site("module", lambda _m: ("model.layers.0.mlp",)))
    cases = [tr.Case(label="text", rows=(tuple(range(5, 30)),), starts=(12,))]
    right = judge_fault(fault, tr.Recompute(model), model, cases)
    assert right.caught
    assert right.right
    assert not judge_fault(other, tr.Recompute(model), model, cases).right
    blame = tr.Blame(kind="cache", sentence="", module="model.layers.1.self_attn.v_proj")
    assert not is_site(blame, fault, model)


def test_a_run_that_was_cut_off_is_continued_with_nothing_lost_or_repeated(monkeypatch):
    class Cut(Exception):
        pass

    kept = []

    def cut(found):
        kept.append(found.to_json())
        if len(kept) == 2:
            raise Cut

    names = ("double-bos", "value-scale-off", "logit-scale-off")
    with pytest.raises(Cut):
        suite.run_suite(names, ("float32",), on_row=cut)
    whole = suite.run_suite(names, ("float32",), found=suite.Suite.from_json(kept[-1]), on_row=kept.append)
    assert len(kept) == 2 + 2  # one fault and one clean run were left
    assert [row.fault for row in whole.faults] == list(names)
    with pytest.raises(ConfigError, match="choose another --out"):
        suite.Suite.from_json({"schema": "other"})


def test_counts_and_refusals():
    found = suite.Suite()
    clean = suite.Clean(
        family="llama", dtype="float32", runner="single-pass", verdict="equivalent", named="module"
    )
    found.clean.append(clean)
    assert found.alarms == [clean]
    assert not found.passed
    with pytest.raises(ConfigError, match="unknown precision 'float8'"):
        suite.run_suite(("double-bos",), ("float8",))
    with pytest.raises(ConfigError, match="no fault called"):
        suite.run_suite(("double-boss",))


def test_the_committed_record_covers_every_fault_and_missed_none():
    record = json.loads(RECORD.read_text())
    assert {row["fault"] for row in record["faults"]} == set(FAULTS)
    assert {row["dtype"] for row in record["faults"]} == {"float32", "bfloat16"}
    summary = record["summary"]
    assert summary["kinds"] >= 30
    assert summary["caught"] == summary["planted"]
    assert summary["false_alarms"] == 0
    assert summary["named"] * 30 >= summary["planted"] * 28
