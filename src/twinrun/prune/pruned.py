"""The runner that drops prompt tokens inside the prefill and decodes from the cache that this leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from twinrun.models.model import Model
from twinrun.numerics.logits_policy import LogitsPolicy
from twinrun.prune.hooks import Hooks
from twinrun.prune.passing import Rule
from twinrun.prune.prefill import Prefill
from twinrun.prune.protection import Protection
from twinrun.prune.refusals import refuse_model
from twinrun.prune.replay import Choices
from twinrun.prune.schedule import Schedule
from twinrun.prune.scorer import Scorer
from twinrun.prune.selector import Selector
from twinrun.prune.selectors.named import build_selector
from twinrun.records.run import Observer, Run
from twinrun.records.scores import Scores
from twinrun.runners.kvcache import KVCache


class Pruned(KVCache):
    """Drop the least salient prompt tokens at some layers of the prefill; decode from the cache that is left.

    Source: SDTP, arXiv 2504.04514, section 3.3 (pruning at inference) with the schedule and protection of section 4.1.
    Differs or decides where the paper is silent (`docs/prune.md`): tokens keep their original positions; the keep ratio
    counts protected tokens in; 10 % is of the original prompt; batches are padded on the left and each row keeps its
    own number; ties go to the most recent token.

    Args:
        model: what `twinrun.load` returns: a causal model with full attention in every layer.
        scorer: trained scorers, or the folder of such, or "builtin:long"; None where `selector` is given.
        selector: "random", "recency", "norm", "attention", "press:NAME", or an object with `name` and `score(seen)`.
        schedule: `{layer: keep}` or a `Schedule`; None is the one that the scorers were trained for, else the paper's,
            `Schedule.geometric(num_layers)`.
        protect_first: tokens at the beginning of each prompt that are never dropped.
        protect_last: the same at its end: a float is a share of the prompt, an int a number of tokens.
        seed: of the random selector.
        logits: rows that `score` keeps, and the precision of their softmax; None is all, streamed in float32.

    Attributes:
        last: record of the newest prefill; None before the first.

    Raises:
        ConfigError: a schedule beyond the model, or both or neither of scorer and selector, or values out of range.
        UnsupportedModelError: windows, chunked or linear attention, masked diffusion, or a compiled model.
        MissingBackendError: a press without the kvpress package.

    Cost: the prefill's FLOPs fall to `schedule.mean_keep` in their linear part and to `mean_keep_squared` in that of
        attention; a stage adds the selector, two sorts and one copy of the hidden states. A decode step adds a call of
        Python a layer, and attends to fewer keys.

    Example:
        >>> p = Pruned(load("builtin:amateur"), selector="recency", schedule={1: 0.5})
        >>> p.score(list(range(30, 50)), start=20).cache_lengths
        (20, 10, 10)
    """

    kind = "pruned"

    def __init__(
        self,
        model: Model,
        scorer: Any = None,
        *,
        selector: str | Selector | None = None,
        schedule: Schedule | Mapping[int, float | int] | None = None,
        protect_first: int = 4,
        protect_last: float | int = 0.1,
        seed: int = 0,
        logits: LogitsPolicy | None = None,
    ) -> None:
        """Check the settings against the model; nothing is attached yet."""
        super().__init__(model, "dynamic", logits=logits)
        refuse_model(model)
        if isinstance(scorer, (str, Path)):
            scorer = Scorer.load(scorer, model)
        self.selector = build_selector(selector, scorer, model, seed)
        depth = len(model.layout.layers)
        given = getattr(scorer, "schedule", None) if schedule is None else schedule
        self.schedule = Schedule.geometric(depth) if given is None else Schedule.of(given)
        self.schedule.check(depth)
        self.protection = Protection(first=protect_first, last=protect_last)
        check = getattr(self.selector, "check", None)
        if callable(check):
            check(model, self.schedule)
        self._hooks = Hooks(
            model,
            Rule(
                schedule=self.schedule,
                protection=self.protection,
                selector=self.selector,
                family=type(model.core).__name__,
                num_layers=depth,
                config=model.config,
            ),
        )
        self._is_ours = False
        self._choices = Choices()

    @property
    def name(self) -> str:
        """How records call this runner."""
        words = [self.schedule.words(len(self.model.layout.layers))]
        for key, value in (("first", self.protection.first), ("last", self.protection.last)):
            if value != getattr(Protection(), key):
                words.append(f"protect_{key}={value!r}")
        return "+".join([f"{self.kind}:{self.selector.name}", *words])

    @property
    def last(self) -> Prefill | None:
        """Record of the newest prefill."""
        return self._hooks.last

    def prune_log(self) -> dict[str, Any] | None:
        """What the newest prefill did, as plain JSON types, for a trace; None before the first.

        Raises:
            NonFiniteError: a score is NaN or infinite.
        """
        return None if self.last is None else self.last.to_json()

    @contextmanager
    def attached(self, *, extend: bool = False) -> Iterator[Pruned]:
        """Prune every prompt that the model itself runs inside the block, by `m.model.generate(...)` for example.

        Args:
            extend: allow forwards of several tokens behind a pruned prompt; they are not pruned. Without, they are
                refused, because a prompt that comes in chunks looks like that.

        Raises:
            ConfigError: this model is pruned already; inside the block also chunked prefill, assisted decoding, a cache
                that was filled elsewhere or cut back, `labels`, or a budget above the prompt.
            UnsupportedModelError: inside the block, a cache whose layers are of one length, or padding on the right.

        Example:
            >>> m = load("builtin:amateur")
            >>> with Pruned(m, selector="recency", schedule={1: 0.5}).attached() as p:
            ...     out = m.model.generate(torch.arange(30, 50)[None], max_new_tokens=1, do_sample=False)
            >>> p.last.layer_lengths(), out.shape
            ((20, 10, 10), torch.Size([1, 21]))
        """
        with self._hooks.attached(extend=extend):
            yield self

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block forwards run as if nothing were attached: unpruned, with caches of their own."""
        with self._hooks.paused():
            yield

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Attach for work of this runner; inside such a block nothing more is attached."""
        if self._is_ours:
            yield
            return
        with self._hooks.attached(extend=True):
            self._is_ours = True
            try:
                yield
            finally:
                self._is_ours = False

    def stepped(self, read: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return `read` with pruning attached around each forward, unless it is already."""

        def pruned(*args: Any, **kwargs: Any) -> Tensor:
            with self._running():
                return read(*args, **kwargs)

        return pruned

    def generate(
        self, prompt: Any, max_new_tokens: int = 128, observe: Observer | None = None, **sampling: Any
    ) -> Run:
        """Run freely from pruned prompts; see `ModelRunner.generate`."""
        with self._running():
            return super().generate(prompt, max_new_tokens, observe, **sampling)

    def _score(self, rows: list[list[int]], starts: list[int]) -> list[Scores]:
        """Score behind pruned prompts. One precision up the choice of the deployed precision is replayed.

        A choice is a decision, like a token: whoever asks what rounding does behind it must not let it be made anew.
        Prompts that were not scored in the deployed precision lately are chosen for afresh.
        """
        prompts = [row[:start] for row, start in zip(rows, starts, strict=True)]
        is_up = self.model.cast_number > 0
        replay = self._choices.of(prompts, self.schedule.layers) if is_up else {}
        with self._running(), self._hooks.replaying(replay) if replay else nullcontext():
            found = super()._score(rows, starts)
        if not is_up:
            self._choices.note(prompts, self.last)
        return found
