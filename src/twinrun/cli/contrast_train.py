"""`twinrun contrast train`: tune an expert on the steps that an amateur showed it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

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
from twinrun.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from twinrun.contrast.train_folder import Trained

EPILOG = """Examples:

twinrun contrast train --expert builtin:expert --samples samples --out adapter --steps 200 --precision float32

twinrun contrast train --expert ./base --samples samples --out sft --method sft --references train.jsonl

torchrun --nproc-per-node 2 -m twinrun contrast train --expert ./base --samples samples --out adapter

The same command again goes on with a training that was stopped, and ends with the same adapter. --set gives any further
field of transformers.TrainingArguments, its value as JSON or text. Whatever was the amateur when the samples
were made is the amateur here; an older checkpoint of the expert will do."""

QUERY_AND_VALUE = ("q_proj", "v_proj")
ExpertOption = Annotated[str, typer.Option(metavar="MODEL", help=f"the model to tune; {MODEL_HELP}")]
SamplesOption = Annotated[str, typer.Option(metavar="DIR", help="folder of `twinrun contrast sample`")]
OutOption = Annotated[str, typer.Option(metavar="DIR", help="folder of the adapter; continued if begun")]
MethodOption = Annotated[str, typer.Option(help="contrast, or a baseline of the same budget: sft, uniform")]
BetaOption = Annotated[
    float | None, typer.Option(help="keep steps with KL above this, nats (default: all sampled)")
]
OnlyRightOption = Annotated[bool, typer.Option("--only-right", help="leave out answers that are wrong")]
ReferencesOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="for sft, --only-right: JSONL with `answer`, or builtin:arithmetic"),
]
RankOption = Annotated[int, typer.Option("--r", help="rank of the adapter")]
AlphaOption = Annotated[float, typer.Option("--lora-alpha", help="an update counts alpha / r times")]
DropoutOption = Annotated[float, typer.Option(help="of what enters an update")]
TargetOption = Annotated[
    list[str] | None,
    typer.Option(help="adapted modules (default: q_proj v_proj); all-linear for all; repeat"),
]
LrOption = Annotated[float, typer.Option(help="learning rate")]
ScheduleOption = Annotated[str, typer.Option(help="its course, by transformers' name")]
WarmupOption = Annotated[int, typer.Option(help="optimizer steps up to the peak")]
WeightDecayOption = Annotated[float, typer.Option(help="of AdamW")]
MaxGradNormOption = Annotated[float, typer.Option(help="gradients are cut to this norm")]
BatchSizeOption = Annotated[int, typer.Option(help="answers a forward")]
AccumulationOption = Annotated[int, typer.Option(help="forwards an optimizer step")]
StepsOption = Annotated[int, typer.Option(help="optimizer steps")]
PrecisionOption = Annotated[str, typer.Option(help="bfloat16, float16 or float32")]
ValidationOption = Annotated[float, typer.Option(help="share of the problems kept apart")]
EveryOption = Annotated[int, typer.Option(help="steps between validations, and checkpoints")]
PatienceOption = Annotated[int, typer.Option(help="stop after so many without a better loss; 0 never")]
SeedOption = Annotated[int, typer.Option(help="of start, dropout, order, split")]
CheckOption = Annotated[
    bool, typer.Option("--check/--no-check", help="prove first that a batch trains the chosen tokens")
]
ExtraOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="a TrainingArguments field")
]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("train", epilog=EPILOG)
    def train(
        expert: ExpertOption,
        samples: SamplesOption,
        out: OutOption,
        method: MethodOption = "contrast",
        beta: BetaOption = None,
        only_right: OnlyRightOption = False,
        references: ReferencesOption = None,
        rank: RankOption = 8,
        alpha: AlphaOption = 16,
        dropout: DropoutOption = 0.05,
        target: TargetOption = None,
        lr: LrOption = 5e-5,
        schedule: ScheduleOption = "linear",
        warmup: WarmupOption = 0,
        weight_decay: WeightDecayOption = 0.0,
        max_grad_norm: MaxGradNormOption = 1.0,
        batch_size: BatchSizeOption = 8,
        accumulation: AccumulationOption = 2,
        steps: StepsOption = 1000,
        precision: PrecisionOption = "bfloat16",
        validation: ValidationOption = 0.05,
        every: EveryOption = 100,
        patience: PatienceOption = 0,
        seed: SeedOption = 0,
        check: CheckOption = True,
        extra: ExtraOption = None,
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        trust_remote_code: TrustOption = False,
        as_json: JsonOption = False,
    ) -> None:
        """Tune an expert with LoRA on the steps that contrast chose, all steps of an answer in one forward."""
        from twinrun.contrast.adapt import refuse_without_peft
        from twinrun.contrast.store import SampleStore
        from twinrun.contrast.train import train as run
        from twinrun.contrast.train_settings import LoraSettings, TrainSettings

        refuse_without_peft()
        settings = TrainSettings(
            method=method,  # type: ignore[arg-type]  # the settings refuse any other word
            beta=beta,
            only_right=only_right,
            lora=LoraSettings(r=rank, alpha=alpha, dropout=dropout, targets=tuple(target or QUERY_AND_VALUE)),
            learning_rate=lr,
            schedule=schedule,
            warmup=warmup,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            batch_size=batch_size,
            accumulation=accumulation,
            steps=steps,
            precision=precision,
            validation=validation,
            every=every,
            patience=patience,
            seed=seed,
            check=check,
            extra=parse_extra(extra or []),
        )
        store = SampleStore(samples)
        is_right = _judge(store, references) if references else None
        model = open_model(expert, dtype, device, trust_remote_code=trust_remote_code)
        with progress(steps, f"training ({method})") as (bar, task):
            found = run(
                model,
                store,
                out,
                settings,
                is_right=is_right,
                on_step=lambda done, total: bar.update(task, completed=done, total=total),
            )
        _show(found, console(as_json))
        emit(found.to_json(), as_json)


def parse_extra(given: list[str]) -> dict[str, Any]:
    """Read NAME=VALUE pairs; a value that is JSON is that, any other is text.

    Raises:
        ConfigError: no equals sign.

    Example:
        >>> parse_extra(["fsdp=full_shard", "logging_steps=5"])
        {'fsdp': 'full_shard', 'logging_steps': 5}
    """
    found: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ConfigError(f"--set takes NAME=VALUE, got {pair!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _judge(store: Any, source: str) -> Any:
    from twinrun.contrast.exam import judge_by, references

    return judge_by(references(source, [t.prompt_id for t in store.trajectories()]))


def _show(found: Trained, out: Console) -> None:
    cost = found.cost
    out.print(
        f"{found.steps} optimizer steps on {found.lessons} answers, {cost['steps']} tuned tokens; "
        f"{cost['packed']} forward tokens a round, {cost['row_per_step_over_packed']:.1f} times fewer than a row a step"
    )
    if found.validation_loss is not None:
        out.print(
            f"validation: {found.validation_loss:.6f} nats a tuned token on {found.validation_lessons} answers, "
            f"best at step {found.best_step}"
        )
    out.print(f"training check: {found.verdict or 'switched off'}", markup=False)
    out.print(f"adapter: {found.folder} (merge it with `twinrun contrast merge`)", markup=False)
