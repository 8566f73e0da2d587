"""All faults by name. The registry holds factories, so nobody can change another's fault."""

from __future__ import annotations

from collections.abc import Callable

from twinrun.errors import ConfigError, near_names
from twinrun.faults import (
    activations,
    attention,
    attention_scores,
    caches,
    canvases,
    heads,
    ids,
    masks,
    norms,
    padding,
    positions,
    precision,
    prefill,
    pruning,
    reuse,
    rotary,
    routers,
    sampling,
    scales,
    scores,
    skips,
    teaching_gpt,
    trainings,
    tunings,
)
from twinrun.faults.fault import Fault

_FACTORIES: tuple[Callable[[], Fault], ...] = (
    ids.double_bos,
    positions.position_off_by_one,
    positions.position_from_rows_kept,
    positions.frozen_decode_position,
    positions.padded_positions_shared,
    prefill.chunk_positions,
    prefill.chunk_keys,
    caches.slot_not_written,
    caches.static_cache_without_mask,
    caches.float8_cache,
    reuse.prefix_cache_pollution,
    reuse.stale_after_rollback,
    pruning.pruned_prefill_not_decoded,
    pruning.positions_renumbered_after_prune,
    masks.causal_mask_dropped,
    masks.padding_attended,
    masks.pad_id_masked,
    masks.window_off_by_one,
    masks.window_lost,
    padding.nan_from_padding,
    scales.embedding_scaled_twice,
    scales.residual_multiplier_ignored,
    rotary.bfloat16_table,
    rotary.frequencies_off,
    rotary.scaling_ignored,
    norms.epsilon_off,
    norms.qk_norm_dropped,
    attention_scores.attention_scale_off,
    attention_scores.attention_softcap_missing,
    attention_scores.decode_step_differs,
    attention.value_scale_off,
    attention.heads_tiled,
    activations.other_gelu,
    routers.weights_renormalised,
    precision.float16_overflow,
    heads.head_not_loaded,
    heads.head_bias_dropped,
    heads.softcap_missing,
    heads.logit_scale_off,
    scores.scores_off_by_one,
    scores.padded_row_read,
    scores.scores_after_sorting,
    scores.softmax_in_half,
    teaching_gpt.cached_position_always_zero,
    skips.compares_rows,
    skips.local_positions,
    skips.early_states_to_head,
    skips.keys_rotated_twice,
    skips.first_row_decides,
    canvases.mask_id_committed,
    canvases.prompt_mask_overwritten,
    canvases.factor_off_by_one,
    canvases.canvas_padding_attended,
    trainings.loss_terms_overwritten,
    trainings.targets_of_other_samples,
    sampling.prefix_tokenised_again,
    sampling.samples_lost_on_resume,
    sampling.processed_scores,
    tunings.padded_column_trained,
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
