"""Pruned runners on the command line: every command that takes a runner takes them, and says what was dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import last_record, run
from tests.support.tiny import tiny_folder

TEXT = "Tom has 3 apples and buys 4 more. How many apples does Tom have now?"
NORM = "pruned:norm+schedule=1:0.8,2:0.5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny", layers=3))


def test_runners_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "runners", "--json")
    listed = {row["name"]: row for row in last_record(out)["runners"]}
    assert code == 0
    assert {"pruned", "pruned:attention", "pruned:norm", "pruned:random", "pruned:recency"} <= set(listed)
    assert not listed["pruned"]["exact"]


def test_generate_uses_the_pruned_cache(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    code, out, _ = run(
        capsys, "generate", folder, "--prompt", TEXT, "-n", "3", "--runner", NORM, "--json", "--dtype", "float32"
    )  # fmt: skip
    record = last_record(out)
    assert code == 0
    assert record["runner"] == NORM
    lengths = record["steps"][0]["cache_lengths"]
    assert lengths[0] > lengths[1] > lengths[2]


def test_score_takes_a_runner_and_the_rest_is_prompt(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    found = {}
    for runner in ("kv-cache", NORM, "pruned:norm+schedule=1:1.0"):
        code, out, _ = run(
            capsys, "score", folder, "--prompt", TEXT, "--runner", runner, "--last", "4", "--json",
            "--dtype", "float32",
        )  # fmt: skip
        assert code == 0
        found[runner] = last_record(out)["texts"][0]["logprobs"]
        assert sum(p is not None for p in found[runner]) == 4
    assert found["pruned:norm+schedule=1:1.0"] == found["kv-cache"]
    assert found[NORM] != found["kv-cache"]


def test_verify_wants_a_budget_for_it(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    sides = ("verify", folder, "-r", "kv-cache", "-c", NORM, "--prompt", TEXT, "--dtype", "float32")
    assert run(capsys, *sides)[0] == 1
    assert run(capsys, *sides, "--max-kl", "50")[0] == 0
    assert run(capsys, "verify", folder, "-r", NORM, "-c", NORM, "--prompt", TEXT)[0] == 0


def test_a_trace_shows_what_was_kept_and_keeps_it_on_disk(
    capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path
) -> None:
    place = str(tmp_path / "trace")
    given = ("--prompt", TEXT, "--max-new-tokens", "3", "--dtype", "float32")
    code, out, _ = run(
        capsys, "trace", folder, "--reference", NORM, "--candidate", NORM, *given, "--out", place
    )
    assert code == 0
    assert "pruned by norm" in out
    assert "tokens in" in out
    code, out, _ = run(capsys, "trace", "show", place, "--json")
    log = last_record(out)["sides"]["candidate"]["prune"]
    assert code == 0
    assert [stage["layer"] for stage in log["stages"]] == [1, 2]
    assert log["stages"][0]["kept"] == log["stages"][1]["tokens_in"]
    assert {"min", "mean", "max", "std", "distinct"} == set(log["stages"][0]["scores"])


def test_a_trace_names_a_pruned_cache_that_is_not_read(
    capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    runner = "pruned:norm+schedule=1:0.7,2:0.45"
    code, out, _ = run(
        capsys, "trace", folder, "--reference", runner, "--candidate", runner, "--plant",
        "pruned-prefill-not-decoded", "--prompt", TEXT, "--max-new-tokens", "3", "--dtype", "float32", "--json",
    )  # fmt: skip
    record = last_record(out)
    assert code == 1
    assert record["divergence"]["kind"] == "cache length"
    assert "the pruned cache is not read" in record["blame"]["sentence"]


def test_a_short_prompt_says_that_nothing_was_dropped(
    capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    code, out, _ = run(
        capsys, "trace", folder, "-r", NORM, "-c", NORM, "--prompt", "Tom", "--max-new-tokens", "2"
    )
    assert code == 0
    assert "too short to prune" in out


@pytest.mark.parametrize(
    ("runner", "words"),
    [
        ("pruned", "neither a scorer nor a selector was given"),
        ("pruned:norms", "Did you mean 'norm'"),
        ("pruned:norm+schedule=7:0.5", "prunes at layer 7 and the model's last is 2"),
        ("pruned:norm+schedule=1:900", "keeps 900 tokens and the prompt has"),
    ],
)
def test_bad_requests_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], folder: str, runner: str, words: str
) -> None:
    code, out, err = run(capsys, "generate", folder, "--prompt", TEXT, "--runner", runner)
    assert code == 2
    assert out == ""
    assert words in err.strip().splitlines()[-1]
