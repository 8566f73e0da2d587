"""Block forwards with tokens left out, and what is remembered of each position of the block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from twinrun.diffusion.active import Active, computed_width, taken
from twinrun.diffusion.feed import Feed
from twinrun.diffusion.forward import Passed
from twinrun.diffusion.rule import Decision, Rule, Seen
from twinrun.diffusion.wiring import Wiring
from twinrun.models.parts import Parts


@dataclass(slots=True, kw_only=True)
class _Step:
    """One step on its way through the layers.

    `entering` are the inputs of the first cut; `going` are the tokens still in it, `counts` of each row; `whole` says
    that none has dropped out yet.
    """

    feed: Feed
    changed: Tensor
    hidden: Tensor
    entering: Tensor
    going: Active
    counts: list[int]
    skips: bool
    commits: list[int]
    whole: bool = True
    token_layers: int = 0
    inputs: dict[int, Tensor] = field(default_factory=dict)
    notes: dict[str, Tensor] = field(default_factory=dict)


class Skipping:
    """The cached steps of one run under a rule; nothing outlives a block.

    A step that leaves out nothing makes the same calls as one without a rule, so it gives the same bits.

    Notes of a step, `[rows, tokens]` each: `skipped` (booleans), `compared` (absolute position of the remembered states
    that a token was compared with; its own, if all is well), `computed_at` (step of the block in which those were
    computed), and those of the rule: `cosine_mean` and `cosine_low`, or `importance`, of kept and skipped tokens
    alike. The rule's are missing in steps that compute everything, unless the step's layers are recorded.
    """

    wants_layers = True

    def __init__(self, parts: Parts, rule: Rule, wiring: Wiring | None = None) -> None:
        """Nothing is remembered yet.

        Raises:
            ConfigError: the rule does not fit a model of so many layers.
        """
        self._parts, self._rule = parts, rule
        self._wiring = wiring or Wiring()
        self._watched = rule.watched(parts.num_layers)
        self._inputs = frozenset(layer for layers in self._watched.values() for layer in layers)
        self.wants_confidence = not rule.candidates
        self._all: Active | None = None
        self.begin()

    def begin(self) -> None:
        """Forget the block before."""
        self._then: dict[int, Tensor] = {}

    def after_full(self, feed: Feed, layers: Sequence[Tensor]) -> None:
        """Remember the block's part of a full forward: `layers` are over the whole canvas."""
        mine = {i: self._wiring.block_of(layers[i], feed.columns) for i in self._inputs}
        self._then = {cut: torch.stack([mine[i] for i in of]) for cut, of in self._watched.items()}
        self._last = layers[-1][:, feed.columns].clone()
        self._compared = self._wiring.block_of(feed.canvas.positions, feed.columns).clone()
        self._ids = feed.ids.clone()
        self._computed_at = torch.full_like(self._ids, feed.step)

    def __call__(self, feed: Feed) -> Passed:
        """Compute what is not skipped.

        Cost: one wait for the device (the sizes of the sets); none in a step of `refresh_every`.
        """
        assert feed.slots is not None
        now = self._begin_step(feed)
        slots, rotary = feed.slots, feed.rotary
        slots.at = feed.columns
        for layer in range(self._parts.num_layers):
            if layer in self._inputs:
                now.inputs[layer] = now.hidden
            if layer in self._watched and self._cut(layer, now):
                rotary = self._wiring.rotary_of(self._parts, feed.rotary, now.going)
                feed.slots.at = now.going.slots(feed.columns.start, feed.slots.nowhere)
                slots = self._wiring.keys_of(feed.slots, rotary)
            self._record(now)
            if now.going.width:
                now.hidden = self._parts.layer(layer, now.hidden, rotary, feed.mask, slots)
            now.token_layers += sum(now.counts)
        self._record(now)
        return self._settle(now)

    def _begin_step(self, feed: Feed) -> _Step:
        rows, tokens = feed.ids.shape
        changed = feed.ids != self._ids
        skips = bool(self._watched) and self._rule.skips_at(feed.step)
        commits = changed.sum(1).tolist() if skips and self._rule.counts_commits else []
        hidden = self._parts.embed(feed.ids)
        return _Step(
            feed=feed,
            changed=changed,
            hidden=hidden,
            entering=hidden,
            going=self._everything(rows, tokens, feed.ids.device),
            counts=[tokens] * rows,
            skips=skips,
            commits=commits,
        )

    def _everything(self, rows: int, tokens: int, device: torch.device) -> Active:
        """The same set for all steps of the same size."""
        if self._all is None or self._all.picks.shape != (rows, tokens):
            self._all = Active.everything(rows, tokens, device)
        return self._all

    def _cut(self, layer: int, now: _Step) -> bool:
        """Let tokens drop out in front of a layer; False if every token of the block goes on."""
        inputs = [now.inputs[i] for i in self._watched[layer]]
        watched = inputs[0][None] if len(inputs) == 1 else torch.stack(inputs)
        if now.whole:
            now.entering = now.hidden
        if not now.skips:
            if now.feed.layers is not None and not self._rule.counts_commits:
                now.notes |= self._rule.choose(self._seen(layer, watched, now)).notes
            self._then[layer] = watched.clone()
            return False
        decision = self._rule.choose(self._seen(layer, watched, now))
        self._note(decision, now)
        keep, going = self._wiring.rows_of(decision.keep), now.going
        rows, places = len(now.counts), None
        if decision.counts is None and rows == 1 and going.full:
            places = keep.nonzero()[:, 1]
            counts = [len(places)]
        else:
            counts = decision.counts if decision.counts is not None else keep.sum(1).tolist()
        if now.whole and min(counts) == keep.shape[1]:
            self._then[layer] = watched.clone()
            return False
        width = computed_width(max(counts), rows, going.width, keep.device)
        if places is not None and width == len(places):
            now.going, order = going.only(places)
        else:
            now.going, order = going.narrow(keep, width, full=going.full and min(counts) == width)
        now.going.put(self._then[layer], taken(watched, order, 2), 2)
        now.hidden = taken(now.hidden, order, 1)
        now.counts, now.whole = counts, False
        return True

    def _seen(self, layer: int, watched: Tensor, now: _Step) -> Seen:
        """What the rule sees of the tokens that have come this far."""
        going, feed, then = now.going, now.feed, self._then[layer]
        changed = now.changed
        confidence = _open_confidence(feed) if self.wants_confidence else None
        if not now.whole:
            then, changed = taken(then, going.picks, 2), going.take(changed)
            confidence = None if confidence is None else going.take(confidence)
        return Seen(
            layer=layer,
            num_layers=self._parts.num_layers,
            now=watched,
            then=then,
            real=going.real,
            changed=changed,
            confidence=confidence,
            tokens=feed.ids.shape[1],
            commits=now.commits,
        )

    def _note(self, decision: Decision, now: _Step) -> None:
        """Keep what explains the first cut; tokens behind it are no longer those of the block."""
        if now.whole and not now.notes:
            now.notes |= decision.notes

    def _record(self, now: _Step) -> None:
        """Put the newest hidden states where somebody asked for them; NaN for tokens that have dropped out."""
        if now.feed.layers is None:
            return
        whole = now.hidden
        if not now.whole:
            whole = torch.full_like(now.entering, torch.nan)
            now.going.put(whole, now.hidden)
        now.feed.layers.append(whole)

    def _settle(self, now: _Step) -> Passed:
        """Remember what was computed, and say what the head reads."""
        feed = now.feed
        computed = now.going.spread()
        notes = {
            **now.notes,
            "skipped": ~computed,
            "compared": self._compared,
            "computed_at": self._computed_at,
        }
        if now.whole:
            self._last, self._ids, self._compared = now.hidden, feed.ids.clone(), feed.positions
            self._computed_at = torch.full_like(feed.ids, feed.step)
            return Passed(hidden=now.hidden, token_layers=now.token_layers, notes=notes)
        self._last = self._last.clone()
        now.going.put(self._last, now.hidden)
        self._ids = torch.where(computed, feed.ids, self._ids)
        self._compared = torch.where(computed, feed.positions, self._compared)
        self._computed_at = self._computed_at.masked_fill(computed, feed.step)
        hidden, fresh = self._wiring.to_head(self._last, now.entering, computed)
        candidates = None if self._rule.candidates else computed
        return Passed(
            hidden=hidden, fresh=fresh, candidates=candidates, token_layers=now.token_layers, notes=notes
        )


def _open_confidence(feed: Feed) -> Tensor:
    """Confidence of the proposal that was read off each token, `[rows, tokens]`; 0 where there is none to make.

    With shifted logits that is the proposal for the position behind the token.
    """
    found = torch.zeros(feed.ids.shape, dtype=torch.float32, device=feed.ids.device)
    known = feed.board.confidence.float().nan_to_num(0.0)
    found[:, feed.rows] = known * feed.canvas.open[:, feed.block]
    return found
