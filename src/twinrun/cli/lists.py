"""Options that take a list of numbers: `--lengths 1024 4096`, which click itself has no form for."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class ManyLengths(TyperCommand):
    """`--lengths 1024 4096` means both, also `--lengths 1024,4096`; `--keep` where a command has it likewise."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its numbers."""
        known = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        for option in ("--lengths", "--keep"):
            args = spread_out(args, option) if option in known else args
        return list(super().parse_args(ctx, args))


def spread_out(args: list[str], option: str) -> list[str]:
    """Turn `option 1 2` and `option 1,2` into `option 1 option 2`; the list ends at what is no number.

    Example:
        >>> spread_out(["m", "--lengths", "1", "2,3", "--json"], "--lengths")
        ['m', '--lengths', '1', '--lengths', '2', '--lengths', '3', '--json']
    """
    found: list[str] = []
    is_open = waits = False  # inside the list; no number of it was there yet
    for arg in args:
        if arg == option:
            is_open = waits = True
        elif is_open and all(_is_number(n) for n in arg.split(",")):
            found += [part for n in arg.split(",") for part in (option, n)]
            waits = False
        else:
            found += [option, arg] if waits else [arg]
            is_open = waits = False
    return [*found, option] if waits else found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
