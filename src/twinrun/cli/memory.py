"""`twinrun memory`: what a model will need, before a weight is read, and what fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinrun.cli.common import DtypeOption, JsonOption, console, emit

if TYPE_CHECKING:
    from rich.table import Table

    from twinrun.plan.record import MemoryPlan

EPILOG = """Examples:

twinrun memory builtin:expert --context 2048 --batch 8

twinrun memory Qwen/Qwen2.5-7B --context 32768 --new-tokens 512 --memory 24GB --device cuda

twinrun memory ./my-model/config.json --context 4096 --attention eager --json"""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("memory", epilog=EPILOG)
    def memory(
        model: Annotated[
            str,
            typer.Argument(metavar="MODEL", help="builtin:NAME, a hub name, a folder, or a config file"),
        ],
        context: Annotated[int, typer.Option(help="tokens of the prompt, in each row")],
        batch: Annotated[int, typer.Option(help="rows")] = 1,
        new_tokens: Annotated[int, typer.Option(help="tokens to generate; 0 plans a scored text")] = 0,
        dtype: DtypeOption = "auto",
        attention: Annotated[
            str | None, typer.Option(help="sdpa or eager (default: the model's own)")
        ] = None,
        available: Annotated[
            str | None,
            typer.Option("--memory", help="what there is, like 24GB or 22.5GiB (default: free now)"),
        ] = None,
        device: Annotated[
            str, typer.Option(help="whose kernels are planned for: auto, cpu or cuda")
        ] = "auto",
        as_json: JsonOption = False,
    ) -> int:
        """Plan weights, KV cache, activations and logits from a config; say what fits. Exit code 1 if nothing does."""
        from twinrun.plan.plan import plan_memory

        plan = plan_memory(
            model,
            context=context,
            batch=batch,
            new_tokens=new_tokens,
            dtype=dtype,
            attention=attention,
            memory=available,
            device=device,
        )
        _show(plan, as_json)
        emit(plan.to_json(), as_json)
        return 0 if plan.fits else 1


def _show(plan: MemoryPlan, as_json: bool) -> None:
    from twinrun.numerics.units import show_bytes

    out = console(as_json)
    out.print(
        f"{plan.model}: {plan.family}, {plan.parameters:,} parameters, {plan.dtype}, attention {plan.attention}, "
        f"{plan.device}\n{plan.batch} x {plan.context:,} tokens, {plan.new_tokens:,} new; "
        f"{show_bytes(plan.memory_bytes)} {plan.memory_from}\n"
    )
    out.print(_parts(plan))
    out.print(_caches(plan))
    out.print(_logits(plan))
    for note in plan.notes:
        out.print(f"note: {note}")
    out.print(plan.advice.text)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if 0 < index < len(columns) - 1 else "left", no_wrap=True)
    return table


def _parts(plan: MemoryPlan) -> Table:
    from twinrun.numerics.units import show_bytes

    table = _table("weights and activations", "", "size", "")
    for name, size in plan.weights_by_dtype.items():
        table.add_row(f"weights, {name}", show_bytes(size), "tied heads once, with buffers")
    for name, found in plan.activations_bytes.items():
        shown = "–" if found is None else show_bytes(found)
        table.add_row(
            f"prompt's forward, {name}",
            shown,
            "not offered by this model" if found is None else "peak beside the cache",
        )
    return table


def _caches(plan: MemoryPlan) -> Table:
    from twinrun.numerics.units import show_bytes

    table = _table(
        "\nKV cache, with the last row of logits", "kind", "size", "in host memory", "total", "fits", ""
    )
    for row in plan.caches:
        host = show_bytes(row.host_bytes) if row.host_bytes else ""
        table.add_row(
            row.kind,
            show_bytes(row.device_bytes),
            host,
            show_bytes(row.total_bytes),
            _word(row.fits),
            row.what,
        )
    return table


def _logits(plan: MemoryPlan) -> Table:
    from twinrun.numerics.units import show_bytes

    table = _table("\nlogits", "policy", "logits", "peak of prefill", "total", "fits", "")
    for row in plan.logits:
        sizes: list[Any] = [show_bytes(s) for s in (row.logits_bytes, row.prefill_bytes, row.total_bytes)]
        table.add_row(row.policy, *sizes, _word(row.fits), row.what)
    return table


def _word(fits: bool) -> str:
    return "yes" if fits else "no"
