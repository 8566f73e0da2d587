"""One forward under way: what each layer is handed instead, in the prefill and behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.models.layer_inputs import (
    BY_KEY,
    BY_TOKEN,
    LayerInputs,
    refuse_unknown,
    take,
    take_keys,
    take_positions,
)
from twinrun.models.rotary import attention_kind
from twinrun.prune.choice import choose, left, slots_of
from twinrun.prune.prefill import Prefill, StageLog
from twinrun.prune.prompt import Prompt
from twinrun.prune.protection import Protection
from twinrun.prune.schedule import Schedule
from twinrun.prune.selector import Seen, Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What prunes: when, how much, by which scores, and what never."""

    schedule: Schedule
    protection: Protection
    selector: Selector
    family: str
    num_layers: int
    config: Any = None
    """Names the attention function, at the time of each prefill."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer, before it runs."""

    layer: int
    module: nn.Module
    inputs: LayerInputs
    named: Mapping[str, Any]

    @property
    def hidden(self) -> Tensor:
        """`[rows, tokens, width]`."""
        found: Tensor = self.named[self.inputs.names[0]]
        return found


class Cuts:
    """Arguments cut for one stage; the bodies hand the same objects to every layer, so each is cut once."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any, make: Callable[[Any], Any]) -> Any:
        """Return what `make` makes of `value`, made before if it is the same object."""
        found = self._made.get(id(value))
        if found is None:  # the object is kept too, so that its id is not given to another
            found = self._made[id(value)] = (value, make(value))
        return found[1]


class PrefillPass:
    """The forward over the prompt. Stages drop tokens; every layer behind gets arguments for those that are left."""

    def __init__(self, rule: Rule, prompt: Prompt, replay: Mapping[int, Tensor] | None = None) -> None:
        """Work out, from lengths alone, how many tokens of each row every stage keeps."""
        per_row = [rule.schedule.kept(length, rule.protection) for length in prompt.lengths]
        self._rule, self._prompt, self._replay = rule, prompt, replay or {}
        self._keep = {layer: tuple(row[i] for row in per_row) for i, layer in enumerate(rule.schedule.layers)}
        self._counts = prompt.lengths
        self._at: Tensor | None = None
        self._positions = prompt.columns
        self._cuts = Cuts()
        self._is_flash = "flash" in (attention_kind(rule.config) or "")
        self.record = Prefill(
            lengths=prompt.lengths,
            width=prompt.width,
            selector=rule.selector.name,
            promised=tuple(
                rule.schedule.lengths(rule.num_layers, length, rule.protection) for length in prompt.lengths
            ),
            replayed=bool(replay),
        )
        self.does_nothing = all(keep == prompt.lengths for keep in self._keep.values())

    @property
    def real(self) -> Tensor:
        """`[rows, tokens]` bool of the tokens that are left, False for padding."""
        return self._positions >= 0

    def enter(self, call: Call) -> dict[str, Any]:
        """Arguments that this layer gets instead of its own; empty where it sees every token."""
        keep = self._keep.get(call.layer, self._counts)
        if self._at is None and keep == self._counts:
            return {}
        if self._at is None:
            rest = {name: value for name, value in call.named.items() if name != call.inputs.names[0]}
            refuse_unknown(rest, self._prompt.width, self._rule.family)
        new = {} if self._at is None else self._cut(call.named)
        if keep != self._counts:
            slots = self._slots(call, {**call.named, **new}, keep)
            hidden = take(call.hidden, slots.clamp(min=0))
            self._at, self._positions = left(slots, self._at, self._positions)
            self._counts, self._cuts = keep, Cuts()
            self.record.stages[-1].at = self._at
            new = {**self._cut(call.named), call.inputs.names[0]: hidden}
        return new

    def _slots(self, call: Call, handed: Mapping[str, Any], keep: tuple[int, ...]) -> Tensor:
        """Slots of the current tokens that this stage keeps, and its entry in the record."""
        scores = None
        number = len(self.record.stages)
        if call.layer in self._replay:
            wanted = self._replay[call.layer].to(self._positions.device)
            slots = wanted if self._at is None else slots_of(wanted, self._at)
        else:
            scores = self._rule.selector.score(self._seen(call, handed, number))
            scores = scores.to(self._positions.device)
            slots = choose(scores, self._positions, self._prompt.lengths, keep, self._rule.protection)
        self.record.stages.append(
            StageLog(
                layer=call.layer,
                tokens_in=self._counts,
                kept=keep,
                scores=scores,
                positions=self._positions,
                at=slots,
            )
        )
        return slots

    def _seen(self, call: Call, handed: Mapping[str, Any], number: int) -> Seen:
        ids = self._prompt.ids
        return Seen(
            layer=call.layer,
            stage=number,
            hidden=call.hidden,
            positions=self._positions,
            real=self._positions >= 0,
            lengths=self._prompt.lengths,
            ids=ids if ids is None or self._at is None else take(ids, self._at),
            module=call.module,
            handed=handed,
        )

    def _cut(self, named: Mapping[str, Any]) -> dict[str, Any]:
        assert self._at is not None
        at = self._at
        new = {
            name: self._cuts.of(named[name], lambda value: take_positions(value, at))
            for name in BY_TOKEN
            if named.get(name) is not None
        }
        for name in BY_KEY:
            if isinstance(named.get(name), Tensor):
                new[name] = self._cuts.of(named[name], lambda value: take_keys(value, at, at))
        if self._is_flash and "position_embeddings" in new:
            new["position_ids"] = (
                None  # transformers' flash attention would take gaps for several texts in one row
            )
        return new


class LaterPass:
    """A forward behind a pruned prompt. Its tokens go through every layer; masks are cut to the keys that are there."""

    def __init__(self, prefill: Prefill) -> None:
        """`prefill` made the cache that is fed."""
        self._prefill = prefill
        self._cuts = [Cuts() for _ in prefill.stages]
        self.does_nothing = prefill.is_untouched

    def enter(self, call: Call) -> dict[str, Any]:
        """Masks and biases cut to the keys of this layer's cache; empty where there are none."""
        stage = max((i for i, s in enumerate(self._prefill.stages) if s.layer <= call.layer), default=-1)
        if stage < 0:
            return {}
        return {
            name: self._cuts[stage].of(call.named[name], lambda mask: self._cut(mask, stage))
            for name in BY_KEY
            if isinstance(call.named.get(name), Tensor)
        }

    def _cut(self, mask: Tensor, stage: int) -> Tensor:
        at = self._prefill.stages[stage].at.to(mask.device)
        later = torch.arange(self._prefill.width, mask.shape[-1], device=mask.device)
        return take_keys(mask, torch.cat([at, later.expand(at.shape[0], -1)], dim=1))
