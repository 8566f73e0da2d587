"""`twinrun prune bench`: what a pruned prompt is worth in time, operations and memory, with verdicts beside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinrun.cli.bench import budget_of, threads_set
from twinrun.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    TrustOption,
    moves,
    open_model,
    progress,
    report,
)
from twinrun.cli.lists import ManyLengths
from twinrun.cli.prune_options import (
    EveryOption,
    FirstOption,
    ProtectFirstOption,
    ProtectLastOption,
    ScheduleOption,
    ScorerOption,
)

if TYPE_CHECKING:
    from twinrun.records.pruning import PruningBench

EPILOG = """Examples:

twinrun prune bench builtin:expert --selector random --first 1 --every 1 --lengths 64 128 --new-tokens 16 --repeats 3

twinrun prune bench Qwen/Qwen2.5-7B --scorer scorers --lengths 4096 8192 16384 32768 --keep 0.9 0.8 0.7 --out table2

Exit code 0: done, every verdict passed; 1: a verdict is `different`, or a side failed; 2: bad request."""

LENGTHS, KEEP = [1024, 2048, 4096, 8192, 16384, 32768], [0.9, 0.8, 0.7]

SelectorOption = Annotated[
    str | None,
    typer.Option("--selector", help="what scores tokens without a scorer (default: recency)"),
]
LengthsOption = Annotated[
    list[int] | None, typer.Option("--lengths", help="prompt lengths in tokens: --lengths 1024 4096")
]
KeepOption = Annotated[
    list[float] | None,
    typer.Option("--keep", help="ratio of each stage to the one before: --keep 0.9 0.8 0.7"),
]
PromptsOption = Annotated[str, typer.Option(help="text (Python's language reference), ids (random), or auto")]
KlOption = Annotated[float | None, typer.Option(help="mean KL in nats that pruning may cost (default: 0.1)")]
OutOption = Annotated[
    str | None,
    typer.Option("--out", "-o", help="folder for rows.jsonl, pruning.json, pruning.md, pruning.png"),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="go on with the rows that --out holds")]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("bench", epilog=EPILOG, cls=ManyLengths)
    def bench(
        model: ModelArgument,
        scorer: ScorerOption = None,
        selector: SelectorOption = None,
        lengths: LengthsOption = None,
        keep: KeepOption = None,
        schedule: ScheduleOption = None,
        first: FirstOption = 4,
        every: EveryOption = 3,
        protect_first: ProtectFirstOption = 4,
        protect_last: ProtectLastOption = 0.1,
        new_tokens: Annotated[int, typer.Option(help="tokens that every run is forced to write")] = 128,
        repeats: Annotated[int, typer.Option(help="timed rounds; 10 or more for numbers to publish")] = 10,
        warmups: Annotated[int, typer.Option(help="untimed whole runs of every side before them")] = 1,
        judged: Annotated[int, typer.Option(help="new tokens that a verdict covers, at most")] = 16,
        prompts: PromptsOption = "auto",
        seed: Annotated[int, typer.Option(help="of random ids and of the random selector")] = 0,
        budget_kl: KlOption = None,
        budget_top1: Annotated[float | None, typer.Option(help="share of equal top tokens, at least")] = None,
        out: OutOption = None,
        resume: ResumeOption = False,
        threads: Annotated[int | None, typer.Option(help="threads of torch (default: torch's own)")] = None,
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        trust_remote_code: TrustOption = False,
        as_json: JsonOption = False,
    ) -> int:
        """Time pruned prompts against whole ones (the paper's Table 2): prefill, decode, FLOPs, memory, cache."""
        from twinrun.bench.prompt_pruning import BUDGET_KL
        from twinrun.bench.settings import BenchSettings

        budget = budget_of(budget_kl, budget_top1) or {"kl": BUDGET_KL}
        settings: dict[str, Any] = {
            "lengths": lengths or LENGTHS,
            "new_tokens": new_tokens,
            "repeats": repeats,
            "warmups": warmups,
            "judged_positions": judged,
            "prompts": prompts,
            "seed": seed,
            "budget": budget,
        }
        BenchSettings.of(settings)
        with threads_set(threads):
            sides = _sides(
                open_model(model, dtype, device, trust_remote_code=trust_remote_code),
                (scorer, selector),
                (keep, schedule, first, every),
                {"protect_first": protect_first, "protect_last": protect_last, "seed": seed},
            )
            found = _run(sides, out, resume, settings)
        _report(found, out, as_json)
        return 0 if found.passed else 1


def _sides(
    model: Any,
    who: tuple[str | None, str | None],
    how: tuple[list[float] | None, str | None, int, int],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The whole prompt first, then one side a ratio."""
    from twinrun.errors import ConfigError
    from twinrun.prune.scorer import shipped_scorer
    from twinrun.quality.sides import (
        EVERY,
        FIRST,
        LEARNED,
        NONE,
        ORACLE,
        pruned_side,
        schedule_of,
        stages_json,
    )
    from twinrun.runners.kvcache import KVCache

    (scorer, selector), (keep, text, first, every) = who, how
    if scorer is not None and selector not in (None, LEARNED):
        raise ConfigError(f"--scorer and --selector {selector} both say who chooses; give one of them")
    if selector == ORACLE:
        raise ConfigError(
            "the oracle needs the right answer, which a timed prompt has not; `twinrun prune eval` takes it"
        )
    if selector == LEARNED and scorer is None:
        scorer = shipped_scorer(model)
    chosen = LEARNED if scorer is not None else selector or "recency"
    is_own = scorer is not None and not keep and (first, every) == (FIRST, EVERY)
    ratios: list[float | None] = [None] if text is not None or is_own else [*(keep or KEEP)]
    if text is not None and keep:
        raise ConfigError("--schedule and --keep both say how much is kept; give one of them")
    sides: dict[str, Any] = {NONE: KVCache(model)}
    for ratio in ratios:
        schedule = schedule_of(model, ratio, text, first, every, scorer)
        spelled = ",".join(f"{layer}:{share:g}" for layer, share in stages_json(schedule).items())
        name = f"{chosen} {spelled}" if ratio is None else f"{chosen} {ratio:g}"
        if name in sides:
            raise ConfigError(f"--keep {ratio:g} is given twice; give each ratio once")
        sides[name] = pruned_side(model, chosen, schedule, scorer, **settings)
    return sides


def _run(sides: dict[str, Any], out: str | None, resume: bool, settings: dict[str, Any]) -> PruningBench:
    from twinrun.bench.prompt_pruning import prune_bench

    with progress(None, "prune bench") as (bar, task):
        return prune_bench(
            sides,
            out=out,
            resume=resume,
            on_progress=moves(bar, task),
            **settings,
        )


def _report(found: PruningBench, out: str | None, as_json: bool) -> None:
    from twinrun.report.pruning_plots import pruning_curves
    from twinrun.report.pruning_text import pruning_text

    record = found.to_json()
    report(
        record,
        pruning_text(record, found.sweep.to_json()),
        as_json,
        picture=None if out is None else (Path(out) / "pruning.png", lambda: pruning_curves(record)),
        beside="rows.jsonl, bench.json, pruning.json, pruning.md",
    )
