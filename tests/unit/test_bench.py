"""Sweeps as a whole: planted pace, planted faults, refusals, resuming. No test here judges real time."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import twinrun as tr
from tests.support.sweeps import Clock, Engine, Narrow, Paced, cheap_ceilings, use_clock
from tests.support.tiny import tiny_folder
from twinrun.bench import facts as facts_module
from twinrun.bench import row as row_module
from twinrun.bench.cache import watching
from twinrun.bench.refusal import context_of
from twinrun.errors import ConfigError, OutOfMemoryError

SMALL: dict[str, Any] = {"new_tokens": 4, "repeats": 2}


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_ceilings(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> tr.Model:
    return tr.load(folder)


def wrong_copy(model: tr.Model) -> tr.Model:
    """The same model with one value projection that is 3 % too large."""
    module = copy.deepcopy(model.model)
    with torch.no_grad():
        module.model.layers[0].self_attn.v_proj.weight.mul_(1.03)
    return tr.load(module, model.tokenizer)


def cells_of(found: tr.Bench, length: int) -> dict[str, dict[str, Any]]:
    line = next(line for line in found.rows if line["length"] == length)
    return {cell["runner"]: cell for cell in line["cells"]}


def test_every_speed_has_a_verdict_and_every_number_its_place(model: tr.Model) -> None:
    found = tr.bench(
        [tr.Recompute(model), tr.KVCache(model), tr.KVCache(model, "static")], lengths=[8, 20], **SMALL
    )
    assert found.passed
    json.dumps(found.to_json(), allow_nan=False)
    layers = model.config.num_hidden_layers
    slot = 2 * layers * model.config.num_key_value_heads * model.config.head_dim * 4
    for length in (8, 20):
        cells = cells_of(found, length)
        assert list(cells) == ["recompute", "kv-cache:dynamic", "kv-cache:static"]
        assert cells["recompute"]["verdict"]["verdict"] == "reference"
        assert cells["recompute"]["cache"] is None
        for name in ("kv-cache:dynamic", "kv-cache:static"):
            cell = cells[name]
            assert cell["verdict"]["verdict"] in ("identical", "equivalent")
            assert (cell["verdict"]["positions"], cell["verdict"]["length"]) == (5, length)
            assert cell["cache"]["lengths_prefill"] == [length] * layers
            assert cell["cache"]["lengths_end"] == [length + 3] * layers
            assert cell["cache"]["bytes_end"] // slot in (length + 3, length + 4)
            assert cell["decode"]["tokens"] == 3
            assert len(cell["prefill"]["seconds_samples"]) == 2
            assert cell["text"] == {"first_difference": None}
            parts = cell["prefill"]["seconds_samples"][0] + cell["decode"]["seconds_samples"][0]
            assert parts <= cell["total"]["seconds_samples"][0]
            assert cell["memory"]["tensor_peak_bytes"] > 0
            assert cell["memory"]["cuda_peak_bytes"] is None
            ceiling = found.rows[0]["ceilings"]["matmul"]["float32"]["flops_per_second"]
            speed = cell["prefill"]["flops"] / cell["prefill"]["seconds_median"]
            assert cell["prefill"]["mfu"] == pytest.approx(speed / ceiling)
    assert found.rows[0]["noise"]["total"]["pairs"] == 2


def test_a_slow_runner_is_slower_by_what_was_planted(
    model: tr.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    use_clock(monkeypatch, clock)
    sides = {
        "a": Paced(model, clock, 1.0),
        "slow": Paced(model, clock, 3.0),
        "same": Paced(model, clock, 1.0),
    }
    found = tr.bench(sides, lengths=[6], **SMALL)
    cells = cells_of(found, 6)
    assert [cells[n]["decode"]["token_seconds_p50"] for n in sides] == [1.0, 3.0, 1.0]
    assert cells["slow"]["total"]["seconds_median"] == 12.0
    assert cells["slow"]["decode"]["tokens_per_second"] == pytest.approx(1 / 3)
    for part in ("prefill", "decode", "total"):
        assert cells["slow"]["speed_up"][part]["ratio_median"] == pytest.approx(1 / 3)
        assert cells["slow"]["speed_up"][part]["within_noise"] is False
        assert cells["same"]["speed_up"][part]["within_noise"] is True
    assert found.rows[0]["noise"]["total"]["ratio_median"] == 1.0
    assert "0.33× (0.33–0.33)" in found.to_markdown()
    assert "1.00× (1.00–1.00), within noise" in found.to_markdown()


def test_warm_ups_are_run_and_not_kept(model: tr.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = row_module.run_forced, []

    def noted(*args: Any, **settings: Any) -> Any:
        calls.append(args)
        return whole(*args, **settings)

    monkeypatch.setattr(row_module, "run_forced", noted)
    found = tr.bench([tr.KVCache(model)], lengths=[6], warmups=3, **SMALL)
    assert len(calls) == (3 - 1 + 2) * 2  # the first warm-up is the run whose memory was watched
    assert cells_of(found, 6)["kv-cache:dynamic"]["total"]["repeats"] == 2


def test_a_wrong_runner_is_different_and_claims_no_speed_up(model: tr.Model) -> None:
    sides = {"plain": tr.Recompute(model), "right": tr.KVCache(model), "wrong": tr.KVCache(wrong_copy(model))}
    found = tr.bench(sides, lengths=[12], **SMALL)
    cells = cells_of(found, 12)
    assert cells["wrong"]["verdict"]["verdict"] == "different"
    assert cells["right"]["verdict"]["verdict"] in ("identical", "equivalent")
    assert not found.passed
    line = next(t for t in found.to_markdown().splitlines() if "| wrong | different" in t)
    assert line.endswith("| – |")
    assert "wrong at 12 tokens: different:" in found.to_markdown()
    lossy = tr.bench(sides, lengths=[12], budget={"kl": 1.0}, **SMALL)
    assert cells_of(lossy, 12)["wrong"]["verdict"]["verdict"] == "lossy"
    assert lossy.passed


def test_a_runner_without_memory_is_recorded_and_the_sweep_goes_on(model: tr.Model) -> None:
    narrow = Narrow(model, 10, lambda: torch.OutOfMemoryError("tried to allocate 9 GiB"))
    found = tr.bench([tr.Recompute(model), narrow], lengths=[6, 12, 8], **SMALL)
    assert [cells_of(found, n)["narrow"]["status"] for n in (6, 12, 8)] == ["timed", "out of memory", "timed"]
    cell = cells_of(found, 12)["narrow"]
    assert cell["reason"] == "tried to allocate 9 GiB"
    assert cell["prefill"] is cell["speed_up"] is cell["verdict"] is None
    assert cells_of(found, 12)["recompute"]["status"] == "timed"
    assert found.passed
    assert "| 12 | narrow | out of memory | – | – | – |" in found.to_markdown()


def test_a_failure_in_the_timed_rounds_refuses_only_its_runner(
    model: tr.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = row_module.run_forced, []

    def fails_later(runner: Any, *args: Any, **settings: Any) -> Any:
        calls.append(runner)
        if isinstance(runner, Narrow) and calls.count(runner) == 2:
            raise torch.OutOfMemoryError("fragmented")
        return whole(runner, *args, **settings)

    monkeypatch.setattr(row_module, "run_forced", fails_later)
    narrow = Narrow(model, 99, RuntimeError)
    found = tr.bench([tr.Recompute(model), narrow], lengths=[6], **SMALL)
    cells = cells_of(found, 6)
    assert (cells["narrow"]["status"], cells["narrow"]["reason"]) == ("out of memory", "fragmented")
    assert cells["narrow"]["verdict"]["verdict"] in ("identical", "equivalent")
    assert len(cells["recompute"]["total"]["seconds_samples"]) == 2


def test_memory_that_will_not_do_is_foreseen_and_nothing_runs(
    model: tr.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths_run = []

    class Noted(tr.KVCache):
        def generate(self, prompt: Any, *args: Any, **settings: Any) -> tr.Run:
            lengths_run.append(len(prompt))
            return super().generate(prompt, *args, **settings)

    free = iter([2**30, 2**30, 2**30, 2**30, 1000, 2**30])
    monkeypatch.setattr(row_module, "free_bytes", lambda _: next(free))
    found = tr.bench([Noted(model), tr.Recompute(model)], lengths=[6, 12, 200], **SMALL)
    cells = cells_of(found, 200)
    assert cells["kv-cache:dynamic"]["status"] == "out of memory"
    assert "foreseen from the peaks at 6 and 12 tokens" in cells["kv-cache:dynamic"]["reason"]
    assert 200 not in lengths_run
    # The reference did not run here: the verdict of the last length at which it did stands in, and says so.
    assert cells["recompute"]["status"] == "timed"
    assert cells["recompute"]["verdict"]["length"] == 12
    assert "the verdict was taken at 12 tokens" in found.to_markdown()
    assert cells["recompute"]["speed_up"] is None


def test_nothing_is_timed_without_a_verdict(model: tr.Model) -> None:
    narrow = Narrow(model, 1, MemoryError)
    found = tr.bench([narrow, tr.Recompute(model)], lengths=[6], **SMALL)
    cells = cells_of(found, 6)
    assert cells["recompute"]["status"] == "not judged"
    assert cells["recompute"]["total"] is None


def test_a_verdict_without_memory_is_taken_from_another_length(model: tr.Model) -> None:
    class Greedy(tr.KVCache):
        def score(self, tokens: Any, start: int = 1) -> Any:
            if start >= 12:
                raise MemoryError("no room to score")
            return super().score(tokens, start)

    greedy = Engine(Greedy(model))
    found = tr.bench({"plain": tr.Recompute(model), "greedy": greedy}, lengths=[6, 12], **SMALL)
    cell = cells_of(found, 12)["greedy"]
    assert (cell["status"], cell["verdict"]["length"]) == ("timed", 6)
    alone = tr.bench({"plain": tr.Recompute(model), "greedy": greedy}, lengths=[12], **SMALL)
    assert cells_of(alone, 12)["greedy"]["status"] == "not judged"
    assert "the verdict ran out of memory: no room to score" in cells_of(alone, 12)["greedy"]["reason"]


def test_lengths_beyond_the_context_are_rows_unless_all_are(model: tr.Model) -> None:
    sides = [tr.Recompute(model), tr.KVCache(model)]
    found = tr.bench(sides, lengths=[6, 510], **SMALL)
    assert [c["status"] for c in cells_of(found, 510).values()] == ["too long"] * 2
    assert "510 tokens and 4 new ones exceeds the context" in cells_of(found, 510)["recompute"]["reason"]
    assert found.passed
    with pytest.raises(ConfigError, match="every length is too long: prompt of 510 tokens"):
        tr.bench(sides, lengths=[510, 600], **SMALL)
    with pytest.raises(OutOfMemoryError, match="no runner fits at any length"):
        tr.bench([Narrow(model, 1, MemoryError)], lengths=[6], **SMALL)


def test_an_engine_of_its_own_is_judged_and_timed(model: tr.Model) -> None:
    found = tr.bench(
        {"plain": tr.Recompute(model), "engine": Engine(tr.KVCache(model))}, lengths=[6], **SMALL
    )
    cell = cells_of(found, 6)["engine"]
    assert cell["verdict"]["verdict"] in ("identical", "equivalent")
    assert cell["cache"] is None
    assert cell["decode"]["mbu"] is None
    assert cell["decode"]["tokens"] == 3
    early = tr.bench(
        {"plain": tr.Recompute(model), "engine": Engine(tr.KVCache(model), eos_after=2)}, lengths=[6], **SMALL
    )
    assert cells_of(early, 6)["engine"]["status"] == "failed"
    assert "stopped after 2 of" in cells_of(early, 6)["engine"]["reason"]
    assert not early.passed
    with pytest.raises(ConfigError, match="cannot be the reference"):
        tr.bench([Engine(tr.KVCache(model))], lengths=[6], **SMALL)


def test_what_a_runner_reports_about_itself_is_kept(model: tr.Model) -> None:
    class Keeps(tr.KVCache):
        max_context = None

        def generate(self, prompt: Any, *args: Any, **settings: Any) -> tr.Run:
            run = super().generate(prompt, *args, **settings)
            self.reused_tokens = (5,)
            return replace(run, settings={"compile_seconds": 2.5})

    found = tr.bench({"plain": tr.Recompute(model), "keeps": Keeps(model)}, lengths=[6], **SMALL)
    cell = cells_of(found, 6)["keeps"]
    assert cell["settings"] == {"compile_seconds": 2.5}
    assert cell["prefill"]["reused_tokens"] == 5
    assert cell["prefill"]["mfu"] is cell["prefill"]["flops"] is None
    assert "kept cache" in cell["prefill"]["mfu_note"]
    assert "keeps: 2.50 s of compilation before the timed runs" in found.to_markdown()
    assert context_of(Keeps(model)) is None
    assert context_of(tr.KVCache(model)) == model.max_context


def test_hooks_and_modes_are_gone_before_the_clock_runs(
    model: tr.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner may take a slower path under a hook or a mode: neither the timed runs nor their warm-up may see one."""
    whole, seen = row_module.run_forced, []

    def looked_at(*args: Any, **settings: Any) -> Any:
        seen.append(_watchers(model))
        return whole(*args, **settings)

    monkeypatch.setattr(row_module, "run_forced", looked_at)
    monkeypatch.setattr(facts_module, "run_forced", looked_at)
    tr.bench([tr.Recompute(model), tr.KVCache(model)], lengths=[6], **SMALL)
    assert set(seen) == {0}
    with watching(model.core):
        assert _watchers(model) == 1  # the control


def _watchers(model: tr.Model) -> int:
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return sum(len(m._forward_pre_hooks) for m in model.core.modules()) + len(
        _get_current_dispatch_mode_stack()
    )


def test_a_single_new_token_has_no_decode(model: tr.Model) -> None:
    found = tr.bench([tr.Recompute(model), tr.KVCache(model)], lengths=[6], new_tokens=1, repeats=1)
    cell = cells_of(found, 6)["kv-cache:dynamic"]
    assert cell["decode"] is None
    assert cell["speed_up"]["decode"] is None
    assert cell["verdict"]["positions"] == 2
    found.to_markdown()


def test_the_same_text_on_every_call_and_random_ids_without_a_tokenizer(model: tr.Model) -> None:
    from twinrun.bench.prompts import token_row
    from twinrun.bench.settings import BenchSettings

    text, source = token_row(model, 300, BenchSettings())
    assert (text, source) == token_row(model, 300, BenchSettings())
    assert token_row(model, 40, BenchSettings())[0] == text[:40]
    assert "language reference" in source
    ids, source = token_row(model, 40, BenchSettings(prompts="ids", seed=3))
    assert "seed 3" in source
    assert ids != token_row(model, 40, BenchSettings(prompts="ids", seed=4))[0]
    bare = tr.load(model.model)
    assert len(token_row(bare, 40, BenchSettings())[0]) == 40
    with pytest.raises(ConfigError, match="no tokenizer"):
        token_row(bare, 4, BenchSettings(prompts="text"))


@pytest.mark.parametrize(
    ("runners", "settings", "says"),
    [
        (1, {"lengths": []}, "no lengths"),
        (1, {"lengths": [0]}, "lengths start at 1 token, got 0"),
        (1, {"lengths": [4, 4]}, "length 4 was given twice"),
        (1, {"new_tokens": 0}, "new_tokens must be at least 1, got 0"),
        (1, {"repeats": 0}, "repeats must be at least 1"),
        (1, {"judged_positions": 0}, "judged_positions must be at least 1"),
        (1, {"prompts": "tekst"}, "Did you mean 'text'"),
        (1, {"repeat": 3}, "unknown setting 'repeat'"),
        (1, {"budget": {"kl": -1}}, "budget kl"),
        (2, {}, "runner 'recompute on .*' was given twice"),
        (0, {}, "no runners"),
        ([object()], {}, "has no score"),
        (1, {"resume": True}, "resume needs the folder"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    model: tr.Model, runners: Any, settings: dict[str, Any], says: str
) -> None:
    sides = [tr.Recompute(model)] * runners if isinstance(runners, int) else runners
    with pytest.raises(ConfigError, match=says):
        tr.bench(sides, **({"lengths": [4]} | settings))


def test_two_models_of_one_runner_are_told_apart(model: tr.Model) -> None:
    other = tr.load(copy.deepcopy(model.model), model.tokenizer)
    found = tr.bench([tr.KVCache(model), tr.KVCache(other)], lengths=[4], new_tokens=2, repeats=1)
    names = [r["name"] for r in found.request["runners"]]
    assert names == [f"kv-cache:dynamic on {model.name}", "kv-cache:dynamic on Qwen3ForCausalLM"]


def test_rows_survive_and_another_request_is_refused_by_its_key(model: tr.Model, tmp_path: Path) -> None:
    sides = [tr.Recompute(model), tr.KVCache(model)]
    first = tr.bench(sides, lengths=[4, 6], out=tmp_path / "a", **SMALL)
    place = tmp_path / "a" / "rows.jsonl"
    before = place.read_text()
    assert [json.loads(line)["length"] for line in before.splitlines()] == [4, 6]
    again = tr.bench(sides, lengths=[4, 6], out=tmp_path / "a", resume=True, **SMALL)
    assert place.read_text() == before
    assert again.to_json() == json.loads(json.dumps(first.to_json()))
    with pytest.raises(ConfigError, match="already holds a sweep"):
        tr.bench(sides, lengths=[4, 6], out=tmp_path / "a", **SMALL)
    for change, key in (
        ({"lengths": [4, 8]}, r"lengths\[1\] is 6 there and 8"),
        ({"repeats": 3}, "repeats is 2 there and 3"),
        ({"budget": {"kl": 1.0}}, "budget"),
    ):
        with pytest.raises(ConfigError, match=f"another request: {key}"):
            tr.bench(sides, **({"lengths": [4, 6], **SMALL} | change), out=tmp_path / "a", resume=True)
    wrong = [tr.Recompute(wrong_copy(model)), tr.KVCache(model)]
    with pytest.raises(ConfigError, match="another request: model"):
        tr.bench(wrong, lengths=[4, 6], out=tmp_path / "a", resume=True, **SMALL)
    place.write_text(before[:-20])
    with pytest.raises(ConfigError, match="line 2 is damaged"):
        tr.bench(sides, lengths=[4, 6], out=tmp_path / "a", resume=True, **SMALL)


KILLED = """
import os, signal, sys
from twinrun.bench import bench, row
measured = row._Row.judge
def judge(self):
    if self.length == 6 and "kill" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    measured(self)
row._Row.judge = judge
import pytest
from tests.support.sweeps import cheap_ceilings
cheap_ceilings(pytest.MonkeyPatch())
from twinrun.cli.main import main
sys.exit(main([a for a in sys.argv[1:] if a != "kill"]))
"""


def test_an_interrupted_sweep_goes_on(model: tr.Model, tmp_path: Path) -> None:
    sides = [tr.Recompute(model), tr.KVCache(model)]

    def interrupt(_done: int, _total: int, what: str) -> None:
        if what.startswith("6 tokens: kv-cache:dynamic, verdict"):
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"lengths": [4, 6], "out": tmp_path / "a", **SMALL}
    with pytest.raises(KeyboardInterrupt):
        tr.bench(sides, on_progress=interrupt, **settings)
    kept = (tmp_path / "a" / "rows.jsonl").read_text()
    assert [json.loads(line)["length"] for line in kept.splitlines()] == [4]
    seen: list[str] = []
    found = tr.bench(sides, resume=True, on_progress=lambda _d, _t, what: seen.append(what), **settings)
    assert [row["length"] for row in found.rows] == [4, 6]
    assert (tmp_path / "a" / "rows.jsonl").read_text().startswith(kept)
    assert not [what for what in seen if what.startswith("4 tokens")]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_nothing_lost_or_repeated(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["bench", str(folder), "--lengths", "4", "6", "8", "--new-tokens", "3", "--repeats", "2"]
    argv += ["--threads", "1", "--out", str(out), "--json"]
    program = [sys.executable, "-c", KILLED]
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    dead = subprocess.run([*program, *argv, "kill"], capture_output=True, env=env, timeout=100)
    assert dead.returncode == -signal.SIGKILL, dead.stderr.decode()[-2000:]
    rows = (out / "rows.jsonl").read_text()
    assert [json.loads(line)["length"] for line in rows.splitlines()] == [4]
    assert not (out / "bench.json").exists()
    done = subprocess.run([*program, *argv, "--resume"], capture_output=True, text=True, env=env, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (out / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["length"] for line in lines] == [4, 6, 8]
    assert lines[0] == rows.strip()
    record = json.loads(done.stdout.strip().splitlines()[-1])
    assert record["rows"] == [json.loads(line) for line in lines]
    assert json.loads((out / "bench.json").read_text()) == record
