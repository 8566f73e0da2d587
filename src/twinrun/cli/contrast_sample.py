"""`twinrun contrast sample`: answers of an expert, and the steps of them at which an amateur would go astray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from twinrun.cli.common import (
    MODEL_HELP,
    DeviceOption,
    DtypeOption,
    JsonOption,
    TrustOption,
    console,
    emit,
    open_model,
    progress,
)

if TYPE_CHECKING:
    from rich.console import Console

    from twinrun.contrast.sample import SampleReport

EPILOG = """Examples:

twinrun contrast sample --expert builtin:expert --amateur builtin:amateur --data builtin:arithmetic --limit 50 --out s

twinrun contrast sample --expert Qwen/Qwen2.5-Math-1.5B --amateur Qwen/Qwen2.5-0.5B --data train.jsonl --out samples

twinrun contrast sample --expert ./expert --amateur ./amateur --data train.jsonl --out samples --engine ray --skip-bad

The same command again continues a run that was stopped. Exit code 0: all is sampled; 1: it is, but problems were
refused for logits that are no numbers (they are named); 2: bad request; 3: something is missing here."""


Expert = Annotated[str, typer.Option(metavar="MODEL", help=f"generates, and will be trained; {MODEL_HELP}")]
Amateur = Annotated[str, typer.Option(metavar="MODEL", help="a weaker model with the same tokenizer")]
Data = Annotated[
    str, typer.Option(metavar="FILE", help="JSONL with `question` and maybe `id`; builtin:arithmetic; gsm8k")
]
Out = Annotated[str, typer.Option(metavar="DIR", help="folder of the samples; continued if it was begun")]
Limit = Annotated[int | None, typer.Option(help="problems at most (builtin:arithmetic: 1000)")]
Beta = Annotated[float, typer.Option(help="keep steps with KL(expert || amateur) above this, nats")]
Alpha = Annotated[float, typer.Option(help="ids count from this share of the expert's likeliest on")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", help="tokens an answer at most")]
Temperature = Annotated[float, typer.Option(help="0 is greedy")]
TopK = Annotated[int, typer.Option(help="draw from the k likeliest tokens; 0 keeps all")]
TopP = Annotated[float, typer.Option(help="draw from the smallest set with this mass")]
Seed = Annotated[int, typer.Option(help="problem i of the data draws from seed + i")]
BatchSize = Annotated[int, typer.Option(help="problems a batch; a batch is what is committed")]
FirstStep = Annotated[int, typer.Option(help="first answer token that may be kept; 1 as in the public code")]
Chat = Annotated[str, typer.Option(help="use the chat template: auto (if there is one), on or off")]
SystemPrompt = Annotated[str, typer.Option(help="system message of the chat; '' for none")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="pass over malformed lines and too long prompts, and count them")
]
Engine = Annotated[str, typer.Option(help=r"process; or ray, on every slot of a cluster (twinrun\[ray])")]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("sample", epilog=EPILOG)
    def sample(
        expert: Expert,
        amateur: Amateur,
        data: Data,
        out: Out,
        limit: Limit = None,
        beta: Beta = 0.4,
        alpha: Alpha = 0.2,
        max_new_tokens: MaxNewTokens = 128,
        temperature: Temperature = 0.0,
        top_k: TopK = 0,
        top_p: TopP = 1.0,
        seed: Seed = 0,
        batch_size: BatchSize = 32,
        first_step: FirstStep = 0,
        chat: Chat = "auto",
        system_prompt: SystemPrompt = "Please reason step by step.",
        skip_bad: SkipBad = False,
        engine: Engine = "process",
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        trust_remote_code: TrustOption = False,
        as_json: JsonOption = False,
    ) -> int:
        """Let the expert answer, and keep the steps at which the amateur would go astray (LightReasoner)."""
        from twinrun.contrast.problems import read_questions
        from twinrun.contrast.sample import ENGINES, sample
        from twinrun.contrast.settings import SampleSettings
        from twinrun.errors import ConfigError

        if engine not in ENGINES:
            raise ConfigError(f"no engine called {engine!r}; use one of {', '.join(ENGINES)}")
        settings = SampleSettings(
            beta=beta,
            alpha=alpha,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            batch_size=batch_size,
            first_step=first_step,
            chat=chat,  # type: ignore[arg-type]  # the settings refuse any other word
            system_prompt=system_prompt,
        )
        questions = read_questions(data, limit=limit, skip_bad=skip_bad)
        ours, theirs = (
            open_model(m, dtype, device, trust_remote_code=trust_remote_code) for m in (expert, amateur)
        )
        with progress(len(questions.items), "sampling") as (bar, task):
            report = sample(
                ours,
                theirs,
                questions,
                out,
                settings=settings,
                engine=engine,
                skip_bad=skip_bad,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        _show(report, console(as_json))
        emit(report.to_json(), as_json)
        return 1 if report.refused else 0


def _show(report: SampleReport, out: Console) -> None:
    share = report.kept / report.steps if report.steps else 0.0
    again = f", {report.resumed} of them found done" if report.resumed else ""
    out.print(f"{report.problems} problems{again}; {report.kept} of {report.steps} steps kept ({share:.1%})")
    notes = {
        "answers cut off by --max-new-tokens": report.unfinished,
        "answers without text, which give no steps": report.empty,
        "problems given twice, taken once": report.duplicates,
        "bad input passed over": len(report.bad),
    }
    for words, count in notes.items():
        if count:
            out.print(f"{count} {words}")
    for why in report.bad[:10]:
        out.print(f"  {why}", markup=False)
    if report.dropped_mass:
        out.print(f"up to {report.dropped_mass:.2g} of the mass lay on ids that only one model has")
    for name, why in report.refused[:10]:
        out.print(f"refused: {name}: {why}", markup=False)
    if len(report.refused) > 10:
        out.print(f"refused: {len(report.refused) - 10} more in refused.jsonl")
    out.print(
        f"samples: {report.folder}/steps.jsonl, steps.parquet, trajectories.jsonl, trajectories.parquet",
        markup=False,
    )
