"""`twinrun bench`: time runners against each other, with verdicts beside the speeds and ceilings behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinrun.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    TrustOption,
    moves,
    open_model,
    progress,
    report,
)
from twinrun.cli.lists import ManyLengths

if TYPE_CHECKING:
    from twinrun.models.model import Model
    from twinrun.records.bench import Bench

EPILOG = """Examples:

twinrun bench builtin:expert --runner recompute --runner kv-cache:dynamic --lengths 64 128 --new-tokens 16

twinrun bench builtin:gpt --runner recompute --runner kv-cache:static --lengths 128 512 --out runs/gpt

twinrun bench builtin:gpt --runner recompute --runner kv-cache:static --lengths 128 512 --out runs/gpt --resume

twinrun bench ./model --model-b ./model-int8 --runner kv-cache --runner kv-cache@b --budget-kl 0.05 --json

Exit code 0: done, every verdict passed; 1: a verdict is `different`, or a runner failed; 2: bad request."""

DEFAULT_RUNNERS = ["recompute", "kv-cache:dynamic"]
SECOND = "@b"
"""Behind a runner's name: it runs the model of --model-b."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("bench", epilog=EPILOG, cls=ManyLengths)
    def bench(
        model: ModelArgument,
        runner: Annotated[
            list[str] | None,
            typer.Option(
                "--runner", "-r", help="runner by name; the first is the reference; repeat the option"
            ),
        ] = None,
        model_b: Annotated[
            str | None, typer.Option("--model-b", help="a second checkpoint for runners called NAME@b")
        ] = None,
        lengths: Annotated[
            list[int] | None, typer.Option("--lengths", help="prompt lengths in tokens: --lengths 64 256")
        ] = None,
        new_tokens: Annotated[int, typer.Option(help="tokens that every run is forced to write")] = 128,
        repeats: Annotated[int, typer.Option(help="timed rounds; 10 or more for numbers to publish")] = 10,
        warmups: Annotated[int, typer.Option(help="untimed whole runs of every runner before them")] = 1,
        judged: Annotated[int, typer.Option(help="new tokens that a verdict covers, at most")] = 16,
        prompts: Annotated[
            str, typer.Option(help="text (Python's language reference), ids (random), or auto")
        ] = "auto",
        seed: Annotated[int, typer.Option(help="of random ids")] = 0,
        budget_kl: Annotated[
            float | None, typer.Option(help="lossy runners: mean KL in nats, at most")
        ] = None,
        budget_top1: Annotated[
            float | None, typer.Option(help="lossy runners: share of equal top tokens, at least")
        ] = None,
        out: Annotated[
            str | None,
            typer.Option("--out", "-o", help="folder for rows.jsonl, bench.json, bench.md, curves.png"),
        ] = None,
        resume: Annotated[
            bool, typer.Option("--resume", help="go on with the rows that --out holds")
        ] = False,
        threads: Annotated[int | None, typer.Option(help="threads of torch (default: torch's own)")] = None,
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        trust_remote_code: TrustOption = False,
        as_json: JsonOption = False,
    ) -> int:
        """Time runners at several prompt lengths: prefill, decode, memory, share of the ceiling, verdicts."""
        names = runner or DEFAULT_RUNNERS
        _check(names, model_b)
        settings = {
            "lengths": lengths or [64, 256],
            "new_tokens": new_tokens,
            "repeats": repeats,
            "warmups": warmups,
            "judged_positions": judged,
            "prompts": prompts,
            "seed": seed,
            "budget": budget_of(budget_kl, budget_top1),
        }
        from twinrun.bench.settings import BenchSettings

        BenchSettings.of(settings)
        with threads_set(threads):
            sides = _sides(names, model, model_b, dtype, device, trust_remote_code)
            found = _run(sides, out, resume, settings)
        _report(found, out, as_json)
        return 0 if found.passed else 1


def _check(names: list[str], model_b: str | None) -> None:
    from twinrun.errors import ConfigError
    from twinrun.runners.registry import ALIASES

    full = [
        ALIASES.get(n.removesuffix(SECOND), n.removesuffix(SECOND)) + SECOND * n.endswith(SECOND)
        for n in names
    ]
    for name in full:
        if full.count(name) > 1:
            raise ConfigError(
                f"runner {name!r} was given twice; give it once: the A/A run repeats the first by itself"
            )
        if name.endswith(SECOND) and model_b is None:
            raise ConfigError(f"runner {name!r} needs a second model; give --model-b")
    if model_b is not None and not any(n.endswith(SECOND) for n in full):
        raise ConfigError(f"--model-b {model_b} is used by no runner; ask for one with --runner NAME{SECOND}")
    if full[0].endswith(SECOND):
        raise ConfigError(f"{full[0]!r} comes first, but the reference runs the first model; put it later")


def budget_of(kl: float | None, top1: float | None) -> dict[str, float] | None:
    """The budget that was typed; None if none was."""
    given = {"kl": kl, "top1": top1}
    return {key: value for key, value in given.items() if value is not None} or None


@contextmanager
def threads_set(count: int | None) -> Iterator[None]:
    """Set torch's threads inside the block; None leaves them.

    Raises:
        ConfigError: fewer than one.
    """
    import torch

    from twinrun.errors import ConfigError

    if count is not None and count < 1:
        raise ConfigError(f"threads must be at least 1, got {count}")

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sides(
    names: list[str], model: str, model_b: str | None, dtype: str, device: str, trust: bool
) -> dict[str, Any]:
    from twinrun.models.tokenizers import check_same_tokens
    from twinrun.runners.registry import build_runner, refuse_unknown

    bare = [refuse_unknown(n.removesuffix(SECOND)) for n in names]  # before weights are read
    first = open_model(model, dtype, device, trust_remote_code=trust)
    second: Model | None = None
    if model_b is not None:
        second = open_model(model_b, dtype, device, trust_remote_code=trust)
        check_same_tokens(first, second, [])
    sides = {}
    for given, name in zip(names, bare, strict=True):
        on_second = given.endswith(SECOND) and second is not None
        sides[name + SECOND * on_second] = build_runner(name, second if on_second and second else first)
    return sides


def _run(sides: dict[str, Any], out: str | None, resume: bool, settings: dict[str, Any]) -> Bench:
    from twinrun.bench.bench import bench

    with progress(None, "bench") as (bar, task):
        return bench(
            sides,
            out=out,
            resume=resume,
            on_progress=moves(bar, task),
            **settings,
        )


def _report(found: Bench, out: str | None, as_json: bool) -> None:
    from twinrun.report.bench_plots import bench_curves
    from twinrun.report.bench_text import bench_text

    record = found.to_json()
    report(
        record,
        bench_text(record),
        as_json,
        picture=None if out is None else (Path(out) / "curves.png", lambda: bench_curves(record)),
        beside="rows.jsonl, bench.json, bench.md",
    )
