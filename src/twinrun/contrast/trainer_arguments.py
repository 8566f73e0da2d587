"""What transformers' Trainer is told about a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from twinrun.contrast.train_folder import CHECKPOINTS
from twinrun.contrast.train_settings import TrainSettings
from twinrun.errors import ConfigError, MissingBackendError

KEPT = 2
"""Checkpoints that stay, the best one besides."""


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
