"""Turn the forwards of a run under way into traced steps, a few microseconds each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twinrun.numerics.fingerprint import fingerprints
from twinrun.records.run import Step
from twinrun.records.scores import Scores
from twinrun.trace.step import Scored, TracedStep
from twinrun.verify.recorder import visible_keys
from twinrun.verify.watch import Forward, Watch, by_name, stored_lengths, token_embedding, watching

Level = Literal["steps", "fingerprints", "states"]
LEVELS: tuple[Level, ...] = ("steps", "fingerprints", "states")
Sink = Callable[[TracedStep], object]


class Recorder:
    """Hooks on one model while one row runs. `sink` gets every step as soon as it is whole.

    In a free run a step is whole when the run has chosen its token (`observe`); in a forced one when its forward
    ends, or, where one forward scores many positions, when `finish` brings their scores.
    """

    def __init__(self, prompt: Sequence[int], text: Sequence[int] | None, level: Level, sink: Sink) -> None:
        """Use `tracing`, which sets the hooks.

        Args:
            prompt: token ids of the prompt.
            text: prompt and continuation in a forced run; None in a free one.
            level: what to keep of hidden states.
            sink: called with every whole step.
        """
        self.start, self.text, self.level, self.sink = len(prompt), text, level, sink
        self.steps: list[TracedStep] = []
        self.waiting: TracedStep | None = None
        self._hidden: list[Tensor] = []
        self._states: list[Tensor] = []
        self._keys: tuple[int, int] | None = None
        self._before = time.perf_counter()

    def observe(self, step: Step) -> None:
        """Give the newest forward the token that the run chose."""
        if self.waiting is not None:
            row = self.waiting.rows[-1]
            row.token, row.logprob = step.tokens[0], step.logprobs[0]
            self._emit(self.waiting)

    def note_keys(self, watch: Watch) -> Any:
        """Return a hook that takes note of how many keys the queries of an attention module may see."""

        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            now = watch.now
            if now is None:
                return
            mask = by_name(part, args, kwargs).get("attention_mask")
            counts = visible_keys(mask, now, bool(getattr(part, "is_causal", True)))
            if counts is not None:
                low, high = (int(n) for n in torch.aminmax(counts))
                seen = self._keys
                self._keys = (low, high) if seen is None else (min(seen[0], low), max(seen[1], high))

        return hook

    def note_hidden(self, watch: Watch) -> Any:
        """Return a hook that keeps the hidden states of the scored positions of one layer."""

        def hook(_part: nn.Module, _args: Any, output: Any) -> None:
            now = watch.now
            tensor = output[0] if isinstance(output, tuple) else output
            if (
                now is None
                or not isinstance(tensor, Tensor)
                or tensor.ndim != 3
                or not self._scored(now) <= tensor.shape[1] <= now.width  # fewer: a pruned prompt
            ):
                return
            rows = tensor[0, -self._scored(now) :]
            self._hidden.append(rows if now.width == 1 else rows.clone())

        return hook

    def end(self, now: Forward, cache: Any) -> None:
        """Make a step of a forward that has ended."""
        count = self._scored(now)
        first, last = now.starts[0], now.starts[0] + now.width - 1
        given = None if now.position_ids is None else now.position_ids[0]
        rows: list[Scored] = []
        if now.logits is not None and (self.text is None or count == 1):
            token = None if self.text is None or last + 1 >= len(self.text) else self.text[last + 1]
            rows = [Scored.of(now.logits[0, -1], last, token)]
        step = TracedStep(
            step=now.index,
            seconds=0.0,
            first=max(0, first),
            last=last,
            position_ids=None if given is None else (int(given[0]), int(given[-1])),
            cache=stored_lengths(cache),
            keys=self._keys,
            rows=rows,
        )
        if self._hidden and self.level != "steps":
            stacked = torch.stack([h[-max(1, count) :] for h in self._hidden], dim=1)
            step.hidden = fingerprints(stacked).cpu()
            step.states = stacked.cpu() if self.level == "states" else None
        self._hidden, self._keys = [], None
        if self.text is not None and count == 1:
            self._emit(step)
        else:
            self.waiting = step

    def finish(self, scores: Scores) -> None:
        """Fill in the scores of a forward that scored many positions at once, and emit it."""
        step, text = self.waiting, self.text
        if step is None or text is None:
            return
        with torch.inference_mode():
            for i, position in enumerate(scores.positions.tolist()):
                token = text[position + 1] if position + 1 < len(text) else None
                step.rows.append(Scored.of(scores.logits.rows(i, i + 1)[0], position, token))
        self._emit(step)

    def _scored(self, now: Forward) -> int:
        """Positions of this forward that are scored and were not before."""
        if self.text is None:
            return 1
        first, stop = (now.starts[0] + slot for slot in now.fresh[0])
        return max(1, stop - max(first, self.start - 1))

    def _emit(self, step: TracedStep) -> None:
        now = time.perf_counter()
        step.seconds, self._before, self.waiting = now - self._before, now, None
        self.steps.append(step)
        self.sink(step)


@contextmanager
def tracing(core: nn.Module, layers: Sequence[nn.Module], recorder: Recorder) -> Iterator[Recorder]:
    """Set the hooks of `recorder` on a model inside the block.

    Args:
        core: the model whose forward the runner calls.
        layers: its decoder layers.
        recorder: gets what the hooks see.

    Cost: one small product a step for the fingerprints, and a few Python calls a layer.
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
