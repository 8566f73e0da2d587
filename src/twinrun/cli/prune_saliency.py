"""`twinrun prune saliency`: how much the answer hangs on each prompt token, at each layer that will prune."""

from __future__ import annotations

from typing import Annotated

import typer

from twinrun.cli import prune_data as data_options
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

EPILOG = """Examples:

twinrun prune saliency builtin:expert --data arithmetic --samples 64 --schedule 2:0.7,4:0.5 --out targets

twinrun prune saliency ./Mistral-7B --data databricks-dolly-15k.jsonl --schedule 0.9 --out targets --dtype bfloat16

A job that was killed goes on when the same command is run again. Under `accelerate launch` or `torchrun` each
process takes every n-th shard."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("saliency", epilog=EPILOG)
    def saliency(
        model: ModelArgument,
        data: data_options.Data,
        out: Annotated[str, typer.Option("--out", "-o", help="folder of the targets")],
        schedule: data_options.ScheduleOption = "0.9",
        output: Annotated[
            str, typer.Option(help="what is differentiated: loss (of the answer tokens) or logit (theirs)")
        ] = "loss",
        batch: Annotated[int, typer.Option(help="samples a forward")] = 8,
        samples: data_options.Count = None,
        tokens: data_options.Tokens = 1024,
        split: data_options.Split = "train",
        data_seed: data_options.DataSeed = 0,
        digits: data_options.Digits = 5,
        begin: data_options.Begin = "",
        chat: data_options.Chat = False,
        too_long: data_options.TooLong = "refuse",
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        as_json: JsonOption = False,
    ) -> int:
        """Compute gradient times hidden state of every prompt token; write it beside each sample's name and hash."""
        from twinrun.prune.marking import mark

        loaded = open_model(model, dtype, device)
        stages = data_options.read_schedule(schedule, loaded)
        task = {"tokens": tokens, "split": split, "seed": data_seed, "digits": digits}
        found = data_options.open_data(
            loaded, data, samples, chat=chat, begin=begin, too_long=too_long, **task
        )
        with progress(len(found), "saliency") as (bar, row):
            targets = mark(
                loaded,
                found,
                stages.layers,
                out,
                output=output,  # type: ignore[arg-type]  # checked by the callee
                batch_size=batch,
                on_progress=lambda done, total: bar.update(row, completed=done, total=total),
            )
        skipped = getattr(found, "skipped", 0)
        left_out = f", {skipped} too long left out" if skipped else ""
        layers = ", ".join(map(str, stages.layers))
        done = "done" if targets is not None else "this process is done, others are not"
        console(as_json).print(
            f"{out}: {len(found)} samples{left_out}, layers {layers}, T = {output}; {done}"
        )
        record = {"schema": "twinrun.saliency/1", "out": out, "samples": len(found), "skipped": skipped}
        emit(
            {**record, "layers": list(stages.layers), "output": output, "finished": targets is not None},
            as_json,
        )
        return 0
