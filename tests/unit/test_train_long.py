"""The script that trains the long-context model: rows, what is learned in them, a run that is killed and resumed."""

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
TINY = ["--layers", "1", "--width", "32", "--heads", "2", "--kv-heads", "1", "--head-dim", "16"]
TINY += [
    "--feed-forward",
    "32",
    "--length",
    "256",
    "--stage-steps",
    "1",
    "--batch-tokens",
    "256",
    "--steps",
    "6",
]
TINY += ["--warmup-steps", "1", "--decay-steps", "2", "--save-every", "2", "--evaluate-every", "4"]
START, END = 0, 1


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import long_data
        import train_long

        patch.setattr(train_long, "TREND_TEXTS", 1)
        docs = [f"Return the number {i} of what was read from the file, or None.\n" * 9 for i in range(60)]
        patch.setattr(long_data, "python_docs", lambda split: docs)  # reading the real ones takes seconds
        yield train_long
    for name in set(sys.modules) - before:
        if name.startswith(("train_long", "long_", "builtin_")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def tokenizer(script: ModuleType) -> Any:
    return script.long_tokenizer()


@pytest.fixture(scope="module")
def batches(script: ModuleType, tokenizer: Any) -> Any:
    return script.Batches(tokenizer, script.LongRecipe(stage_steps=10))


def test_the_stages_double_and_the_earlier_ones_come_back(script: ModuleType) -> None:
    recipe = script.LongRecipe(stage_steps=10, length=2048)
    assert recipe.stages == [128, 256, 512, 1024, 2048]
    assert [recipe.row(step) for step in (0, 9, 10, 21, 30, 40, 400)] == [
        128,
        128,
        256,
        512,
        1024,
        2048,
        2048,
    ]
    assert {recipe.row(step) for step in range(41, 80, 3)} == {128, 256, 512, 1024}
    assert script.LongRecipe(length=1024).stages == [128, 128, 256, 512, 1024]
    assert recipe.tokens == recipe.steps * recipe.batch_tokens


def test_the_last_part_has_shorter_rows_every_second_step(script: ModuleType) -> None:
    recipe = script.LongRecipe(late=5500)
    assert [recipe.row(step) for step in range(5500, 5505)] == [2048, 1024, 2048, 512, 2048]
    assert recipe.row(5498) < 2048 == recipe.row(5499)


def test_chains_of_the_last_part_have_four_steps(script: ModuleType, tokenizer: Any) -> None:
    """Counted in the learned answers: a chain of so many steps has one name more."""

    def steps(late: int) -> list[int]:
        batches = script.Batches(tokenizer, script.LongRecipe(late=late))
        learned = [[t for t in batches.row(4000, place, 512)[1] if t >= 0] for place in range(24)]
        answers = [a for row in learned for a in tokenizer.decode(row).split("<|end|>")[:-1]]
        return [a.count(",") for a in answers if a.startswith("The variables assigned")]

    assert set(steps(late=0)) == {4}
    assert set(steps(late=5500)) - {4}
    assert len(steps(late=0)) > 1.5 * len(steps(late=5500)) > 0


def test_keys_and_digits_are_tokens_of_their_own(tokenizer: Any) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("numbers for brave-lemon is: 48219").input_ids)
    assert tokens[-12:] == [
        "\u0120for", "\u0120brave", "-", "lemon", "\u0120is", ":", "\u0120", "4", "8", "2", "1", "9",
    ]  # fmt: skip
    text = "naïve 🙂\n\tVAR XQZPW = 12."
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_batch_depends_on_nothing_but_its_number(script: ModuleType, tokenizer: Any, batches: Any) -> None:
    again = script.Batches(tokenizer, batches.recipe)
    for index in (37, 0, 45):
        assert all(torch.equal(again[index][key], batches[index][key]) for key in ("input_ids", "labels"))
        assert again[index]["input_ids"].shape == (
            4096 // batches.recipe.row(index),
            batches.recipe.row(index),
        )
    assert not torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])


def test_only_answers_are_learned_and_each_stands_in_its_text(tokenizer: Any, batches: Any) -> None:
    """Read back from the ids: what is learned begins an answer, and its value is told before it."""
    found = 0
    for index in (0, 12, 23, 45):
        batch = batches[index]
        assert torch.equal(
            batch["labels"][batch["labels"] != -100], batch["input_ids"][batch["labels"] != -100]
        )
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            if ids[0] != START:
                assert ids == labels
                continue
            row = tokenizer.decode(ids)
            learned = tokenizer.decode([label for label in labels if label != -100])
            for answer in learned.split("<|end|>")[:-1]:
                assert answer.startswith(
                    ("The special magic number for ", "The variables assigned the value ")
                )
                key, _, value = answer.partition(": ")
                before = row[: row.index(answer)]
                assert all(name in before for name in value.split(", "))
                assert key.split()[-2] in before
                found += 1
    assert found > 50


def test_held_out_texts_fill_the_room_that_they_are_given(script: ModuleType, tokenizer: Any) -> None:
    import long_measure

    for task in long_measure.TASKS:
        items = long_measure.held_out(tokenizer, task, 700, 3, 5)
        sizes = [len(tokenizer(item.prompt + item.answer_text).input_ids) for item in items]
        assert 640 < min(sizes) <= max(sizes) <= 730, (task, sizes)  # names differ by a few tokens
        assert all(len(tokenizer(i.answer_text).input_ids) < long_measure.NEW_TOKENS[task] for i in items)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "long" / "final" / "model.safetensors")


def test_a_run_that_is_killed_and_resumed_ends_as_one_in_one_go(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, call = tmp_path / "one", tmp_path / "other", [*TINY, "--no-place"]
    assert script.main([*call, "--build", str(one)]) == 0
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(script.Answers, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            script.main([*call, "--build", str(other)])
    assert [p.name for p in (other / "long").glob("checkpoint-*")] == ["checkpoint-2"]
    assert script.main([*call, "--build", str(other)]) == 0
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    import long_card

    recipe = script.LongRecipe(layers=1, length=512)
    monkeypatch.setattr(long_card, "text_loss", lambda *_: {"bits_per_byte": 9.0})
    out = long_card.place(recipe, one / "long", tmp_path / "placed", "python scripts/train_long.py", texts=2)
    report, card = json.loads((out / "skill.json").read_text()), (out / "README.md").read_text()
    assert "| niah_multikey | 512 | " in card
    assert report["skill"]["exact"] == 0
    assert report["weights_bytes"] == (out / "model.safetensors").stat().st_size
    model = tr.load(out)
    assert model.eos_ids == {START, END}
    assert tr.KVCache(model).generate("<|endoftext|>The", max_new_tokens=2).texts


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(["--length", "100"], "multiple of 16"), (["--batch-tokens", "512"], "no room for a row of 2048")],
)
def test_a_wrong_request_is_refused(
    script: ModuleType, tmp_path: Path, wrong: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        script.main(["--build", str(tmp_path), *wrong])
