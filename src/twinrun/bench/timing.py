"""Time several ways of doing one thing in one process, interleaved, with an A/A arm that shows the noise."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch

from twinrun.errors import ConfigError, ShapeError

AGAIN = " (A/A)"
"""Appended to the first arm's name for its double."""

Progress = Callable[[int, int, str], object]
"""Called with (calls done, calls in all, name of the next arm)."""
Keep = Callable[[str, Any], object]
"""Called with (name of the arm, what its call returned), after the clock was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one arm. `samples` follow the rounds: equal indices of two arms ran side by side."""

    seconds_median: float
    seconds_p10: float
    seconds_p90: float
    repeats: int
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Summarise samples, in seconds.

        Raises:
            ShapeError: there are none.

        Example:
            >>> Timing.of([3.0, 1.0, 2.0]).seconds_median
            2.0
        """
        low, middle, high = spread(samples)
        return cls(
            seconds_median=middle,
            seconds_p10=low,
            seconds_p90=high,
            repeats=len(samples),
            samples=tuple(samples),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, every key of a time with its unit."""
        return {
            "seconds_median": self.seconds_median,
            "seconds_p10": self.seconds_p10,
            "seconds_p90": self.seconds_p90,
            "repeats": self.repeats,
            "seconds_samples": list(self.samples),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRatio:
    """Times of one arm over those of another, round by round: a slow moment hits both and cancels."""

    median: float
    p10: float
    p90: float
    pairs: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        spread = {"ratio_median": self.median, "ratio_p10": self.p10, "ratio_p90": self.p90}
        return {**spread, "pairs": self.pairs}


def interleave(
    arms: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmups: int = 1,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    on_progress: Progress | None = None,
    on_result: Keep | None = None,
) -> dict[str, Timing]:
    """Time the arms in turns: each round calls every arm once, every second round backwards (A B, B A).

    The first arm is timed twice a round under two names; `noise` compares the two. A difference between
    other arms that is not larger than that is no difference. Turning every second round around takes a
    steady drift of the machine out of the comparisons.

    Args:
        arms: name -> callable without arguments. What it returns lives until the clock was read.
        repeats: timed rounds, at least 1; take 10 or more for a number that will be published.
        warmups: untimed rounds before them, at least 0.
        synchronize: called before the clock is read on both sides. None waits for the current CUDA device
            if this process uses CUDA, else does nothing.
        clock: returns seconds.
        on_progress: called before every call of an arm, untimed.
        on_result: called after every timed call with what it returned, untimed; the double has its own name.

    Returns:
        One `Timing` an arm by name, and one named `first + AGAIN` for the double of the first.

    Raises:
        ConfigError: no arms, `repeats` below 1, `warmups` below 0, or an arm that is named like the double.

    Cost: (repeats + warmups) times the sum of all arms plus the first again. The cyclic garbage collector
    is off while an arm runs, as in `timeit`.

    Example:
        >>> sorted(interleave({"a": lambda: 1, "b": lambda: 2}, repeats=3))
        ['a', 'a (A/A)', 'b']
    """
    if not arms:
        raise ConfigError("there are no arms to time; give at least one {name: callable}")
    if repeats < 1 or warmups < 0:
        raise ConfigError(f"repeats={repeats}, warmups={warmups}; repeats start at 1, warmups at 0")
    first = next(iter(arms))
    if first + AGAIN in arms:
        raise ConfigError(f"{first + AGAIN!r} is the name of the first arm's double; rename that arm")
    calls = [*arms.items(), (first + AGAIN, arms[first])]
    samples: dict[str, list[float]] = {name: [] for name, _ in calls}
    wait = wait_for_cuda if synchronize is None else synchronize
    total = (warmups + repeats) * len(calls)
    for number in range(warmups + repeats):
        for place, (name, call) in enumerate(calls if number % 2 == 0 else reversed(calls)):
            if on_progress is not None:
                on_progress(number * len(calls) + place, total, name)
            seconds, result = _time(call, wait, clock)
            if number >= warmups:
                samples[name].append(seconds)
                if on_result is not None:
                    on_result(name, result)
            del result
    return {name: Timing.of(found) for name, found in samples.items()}


def ratio(a: Timing, b: Timing) -> PairedRatio:
    """Return how many times as long `a` takes as `b`: median, p10 and p90 of the quotients of their rounds.

    Raises:
        ShapeError: the two have unequal numbers of samples, so they were not timed together.

    Example:
        >>> ratio(Timing.of([2.0, 4.0]), Timing.of([1.0, 2.0])).median
        2.0
    """
    if a.repeats != b.repeats:
        raise ShapeError(f"{a.repeats} samples against {b.repeats}; time both arms in one call of interleave")
    low, middle, high = spread([x / y for x, y in zip(a.samples, b.samples, strict=True)])
    return PairedRatio(median=middle, p10=low, p90=high, pairs=a.repeats)


def noise(timings: Mapping[str, Timing]) -> PairedRatio:
    """Return the ratio of the first arm's double to the first arm: 1.0 but for the machine.

    Raises:
        ConfigError: the timings do not come from `interleave`.
    """
    first = next(iter(timings), "")
    if first + AGAIN not in timings:
        raise ConfigError(f"no arm {first + AGAIN!r} here; pass what interleave returned")
    return ratio(timings[first + AGAIN], timings[first])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return (p10, median, p90), linear between neighbouring values.

    Raises:
        ShapeError: there are no values.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        (1.2, 2.0, 2.8)
    """
    if not values:
        raise ShapeError("percentiles of no samples; time at least one round")
    tenths = quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return tenths[0], tenths[4], tenths[8]


def wait_for_cuda() -> None:
    """Wait until the current CUDA device has done its work; nothing where this process uses none."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        torch.cuda.synchronize()


def _time(
    call: Callable[[], object], wait: Callable[[], object], clock: Callable[[], float]
) -> tuple[float, object]:
    """Time one call; its result is handed on, so that freeing it is not counted."""
    collects = gc.isenabled()
    gc.disable()
    try:
        wait()
        began = clock()
        result = call()
        wait()
        return clock() - began, result
    finally:
        if collects:
            gc.enable()
