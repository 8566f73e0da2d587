"""Run both sides over one prompt, record every step, and say where they part."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, Literal

from twinrun.errors import ConfigError, near_names
from twinrun.records.env import environment
from twinrun.records.write import write_json
from twinrun.trace.canvas_run import is_diffusion, trace_canvas
from twinrun.trace.canvas_trace import CanvasTrace
from twinrun.trace.identity import identity
from twinrun.trace.journal import Journal
from twinrun.trace.meta import META
from twinrun.trace.numbers import analyse
from twinrun.trace.record import SCHEMA, Trace
from twinrun.trace.recorder import LEVELS, Level, Recorder, tracing
from twinrun.trace.side import Side
from twinrun.trace.step import TracedStep
from twinrun.verify.activations import By
from twinrun.verify.blame import check_by

Progress = Callable[[int, int, str], None]


def trace(
    reference: Any,
    candidate: Any,
    prompt: Any,
    *,
    max_new_tokens: int = 64,
    forced: bool | Sequence[int] = False,
    level: Level = "fingerprints",
    by: By | None = "module",
    out: str | Path | None = None,
    on_progress: Progress | None = None,
    **sampling: Any,
) -> Trace | CanvasTrace:
    """Record both sides step by step and find the first place where they part.

    Both run freely from the prompt, or, with `forced`, score the same continuation. Every forward is a step: what it
    was handed (positions, position ids, mask, cache length a layer), the five likeliest tokens, entropy, margin, and
    fingerprints of the hidden states of every layer. The text that both share is then judged with teacher forcing
    (`twinrun.verify`), which gives the noise that tells a tie from a bug; if it says "different", `twinrun.blame`
    names the module.

    Args:
        reference: trusted runner.
        candidate: runner on trial.
        prompt: a text or token ids.
        max_new_tokens: how far to run.
        forced: True to score the reference's own continuation with both sides, or the token ids of one.
        level: "steps" keeps no hidden states, "fingerprints" 136 bytes a layer and step, "states" all of them.
        by: how fine to look for the culprit: "module", "layer" or "step". None takes no verdict at all: only what was
            recorded is compared.
        out: folder to stream the trace to while it runs; it must be empty. `Trace.save` writes one afterwards.
        on_progress: called with (steps done, steps in all, what).
        **sampling: as for `generate`; greedy without any.

    Returns:
        A `Trace`: `first_divergence`, `blame`, `verdict`, and both sides' steps. Of two diffusion runners a
        `CanvasTrace`: `first_divergence`, `findings`, and both sides' steps, block by block.

    Raises:
        ConfigError: a prompt that is empty or too long, an unknown level, or a folder that is not empty.

    Cost: recording adds a few percent at the default level; to diffusion runs of a very small model a seventh, with a
        token skip a third. The explanation adds up to eight forward passes over the common text.

    Example:
        >>> m = load("builtin:amateur")
        >>> trace(Recompute(m), KVCache(m), "Two and two", max_new_tokens=4).first_divergence is None
        True
    """
    _check(reference, candidate, level, by)
    if is_diffusion(reference) or is_diffusion(candidate):
        free = _free(forced, {"out": out, "on_progress": on_progress, "level": level, **sampling})
        return trace_canvas(reference, candidate, prompt, max_new_tokens=max_new_tokens, **free)
    began = time.perf_counter()
    mode: Literal["free", "forced"] = "free" if forced is False else "forced"
    found = Trace(
        model=str(reference.model_name),
        dtype=str(reference.dtype),
        mode=mode,
        level=level,
        settings={"max_new_tokens": max_new_tokens, **sampling},
        env=environment(),
    )
    ids = reference.model.encode(prompt, new_tokens=0 if mode == "forced" else max_new_tokens)
    text = _continuation(reference, ids, forced, max_new_tokens) if mode == "forced" else None
    sides: dict[Literal["reference", "candidate"], Any] = {"reference": reference, "candidate": candidate}
    for who, side in sides.items():
        own = ids if who == "reference" else side.model.encode(prompt, new_tokens=max_new_tokens)
        setattr(found, who, _side(who, side, own))
    for side, record in zip(sides.values(), found.sides, strict=True):
        if out is not None:
            write_json(Path(out) / META, {**found.about(), "schema": SCHEMA, "complete": False})
        _run(side, record, text, found, out, max_new_tokens, sampling, on_progress)
    found.pieces = _pieces(reference, found)
    found.complete = True
    analyse(found, reference, candidate, by)
    found.seconds = time.perf_counter() - began
    if out is not None:
        write_json(Path(out) / META, {**found.about(), "schema": SCHEMA, "complete": True})
    return found


def _side(who: Literal["reference", "candidate"], side: Any, prompt: list[int]) -> Side:
    """A side of which nothing is recorded yet."""
    ids = identity(side.module)
    return Side(who=who, runner=side.name, dtype=str(side.dtype), identity=ids, prompt=prompt)


def _free(forced: bool | Sequence[int], settings: dict[str, Any]) -> dict[str, Any]:
    """Return `settings`, those of a free run."""
    if forced is not False:
        raise ConfigError("forced=... is for runs from left to right; a canvas is traced free")
    return settings


def _check(reference: Any, candidate: Any, level: str, by: str | None) -> None:
    """Refuse what cannot be traced, before anything runs."""
    if level not in LEVELS:
        raise ConfigError(
            f"unknown level {level!r}; choose from {', '.join(LEVELS)}.{near_names(level, LEVELS)}"
        )
    for who, side in (("reference", reference), ("candidate", candidate)):
        if getattr(side, "module", None) is None or not hasattr(side, "model"):
            raise ConfigError(
                f"the {who} ({type(side).__name__}) shows no model to trace; use a twinrun runner"
            )
    if by is not None:
        check_by(by)


def _continuation(
    reference: Any, ids: list[int], forced: bool | Sequence[int], max_new_tokens: int
) -> list[int]:
    """Prompt and what is forced behind it."""
    if forced is True:
        return ids + list(reference.generate(ids, max_new_tokens).tokens[0])
    assert not isinstance(forced, bool)
    text: list[int] = reference.model.encode([*ids, *forced])
    return text


def _run(
    side: Any,
    record: Side,
    text: list[int] | None,
    found: Trace,
    out: str | Path | None,
    max_new_tokens: int,
    sampling: dict[str, Any],
    on_progress: Progress | None,
) -> None:
    """Run one side under hooks."""
    journal = None if out is None else Journal(Path(out) / record.who)
    total = 2 * max_new_tokens
    done = 0 if record.who == "reference" else max_new_tokens

    def sink(steps: Sequence[TracedStep]) -> None:
        if journal is not None:
            journal.add(steps)
        if on_progress is not None:
            on_progress(min(done + steps[-1].step + 1, total), total, f"{record.who}: {record.runner}")

    recorder = Recorder(record.prompt, text, found.level, sink)
    layers = side.model.layout.layers
    began = time.perf_counter()
    with nullcontext() if journal is None else closing(journal), tracing(side.module, layers, recorder):
        if text is None:
            run = side.generate(record.prompt, max_new_tokens, recorder.observe, **sampling)
            record.tokens, record.finish = run.tokens[0], run.finish[0]
        else:
            recorder.finish(side.score(text, len(record.prompt)))
            record.tokens, record.finish = text[len(record.prompt) :], "forced"
    record.seconds = time.perf_counter() - began
    record.steps = recorder.steps
    log = getattr(side, "prune_log", None)
    record.prune = log() if callable(log) else None
    record.text = side.model.decode(record.tokens)


def _pieces(side: Any, found: Trace) -> dict[int, str]:
    """Text of every id that the trace mentions."""
    ids: set[int] = set()
    for record in (found.reference, found.candidate):
        ids |= {*record.prompt, *record.tokens}
        ids |= {i for step in record.steps for row in step.rows for i in row.top_ids}
    tokenizer = side.model.tokenizer
    return {} if tokenizer is None else {i: str(tokenizer.decode([i])) for i in sorted(ids)}
