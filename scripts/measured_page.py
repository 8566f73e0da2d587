"""A page of docs whose tables stand between `<!-- NAME -->` and `<!-- end -->` and are drawn from records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.S)


def read(name: str) -> dict[str, Any]:
    """The committed record of a benchmark."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text("utf-8")))


def drawn(page: Path, tables: Mapping[str, Callable[[], str]]) -> str:
    """Text of the page with every place drawn anew; a place without a table, or without a record, is an error."""
    return PLACE.sub(lambda m: f"{m[1]}{tables[m[2]]()}\n{m[3]}", page.read_text("utf-8"))
