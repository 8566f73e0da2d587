"""Bodies that reshape what their last layer returns to the tokens they were given, found by watching one forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from twinrun.models.layout import Layout, probe_logits


def wants_width(core: nn.Module, layout: Layout) -> bool:
    """Whether the body fails when its last layer returns one token less (GPT-2 views it as its input's shape).

    Cost: one forward of six tokens.
    """

    def shorter(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = output if isinstance(output, Tensor) else output[0]
        return with_hidden(output, hidden[:, 1:])

    handle = layout.layers[-1].register_forward_hook(shorter)
    try:
        probe_logits(core)
    except RuntimeError:
        return True
    finally:
        handle.remove()
    return False


def widened(output: Any, width: int, real: Tensor) -> Any:
    """Output of a layer with its hidden states at the right end of `width` tokens, zeros before them and in padding.

    `real` is `[rows, tokens]` bool, False for padding, so that a row looks the same alone and in a batch.
    """
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    hidden = hidden.masked_fill(~real.to(hidden.device)[..., None], 0.0)
    return with_hidden(output, pad(hidden, (0, 0, width - hidden.shape[1], 0)))


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """Output of a layer, a tensor or a tuple that begins with one, with other hidden states."""
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])
