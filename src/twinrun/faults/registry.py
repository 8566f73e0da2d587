"""All faults by name. The registry holds factories, so nobody can change another's fault."""

from __future__ import annotations

from collections.abc import Callable

from twinrun.errors import ConfigError, near_names
from twinrun.faults import attention, caches, heads, masks, norms, positions, rotary, teaching_gpt
from twinrun.faults.fault import Fault

_FACTORIES: tuple[Callable[[], Fault], ...] = (
    positions.position_off_by_one,
    positions.scores_off_by_one,
    caches.slot_not_written,
    caches.static_cache_without_mask,
    caches.float8_cache,
    masks.causal_mask_dropped,
    masks.padding_attended,
    masks.pad_id_masked,
    masks.window_off_by_one,
    heads.head_not_loaded,
    heads.head_bias_dropped,
    heads.softcap_missing,
    heads.logit_scale_off,
    attention.attention_scale_off,
    attention.value_scale_off,
    attention.heads_tiled,
    rotary.bfloat16_table,
    rotary.frequencies_off,
    norms.epsilon_off,
    teaching_gpt.cached_position_always_zero,
)
FAULTS: dict[str, Callable[[], Fault]] = {factory().name: factory for factory in _FACTORIES}


def get_fault(name: str) -> Fault:
    """Return the fault called `name`.

    Raises:
        ConfigError: there is none; names the nearest ones.

    Example:
        >>> get_fault("norm-epsilon-off").where
        'norm of the first layer'
    """
    if name not in FAULTS:
        raise ConfigError(
            f"no fault called {name!r}; `twinrun faults` lists all {len(FAULTS)}.{near_names(name, FAULTS)}"
        )
    return FAULTS[name]()
