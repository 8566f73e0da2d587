"""The script that trains the small LLaDA: rows and masks, the loss, decoding, and a run that is killed and resumed."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import twinrun as tr
from twinrun.models.translate import read_llada
from twinrun.tasks.arithmetic import problem, split_of

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TINY = ["--layers", "2", "--width", "32", "--heads", "2", "--feed-forward", "48", "--batch-blocks", "4"]
TINY += [
    "--steps",
    "8",
    "--warmup-steps",
    "2",
    "--decay-steps",
    "3",
    "--save-every",
    "2",
    "--evaluate-every",
    "4",
]
MASK, END = 1024, 4


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import train_diffusion

        patch.setattr(train_diffusion, "TREND_PROBLEMS", 1)
        yield train_diffusion
    for name in set(sys.modules) - before:
        if name.startswith(("train_diffusion", "diffusion_", "builtin_")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def rows(script: ModuleType) -> Any:
    return script.Rows(script.diffusion_tokenizer(), script.DiffusionRecipe())


@pytest.fixture(scope="module")
def model(script: ModuleType) -> Any:
    recipe = script.DiffusionRecipe(layers=2, width=32, heads=2, feed_forward=48)
    return script.new_model(recipe, script.diffusion_tokenizer()).eval()


def test_the_mask_is_the_one_new_token(script: ModuleType) -> None:
    tokenizer = script.diffusion_tokenizer()
    assert (len(tokenizer), tokenizer.mask_token_id, tokenizer.eos_token_id) == (1025, MASK, END)
    expert = tr.load("builtin:expert").tokenizer
    text = "<|user|>Ana has 3 coins.<|end|><|assistant|>more: 3 + 4 = 7"
    assert tokenizer(text).input_ids == expert(text).input_ids
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "U"}], tokenize=False)
        == "<|user|>U<|end|>"
    )


def test_a_row_depends_on_nothing_but_its_number(script: ModuleType, rows: Any) -> None:
    again = script.Rows(script.diffusion_tokenizer(), script.DiffusionRecipe())
    for index in (777, 0, 160):
        assert all(torch.equal(again[index][key], rows[index][key]) for key in rows[index])
    other = script.Rows(script.diffusion_tokenizer(), script.DiffusionRecipe(seed=21))
    assert not torch.equal(other[0]["input_ids"], rows[0]["input_ids"])


def test_only_what_may_be_masked_is_masked(script: ModuleType, rows: Any) -> None:
    """Labels stand where the mask stands, the rest is untouched, and a question is always in sight."""
    kinds, masked, maskable = set(), 0, 0
    for index in range(0, 48 * 40, 7):
        row = rows[index]
        ids, wanted = rows.clean(index, script_random(rows, index))
        hidden = row["input_ids"] == MASK
        length, _ = rows.recipe.row(index // 48)
        assert len(row["input_ids"]) == len(row["labels"]) == length
        assert torch.equal(row["labels"] != -100, hidden)
        assert torch.equal(torch.where(hidden, row["labels"], row["input_ids"]), torch.tensor(ids))
        assert not (hidden & ~torch.tensor(wanted)).any()
        kinds.add("text" if all(wanted) else "problem" if ids[0] == 2 else "drill")
        if ids[0] == 2:
            begin = ids.index(3) + 1
            assert wanted == [False] * begin + [True] * (length - begin)
            assert ids[-1] == END
        masked, maskable = masked + int(hidden.sum()), maskable + sum(wanted)
    assert kinds == {"text", "problem", "drill"}
    assert 0.4 < masked / maskable < 0.6


def script_random(rows: Any, index: int) -> Any:
    from random import Random

    return Random(f"twinrun/diffusion/{rows.recipe.seed}/{index}")


def test_the_chances_of_a_batch_are_spread_evenly(rows: Any) -> None:
    """The weight tells the chance: one over chance and over the tokens that may be masked."""
    for batch in (0, 3, 39):
        chances = []
        for index in range(48 * batch, 48 * batch + 48):
            wanted = sum(rows.clean(index, script_random(rows, index))[1])
            chances.append(1 / (float(rows[index]["weight"]) * wanted))
        assert 1e-3 <= min(chances) < max(chances) <= 1
        gaps = torch.tensor(sorted(chances)).diff()
        assert torch.allclose(gaps, torch.full_like(gaps, 0.999 / 48), atol=1e-4)


def test_a_drill_does_not_tell_its_results(rows: Any) -> None:
    """A result must not be the first operand of the next line, as it is within one story."""
    told = lines = 0
    for index in range(400):
        ids, wanted = rows.clean(index, script_random(rows, index))
        if ids[0] == 2 or all(wanted):
            continue
        text = rows.core.decode(ids).splitlines()[:-1]
        for one, two in itertools.pairwise(text):
            told += one.split(" = ")[1] == two.split(" ")[0]
            lines += 1
    assert lines > 200
    assert told / lines < 0.1


def test_small_sums_hold_and_come_in_their_phase(rows: Any) -> None:
    import diffusion_data

    signs, rng = set(), script_random(rows, 0)
    for _ in range(300):
        a, sign, b, _, result = diffusion_data.small_sum(rng).split(" ")
        want = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[sign]
        assert int(result) == want >= 0
        signs.add(sign)
    assert signs == set("+-*/")
    kinds = {0: set(), 1400: set(), 1700: set()}
    for step, found in kinds.items():
        for index in range(48 * step, 48 * step + 240):
            ids, wanted = rows.clean(index, script_random(rows, index))
            found.add("text" if all(wanted) else "problem" if ids[0] == 2 else "drill")
    assert kinds == {0: {"text", "problem", "drill"}, 1400: {"problem", "drill"}, 1700: {"problem", "drill"}}


def test_the_loss_is_the_objective_written_out(script: ModuleType, rows: Any, model: Any) -> None:
    batch = [rows[i] for i in (1, 2, 4, 5)]
    inputs = {key: torch.stack([row[key] for row in batch]) for key in batch[0]}
    trainer = object.__new__(script.DiffusionTrainer)
    with torch.inference_mode():
        loss = float(trainer.compute_loss(model, inputs))
        wanted = unweighted = 0.0
        for row in batch:
            chances = model(input_ids=row["input_ids"][None]).logits[0].double().log_softmax(-1)
            nats = [-float(chances[i, t]) for i, t in enumerate(row["labels"].tolist()) if t != -100]
            wanted += float(row["weight"]) * sum(nats) / 4
            unweighted += sum(nats) / len(nats) / 4
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert loss != pytest.approx(unweighted, rel=1e-3)


def test_decoding_fills_every_mask_and_a_row_does_not_see_its_batch(script: ModuleType, model: Any) -> None:
    import diffusion_measure

    prompts = [[2, 9, 30, 4, 3], [2, 100, 3], [2, 7, MASK, 8, 200, 4, 3]]
    together = diffusion_measure.decode(model, prompts, 12, 4, MASK)
    assert together.shape == (3, 12)
    assert not (together == MASK).any()
    for prompt, row in zip(prompts, together, strict=True):
        assert torch.equal(diffusion_measure.decode(model, [prompt], 12, 4, MASK)[0], row)


def test_decoding_commits_the_surest_token_of_the_first_block_that_is_open() -> None:
    """A stand-in whose chances are known: token 10 + place, sure at even places, one forward a token."""
    import diffusion_measure

    class Known:
        def __init__(self) -> None:
            self.seen: list[list[int]] = []

        def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
            self.seen.append(input_ids[0].tolist())
            logits = torch.zeros(1, input_ids.shape[1], 40)
            for i in range(input_ids.shape[1]):
                logits[0, i, 10 + i] = 5.0 + (10 if i % 2 == 0 else 0) - 0.1 * i
                logits[0, i, 39] = 100.0  # the mask itself must never be committed
            return type("Output", (), {"logits": logits})

    known = Known()
    assert diffusion_measure.decode(known, [[1, 2]], 4, 2, 39).tolist() == [[12, 13, 14, 15]]
    assert known.seen == [
        [1, 2, 39, 39, 39, 39], [1, 2, 12, 39, 39, 39], [1, 2, 12, 13, 39, 39], [1, 2, 12, 13, 14, 39],
    ]  # fmt: skip


def test_bounds_of_models_whose_loss_is_known(script: ModuleType, model: Any) -> None:
    """A model without a preference has log(vocabulary) at every masking; frequencies are counted by hand."""
    import copy

    import diffusion_bound

    flat = copy.deepcopy(model)
    torch.nn.init.zeros_(flat.model.norm.weight)
    canvases = [diffusion_bound.Canvas([2, 3], [9, 9, 8, END]), diffusion_bound.Canvas([2], [7] * 6)]
    assert diffusion_bound.bound(flat, canvases, MASK)["nats_per_token"] == pytest.approx(
        math.log(1025), rel=1e-5
    )
    found = diffusion_bound.unigram(canvases, canvases, 1025)["nats_per_token"]
    first = -(2 * math.log(3 / 1035) + 2 * math.log(2 / 1035)) / 4
    assert found == pytest.approx((first - math.log(7 / 1035)) / 2)
    items = [problem(i, split="heldout", steps=(1, 1)) for i in range(3)]
    for canvas in diffusion_bound.answer_canvases(script.diffusion_tokenizer(), items):
        assert len(canvas.wanted) == 32
        assert canvas.wanted[-1] == END
    assert all(split_of(item.question) == "heldout" for item in items)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion" / "final" / "model.safetensors")


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
    assert [p.name for p in (other / "diffusion").glob("checkpoint-*")] == ["checkpoint-2"]
    assert script.main([*call, "--build", str(other)]) == 0
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    out = tmp_path / "placed"
    call = [*TINY, "--build", str(one), "--out", str(out), "--measure-share", "0.02"]
    assert script.main(call) == 0
    check_placed(out, first)


def check_placed(out: Path, trained: dict[str, torch.Tensor]) -> None:
    """A LLaDA folder with the trained weights, and a card of its own numbers."""
    assert {path.name for path in out.iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "model.safetensors", "skill.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    model, report = read_llada(out), json.loads((out / "skill.json").read_text())
    for name, weight in trained.items():
        assert torch.equal(model.state_dict()[name], weight.bfloat16().float()), name
    assert model.config.mask_token_id == MASK
    assert f"{report['skill']['hits']} of {report['skill']['problems']} |" in (out / "README.md").read_text()
    assert "--layers 2" in report["training"]["command"]
    assert str(out.parent) not in json.dumps(report) + (out / "README.md").read_text()
    loaded = tr.load(out)
    assert (loaded.is_causal, loaded.mask_id) == (False, MASK)
