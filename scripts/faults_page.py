"""Write docs/faults.md from the registry of faults, the record of `twinrun faults`, and the calibration of the rule.

twinrun faults --out benchmarks/results/faults.json
python scripts/faults_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twinrun.faults.fault import Fault
from twinrun.faults.registry import FAULTS, get_fault

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "faults.md"

HEAD = """# Planted faults

`twinrun.faults` breaks a correct runner the way a real bug did, so that verdict and blame are judged too. Each fault is
a context manager; leaving it restores every bit. This page is written by `scripts/faults_page.py`.

```bash
twinrun faults --name value-scale-off --dtype bfloat16
```

```python
import twinrun as tr
from twinrun.faults.fault import candidate_for
from twinrun.faults.registry import FAULTS, get_fault

m = tr.load("builtin:amateur", dtype="bfloat16")
fault = get_fault("position-off-by-one")
candidate = candidate_for(fault, m)
with fault.planted(candidate):
    v = tr.verify(tr.Recompute(m), candidate, ["Tom has 3 apples and buys 4 more."])
print(len(FAULTS), v.blame)
assert v.culprit.kind == "positions"
```

Faults of diffusion decoding (probe `trace`) are judged by the [trace](trace.md) of a plain run against one with the
fault: it must find what is wrong in itself, or where the runs part, and name the right kind. Clean runs find nothing.

Faults of a [training of scorers](prune-training.md) and of [training on contrast's steps](contrast-training.md) (probe
`training`) are judged by the check that ends a training, or does not let it begin; faults of
[sampling](contrast-sampling.md) (probe `sampling`) by a run that is stopped and continued, beside a clean whole one.
"""


def page() -> str:
    """Return the whole page."""
    record = json.loads((RESULTS / "faults.json").read_text())
    calibration = json.loads((RESULTS / "verify_calibration.json").read_text())
    lines = [
        HEAD,
        _summary(record),
        "",
        _margins(calibration),
        "",
        *_table(record["faults"]),
        "",
        "## The faults",
        "",
    ]
    lines += [_entry(get_fault(name)) for name in FAULTS]
    return "\n".join(lines) + "\n"


def _summary(record: dict[str, Any]) -> str:
    found = record["summary"]
    families = len({row["family"] for row in record["clean"]})
    wrong = [
        f"{row['fault']} ({row['dtype']}: {row['named']})" for row in record["faults"] if not row["right"]
    ]
    misnamed = f" Not named: {', '.join(wrong)}." if wrong else ""
    return (
        f"{found['kinds']} kinds of fault, each in float32 and bfloat16 on a small random model that can have it: "
        f"{found['caught']} of {found['planted']} caught, {found['named']} of {found['planted']} named at the right "
        f"place.{misnamed} The same {families} families and runners without a fault: {found['clean']} runs, "
        f"{found['false_alarms']} false alarms of verdict, blame, trace or check. "
        "`twinrun faults --clean all` makes this record again."
    )


def _margins(calibration: dict[str, Any]) -> str:
    found = calibration["summary"]
    near = found["clean_nearest_to_a_limit"]
    shares = ", ".join(f"{name.split('_of_')[0].replace('_', ' ')} {near[name][name]:.2f}" for name in near)
    return (
        f"How near clean runs come to a limit (1 convicts), over {len(calibration['settings']['families'])} families "
        f"in three precisions with three candidates ({found['clean_runs']} runs, "
        f"{len(found['false_alarms'])} alarms): {shares}.\n\n"
        "The table gives the share of each limit that a fault reaches (ratio and sweep; above 1 convicts, `-` where a "
        "finding convicted without numbers). Bold: in bfloat16 the ratio alone would miss it."
    )


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| fault | float32: ratio, sweep | bfloat16: ratio, sweep | probe | named as | needs |",
        "|---|---|---|---|---|---|",
    ]
    for name in FAULTS:
        own = {row["dtype"]: row for row in rows if row["fault"] == name}
        full, half = own.get("float32"), own.get("bfloat16")
        row = half or full
        if row is None:
            continue
        is_weak = (
            half is not None
            and half["by_ratio"] is not None
            and half["by_ratio"] <= 1
            and not half["finding"]
        )
        bold = "**" if is_weak else ""
        named = row["named"] if row["right"] else f"{row['named']} (wrong)"
        cells = (
            f"{bold}{name}{bold}",
            _shares(full),
            _shares(half),
            row["probe"],
            named,
            ", ".join(row["needs"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _shares(row: dict[str, Any] | None) -> str:
    if row is None:
        return "does not exist"
    return ", ".join("-" if row[key] is None else f"{row[key]:.2g}" for key in ("by_ratio", "by_sweep"))


def _entry(fault: Fault) -> str:
    threads = ", ".join(f"[{t.removeprefix('https://github.com/')}]({t})" for t in fault.thread)
    seen = f" Seen in {threads}." if threads else ""
    return f"- **{fault.name}** ({fault.where}): {fault.summary}.{seen}"


if __name__ == "__main__":
    PAGE.write_text(page())
