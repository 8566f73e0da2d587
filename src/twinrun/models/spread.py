"""One model over several devices: transformers' device map, or its tensor-parallel plan under torchrun."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.models.bidirectional import is_translated

HEADS = ("num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a checkpoint is put on several devices; false where it stays whole on one."""

    device_map: str | dict[str, Any] | None = None
    tp_plan: str | dict[str, str] | None = None
    processes: int = 1

    @classmethod
    def of(
        cls,
        device_map: str | dict[str, Any] | None,
        tp_plan: str | dict[str, str] | None,
        device: str | torch.device,
    ) -> Spread:
        """Check what was asked for against this process.

        Raises:
            ConfigError: both at once, either with a device, or a plan outside torchrun.
        """
        if device_map is None and tp_plan is None:
            return cls()
        if device_map is not None and tp_plan is not None:
            raise ConfigError("device_map spreads layers and tp_plan splits them; give one of the two")
        what = "device_map" if device_map is not None else "tp_plan"
        if str(device) != "auto":
            raise ConfigError(f"{what} places the model by itself; leave device={str(device)!r} out")
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if tp_plan is not None and processes < 2:
            raise ConfigError(
                "tp_plan splits every layer over the processes of torchrun, and this is one process; start with "
                "`torchrun --nproc_per_node 2 SCRIPT`"
            )
        return cls(device_map=device_map, tp_plan=tp_plan, processes=processes)

    def __bool__(self) -> bool:
        """Whether there is anything to spread."""
        return self.device_map is not None or self.tp_plan is not None

    @property
    def why(self) -> str:
        """What stands in `Model.choices`; empty for one device."""
        if self.tp_plan is not None:
            return f"split over {self.processes} processes: tp_plan={self.tp_plan!r}"
        return "" if self.device_map is None else f"spread: device_map={self.device_map!r}"

    def check(self, config: Mapping[str, Any], name: str) -> None:
        """Refuse a model that cannot be spread, by its config.

        Raises:
            UnsupportedModelError: a LLaDA or Dream, which are read by code of our own.
            ConfigError: heads that the processes cannot share evenly.
        """
        if not self:
            return
        if is_translated(dict(config)):
            raise UnsupportedModelError(
                f"{name} is read by twinrun's own code, which puts it on one device; leave out device_map and tp_plan"
            )
        if self.tp_plan is None:
            return
        for key in HEADS:
            count = config.get("text_config", config).get(key)
            if isinstance(count, int) and count % self.processes:
                raise ConfigError(
                    f"{name} has {key}={count}, which {self.processes} processes cannot share evenly; start as many as "
                    "divide it"
                )

    def options(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`."""
        if self.tp_plan is not None:
            from transformers import DistributedConfig

            return {"distributed_config": DistributedConfig(tp_plan=cast("Any", self.tp_plan))}
        return {} if self.device_map is None else {"device_map": self.device_map}


def refuse_spread_in_memory(device_map: object, tp_plan: object) -> None:
    """Refuse options that only apply while weights are read.

    Raises:
        ConfigError: one of them is given.
    """
    for name, value in (("device_map", device_map), ("tp_plan", tp_plan)):
        if value is not None:
            raise ConfigError(
                f"{name}={value!r} does not apply to a model in memory; give its folder or hub name instead"
            )
