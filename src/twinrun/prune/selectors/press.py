"""Score tokens by a press of the kvpress package: what it would drop from a cache is dropped from the prefill."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from twinrun.errors import ConfigError, MissingBackendError, UnsupportedModelError, near_names
from twinrun.models.attention_inputs import attention_inputs
from twinrun.models.model import Model
from twinrun.prune.selector import Seen

KEYS = "press:"
"""How names of presses begin where selectors are named."""


class Press:
    """Keys and values of the pruned layer are scored by a press and averaged over its heads.

    Source: kvpress (NVIDIA, arXiv 2510.00636): `ScorerPress.score(module, hidden_states, keys, values, attentions,
    kwargs)`.
    A press drops keys head by head after the whole prefill; here a token goes with all its heads, and before the layer.

    Args:
        press: an object with that `score`.
        model: the model whose layers are scored.

    A press knows nothing of padding, so batches of unequal prompts are refused.

    Cost: projections of one layer for the tokens in sight, and the press.
    """

    def __init__(self, press: Any, model: Model) -> None:
        """Keep both."""
        if not callable(getattr(press, "score", None)):
            raise ConfigError(
                f"{type(press).__name__} does not score tokens; give a ScorerPress, such as KnormPress or SnapKVPress"
            )
        self.name = f"{KEYS}{type(press).__name__.removesuffix('Press').lower()}"
        self.press, self._config = press, model.config
        self._rotary = getattr(model.layout.body, "rotary_emb", None)
        prepare = getattr(press, "post_init_from_model", None)
        if callable(prepare):
            try:
                prepare(model.core)
            except OSError as error:  # filters of QFilterPress come from the hub
                raise MissingBackendError(
                    f"{self.name} needs files that are not here ({' '.join(str(error).split())[:80]})"
                ) from error

    @classmethod
    def named(cls, name: str, model: Model) -> Press:
        """Build the press called `name` (knorm, snapkv, tova, keydiff, ...) of the installed package.

        Raises:
            MissingBackendError: kvpress is not installed, or does not import with this transformers.
            ConfigError: it has no press of that name that scores.
        """
        try:
            package = importlib.import_module("kvpress")
        except ImportError as error:
            raise MissingBackendError(
                f"selector {KEYS}{name} needs the kvpress package ({error}); pip install 'twinrun[kvpress]'"
            ) from error
        known = {
            key.removesuffix("Press").lower(): getattr(package, key)
            for key in dir(package)
            if key.endswith("Press") and callable(getattr(getattr(package, key), "score", None))
        }
        if name not in known:
            raise ConfigError(f"kvpress has no scoring press {name!r}.{near_names(name, known)}")
        return cls(known[name](), model)

    def score(self, seen: Seen) -> Tensor:
        """Mean over heads of the press's scores, `[rows, tokens]`.

        Raises:
            UnsupportedModelError: a padded batch, or a press that cannot score this layer; says why.
        """
        assert seen.module is not None
        if len(set(seen.lengths)) > 1:
            raise UnsupportedModelError(
                f"{self.name} counts padding as text; give prompts of one length, or another selector"
            )
        found = attention_inputs(seen.module, seen.handed, self._config)
        kwargs = {k: v for k, v in seen.handed.items() if k != "hidden_states"}
        try:
            with _lent(found.module, self._rotary):
                scores: Tensor = self.press.score(
                    found.module, found.hidden, found.key, found.value, None, kwargs
                )
        except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())[:120] or type(error).__name__
            raise UnsupportedModelError(
                f"{self.name} cannot score the keys of one layer here ({why}); choose another press"
            ) from error
        return scores.float().mean(1)


@contextmanager
def _lent(attention: nn.Module, rotary: Any) -> Iterator[None]:
    """Lend an attention module the rotary table, which presses look for there; gone again afterwards."""
    lends = rotary is not None and not hasattr(attention, "rotary_emb")
    if lends:
        object.__setattr__(attention, "rotary_emb", rotary)
    try:
        yield
    finally:
        if lends:
            object.__delattr__(attention, "rotary_emb")
