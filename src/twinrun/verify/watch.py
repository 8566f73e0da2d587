"""Follow the forwards of one model while a runner scores: which tokens each forward was fed, and where they stand.

Positions come from the tokens and the cache, never from the position ids that the runner hands over: those are
one of the things on trial.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.records.dropped import dropped_slots


@dataclass(slots=True)
class Forward:
    """One forward of the model, rows of the batch in the order in which they were fed.

    `starts[i]` is the absolute position of slot 0 of row i (negative where the row begins with padding).
    """

    index: int
    width: int
    starts: list[int]
    cache: tuple[int, ...]
    """Tokens that each layer of the cache has seen before this forward; empty without a cache."""
    slots: tuple[int, ...]
    """Slots of each layer of the cache, -1 where it grows: no more keys than these can be read. Empty in a free run."""
    pads: list[int]
    dropped: tuple[int, ...] = ()
    """Slots that each layer was spared by a pruned prefill; empty where nothing was."""
    strays: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Row -> (position, id) of the first slot that was fed another id than the text has there."""
    behind: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Row -> (tokens the cache claims, tokens that came before) where these differ."""
    fresh: list[tuple[int, int]] = field(default_factory=list)
    """For each row the slots [from, to) whose positions are computed here for the first time."""
    position_ids: Tensor | None = None
    """`[rows or 1, width]` as the model's modules got them."""
    logits: Tensor | None = None


class Watch:
    """Forwards seen so far. `rows` are the texts being scored, known beforehand; their ids prove the alignment.

    With `rows=None` nothing is known beforehand (a free run): positions follow from the cache alone. With `slides` a
    forward without a cache may be fed the end of a text alone, and stands where its ids do.
    """

    def __init__(self, rows: Sequence[Sequence[int]] | None, *, slides: bool = False) -> None:
        """Use `watching`, which sets the hooks."""
        self.slides = slides
        self.rows = None if rows is None else [list(row) for row in rows]
        self.forwards: list[Forward] = []
        self.done: list[int] = [0] * (len(self.rows) if self.rows is not None else 1)
        self.now: Forward | None = None
        self.on_end: list[Callable[[Forward], None]] = []
        self.body: nn.Module | None = None
        self.asked: dict[str, Any] = {}

    def ask(self, by_name: dict[str, Any]) -> None:
        """Take note of what the runner asks the model for, before anything on the way can change it."""
        self.asked = dict(by_name)

    def begin(self, by_name: dict[str, Any]) -> None:
        """Work out where the slots of this forward stand. Padding is what the runner asked for; ids are what came."""
        if self.now is not None:  # several forwards of the body inside one call of the model
            self.end(None)
        ids = by_name.get("input_ids")
        ids = ids if isinstance(ids, Tensor) else self.asked.get("input_ids")
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            return
        if self.rows is not None and ids.shape[0] != len(self.rows):
            return
        if self.rows is None and len(self.done) != ids.shape[0]:
            self.done = [0] * ids.shape[0]
        cache = layer_lengths(by_name.get("past_key_values"))
        past = cache[0] if cache else 0
        before = self.forwards[-1].pads if past and self.forwards else []
        pads = _left_pads(self.asked.get("attention_mask"), ids.shape[0], before)
        now = Forward(
            index=len(self.forwards),
            width=ids.shape[1],
            starts=[past - p for p in pads],
            cache=cache,
            slots=() if self.rows is None else _slots(by_name.get("past_key_values")),
            pads=pads,
            dropped=dropped_slots(by_name.get("past_key_values")),
        )
        if self.rows is not None:
            self._prove(now, ids)
        for i, start in enumerate(now.starts):
            first = max(0, self.done[i] - start, -start)
            now.fresh.append((first, now.width) if i not in now.strays and first < now.width else (0, 0))
        self.now = now
        self.forwards.append(now)

    def end(self, logits: Tensor | None) -> None:
        """Take note of what this forward has computed."""
        now, self.now = self.now, None
        if now is None:
            return
        now.logits = logits
        for i, (first, stop) in enumerate(now.fresh):
            if stop > first:
                limit = len(self.rows[i]) if self.rows is not None else now.starts[i] + stop
                self.done[i] = max(self.done[i], min(now.starts[i] + stop, limit))
        for call in self.on_end:
            call(now)

    def _prove(self, now: Forward, ids: Tensor) -> None:
        """Hold the ids against the texts; where the cache claims another place than the tokens, believe the tokens."""
        assert self.rows is not None
        for i, (row, fed) in enumerate(zip(self.rows, ids.tolist(), strict=True)):
            claimed = now.starts[i]
            wrong = _first_difference(row, fed, claimed)
            if wrong is not None and self.slides and not now.cache:
                ends = range(max(self.done[i] + 1, len(fed)), len(row) + 1)
                found = next((e - len(fed) for e in ends if row[e - len(fed) : e] == fed), claimed)
                claimed = now.starts[i] = found
                wrong = _first_difference(row, fed, claimed)
            beyond = len(row) - claimed
            if wrong is None and not now.cache and beyond < len(fed):
                now.strays[i] = (len(row), fed[beyond])
            if wrong is None:
                continue
            told = self.done[i] - (now.pads[i] if not now.cache else 0)
            if now.cache and told != claimed and _first_difference(row, fed, told) is None:
                now.behind[i] = (claimed, told)
                now.starts[i] = told
            elif claimed + wrong < len(row):
                now.strays[i] = (claimed + wrong, fed[wrong])


def _first_difference(row: list[int], fed: list[int], start: int) -> int | None:
    """First slot with another id than the text has there. Slots of padding and behind the end prove nothing."""
    for slot, token in enumerate(fed):
        position = start + slot
        if 0 <= position < len(row) and row[position] != token:
            return slot
    return None


def layer_lengths(cache: Any) -> tuple[int, ...]:
    """Tokens that each layer of a transformers cache has seen; empty for None or another kind of cache.

    A layer from which a schedule dropped tokens counts them in: it stands for the whole text.
    """
    stored, dropped = stored_lengths(cache), dropped_slots(cache)
    return tuple(map(sum, zip(stored, dropped, strict=True))) if len(dropped) == len(stored) else stored


def stored_lengths(cache: Any) -> tuple[int, ...]:
    """Tokens that each layer of a transformers cache holds; empty for None or another kind of cache."""
    layers = getattr(cache, "layers", None)
    if cache is None or layers is None:
        return ()
    return tuple([int(layer.get_seq_length()) for layer in layers]) or (int(cache.get_seq_length()),)


def _slots(cache: Any) -> tuple[int, ...]:
    """Slots of each layer of a transformers cache, -1 where it grows; empty for another kind of cache."""
    layers = getattr(cache, "layers", None) or ()
    return tuple(int(getattr(layer, "get_max_length", lambda: -1)()) for layer in layers)


def _left_pads(mask: Any, rows: int, before: list[int]) -> list[int]:
    """Padded slots on the left of each row: from the mask of the text, else from one that attention takes.

    There a padded query sees nothing. A step that shows no padding has that of the forward `before` it.
    """
    if isinstance(mask, dict):
        mask = next(iter(mask.values()), None)
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == rows:
        return [int(n) for n in (mask.long().cumsum(-1) == 0).sum(-1).tolist()]
    if before or not isinstance(mask, Tensor) or mask.ndim != 4:
        return before if len(before) == rows else [0] * rows
    sees = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).any(-1)[:, 0]
    return [int(n) for n in (sees.long().cumsum(-1) == 0).sum(-1).expand(rows).tolist()]


def by_name(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a module's forward by the names of its parameters."""
    if not args:
        return kwargs
    return {**dict(zip(_names(part), args, strict=False)), **kwargs}


def _names(part: nn.Module) -> tuple[str, ...]:
    """Names of what a module's forward takes."""
    forward = part.forward
    return _parameters(getattr(forward, "__func__", forward))


@lru_cache(maxsize=1024)
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of a forward's parameters, without `self`; looked up once a function, because hooks ask at every call."""
    names = tuple(inspect.signature(function).parameters)
    return names[1:] if names[:1] == ("self",) else names


@contextmanager
def watching(core: nn.Module, watch: Watch) -> Iterator[Watch]:
    """Follow the forwards of `core` inside the block; hooks are gone afterwards, however it ends.

    Args:
        core: the model whose forward a runner calls.
        watch: what the forwards are told to. It hears of a call before every other hook of `core`, and of its end
            after those that are there already.

    Cost: nothing but bookkeeping a forward, and one read of ids and mask.
    """
    inner = _take_ids(core)

    def ask(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch.ask(by_name(part, args, kwargs))
        if not inner:
            watch.begin(by_name(part, args, kwargs))

    def begin(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch.body = (
            watch.body or part
        )  # the outermost that is called; some models call past a part of their own
        if part is watch.body:
            watch.begin(by_name(part, args, kwargs))

    def after(_part: nn.Module, _args: Any, output: Any) -> None:
        logits = getattr(output, "logits", output[0] if isinstance(output, tuple) else output)
        watch.end(logits if isinstance(logits, Tensor) else None)

    def see(found: Any) -> None:
        now = watch.now
        if now is None or now.position_ids is not None or not isinstance(found, Tensor):
            return
        if found.shape[-1:] == (now.width,) and not found.is_floating_point():
            now.position_ids = found if found.ndim == 2 else found.detach().reshape(-1, now.width)

    def see_positions(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if watch.now is not None and watch.now.position_ids is None:
            see(by_name(part, args, kwargs).get("position_ids"))

    def see_learned(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if watch.now is None or watch.now.position_ids is not None:
            return
        named = by_name(part, args, kwargs)
        see(named.get("position_ids", next((a for a in named.values() if isinstance(a, Tensor)), None)))

    with ExitStack() as undo:
        undo.callback(core.register_forward_pre_hook(ask, with_kwargs=True, prepend=True).remove)
        for part in inner:
            undo.callback(part.register_forward_pre_hook(begin, with_kwargs=True, prepend=True).remove)
        undo.callback(core.register_forward_hook(after).remove)
        readers, learned = _position_readers(core)
        for part in readers:
            undo.callback(part.register_forward_pre_hook(see_positions, with_kwargs=True).remove)
        for part in learned:
            undo.callback(part.register_forward_pre_hook(see_learned, with_kwargs=True).remove)
        yield watch


def _take_ids(core: nn.Module) -> list[nn.Module]:
    """Parts inside a model that take token ids: the outermost of them runs once for every forward."""
    inner = (part for part in core.modules() if part is not core)
    return [part for part in inner if "input_ids" in _names(part)]


def _position_readers(core: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Modules that read position ids by name (rotary embeddings, else whatever takes them), and learned tables."""
    tokens = token_embedding(core)
    parts = [part for part in core.modules() if part is not core and part is not tokens]
    learned: list[nn.Module] = [part for part in parts if isinstance(part, nn.Embedding)]
    named = [p for p in parts if not isinstance(p, nn.Embedding) and "position_ids" in _names(p)]
    leaves = [part for part in named if next(part.children(), None) is None]
    return leaves or ([] if learned else named), learned


def token_embedding(core: nn.Module) -> nn.Module | None:
    """Return the embedding of token ids, where the model names it."""
    get = getattr(core, "get_input_embeddings", None)
    found = get() if callable(get) else None
    return found if isinstance(found, nn.Module) else None
