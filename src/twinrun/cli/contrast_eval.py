"""`twinrun contrast eval`: zero-shot pass@1 of models and adapters on the same problems, with paired intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinrun.cli.common import (
    MODEL_HELP,
    DeviceOption,
    DtypeOption,
    JsonOption,
    console,
    emit,
    open_model,
    progress,
)
from twinrun.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from twinrun.models.model import Model

EPILOG = """Examples:

twinrun contrast eval builtin:expert builtin:amateur --limit 100

twinrun contrast eval builtin:expert ./adapter ./sft --limit 2000 --dtype float32

twinrun contrast eval ./base ./merged --data gsm8k_test.jsonl --system-prompt "Please reason step by step."

The first model is what the others are held against; a folder with an adapter is opened over its own base. Other
tasks (MATH, SVAMP, ASDiv, Minerva, OlympiadBench, MMLU-STEM) run in lm-evaluation-harness on the merged checkpoint:

twinrun lm-eval run --model twinrun --model_args pretrained=./merged --tasks minerva_math,asdiv --num_fewshot 0

Exit code 0: examined, whatever came out."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("eval", epilog=EPILOG)
    def evaluate(
        models: Annotated[
            list[str], typer.Argument(metavar="MODEL...", help=f"{MODEL_HELP}, or an adapter's folder")
        ],
        data: Annotated[
            str,
            typer.Option(metavar="FILE", help="builtin:arithmetic (held out), or JSONL: question, answer"),
        ] = "builtin:arithmetic",
        limit: Annotated[
            int | None, typer.Option(help="problems at most (builtin: 2000, a file: all)")
        ] = None,
        seed: Annotated[int, typer.Option(help="stream of builtin:arithmetic")] = 200,
        steps: Annotated[
            str, typer.Option(metavar="MIN-MAX", help="worked steps of builtin:arithmetic, 1 to 5")
        ] = "2-5",
        max_new_tokens: Annotated[
            int, typer.Option("--max-new-tokens", "-n", help="tokens an answer at most")
        ] = 256,
        batch_size: Annotated[int, typer.Option(help="problems a batch")] = 64,
        chat: Annotated[
            bool, typer.Option("--chat/--no-chat", help="put problems into the chat template")
        ] = True,
        system_prompt: Annotated[str, typer.Option(help="system message of the chat; '' for none")] = "",
        base: Annotated[
            str | None, typer.Option(metavar="MODEL", help="base of the adapters (default: as they say)")
        ] = None,
        out: Annotated[
            str | None, typer.Option(metavar="FILE", help="also write the record, with every answer")
        ] = None,
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        as_json: JsonOption = False,
    ) -> None:
        """Examine models on the same problems, zero-shot, one greedy answer each, with paired intervals."""
        from twinrun.contrast.evaluate import AnswerSettings, answer_all, compare, request
        from twinrun.contrast.exam import ExamSettings, exam
        from twinrun.records.env import environment
        from twinrun.records.write import write_json

        if len(set(models)) < len(models):
            raise ConfigError("a model is named twice; name each once")
        settings = AnswerSettings(
            max_new_tokens=max_new_tokens, batch_size=batch_size, chat=chat, system_prompt=system_prompt
        )
        items = exam(ExamSettings(source=data, limit=limit, seed=seed, steps=_steps(steps)))
        answered = {}
        for name in models:
            model = _open(name, base, dtype, device)
            with progress(len(items), name) as (bar, task):
                answered[name] = answer_all(
                    model, items, settings, lambda done, total: bar.update(task, completed=done, total=total)
                )
        found = compare(items, answered)
        record: dict[str, Any] = {"schema": "twinrun.contrast-eval/1", "data": data, **found}
        record |= {"request": request(settings), "dtype": dtype, "environment": environment()}
        if out is not None:
            texts = {name: list(a.texts) for name, a in answered.items()}
            ids = [item.prompt_id for item in items]
            write_json(out, {**record, "problems": ids, "answers": texts})
        _show(record, console(as_json))
        emit(record, as_json)


def _steps(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not low.isdigit() or not (high or low).isdigit():
        raise ConfigError(f"--steps takes MIN-MAX, for example 2-5, got {text!r}")
    return int(low), int(high or low)


def _open(name: str, base: str | None, dtype: str, device: str) -> Model:
    """A model, or an adapter over its base."""
    from pathlib import Path

    from twinrun.contrast.adapt import CONFIG, load_adapted
    from twinrun.models.load import quiet_transformers

    if not (Path(name) / CONFIG).is_file():
        return open_model(name, dtype, device)
    quiet_transformers()
    return load_adapted(name, base=base, dtype=dtype, device=device)


def _show(record: dict[str, Any], out: Console) -> None:
    from rich.table import Table

    table = Table("model", "right", "95 % interval", "unfinished", box=None)
    for name, side in record["sides"].items():
        table.add_row(
            name,
            f"{100 * side['accuracy']:.1f} % ({side['right']} of {record['items']})",
            f"{100 * side['low']:.1f} to {100 * side['high']:.1f} %",
            str(side["unfinished"]),
        )
    out.print(table)
    for pair in record["pairs"]:
        out.print(
            f"{pair['a']} minus {pair['b']}: {100 * pair['difference']:+.2f} points "
            f"({100 * pair['low']:+.2f} to {100 * pair['high']:+.2f}), right only there {pair['better']}, only here "
            f"{pair['worse']}, McNemar p = {pair['sign_p']:.2g}",
            markup=False,
        )
    out.print(record["intervals"], markup=False)
