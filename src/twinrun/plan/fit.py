"""The largest size that fits, for a need that grows with it."""

from __future__ import annotations

import math
from collections.abc import Callable

CLOSE = 0.01
"""The answer is at most this share below the largest size that fits."""
MAX_STEPS = 40


def largest(need: Callable[[int], int], room: int, start: int, high: int) -> int:
    """Return the largest size from 1 to `high` whose need is at most `room`, or a little less; 0 if not even 1 fits.

    Args:
        need: bytes for a size; grows with it.
        room: bytes there are.
        start: a size whose need is known already, between 1 and `high`.
        high: the most that is asked for.

    Returns:
        A size that fits, exact below 100 and within `CLOSE` of the largest above.

    Cost: a few calls of `need`: where the parabola through three sizes says, now and then the middle.

    Example:
        >>> largest(lambda size: 10 * size, room=905, start=7, high=1000)
        90
    """
    low, above, size = 0, high + 1, start
    seen: list[tuple[int, int]] = []
    for step in range(MAX_STEPS):
        found = need(size)
        seen.append((size, found))
        low, above = (size, above) if found <= room else (low, size)
        if above - low <= max(1, int(CLOSE * low)):
            break
        guess = _curve_meets(seen[-3:], room) if step % 4 != 3 else (low + above) / 2
        if guess is None:
            guess = 2.0 * size if found <= room else size / 2
        close_above = low + max(1, int(CLOSE * low))
        size = min(max(int(guess), low + 1 if low < size else close_above), above - 1)
    return low


def _curve_meets(seen: list[tuple[int, int]], room: int) -> float | None:
    """Where the line or parabola through the newest sizes reaches `room`; None if they do not say."""
    if len(seen) < 2:
        return None
    (x1, y1), (x2, y2) = seen[-2:]
    slope = (y2 - y1) / (x2 - x1)
    bend = 0.0
    if len(seen) == 3:
        x0, y0 = seen[0]
        bend = (slope - (y1 - y0) / (x1 - x0)) / (x2 - x0)
    if slope <= 0:
        return None
    # y = y2 + (slope + bend (x2 - x1)) d + bend d^2, with d from x2
    rise, gap = slope + bend * (x2 - x1), y2 - room
    square = rise * rise - 4 * bend * gap
    if square < 0 or rise + math.sqrt(square) == 0:
        return x2 - gap / slope
    return x2 - 2 * gap / (rise + math.sqrt(square))
