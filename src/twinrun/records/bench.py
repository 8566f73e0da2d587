"""The record of a sweep: what was asked for, and one row a length."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinrun.records.bench_notes import notes
from twinrun.records.bench_words import tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What `twinrun.bench` measured.

    Attributes:
        request: model, runners, settings, threads and environment.
        rows: one mapping a length, with one entry in `cells` a runner; keys in docs/records.md.
    """

    request: dict[str, Any]
    rows: tuple[dict[str, Any], ...] = field(repr=False)

    @property
    def passed(self) -> bool:
        """True unless a verdict is "different" or a runner failed for another reason than room."""
        return not any(
            cell["status"] == "failed" or (cell["verdict"] or {}).get("verdict") == "different"
            for row in self.rows
            for cell in row["cells"]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return {"request": self.request, "rows": list(self.rows), "passed": self.passed}

    def to_markdown(self) -> str:
        """Return the tables and the notes as Markdown."""
        record = self.to_json()
        shown = [f"**{title}**\n\n{_markdown(heads, rows)}" for title, heads, rows in tables(self.rows)]
        listed = "\n".join(f"- {_escaped(note)}" for note in notes(record))
        return "\n\n".join([f"# {_escaped(self.request['model'])}", *shown, listed]) + "\n"

    def to_pandas(self) -> Any:
        """Return one line a runner and length: the medians and shares that the tables show, unrounded."""
        import pandas as pd

        return pd.DataFrame([_flat(row, cell) for row in self.rows for cell in row["cells"]])

    def _repr_html_(self) -> str:
        """Show as tables in a notebook; all text is escaped."""
        shown = [_html(*table) for table in tables(self.rows)]
        listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes(self.to_json()))
        return "".join(shown) + f"<ul>{listed}</ul>"


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2), *rows]
    return "\n".join("| " + " | ".join(_escaped(text) for text in line) + " |" for line in lines)


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _html(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(t)}</td>" for t in row) + "</tr>" for row in rows)
    return f"<table><caption>{html.escape(title)}</caption><tr>{top}</tr>{body}</table>"


def _flat(row: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    def get(part: str, key: str) -> Any:
        return None if cell[part] is None else cell[part][key]

    total = (cell["speed_up"] or {}).get("total") or {}
    return {
        "length": row["length"],
        "runner": cell["runner"],
        "status": cell["status"],
        "verdict": get("verdict", "verdict"),
        "prefill_seconds": get("prefill", "seconds_median"),
        "decode_seconds": get("decode", "seconds_median"),
        "token_seconds_p10": get("decode", "token_seconds_p10"),
        "token_seconds_p50": get("decode", "token_seconds_p50"),
        "token_seconds_p90": get("decode", "token_seconds_p90"),
        "tokens_per_second": get("decode", "tokens_per_second"),
        "total_seconds": get("total", "seconds_median"),
        "speed_up": total.get("ratio_median"),
        "within_noise": total.get("within_noise"),
        "tensor_peak_bytes": get("memory", "tensor_peak_bytes"),
        "resident_peak_bytes": get("memory", "resident_peak_bytes"),
        "cuda_peak_bytes": get("memory", "cuda_peak_bytes"),
        "cache_bytes": get("cache", "bytes_end"),
        "prefill_mfu": get("prefill", "mfu"),
        "decode_mfu": get("decode", "mfu"),
        "mbu": get("decode", "mbu"),
        "cache_read_share": get("decode", "cache_read_share"),
    }
