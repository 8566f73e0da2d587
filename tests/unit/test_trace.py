"""Traces: what is recorded, where two runs part, and what a kill or an edit does to a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import twinrun as tr
from tests.support import zoo
from twinrun.errors import ConfigError, TraceError
from twinrun.faults.fault import broken_copy, candidate_for
from twinrun.faults.registry import get_fault
from twinrun.report.trace_page import render_trace
from twinrun.trace import block as block_module
from twinrun.trace import journal as journal_module
from twinrun.trace.divergence import Numbers, first_divergence
from twinrun.trace.recorder import Recorder, tracing
from twinrun.trace.shown import shown
from twinrun.trace.step import Scored

PROMPT = list(range(7, 19))


@pytest.fixture(scope="module")
def model():
    return zoo.make("qwen3", "float32")


@pytest.fixture(scope="module")
def clean(model):
    return tr.trace(tr.Recompute(model), tr.KVCache(model), PROMPT, max_new_tokens=6, stop_at_eos=False)


def test_steps_hold_what_the_runs_did(model, clean):
    run = tr.KVCache(model).generate(PROMPT, 6, stop_at_eos=False)
    side = clean.candidate
    assert side.tokens == run.tokens[0]
    assert [s.cache for s in side.steps] == [s.cache_lengths for s in run.steps]
    assert [(s.first, s.last) for s in side.steps] == [
        (0, 11),
        (12, 12),
        (13, 13),
        (14, 14),
        (15, 15),
        (16, 16),
    ]
    assert [s.position_ids for s in side.steps] == [(s.first, s.last) for s in side.steps]
    assert [s.keys for s in side.steps] == [(1, 12), *((n, n) for n in range(13, 18))]
    assert [(s.first, s.last) for s in clean.reference.steps] == [(0, last) for last in range(11, 17)]
    scores = tr.Recompute(model).score(PROMPT + side.tokens, len(PROMPT))
    for step in side.steps:
        row = step.rows[0]
        logp = torch.log_softmax(scores.logits.rows(row.position - 11, row.position - 10)[0], -1)
        top = logp.topk(5)
        assert row.top_ids == top.indices.tolist()
        assert row.top_probs == pytest.approx(top.values.exp().tolist(), rel=1e-4)
        assert row.margin == pytest.approx(float(top.values[0] - top.values[1]), abs=1e-4)
        assert row.entropy == pytest.approx(float(-(logp.exp() * logp).sum()), rel=1e-4)
        assert row.logprob == pytest.approx(float(logp[row.token]), abs=1e-4)


def test_hidden_states_are_those_of_the_layers(model):
    found = tr.trace(
        tr.Recompute(model),
        tr.SinglePass(model),
        PROMPT,
        max_new_tokens=3,
        level="states",
        by=None,
        stop_at_eos=False,
    )
    with torch.inference_mode():
        out = model.core(torch.tensor([PROMPT]), output_hidden_states=True)
    mine = found.reference.steps[0].states[0]
    for layer in range(3):  # behind the last layer transformers keeps the normed state
        assert torch.allclose(mine[layer], out.hidden_states[layer][0, -1], atol=1e-6)
    assert mine.shape == (4, 64)


def test_a_clean_pair_does_not_part(clean):
    assert clean.first_divergence is None
    assert clean.verdict.passed
    assert clean.blame is None
    assert str(clean) == "no divergence over 6 scored positions"
    assert max(e for row in clean.curves["error"] for e in row) < 1e-5
    assert all(n is not None for n in clean.curves["noise"])


@pytest.mark.parametrize("build", [tr.SinglePass, tr.KVCache])
def test_forced_runs_score_one_text(model, build):
    found = tr.trace(tr.Recompute(model), build(model), PROMPT, forced=[20, 21, 22])
    assert found.first_divergence is None
    assert list(found.candidate.by_position()) == [11, 12, 13, 14]
    assert [r.token for _, r in found.candidate.by_position().values()] == [20, 21, 22, None]
    assert len(found.candidate.steps) == (1 if build is tr.SinglePass else 4)
    assert len(found.curves["positions"]) == 4


@pytest.mark.parametrize(
    ("name", "runner", "kind"),
    [
        ("position-off-by-one", "kv-cache:dynamic", "positions"),
        ("static-cache-without-mask", "kv-cache:static", "mask"),
        ("cache-slot-not-written", "kv-cache:dynamic", "numeric divergence"),
        ("head-not-loaded", "kv-cache:dynamic", "numeric divergence"),
    ],
)
def test_faults_part_for_the_right_reason(model, name, runner, kind):
    fault = get_fault(name)
    side = candidate_for(fault, model, runner)
    with fault.planted(side):
        found = tr.trace(tr.Recompute(model), side, PROMPT, max_new_tokens=5, stop_at_eos=False)
    assert found.first_divergence.kind == kind
    assert found.blame.found


def copied(side):
    """A side whose steps and rows can be changed."""
    return replace(side, steps=[replace(s, rows=[replace(r) for r in s.rows]) for s in side.steps])


def test_every_other_kind_of_parting(clean):
    ours = clean.reference

    def kind(change):
        theirs = replace(
            clean.candidate,
            steps=[replace(s, rows=[replace(r) for r in s.rows]) for s in clean.candidate.steps],
        )
        change(theirs)
        found = first_divergence(ours, theirs, {}, None)
        return None if found is None else found.kind

    assert kind(lambda side: None) is None
    assert kind(lambda side: setattr(side, "prompt", [1, *side.prompt])) == "input ids"
    assert kind(lambda side: setattr(side.steps[2], "cache", (14, 13, 14))) == "cache length"
    assert kind(lambda side: setattr(side.steps[2], "keys", (20, 20))) == "mask"
    assert kind(lambda side: setattr(side.steps[2], "position_ids", (3, 3))) == "positions"
    assert kind(lambda side: setattr(side.steps[2], "hidden", torch.zeros(1, 9, 17))) == "shapes"
    assert kind(lambda side: side.steps.pop()) == "step count"
    assert kind(lambda side: setattr(side.steps[2].rows[0], "token", 3)) == "numeric divergence"


def test_a_flip_inside_the_noise_is_a_tie_and_outside_is_not(clean):
    theirs = replace(
        clean.candidate, steps=[replace(s, rows=[replace(r) for r in s.rows]) for s in clean.candidate.steps]
    )
    theirs.steps[1].rows[0].token = 3
    tie = Numbers(margin=1e-6, error=1e-6, gap_up=0.0, stands_out=False)
    found = first_divergence(clean.reference, theirs, {12: tie}, 1e-6)
    assert (found.kind, found.step, found.position, found.ratio) == ("tie flip", 1, 12, 1.0)
    far = replace(tie, margin=1.0)
    assert first_divergence(clean.reference, theirs, {12: far}, 1e-6).kind == "numeric divergence"


def test_what_is_saved_is_what_is_read(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "PACK_STEPS", 4)  # one packed part and a rest
    clean.save(tmp_path / "t")
    found = tr.Trace.open(tmp_path / "t")
    assert shown(found) == json.loads(json.dumps(shown(clean)))
    for a, b in zip(clean.candidate.steps, found.candidate.steps, strict=True):
        assert torch.equal(a.hidden, b.hidden)
    names = sorted(p.name for p in (tmp_path / "t" / "candidate").iterdir())
    packed = [f"{kind}-0000{i}" for kind in ("hidden", "steps") for i in (0, 1)]
    ends = {"hidden": ".safetensors", "steps": ".parquet"}
    assert names == ["checksums.json", *(p + ends[p.split("-")[0]] for p in packed)]
    with pytest.raises(ConfigError, match="not empty"):
        clean.save(tmp_path / "t")


@pytest.mark.parametrize("name", ["steps-00000.parquet", "hidden-00000.safetensors", "checksums.json"])
@pytest.mark.parametrize("damage", ["truncated", "edited", "removed"])
def test_a_damaged_file_is_named(clean, tmp_path, name, damage):
    clean.save(tmp_path / "t")
    path = tmp_path / "t" / "candidate" / name
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else data[:-20] + b"x" * 20)
    with pytest.raises(TraceError, match=name):
        tr.Trace.open(tmp_path / "t")


def test_no_trace_and_other_models_are_refused(clean, tmp_path):
    with pytest.raises(TraceError, match="holds no trace"):
        tr.Trace.open(tmp_path)
    other = zoo.make("gpt2", "float32")
    their = tr.trace(tr.Recompute(other), tr.KVCache(other), PROMPT, max_new_tokens=2, by=None)
    with pytest.raises(TraceError, match="different models"):
        clean.against(their)
    same = broken_copy(zoo.make("qwen3", "float32", 1))
    with pytest.raises(TraceError, match="weights"):
        clean.against(tr.trace(tr.Recompute(same), tr.KVCache(same), PROMPT, max_new_tokens=2, by=None))
    assert clean.against(clean) is None


KILLED = """
import sys, time
import twinrun as tr
from tests.support import zoo
from twinrun.report.trace_page import render_trace
from twinrun.trace import journal
journal.PACK_STEPS = int(sys.argv[2])
model = zoo.make("qwen3", "float32")
add = journal.Journal.add
def slow(self, steps):
    add(self, steps)
    print(*(f"{self.folder.name} {s.step}" for s in steps), sep="\\n", flush=True)
    time.sleep(0.02)
journal.Journal.add = slow
sides = tr.Recompute(model), tr.KVCache(model)
tr.trace(*sides, list(range(7, 19)), max_new_tokens=40, out=sys.argv[1], stop_at_eos=False)
"""


@pytest.mark.parametrize(("after", "pack"), [("reference 3", 512), ("candidate 9", 4), ("candidate 30", 512)])
def test_a_killed_recording_opens_up_to_its_last_step(tmp_path, after, pack):
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "t"), str(pack)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=root)
    for line in child.stdout:
        if line.strip() == after:
            child.send_signal(signal.SIGKILL)
            break
    child.wait(30)
    time.sleep(0.05)
    found = tr.Trace.open(tmp_path / "t")
    assert not found.complete
    who, number = after.split()
    assert len(getattr(found, who).steps) >= int(number) + 1
    assert shown(found)["complete"] is False
    assert "recording" in render_trace(shown(found))


def test_half_a_line_is_left_out_and_a_changed_line_is_refused(clean, tmp_path):
    place = tmp_path / "reference"
    writer = journal_module.Journal(place)
    writer.add(clean.reference.steps)
    from twinrun.trace.reader import read_steps
    from twinrun.trace.step import TracedStep

    path = place / "journal-00000.jsonl"
    whole = path.read_bytes()
    assert len(read_steps(place, TracedStep.from_json)) == 6
    path.write_bytes(whole[:-40])
    assert len(read_steps(place, TracedStep.from_json)) == 5
    path.write_bytes(whole.replace(b'"entropy":', b'"entropi":', 1))
    with pytest.raises(TraceError, match="line 1 was changed"):
        read_steps(place, TracedStep.from_json)
    writer.open_files.close()


@pytest.mark.parametrize("steps", [1, 16])
@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_blocks_hold_no_more_steps_than_promised_and_change_no_number(model, monkeypatch, steps, seconds):
    monkeypatch.setattr(block_module, "BLOCK_STEPS", steps)
    monkeypatch.setattr(block_module, "BLOCK_SECONDS", seconds)
    side, given = tr.KVCache(model), []
    recorder = Recorder(PROMPT, None, "states", lambda found: given.append(list(found)))
    with tracing(side.module, model.layout.layers, recorder):
        side.generate(PROMPT, 20, recorder.observe, stop_at_eos=False)
    wanted = [16, 4] if steps == 16 and seconds else [1] * 20
    assert [len(found) for found in given] == wanted
    alone = Scored.of  # the control: every step by itself, from the hidden states that were kept
    with torch.inference_mode():
        for step in (s for found in given for s in found):
            row, state = step.rows[0], step.states[0, -1]
            logits = model.core.lm_head(model.core.model.norm(state))[None]
            again = alone(logits, [row.position], [row.token])[0]
            assert again.top_ids == row.top_ids
            assert again.entropy == pytest.approx(row.entropy, rel=1e-5)
            assert again.logprob == pytest.approx(row.logprob, abs=1e-5)
            assert step.hidden.shape == (1, 4, 17)
            assert float(step.hidden[0, -1, -1]) == pytest.approx(float(state.double().norm()), rel=1e-9)


def test_a_run_that_fails_keeps_the_steps_that_wait(model):
    side, given = tr.KVCache(model), []
    recorder = Recorder(PROMPT, None, "fingerprints", given.extend)

    def observe(step):
        recorder.observe(step)
        if step.index == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), tracing(side.module, model.layout.layers, recorder):
        side.generate(PROMPT, 20, observe, stop_at_eos=False)
    assert [step.step for step in given] == [0, 1, 2, 3, 4]


def test_ruled_out_tokens_leave_the_entropy_whole():
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [1.0, float("nan"), 0.0]])
    ruled_out, broken = Scored.of(logits, [0, 1], [1, None])
    assert ruled_out.entropy == pytest.approx(0.6931472)
    assert ruled_out.logprob == pytest.approx(-0.6931472)
    assert broken.entropy != broken.entropy


def test_bad_requests_say_what_to_do(model):
    a, b = tr.Recompute(model), tr.KVCache(model)
    with pytest.raises(ConfigError, match="unknown level"):
        tr.trace(a, b, PROMPT, level="all")
    with pytest.raises(ConfigError, match="no tokens"):
        tr.trace(a, b, [])
    with pytest.raises(ConfigError, match="shows no model"):
        tr.trace(a, object(), PROMPT)
