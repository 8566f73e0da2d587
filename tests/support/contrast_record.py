"""A folder of samples made by hand, with hostile text in every place that takes text; and a model that looks ahead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.support.demo_record import HOSTILE
from twinrun.contrast.samples import StepSample, Trajectory
from twinrun.contrast.shown import shown
from twinrun.contrast.store import Sampled, SampleStore
from twinrun.models.model import Model

BIDI = "a\u202eb"
SETTINGS = {"beta": 0.4, "alpha": 0.2, "first_step": 1, "system_prompt": HOSTILE}
# id -> text, as labels tell it; ids 8 and 9 stand in no label.
TOKENS = {1: HOSTILE, 2: "</script>", 3: "{{ 7 * 7 }}", 4: BIDI, 5: "é$x^$", 6: "\n", 7: "三"}


def _step(name: str, step: int, ids: tuple[int, ...], kl: float) -> StepSample:
    weights = (0.75, 0.25) if len(ids) == 2 else (1.0,)
    return StepSample(
        prompt_id=name, step=step, token_ids=ids, weights=weights, kl=kl, tokens=tuple(TOKENS[i] for i in ids)
    )


def sampled(name: str, index: int, *, refused: str | None = None) -> Sampled:
    """An answer of nine tokens; the KL of step 0 is above beta, but `first_step` is 1, so it is not kept."""
    kl = (1.5, 0.5, 0.0, 0.3, 2.0, 0.1, 0.01, 0.7, 3.0)
    ids = (1, 1, 2, 3, 4, 5, 6, 7, 9)
    row = Trajectory(
        prompt_id=name, question=f"{HOSTILE} {BIDI}", prompt_ids=(8, 9, 8), answer_ids=ids, answer=HOSTILE,
        finished=index == 0, index=index, kl=() if refused else kl,
    )  # fmt: skip
    steps = (
        _step(name, 1, (1, 5), 0.5),
        _step(name, 4, (4,), 2.0),
        _step(name, 7, (7, 2), 0.7),
        _step(name, 8, (3, 6), 3.0),
    )
    return Sampled(trajectory=row, steps=() if refused else steps, refused=refused)


def sample_folder(folder: Path, *, parts: int = 2) -> SampleStore:
    """Two answers and a refused problem, of a run of two batches; both are done unless `parts` is more."""
    models = {
        who: {"digest": f"{who}{HOSTILE}", "dtype": "float32", "device": "cpu"}
        for who in ("expert", "amateur")
    }
    store = SampleStore.create(folder, {"settings": SETTINGS, **models, "data": {}}, parts=parts)
    store.append(0, [sampled(f"one {HOSTILE}", 0), sampled("refused", 1, refused=f"NaN {HOSTILE}")])
    store.append(1, [sampled(f"two {BIDI}", 2)])
    return store


def shown_record(folder: Path, *, alternatives: bool = True, parts: int = 2) -> dict[str, Any]:
    """The record of that folder; alternatives are made up, hostile too."""
    record = shown(sample_folder(folder, parts=parts))
    if alternatives:
        for text in record["texts"]:
            tops = [[(token, 0.9), (HOSTILE, 0.06), (BIDI, 0.0)] for token in text["tokens"]]
            text.update(expert=tops, amateur=tops)
        record["kl_gap_max"] = 1e-7
    return record


@contextmanager
def looking_ahead(model: Model, share: float) -> Iterator[Model]:
    """Inside the block the first layer adds a share of the next position's output to each: causality is lost."""

    def leak(_module: Any, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        ahead = torch.cat([hidden[:, 1:], torch.zeros_like(hidden[:, :1])], dim=1)
        mixed = hidden + share * ahead
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    hook = model.layout.layers[0].register_forward_hook(leak)
    try:
        yield model
    finally:
        hook.remove()
