"""`twinrun prune train`: scorers for the layers of a schedule, end to end or by regression on stored targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinrun.cli import prune_data as of_data
from twinrun.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    console,
    emit,
    open_model,
    progress,
)

if TYPE_CHECKING:
    from twinrun.prune.scorer import Scorer

EPILOG = """Examples:

twinrun prune train builtin:expert --data arithmetic --samples 64 --schedule 2:0.7,4:0.5 --targets targets --out a

twinrun prune train builtin:expert --data arithmetic --samples 64 --schedule 2:0.7 --targets targets --offline --out b

accelerate launch -m twinrun prune train ./Mistral-7B --data dolly.jsonl --targets targets --out c --dtype bfloat16

The data must be those that the targets were made of; a run that was killed goes on. Exit code 0: trained; 1: a loss
term teaches nothing, or targets belong to other samples; 2: bad request."""

Out = Annotated[str, typer.Option("--out", "-o", help="folder of scorers, log and checkpoints")]
TargetsOption = Annotated[
    str | None, typer.Option(help="folder that `twinrun prune saliency` wrote, of the same data")
]
Offline = Annotated[
    bool, typer.Option("--offline", help="regression on the targets only: no simulation, no LM loss")
]
Hidden = Annotated[
    int | None, typer.Option(help="width inside the MLPs (default: a quarter of the model's, or less)")
]
Epochs = Annotated[int, typer.Option(help="passes over the samples")]
Batch = Annotated[int, typer.Option(help="samples a step, over all processes")]
RowsOption = Annotated[int, typer.Option(help="samples a forward, in one process")]
LearningRate = Annotated[float, typer.Option(help="of AdamW, after the warm-up; falls to 0")]
Warmup = Annotated[float, typer.Option(help="share of the steps with a rising learning rate")]
Weight = Annotated[float, typer.Option(help="of this loss term; 0 leaves it out")]
Pairs = Annotated[int, typer.Option(help="most pairs a sample and layer; all where there are fewer")]
SignOption = Annotated[str, typer.Option(help="of the saliency: abs or signed")]
ScaleOption = Annotated[str, typer.Option(help="of the targets: rank, log, standard or none")]
Noise = Annotated[float, typer.Option(help="size of the Gumbel noise on the choice")]
Temperature = Annotated[float, typer.Option(help="of the straight-through sigmoid")]
Seed = Annotated[int, typer.Option(help="of weights, order, noise and pairs")]
SaveEvery = Annotated[int, typer.Option(help="steps between checkpoints")]
WatchOption = Annotated[int, typer.Option(help="first steps in which every loss term must move")]
First = Annotated[int, typer.Option(help="first tokens that are never dropped")]
Last = Annotated[float, typer.Option(help="share of the prompt at its end that is never dropped")]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("train", epilog=EPILOG)
    def train(
        model: ModelArgument,
        data: of_data.Data,
        out: Out,
        schedule: of_data.ScheduleOption = "0.9",
        targets: TargetsOption = None,
        offline: Offline = False,
        hidden: Hidden = None,
        epochs: Epochs = 2,
        batch: Batch = 8,
        rows: RowsOption = 4,
        learning_rate: LearningRate = 1e-3,
        warmup: Warmup = 0.1,
        lm_weight: Weight = 1.0,
        mse_weight: Weight = 1.0,
        rank_weight: Weight = 1.0,
        pairs: Pairs = 16_384,
        sign: SignOption = "abs",
        scale: ScaleOption = "rank",
        noise: Noise = 0.3,
        temperature: Temperature = 0.3,
        seed: Seed = 0,
        save_every: SaveEvery = 50,
        watch: WatchOption = 10,
        protect_first: First = 4,
        protect_last: Last = 0.1,
        samples: of_data.Count = None,
        tokens: of_data.Tokens = 1024,
        split: of_data.Split = "train",
        data_seed: of_data.DataSeed = 0,
        digits: of_data.Digits = 5,
        begin: of_data.Begin = "",
        chat: of_data.Chat = False,
        too_long: of_data.TooLong = "refuse",
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        as_json: JsonOption = False,
    ) -> int:
        """Train scorers, the model frozen; every loss term is logged, one that teaches nothing ends the training."""
        numbers = {"epochs": epochs, "batch_size": batch, "rows": rows, "learning_rate": learning_rate}
        numbers |= {
            "warmup": warmup,
            "pairs": pairs,
            "noise": noise,
            "temperature": temperature,
            "seed": seed,
        }
        numbers |= {"lm_weight": lm_weight, "mse_weight": mse_weight, "rank_weight": rank_weight}
        words = {"offline": offline, "sign": sign, "scale": scale, "save_every": save_every, "watch": watch}
        task = {"tokens": tokens, "split": split, "seed": data_seed, "digits": digits}
        loaded = open_model(model, dtype, _own_device(device))
        settings = _settings(loaded, schedule, (protect_first, protect_last), numbers | words)
        found = of_data.open_data(loaded, data, samples, chat=chat, begin=begin, too_long=too_long, **task)
        scorer = _train(loaded, found, settings, targets, hidden, out)
        layers = ", ".join(map(str, scorer.layers))
        console(as_json).print(
            f"{out}: scorers of layers {layers}, {scorer.width} -> {scorer.hidden} -> 1, "
            f"{scorer.facts['share_of_model_flops']:.2%} of the model's operations"
        )
        emit(
            {"schema": "twinrun.train/1", "out": out, "layers": list(scorer.layers), **scorer.facts}, as_json
        )
        return 0


def _settings(model: Any, schedule: str, protect: tuple[int, float], given: dict[str, Any]) -> Any:
    from twinrun.prune.protection import Protection
    from twinrun.prune.settings import TrainSettings

    return TrainSettings(
        schedule=of_data.read_schedule(schedule, model),
        protection=Protection(first=protect[0], last=protect[1]),
        **given,
    )


def _train(
    model: Any, samples: Any, settings: Any, targets: str | None, hidden: int | None, out: str
) -> Scorer:
    from twinrun.prune.scorer import Scorer
    from twinrun.prune.targets import Targets
    from twinrun.prune.train import Training

    stored = None if targets is None else Targets(targets, model)
    scorer = Scorer.new(model, settings.schedule.layers, hidden, seed=settings.seed)
    with progress(None, "training") as (bar, row):
        return Training(model, samples, scorer, settings, stored).run(
            out, lambda done, total: bar.update(row, completed=done, total=total)
        )


def _own_device(device: str) -> str:
    """The device of this process where several train together."""
    import os

    import torch

    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "auto" and local is not None and torch.cuda.is_available() else device
