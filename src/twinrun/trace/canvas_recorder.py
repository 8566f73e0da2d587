"""Turn the steps of a diffusion run under way into records, positions of everything included."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from twinrun.trace.canvas_side import CanvasSide
from twinrun.trace.canvas_step import CanvasStep, Skips
from twinrun.trace.canvas_watch import Handed, LayerWatch, Tables
from twinrun.trace.moved import Moved
from twinrun.trace.recorder import Level

Sink = Callable[[CanvasStep], object]


class Traced(Protocol):
    """What a diffusion runner offers to a trace, beside `generate`."""

    @property
    def parts(self) -> Any:
        """Pieces of the model."""

    def saved_state(self, before: Any) -> dict[str, Tensor]:
        """Copy everything that a step depends on."""

    def rotary_tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[positions, head_dim]`."""


class CanvasRecorder:
    """A probe (`twinrun.diffusion.probe`) and an observer in one. `sink` gets every step as soon as it is whole.

    Args:
        runner: what runs; it copies its own state.
        side: what is recorded; its prompt says where the generation area begins.
        row: of the batch.
        watch: what the layers are handed.
        level: "states" keeps what replays need and cosines by layer of any run, "fingerprints" cosines of a run that
            skips, "steps" none.
        sink: called with every step.
    """

    def __init__(
        self, runner: Traced, side: CanvasSide, row: int, watch: LayerWatch, level: Level, sink: Sink
    ) -> None:
        """Nothing has been seen yet."""
        self.runner, self.side, self.row, self.watch = runner, side, row, watch
        self.level, self.sink = level, sink
        self.is_skipping = level != "steps" and side.settings.get("skip") is not None
        self.wants_layers = level == "states" or self.is_skipping
        self.tables = Tables(*runner.rotary_tables(side.width))
        self.moved = Moved()
        self._before: Any = None
        self._step: CanvasStep | None = None
        self._ids: list[int] = []
        self._state: dict[str, Tensor] | None = None
        self._history: dict[int, list[int]] = {}

    def before(self, state: Any) -> None:
        """Look at the canvas in front of a step."""
        self.watch.take()
        if self.row not in state.rows:
            self._before = None
            return
        self._before = state
        if state.step == 0:
            self._history = {}
            self.moved = Moved()
        self._ids = self._own(state.canvas.ids).tolist()
        self._open = self._own(state.canvas.open)[self._block(state)].tolist()
        wanted = self.level == "states" or (self.is_skipping and state.step > 0)
        self._state = self.runner.saved_state(state) if wanted else None

    def after(self, outcome: Any) -> None:
        """Make a record of what the step decided."""
        state = self._before
        if state is None:
            return
        at, calls = state.rows.index(self.row), self.watch.take()
        place = self._own(state.canvas.positions)
        real = self._real(state.canvas, at)
        fed = self._fed(outcome, at, place, real)
        block = slice(state.columns.start, state.columns.stop)
        ids = self._ids[block]
        self._history[state.step] = ids
        confidence = [None if math.isnan(p) else p for p in outcome.confidence[at].tolist()]
        step = CanvasStep(
            step=state.index,
            block=state.block,
            block_step=state.step,
            full=bool(state.full),
            seconds=0.0,
            positions=place[block].tolist(),
            ids=ids,
            open=self._open,
            tokens=outcome.tokens[at].tolist(),
            confidence=confidence,
            committed=outcome.chosen[at].tolist(),
            strays=[],
            computed=fed,
            widths=[int(call.hidden.shape[1]) for call in calls],
            handed=self._handed(calls[:1], at, place[outcome.columns], real[outcome.columns]),
            deep=self._handed(calls[-1:], at, place[outcome.columns], real[outcome.columns]),
            read=self._read(outcome, at, place, real),
            tokens_in_row=sum(real),
            keys=calls[0].keys(at) if calls else 0,
            skips=self._skips(state, outcome, at, calls),
            state=self._state,
        )
        if self.is_skipping and step.skipped:
            self.is_skipping = False  # one state of a step that skipped is enough to look into its keys
        elif self.level != "states":
            step.state = None
        if outcome.layers:
            step.cosines = self.moved.cosines(outcome, at, place, step.positions)
        self._step = step

    def observe(self, record: Any) -> None:
        """Finish the step: what the canvas holds now, and how long it took."""
        step, state = self._step, self._before
        if step is None or state is None:
            return
        place = self._own(state.canvas.positions).tolist()
        now = self._own(state.canvas.ids).tolist()
        commits = step.commits
        step.strays = [
            [place[i], old, new]
            for i, (old, new) in enumerate(zip(self._ids, now, strict=True))
            if old != new and commits.get(place[i]) != new
        ]
        step.seconds = float(record.seconds)
        self._step = None
        self.side.steps.append(step)
        self.sink(step)

    def _own(self, tensor: Tensor) -> Tensor:
        """This row of a tensor over the canvas, on the host."""
        return tensor[self._before.rows.index(self.row)].cpu()

    @staticmethod
    def _block(state: Any) -> slice:
        return slice(state.columns.start, state.columns.stop)

    def _real(self, canvas: Any, at: int) -> list[bool]:
        """Columns of the row that are no padding: those behind the left padding."""
        begin = int(canvas.start) - len(self.side.prompt)
        end = int(canvas.start) + self.side.gen_length
        return [begin <= i < end for i in range(int(canvas.width))]

    def _fed(self, outcome: Any, at: int, place: Tensor, real: list[bool]) -> list[int]:
        """Positions of the row's tokens that entered the first layer."""
        return self._where(outcome, outcome.notes.get("computed"), at, place, real)

    def _handed(self, calls: list[Handed], at: int, place: Tensor, real: list[bool]) -> list[int]:
        """Positions that a layer was handed for this row's tokens."""
        if not calls:
            return []
        found = self.tables.positions(calls[0], at, place)
        if len(found) == len(real):
            return [p for p, ok in zip(found, real, strict=True) if ok]
        return found

    def _read(self, outcome: Any, at: int, place: Tensor, real: list[bool]) -> list[int]:
        """Positions whose hidden states counted as new."""
        return self._where(outcome, outcome.fresh, at, place, real)

    @staticmethod
    def _where(outcome: Any, flags: Tensor | None, at: int, place: Tensor, real: list[bool]) -> list[int]:
        """Positions of the computed columns that are flagged (None flags all) and no padding."""
        columns = outcome.columns
        mine = zip(place[columns].tolist(), real[columns], strict=True)
        if flags is None:
            return [p for p, ok in mine if ok]
        return [p for (p, ok), yes in zip(mine, flags[at].tolist(), strict=True) if yes and ok]

    def _skips(self, state: Any, outcome: Any, at: int, calls: list[Handed]) -> Skips | None:
        """What a skip policy noted; its lists are cut to the block."""
        notes = outcome.notes
        if "skipped" not in notes:
            return None
        first = state.columns.start - outcome.columns.start
        own = {k: tensor[at, first : first + len(self._open)].cpu() for k, tensor in notes.items()}
        active = [not skipped for skipped in own["skipped"].tolist()]
        computed_at = own["computed_at"].tolist()
        ids = self._history[state.step]
        narrow = next((i for i, call in enumerate(calls) if not call.same_tokens(calls[0], at)), None)
        layers = len(notes["skipped"][at]) * self.runner_layers
        shallow = self.runner_layers if all(active) else (narrow if narrow is not None else len(calls))
        left_out = (self.runner_layers - shallow) * active.count(False)
        return Skips(
            layer=None if all(active) else shallow,
            compared=own["compared"].tolist(),
            computed_at=computed_at,
            changed=[ids[i] != self._history.get(when, ids)[i] for i, when in enumerate(computed_at)],
            active=active,
            mean=_listed(own.get("cosine_mean")),
            low=_listed(own.get("cosine_low")),
            importance=_listed(own.get("importance")),
            token_layers=layers,
            skipped_token_layers=left_out,
        )

    @property
    def runner_layers(self) -> int:
        """Decoder layers of the model."""
        return int(self.runner.parts.num_layers)


def _listed(values: Tensor | None) -> list[float | None] | None:
    if values is None:
        return None
    return [value if math.isfinite(value) else None for value in values.double().tolist()]
