"""`twinrun contrast merge`: an adapter and its base as one checkpoint, proved to be the same model."""

from __future__ import annotations

from typing import Annotated

import typer

from twinrun.cli.common import JsonOption, console, emit, moves, progress

EPILOG = """Examples:

twinrun contrast merge adapter --out merged

twinrun contrast merge adapter --out merged-bf16 --dtype bfloat16 --budget-kl 0.001

Nothing is written unless the merged model passes: exit code 1 then."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("merge", epilog=EPILOG)
    def merge(
        adapter: Annotated[
            str, typer.Argument(metavar="DIR", help="folder of `twinrun contrast train`, or of peft")
        ],
        out: Annotated[str, typer.Option(metavar="DIR", help="folder of the checkpoint; must not exist")],
        base: Annotated[
            str | None, typer.Option(metavar="MODEL", help="the adapter's base (default: as its folder says)")
        ] = None,
        dtype: Annotated[
            str, typer.Option(help="of the checkpoint; half types round small updates away")
        ] = "float32",
        budget_kl: Annotated[
            float | None, typer.Option(help="mean KL that a half type may cost, nats")
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Merge an adapter into its base, and prove that the checkpoint is the same model before it is written."""
        from twinrun.contrast.adapt import refuse_without_peft
        from twinrun.contrast.merge import merge as run
        from twinrun.models.load import quiet_transformers

        refuse_without_peft()
        quiet_transformers()
        budget = None if budget_kl is None else {"kl": budget_kl}
        with progress(None, "merging") as (bar, task):
            record = run(
                adapter,
                out,
                base=base,
                dtype=dtype,
                budget=budget,
                on_progress=moves(bar, task),
            )
        shown, weights = console(as_json), record["weights"]
        shown.print(f"{record['verdict']['verdict']}: {record['verdict']['reason']}", markup=False)
        shown.print(
            f"weights: {weights['adapted']} adapted, at most {weights['ulp_max']:.2f} units in the last place off "
            f"their sum; {weights['unchanged']} others unchanged"
        )
        shown.print(f"checkpoint: {out} ({record['dtype']})", markup=False)
        emit(record, as_json)
