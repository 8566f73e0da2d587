"""`twinrun trace`: record two runs step by step and say where they part; `twinrun trace show` reads a record back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from twinrun.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    TrustOption,
    console,
    emit,
    moves,
    open_model,
    progress,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from twinrun.faults.fault import Fault
    from twinrun.trace.canvas_trace import CanvasTrace
    from twinrun.trace.record import Trace

EPILOG = """Examples:

twinrun trace builtin:expert --prompt "Tom has 3 apples." --out /tmp/trace

twinrun trace builtin:expert -r recompute -c single-pass --forced --prompt "Tom has 3 apples." --out /tmp/forced

twinrun trace builtin:diffusion -r diffusion -c diffusion:dual+skip --prompt "Tom has 3 apples." --out /tmp/canvas

twinrun trace show /tmp/trace

Exit code 0: the runs agree, or part at a tie; 1: they part for another reason."""


class _RunUnlessNamed(TyperGroup):
    """`trace MODEL ...` runs; `trace show DIR` is the other command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front of what is no command."""
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return list(super().parse_args(ctx, args))


def register(app: typer.Typer) -> None:
    """Add the command."""
    group = typer.Typer(
        cls=_RunUnlessNamed,
        help="Record two runs step by step and say where they part: `trace MODEL ...`, or `trace show DIR`.",
        no_args_is_help=True,
        epilog=EPILOG,
    )
    _add_run(group)
    _add_show(group)
    app.add_typer(group, name="trace")


def _add_run(group: typer.Typer) -> None:
    @group.command("run", epilog=EPILOG)
    def run(
        model: ModelArgument,
        reference: Annotated[str, typer.Option("--reference", "-r", help="trusted runner")] = "recompute",
        candidate: Annotated[
            str, typer.Option("--candidate", "-c", help="runner on trial")
        ] = "kv-cache:dynamic",
        candidate_model: Annotated[
            str | None, typer.Option(help="another checkpoint for the candidate")
        ] = None,
        prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="the text to start from")] = None,
        chat: Annotated[bool, typer.Option("--chat", help="put the prompt into the chat template")] = False,
        max_new_tokens: Annotated[int, typer.Option(help="how far to run")] = 64,
        forced: Annotated[
            bool, typer.Option("--forced", help="both sides score the reference's continuation")
        ] = False,
        level: Annotated[
            str, typer.Option(help="steps, fingerprints or states (of hidden states)")
        ] = "fingerprints",
        by: Annotated[
            str, typer.Option(help="how fine to look for the culprit: module, layer or step")
        ] = "module",
        plant: Annotated[
            str | None, typer.Option(help="plant a fault in the candidate, to see it found")
        ] = None,
        out: Annotated[
            str | None, typer.Option("--out", "-o", help="an empty folder for trace and page")
        ] = None,
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        trust_remote_code: TrustOption = False,
        as_json: JsonOption = False,
    ) -> int:
        """Run both sides from one prompt, record every step, and name the first step, layer and module that differ."""
        from twinrun.errors import ConfigError

        if not (prompt or "").strip():
            raise ConfigError("no prompt; give --prompt TEXT")
        trusted = open_model(model, dtype, device, trust_remote_code=trust_remote_code)
        tried = trusted
        if candidate_model is not None:
            tried = open_model(candidate_model, dtype, device, trust_remote_code=trust_remote_code)

        from contextlib import nullcontext

        from twinrun.faults.fault import broken_copy, candidate_for
        from twinrun.runners.registry import build_scorer
        from twinrun.trace.trace import trace

        fault = None if plant is None else _traceable(plant)
        side = build_scorer(candidate, tried)
        if fault is not None and fault.way == "diffusion":
            side = build_scorer(candidate, broken_copy(tried))
        elif fault is not None:
            side = candidate_for(fault, tried, side.name if side.name in fault.runners else None)
        start: Any = trusted.chat(prompt or "") if chat else prompt
        with (
            progress(None, "tracing") as (bar, task),
            nullcontext() if fault is None else fault.planted(side),
        ):
            found = trace(
                build_scorer(reference, trusted),
                side,
                start,
                max_new_tokens=max_new_tokens,
                forced=forced,
                level=level,  # type: ignore[arg-type]  # checked by the callee
                by=by,  # type: ignore[arg-type]  # checked by the callee
                out=out,
                on_progress=moves(bar, task),
            )
        _report(found, out, as_json)
        return 0 if agrees(found) else 1


def _add_show(group: typer.Typer) -> None:
    @group.command("show")
    def show(
        folder: Annotated[str, typer.Argument(metavar="DIR", help="what `twinrun trace --out` wrote")],
        against: Annotated[str | None, typer.Option(help="another trace: compare the two candidates")] = None,
        as_json: JsonOption = False,
    ) -> int:
        """Read a trace back, also one whose recording was killed, and write its page (DIR/index.html)."""
        from twinrun.trace.opened import open_trace

        found = open_trace(folder)
        if against is not None:
            other = found.against(open_trace(against))
            console(as_json).print(str(other or "the two candidates agree to the end"), markup=False)
            emit({"divergence": None if other is None else other.to_json()}, as_json)
            return 0 if other is None else 1
        _report(found, folder, as_json)
        return 0


def agrees(found: Trace | CanvasTrace) -> bool:
    """Whether the runs agree, or part at a tie (a canvas also by design), and the verdict, if there is one, passes."""
    from twinrun.trace.canvas_trace import CanvasTrace

    if isinstance(found, CanvasTrace):
        return found.passed
    kind = None if found.first_divergence is None else found.first_divergence.kind
    return kind in (None, "tie flip") and getattr(found.verdict, "passed", True)


def _report(found: Trace | CanvasTrace, out: str | None, as_json: bool) -> None:
    """Print the trace, write its page, and emit the record without steps."""
    from pathlib import Path

    from twinrun.records.write import write_text

    text, page = _drawn(found)
    console(as_json).print(text)
    about = found.about()
    if about.get("blame") is not None:
        about["blame"] = {k: v for k, v in about["blame"].items() if k != "table"}
    about = {k: v for k, v in about.items() if k not in ("pieces", "curves")}
    if out is not None:
        place = write_text(Path(out) / "index.html", page)
        about["page"] = str(place)
        console(as_json).print(f"page: {place}", markup=False)
    emit(about, as_json)
    sys.stdout.flush()


def _drawn(found: Trace | CanvasTrace) -> tuple[RenderableType, str]:
    """What the terminal shows, and the page."""
    from twinrun.report.canvas_page import render_canvas_trace
    from twinrun.report.canvas_text import canvas_text
    from twinrun.report.trace_page import render_trace
    from twinrun.report.trace_text import trace_text
    from twinrun.trace.canvas_shown import canvas_shown
    from twinrun.trace.canvas_trace import CanvasTrace
    from twinrun.trace.shown import shown

    if isinstance(found, CanvasTrace):
        record = canvas_shown(found)
        return canvas_text(record), render_canvas_trace(record)
    record = shown(found)
    return trace_text(record), render_trace(record)


def _traceable(name: str) -> Fault:
    """The fault called `name`, unless it sits where nothing is traced."""
    from twinrun.errors import ConfigError
    from twinrun.faults.registry import get_fault

    fault = get_fault(name)
    if fault.way not in ("causal", "diffusion"):
        place = "sampling" if fault.way == "sampling" else "training"
        raise ConfigError(f"{name} sits in a {place}, which has no trace; run `twinrun faults --name {name}`")
    return fault
