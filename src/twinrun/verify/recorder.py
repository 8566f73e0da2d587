"""Hooks on every module that fingerprint what it gets and gives, in the forward that computes a position first."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.numerics.fingerprint import DIMS, fingerprints
from twinrun.records.dropped import dropped_slots
from twinrun.verify.activations import Activations, Row, Slot, as_rows, flatten
from twinrun.verify.watch import Forward, Watch, by_name, watching

PENDING_BYTES = 32 * 2**20
"""Rows that wait for their fingerprint; many small ones are projected together."""


@contextmanager
def recording(
    core: nn.Module,
    rows: Sequence[Sequence[int]],
    wanted: Callable[[str], bool] = lambda _name: True,
    *,
    slides: bool = False,
) -> Iterator[Activations]:
    """Record fingerprints of every module's inputs and outputs while a runner scores `rows` inside the block.

    Each position is recorded in the forward that computes it first. Tables are complete when the block ends.

    Args:
        core: the model; hooks are set on all of its modules and gone after the block.
        rows: the texts that will be scored together, in the order of the batch.
        wanted: which modules, by name; the root has the name "".
        slides: whether the runner may feed the end of a text alone.

    Cost: about a tenth of a forward; `8 * 17` bytes a position for each tensor, whatever its width.
    """
    found = Activations([Row(list(row)) for row in rows])
    watch = Watch(rows, slides=slides)
    found.forwards = watch.forwards
    recorder = _Recorder(watch, found)
    watch.on_end.append(recorder.end)
    with ExitStack() as undo:
        _hook_all(core, "", recorder, wanted, undo)
        # NOTE: set last, because a forward ends when its root module has been recorded.
        undo.enter_context(watching(core, watch))
        yield found
    recorder.finish()


@contextmanager
def recording_part(
    part: nn.Module,
    name: str,
    row: Sequence[int],
    forward: Forward,
    wanted: Callable[[str], bool] = lambda _name: True,
) -> Iterator[Activations]:
    """Record what one module and its children get and give in a call of its own inside the block.

    Args:
        part: the module.
        name: its path in the model, under which it is recorded.
        row: the text.
        forward: a forward of the whole model; the call is of this module's share of it.
        wanted: which of the modules, by name.
    """
    found = Activations([Row(list(row))])
    watch = Watch([row])
    found.forwards = [replace(forward)]
    watch.now = found.forwards[0]
    recorder = _Recorder(watch, found)
    watch.on_end.append(recorder.end)
    with ExitStack() as undo:
        _hook_all(part, name, recorder, wanted, undo)
        yield found
    watch.end(None)
    recorder.finish()


def _hook_all(
    core: nn.Module, prefix: str, recorder: _Recorder, wanted: Callable[[str], bool], undo: ExitStack
) -> None:
    for name, part in core.named_modules(prefix=prefix):
        recorder.into.kinds[name] = type(part).__name__
        is_attention = "attention" in type(part).__name__.lower()
        if wanted(name) or is_attention:
            hook = recorder.hook(name, keep=wanted(name), is_attention=is_attention)
            undo.callback(part.register_forward_hook(hook, with_kwargs=True).remove)


def slides(side: Any) -> bool:
    """Whether a side says that it may feed the end of a text alone (`slides`), as a sliding recomputation does."""
    return bool(getattr(side, "slides", False))


@dataclass(slots=True)
class _Waiting:
    """Fresh rows of one tensor, and the places that their fingerprints go to."""

    rows: Tensor
    places: list[tuple[int, Slot, int, int]] = field(default_factory=list)
    """(row of the batch, slot, first position, how many)."""


class _Recorder:
    """The hooks and what waits between them."""

    def __init__(self, watch: Watch, into: Activations) -> None:
        self.watch, self.into = watch, into
        self.known: dict[int, tuple[weakref.ref[Tensor], list[_Waiting]]] = {}
        self.waiting: list[_Waiting] = []
        self.bytes = 0
        self.pieces: dict[tuple[int, Slot], list[tuple[int, Tensor]]] = defaultdict(list)
        self.seen: set[str] = set()

    def hook(self, name: str, *, keep: bool, is_attention: bool) -> Any:
        """Return what runs behind a module: there its arguments are those that reached it, whatever hooks it has."""

        def after(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            now = self.watch.now
            if now is None:
                return
            named = by_name(part, args, kwargs)
            if is_attention and "attention_mask" in named:
                self._note_keys(now, name, part, named["attention_mask"])
            if not keep:
                return
            if name not in self.seen:
                self.seen.add(name)
                self.into.order.append(name)
            self._take(now, name, (v for k, v in named.items() if k != "attention_mask"), is_input=True)
            self._take(now, name, [output], is_input=False)

        return after

    def end(self, now: Forward) -> None:
        """Take note of steps and position ids, and let go of the forward's tensors."""
        self.known.clear()
        self._flush()
        for i in range(len(now.starts)):
            row, (first, stop) = self.into.rows[i], self._span(now, i)
            if stop <= first:
                continue
            if row.step_of is None:
                row.step_of = torch.full((len(row.tokens),), -1)
            row.step_of[first:stop] = now.index
            if now.position_ids is not None:
                if row.position_ids is None:
                    row.position_ids = torch.full((len(row.tokens),), -1)
                given = now.position_ids[i if now.position_ids.shape[0] > 1 else 0]
                row.position_ids[first:stop] = given[first - now.starts[i] : stop - now.starts[i]].cpu()

    def finish(self) -> None:
        """Join the pieces into tables."""
        for (number, slot), pieces in self.pieces.items():
            if self.into.widths[slot] < 0:
                continue
            row = self.into.rows[number]
            table = torch.full((len(row.tokens), DIMS + 1), torch.nan, dtype=torch.float64)
            for start, prints in pieces:
                table[start : start + len(prints)] = prints
            row.prints[slot] = table

    def _span(self, now: Forward, i: int) -> tuple[int, int]:
        """Positions that this forward computes first in row i."""
        first, stop = (now.starts[i] + slot for slot in now.fresh[i])
        return first, min(stop, len(self.into.rows[i].tokens))

    def _take(self, now: Forward, name: str, values: Any, *, is_input: bool) -> None:
        for number, tensor in enumerate(t for value in values for t in flatten(value)):
            slot = Slot(name, is_input, number)
            if self.into.widths.get(slot) == -1:
                continue
            held = self.known.get(id(tensor))
            if held is None or held[0]() is not tensor:
                held = (weakref.ref(tensor), self._lay_out(now, tensor))
                self.known[id(tensor)] = held
            for waiting in held[1]:
                width = waiting.rows.shape[-1]
                if self.into.widths.setdefault(slot, width) != width:
                    self.into.widths[slot] = -1  # attention weights: one column a key
                    break
                i, _, first, count = waiting.places[0]
                waiting.places.append((i, slot, first, count))
        if self.bytes > PENDING_BYTES:
            self.known.clear()
            self._flush()

    def _lay_out(self, now: Forward, tensor: Tensor) -> list[_Waiting]:
        """Cut out the fresh rows; the first place of each says where they stand, without a slot."""
        rows = as_rows(tensor, len(now.starts), now.width)
        if rows is None and self._is_narrow(now, tensor):
            rows = as_rows(tensor[:, -1:], len(now.starts), now.width)  # the last token is always kept
        if rows is None:
            return []
        found = []
        for i in range(len(now.starts)):
            first, stop = self._span(now, i)
            if stop <= first:
                continue
            own = rows[i if rows.shape[0] > 1 else 0]
            if own.shape[0] == 1 and now.width > 1:  # the last position alone
                own, first, stop = own, stop - 1, stop
            else:
                own = own[first - now.starts[i] : stop - now.starts[i]]
            found.append(_Waiting(own.clone(), [(i, _NOWHERE, first, stop - first)]))
            self.bytes += own.numel() * own.element_size()
        self.waiting += found
        return found

    def _is_narrow(self, now: Forward, tensor: Tensor) -> bool:
        """Whether these are the tokens that a schedule left of a prompt; which they are only the last of them says."""
        widths = {now.width - n for n in dropped_slots(self.watch.asked.get("past_key_values")) if n}
        return not any(now.cache) and tensor.ndim == 3 and tensor.shape[1] in widths

    def _flush(self) -> None:
        """Project everything that waits, tensors of one width and precision together."""
        groups: dict[tuple[int, torch.dtype, torch.device], list[_Waiting]] = defaultdict(list)
        for waiting in self.waiting:
            if len(waiting.places) > 1:
                groups[waiting.rows.shape[-1], waiting.rows.dtype, waiting.rows.device].append(waiting)
        for group in groups.values():
            prints = fingerprints(torch.cat([w.rows for w in group])).cpu()
            pieces = torch.split(prints, [len(w.rows) for w in group])
            for waiting, piece in zip(group, pieces, strict=True):
                for i, slot, first, _ in waiting.places[1:]:
                    self.pieces[i, slot].append((first, piece))
        self.waiting.clear()
        self.bytes = 0

    def _note_keys(self, now: Forward, name: str, part: nn.Module, mask: Any) -> None:
        self.into.attentions.add(name)
        layer = getattr(part, "layer_idx", None)
        is_causal = bool(getattr(part, "is_causal", True))
        counts = visible_keys(mask, now, is_causal, layer if isinstance(layer, int) else -1)
        if counts is None:
            return
        for i in range(len(now.starts)):
            row, (first, stop) = self.into.rows[i], self._span(now, i)
            if stop > first:
                table = row.keys.setdefault(name, torch.full((len(row.tokens),), -1))
                own = counts[i if counts.shape[0] > 1 else 0]
                table[first:stop] = own[first - now.starts[i] : stop - now.starts[i]]


_NOWHERE = Slot("", False, -1)


def visible_keys(mask: Any, now: Forward, is_causal: bool, layer: int = -1) -> Tensor | None:
    """`[rows or 1, width]`: how many keys each query may attend to; None if the mask cannot be read.

    No mask means causal attention over all slots so far, or over all of them where a module is not causal. A `layer`
    of the cache with a fixed number of slots shows no more than these.
    """
    past = now.cache[0] if now.cache else 0
    if mask is None:
        last = past + now.width
        ends = torch.arange(past + 1, last + 1) if is_causal else torch.full((now.width,), last)
        slots = now.slots[layer] if 0 <= layer < len(now.slots) else -1
        return ends[None] if slots < 0 else ends[None].clamp_max(max(slots, now.width))
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-2] != now.width:
        return None
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return allowed[:, 0].sum(-1).cpu()
