"""`twinrun contrast check`: is one pass over a text the same as one forward a token, for these two models?"""

from __future__ import annotations

from typing import Annotated

import typer

from twinrun.cli.common import (
    MODEL_HELP,
    DeviceOption,
    DtypeOption,
    JsonOption,
    TrustOption,
    console,
    emit,
    moves,
    open_model,
    progress,
)

EPILOG = """Examples:

twinrun contrast check --expert builtin:expert --amateur builtin:amateur -p "Tom has 3 apples and buys 4. How many?"

twinrun contrast check --expert builtin:expert --amateur builtin:amateur --prompt "今天天气很好。" -n 0

twinrun contrast check --expert ./expert --amateur ./amateur --data train.jsonl --limit 2 --steps 0 --json

Exit code 0: both models are the same both ways; 1: one is not; 2: bad request; 3: something is missing here."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("check", epilog=EPILOG)
    def check(
        expert: Annotated[str, typer.Option(metavar="MODEL", help=f"answers; {MODEL_HELP}")],
        amateur: Annotated[str, typer.Option(metavar="MODEL", help="another model with the same tokenizer")],
        prompt: Annotated[
            list[str] | None, typer.Option("--prompt", "-p", help="a text, in any language; may be repeated")
        ] = None,
        data: Annotated[
            str | None, typer.Option(metavar="FILE", help="JSONL with `question`; builtin:arithmetic; gsm8k")
        ] = None,
        limit: Annotated[int, typer.Option(help="problems taken of --data")] = 3,
        max_new_tokens: Annotated[
            int, typer.Option("--max-new-tokens", "-n", help="tokens of an answer; 0 checks the text itself")
        ] = 32,
        chat: Annotated[
            str, typer.Option(help="use the chat template: auto (if there is one), on or off")
        ] = "auto",
        beta: Annotated[
            float, typer.Option(help="steps above this KL(expert || amateur) are kept, nats")
        ] = 0.4,
        steps: Annotated[int, typer.Option(help="steps of each text that are printed; 0 is all")] = 12,
        sweep: Annotated[bool, typer.Option(help="also judge one precision up")] = True,
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        trust_remote_code: TrustOption = False,
        as_json: JsonOption = False,
    ) -> int:
        """Compare token by token with one pass: logits, probabilities, likeliest ids, KL at every step; a verdict."""
        from twinrun.contrast.check import answered_texts
        from twinrun.contrast.check import check as run_check
        from twinrun.contrast.select import check_thresholds
        from twinrun.report.contrast_text import check_text

        check_thresholds(beta, 1.0)
        prompts = _prompts(prompt, data, limit)
        ours, theirs = (
            open_model(m, dtype, device, trust_remote_code=trust_remote_code) for m in (expert, amateur)
        )
        texts = answered_texts(ours, theirs, prompts, max_new_tokens=max_new_tokens, chat=chat)
        with progress(None, "checking") as (bar, task):
            found = run_check(
                ours,
                theirs,
                texts,
                beta=beta,
                sweep=sweep,
                on_progress=moves(bar, task),
            )
        record, out = found.to_json(), console(as_json)
        for part in check_text(record, steps or None):
            out.print(part)
        emit(record, as_json)
        return 0 if found.passed else 1


def _prompts(inline: list[str] | None, data: str | None, limit: int) -> list[tuple[str, str]]:
    """Label and text of everything to check."""
    from twinrun.contrast.problems import read_questions
    from twinrun.errors import ConfigError

    found = [(f"prompt {i}", text) for i, text in enumerate(inline or (), 1)]
    if data is not None:
        found += [(q.prompt_id, q.text) for q in read_questions(data, limit=limit).items]
    if not found:
        raise ConfigError("nothing to check; give --prompt TEXT or --data FILE")
    for label, text in found:
        if not text.strip():
            raise ConfigError(f"{label} is empty; give at least two tokens")
    return found
