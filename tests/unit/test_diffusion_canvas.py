"""The canvas, and the closer observer that sees it in every step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import twinrun as tr
from tests.support.masked import MASK, PAD, VOCAB, masked_model, prompts
from twinrun.diffusion.canvas import Canvas
from twinrun.diffusion.probe import After, Before


def laid_out(room: int | list[int] = 4) -> Canvas:
    return Canvas.of([[7, MASK, 9], [5]], room, mask_id=MASK, pad_id=PAD)


def test_rows_end_together_and_positions_count_real_tokens():
    canvas = laid_out()
    assert canvas.ids.tolist() == [[7, MASK, 9] + [MASK] * 4, [PAD, PAD, 5] + [MASK] * 4]
    assert canvas.positions.tolist() == [list(range(7)), [0, 0, 0, 1, 2, 3, 4]]
    assert canvas.mask is not None
    assert canvas.mask[:, 0, 0].tolist() == [[True] * 7, [False, False, *[True] * 5]]
    assert canvas.open.tolist() == [[False] * 3 + [True] * 4] * 2, "a mask inside a prompt is not open"
    assert Canvas.of([[1, 2], [3, 4]], 4, mask_id=MASK, pad_id=PAD).mask is None


def test_rows_with_less_room_are_padded_behind():
    canvas = laid_out([4, 2])
    assert canvas.ids[1].tolist() == [PAD, PAD, 5, MASK, MASK, PAD, PAD]
    assert canvas.mask is not None
    assert canvas.mask[1, 0, 0].tolist() == [False, False, True, True, True, False, False]
    assert canvas.open[1].tolist() == [False] * 3 + [True, True, False, False]


def test_blocks_cover_the_generation_area_once():
    canvas = laid_out()
    assert canvas.blocks(2) == [slice(3, 5), slice(5, 7)]
    assert canvas.blocks(3) == [slice(3, 6), slice(6, 7)]


def test_a_commit_writes_what_was_chosen_and_closes_it():
    canvas = laid_out()
    chosen = torch.tensor([[True, False], [False, False]])
    canvas.commit(slice(3, 5), chosen, torch.tensor([[MASK, 2], [3, 4]]))
    assert canvas.ids[:, 3:5].tolist() == [[MASK, MASK], [MASK, MASK]]
    assert canvas.open[:, 3:5].tolist() == [[False, True], [True, True]], "closed, whatever id was written"
    part = canvas.rows([1])
    part.close(0, 4, 9)
    assert part.ids.tolist() == [[PAD, PAD, 5, MASK, 9, 9, 9]]
    assert not part.open.any()
    assert canvas.open[1].any(), "a canvas of some rows has memory of its own"


class Recorder:
    """Keeps copies of everything; `copy.deepcopy` of the forward is what a replay needs."""

    def __init__(self, wants_layers: bool = True) -> None:
        self.wants_layers = wants_layers
        self.states: list[dict[str, Any]] = []
        self.outcomes: list[After] = []

    def before(self, state: Before) -> None:
        slots = None if state.slots is None or state.full else state.slots.copy()
        self.states.append(
            {
                "state": state, "ids": state.canvas.ids.clone(), "open": state.canvas.open.clone(), "slots": slots,
                "rows": state.rows, "forward": copy.deepcopy(state.forward, {id(state.forward._parts): None}),
            }
        )  # fmt: skip

    def after(self, outcome: After) -> None:
        self.outcomes.append(outcome)


@pytest.mark.parametrize("shifts", [False, True])
def test_a_probe_sees_enough_to_compute_a_step_again(shifts):
    model = masked_model(shifts=shifts)
    runner = tr.Diffusion(model, cache="dual", block_length=8)
    probe = Recorder()
    run = runner.generate(prompts(5, 9), 16, probe=probe, early_stop=False)
    unseen = runner.generate(prompts(5, 9), 16, early_stop=False)
    assert [s.confidence for s in run.steps] == [s.confidence for s in unseen.steps], "looking changes no bit"
    assert len(probe.states) == len(probe.outcomes) == run.nfe
    for saved, seen, step in zip(probe.states, probe.outcomes, run.steps, strict=True):
        state = saved["state"]
        assert (state.index, state.block, state.step, state.full) == (
            step.index, step.block, step.step, step.full,
        )  # fmt: skip
        row, column = seen.at
        assert torch.equal(saved["open"][:, state.columns].nonzero(), torch.stack([row, column], 1))
        assert bool((seen.logits[:, MASK] == -torch.inf).all())
        assert seen.logits.shape == (len(row), VOCAB)
        assert torch.equal(seen.tokens[row, column], seen.logits.argmax(-1))
        for i, positions in enumerate(step.positions):
            mine = seen.chosen[i]
            place = state.canvas.positions[i, state.columns][mine].tolist()
            assert (positions, step.tokens[i]) == (place, seen.tokens[i][mine].tolist())
        assert len(seen.layers) == 4
        assert torch.equal(seen.layers[-1], seen.hidden)
        with torch.inference_mode():
            again = runner.parts.forward(
                saved["ids"][:, seen.columns],
                state.canvas.positions[:, seen.columns],
                state.canvas.mask,
                saved["slots"],
                seen.columns,
            )
            torch.testing.assert_close(again, seen.hidden, rtol=0, atol=1e-12)
            logits = runner.parts.logits(again[:, seen.rows])[row, column]
            logits[:, MASK] = -torch.inf
            torch.testing.assert_close(logits, seen.logits, rtol=0, atol=1e-12)


def test_what_is_not_asked_for_is_not_kept():
    runner = tr.Diffusion(masked_model(), cache="dual", block_length=8)
    probe = Recorder(wants_layers=False)
    runner.generate(prompts(5), 8, probe=probe)
    assert all(not seen.layers for seen in probe.outcomes)


def test_rows_that_have_left_the_canvas_are_named():
    model = masked_model(seed=1)
    with torch.no_grad():
        model.model.lm_head.weight[51] = model.model.lm_head.weight[3] * 1.01
    probe = Recorder(wants_layers=False)
    rows = prompts(4, 8, 2, 7, seed=1)
    run = tr.Diffusion(model, block_length=8, commit=tr.Threshold(0.6)).generate(rows, 24, probe=probe)
    named = [saved["rows"] for saved in probe.states]
    assert named[0] == (0, 1, 2, 3)
    assert len(named[-1]) < 4
    for saved, step in zip(probe.states, run.steps, strict=True):
        assert len(saved["ids"]) == len(saved["rows"])
        assert all(not step.positions[row] for row in range(4) if row not in saved["rows"])
