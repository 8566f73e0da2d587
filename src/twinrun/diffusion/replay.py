"""One recorded step run again, as it was and with other settings, and the two outputs compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from twinrun.diffusion.chooser import Chooser
from twinrun.diffusion.feed import Feed
from twinrun.diffusion.forward import Passed
from twinrun.diffusion.passes import Passes
from twinrun.diffusion.saved import State, board_of, canvas_of, recall, slots_of, state_of_canvas
from twinrun.diffusion.settings import DiffusionSettings
from twinrun.errors import ConfigError, near_names
from twinrun.models.parts import Slots

if TYPE_CHECKING:
    from twinrun.diffusion.diffusion import Diffusion


@dataclass(slots=True, kw_only=True)
class Output:
    """What one run of a step gave. Open positions of the block only, `[n]`, and their logits `[n, vocab]`.

    `computed` are the positions that went through all layers; `slots` the keys and values behind the step.
    """

    settings: DiffusionSettings
    positions: list[int]
    logits: Tensor
    confidence: list[float]
    commits: dict[int, int]
    computed: list[int]
    slots: Slots | None = field(repr=False, default=None)


@dataclass(slots=True, kw_only=True)
class Replay:
    """A step twice: `before` with the settings of the run, `after` with those that were changed.

    Attributes:
        recorded: commits in the record, position -> token; `repeats` says whether the first replay made the same.
        row, padding: of the saved canvas, and columns of padding in front of its row.
        kl: nats at each open position, from `before` to `after`, by position. A skipped token's logits are those of
            the last time that it was computed.
    """

    before: Output
    after: Output
    recorded: dict[int, int]
    kl: dict[int, float]
    changed: dict[str, Any]
    row: int = 0
    padding: int = 0

    def columns_of(self, positions: Sequence[int]) -> list[int]:
        """Slots of positions of the replayed row."""
        return [position + self.padding for position in positions]

    @property
    def repeats(self) -> bool:
        """Whether the step, run again as it was, commits what the record says."""
        return self.before.commits == self.recorded

    @property
    def kl_mean(self) -> float:
        """Mean over the open positions, nats."""
        return sum(self.kl.values()) / len(self.kl) if self.kl else 0.0

    @property
    def kl_max(self) -> float:
        """Largest, nats."""
        return max(self.kl.values(), default=0.0)

    @property
    def top1_agreement(self) -> float:
        """Share of open positions with the same likeliest token."""
        same = (self.before.logits.argmax(-1) == self.after.logits.argmax(-1)).float()
        return float(same.mean()) if len(same) else 1.0

    @property
    def same_commits(self) -> bool:
        """Whether both commit the same tokens at the same positions."""
        return self.before.commits == self.after.commits

    def __str__(self) -> str:
        """In one sentence."""
        what = ", ".join(f"{k}={v!r}" for k, v in self.changed.items()) or "the same settings"
        skipped = [len(set(o.positions) - set(o.computed)) for o in (self.before, self.after)]
        many = f"{skipped[0]} against {skipped[1]} of {len(self.before.positions)} open tokens skipped; "
        commits = (
            f"both commit {_listed(self.before)}"
            if self.same_commits
            else f"as it was it commits {_listed(self.before)}, so {_listed(self.after)}"
        )
        return (
            f"with {what}: {many if any(skipped) else ''}KL mean {self.kl_mean:.2g}, worst {self.kl_max:.2g} nats; "
            f"top token the same at {100 * self.top1_agreement:.0f} %; {commits}"
        )


def replay(runner: Diffusion, state: Any, recorded: Mapping[int, int], row: int, **settings: Any) -> Replay:
    """Run a saved step as it was and with other settings; greedy.

    Args:
        runner: of the model that made the record.
        state: what `save_state` gave, or the fields of `state_of_canvas`.
        recorded: commits in the record.
        row: of the batch.
        **settings: fields of `DiffusionSettings`.

    Raises:
        ConfigError: an unknown setting, or one that the saved state has nothing for.
    """
    known = list(DiffusionSettings.__dataclass_fields__)
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"unknown setting {name!r}; a replay changes {', '.join(known)}.{near_names(name, known)}"
            )
    saved, row = _found(state, row)
    with torch.inference_mode():
        before = run_saved(runner, saved, runner.settings, row)
        after = run_saved(runner, saved, replace(runner.settings, **settings), row)
    a, b = (o.logits.float().log_softmax(-1) for o in (before, after))
    gap = torch.where(a == -math.inf, 0.0, a.exp() * (a - b)).sum(-1).clamp(min=0)
    return Replay(
        before=before,
        after=after,
        recorded=dict(recorded),
        kl=dict(zip(before.positions, gap.tolist(), strict=True)),
        changed=settings,
        row=row,
        padding=_padding(saved, row),
    )


def rounding(runner: Diffusion, state: Any, row: int) -> float:
    """Largest change of the probability of any likeliest token when a saved full forward runs one precision up.

    Cost: two full forwards, one of them raised.
    """
    saved, row = _found(state, row)
    plain = replace(runner.settings, cache="none", refresh_every=None, skip=None)
    with torch.inference_mode():
        low = run_saved(runner, saved, plain, row).logits.float().softmax(-1)
        with runner.raised():
            up = run_saved(runner, saved, plain, row).logits.softmax(-1)
    top = low.argmax(-1, keepdim=True)
    return float((low.double() - up.double()).gather(1, top).abs().max()) if len(top) else 0.0


def _found(state: Any, row: int) -> tuple[State, int]:
    """The state as tensors, and where the row of the batch stands in its canvas."""
    saved: State = state if "canvas.ids" in state else state_of_canvas(**state, row=row)
    return saved, saved["rows"].tolist().index(row)


def _padding(state: Mapping[str, Tensor], row: int) -> int:
    """Columns in front of the row's first position."""
    mask = state.get("canvas.mask")
    return 0 if mask is None else int(mask[row].flatten().int().argmax())


def run_saved(
    runner: Diffusion, state: Mapping[str, Tensor], settings: DiffusionSettings, row: int
) -> Output:
    """Run a step from a saved state, all rows of it; `row` is reported.

    Raises:
        ConfigError: the settings need keys and values, or remembered states, that were not saved.
    """
    device = runner.model.device
    canvas = canvas_of(state, device)
    start, stop, number = (int(i) for i in state["block"])
    settings = replace(settings, suffix_window=None)  # the saved canvas has left out what it leaves out
    passes = Passes(runner.parts, settings, lead=runner.lead)
    passes.begin(canvas, slice(start, stop))
    passes.board = board_of(state, device)
    slots = slots_of(state, device, runner.model.dtype)
    if not passes.is_full(number):
        if slots is None:
            raise ConfigError(
                f"cache={settings.cache!r} needs keys and values, and step {number} of this block was recorded "
                "without; replay with cache='none'"
            )
        recall(passes.forward, state, device)
    if slots is not None and settings.cache != "none":
        passes.slots = slots
    is_open = canvas.open[:, start:stop].cpu()
    feed, passed = passes.step(number)
    chooser = Chooser(
        parts=runner.parts,
        settings=settings,
        mask_id=runner.mask_id,
        generators=[torch.Generator(device).manual_seed(i) for i in range(len(canvas.ids))],
    )
    chooser.update(passes.board, feed, passed, is_open)
    size = stop - start
    eligible = chooser.eligible(feed, passed, canvas.open[:, start:stop])
    chosen = chooser.choose(passes.board, eligible, step=number, size=size)[row].tolist()
    return _output(runner, settings, passes, (feed, passed), is_open[row].tolist(), chosen, row)


def _output(
    runner: Diffusion,
    settings: DiffusionSettings,
    passes: Passes,
    ran: tuple[Feed, Passed],
    is_open: list[bool],
    chosen: list[bool],
    row: int,
) -> Output:
    """Read off one row of a step that has run."""
    feed, passed = ran
    place = feed.canvas.positions[row, feed.block].tolist()
    at = [i for i, o in enumerate(is_open) if o]
    hidden = passed.hidden[row, feed.rows][at]
    logits = runner.parts.logits(hidden[None])[0]
    logits[:, runner.mask_id] = -math.inf
    fresh = [True] * len(place) if passed.fresh is None else passed.fresh[row, feed.rows].tolist()
    board = passes.board
    return Output(
        settings=settings,
        positions=[place[i] for i in at],
        logits=logits,
        confidence=[float(board.confidence[row, i]) for i in at],
        commits={place[i]: int(board.tokens[row, i]) for i, yes in enumerate(chosen) if yes},
        computed=[p for p, new in zip(place, fresh, strict=True) if new],
        slots=passes.slots,
    )


def _listed(output: Output) -> str:
    found = output.commits
    shown = ", ".join(map(str, list(found)[:4])) + (" ..." if len(found) > 4 else "")
    return f"{len(found)} token{'' if len(found) == 1 else 's'} at {shown}" if found else "nothing"
