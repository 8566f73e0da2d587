"""Tune an expert on its own best steps: LoRA on transformers' Trainer, killed and resumed without a trace.

Source: LightReasoner (arXiv:2510.07962), fine-tuning.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from twinrun.contrast.adapt import adapt, refuse_without_peft
from twinrun.contrast.identity import check_identity, identity
from twinrun.contrast.lesson import Lesson
from twinrun.contrast.lessons import Cost, contrast_lessons, sft_lessons, split, uniform_lessons
from twinrun.contrast.proof import TrainingForward, keeps_rows, proven_forward
from twinrun.contrast.samples import Trajectory
from twinrun.contrast.store import SampleStore
from twinrun.contrast.train_settings import TrainSettings
from twinrun.errors import ConfigError, MissingBackendError
from twinrun.models.model import Model
from twinrun.records.env import environment
from twinrun.records.write import write_json, write_text

REQUEST, RECORD, LOG = "request.json", "training.json", "log.jsonl"
CHECKPOINTS = "checkpoints"
KEPT = 2
"""Checkpoints that stay, the best one besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training left.

    Attributes:
        folder: holds the adapter (peft's files), request, log and this record.
        steps: optimizer steps taken.
        best_step: the one whose adapter was kept; None without validation.
        validation_loss: of that adapter, nats a tuned token; None without validation.
        lessons: answers trained on; `validation_lessons` were kept apart.
        cost: tokens of one round over the training lessons.
        verdict: of the training check; None where it was switched off.
        together: whether a batch was one forward.
    """

    folder: str
    steps: int
    best_step: int | None
    validation_loss: float | None
    lessons: int
    validation_lessons: int
    cost: dict[str, Any]
    verdict: str | None
    together: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": "twinrun.training/1",
            **asdict(self),
            "environment": environment(),
            "peft": version("peft"),
        }


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
    folder = _open(Path(out), request)
    done = _finished(folder)
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


def _open(folder: Path, request: Mapping[str, Any]) -> Path:
    """Begin a folder, or find it begun with the same request."""
    wanted = json.loads(json.dumps(request))
    place = folder / REQUEST
    if not place.exists():
        if folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no {REQUEST}; give another --out")
        write_json(place, wanted)
        return folder
    there = json.loads(place.read_text("utf-8"))
    for key in sorted({*there, *wanted} - {"base_name"}):
        if there.get(key) != wanted.get(key):
            old, new = _part(there.get(key), wanted.get(key))
            raise ConfigError(f"{folder} holds a training with {key} {old}, not {new}; give another --out")
    return folder


def _part(old: Any, new: Any) -> tuple[str, str]:
    """The entries in which two settings differ."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return f"{old!r:.80}", f"{new!r:.80}"
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return f"{ {k: old.get(k) for k in keys} }", f"{ {k: new.get(k) for k in keys} }"


def _finished(folder: Path) -> Trained | None:
    path = folder / RECORD
    if not path.exists():
        return None
    found = json.loads(path.read_text("utf-8"))
    return Trained(**{key: found[key] for key in Trained.__slots__} | {"folder": str(folder)})


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


def arguments(folder: Path, settings: TrainSettings, validates: bool) -> Any:
    """What the Trainer is told.

    Raises:
        ConfigError: an extra that is unknown, or that has a field of its own in `TrainSettings`.
        MissingBackendError: a precision that this machine cannot train in.
    """
    from transformers import TrainingArguments

    own: dict[str, Any] = {
        "output_dir": str(folder / CHECKPOINTS),
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.precision == "bfloat16",
        "fp16": settings.precision == "float16",
        "seed": settings.seed,
        "eval_strategy": "steps" if validates else "no",
        "eval_steps": settings.every,
        "save_steps": settings.every,
        "load_best_model_at_end": validates,
        "metric_for_best_model": "eval_loss" if validates else None,
        "greater_is_better": False if validates else None,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "restore_callback_states_from_checkpoint": True,
        "logging_nan_inf_filter": False,
    }
    clash = sorted(own.keys() & settings.extra.keys())
    if clash:
        raise ConfigError(f"{clash[0]} has an option of its own; do not give it as an extra")
    defaults = {"report_to": "none", "disable_tqdm": True, "save_total_limit": KEPT, "logging_steps": 10}
    defaults["use_cpu"] = not torch.cuda.is_available()
    try:
        found = TrainingArguments(**own, **{**defaults, **settings.extra})
    except TypeError as error:
        raise ConfigError(f"transformers.TrainingArguments refuses an extra: {error}") from error
    except ValueError as error:
        raise MissingBackendError(
            f"this machine cannot train so: {' '.join(str(error).split())[:200]}"
        ) from error
    found._n_gpu = min(found.n_gpu, 1)  # several devices are several processes here, not one that splits rows
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those behind it, cut off by a kill, are removed.

    The Trainer writes its state last, so a checkpoint with a readable state is whole.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text("utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        return path
    return None


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
