"""Which models look both ways, told from their config, and the one line that refuses them where order matters."""

from __future__ import annotations

from typing import Any

from twinrun.errors import UnsupportedModelError

TRANSLATED = ("llada", "Dream")
"""Model types that transformers does not know and `models/translate.py` opens."""


def is_translated(fields: dict[str, Any]) -> bool:
    """Whether a parsed `config.json` is LLaDA's or Dream's own."""
    return fields.get("model_type") in TRANSLATED


def is_bidirectional(config: Any) -> bool:
    """Whether a transformers config is that of a model without a causal mask: LLaDA, Dream, or `is_causal` is False.

    Example:
        >>> from types import SimpleNamespace
        >>> is_bidirectional(SimpleNamespace(model_type="llama", is_causal=False)), is_bidirectional(None)
        (True, False)
    """
    return getattr(config, "model_type", None) in TRANSLATED or getattr(config, "is_causal", None) is False


def refuse_bidirectional(config: Any, name: str) -> None:
    """Refuse a model that looks both ways where a causal one is needed.

    Raises:
        UnsupportedModelError: it is one.
    """
    if is_bidirectional(config):
        raise UnsupportedModelError(
            f"{name} is a masked-diffusion model: it fills in masked tokens and has no left-to-right scores; "
            "decode it with tr.Diffusion(m) or `twinrun diffuse`, or give a causal LM, such as 'builtin:expert'"
        )
