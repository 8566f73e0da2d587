"""Interleaved timing, judged with a clock that the arms themselves move: no test here depends on the machine."""

import gc
import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinrun.bench.timing import AGAIN, Timing, interleave, noise, ratio, spread
from twinrun.errors import ConfigError, ShapeError


class Clock:
    """Time passes only when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def arm(self, name: str, seconds: float):
        def call() -> None:
            self.log.append(name)
            self.now += seconds

        return call


def test_rounds_call_every_arm_once_and_turn_around():
    clock = Clock()
    interleave({"a": clock.arm("a", 1), "b": clock.arm("b", 1)}, repeats=2, warmups=1, clock=clock)
    assert clock.log == ["a", "b", "a", "a", "b", "a", "a", "b", "a"]
    clock.log.clear()
    interleave(
        {"a": clock.arm("a", 1), "b": clock.arm("b", 1), "c": clock.arm("c", 1)},
        repeats=2,
        warmups=0,
        clock=clock,
    )
    assert clock.log == ["a", "b", "c", "a", "a", "c", "b", "a"]


def test_each_arm_gets_its_own_seconds_and_the_first_a_double():
    clock = Clock()
    found = interleave({"a": clock.arm("a", 1), "b": clock.arm("b", 3)}, repeats=4, clock=clock)
    assert list(found) == ["a", "b", "a" + AGAIN]
    assert found["a"].samples == found["a" + AGAIN].samples == (1.0,) * 4
    assert found["b"].samples == (3.0,) * 4
    assert found["b"].seconds_median == found["b"].seconds_p10 == found["b"].seconds_p90 == 3.0
    assert ratio(found["b"], found["a"]).median == 3.0
    assert noise(found).median == 1.0


def test_warmups_run_and_are_not_counted():
    clock = Clock()
    seconds = iter([100.0, 100.0, 1.0, 1.0])

    def call() -> None:
        clock.now += next(seconds)

    found = interleave({"a": call}, repeats=1, warmups=1, clock=clock)
    assert found["a"].samples == (1.0,)
    assert next(seconds, None) is None


def test_a_steady_drift_cancels_between_an_arm_and_its_double():
    clock = Clock()
    calls = 0

    def slower_and_slower() -> None:
        nonlocal calls
        calls += 1
        clock.now += calls

    found = interleave({"a": slower_and_slower, "b": slower_and_slower}, repeats=6, warmups=0, clock=clock)
    assert statistics.fmean(found["a"].samples) == statistics.fmean(found["a" + AGAIN].samples)
    assert statistics.fmean(found["b"].samples) == statistics.fmean(found["a"].samples)


def test_a_slow_moment_of_the_machine_cancels_in_the_ratio():
    slow = [1.0, 50.0, 2.0]
    a, b = Timing.of([2 * s for s in slow]), Timing.of(slow)
    assert (ratio(a, b).median, ratio(a, b).p10, ratio(a, b).p90, ratio(a, b).pairs) == (2.0, 2.0, 2.0, 3)


def test_the_device_is_waited_for_on_both_sides_inside_the_time():
    clock = Clock()

    def wait() -> None:
        clock.log.append("wait")
        clock.now += 10

    found = interleave({"a": clock.arm("a", 1)}, repeats=1, warmups=0, synchronize=wait, clock=clock)
    assert clock.log == ["wait", "a", "wait"] * 2
    assert found["a"].samples == (11.0,)  # the wait after the call counts, the one before it does not


def test_the_result_outlives_the_clock():
    clock, order = Clock(), []

    class Result:
        def __del__(self) -> None:
            order.append("freed")

    def read() -> float:
        order.append("clock")
        return clock()

    interleave({"a": Result}, repeats=1, warmups=0, clock=read)
    assert order == ["clock", "clock", "freed"] * 2


def test_the_collector_is_off_inside_and_as_before_after_also_on_an_error():
    seen = []

    def fail() -> None:
        seen.append(gc.isenabled())
        raise RuntimeError("boom")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="boom"):
        interleave({"a": fail}, repeats=1)
    assert seen == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        interleave({"a": lambda: None}, repeats=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_progress_counts_every_call():
    seen = []
    interleave(
        {"a": lambda: None, "b": lambda: None},
        repeats=2,
        warmups=1,
        on_progress=lambda *now: seen.append(now),
    )
    assert [(done, total) for done, total, _ in seen] == [(i, 9) for i in range(9)]
    assert [name for *_, name in seen[:6]] == ["a", "b", "a" + AGAIN, "a" + AGAIN, "b", "a"]


@pytest.mark.parametrize(
    ("arms", "settings", "says"),
    [
        ({}, {"repeats": 1}, "no arms"),
        ({"a": list}, {"repeats": 0}, "repeats=0"),
        ({"a": list}, {"repeats": 1, "warmups": -1}, "warmups=-1"),
        ({"a": list, "a" + AGAIN: list}, {"repeats": 1}, "rename"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(arms, settings, says):
    with pytest.raises(ConfigError, match=says):
        interleave(arms, **settings)


def test_unequal_rounds_and_missing_doubles_are_refused():
    with pytest.raises(ShapeError, match="2 samples against 1"):
        ratio(Timing.of([1.0, 1.0]), Timing.of([1.0]))
    with pytest.raises(ConfigError, match="interleave"):
        noise({"a": Timing.of([1.0])})
    with pytest.raises(ConfigError, match="interleave"):
        noise({})
    with pytest.raises(ShapeError, match="no samples"):
        Timing.of([])


def test_records_are_plain_json_with_units_in_the_keys():
    record = json.loads(json.dumps(Timing.of([1.0, 2.0]).to_json(), allow_nan=False))
    assert record == {
        "seconds_median": 1.5,
        "seconds_p10": 1.1,
        "seconds_p90": 1.9,
        "repeats": 2,
        "seconds_samples": [1.0, 2.0],
    }
    assert ratio(Timing.of([4.0]), Timing.of([2.0])).to_json() == {
        "ratio_median": 2.0,
        "ratio_p10": 2.0,
        "ratio_p90": 2.0,
        "pairs": 1,
    }


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_the_median_is_the_median(values):
    low, middle, high = spread(values)
    rounding = 1e-12 * max(values)
    assert min(values) - rounding <= low <= middle + rounding
    assert middle <= high + rounding <= max(values) + 2 * rounding
    assert middle == pytest.approx(statistics.median(values))
