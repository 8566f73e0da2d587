"""The fault suite: plant every fault, see whether it is caught and named, and run the same grid clean beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal

from twinrun.errors import ConfigError
from twinrun.faults.canvas_runners import CANVAS_RUNNERS
from twinrun.faults.fault import Fault, trusted_side
from twinrun.faults.judged import Judged, judge_fault
from twinrun.faults.pruning import PRUNED, cannot_be_pruned
from twinrun.faults.registry import FAULTS, get_fault
from twinrun.faults.subjects import JUDGES, clean_subject
from twinrun.models import zoo
from twinrun.models.model import Model
from twinrun.records.env import environment
from twinrun.runners.registry import build_runner
from twinrun.verify.blame import blame
from twinrun.verify.probes import probes
from twinrun.verify.verify import verify

SCHEMA = "twinrun.faults/1"
DTYPES = ("float32", "bfloat16")
PROBE_TOKENS = 41
ORDER = (
    "llama",
    "gpt2",
    "mistral",
    "gemma2",
    "phi",
    "qwen3",
    "qwen3moe",
    "gemma2-cap",
    "granite",
    "llama-linear",
)
"""Families are tried in this order for each fault, then all others."""
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """The same runner on the same family without a fault: `verdict` must pass and `named` must be "none"."""

    family: str
    dtype: str
    runner: str
    verdict: str
    named: str

    @property
    def passes(self) -> bool:
        """Whether neither the verdict nor blame raised an alarm."""
        return self.verdict != "different" and self.named == "none"


@dataclass(slots=True, kw_only=True)
class Suite:
    """What the suite found."""

    faults: list[Judged] = field(default_factory=list)
    clean: list[Clean] = field(default_factory=list)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Suite:
        """Read the rows that `to_json` wrote.

        Raises:
            ConfigError: it is another kind of record.
        """
        if record.get("schema") != SCHEMA:
            raise ConfigError(f"the record is {record.get('schema')!r}, not {SCHEMA!r}; choose another --out")
        names = [f.name for f in fields(Judged)]
        return cls(
            faults=[Judged(**{name: row[name] for name in names}) for row in record["faults"]],
            clean=[Clean(**row) for row in record["clean"]],
        )

    @property
    def missed(self) -> list[Judged]:
        """Faults that were not caught."""
        return [row for row in self.faults if not row.caught]

    @property
    def misnamed(self) -> list[Judged]:
        """Faults that were caught and whose place was not named."""
        return [row for row in self.faults if row.caught and not row.right]

    @property
    def alarms(self) -> list[Clean]:
        """False alarms."""
        return [row for row in self.clean if not row.passes]

    @property
    def passed(self) -> bool:
        """Whether everything was caught and nothing was invented."""
        return not self.missed and not self.alarms

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return {
            "schema": SCHEMA,
            "faults": [{**row.to_json(), **_about(row.fault)} for row in self.faults],
            "clean": [asdict(row) for row in self.clean],
            "summary": {
                "kinds": len({row.fault for row in self.faults}),
                "planted": len(self.faults),
                "caught": len(self.faults) - len(self.missed),
                "named": sum(row.right for row in self.faults),
                "clean": len(self.clean),
                "false_alarms": len(self.alarms),
            },
            "passed": self.passed,
            "env": environment(),
        }


def run_suite(
    names: Sequence[str] = tuple(FAULTS),
    dtypes: Sequence[str] = DTYPES,
    *,
    families: int = 1,
    clean: Literal["none", "same", "all"] = "same",
    found: Suite | None = None,
    on_row: Callable[[Suite], object] | None = None,
    on_progress: Progress | None = None,
) -> Suite:
    """Judge the verifier and blame by planted faults on small random models.

    Args:
        names: faults of the registry.
        dtypes: precisions.
        families: on how many families each fault is planted, where so many can have it.
        clean: run without a fault: "same", every (family, precision, runner) of the faults; "all", also every family
            with three runners; "none".
        found: rows of an earlier run that was cut off; they are not run again.
        on_row: called after every new row.
        on_progress: called with (done, total, what).

    Returns:
        A `Suite`; `passed` is True when all were caught and no clean run raised an alarm.

    Raises:
        ConfigError: an unknown fault or precision.

    Cost: 2 to 5 s a fault and precision on one core.
    """
    unknown = [d for d in dtypes if d not in zoo.DTYPES]
    if unknown:
        raise ConfigError(f"unknown precision {unknown[0]!r}; choose from {', '.join(zoo.DTYPES)}")
    if clean not in ("none", "same", "all"):
        raise ConfigError(f"clean must be 'none', 'same' or 'all', got {clean!r}")
    grid = [
        (f, family, d)
        for n in names
        for f in [get_fault(n)]
        for family in _families(f, families)
        for d in dtypes
    ]
    pairs = _clean_grid(grid, dtypes, clean)
    found, total = found or Suite(), len(grid) + len(pairs)
    keep = on_row or (lambda _suite: None)
    for number, (fault, family, dtype) in enumerate(grid):
        if on_progress is not None:
            on_progress(number, total, f"{fault.name}, {family}, {dtype}")
        if not any((row.fault, row.family, row.dtype) == (fault.name, family, dtype) for row in found.faults):
            found.faults.append(_judged(fault, family, dtype))
            keep(found)
    for number, (family, dtype, runner) in enumerate(pairs, len(grid)):
        if on_progress is not None:
            on_progress(number, total, f"clean, {runner}, {family}, {dtype}")
        if not any((row.family, row.dtype, row.runner) == (family, dtype, runner) for row in found.clean):
            found.clean.append(judge_clean(family, dtype, runner))
            keep(found)
    return found


def _judged(fault: Fault, family: str, dtype: str) -> Judged:
    """Plant one fault in one family: verdict and blame judge it, on a canvas the trace, else a check of its own."""
    model = _model(family, dtype)
    if fault.way in JUDGES:
        return JUDGES[fault.way](fault, model, family=family)
    cases = probes(model, max_tokens=PROBE_TOKENS)
    return judge_fault(fault, trusted_side(fault.runners[0], model), model, cases, family=family)


def _clean_grid(
    grid: list[tuple[Fault, str, str]], dtypes: Sequence[str], which: str
) -> list[tuple[str, str, str]]:
    """(family, precision, runner) to be run without a fault; families that no cached run can follow are left out."""
    same = sorted({(family, d, fault.runners[0]) for fault, family, d in grid})
    if which == "all":
        whole = ((f, d, r) for f in zoo.FAMILIES for d in dtypes for r in zoo.CANDIDATES)
        canvases = [(f, d, r) for f in zoo.MASKED for d in dtypes for r in CANVAS_RUNNERS]
        pruned = [
            (f, d, PRUNED)
            for f in zoo.FAMILIES
            if cannot_be_pruned(_model(f, dtypes[0])) is None
            for d in dtypes
            if (f, "kv-cache:dynamic", d) not in zoo.KNOWN
        ]
        known = [(f, d, r) for f, d, r in whole if (f, r, d) not in zoo.KNOWN]
        return list(dict.fromkeys([*known, *pruned, *canvases, *same]))
    return same if which == "same" else []


def judge_clean(family: str, dtype: str, runner: str) -> Clean:
    """Verdict and blame of a runner without a fault."""
    model = _model(family, dtype)
    told = clean_subject(model, runner)
    if told is not None:
        return Clean(family=family, dtype=dtype, runner=runner, verdict=told[0], named=told[1])
    sides = trusted_side(runner, model), build_runner(runner, model)
    cases = probes(model, max_tokens=PROBE_TOKENS)
    verdict = verify(*sides, cases, explain=False)
    return Clean(
        family=family, dtype=dtype, runner=runner, verdict=verdict.verdict, named=blame(*sides, cases).kind
    )


def _families(fault: Fault, count: int) -> Iterator[str]:
    """The first `count` families that can have a fault."""
    others = [family for family in zoo.FAMILIES if family not in ORDER]
    for family in zoo.MASKED if fault.way == "diffusion" else (*ORDER, *others):
        runs = (family, fault.runners[0], "float32") not in zoo.KNOWN
        if count and runs and fault.applies(_model(family, "float32")) is None:
            count -= 1
            yield family


@cache
def _model(family: str, dtype: str) -> Model:
    return zoo.make(family, dtype)


def _about(name: str) -> dict[str, Any]:
    fault = get_fault(name)
    return {
        "site": fault.site.kind,
        "where": fault.where,
        "needs": list(fault.needs),
        "thread": list(fault.thread),
    }
