"""A sweep's record as text, Markdown, table and picture. Reports see the record only, so it is written by hand here."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from twinrun.records.bench import Bench
from twinrun.report.bench_plots import bench_curves
from twinrun.report.bench_text import bench_text

NAME = "<b>[red]$mine|"


def timing(seconds: float) -> dict[str, Any]:
    return {
        "seconds_median": seconds,
        "seconds_p10": seconds * 0.9,
        "seconds_p90": seconds * 1.1,
        "repeats": 3,
        "seconds_samples": [seconds] * 3,
    }


def ratio(value: float, within: bool | None = None) -> dict[str, Any]:
    found = {"ratio_median": value, "ratio_p10": value - 0.1, "ratio_p90": value + 0.1, "pairs": 3}
    return found if within is None else {**found, "within_noise": within}


def cell(
    name: str, word: str, seconds: float, *, speed: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    decode = {
        **timing(seconds * 3),
        "tokens": 3,
        "tokens_per_second": 1 / seconds,
        **{f"token_seconds_{k}": seconds * f for k, f in (("p10", 0.9), ("p50", 1), ("p90", 1.2))},
        "flops_per_token": 5.6e6,
        "mfu": 0.0004,
        "mfu_note": None,
        "mbu": 0.61,
        "cache_read_share": None,
        "read_note": None,
    }
    return {
        "runner": name,
        "status": "timed",
        "reason": None,
        "verdict": {"verdict": word, "reason": f"because {word}", "length": 64},
        "settings": {"compile_seconds": 37.0, "capture_seconds": 0.0, "step_fallback": "the model has hooks"},
        "prefill": {
            **timing(seconds * 2),
            "reused_tokens": 63,
            "flops": 3.3e8,
            "mfu": 1.2,
            "mfu_note": "over 100 %: really",
        },
        "decode": decode,
        "total": timing(seconds * 5),
        "cache": {"bytes_end": 182_000},
        "memory": {"tensor_peak_bytes": 452_000, "resident_peak_bytes": None, "cuda_peak_bytes": None},
        "speed_up": None if speed is None else {"total": speed},
        "text": {"first_difference": None},
        **more,
    }


def refused(name: str) -> dict[str, Any]:
    parts = dict.fromkeys(["verdict", "prefill", "decode", "total", "cache", "memory", "speed_up", "text"])
    return {"runner": name, "status": "out of memory", "reason": "9 GiB are too many", **parts}


def record() -> Bench:
    ceilings = {
        "matmul": {"float32": {"dtype": "float32", "flops_per_second": 9.5e10, "width": 1024}},
        "memory_read": {"num_bytes": 10**9, "bytes_per_second": 1.2e10, "how": "sum"},
        "cache_read": None,
        "last_level_cache_bytes": 32 * 2**20,
        "beyond_cache": False,
    }
    first = [
        cell("plain", "reference", 0.02),
        cell(NAME, "equivalent", 0.01, speed=ratio(1.98, False), text={"first_difference": 4}),
        cell("near", "identical", 0.02, speed=ratio(1.01, True)),
        cell("bad", "different", 0.001, speed=ratio(20.0, False)),
    ]
    second = [cell("plain", "reference", 0.04), refused(NAME), refused("near"), refused("bad")]
    noise = {"total": ratio(1.02)}
    rows = [
        {"length": 64, "cells": first, "noise": noise, "ceilings": ceilings},
        {"length": 256, "cells": second, "noise": noise, "ceilings": ceilings},
    ]
    request = {
        "model": "m<i>",
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "prompts": "ids",
        "new_tokens": 4,
        "repeats": 3,
        "judged_positions": 16,
        "runners": [{"name": n} for n in ("plain", NAME, "near", "bad")],
    }
    return Bench(request=request, rows=tuple(rows))


def printed(width: int = 100) -> str:
    out = io.StringIO()
    shown = Console(file=out, width=width, highlight=False)
    for part in bench_text(record().to_json()):
        shown.print(part)
    return out.getvalue()


@pytest.mark.parametrize("view", ["text", "markdown", "html"])
def test_no_speed_without_its_verdict_and_no_factor_for_what_is_different(view: str) -> None:
    text = {"text": printed, "markdown": record().to_markdown, "html": record()._repr_html_}[view]()
    assert "1.98×" in text
    assert "20.0×" not in text
    assert "because different" in text
    assert "9 GiB are too many" in text
    assert "over 100 %: really" in text
    assert "NOT beyond the last-level cache" in text
    assert "another text from new token 5" in text
    assert "1.02× (0.92–1.12)" in text
    assert "within noise" in text
    assert "plain: 37.00 s of compilation before the timed runs" in text
    assert "63 of the prompt" in text
    assert "ran the model" in text
    assert "the model has hooks" in text


def test_every_line_with_a_time_names_a_verdict() -> None:
    lines = record().to_markdown().split("**a token")[0].splitlines()
    shown = [line for line in lines if " ms |" in line]
    assert len(shown) == 5
    for line in shown:
        assert any(
            f"| {word} |" in line for word in ("reference", "identical", "equivalent", "lossy", "different")
        )


def test_foreign_text_stays_text() -> None:
    assert NAME in printed()
    assert "<b>" not in record()._repr_html_()
    assert "m<i>" not in record().to_markdown()
    row = next(line for line in record().to_markdown().splitlines() if "[red]" in line)
    assert row.count("|") - row.count("\\|") == 7


def test_tables_fit_a_narrow_terminal() -> None:
    assert max(map(len, printed(80).splitlines())) <= 80
    assert "…" not in printed(80)


def test_a_sweep_passes_unless_something_is_different_or_failed() -> None:
    found = record()
    assert not found.passed
    for row in found.rows:
        row["cells"] = row["cells"][:3]
    assert found.passed
    found.rows[1]["cells"][1]["status"] = "failed"
    assert not found.passed


def test_pandas_has_one_line_a_runner_and_length() -> None:
    table = record().to_pandas()
    assert len(table) == 8
    line = table[(table.runner == "near") & (table.length == 64)].iloc[0]
    assert (line.verdict, line.token_seconds_p50, line.speed_up) == ("identical", 0.02, 1.01)
    assert table[table.status == "out of memory"].total_seconds.isna().all()


def test_curves_have_a_line_a_runner_and_survive_one_length_and_none() -> None:
    def drawn(found: Bench) -> np.ndarray:
        return imread(io.BytesIO(bench_curves(found.to_json())))

    whole = drawn(record())
    assert whole.shape[1] == 1500
    fewer = record()
    for row in fewer.rows:
        row["cells"] = [c for c in row["cells"] if c["runner"] == "plain"]
    assert not np.array_equal(whole, drawn(fewer))
    one = record()
    assert drawn(Bench(request=one.request, rows=one.rows[:1])).std() > 0
    empty = record()
    for row in empty.rows:
        row["cells"] = [refused("plain")]
    drawn(empty)
