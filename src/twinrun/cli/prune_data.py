"""What `prune saliency` and `prune train` share: the options that name a data set and a schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from twinrun.models.model import Model
    from twinrun.prune.samples import Samples
    from twinrun.prune.schedule import Schedule

Data = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="a .jsonl file (instruction, context, response; or prompt, answer), retrieval, arithmetic, or a task "
        "of `twinrun.tasks.retrieval`",
    ),
]
Count = Annotated[
    int | None, typer.Option("--samples", help="how many (default: all of a file, 512 of a task)")
]
Tokens = Annotated[int, typer.Option(help="of a retrieval task: most tokens of a sample, answer counted in")]
Split = Annotated[str, typer.Option(help="of a task: train or heldout")]
DataSeed = Annotated[int, typer.Option("--data-seed", help="of a task: names the stream")]
Digits = Annotated[int, typer.Option(help="of a retrieval task: digits of a number to find")]
Begin = Annotated[str, typer.Option(help="text in front of each prompt, such as a start token")]
Chat = Annotated[bool, typer.Option("--chat", help="put each prompt into the model's chat template")]
TooLong = Annotated[str, typer.Option("--too-long", help="samples beyond the context: refuse or skip")]
ScheduleOption = Annotated[
    str,
    typer.Option(
        "--schedule",
        "-s",
        help="layer:keep pairs such as 4:0.9,7:0.81 (an int is a number of tokens), or the ratio of the paper's "
        "geometric schedule: 0.9, 0.8, 0.7",
    ),
]


def open_data(
    model: Model, data: str, count: int | None, *, chat: bool, begin: str, too_long: str, **task: Any
) -> Samples:
    """Open a file or a built-in task.

    Raises:
        ConfigError: no such file or task, or an option out of range.
    """
    from twinrun.errors import ConfigError
    from twinrun.prune.jsonl import JsonLines
    from twinrun.prune.task_samples import TaskSamples, TaskSettings

    if too_long not in ("refuse", "skip"):
        raise ConfigError(f"--too-long is refuse or skip, got {too_long!r}")
    if count is not None and count < 1:
        raise ConfigError(f"--samples must be at least 1, got {count}")
    if data.endswith((".jsonl", ".json")):
        return JsonLines(model, data, limit=count, chat=chat, begin=begin, too_long=too_long)  # type: ignore[arg-type]  # checked above
    settings = TaskSettings(source=data, samples=count or 512, begin=begin, chat=chat, **task)
    return TaskSamples(model, settings)


def read_schedule(text: str, model: Model) -> Schedule:
    """A schedule from the command line.

    Raises:
        ConfigError: malformed, or stages that the model does not have.

    Example:
        >>> read_schedule("1:0.5,2:20", load("builtin:amateur")).layers
        (1, 2)
    """
    from twinrun.errors import ConfigError
    from twinrun.prune.schedule import Schedule

    depth = len(model.layout.layers)
    try:
        if ":" not in text:
            found = Schedule.geometric(depth, float(text))
        else:
            pairs = [part.split(":") for part in text.split(",")]
            found = Schedule.of({int(layer): _keep(keep) for layer, keep in pairs})
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"--schedule {text!r} is no schedule; write 4:0.9,7:0.81 or a ratio such as 0.9"
        ) from error
    found.check(depth)
    return found


def _keep(text: str) -> float | int:
    return int(text) if text.strip().isdigit() else float(text)
