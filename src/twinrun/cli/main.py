"""The `twinrun` command.

Exit codes: 0 done and passed, 1 the check failed, 2 bad request, 3 something missing here, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from twinrun.errors import TwinrunError

# typer brings its own copy of click in some versions and imports it in others; its public classes lead to either.
ClickException: type[Exception] = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)

COMMANDS = (
    "demo",
    "verify",
    "trace",
    "bench",
    "faults",
    "score",
    "generate",
    "diffuse",
    "prune",
    "lm_eval",
    "contrast",
    "memory",
    "models",
    "runners",
    "env",
)

app = typer.Typer(
    name="twinrun",
    help=(
        "Run a language model two ways and say what the speed cost: nothing, rounding, a chosen "
        "loss, "
        "or a bug."
    ),
    epilog="Start with `twinrun demo`. Then: `twinrun verify MODEL --probes`, "
    "`twinrun score MODEL --prompt TEXT`, `twinrun generate MODEL --chat --prompt TEXT`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _name in COMMANDS:
    importlib.import_module(f"twinrun.cli.{_name}").register(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; nothing a user can cause ends in a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        result = typer.main.get_command(app).main(
            args=None if argv is None else list(argv), prog_name="twinrun", standalone_mode=False
        )
        if result == 130:  # typer turns an interrupt into this code before it reaches us
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except ClickException as error:
        return _usage_error(error)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("twinrun: interrupted\n")
        return 130
    except TwinrunError as error:
        sys.stderr.write(f"twinrun: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _usage_error(error: Any) -> int:
    """One line for a wrong option or command; the help page for a bare `twinrun`."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        sys.stderr.write(f"twinrun: {error.format_message()}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
