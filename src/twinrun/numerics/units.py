"""Bytes for people: GiB and MiB are powers of two, GB and MB powers of ten, in both directions."""

from __future__ import annotations

import re

from twinrun.errors import ConfigError

UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SHOWN = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int, what: str = "memory") -> int:
    """Return bytes from a number or a text such as "24GB", "22.5 GiB" or "512MiB".

    Raises:
        ConfigError: no amount, an unknown unit, or nothing at all; `what` is the name of the setting.

    Example:
        >>> parse_bytes("24GB"), parse_bytes("1.5GiB")
        (24000000000, 1610612736)
    """
    if isinstance(text, int) and not isinstance(text, bool):
        amount, unit = float(text), ""
    else:
        found = _AMOUNT.fullmatch(str(text))
        unit = found[2].upper() if found else "?"
        amount = float(found[1]) if found else 0.0
    size = round(amount * UNITS.get(unit, 0))
    if size < 1:
        raise ConfigError(f"{what} {text!r} is no amount of bytes; write it like 24GB, 22.5GiB or 512MiB")
    return size


def show_bytes(size: float) -> str:
    """Return "1.50 GiB", "12.0 MiB", "305 B": three digits and a binary unit.

    Example:
        >>> show_bytes(79_658_221_568), show_bytes(607_744), show_bytes(-2048)
        ('74.2 GiB', '594 KiB', '-2.00 KiB')
    """
    for unit, one in _SHOWN:
        if abs(size) >= one:
            value = size / one
            digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
            return f"{value:,.{digits}f} {unit}"
    return f"{size:.0f} B"
