"""The largest size that fits, for a need that grows with it."""

from __future__ import annotations

from collections.abc import Callable

CLOSE = 0.01
"""The answer is at most this share below the largest size that fits."""
MAX_STEPS = 40


def largest(need: Callable[[int], int], room: int, high: int) -> int:
    """Return the largest size from 1 to `high` whose need is at most `room`, or a little less; 0 if not even 1 fits.

    Args:
        need: bytes for a size; grows with it.
        room: bytes there are.
        high: the most that is asked for.

    Returns:
        A size that fits, exact below 100 and within `CLOSE` of the largest above.

    Cost: a few calls of `need`: by turns a straight line between what fits and what does not, and the middle.

    Example:
        >>> largest(lambda size: 10 * size, room=905, high=1000)
        90
    """
    if need(high) <= room:
        return high
    if need(1) > room:
        return 0
    low, too_high = (1, need(1)), (high, need(high))
    for step in range(MAX_STEPS):
        gap = too_high[0] - low[0]
        if gap <= max(1, int(CLOSE * low[0])):
            break
        slope = (too_high[1] - low[1]) / gap
        guess = low[0] + int((room - low[1]) / slope) if step % 2 == 0 and slope > 0 else low[0] + gap // 2
        guess = min(max(guess, low[0] + 1), too_high[0] - 1)
        found = (guess, need(guess))
        low, too_high = (found, too_high) if found[1] <= room else (low, found)
    return low[0]
