"""`twinrun demo`: what twinrun does, on one small model, in about a minute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinrun.cli.common import JsonOption, console, emit, open_model, progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from twinrun.cli.demo_text import Plan
    from twinrun.models.model import Model

EXPERT, AMATEUR = "builtin:expert", "builtin:amateur"
EPILOG = """Examples:

twinrun demo

twinrun demo --quick --out /tmp/demo

twinrun demo --model ./my-model --amateur ./my-smaller-model --json

Exit code 0: every fast path passed and every planted fault was caught; 1: not so."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("demo", epilog=EPILOG)
    def demo(
        model: Annotated[str, typer.Option(help="builtin:NAME, a checkpoint folder, or a hub name")] = EXPERT,
        amateur: Annotated[
            str | None, typer.Option(help=f"a weaker model with the same tokenizer ({AMATEUR} for {EXPERT})")
        ] = None,
        out: Annotated[Path, typer.Option(help="folder for the page, plots and records")] = Path(
            "twinrun-out/demo"
        ),
        problems: Annotated[int, typer.Option(min=1, max=100, help="held-out problems to answer")] = 6,
        quick: Annotated[
            bool, typer.Option("--quick", help="two problems, a short text, two timed rounds")
        ] = False,
        as_json: JsonOption = False,
    ) -> int:
        """Run a model several ways, say what the speed cost, and catch a planted bug. Writes a page."""
        from twinrun.cli.demo_text import Plan

        weaker = amateur or (AMATEUR if model == EXPERT else None)
        plan = Plan(problems=min(problems, 2) if quick else problems, quick=quick)
        record = run(model, weaker, plan, out, console(as_json))
        emit(record, as_json)
        return 0 if record["passed"] else 1


def run(name: str, weaker: str | None, plan: Plan, out: Path, human: Console) -> dict[str, Any]:
    """Run the six steps, print and write each, and return the record."""
    import time
    from functools import partial

    from twinrun.bench.remembered import Remembered
    from twinrun.cli import demo_show as show
    from twinrun.cli import demo_steps as steps
    from twinrun.cli import demo_twins
    from twinrun.cli.demo_diffusion import filled
    from twinrun.cli.demo_prune import pruned
    from twinrun.cli.demo_text import answer_problems, choose_text, pace
    from twinrun.records.write import write_text
    from twinrun.runners.recompute import Recompute

    began = time.perf_counter()
    write_text(
        out / ".gitignore", "*\n"
    )  # the folder can be written to, which is better known now than in a minute
    expert, small = _load(name, weaker)
    with progress(None, "answering held-out problems"):
        plan = plan.at_pace(pace(expert), needs_all=small is not None)
        answers = answer_problems(expert, plan)
        text = choose_text(expert, answers, plan)
    show.begin(human, expert, text)
    twins, half = [], open_model(name, "bfloat16")
    for number, model in enumerate((expert, half), 1):
        reference = Remembered(Recompute(model))
        with progress(demo_twins.STAGES, "fast paths") as (bar, task):
            twins.append(demo_twins.twins(model, reference, text, plan, partial(_tick, bar, task)))
        show.twins(human, twins[-1], number)
    with progress(None, "contrasting expert and amateur"):
        contrast = steps.contrasted(expert, small, answers, plan)
    show.contrasted(human, contrast)
    with progress(2, "planting faults") as (bar, task):
        faults = steps.faults(half, reference, text, partial(_tick, bar, task))
    show.faults(human, faults)
    more = {"diffusion": filled()}
    show.filled(human, more["diffusion"])
    more["prune"] = pruned()
    show.pruned(human, more["prune"])
    record = steps.record(expert, small, text, twins, contrast, faults, more)
    record["seconds"] = time.perf_counter() - began
    show.end(human, record, show.write(record, out))
    return record


def _load(name: str, weaker: str | None) -> tuple[Model, Model | None]:
    """Load expert and amateur in float32; two that read tokens differently are refused at once."""
    with progress(None, "loading"):
        expert = open_model(name, "float32")
        if weaker is None:
            return expert, None
        from twinrun.models.tokenizers import check_same_tokens

        small = open_model(weaker, "float32")
        check_same_tokens(expert, small)
        return expert, small


def _tick(bar: Progress, task: TaskID, what: str) -> None:
    """One stage more, and what it is."""
    bar.update(task, advance=1, description=what)
