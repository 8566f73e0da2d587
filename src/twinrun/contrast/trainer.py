"""transformers' Trainer with the packed loss: distribution, precision, resuming and logging are its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from twinrun.contrast.lesson import Lesson, Packed
from twinrun.contrast.loss import chosen_logits, soft_kl
from twinrun.errors import NonFiniteError

OnStep = Callable[[int, int], object]
"""Called with (optimizer steps done, steps in all)."""


class ContrastTrainer(Trainer):
    """Trains the chosen steps of whole answers.

    The loss of an optimizer step is the mean over its tuned tokens, whatever forwards and processes they were in:
    `labels` holds one entry a tuned token, which is what the Trainer counts.

    Args:
        module: the adapted model.
        arguments: of the Trainer.
        train: training lessons.
        validation: lessons kept apart; may be empty.
        together: see `chosen_logits`.
        keeps: see `chosen_logits`.
        callbacks: of the Trainer.

    Raises:
        NonFiniteError: a loss that is no number, when it occurs; names the step.
    """

    loss_is_scaled_for_ga = True  # divided by the tuned tokens of the whole accumulated batch

    def __init__(
        self,
        module: nn.Module,
        arguments: TrainingArguments,
        train: Sequence[Lesson],
        validation: Sequence[Lesson],
        *,
        together: bool,
        keeps: bool,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Hand everything to the Trainer."""
        super().__init__(
            model=module,
            args=arguments,
            train_dataset=list(train),
            eval_dataset=list(validation) or None,
            data_collator=collate,
            callbacks=list(callbacks),
        )
        self.model_accepts_loss_kwargs = (
            True  # so that it counts the tuned tokens; see `loss_is_scaled_for_ga`
        )
        self._how = {"together": together, "keeps": keeps}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the KL of a batch over the tuned tokens of the whole optimizer step."""
        found = self._losses(model, inputs)
        if not bool(torch.isfinite(found).all()):
            raise NonFiniteError(
                f"the loss is {float(found.detach().sum())} at step {self.state.global_step + 1}; lower the learning "
                "rate, or train in bfloat16 or float32 if this was float16"
            )
        total = len(found) if num_items_in_batch is None else num_items_in_batch
        loss = found.sum() / total
        # Gradients are averaged over processes, the tuned tokens were counted over all of them.
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean KL over all tuned tokens of the validation lessons; every process computes all of it."""
        lessons: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        module, size = self.model_wrapped, self.args.per_device_eval_batch_size
        module.eval()
        total, count = 0.0, 0
        for at in range(0, len(lessons), size):
            inputs = self._prepare_inputs(collate(lessons[at : at + size]))
            with torch.no_grad(), self.accelerator.autocast():
                found = self._losses(module, inputs)
            total, count = total + float(found.double().sum()), count + len(found)
        metrics = {f"{metric_key_prefix}_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _losses(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        batch = Packed(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = chosen_logits(model, batch, **self._how)
        return soft_kl(logits, batch.label_ids, batch.label_weights)


class Watch(TrainerCallback):
    """Reports every optimizer step."""

    def __init__(self, on_step: OnStep) -> None:
        """Keep whom to tell."""
        self._on_step = on_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell."""
        self._on_step(state.global_step, state.max_steps)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop at a gradient that is no number; the loss is looked at where it is made."""
        norm = (kwargs.get("logs") or {}).get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            raise NonFiniteError(
                f"the gradient is {norm} at step {state.global_step}; lower the learning rate"
            )


def collate(lessons: Sequence[Lesson]) -> dict[str, Tensor]:
    """One packed batch as the Trainer wants it: tensors by name, and `labels` for it to count."""
    batch = Packed.of(lessons)
    found = {name: getattr(batch, name) for name in Packed.__slots__}
    return {**found, "labels": batch.label_ids[:, 0].clone()}
