"""Sequential against single pass: sound models pass in any language, a model that looks ahead does not."""

from __future__ import annotations

import pytest
import torch

import twinrun as tr
from tests.support.command import last_record, run
from tests.support.contrast_record import HOSTILE, looking_ahead
from tests.support.plain_select import kl, softmax
from tests.support.tiny import tiny_folder
from twinrun.cli import contrast_check
from twinrun.contrast.check import answered_texts, check
from twinrun.contrast.checked import CheckText
from twinrun.errors import ConfigError

CHINESE = "小明有三个苹果，又买了四个。"  # noqa: RUF001  the comma is Chinese
BUILTIN = [
    "contrast",
    "check",
    "--expert",
    "builtin:expert",
    "--amateur",
    "builtin:amateur",
    "--dtype",
    "float32",
]


@pytest.fixture(scope="module")
def pair():
    return tuple(tr.load(f"builtin:{who}", dtype="float32") for who in ("expert", "amateur"))


def prefix_logits(model, ids):
    """One forward a prefix, by hand."""
    with torch.inference_mode():
        return [
            model.model(input_ids=torch.tensor([ids[:end]])).logits[0, -1].double().tolist()
            for end in range(1, len(ids))
        ]


def test_a_chinese_text_has_the_same_numbers_both_ways(pair):
    texts = answered_texts(*pair, [("text", CHINESE)], max_new_tokens=0)
    found = check(*pair, texts)
    assert found.passed
    ids = list(texts[0].ids)
    assert ids == pair[0].encode(CHINESE)
    assert [step.token_id for step in found.steps] == ids[1:]
    expert, amateur = (prefix_logits(model, ids) for model in pair)
    for step, e, a in zip(found.steps, expert, amateur, strict=True):
        plain = kl(softmax(e), softmax(a))
        assert step.kl_sequential == pytest.approx(plain, rel=1e-4, abs=1e-6)
        assert step.kl_single == pytest.approx(plain, rel=1e-4, abs=1e-6)
        assert step.expert.same_top
        assert step.amateur.same_top
        assert step.kept_single == step.kept_sequential == (plain > 0.4)


def test_the_gap_of_the_logits_is_that_of_the_two_ways(pair):
    texts = answered_texts(*pair, [("text", CHINESE)], max_new_tokens=0)
    with looking_ahead(pair[1], 0.05) as broken:
        found = check(pair[0], broken, texts, sweep=False)
        ids = list(texts[0].ids)
        sequential = torch.tensor(prefix_logits(broken, ids))
        with torch.inference_mode():
            single = broken.model(input_ids=torch.tensor([ids[:-1]])).logits[0].double()
    gaps = (sequential - single).abs().amax(-1).tolist()
    apart = (sequential.softmax(-1) - single.softmax(-1)).abs().amax(-1).tolist()
    assert [step.amateur.logit_gap for step in found.steps] == pytest.approx(gaps, abs=1e-4)
    assert [step.amateur.probability_gap for step in found.steps] == pytest.approx(apart, abs=1e-5)
    assert [step.kl_single for step in found.steps] != [step.kl_sequential for step in found.steps]


def test_a_model_that_looks_ahead_is_refused_and_the_other_is_not(pair):
    texts = answered_texts(*pair, [("text", CHINESE)], max_new_tokens=0)
    with looking_ahead(pair[1], 0.5) as broken:
        found = check(pair[0], broken, texts)
    assert [verdict.verdict for verdict in found.verdicts] == ["equivalent", "different"]
    assert not found.passed
    proposal = found.to_json()["sides"]["amateur"]["proposal"]
    assert proposal == {"logits": False, "probabilities": False, "top": False, "kl": False}


def test_the_verdict_sees_what_the_tolerances_of_the_proposal_do_not(pair):
    texts = answered_texts(*pair, [("text", CHINESE)], max_new_tokens=0)
    with looking_ahead(pair[1], 3e-4) as broken:
        found = check(pair[0], broken, texts)
    side = found.to_json()["sides"]["amateur"]
    assert {side["proposal"][key] for key in ("logits", "probabilities", "kl")} == {True}
    assert side["verdict"]["verdict"] == "different"


def test_the_experts_answer_is_checked_and_its_prompt_is_not(pair):
    texts = answered_texts(*pair, [("one", "Tom has 3 apples and buys 4 more. How many?")], max_new_tokens=5)
    assert len(texts[0].ids) == texts[0].start + 5
    found = check(*pair, texts, sweep=False)
    assert [step.position for step in found.steps] == list(range(texts[0].start, texts[0].start + 5))
    sampled = tr.contrast(*pair, [list(texts[0].ids)], starts=[texts[0].start])[0]
    assert [step.kl_single for step in found.steps] == pytest.approx(sampled.kl[texts[0].start :], abs=1e-5)


def test_bad_requests_name_the_fix(pair, tmp_path):
    with pytest.raises(ConfigError, match="at least one token of prompt and one behind it"):
        CheckText(label="x", ids=(1,), start=1)
    with pytest.raises(ConfigError, match="no texts to check"):
        check(*pair, [])
    with pytest.raises(ConfigError, match="max_new_tokens must be at least 0"):
        answered_texts(*pair, [("x", "y")], max_new_tokens=-1)
    other = tr.load(tiny_folder(tmp_path))
    with pytest.raises(ConfigError, match="disagree: id"):
        answered_texts(pair[0], other, [("x", "y z")])


# --- the command


def test_it_prints_a_table_a_verdict_and_a_record(capsys):
    code, out, err = run(capsys, *BUILTIN, "--prompt", CHINESE, "-n", "0", "--steps", "4", "--json")
    record = last_record(out)
    assert code == 0
    assert record["passed"] is True
    assert record["steps"] == len(record["texts"][0]["steps"]) == record["kept"]["same"]
    assert "equivalent" in err
    assert "steps more (--steps 0 shows all)" in err
    assert "the proposal's tolerances" in err


def test_a_failed_check_exits_with_1(capsys, monkeypatch, pair):
    with looking_ahead(pair[0], 0.5) as broken:
        models = {"builtin:expert": broken, "builtin:amateur": pair[1]}
        monkeypatch.setattr(contrast_check, "open_model", lambda name, *_, **__: models[name])
        code, out, _ = run(capsys, *BUILTIN, "--prompt", CHINESE, "-n", "0")
    assert code == 1
    assert "≠ different" in out
    assert "expert starts at:" in out


def test_markup_in_a_text_is_not_read(capsys):
    code, out, _ = run(
        capsys, *BUILTIN, "--prompt", f"[bold]x[/] {HOSTILE[:20]}", "-n", "0", "--no-sweep", "--steps", "0"
    )
    assert code == 0
    assert "[" in out


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ([], "nothing to check"),
        (["--prompt", " "], "prompt 1 is empty"),
        (["--prompt", "x", "--beta", "-1"], "beta must be at least 0"),
        (["--data", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["--prompt", "x", "--chat", "maybe"], "chat must be"),
    ],
)
def test_bad_requests_exit_with_2(capsys, argv, why):
    code, _, err = run(capsys, *BUILTIN, *argv)
    assert code == 2
    assert why in " ".join(err.split())
