"""The hooks that prune: on the body, to learn what the prompt is, and before every layer that may see less of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.models.layer_inputs import LayerInputs, cache_of, cached_tokens, why_not_prunable
from twinrun.models.model import Model
from twinrun.models.narrow import wants_width, widened
from twinrun.prune.passing import Call, LaterPass, PrefillPass, Rule
from twinrun.prune.prefill import Prefill
from twinrun.prune.prompt import Prompt
from twinrun.records.dropped import NOTE

_ATTACHED: WeakSet[nn.Module] = WeakSet()


class Hooks:
    """Prunes the prefill of one model while attached. Nothing in the model is changed, only hooks are set."""

    def __init__(self, model: Model, rule: Rule) -> None:
        """Keep both; nothing is set before `attached`."""
        self._model, self._rule = model, rule
        self._now: PrefillPass | LaterPass | None = None
        self._wants_width = wants_width(model.core, model.layout)
        self._rows_asked = 1
        self._extends = self._is_paused = False
        self.replay: Mapping[int, Tensor] = {}
        """Columns to keep, by layer, instead of choosing; for the next prefill of the same rows."""
        self.last: Prefill | None = None

    @property
    def is_attached(self) -> bool:
        """Whether these or other pruning hooks are on the model."""
        return self._model.core in _ATTACHED

    @contextmanager
    def attached(self, *, extend: bool) -> Iterator[None]:
        """Prune inside the block; all hooks are gone when it ends, however it ends.

        Raises:
            ConfigError: pruning is attached to this model already.
        """
        core, layout = self._model.core, self._model.layout
        if core in _ATTACHED:
            raise ConfigError(
                f"{self._model.name} is pruned already; leave the outer `with p.attached()` before you enter another"
            )
        body = LayerInputs.of(layout.body)
        self._extends = extend
        with ExitStack() as undo:
            _ATTACHED.add(core)
            undo.callback(_ATTACHED.discard, core)
            undo.callback(self._clear)
            if core is not layout.body:
                whole = LayerInputs.of(core)
                undo.callback(
                    core.register_forward_pre_hook(
                        lambda _m, args, kwargs: self._ask(whole.named(args, kwargs)), with_kwargs=True
                    ).remove
                )
            undo.callback(
                layout.body.register_forward_pre_hook(
                    lambda _m, args, kwargs: self._begin(body.named(args, kwargs)), with_kwargs=True
                ).remove
            )
            undo.callback(layout.body.register_forward_hook(self._end, always_call=True).remove)
            first = self._rule.schedule.stages[0].layer
            for index, layer in list(enumerate(layout.layers))[first:]:
                hook = _layer_hook(self, index, LayerInputs.of(layer))
                undo.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if self._wants_width:
                undo.callback(layout.layers[-1].register_forward_hook(self._leave).remove)
            yield

    @contextmanager
    def replaying(self, choice: Mapping[int, Tensor]) -> Iterator[None]:
        """Inside the block prompts keep these columns, by layer, and no selector is asked."""
        self.replay = choice
        try:
            yield
        finally:
            self.replay = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block forwards are not looked at."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def _clear(self) -> None:
        self._now, self._rows_asked = None, 1

    def _ask(self, named: dict[str, Any]) -> None:
        """Note how many rows of logits the caller wants; refuse what pruned rows cannot give."""
        if self._is_paused:
            return
        if named.get("labels") is not None:
            raise ConfigError(
                "a loss over a pruned prompt has no meaning, its tokens are gone; drop `labels`"
            )
        asked = named.get("logits_to_keep", 0)
        if isinstance(asked, Tensor):
            raise ConfigError("logits_to_keep names places, which pruning moves; give a number, such as 1")
        self._rows_asked = int(asked or 0)

    def _begin(self, named: dict[str, Any]) -> None:
        """Before a body runs: a prompt, or what follows one."""
        if self._is_paused:
            return
        cache = cache_of(named)
        if cached_tokens(cache):
            self._now = self._later(named, cache)
            return
        if cache is not None and (why := why_not_prunable(cache)):
            raise UnsupportedModelError(
                f"this cache cannot hold layers of unequal length: {why}; use transformers' DynamicCache"
            )
        now = PrefillPass(self._rule, Prompt.of(named), self.replay)
        tail = min(self._rule.protection.last_tokens(n) for n in now.record.lengths)
        if not now.does_nothing and self._rows_asked > tail:
            raise ConfigError(
                f"the logits of the last {self._rows_asked} prompt tokens are asked for and only the last {tail} are "
                "kept for certain; ask for logits_to_keep=1 (assisted decoding cannot be pruned), or protect more"
            )
        self.last, self._now = now.record, now
        if cache is not None:
            setattr(cache, NOTE, now.record)

    def _later(self, named: dict[str, Any], cache: Any) -> LaterPass:
        prefill: Prefill | None = getattr(cache, NOTE, None)
        fed = named.get("input_ids")
        fed = fed if isinstance(fed, Tensor) else named.get("inputs_embeds")
        rows, width = (int(n) for n in fed.shape[:2]) if isinstance(fed, Tensor) else (0, 0)
        if prefill is None:
            raise ConfigError(
                f"the cache holds {cached_tokens(cache)} tokens that were not pruned here (a prefix that is reused, "
                "say); start from an empty cache, so that the whole prompt is one forward"
            )
        if cached_tokens(cache) < prefill.width or len(prefill.lengths) != rows:
            raise ConfigError(
                f"the cache was pruned for {len(prefill.lengths)} rows of {prefill.width} tokens and now has {rows} "
                f"rows of {cached_tokens(cache)}: a pruned prompt cannot be cut back or shared; run it anew"
            )
        if width > 1 and not self._extends:
            raise ConfigError(
                f"{width} tokens follow a pruned prompt in one forward: a prompt in chunks would be pruned by its "
                "first chunk alone; drop prefill_chunk_size, or say attached(extend=True) if they are no prompt"
            )
        return LaterPass(prefill)

    def enter(self, call: Call) -> dict[str, Any]:
        """What a layer gets instead of its own arguments."""
        now = self._now
        if now is None or now.does_nothing:
            return {}
        if isinstance(now, PrefillPass):
            self._note(call)
        return now.enter(call)

    def _note(self, call: Call) -> None:
        """Write the record to a cache that the body made itself."""
        cache = cache_of(call.named)
        if cache is not None and getattr(cache, NOTE, None) is None:
            if why := why_not_prunable(cache):
                raise UnsupportedModelError(f"{self._rule.family} cannot be pruned: its own cache, {why}")
            setattr(cache, NOTE, self.last)

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Behind the last layer of a body that reshapes: what is left stands at the right end."""
        now = self._now
        if not isinstance(now, PrefillPass) or now.does_nothing:
            return None
        return widened(output, now.record.width, now.real)

    def _end(self, *_: Any) -> None:
        self._clear()


def _layer_hook(hooks: Hooks, index: int, inputs: LayerInputs) -> Any:
    def enter(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        new = hooks.enter(Call(index, module, inputs, inputs.named(args, kwargs)))
        return inputs.replaced(args, kwargs, new) if new else None

    return enter
