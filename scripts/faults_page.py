"""Write docs/faults.md from the registry of faults and the record of benchmarks/verify_calibration.py.

python scripts/faults_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twinrun.faults.fault import Fault
from twinrun.faults.registry import FAULTS, get_fault

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "verify_calibration.json"
PAGE = ROOT / "docs" / "faults.md"

HEAD = """# Planted faults

`twinrun.faults` breaks a correct runner the way a real bug did, so that the verifier is judged too. Each fault is a
context manager; leaving it restores every bit. This page is written by `scripts/faults_page.py`.

```python
import twinrun as tr
from twinrun.faults.fault import candidate_for
from twinrun.faults.registry import FAULTS, get_fault

m = tr.load("builtin:amateur", dtype="bfloat16")
fault = get_fault("position-off-by-one")
candidate = candidate_for(fault, m)
with fault.planted(candidate):
    v = tr.verify(tr.Recompute(m), candidate, ["Tom has 3 apples and buys 4 more."])
print(len(FAULTS), v)
assert v.verdict == "different"
```
"""


def page() -> str:
    """Return the whole page."""
    record = json.loads(RECORD.read_text())
    rows = record["rows"]
    faults = [get_fault(name) for name in FAULTS]
    lines = [HEAD, _summary(record), "", _shares(rows), "", "## The faults", ""]
    for fault in faults:
        lines += [_entry(fault)]
    return "\n".join(lines) + "\n"


def _summary(record: dict[str, Any]) -> str:
    found = record["summary"]
    near = found["clean_nearest_to_a_limit"]
    shares = ", ".join(f"{name.split('_of_')[0].replace('_', ' ')} {near[name][name]:.2f}" for name in near)
    weakest = found["weakest_of_both_witnesses"]
    return (
        f"Measured over {len(record['settings']['families'])} families built small with random weights, three "
        f"precisions, three candidates: {found['clean_runs']} clean runs, {len(found['false_alarms'])} false alarms, "
        f"nearest to a limit (1 convicts): {shares}. {found['planted_runs']} planted runs, {len(found['missed'])} "
        f"missed; the ratio convicts {found['convicted_by_the_ratio']}, the sweep {found['convicted_by_the_sweep']}. "
        f"The weakest fault ({weakest['fault']}, {weakest['family']}, {weakest['dtype']}) stands "
        f"{weakest['strongest_of_limit']:.0f} times beyond its limit.\n\n"
        "The table shows the smallest share of each limit over the families that can have the fault, in bfloat16; "
        "above 1 convicts. In float32 every fault is beyond both limits by far. Bold: the ratio alone would miss it."
    )


def _shares(rows: list[dict[str, Any]]) -> str:
    lines = ["| fault | ratio, worst | ratio, mean square | sweep | float32 ratio |", "|---|---|---|---|---|"]
    for name in FAULTS:
        half = [r for r in rows if r["fault"] == name and r["dtype"] == "bfloat16"]
        full = [r for r in rows if r["fault"] == name and r["dtype"] == "float32"]
        if not half and not full:
            continue  # younger than the record
        worst, mean, sweep = (_least(half, key) for key in _KEYS)
        bold = "**" if max(worst, mean) <= 1 else ""
        wide = max(_least(full, key) for key in _KEYS[:2])
        lines.append(f"| {bold}{name}{bold} | {worst:.2g} | {mean:.2g} | {sweep:.2g} | {wide:.2g} |")
    return "\n".join(lines)


_KEYS = ("ratio_max_of_limit", "ratio_rms_of_limit", "sweep_of_limit")


def _least(rows: list[dict[str, Any]], key: str) -> float:
    return min((r[key] for r in rows if r[key] is not None), default=float("nan"))


def _entry(fault: Fault) -> str:
    threads = ", ".join(f"[{t.removeprefix('https://github.com/')}]({t})" for t in fault.thread)
    needs = f" Needs {', '.join(fault.needs)}." if fault.needs else ""
    seen = f" Seen in {threads}." if threads else ""
    return f"- **{fault.name}** ({fault.where}): {fault.summary}.{needs}{seen}"


if __name__ == "__main__":
    PAGE.write_text(page())
