"""What a cache says about tokens that were dropped from it on purpose, so that nobody takes its lengths for a bug."""

from __future__ import annotations

from typing import Any

NOTE = "_twinrun_prefill"
"""Attribute of a cache that holds the record of the prefill which pruned it. `copy.deepcopy` takes it along."""


def dropped_slots(cache: Any) -> tuple[int, ...]:
    """Slots that each layer of a cache was spared by the schedule of its prefill; empty where nothing was pruned.

    The numbers are those that were promised, from lengths alone; what layers hold may be held against them.

    Example:
        >>> dropped_slots(None)
        ()
    """
    found: tuple[int, ...] = getattr(getattr(cache, NOTE, None), "dropped", ())
    return found
