"""`twinrun demo` in process on tiny folders: what it writes, what it says, and that it can fail."""

import contextlib
import io
import json
import subprocess
import sys
from collections import namedtuple

import pytest

import twinrun as tr
from tests.support.tiny import tiny_folder
from twinrun.cli import demo_prune, demo_steps, demo_twins
from twinrun.cli.demo_text import Text
from twinrun.cli.main import main
from twinrun.faults.fault import Fault

Done = namedtuple("Done", "code record human out")


def demo(out, *args):
    """Run the command; stdout and stderr apart."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = main(["demo", "--quick", "--out", str(out), *map(str, args)])
    lines = stdout.getvalue().splitlines()
    record = json.loads(lines[-1]) if "--json" in args and lines else None
    return Done(code, record, stderr.getvalue() if "--json" in args else stdout.getvalue(), out)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "a": tiny_folder(root / "a"),
        "b": tiny_folder(root / "b", seed=1, layers=1),
        "plain": tiny_folder(root / "plain", chat=False),
    }


@pytest.fixture(scope="module")
def done(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return demo(out, "--model", folders["a"], "--amateur", folders["b"], "--json")


def test_everything_passes_and_the_faults_are_caught(done):
    assert done.code == 0, done.human
    assert done.record["passed"] is True
    assert [t["dtype"] for t in done.record["twins"]] == ["float32", "bfloat16"]
    for twin in done.record["twins"]:
        words = [row["verdict"] for row in twin["rows"]]
        assert words[0] == "reference"
        assert len(words) == 4
        assert set(words[1:]) <= {"identical", "equivalent"}
    assert [fault["caught"] for fault in done.record["faults"]] == [True, True]
    assert all(fault["verdict"]["blame"] for fault in done.record["faults"])


def test_every_speed_has_verdict_spread_and_noise(done):
    for twin in done.record["twins"]:
        assert twin["repeats"] == 2
        assert twin["noise"]["ratio_p10"] <= twin["noise"]["ratio_median"] <= twin["noise"]["ratio_p90"]
        for row in twin["rows"]:
            speed = row["speed"]
            assert 0 < speed["speed_up_p10"] <= speed["speed_up_median"] <= speed["speed_up_p90"]


def test_the_canvas_is_filled_in_both_ways_with_a_verdict(done):
    plain, fast = done.record["diffusion"]["ways"]
    assert (plain["nfe"], plain["right"]) == (32, 2)
    assert fast["nfe"] < plain["nfe"] / 8
    assert fast["right"] == 2
    reference, judged = done.record["diffusion"]["twins"]["rows"]
    assert (reference["verdict"], judged["verdict"]) == ("reference", "lossy")
    assert judged["speed"]["speed_up_median"] > 0


def test_the_pruned_prompt_gives_the_answer_with_a_third_of_its_tokens(done):
    found = done.record["prune"]
    length, lengths = found["prompt_tokens"], found["layer_lengths"]
    assert length > 500
    assert lengths[0] == length
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == pytest.approx(0.35 * length, abs=1)
    whole, pruned = found["ways"]
    assert (whole["is_right"], pruned["is_right"]) == (True, True)
    assert whole["text"] == pruned["text"] == found["expected"]
    reference, judged = found["twins"]["rows"]
    assert (reference["verdict"], judged["verdict"]) == ("reference", "lossy")
    assert judged["speed"]["speed_up_median"] > 0


def test_a_pruned_prompt_that_loses_its_needle_is_not_passed(done, folders, monkeypatch):
    """The control: without the trained scorers the needle goes, and the outcome must say so."""
    monkeypatch.setattr(demo_prune, "Pruned", lambda m, _scorer, **how: tr.Pruned(m, selector="norm", **how))
    more = {"diffusion": done.record["diffusion"], "prune": demo_prune.pruned()}
    assert [way["is_right"] for way in more["prune"]["ways"]] == [True, False]
    text = Text(ids=[1, 2], start=1, source="none")
    rest = (text, [], {}, [{"name": "one", "caught": True}], more)
    found = demo_steps.record(tr.load(str(folders["a"])), None, *rest)
    assert found["passed"] is False
    assert "pruned:norm" in found["outcome"]
    assert "is wrong" in found["outcome"]


def test_the_contrast_lines_up_with_its_tokens(done):
    found = done.record["contrast"]
    assert len(found["texts"]) == 2
    for text in found["texts"]:
        lengths = {len(text[key]) for key in ("tokens", "token_ids", "kl", "expert_top", "amateur_top")}
        assert len(lengths) == 1
        assert text["chosen"] == [i for i, kl in enumerate(text["kl"]) if kl > found["beta"]]
        assert text["amateur_right"] is False


def test_the_files_are_there_and_the_record_is_the_one_printed(done):
    names = {p.relative_to(done.out).as_posix() for p in done.out.rglob("*") if p.is_file()}
    assert {"index.html", "error_ratios.png", "speed_ups.png", "kl_histogram.png", "kl_strips.png"} <= names
    assert {"records/demo.json", "records/float32-kv-cache-static.json"} <= names
    assert {"records/fault-position-off-by-one.json", "records/bfloat16-single-pass.json"} <= names
    assert not [name for name in names if name.endswith(".part")]
    assert json.loads((done.out / "records" / "demo.json").read_text("utf-8")) == done.record
    one = json.loads((done.out / "records" / "float32-single-pass.json").read_text("utf-8"))
    assert one["env"]["packages"]["torch"]


def test_human_text_goes_to_stderr_with_json(done):
    for text in (
        "1. Fast paths",
        "2. Fast paths",
        "3. Expert against amateur",
        "4. Faults",
        "6. Prompt pruning",
        "caught",
        "index.html",
    ):
        assert text in done.human


def test_a_fault_that_is_not_planted_gives_exit_code_1(folders, tmp_path, monkeypatch):
    """The control: with nothing broken nothing can be caught, and the demo must say so."""
    monkeypatch.setattr(Fault, "planted", lambda self, runner: contextlib.nullcontext())
    found = demo(tmp_path, "--model", folders["a"], "--json")
    assert found.code == 1
    assert found.record["passed"] is False
    assert "not caught" in found.record["outcome"]
    assert "not caught" in (tmp_path / "index.html").read_text("utf-8")


def test_a_fast_path_that_is_broken_gives_exit_code_1(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_twins.KVCache, "_score", lambda self, rows, starts: shifted(self, rows, starts))

    def shifted(self, rows, starts):
        wrong = [[*row[1:], row[0]] for row in rows]
        found = demo_twins.SinglePass(self.model).score_batch(wrong, starts)
        right = demo_twins.SinglePass(self.model).score_batch(rows, starts)
        return [tr.Scores.of_logits(r.tokens, s, w.logits.rows(0, w.logits.num_rows))
                for r, w, s in zip(right, found, starts, strict=True)]  # fmt: skip

    found = demo(tmp_path, "--model", folders["a"], "--json")
    assert found.code == 1
    assert "kv-cache:dynamic is different" in found.record["outcome"]
    assert "no speed without a verdict" in (tmp_path / "index.html").read_text("utf-8")


def test_without_chat_template_and_amateur_the_other_steps_run(folders, tmp_path):
    found = demo(tmp_path, "--model", folders["plain"])
    assert found.code == 0, found.human
    assert "skipped: no --amateur was given" in found.human
    assert "Not shown: no --amateur" in (tmp_path / "index.html").read_text("utf-8")
    assert not (tmp_path / "kl_strips.png").exists()


@pytest.mark.parametrize("args", [("--problems", "0"), ("--model", "/no/such/folder"), ("--no-such-option",)])
def test_a_bad_request_gives_exit_code_2_and_no_page(args, tmp_path, capsys):
    found = demo(tmp_path / "out", *args)
    assert found.code in (2, 3)
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_folder_that_cannot_be_written_is_said_at_once(folders, tmp_path):
    (tmp_path / "file").write_text("x")
    assert demo(tmp_path / "file" / "out", "--model", folders["a"]).code == 2


def test_help_needs_no_torch():
    code = (
        "import sys; from twinrun.cli.main import main; code = main(['demo', '--help']); "
        "sys.exit(code or 10 * bool({'torch', 'matplotlib', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--amateur" in done.stdout
