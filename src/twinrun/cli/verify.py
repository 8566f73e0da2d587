"""`twinrun verify`: is the candidate still the same model as the reference?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    read_prompts,
)

if TYPE_CHECKING:
    from twinrun.models.model import Model
    from twinrun.verify.verdict import Verdict

EPILOG = """Examples:

twinrun verify builtin:expert --probes

twinrun verify builtin:expert --candidate kv-cache:static --prompt "Tom has 3 apples." --dtype bfloat16

twinrun verify ./my-model --candidate-model ./my-model-int8 --file rows.jsonl --field question --max-kl 0.01 --json

twinrun verify builtin:diffusion --reference diffusion --candidate diffusion:dual --prompt "2 + 3 = 5" --max-kl 0.5

Exit code 0: identical, equivalent, or lossy inside the budget; 1: different."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("verify", epilog=EPILOG)
    def verify(
        model: ModelArgument,
        reference: Annotated[str, typer.Option("--reference", "-r", help="trusted runner")] = "recompute",
        candidate: Annotated[
            str, typer.Option("--candidate", "-c", help="runner on trial")
        ] = "kv-cache:dynamic",
        candidate_model: Annotated[
            str | None, typer.Option(help="another checkpoint for the candidate")
        ] = None,
        prompt: Annotated[
            list[str] | None, typer.Option("--prompt", "-p", help="a text; may be repeated")
        ] = None,
        file: Annotated[
            str | None, typer.Option("--file", "-f", help="a text file, or JSONL with --field")
        ] = None,
        field: Annotated[str | None, typer.Option(help="field of the JSONL file (default: text)")] = None,
        probes: Annotated[
            bool, typer.Option("--probes", help="inputs that straddle the model's boundaries")
        ] = False,
        max_tokens: Annotated[int, typer.Option(help="longest probe, and where texts are cut")] = 512,
        max_kl: Annotated[float | None, typer.Option(help="budget: mean KL in nats")] = None,
        min_top1: Annotated[float | None, typer.Option(help="budget: share of equal top tokens")] = None,
        sweep: Annotated[bool, typer.Option(help="also judge one precision up")] = True,
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        trust_remote_code: TrustOption = False,
        as_json: JsonOption = False,
    ) -> int:
        """Run one model two ways and give one verdict: identical, equivalent, lossy or different."""
        texts = (
            read_prompts(file, field, prompt, otherwise=" or --probes")
            if (prompt or file or not probes)
            else []
        )
        trusted = open_model(model, dtype, device, trust_remote_code=trust_remote_code)
        tried = trusted
        if candidate_model is not None:
            tried = open_model(candidate_model, dtype, device, trust_remote_code=trust_remote_code)

        from twinrun.models.tokenizers import check_same_tokens
        from twinrun.runners.registry import build_scorer
        from twinrun.verify.budget import Budget
        from twinrun.verify.verify import verify as run_verify

        check_same_tokens(trusted, tried, texts)
        budget = Budget(kl=max_kl, top1=min_top1) if max_kl is not None or min_top1 is not None else None
        cases = _cases(trusted, texts, probes, max_tokens)
        sides = build_scorer(reference, trusted), build_scorer(candidate, tried)
        with progress(None, "verifying") as (bar, task):
            verdict = run_verify(
                *sides,
                cases,
                budget=budget,
                sweep=sweep,
                on_progress=moves(bar, task),
            )
        _show(verdict, as_json, trusted, probes, max_tokens)
        emit(verdict.to_json(), as_json)
        return 0 if verdict.passed else 1


def _cases(model: Model, texts: list[str], probes: bool, max_tokens: int) -> list[Any]:
    """Texts, cut to `max_tokens` in tokens, and the model's probes if asked for."""
    from twinrun.verify.probes import probes as build_probes

    limit = min(max_tokens, model.max_context or max_tokens)
    found: list[Any] = [model.encode_cut(text, limit) for text in texts]
    return found + (build_probes(model, max_tokens=max_tokens) if probes else [])


def _show(verdict: Verdict, as_json: bool, model: Model, probes: bool, max_tokens: int) -> None:
    from rich.table import Table

    from twinrun.verify.probes import uncovered

    out = console(as_json)
    colour = {"identical": "green", "equivalent": "green", "lossy": "yellow", "different": "red"}[
        verdict.verdict
    ]
    out.print(
        f"[bold {colour}]{verdict.verdict}[/]  {verdict.candidate} against {verdict.reference} on", end=" "
    )
    out.print(f"{verdict.model} ({verdict.dtype}), {verdict.positions:,} positions", markup=False)
    out.print(verdict.reason, markup=False)
    if verdict.blame and verdict.blame not in verdict.reason:
        out.print(f"starts at: {verdict.blame}", markup=False)
    table = Table("case", "positions", "error ratio", "gap one up", "KL max", "flips", box=None)
    for case in verdict.cases:
        numbers = [
            f"{case[key]:.2g}" if case[key] is not None else "-"
            for key in ("ratio_max", "gap_up_max", "kl_max")
        ]
        table.add_row(
            str(case["case"]).replace("[", r"\["), str(case["positions"]), *numbers, str(case["flips"])
        )
    out.print(table)
    seconds = verdict.seconds
    out.print(f"seconds: reference {seconds['reference']:.2f}, candidate {seconds['candidate']:.2f}")
    left = uncovered(model, max_tokens) if probes else []
    if left:
        out.print(f"not probed: {'; '.join(left)} (raise --max-tokens)", markup=False)
