"""Keep keys and values: one forward over the prompt, then one forward of one token a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.models.model import Model, Prompt
from twinrun.numerics.logits_policy import LogitsPolicy
from twinrun.records.scores import Scores
from twinrun.runners.cached import CachedForward
from twinrun.runners.caches import PrefixOptions, cache_kind, parse_options
from twinrun.runners.decoding import CachedDecoding
from twinrun.runners.forward import Reader, TailMismatch, reading
from twinrun.runners.generation import as_batch
from twinrun.runners.prefix import PrefixStore
from twinrun.runners.routing import RouteRecorder
from twinrun.runners.runner import ModelRunner
from twinrun.runners.running import Running
from twinrun.runners.steps import steps_of


class KVCache(ModelRunner):
    """Run the prompt once, then one token a forward.

    Args:
        model: what `twinrun.load` returns.
        cache: "dynamic", "static", "sliding", "rolling", "prefix", "offloaded" or "quantized"; what each is for
            stands in `docs/kv-caches.md`.
        **options: settings of that kind: `window` (rolling), `entries` (prefix), `bits`, `backend`,
            `residual_length`, `group_size` (quantized).
        step: how a forward of one token runs: "eager" is the model's own forward; "captured" replays a graph of it
            without the model's Python, bit for bit; "packed" makes its products matrix times vector for one
            row on a processor; "compiled" compiles it (`docs/decode.md`). All want cache="static" or "rolling" and
            attend to filled slots only.
        logits: rows that `score` keeps, and the precision of their softmax; None is all, streamed in float32.
        drop_finished: in a free run of a batch, leave rows out of the forwards once they have ended: faster where
            answers are of unequal length. The others' numbers move by rounding when the batch shrinks.

    Raises:
        ConfigError: unknown kind or setting, or a kind that needs a window where there is none.
        UnsupportedModelError: a model whose layers or positions the kind cannot serve.
        MissingBackendError: a quantised cache whose package is not installed.

    Cost: one forward of `start` tokens and `len(row) - start` forwards of one token a batch.

    Example:
        >>> m = load("builtin:amateur")
        >>> KVCache(m, cache="static").score([5, 6, 7], start=2).cache_lengths[:2]
        (3, 3)
    """

    kind = "kv-cache"

    def __init__(
        self,
        model: Model,
        cache: str = "dynamic",
        *,
        step: str = "eager",
        logits: LogitsPolicy | None = None,
        drop_finished: bool = False,
        **options: Any,
    ) -> None:
        """Choose the cache kind, its settings, how a step runs, and which scores are kept."""
        super().__init__(model, logits)
        self.cache = cache
        self.options = parse_options(cache, options)
        self._maker = cache_kind(cache).prepare(model, self.options)
        if drop_finished and (cache, step) != ("dynamic", "eager"):
            raise ConfigError(
                f"drop_finished needs cache='dynamic' and step='eager', got {cache!r} and {step!r}; leave it out"
            )
        self.drop_finished = drop_finished
        self.step = step
        self._steps = steps_of(step, cache, model)
        self._prefixes = (
            PrefixStore(self.options.entries) if isinstance(self.options, PrefixOptions) else None
        )
        self.reused_tokens: tuple[int, ...] = ()
        """Tokens of each prompt of the latest call that came from a kept cache (cache="prefix")."""

    @property
    def name(self) -> str:
        """How records call this runner; settings that are not the default are named."""
        changed = [
            f"{f.name}={value}"
            for f in fields(self.options)
            if (value := getattr(self.options, f.name)) != f.default
        ]
        step = "" if self._steps is None else f"+{self.step}"
        return f"{self.kind}:{self.cache}{step}" + (f"({', '.join(changed)})" if changed else "")

    @property
    def max_context(self) -> int | None:
        """Longest text; a rolling cache may have no limit."""
        return self._maker.max_context

    def new_cache(self, length: int) -> Any:
        """Return an empty cache for `length` tokens a row."""
        if self._steps is not None and self.cache == "static":
            return self._steps.new_cache(length)
        return self._maker.make(length)

    def stepped(self, read: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return what runs the forwards of one run: `read`, or the fast step around it."""
        return read if self._steps is None else self._steps.begin(read)

    def begin(self, rows: list[list[int]], length: int, routes: RouteRecorder | None) -> tuple[Any, int]:
        """Return a cache for a batch, and how many tokens of its only row it holds already.

        `rows` are the lists that will grow with the cache. A batch of several rows starts afresh.
        """
        if self._prefixes is None or len(rows) > 1:
            self.reused_tokens += (0,) * len(rows)
            return self.new_cache(length), 0
        cache, reused = self._prefixes.reuse(rows[0], lambda: self.new_cache(length), routes)
        self._prefixes.keep(rows[0], cache, routes)
        self.reused_tokens += (reused,)
        return cache, reused

    def forget(self) -> None:
        """Drop the caches that were kept (cache="prefix"), after a change of weights that torch does not count."""
        if self._prefixes is not None:
            self._prefixes.forget()

    def open(self, prompt: Prompt | Sequence[Prompt], room: int = 128) -> Running:
        """Run one prompt or several and hand the run over: feed tokens, read logits, roll back.

        Args:
            prompt: a text, token ids, or a list of either.
            room: tokens a row that may follow.

        Raises:
            ConfigError: empty or too long prompts.
            UnsupportedModelError: a model that does not run with this kind of cache.

        Example:
            >>> run = KVCache(load("builtin:amateur")).open([5, 6, 7])
            >>> _ = run.feed([[8, 9]])
            >>> run.roll_back(1)
            >>> run.tokens
            [[5, 6, 7, 8]]
        """
        prompts = [self.encode(p, new_tokens=room) for p in as_batch(prompt)]
        self._look()
        return Running(self, prompts, room)

    def _look(self) -> None:
        self.reused_tokens = ()
        if self._prefixes is not None:
            self._prefixes.look(self.model)

    def refusal(self, error: RuntimeError) -> Exception:
        """Say that this model's code cannot work with this kind of cache; memory errors stay what they are."""
        if self.cache == "dynamic" or isinstance(error, torch.OutOfMemoryError):
            return error
        family = type(self.model.core).__name__
        why = " ".join(str(error).split())[:120]
        return UnsupportedModelError(
            f"{family} does not run with a {self.cache} cache ({why}); use cache='dynamic'"
        )

    def _score(self, rows: list[list[int]], starts: list[int]) -> list[Scores]:
        self._look()
        if self._prefixes is None:
            return self._score_batch(rows, starts)
        return [self._score_batch([row], [start])[0] for row, start in zip(rows, starts, strict=True)]

    def _score_batch(self, rows: list[list[int]], starts: list[int]) -> list[Scores]:
        try:
            return self._score_once(rows, starts, stream=True)
        except TailMismatch:
            self.reused_tokens = self.reused_tokens[: -len(rows)]
            return self._score_once(rows, starts, stream=False)

    def _score_once(self, rows: list[list[int]], starts: list[int], *, stream: bool) -> list[Scores]:
        began = time.perf_counter()
        num_steps = max(len(row) - start for row, start in zip(rows, starts, strict=True))
        with reading(self.model, stream=stream) as read:
            state = CachedForward(
                self, read, [row[:s] for row, s in zip(rows, starts, strict=True)], num_steps
            )
            columns = [state.features]
            for step in range(num_steps):
                at = [start + step for start in starts]
                tokens = [
                    row[i] if i < len(row) else self.model.pad_id for row, i in zip(rows, at, strict=True)
                ]
                state.advance(tokens)
                columns.append(state.features)
            read.check()
            read.step_note = _step_note(state.step_settings())
            features = torch.stack(columns, dim=1)
            seconds = (time.perf_counter() - began) / len(rows)
            scores = []
            for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
                count = len(row) - start + 1
                routes = _routes_of(read, i, len(row), count, num_steps)
                scores.append(read.scores(row, start, features[i, :count], seconds, routes, state.cache))
            return scores

    def start(self, rows: list[list[int]], new_tokens: int) -> CachedDecoding:
        """Begin a free run."""
        self._look()
        return CachedDecoding(self, rows, new_tokens)


def _routes_of(read: Reader, row: int, length: int, count: int, num_steps: int) -> Any:
    """Routes of one row; steps after its end (other rows were longer) are cut off."""
    surplus = num_steps - (count - 1)
    routes = read.routes
    whole = routes.forwards
    routes.forwards = whole[: len(whole) - surplus]
    found = routes.of_row(row, length, count)
    routes.forwards = whole
    return found


def _step_note(told: dict[str, Any]) -> str:
    """Say in a path how steps ran: by a graph, or why not."""
    if not told:
        return ""
    why = told.get("step_fallback")
    return f", {told['step']} step" if why is None else f", {told['step']} step not used: {why}"
