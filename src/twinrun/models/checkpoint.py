"""Checks of a checkpoint folder before a byte of it is used: what it is, whether it is whole, whether it fits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from twinrun.errors import CheckpointError, NonFiniteError
from twinrun.models.memory import Stored, refuse_oversize, weight_bytes

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_folder(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder.

    Raises:
        CheckpointError: no config.json, weights only as pickles (loading those can run code), no weights,
            an index that names missing files, or a safetensors file that cannot be read to its end.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(
            f"{folder} has no config.json, so it is no transformers checkpoint; give a folder "
            "made by save_pretrained"
        )
    try:
        json.loads(config.read_text())
    except ValueError as error:
        raise CheckpointError(f"{config} is not valid JSON ({error}); restore it") from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{folder} holds its weights as pickle ({pickles[0]}), which can run code when it is read; "
                "convert it once with transformers' save_pretrained in a place you trust"
            )
        raise CheckpointError(f"{folder} has a config.json but no *.safetensors; copy the weights beside it")
    _check_index(folder, files)
    for file in files:
        _check_readable(file)
    return files


def _check_index(folder: Path, files: list[Path]) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text()).get("weight_map", {}).values())
        missing = sorted(wanted - {f.name for f in files})
        if missing:
            raise CheckpointError(
                f"{folder} lacks {missing[0]} ({len(missing)} of {len(wanted)} shards are "
                "missing); copy them too"
            )


def _check_readable(file: Path) -> None:
    """Open the header and check that the file is as long as the header says."""
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  safe_open is no mapping
                tensors.get_slice(name).get_shape()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is corrupt or cut short ({error}); copy it again") from error


def check_fits(files: list[Path], dtype: torch.dtype | None, device: torch.device, name: str) -> int:
    """Predict the bytes of the loaded weights and refuse a model that cannot fit.

    Args:
        files: safetensors files.
        dtype: precision they will have; None keeps that of the file.
        device: where they go.
        name: for the message.

    Raises:
        OutOfMemoryError: the weights alone need more than is free now.
    """
    need = weight_bytes((tensor for file in files for tensor in _stored(file)), dtype)
    refuse_oversize(name, need, device)
    return need


def _stored(file: Path) -> Iterator[Stored]:
    """Sizes of the tensors of one file, from its header."""
    with safe_open(file, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  safe_open is no mapping
            part = tensors.get_slice(key)
            kind = part.get_dtype()
            yield Stored(math.prod(part.get_shape()), _FILE_DTYPE_BYTES.get(kind, 4), kind in _FLOATS)


_FLOATS = {"F64", "F32", "F16", "BF16"}
_FILE_DTYPE_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
}
_FILE_DTYPE_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def check_finite(module: nn.Module) -> None:
    """Refuse a model with NaN or Inf in its weights.

    Raises:
        NonFiniteError: names the first tensor, how many of its values are affected, and where.

    Cost: reads every weight once.
    """
    for name, weight in module.named_parameters():
        if weight.is_floating_point() and weight.dtype.itemsize > 1 and not torch.isfinite(weight).all():
            bad = (~torch.isfinite(weight)).nonzero()
            raise NonFiniteError(
                f"weight {name} {tuple(weight.shape)} holds {len(bad)} NaN or Inf values, the "
                f"first at {tuple(bad[0].tolist())}; "
                "the checkpoint is damaged: copy or export it again"
            )
