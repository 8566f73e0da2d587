"""Names of the trained checkpoints inside the package."""

from __future__ import annotations

from pathlib import Path

from twinrun.errors import ConfigError, near_names

FOLDER = Path(__file__).parent / "builtin"


def builtin_names() -> list[str]:
    """Return the names that `builtin:NAME` accepts, sorted."""
    return sorted(p.parent.name for p in FOLDER.glob("*/config.json"))


def builtin_folder(name: str) -> Path:
    """Return the checkpoint folder of `builtin:name`.

    Raises:
        ConfigError: no such built-in; lists those that exist.
    """
    if name not in builtin_names():
        full = [f"builtin:{n}" for n in builtin_names()]
        raise ConfigError(
            f"no built-in model named {name!r}.{near_names(f'builtin:{name}', full)} `twinrun "
            f"models` lists them: {', '.join(full)}"
        )
    return FOLDER / name
