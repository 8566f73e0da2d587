"""How large the last cache before memory is."""

from __future__ import annotations

from pathlib import Path

import torch

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def last_level_cache_bytes(device: torch.device) -> int | None:
    """Return the size of the processor's last-level cache (L3, say) or the GPU's L2; None where nobody tells.

    A virtual machine reports the cache of the whole host, which others use too.
    """
    if device.type == "cuda":
        size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        return int(size) or None
    sizes = [_parse(path) for path in CACHES.glob("index*/size")]
    return max(sizes, default=0) or None


def _parse(path: Path) -> int:
    try:
        text = path.read_text().strip()
        return int(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else int(text)
    except (OSError, ValueError):
        return 0
