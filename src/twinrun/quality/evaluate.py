"""`evaluate`: how many answers does a fast way cost? Every side on the same items, with paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twinrun.bench.refusal import Refusal, clear_memory, context_of
from twinrun.bench.weights import digest
from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.numerics.precision import dtype_name
from twinrun.quality.answer import answer
from twinrun.quality.item import Item
from twinrun.quality.longbench import long_items
from twinrun.quality.ruler import ruler_items
from twinrun.quality.settings import PREFIX, EvalSettings
from twinrun.quality.store import Place, Store
from twinrun.quality.summary import summarise
from twinrun.quality.team import Team
from twinrun.records.env import environment
from twinrun.records.quality import Quality
from twinrun.records.write import write_json, write_text

Progress = Callable[[int, int, str], object]
"""Called with (items done by this process, its items in all, what comes next)."""
Lot = tuple[str, list[Item]]
"""A side's name and the items that it answers together."""
Refusals = dict[tuple[str, str, int], Refusal]
"""By side (empty: any), task and length."""


def evaluate(
    sides: Mapping[str, Any],
    settings: EvalSettings,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    labels: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> Quality:
    """Let every side answer the same items, greedily, and compare them in pairs.

    Started by `accelerate launch` or `torchrun`, the processes share the batches; what a batch holds does not depend on
    how many there are, so the result is that of one process.

    Args:
        sides: name -> causal runner; the first is what the others are held against. All run the same model.
        settings: tasks, lengths, modes, items.
        out: a folder for answers.N.jsonl (a line an item, on disk as soon as its batch is done), quality.json and
            quality.md.
        resume: go on with the answers that `out` holds.
        labels: what the request says of each side besides its model (schedule, seed); two runs with equal requests
            may share answers.
        on_progress: called before every batch.

    Returns:
        A `Quality`, on every process the same.

    Raises:
        ConfigError: no sides, another request in `out`, or nothing that could be asked at any length.

    Cost: sides x tasks x lengths x modes x items runs of a prompt and an answer.

    Example:
        >>> m = load("builtin:expert")
        >>> asked = EvalSettings(tasks=("niah_single",), lengths=(176,), items=1, answer_tokens=2, digits=3)
        >>> found = evaluate({"none": KVCache(m)}, asked)
        >>> [cell["status"] for cell in found.cells]
        ['done', 'done']
    """
    model = _model_of(sides)
    team = Team()
    request = _request(sides, model, settings, labels or {})
    store = Store(out, request, team, resume=resume)
    items, refusals = _items(model, settings)
    _run(sides, _lots(sides, items, settings.batch), store, refusals, team, on_progress)
    found = _record(request, store.all(), _shared(team, refusals), settings, list(sides))
    if out is not None and team.is_first:
        write_json(Path(out) / "quality.json", found.to_json())
        write_text(Path(out) / "quality.md", found.to_markdown())
    team.wait()
    return found


def _model_of(sides: Mapping[str, Any]) -> Model:
    if not sides:
        raise ConfigError(
            "no sides; give at least one runner by name, the first is what others are held against"
        )
    name, first = next(iter(sides.items()))
    model = getattr(first, "model", None)
    if not isinstance(model, Model):
        raise ConfigError(f"{name} has no twinrun model; give a causal runner such as tr.KVCache(model)")
    if model.tokenizer is None:
        raise ConfigError(f"{model.name} was loaded without a tokenizer; tasks are made of text")
    return model


def _request(
    sides: Mapping[str, Any], model: Model, settings: EvalSettings, labels: Mapping[str, Any]
) -> dict[str, Any]:
    """What was asked for: two runs with equal requests may share their answers."""
    asked = {name: getattr(settings, name) for name in EvalSettings.__dataclass_fields__}
    return {
        "model": model.name,
        "dtype": dtype_name(model.dtype),
        "weights": digest(model),
        "sides": [
            {"name": name, "runner": side.name, **labels.get(name, {})} for name, side in sides.items()
        ],
        **{name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()},
        "env": environment(),
    }


def _items(model: Model, settings: EvalSettings) -> tuple[list[Item], Refusals]:
    """All items in order, and the tasks that cannot be asked at a length."""
    items: list[Item] = []
    refusals: Refusals = {}
    for task in settings.tasks:
        for length in settings.lengths:
            try:
                if task.startswith(PREFIX):
                    items += long_items(model, task, length, settings)
                else:
                    items += ruler_items(model, task, length, settings)
            except ConfigError as error:
                is_long = model.max_context is not None and length > model.max_context
                refusals["", task, length] = Refusal("too long" if is_long else "not judged", str(error))
    if not items:
        raise ConfigError(next(iter(refusals.values())).reason)
    return items, refusals


def _lots(sides: Mapping[str, Any], items: Sequence[Item], batch: int) -> list[Lot]:
    """What runs together: items of one task, length and mode, always the same ones."""
    groups: dict[tuple[str, int, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.task, item.length, item.mode), []).append(item)
    return [
        (name, group[at : at + batch])
        for group in groups.values()
        for at in range(0, len(group), batch)
        for name in sides
    ]


def _run(
    sides: Mapping[str, Any],
    lots: Sequence[Lot],
    store: Store,
    refusals: Refusals,
    team: Team,
    on_progress: Progress | None,
) -> None:
    """Answer what is not on disk yet; the open lots are dealt out to the processes in turn."""
    left = [lot for lot in lots if any((lot[0], item.key) not in store.done for item in lot[1])]
    mine = left[team.rank :: team.size]
    total, done = sum(len(lot) for _, lot in mine), 0
    for name, lot in mine:
        if on_progress is not None:
            on_progress(done, total, f"{lot[0].task}, {lot[0].length:,} tokens: {name}")
        done += len(lot)
        place = name, lot[0].task, lot[0].length
        if place in refusals:
            continue
        try:
            store.add(list(_lines(name, sides[name], lot)))
        except Exception as error:  # whatever a side raises is its record
            tokens = max(len(i.prompt) + len(i.then) + i.max_new_tokens for i in lot)
            refusals[place] = Refusal.of(error, tokens, context_of(sides[name]))
            error.__traceback__ = None  # its frames hold the tensors of the failed run
            clear_memory()


def _lines(name: str, side: Any, lot: Sequence[Item]) -> Iterator[dict[str, Any]]:
    for item, said in zip(lot, answer(side, lot), strict=True):
        text = side.model.decode(said.ids) or ""
        yield {
            "side": name,
            "key": item.key,
            "text": text,
            "scores": item.score(text),
            "prompt_tokens": len(item.prompt),
            "then_tokens": len(item.then),
            "new_tokens": len(said.ids),
            "cache_lengths": list(said.cache_lengths),
            "seconds": said.seconds,
        }


def _shared(team: Team, refusals: Refusals) -> Refusals:
    """Refusals of all processes."""
    rows = team.gather([(place, refusal.status, refusal.reason) for place, refusal in refusals.items()])
    return {tuple(place): Refusal(status, reason) for place, status, reason in rows}


def _record(
    request: dict[str, Any],
    answers: dict[Place, dict[str, Any]],
    refusals: Refusals,
    settings: EvalSettings,
    sides: list[str],
) -> Quality:
    reasons = {place: {"status": r.status, "reason": r.reason} for place, r in refusals.items()}
    cells, overall, pairs = summarise(answers, reasons, settings, sides)
    return Quality(request=request, cells=cells, overall=overall, pairs=pairs)
