"""`twinrun score`: log-probability of every token of a text."""

from __future__ import annotations

from typing import Annotated

import typer

from twinrun.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    TrustOption,
    console,
    emit,
    open_model,
    read_prompts,
)

EPILOG = """Examples:

twinrun score builtin:expert --prompt "23 + 45 = 68"

twinrun score builtin:expert --file notes.txt --dtype float32

twinrun score builtin:expert --prompt "2 + 3 = 5 and 4 + 4 = 8" --runner pruned:recency+ratio=0.8 --last 4

twinrun score ./my-model --file rows.jsonl --field question --json"""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("score", epilog=EPILOG)
    def score(
        model: ModelArgument,
        prompt: Annotated[
            list[str] | None, typer.Option("--prompt", "-p", help="a text; may be repeated")
        ] = None,
        file: Annotated[
            str | None, typer.Option("--file", "-f", help="a text file, or JSONL with --field")
        ] = None,
        field: Annotated[str | None, typer.Option(help="field of the JSONL file (default: text)")] = None,
        runner: Annotated[
            str | None,
            typer.Option("--runner", "-r", help="see `twinrun runners`; default: one forward a batch"),
        ] = None,
        last: Annotated[
            int, typer.Option(help="with --runner: tokens scored at the end of each text, the rest is prompt")
        ] = 16,
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        trust_remote_code: TrustOption = False,
        as_json: JsonOption = False,
    ) -> None:
        """Score texts: log-probability per token, total, perplexity, one forward a batch, or by the runner given."""
        from rich.table import Table

        texts = read_prompts(file, field, prompt)
        loaded = open_model(model, dtype, device, trust_remote_code=trust_remote_code)

        from twinrun.runners.registry import build_runner
        from twinrun.runners.score import score as score_texts
        from twinrun.runners.score import score_last

        side = None if runner is None else build_runner(runner, loaded)
        found = score_texts(loaded, texts) if side is None else score_last(side, texts, last)
        out = console(as_json)
        for item in found:
            table = Table("token", "log-probability", "entropy", box=None)
            texts_of = item.tokens or [str(i) for i in item.token_ids]
            for token, logprob, entropy in zip(texts_of, item.logprobs, item.entropies, strict=True):
                shown = (
                    ("-", "-") if logprob is None or entropy is None else (f"{logprob:.4f}", f"{entropy:.4f}")
                )
                table.add_row(repr(token).replace("[", r"\["), *shown)
            out.print(table)
            out.print(
                f"total {item.total_logprob:.4f} nats, perplexity {item.perplexity or float('nan'):.3f}"
            )
        emit(
            {"model": loaded.name, "choices": loaded.choices, "texts": [item.to_json() for item in found]},
            as_json,
        )
