"""Record two diffusion runs of one prompt, step by step, and say where they part."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from twinrun.errors import ConfigError
from twinrun.records.env import environment
from twinrun.records.write import write_json
from twinrun.trace.canvas_keys import check_keys
from twinrun.trace.canvas_recorder import CanvasRecorder
from twinrun.trace.canvas_side import CanvasSide
from twinrun.trace.canvas_step import CanvasStep
from twinrun.trace.canvas_trace import CANVAS_SCHEMA, CanvasTrace, state_of
from twinrun.trace.canvas_watch import watching_layers
from twinrun.trace.identity import identity
from twinrun.trace.journal import Journal
from twinrun.trace.meta import META, SIDES
from twinrun.trace.recorder import Level

Progress = Callable[[int, int, str], None]
DIFFUSION = "diffusion"
LIMITS = ("threshold", "outlier", "refresh_every", "neighbours")
"""Settings of a skip policy from which its decision follows."""


def is_diffusion(runner: Any) -> bool:
    """Whether a runner fills in a canvas."""
    return getattr(runner, "kind", None) == DIFFUSION


def trace_canvas(
    reference: Any,
    candidate: Any,
    prompt: Any,
    *,
    max_new_tokens: int,
    level: Level,
    out: str | Path | None = None,
    on_progress: Progress | None = None,
    **sampling: Any,
) -> CanvasTrace:
    """Record both sides; see `twinrun.trace.trace.trace`, which calls this for two diffusion runners.

    Raises:
        ConfigError: one side is no diffusion runner, or the prompts are not the same tokens.
    """
    for who, side in zip(SIDES, (reference, candidate), strict=True):
        if not is_diffusion(side):
            raise ConfigError(
                f"the {who} ({type(side).__name__}) decodes from left to right; give two tr.Diffusion runners"
            )
    began = time.perf_counter()
    found = CanvasTrace(
        model=str(reference.model_name),
        dtype=str(reference.dtype),
        level=level,
        settings={"max_new_tokens": max_new_tokens, **sampling},
        env=environment(),
        runners=dict(zip(SIDES, (reference, candidate), strict=True)),
    )
    for name, runner in found.runners.items():
        setattr(found, name, blank_side(name, runner, prompt, max_new_tokens))
    for name, runner in found.runners.items():
        record: CanvasSide = getattr(found, name)
        if out is not None:
            write_json(Path(out) / META, {**found.about(), "schema": CANVAS_SCHEMA, "complete": False})
        _run(runner, record, found, out, on_progress, sampling)
    found.pieces = _pieces(reference, found)
    found.complete = True
    explain(found)
    found.seconds = time.perf_counter() - began
    if out is not None:
        write_json(Path(out) / META, {**found.about(), "schema": CANVAS_SCHEMA, "complete": True})
    return found


NOISES = 8
"""Steps in which the rounding of the reference is measured at most."""


def explain(found: CanvasTrace) -> None:
    """Fill in findings, noise and the first divergence; runs a few steps again, one precision up for the noise."""
    noises, asked = [_noise(found, 0)], {0}
    found.noise = noises[0]
    found.check()
    told = found.first_divergence
    while told is not None and told.step is not None and told.step not in asked and len(asked) < NOISES:
        asked.add(told.step)
        noises.append(_noise(found, told.step))
        found.noise = max((noise for noise in noises if noise is not None), default=None)
        found.check()
        told = found.first_divergence
    for who, runner in found.runners.items():
        keys = check_keys(getattr(found, who), runner)
        if keys is not None:
            found.findings.append(keys)


def _noise(found: CanvasTrace, step: int) -> float | None:
    """Rounding error of the reference's probabilities in a full forward; None for any other step."""
    runner = found.runners["reference"]
    if step >= len(found.reference.steps):
        return None
    if not found.reference.steps[step].full or runner.can_raise() is not None:
        return None
    return float(runner.rounding(state_of(found.reference, step)))


def blank_side(who: Any, side: Any, prompt: Any, max_new_tokens: int) -> CanvasSide:
    """A side of which nothing is recorded yet."""
    settings = side.settings
    policy = settings.skip
    limits = {name: getattr(policy, name) for name in LIMITS if hasattr(policy, name)}
    return CanvasSide(
        who=who,
        runner=side.name,
        dtype=str(side.dtype),
        identity=identity(side.module),
        prompt=side.encode(prompt, new_tokens=max_new_tokens),
        mask_id=side.mask_id,
        gen_length=max_new_tokens,
        settings={
            **settings.to_json(),
            "threshold": getattr(settings.commit, "p", None),
            "skip_limits": limits if "threshold" in limits else None,
        },
    )


def _run(
    side: Any,
    record: CanvasSide,
    found: CanvasTrace,
    out: str | Path | None,
    on_progress: Progress | None,
    sampling: dict[str, Any],
) -> None:
    """Run one side under its probe."""
    journal = None if out is None else Journal(Path(out) / record.who)
    done = 0 if record.who == "reference" else record.gen_length
    decided = 0

    def sink(step: CanvasStep) -> None:
        nonlocal decided
        decided += len(step.commits)
        if journal is not None:
            journal.add([step])
        if on_progress is not None:
            on_progress(done + decided, 2 * record.gen_length, f"{record.who}: {record.runner}")

    row = int(getattr(side, "row", 0))
    began = time.perf_counter()
    with (
        nullcontext() if journal is None else closing(journal),
        watching_layers(side.model.layout.layers) as watch,
    ):
        recorder = CanvasRecorder(side, record, row, watch, found.level, sink)
        run = side.generate(
            record.prompt, record.gen_length, observe=recorder.observe, probe=recorder, **sampling
        )
    record.seconds = time.perf_counter() - began
    record.tokens, record.canvas = run.tokens[row], run.canvases[row]
    record.finish = run.finish[row]
    record.text = side.model.decode(record.tokens)


def _pieces(side: Any, found: CanvasTrace) -> dict[int, str]:
    """Text of every id that the trace mentions."""
    ids: set[int] = set()
    for record in found.sides:
        ids |= {*record.prompt, *record.canvas, record.mask_id}
        ids |= {token for step in record.steps for token in (*step.ids, *step.tokens)}
    tokenizer = side.model.tokenizer
    return {} if tokenizer is None else {i: str(tokenizer.decode([i])) for i in sorted(ids)}
