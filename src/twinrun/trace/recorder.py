"""Turn the forwards of a run under way into traced steps, some microseconds each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twinrun.numerics.blocks import block_bounds
from twinrun.records.run import Step
from twinrun.records.scores import Scores
from twinrun.trace.block import Block, Sink, Waiting
from twinrun.trace.step import Scored, TracedStep
from twinrun.verify.recorder import visible_keys
from twinrun.verify.watch import Forward, Watch, by_name, stored_lengths, token_embedding, watching

Level = Literal["steps", "fingerprints", "states"]
LEVELS: tuple[Level, ...] = ("steps", "fingerprints", "states")


class Recorder:
    """Hooks on one model while one row runs. `sink` gets whole steps, a block at a time (`twinrun.trace.block`).

    In a free run a step is whole when the run has chosen its token (`observe`); in a forced one when its forward
    ends, or, where one forward scores many positions, when `finish` brings their scores.
    """

    def __init__(self, prompt: Sequence[int], text: Sequence[int] | None, level: Level, sink: Sink) -> None:
        """Use `tracing`, which sets the hooks.

        Args:
            prompt: token ids of the prompt.
            text: prompt and continuation in a forced run; None in a free one.
            level: what to keep of hidden states.
            sink: called with every block of whole steps, in order.
        """
        self.start, self.text, self.level, self.sink = len(prompt), text, level, sink
        self.steps: list[TracedStep] = []
        self.waiting: Waiting | None = None
        self._block = Block(sink, keeps_states=level == "states")
        self._hidden: list[Tensor] = []
        self._keys: tuple[int, int] | None = None
        self._before = time.perf_counter()

    def observe(self, step: Step) -> None:
        """Give the newest forward the token that the run chose."""
        if self.waiting is not None:
            self.waiting.token, self.waiting.logprob = step.tokens[0], step.logprobs[0]
            self._emit(self.waiting)

    def note_keys(self, watch: Watch) -> Any:
        """Return a hook that takes note of how many keys the queries of an attention module may see."""

        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            now = watch.now
            if now is None:
                return
            mask = by_name(part, args, kwargs).get("attention_mask")
            found = _fewest_and_most(mask, now, bool(getattr(part, "is_causal", True)))
            if found is not None:
                seen = self._keys
                self._keys = found if seen is None else (min(seen[0], found[0]), max(seen[1], found[1]))

        return hook

    def note_hidden(self, watch: Watch) -> Any:
        """Return a hook that keeps the hidden states of the scored positions of one layer."""

        def hook(_part: nn.Module, _args: Any, output: Any) -> None:
            now = watch.now
            rows = output[0] if isinstance(output, tuple) else output
            if now is None or not isinstance(rows, Tensor):
                return
            shape = rows.shape
            if len(shape) != 3 or not self._scored(now) <= shape[1] <= now.width:  # fewer: a pruned prompt
                return
            # Whole where that is one row: a view costs as much as all else here.
            if shape[0] > 1 or shape[1] > 1:
                rows = rows[:1, -self._scored(now) :].clone()
            self._hidden.append(rows)

        return hook

    def end(self, now: Forward, cache: Any) -> None:
        """Make a step of a forward that has ended."""
        count = self._scored(now)
        first, last = now.starts[0], now.starts[0] + now.width - 1
        given = None if now.position_ids is None else now.position_ids[0].tolist()
        step = TracedStep(
            step=now.index,
            seconds=0.0,
            first=max(0, first),
            last=last,
            position_ids=None if given is None else (given[0], given[-1]),
            cache=stored_lengths(cache),
            keys=self._keys,
            rows=[],
        )
        one = Waiting(step, last)
        if now.logits is not None and (self.text is None or count == 1):
            one.logits = now.logits[0, -1].clone()
            now.logits = None
            one.token = None if self.text is None or last + 1 >= len(self.text) else self.text[last + 1]
        if self._hidden:
            one.hidden = torch.cat(self._hidden).transpose(0, 1)
        self._hidden, self._keys = [], None
        if self.text is not None and count == 1:
            self._emit(one)
        else:
            self.waiting = one

    def finish(self, scores: Scores) -> None:
        """Fill in the scores of a forward that scored many positions at once, and emit it."""
        one, text = self.waiting, self.text
        if one is None or text is None:
            return
        positions = scores.positions.tolist()
        tokens = [text[p + 1] if p + 1 < len(text) else None for p in positions]
        with torch.inference_mode():
            for a, b in block_bounds(len(positions), scores.logits.vocab_size):
                one.step.rows += Scored.of(scores.logits.rows(a, b), positions[a:b], tokens[a:b])
        self._emit(one)

    def settle(self) -> None:
        """Hand over what still waits for its numbers."""
        self._block.settle()

    def _scored(self, now: Forward) -> int:
        """Positions of this forward that are scored and were not before."""
        if self.text is None:
            return 1
        first, stop = (now.starts[0] + slot for slot in now.fresh[0])
        return max(1, stop - max(first, self.start - 1))

    def _emit(self, one: Waiting) -> None:
        now = time.perf_counter()
        one.step.seconds, self._before, self.waiting = now - self._before, now, None
        self.steps.append(one.step)
        if self._block.add(one, now):
            self._before = time.perf_counter()  # numbers and disk are no part of the next step's time


def _fewest_and_most(mask: Any, now: Forward, is_causal: bool) -> tuple[int, int] | None:
    """Fewest and most keys that a query of this forward may attend to; None if the mask cannot be read."""
    if mask is None:
        past = now.cache[0] if now.cache else 0
        return (past + 1 if is_causal else past + now.width), past + now.width
    counts = visible_keys(mask, now, is_causal)
    if counts is None:
        return None
    low, high = torch.aminmax(counts)
    return int(low), int(high)


@contextmanager
def tracing(core: nn.Module, layers: Sequence[nn.Module], recorder: Recorder) -> Iterator[Recorder]:
    """Set the hooks of `recorder` on a model inside the block.

    Args:
        core: the model whose forward the runner calls.
        layers: its decoder layers.
        recorder: gets what the hooks see.

    Steps that still wait for their numbers are handed over when the block ends, also when it ends with an error.

    Cost: a copy of the scored rows a step, one small product a block of steps, and a few Python calls a layer.
    """
    watch = Watch(None if recorder.text is None else [recorder.text])
    watch.on_end.append(lambda now: recorder.end(now, watch.asked.get("past_key_values")))
    with ExitStack() as undo:
        if recorder.level != "steps":
            embedding = token_embedding(core)
            parts = [p for p in (embedding, *layers) if isinstance(p, nn.Module)]
            for part in parts:
                undo.callback(part.register_forward_hook(recorder.note_hidden(watch)).remove)
        for part in _first_attentions(layers):
            undo.callback(part.register_forward_pre_hook(recorder.note_keys(watch), with_kwargs=True).remove)
        undo.callback(recorder.settle)
        undo.enter_context(watching(core, watch))
        yield recorder


def _first_attentions(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """One attention module of each kind of window: masks are shared by the layers of a kind."""
    found: dict[Any, nn.Module] = {}
    for layer in layers:
        for part in layer.modules():
            if "attention" in type(part).__name__.lower():
                found.setdefault(getattr(part, "sliding_window", None), part)
                break
    return list(found.values())
