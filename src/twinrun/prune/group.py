"""The processes that train together, started by `accelerate launch` or `torchrun`; one process needs neither."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Group:
    """Rank and size of the run, and the one thing that processes tell each other: sums.

    Attributes:
        rank: of this process, from 0.
        size: processes.
    """

    def __init__(self, device: torch.device) -> None:
        """Read the environment; processes meet at the first sum."""
        self.device = device
        self.rank, self.size = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes; every process gets it."""
        if self.size == 1:
            return values
        from accelerate.utils import reduce

        _ = self._state
        found: Tensor = reduce(values, "sum")
        return found

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            self._state.wait_for_everyone()

    @cached_property
    def _state(self) -> Any:
        from accelerate import PartialState

        return PartialState(cpu=self.device.type == "cpu")
