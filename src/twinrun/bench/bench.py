"""`twinrun.bench`: how fast are these runners, how far from the ceiling, and are they still the same model?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twinrun.bench.plan import Plan
from twinrun.bench.row import History, calls_a_row, measure_row
from twinrun.bench.rows import RowFile
from twinrun.bench.settings import BenchSettings
from twinrun.errors import ConfigError, OutOfMemoryError
from twinrun.records.bench import Bench
from twinrun.records.write import write_json, write_text

Progress = Callable[[int, int, str], object]
"""Called with (pieces of work done, pieces in all, the next one)."""


def bench(
    runners: Mapping[str, Any] | Iterable[Any],
    *,
    lengths: Sequence[int],
    new_tokens: int = 128,
    repeats: int = 10,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: Progress | None = None,
    **settings: Any,
) -> Bench:
    """Time runners against each other at several prompt lengths, with a verdict beside every speed.

    At each length, one row of one prompt (batch 1): every runner runs untimed (memory, operations, cache), is
    judged against the first by `twinrun.verify` on the same text, then all are timed in turns, the first twice
    (the A/A run). Every run is forced to `new_tokens` tokens. A runner that does not fit is recorded with its
    reason and the sweep goes on.

    Args:
        runners: the first is the reference. Anything with `score(tokens, start)` and
            `generate(prompt, max_new_tokens, observe)`; a mapping brings names.
        lengths: prompt lengths in tokens.
        new_tokens: tokens that every run writes, end-of-text tokens ignored.
        repeats: timed rounds.
        out: a folder for rows.jsonl (a line as soon as its length is done), bench.json and bench.md.
        resume: go on with the rows that `out` holds already.
        on_progress: called before every piece of work.
        **settings: further fields of `BenchSettings`: warmups, judged_positions, prompts, seed, budget.

    Returns:
        A `Bench`: rows, with `to_json`, `to_markdown`, `to_pandas`.

    Raises:
        ConfigError: a value out of range, a first runner that cannot be the reference, another request in
            `out`, or lengths that are too long for every runner.
        OutOfMemoryError: no runner fits at any length.

    Differs from gpt-fast's and nanochat's tables: their ceilings are datasheet numbers, these are measured in
    the same run; and their speeds stand without a verdict.

    Cost: a length takes (repeats + warmups + 2) whole runs of every runner and of the first again.

    Example:
        >>> m = load("builtin:amateur")
        >>> r = bench([Recompute(m), KVCache(m)], lengths=[8], new_tokens=3, repeats=2)
        >>> [cell["verdict"]["verdict"] for cell in r.rows[0]["cells"]][0], r.passed
        ('reference', True)
    """
    given = {"lengths": lengths, "new_tokens": new_tokens, "repeats": repeats, **settings}
    plan = Plan.of(runners, BenchSettings.of(given))
    request = plan.request()
    if resume and out is None:
        raise ConfigError("resume needs the folder to go on with; give out (--out DIR)")
    file = None if out is None else RowFile(out, request, resume=resume)
    rows = _rows(plan, file, on_progress)
    found = Bench(request=request, rows=tuple(rows))
    _refuse_nothing(found)
    if file is not None:
        write_json(file.folder / "bench.json", found.to_json())
        write_text(file.folder / "bench.md", found.to_markdown())
    return found


def _rows(plan: Plan, file: RowFile | None, on_progress: Progress | None) -> list[dict[str, Any]]:
    """Measure the lengths that are not on disk yet, in the order given."""
    have = {row["length"]: row for row in (file.rows if file is not None else [])}
    history = History()
    for row in have.values():
        history.add(row)
    left = [n for n in plan.settings.lengths if n not in have]
    done, total = 0, 1 + len(left) * calls_a_row(plan)

    def tick(what: str) -> None:
        nonlocal done
        if on_progress is not None:
            on_progress(done, total, what)
        done = min(done + 1, total)

    if left:
        tick("ceilings of this machine")
        ceilings = plan.ceilings()
    for index, length in enumerate(left):
        done = 1 + index * calls_a_row(plan)
        row = measure_row(plan, length, ceilings, history, tick)
        history.add(row)
        have[length] = row
        if file is not None:
            file.add(row)
    if on_progress is not None:
        on_progress(total, total, "done")
    return [have[n] for n in plan.settings.lengths]


def _refuse_nothing(found: Bench) -> None:
    """A sweep in which no runner could run for lack of room is a wrong request, not a result."""
    cells = [cell for row in found.rows for cell in row["cells"]]
    kinds = {cell["status"] for cell in cells}
    if kinds == {"too long"}:
        raise ConfigError(f"every length is too long: {cells[0]['reason']}")
    if kinds <= {"too long", "out of memory"}:
        reason = next(cell["reason"] for cell in cells if cell["status"] == "out of memory")
        raise OutOfMemoryError(f"no runner fits at any length: {reason}")
