"""The processes that share an evaluation: one, or as many as `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import os
from typing import Any


class Team:
    """Who this process is among how many. Alone, nothing of accelerate is touched.

    Example:
        >>> team = Team()
        >>> team.rank, team.size, team.gather([1, 2])
        (0, 1, [1, 2])
    """

    def __init__(self) -> None:
        """Join the process group if a launcher started several processes."""
        self._state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch
            from accelerate import PartialState

            # Without a device accelerate would take each process for one that is alone, unless it is told.
            self._state = PartialState(cpu=not torch.cuda.is_available())

    @property
    def rank(self) -> int:
        """Number of this process from 0."""
        return 0 if self._state is None else int(self._state.process_index)

    @property
    def size(self) -> int:
        """Processes in all."""
        return 1 if self._state is None else int(self._state.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def device(self) -> str | None:
        """Where this process should run; None alone, where nobody has decided."""
        return None if self._state is None else str(self._state.device)

    def wait(self) -> None:
        """Go on when all have come here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def gather(self, mine: list[Any]) -> list[Any]:
        """Put the lists of all processes one behind another, on every process."""
        if self._state is None:
            return mine
        from accelerate.utils import gather_object

        found: list[Any] = gather_object(mine)
        return found
