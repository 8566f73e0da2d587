"""Run the command line in this process, and read the record that it prints last."""

from __future__ import annotations

import json
from typing import Any

import pytest

from twinrun.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def last_record(out: str) -> dict[str, Any]:
    """The JSON record in the last line of stdout."""
    found = json.loads(out.strip().splitlines()[-1])
    assert isinstance(found, dict)
    return found
