"""`twinrun prune eval`: what pruning costs in answers, selector by selector, on the same items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinrun.cli.common import (
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
    from twinrun.records.quality import Quality

EPILOG = """Examples:

twinrun prune eval builtin:expert --task niah_single --lengths 256 --items 2 --selector random --schedule 1:0.5

twinrun prune eval builtin:long --selector learned --task niah_single --lengths 512 --digits 5 --begin '<|endoftext|>'

twinrun prune eval Qwen/Qwen2.5-7B-Instruct --scorer scorers --task ruler --lengths 4096 8192 --out quality

twinrun prune eval ./model --task longbench:multi_news --data LongBench/data --lengths 3500 --keep 0.8

accelerate launch --num_processes 2 -m twinrun prune eval ./model --task ruler --lengths 4096 --out quality

Exit code 0: done; 1: a side failed for another reason than room; 2: bad request."""

SELECTORS = ("random", "recency", "attention")
"""Compared where none are asked for; `learned` first where there are scorers."""

SelectorsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--selector",
        help="learned (--scorer, or those of a built-in), random, recency, norm, attention, oracle, press:NAME; repeat",
    ),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option("--task", help="ruler, longbench, or one of their tasks; repeat (default: ruler)"),
]
LengthsOption = Annotated[
    list[int] | None, typer.Option("--lengths", help="tokens of an item: --lengths 1024 2048")
]
ModeOption = Annotated[
    list[str] | None,
    typer.Option("--mode", help="end: the question is in the pruned prompt; unseen: it follows; repeat"),
]
KeepOption = Annotated[
    float | None, typer.Option("--keep", help="ratio of each stage to the one before (default: 0.9)")
]
DataOption = Annotated[
    str | None, typer.Option(help="LongBench's data: folder, data.zip, one .jsonl file, or hub")
]
OutOption = Annotated[
    str | None,
    typer.Option("--out", "-o", help="folder for answers.N.jsonl, quality.json, quality.md, quality.png"),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="go on with the answers that --out holds")]
StartOption = Annotated[
    str, typer.Option("--begin", "--start", help="text before every prompt: a start token, say")
]
AnswerOption = Annotated[int | None, typer.Option(help="tokens an answer may have (default: the task's own)")]
DigitsOption = Annotated[int | None, typer.Option(help="digits of a number to find (default: RULER's)")]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("eval", epilog=EPILOG, cls=ManyLengths)
    def evaluate(
        model: ModelArgument,
        scorer: ScorerOption = None,
        selector: SelectorsOption = None,
        task: TaskOption = None,
        lengths: LengthsOption = None,
        mode: ModeOption = None,
        items: Annotated[int, typer.Option(help="items a task and length")] = 50,
        keep: KeepOption = None,
        schedule: ScheduleOption = None,
        first: FirstOption = 4,
        every: EveryOption = 3,
        protect_first: ProtectFirstOption = 4,
        protect_last: ProtectLastOption = 0.1,
        batch: Annotated[int, typer.Option(help="items run together, padded on the left")] = 1,
        digits: DigitsOption = None,
        answer_tokens: AnswerOption = None,
        start: StartOption = "",
        chat: Annotated[str, typer.Option(help="LongBench's chat wrap: auto, on or off")] = "auto",
        data: DataOption = None,
        seed: Annotated[int, typer.Option(help="of items, intervals and the random selector")] = 0,
        out: OutOption = None,
        resume: ResumeOption = False,
        dtype: DtypeOption = "auto",
        device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda")] = "auto",
        trust_remote_code: TrustOption = False,
        as_json: JsonOption = False,
    ) -> int:
        """Ask every selector the same questions, the whole prompt among them, and compare the answers in pairs."""
        from twinrun.quality.settings import MODES, EvalSettings
        from twinrun.quality.team import Team

        settings = EvalSettings.of(
            {
                "tasks": task or ["ruler"],
                "lengths": lengths or [512, 1024],
                "modes": mode or MODES,
                "items": items,
                "batch": batch,
                "seed": seed,
                "digits": digits,
                "answer_tokens": answer_tokens,
                "start": start,
                "chat": chat,
                "data": data,
            }
        )
        team = Team()
        place = team.device if team.device is not None and device == "auto" else device
        sides, labels = _sides(
            open_model(model, dtype, place, trust_remote_code=trust_remote_code),
            (scorer, selector),
            (keep, schedule, first, every),
            {"protect_first": protect_first, "protect_last": protect_last, "seed": seed},
        )
        found = _run(sides, labels, settings, out, resume, shown=team.is_first)
        if team.is_first:
            _report(found, out, as_json)
        return 0 if found.passed else 1


def _sides(
    model: Any,
    who: tuple[str | None, list[str] | None],
    how: tuple[float | None, str | None, int, int],
    settings: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The whole prompt first, then a side a selector; and what a request says of each."""
    from twinrun.errors import ConfigError
    from twinrun.prune.scorer import shipped_scorer
    from twinrun.quality.sides import LEARNED, NONE, pruned_side, schedule_of, stages_json
    from twinrun.runners.kvcache import KVCache

    scorer, given = who
    names = given or [*([LEARNED] if scorer is not None else []), *SELECTORS]
    if scorer is not None and LEARNED not in names:
        raise ConfigError(
            "--scorer is given and no --selector learned uses it; add that, or leave out --scorer"
        )
    if scorer is None and LEARNED in names:
        scorer = shipped_scorer(model)
    schedule = schedule_of(model, *how, scorer)
    sides: dict[str, Any] = {NONE: KVCache(model)}
    labels: dict[str, dict[str, Any]] = {NONE: {}}
    for name in names:
        if name == NONE:
            continue
        if name in sides:
            raise ConfigError(f"--selector {name} is given twice; give it once")
        own = scorer if name == LEARNED else None
        sides[name] = pruned_side(model, name, schedule, own, **settings)
        labels[name] = {"schedule": stages_json(schedule), "scorer": own, **settings}
    return sides, labels


def _run(
    sides: dict[str, Any],
    labels: dict[str, dict[str, Any]],
    settings: Any,
    out: str | None,
    resume: bool,
    *,
    shown: bool,
) -> Quality:
    from twinrun.quality.evaluate import evaluate

    with progress(None, "prune eval") as (bar, task):
        tell = moves(bar, task) if shown else None
        return evaluate(sides, settings, out=out, resume=resume, labels=labels, on_progress=tell)


def _report(found: Quality, out: str | None, as_json: bool) -> None:
    from twinrun.report.quality_plots import quality_bars
    from twinrun.report.quality_text import quality_text

    record = found.to_json()
    report(
        record,
        quality_text(record),
        as_json,
        picture=None if out is None else (Path(out) / "quality.png", lambda: quality_bars(record)),
        beside="answers.*.jsonl, quality.json, quality.md",
    )
