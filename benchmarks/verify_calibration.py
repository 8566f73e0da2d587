"""How far the two witnesses keep clean runs and planted faults apart: a table and a record.

python benchmarks/verify_calibration.py       about six minutes on one core
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the small families are those of the tests

import twinrun as tr
from tests.support import zoo
from twinrun.bench.remembered import Remembered
from twinrun.faults.fault import candidate_for
from twinrun.faults.registry import FAULTS
from twinrun.records.env import environment
from twinrun.verify import witness

RESULT = Path(__file__).parent / "results" / "verify_calibration.json"
CONSTANTS = (
    "RATIO_MAX",
    "RATIO_RMS",
    "FEW_POSITIONS",
    "FLOOR_ULPS_MAX",
    "FLOOR_ULPS_RMS",
    "SWEEP_FACTOR",
    "SWEEP_FLOOR_ULPS",
)
CLEAN_FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3moe", "mixtral", "gemma2", "gemma3", "phi", "gpt2",
    "gptj", "bloom", "falcon", "olmo2", "granite", "cohere2", "stablelm", "nemotron", "gptoss",
)  # fmt: skip
FAULT_FAMILIES = ("llama", "gemma2", "phi", "cohere2")


def row_of(verdict: tr.Verdict, **what: Any) -> dict[str, Any]:
    """One line of the record. `*_of_limit` are shares of what the rule allows: above 1 convicts."""
    ratio, sweep = verdict.ratio, verdict.sweep
    parts = {
        "ratio_max_of_limit": None if ratio is None or ratio.max is None else ratio.max / ratio.allowed_max,
        "ratio_rms_of_limit": None if ratio is None or ratio.rms is None else ratio.rms / ratio.allowed_rms,
        "sweep_of_limit": None if sweep.gap is None or not sweep.allowed else sweep.gap / sweep.allowed,
    }
    return {
        **what,
        "verdict": verdict.verdict,
        "ratio_max": verdict.ratio_max,
        "ratio_rms": verdict.ratio_rms,
        "sweep_gap_nats": sweep.gap,
        "sweep_allowed_nats": sweep.allowed,
        **parts,
        "strongest_of_limit": max((v for v in parts.values() if v is not None), default=None),
        "findings": len(verdict.findings),
        "positions": verdict.positions,
        "set_aside": 0 if ratio is None else ratio.set_aside,
    }


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Clean runs over families, precisions, seeds and runners; on the first seed also the faults."""
    for seed in range(args.seeds):
        for family in args.families:
            for dtype in args.dtypes:
                model = zoo.make(family, dtype, seed)
                reference = Remembered(tr.Recompute(model))
                probes = tr.probes(model, max_tokens=args.max_tokens)
                what = {"family": family, "dtype": dtype, "seed": seed}
                for name in zoo.CANDIDATES:
                    if (family, name, dtype) not in zoo.KNOWN:
                        verdict = tr.verify(reference, zoo.runner(name, model), probes)
                        yield row_of(verdict, fault=None, runner=name, **what)
                if seed == 0 and family in args.fault_families:
                    yield from measure_faults(reference, probes, what)


def measure_faults(
    reference: Remembered, probes: list[tr.Case], what: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Every fault that the reference's model can have, in the runner that shows it best."""
    for name, factory in FAULTS.items():
        fault = factory()
        if fault.applies(reference.model) is None:
            candidate = candidate_for(fault, reference.model)
            with fault.planted(candidate):
                verdict = tr.verify(reference, candidate, probes)
            yield row_of(verdict, fault=name, runner=candidate.name, **what)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The margins: how near the worst clean run comes to a limit, how near the weakest fault."""
    clean = [r for r in rows if r["fault"] is None]
    faults = [r for r in rows if r["fault"] is not None]
    numbered = [r for r in faults if not r["findings"]]  # a finding (NaN, say) convicts without any number
    worst = {key: most(clean, key) for key in ("ratio_max_of_limit", "ratio_rms_of_limit", "sweep_of_limit")}
    by_ratio = [r for r in faults if max(r["ratio_max_of_limit"] or 0, r["ratio_rms_of_limit"] or 0) > 1]
    by_sweep = [r for r in faults if (r["sweep_of_limit"] or 0) > 1]
    return {
        "clean_runs": len(clean),
        "false_alarms": [r for r in clean if r["verdict"] == "different"],
        "clean_nearest_to_a_limit": worst,
        "planted_runs": len(faults),
        "missed": [r for r in faults if r["verdict"] != "different"],
        "convicted_by_the_ratio": len(by_ratio),
        "convicted_by_the_sweep": len(by_sweep),
        "weakest_sweep_of_a_fault": least(numbered, "sweep_of_limit"),
        "weakest_of_both_witnesses": least(numbered, "strongest_of_limit"),
    }


def short(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {key: row[key], **{name: row[name] for name in ("fault", "family", "dtype", "seed", "runner")}}


def most(rows: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    known = [r for r in rows if r[key] is not None]
    return short(max(known, key=lambda r: float(r[key])), key) if known else None


def least(rows: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    known = [r for r in rows if r[key] is not None]
    return short(min(known, key=lambda r: float(r[key])), key) if known else None


def table(rows: list[dict[str, Any]]) -> None:
    """Worst clean run of each precision, weakest case of each fault; numbers are shares of the limit."""
    keys = ("ratio_max_of_limit", "ratio_rms_of_limit", "sweep_of_limit")
    print(f"{'run':38s} {'dtype':9s} {'ratio max':>10s} {'ratio rms':>10s} {'sweep':>10s}  verdicts")
    names: list[str | None] = [None, *FAULTS]
    for name in names:
        for dtype in dict.fromkeys(r["dtype"] for r in rows):
            group = [r for r in rows if r["fault"] == name and r["dtype"] == dtype]
            if group:
                pick = max if name is None else min
                shares = [pick(r[key] if r[key] is not None else 0.0 for r in group) for key in keys]
                cells = " ".join(f"{share:10.3g}" for share in shares)
                words = ", ".join(sorted({r["verdict"] for r in group}))
                label = "clean, largest" if name is None else f"{name}, smallest"
                print(f"{label:38s} {dtype:9s} {cells}  {words} ({len(group)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=CLEAN_FAMILIES, choices=zoo.FAMILIES)
    parser.add_argument("--fault-families", nargs="*", default=FAULT_FAMILIES, choices=zoo.FAMILIES)
    parser.add_argument("--dtypes", nargs="+", default=zoo.DTYPES, choices=zoo.DTYPES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=41)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, rows = time.perf_counter(), []
    for row in measure(args):
        rows.append(row)
    record = {
        "what": "shares of the limits of both witnesses, clean runs and planted faults",
        "constants": {name: getattr(witness, name) for name in CONSTANTS},
        "settings": {"seeds": args.seeds, "max_tokens": args.max_tokens, "families": list(args.families)},
        "environment": environment(),
        "seconds": round(time.perf_counter() - began, 1),
        "summary": summary(rows),
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", "utf-8")
    table(rows)
    print(json.dumps(record["summary"], indent=1))


if __name__ == "__main__":
    main()
