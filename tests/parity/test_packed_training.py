"""All steps of an answer in one forward: loss and gradients of a row a step, to rounding; mix-ups are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.lessons import lessons
from tests.support.plain_training import last_column_logits, last_column_loss, row_per_step_loss
from tests.support.zoo import make
from twinrun.contrast import proof
from twinrun.contrast.adapt import adapt
from twinrun.contrast.lesson import Lesson, Packed
from twinrun.contrast.loss import chosen_logits, soft_kl
from twinrun.contrast.proof import TrainingForward, check_lessons, keeps_rows, proven_forward
from twinrun.contrast.train_settings import LoraSettings
from twinrun.errors import VerificationFailed
from twinrun.models.model import Model

FAMILIES = ("llama", "qwen3", "gpt2")
TARGETS = {"gpt2": ("c_attn",)}
EXACT = {"gpt2": 1e-12}
"""Float64 throughout. Llama and Qwen take norms and rotary tables in float32 whatever the weights are: 2e-6 there."""
Loss = Callable[[nn.Module, list[Lesson]], Tensor]


def packed_loss(module: nn.Module, batch: list[Lesson], **how: bool) -> Tensor:
    packed = Packed.of(batch)
    return soft_kl(chosen_logits(module, packed, **how), packed.label_ids, packed.label_weights).mean()


def gradients(model: Model, family: str, batch: list[Lesson], loss: Loss) -> tuple[float, Tensor]:
    """Loss, and gradient of every adapter weight behind one another. No weight of the adapter is zero."""
    lora = LoraSettings(r=2, dropout=0.0, targets=TARGETS.get(family, ("q_proj", "v_proj")))
    with adapt(model, lora, seed=1) as module:
        weights = [p for p in module.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(5)
        for weight in weights:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator).to(weight.dtype)
            weight.data = weight.data.to(model.dtype)
        value = loss(module, batch)
        value.backward()
        return float(value.detach()), torch.cat(
            [w.grad.reshape(-1).double() for w in weights if w.grad is not None]
        )


def doubled(family: str) -> Model:
    model = make(family, "float32")
    return Model(model.model.double(), name=family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("together", [True, False])
def test_loss_and_gradients_are_those_of_a_row_a_step(family: str, together: bool) -> None:
    model = doubled(family)
    batch = lessons(model.vocab_size)
    plain = gradients(model, family, batch, row_per_step_loss)
    how = {"together": together, "keeps": keeps_rows(model)}
    packed = gradients(model, family, batch, lambda m, b: packed_loss(m, b, **how))
    assert packed[0] == pytest.approx(plain[0], rel=EXACT.get(family, 2e-6))
    assert plain[1].norm() > 1e-3
    assert (packed[1] - plain[1]).norm() < EXACT.get(family, 2e-6) * plain[1].norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_they_agree_to_rounding(family: str) -> None:
    """Both ways are as far from float64 as float32 is; the difference is a few units in the last place."""
    model, twin = make(family, "float32"), doubled(family)
    batch = lessons(model.vocab_size)
    exact = gradients(twin, family, batch, row_per_step_loss)[1]
    off = []
    for loss in (row_per_step_loss, lambda m, b: packed_loss(m, b, keeps=keeps_rows(model))):
        off.append(float((gradients(model, family, batch, loss)[1] - exact).norm() / exact.norm()))
    assert max(off) < 2e-6, off


def seeing_each_other(batch: Packed) -> Packed:
    """Positions that go on counting: every text sees those before it."""
    return replace(batch, position_ids=torch.arange(batch.input_ids.shape[1])[None])


def one_late(batch: Packed) -> Packed:
    return replace(batch, rows=(batch.rows + 1).clamp(max=batch.input_ids.shape[1] - 1))


@pytest.mark.parametrize("change", [seeing_each_other, one_late])
def test_the_comparison_refuses_a_batch_that_is_mixed_up(change: Callable[[Packed], Packed]) -> None:
    model = doubled("llama")
    batch = lessons(model.vocab_size)

    def wrong(module: nn.Module, given: list[Lesson]) -> Tensor:
        packed = change(Packed.of(given))
        return soft_kl(chosen_logits(module, packed), packed.label_ids, packed.label_weights).mean()

    plain, found = (
        gradients(model, "llama", batch, row_per_step_loss),
        gradients(model, "llama", batch, wrong),
    )
    assert abs(found[0] - plain[0]) > 1e-3
    assert (found[1] - plain[1]).norm() > 1e-3 * plain[1].norm()


def test_the_public_trainers_rows_are_another_loss() -> None:
    """Casebook 4, fault 3: right-padded rows read at the last column. Rows of one length are right, others are not."""
    model = doubled("llama")
    batch = lessons(model.vocab_size)
    right, wrong = (gradients(model, "llama", batch, f) for f in (row_per_step_loss, last_column_loss))
    assert (wrong[1] - right[1]).norm() > 0.1 * right[1].norm()
    alone = lessons(model.vocab_size, shapes=((4, 3, (1,)), (4, 3, (1,))))
    right, wrong = (gradients(model, "llama", alone, f) for f in (row_per_step_loss, last_column_loss))
    assert (wrong[1] - right[1]).norm() < 1e-12 * right[1].norm()


def test_the_head_sees_the_chosen_positions_only(shared_llama: Model) -> None:
    seen: list[int] = []
    head = shared_llama.layout.head
    assert head is not None
    handle = head.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[-2]))
    try:
        batch = Packed.of(lessons(shared_llama.vocab_size))
        with torch.no_grad():
            chosen_logits(shared_llama.model, batch)
            chosen_logits(shared_llama.model, batch, keeps=False)
    finally:
        handle.remove()
    assert seen == [len(batch.rows), batch.input_ids.shape[1]]


class LastColumn(TrainingForward):
    """The public trainer's forward, planted: rows padded on the right, read at the last column."""

    def logits_of(self, module: nn.Module, batch: Any) -> Tensor:
        return last_column_logits(module, batch)


class Mixed(TrainingForward):
    """Texts that see each other, planted."""

    def logits_of(self, module: nn.Module, batch: Any) -> Tensor:
        return chosen_logits(module, seeing_each_other(Packed.of(batch)))


def test_the_training_check_accepts_the_sound_forward(shared_llama: Model) -> None:
    batch = lessons(shared_llama.vocab_size)
    for together in (True, False):
        assert check_lessons(TrainingForward(shared_llama, together=together), batch).passed


@pytest.mark.parametrize("fault", [LastColumn, Mixed])
def test_the_training_check_catches_planted_faults(shared_llama: Model, fault: type[TrainingForward]) -> None:
    verdict = check_lessons(fault(shared_llama), lessons(shared_llama.vocab_size))
    assert verdict.verdict == "different"


def test_a_model_that_mixes_packed_texts_is_run_text_by_text(shared_llama: Model, monkeypatch) -> None:
    batch = lessons(shared_llama.vocab_size)
    sound = TrainingForward.logits_of

    def mixes(self: TrainingForward, module: nn.Module, given: Any) -> Tensor:
        return Mixed.logits_of(self, module, given) if self.together else sound(self, module, given)

    monkeypatch.setattr(proof.TrainingForward, "logits_of", mixes)
    forward, verdict = proven_forward(shared_llama, batch)
    assert verdict.passed
    assert not forward.together


def test_a_forward_that_cannot_be_proved_trains_nothing(shared_llama: Model, monkeypatch) -> None:
    monkeypatch.setattr(proof.TrainingForward, "logits_of", LastColumn.logits_of)
    with pytest.raises(VerificationFailed, match="nothing was trained"):
        proven_forward(shared_llama, lessons(shared_llama.vocab_size))
