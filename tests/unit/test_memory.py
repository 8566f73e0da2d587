"""Peak memory, judged by allocations of known size."""

import gc

import pytest
import torch

from twinrun.bench import memory
from twinrun.bench.memory import peak_extra_bytes, peak_resident_bytes

MIB = 2**20


def allocate(mib: int) -> torch.Tensor:
    return torch.ones(mib * MIB // 4)


def test_a_known_allocation_is_counted_exactly():
    assert peak_extra_bytes(lambda: allocate(8)) == 8 * MIB
    assert peak_extra_bytes(lambda: torch.zeros(1, dtype=torch.int8)) == 1
    assert peak_extra_bytes(lambda: None) == 0


def test_only_what_is_alive_at_one_moment_adds_up():
    def in_turn() -> None:
        for _ in range(3):
            allocate(2)

    def together() -> int:
        return len([allocate(2) for _ in range(3)])

    assert peak_extra_bytes(in_turn) == 2 * MIB
    assert peak_extra_bytes(together) == 6 * MIB


def test_a_temporary_inside_an_operator_counts():
    half = torch.zeros(1024, 1024, dtype=torch.bfloat16)
    result, widened = 4 * MIB, 4 * MIB
    assert peak_extra_bytes(lambda: torch.log_softmax(half, -1, dtype=torch.float32)) == result + widened


def test_views_cost_nothing_and_what_was_there_before_is_not_counted():
    table = allocate(4)
    assert peak_extra_bytes(lambda: table.view(-1, 4)[1:].T) == 0
    assert peak_extra_bytes(lambda: torch.relu(table)) == 4 * MIB


def test_releasing_an_older_tensor_makes_no_room():
    held = [allocate(4)]

    def swap() -> torch.Tensor:
        held.clear()
        return allocate(6)

    assert peak_extra_bytes(swap) == 6 * MIB


def test_the_same_number_every_time():
    weight = torch.randn(256, 256)
    found = {peak_extra_bytes(lambda: torch.relu(weight @ weight).sum()) for _ in range(3)}
    assert len(found) == 1


def test_an_error_inside_passes_through():
    with pytest.raises(RuntimeError, match="boom"):
        peak_extra_bytes(_fail)
    with pytest.raises(RuntimeError, match="boom"):
        peak_resident_bytes(_fail)
    assert peak_extra_bytes(lambda: allocate(1)) == MIB


def _fail() -> None:
    raise RuntimeError("boom")


def test_the_kernel_sees_what_the_allocator_counts():
    """Pages that were never written are not resident, so this allocation is written; 48 MiB is beyond malloc's heap."""
    gc.collect()
    seen = peak_resident_bytes(lambda: allocate(48))
    assert seen is None or 47 * MIB <= seen <= 56 * MIB  # None: this kernel has no high-water mark to reset


def test_no_high_water_mark_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    assert peak_resident_bytes(lambda: None) is None


def test_the_peak_counts_blocks_whose_allocation_was_seen():
    a, b, c = 64, 128, 192
    assert memory._peak([]) == 0
    assert memory._peak([(a, 4), (a, -4), (b, 3), (c, 3), (b, -3)]) == 6
    assert memory._peak([(a, -50), (b, 3)]) == 3  # older than the call: its size may be that of another block
    assert memory._peak([(a, 4), (a, -4), (a, 2), (a, -2), (a, -9), (b, 1)]) == 4
