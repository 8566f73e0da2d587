"""All runners at one length: facts, verdicts, then interleaved times with the first runner against itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from twinrun.bench import cell
from twinrun.bench.ceilings import Ceilings
from twinrun.bench.facts import RUNS, Facts, measure_facts
from twinrun.bench.passage import Passage, run_forced
from twinrun.bench.plan import Plan
from twinrun.bench.refusal import Refusal, clear_memory, context_of, foreseen
from twinrun.bench.remembered import Remembered
from twinrun.bench.timing import AGAIN, PairedRatio, interleave, ratio
from twinrun.bench.verdicts import judge, of_reference
from twinrun.models.memory import free_bytes

Tick = Callable[[str], object]
"""Called before every piece of work with what it is."""


@dataclass(slots=True)
class History:
    """What earlier rows found and later ones use, by runner."""

    peaks: dict[str, dict[int, int]] = field(default_factory=dict)
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        """Remember peaks and verdicts of a row."""
        for found in row["cells"]:
            if found["status"] == "timed":
                peak = found["memory"]["tensor_peak_bytes"]
                self.peaks.setdefault(found["runner"], {})[row["length"]] = peak
            if found["verdict"] is not None:
                self.verdicts[found["runner"]] = found["verdict"]


def calls_a_row(plan: Plan) -> int:
    """Ticks of one row, for progress bars."""
    sides, settings = len(plan.sides), plan.settings
    return sides * RUNS + sides - 1 + (settings.repeats + settings.warmups - 1) * (sides + 1)


def measure_row(plan: Plan, length: int, ceilings: Ceilings, history: History, tick: Tick) -> dict[str, Any]:
    """Measure every runner at one length.

    A runner that raises is recorded with its reason and the others go on.

    Returns:
        The row as plain JSON types; its keys are in docs/records.md.
    """
    began = time.perf_counter()
    row = _Row(plan, length, history, tick)
    row.look()
    row.judge()
    kept = row.time()
    cells = row.cells(kept, ceilings)
    return {
        "length": length,
        "new_tokens": plan.settings.new_tokens,
        "noise": cell.noise_json(row.noise(kept)),
        "cells": cells,
        "ceilings": ceilings.to_json(),
        "seconds": time.perf_counter() - began,
    }


class _Row:
    """One row under way. A side is in `refusals`, or in `facts` and `verdicts`."""

    def __init__(self, plan: Plan, length: int, history: History, tick: Tick) -> None:
        self.plan, self.length, self.history, self.tick = plan, length, history, tick
        self.facts: dict[str, Facts] = {}
        self.verdicts: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, Refusal] = {}

    def look(self) -> None:
        """Run every side untimed; what cannot run is refused here."""
        plan, settings = self.plan, self.plan.settings
        for name, side in plan.sides.items():
            peaks = self.history.peaks.get(name, {})
            refusal = foreseen(peaks, self.length, free_bytes(plan.device))
            if refusal is None:
                self._attempt(
                    name,
                    lambda name=name, side=side: self.facts.__setitem__(  # type: ignore[misc]  # a lambda's default has no type
                        name,
                        measure_facts(
                            side,
                            plan.ids,
                            self.length,
                            settings.new_tokens,
                            device=plan.device,
                            tick=lambda what: self._tick(f"{name}, {what}"),
                        ),
                    ),
                )
            else:
                self.refusals[name] = refusal

    def judge(self) -> None:
        """Take the verdicts; where none can be taken for want of memory, that of another length stands in."""
        plan = self.plan
        first = plan.reference
        if first in self.facts:
            self.verdicts[first] = of_reference(first, self.length)
            trusted = Remembered(plan.sides[first]) if len(plan.sides) > 1 else None
        else:
            trusted = None
        for name, side in list(plan.sides.items())[1:]:
            self._tick(f"{name}, verdict")
            if name not in self.facts:
                continue
            if trusted is not None:
                self._attempt(name, lambda name=name, side=side: self._judge(name, side, trusted))  # type: ignore[misc]  # a lambda's default has no type
                if name in self.refusals and self.refusals[name].status == "out of memory":
                    self._stand_in(name, f"the verdict ran out of memory: {self.refusals.pop(name).reason}")
            else:
                why = self.refusals[first].reason
                self._stand_in(name, f"{first} did not run at any length yet: {why}")

    def time(self) -> dict[str, list[Passage]]:
        """Time what is left in turns; a side that fails now is refused and the rest is timed again."""
        settings = self.plan.settings
        while names := [n for n in self.plan.sides if n in self.verdicts and n not in self.refusals]:
            kept: dict[str, list[Passage]] = {}
            running = [names[0]]
            try:
                interleave(
                    {name: self._arm(self.plan.sides[name]) for name in names},
                    repeats=settings.repeats,
                    warmups=settings.warmups - 1,
                    on_progress=lambda _done, _total, name: self._started(running, name),  # noqa: B023  called before the loop goes on
                    on_result=lambda name, result: kept.setdefault(name, []).append(result),  # noqa: B023  called before the loop goes on
                )
            except Exception as error:  # whatever a runner raises is its record
                self._refuse(running[0].removesuffix(AGAIN), error)
                continue
            return kept
        return {}

    def cells(self, kept: Mapping[str, list[Passage]], ceilings: Ceilings) -> list[dict[str, Any]]:
        """Put the records together, in the order of the sides."""
        found, first, noise = [], self.plan.reference, self.noise(kept)
        for name, side in self.plan.sides.items():
            if name not in kept:
                found.append(cell.refused(name, self.refusals[name], self.verdicts.get(name)))
                continue
            record = cell.timed(name, side, kept[name], self.facts[name], self.verdicts[name], ceilings)
            if name != first and first in kept:
                cell.compare(record, cell.parts_of(kept[name]), cell.parts_of(kept[first]), noise)
                record["text"] = cell.text_against(kept[name][0].tokens, kept[first][0].tokens)
            found.append(record)
        return found

    def noise(self, kept: Mapping[str, list[Passage]]) -> dict[str, PairedRatio | None]:
        """Ratios of the first runner to itself, by part; None where it did not run."""
        again = next((n for n in kept if n.endswith(AGAIN)), None)
        if again is None:
            return dict.fromkeys(cell.PARTS)
        double, first = cell.parts_of(kept[again]), cell.parts_of(kept[again.removesuffix(AGAIN)])
        pairs = {part: (double[part], first[part]) for part in cell.PARTS}
        return {part: None if a is None or b is None else ratio(a, b) for part, (a, b) in pairs.items()}

    def _stand_in(self, name: str, why_not: str) -> None:
        """Take the newest verdict of another length; without one, the side is not judged and not timed."""
        if name in self.history.verdicts:
            self.verdicts[name] = self.history.verdicts[name]
        else:
            self.refusals[name] = Refusal("not judged", why_not)

    def _judge(self, name: str, side: Any, trusted: Remembered) -> None:
        self.verdicts[name] = judge(trusted, side, self.plan.ids, self.length, self.plan.settings)

    def _arm(self, side: Any) -> Callable[[], Passage]:
        ids, new_tokens = self.plan.ids[: self.length], self.plan.settings.new_tokens
        return lambda: run_forced(side, ids, new_tokens)

    def _started(self, running: list[str], name: str) -> None:
        running[0] = name
        self._tick(name)

    def _attempt(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # whatever a runner raises is its record
            self._refuse(name, error)

    def _refuse(self, name: str, error: Exception) -> None:
        tokens = self.length + self.plan.settings.new_tokens
        self.refusals[name] = Refusal.of(error, tokens, context_of(self.plan.sides[name]))
        error.__traceback__ = None  # its frames hold the tensors of the failed run
        clear_memory()

    def _tick(self, what: str) -> None:
        self.tick(f"{self.length:,} tokens: {what}")
