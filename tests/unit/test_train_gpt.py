"""The script that trains the small GPT: its tokens, its windows, and a run that is killed and resumed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import twinrun as tr

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TINY = ["--layers", "1", "--width", "32", "--heads", "2", "--feed-forward", "64", "--block", "32"]
TINY += ["--steps", "8", "--warmup-steps", "2", "--decay-steps", "3", "--batch-blocks", "2"]
TINY += ["--save-every", "2", "--evaluate-every", "4"]
TEXT = "".join(f"{i} green bottles hang on the wall, naïve ones. \n" for i in range(120))


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import train_gpt

        yield train_gpt
    for name in set(sys.modules) - before:
        if name.startswith(("train_gpt", "gpt_", "builtin_")):
            del sys.modules[name]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "bottles.txt"
    path.write_text(TEXT, "utf-8")
    return path


def byte_tokenizer(script: ModuleType) -> Any:
    return script.new_tokenizer(script.GPTRecipe(), script.Corpus(["x"], ["y"]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a",
        " two  spaces\n\n\ttab ",
        "\r\n",
        "naïve",
        "你好",
        "🙂👩‍👩‍👧",
        "e\u0301\u00a0",
        "\x00\x7f",
        "<|not special|>",
    ],
)
def test_an_id_is_a_byte(script: ModuleType, text: str) -> None:
    tokenizer = byte_tokenizer(script)
    ids = tokenizer(text).input_ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_every_byte_of_utf8_comes_back(script: ModuleType) -> None:
    tokenizer = byte_tokenizer(script)
    text = "".join(map(chr, [*range(0x800), 0xFFFF, *range(0x10000, 0x10FFFF, 0x3FFF)]))
    ids = tokenizer(text).input_ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 258
    assert tokenizer("<|endoftext|>").input_ids == [256] == [tokenizer.eos_token_id]
    assert tokenizer.pad_token_id == 257


def test_char_level_has_the_characters_of_the_text(script: ModuleType) -> None:
    recipe, corpus = script.GPTRecipe(level="char"), script.Corpus(["to be, or\nnot"], ["be"])
    tokenizer = script.new_tokenizer(recipe, corpus)
    assert tokenizer.decode(tokenizer("not to be,\nor").input_ids) == "not to be,\nor"
    assert len(tokenizer) == len(set("to be, or\nnot")) + 3
    assert tokenizer("tzt").input_ids[1] == tokenizer.unk_token_id


def test_windows_train_every_position_and_depend_on_nothing_but_their_number(script: ModuleType) -> None:
    recipe = script.GPTRecipe(block=64, batch_blocks=2)
    windows = script.Windows(byte_tokenizer(script), [TEXT, TEXT[::-1]], recipe)
    seen = torch.zeros(64, dtype=torch.long)
    lengths = set()
    for i in range(400):
        window = windows[i]
        place = window["position_ids"]
        assert window["input_ids"].shape == window["labels"].shape == place.shape
        assert torch.equal(place, torch.arange(len(place)) + place[0])
        seen[place] += 1
        lengths.add(len(place))
    assert lengths == {16, 32, 64}
    assert int(seen.min()) > 40
    again = script.Windows(byte_tokenizer(script), [TEXT, TEXT[::-1]], recipe)
    assert torch.equal(again[333]["input_ids"], windows[333]["input_ids"])
    assert recipe.tokens == 2 * sum((16, 16, 32, 16, 16, 64)[step % 6] for step in range(recipe.steps))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def test_a_run_that_is_killed_and_resumed_ends_as_one_in_one_go(
    script: ModuleType, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    call = ["--text", str(text), *TINY, "--no-place"]
    assert script.main([*call, "--build", str(one)]) == 0
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(script.Losses, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            script.main([*call, "--build", str(other)])
    assert [p.name for p in (other / "bottles").glob("checkpoint-*")] == ["checkpoint-2"]
    assert script.main([*call, "--build", str(other)]) == 0
    first, second = weights(one / "bottles"), weights(other / "bottles")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert script.main([*call, "--build", str(other), "--seed", "21", "--fresh"]) == 0
    assert not torch.equal(
        weights(other / "bottles")["model.embed_tokens.weight"], first["model.embed_tokens.weight"]
    )


@pytest.mark.parametrize("level", ["byte", "char"])
def test_a_text_file_becomes_a_checkpoint_with_a_card(
    script: ModuleType, text: Path, tmp_path: Path, level: str
) -> None:
    out = tmp_path / "mine"
    call = ["--text", str(text), *TINY, "--level", level, "--norm", "post"]
    assert script.main([*call, "--build", str(tmp_path / "build"), "--out", str(out)]) == 0
    report, card = json.loads((out / "skill.json").read_text()), (out / "README.md").read_text()
    assert f"**{report['text']['bits_per_byte']:.3f} bits per byte**" in card
    assert str(tmp_path) not in card + json.dumps(report)
    model = tr.load(out)
    assert model.config.norm == "post"
    assert model.max_context == 32
    assert model.decode(model.encode("green wall")) == "green wall"
    if level == "byte":
        assert report["text"]["nats_per_token"] < 5.4  # it has begun to learn: log(258) is 5.55
    assert script.main([*call, "--out", str(out), "--evaluate-only"]) == 0
    assert json.loads((out / "skill.json").read_text())["training"] == report["training"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--level", "word"], "byte or char"),
        (["--norm", "sandwich"], "pre or post"),
        (["--block", "30"], "multiple of 4"),
        (["--block", "8192"], "fewer than one window"),
        (["--width", "30", "--heads", "4"], "multiple of --heads"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--steps", "10", "--decay-steps", "20"], "must fit into"),
        (["--learning-rate", "-1"], "--learning-rate"),
        (["--threads", "0"], "--threads"),
        (["--text", "no such file"], "cannot be read"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    script: ModuleType,
    text: Path,
    tmp_path: Path,
    wrong: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert script.main(["--text", str(text), "--build", str(tmp_path), *wrong]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]


def test_a_file_that_is_no_text_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").write_bytes(b"\xff\xfe\x80" * 100)
    assert script.main(["--text", str(tmp_path / "weights"), "--build", str(tmp_path)]) == 2
    assert "UTF-8" in capsys.readouterr().err


def test_a_shorter_run_keeps_the_shares_of_its_schedule(script: ModuleType) -> None:
    """Else a falling phase of 700 steps in a run of 300 would begin nearly at its end."""
    from gpt_recipe import scaled

    assert scaled(300) == {"warmup_steps": 9, "decay_steps": 105}
    assert scaled(2000) == {"warmup_steps": 60, "decay_steps": 700}


def test_text_of_a_model_cannot_be_read_as_markdown(script: ModuleType) -> None:
    import gpt_card

    assert gpt_card.quoted("# no\n```\x1b[31m") == "    # no\n    ```\ufffd[31m"
