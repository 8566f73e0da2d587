"""Tune an expert on its own best steps: LoRA on transformers' Trainer, killed and resumed without a trace.

Source: LightReasoner (arXiv:2510.07962), fine-tuning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twinrun.contrast.adapt import adapt, refuse_without_peft
from twinrun.contrast.identity import check_identity, identity
from twinrun.contrast.lesson import Lesson
from twinrun.contrast.lessons import Cost, contrast_lessons, sft_lessons, split, uniform_lessons
from twinrun.contrast.proof import TrainingForward, keeps_rows, proven_forward
from twinrun.contrast.samples import Trajectory
from twinrun.contrast.store import SampleStore
from twinrun.contrast.train_folder import (
    CHECKPOINTS,
    LOG,
    RECORD,
    Trained,
    finished,
    newest_checkpoint,
    open_folder,
)
from twinrun.contrast.train_settings import TrainSettings
from twinrun.contrast.trainer_arguments import arguments
from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.records.write import write_json, write_text


def train(
    expert: Model,
    samples: str | Path | SampleStore,
    out: str | Path,
    settings: TrainSettings | None = None,
    *,
    is_right: Callable[[Trajectory], bool] | None = None,
    on_step: Callable[[int, int], object] = lambda done, total: None,
) -> Trained:
    """Train an adapter of the expert on the kept steps of its samples and write it to `out`.

    The amateur is not needed here: what it said is in the labels. Any amateur that sampling takes will do, an older
    checkpoint of the expert itself among them.

    Source: LightReasoner (arXiv:2510.07962): KL(v_C || E_theta) at the chosen steps, LoRA, 1,000 steps.

    Args:
        expert: the model that generated the samples; an adapter is put into it and taken out, its weights stay.
        samples: a folder of `twinrun contrast sample`, or an open store.
        out: folder for the adapter; a training of the same request that was killed there goes on.
        settings: None is the paper's.
        is_right: whether an answer is right; needed by method "sft" and by `only_right`.
        on_step: called after every optimizer step.

    Returns:
        What was trained, also in `training.json`.

    Raises:
        MissingBackendError: no peft (`pip install 'twinrun[train]'`).
        SamplesError: no samples, or samples that the method cannot use.
        ConfigError: samples of another model, steps beyond an answer, ids beyond the vocabulary, `out` of another
            training.
        VerificationFailed: a batch would not train the chosen positions.
        NonFiniteError: a loss or gradient that is no number.

    Differs from the paper and its code: all steps of an answer share one forward, no token is read at a padded place,
        nothing is tokenised again, labels have the width of the model's head.

    Cost: `steps * accumulation` forwards and backwards of `batch_size` answers.
    """
    refuse_without_peft()
    chosen = settings or TrainSettings()
    store = samples if isinstance(samples, SampleStore) else SampleStore(samples)
    check_identity(expert, store.header.get("expert"), f"{store.folder}")
    lessons, validation = split(_lessons(store, chosen, is_right), chosen.validation, chosen.seed)
    _check_ids(expert, [*lessons, *validation])
    request = {
        "settings": chosen.to_json(),
        "base": identity(expert),
        "base_name": expert.name,
        "samples": {key: store.header.get(key) for key in ("settings", "expert", "amateur", "data")},
    }
    folder = open_folder(Path(out), request)
    done = finished(folder)
    if done is not None:
        return done
    if chosen.check:
        forward, verdict = proven_forward(expert, lessons)
        words: str | None = f"{verdict.verdict}: {verdict.reason}"
    else:
        forward, words = TrainingForward(expert), None
    state = _run(expert, forward, lessons, validation, folder, chosen, on_step)
    return _close(folder, state, words, forward, lessons, validation)


def _lessons(
    store: SampleStore, settings: TrainSettings, is_right: Callable[[Trajectory], bool] | None
) -> list[Lesson]:
    sampled = list(store.sampled())
    if is_right is None and (settings.only_right or settings.method == "sft"):
        raise ConfigError(
            "method sft and only_right need to know which answers are right; give is_right (--references on the "
            "command line)"
        )
    if settings.only_right and is_right is not None:
        sampled = [each for each in sampled if is_right(each.trajectory)]
    if settings.method == "contrast":
        return contrast_lessons(sampled, settings.beta)
    if settings.method == "uniform":
        return uniform_lessons(sampled, settings.beta, settings.seed)
    return sft_lessons(sampled, settings.beta, is_right or (lambda _: False), settings.seed)


def _check_ids(expert: Model, lessons: Sequence[Lesson]) -> None:
    """Refuse ids and lengths that the model has no place for."""
    vocab = expert.vocab_size
    for lesson in lessons:
        try:
            expert.encode(lesson.needed)
        except ConfigError as error:
            raise ConfigError(f"prompt {lesson.prompt_id!r:.60}: {error}") from error
        high = max(i for ids, _ in lesson.labels for i in ids)
        if high >= vocab:
            raise ConfigError(
                f"prompt {lesson.prompt_id!r:.60}: label id {high} is outside the vocabulary of {expert.name} "
                f"({vocab}); the samples belong to another tokenizer"
            )


def _run(
    expert: Model,
    forward: TrainingForward,
    lessons: Sequence[Lesson],
    validation: Sequence[Lesson],
    folder: Path,
    settings: TrainSettings,
    on_step: Callable[[int, int], object],
) -> Any:
    """Train to the end, from the newest whole checkpoint; write the adapter. Returns the Trainer's state."""
    from transformers import EarlyStoppingCallback, PrinterCallback

    from twinrun.contrast.trainer import ContrastTrainer, Watch

    callbacks: list[Any] = [Watch(on_step)]
    if settings.patience:
        callbacks.append(EarlyStoppingCallback(settings.patience))
    with adapt(expert, settings.lora, settings.seed) as module:
        trainer = ContrastTrainer(
            module,
            arguments(folder, settings, bool(validation)),
            lessons,
            validation,
            together=forward.together,
            keeps=keeps_rows(expert),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        start = newest_checkpoint(folder / CHECKPOINTS)
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        trainer.save_model(str(folder))  # gathers the shards of FSDP
        trainer.accelerator.wait_for_everyone()
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and request.json says it all
    return trainer.state


def _close(
    folder: Path,
    state: Any,
    words: str | None,
    forward: TrainingForward,
    lessons: Sequence[Lesson],
    validation: Sequence[Lesson],
) -> Trained:
    """Write log and record, the record last: a folder that has it is finished."""
    rows = [row for row in state.log_history if "train_runtime" not in row]
    write_text(folder / LOG, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    cost = Cost.of(lessons)
    best = state.best_global_step
    trained = Trained(
        folder=str(folder),
        steps=state.global_step,
        best_step=best,
        validation_loss=state.best_metric,
        lessons=len(lessons),
        validation_lessons=len(validation),
        cost={**asdict(cost), "row_per_step_over_packed": cost.saved},
        verdict=words,
        together=forward.together,
    )
    write_json(folder / RECORD, trained.to_json())
    return trained
