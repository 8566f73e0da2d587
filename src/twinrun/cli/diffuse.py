"""`twinrun diffuse`: fill in a canvas with a masked-diffusion model, and say what the faster way costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinrun.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    console,
    emit,
    open_model,
    read_prompts,
)

if TYPE_CHECKING:
    from twinrun.diffusion.diffusion import Diffusion
    from twinrun.models.model import Model

EPILOG = """Examples:

twinrun diffuse builtin:diffusion --chat --prompt "Tom has 3 apples and buys 4 more. How many has he?"

twinrun diffuse builtin:diffusion --chat --prompt "..." --cache dual --refresh-every 2 --commit threshold:0.9

twinrun diffuse ./LLaDA-8B --cache dual --commit factor:1.0 --against prefix+commit=threshold:0.9 --file a.txt --json

twinrun diffuse builtin:diffusion --prompt "The list" --cache dual --skip token:layer_k=3,threshold=0.999

Exit code 0: done, and the verdict on the setting passed; 1: it is `different`; 2: bad request."""

Prompt = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="a text; repeat it for a batch")]
File = Annotated[
    str | None,
    typer.Option("--prompt-file", "--file", "-f", help="a text file, or JSONL with --field"),
]
Field = Annotated[str | None, typer.Option(help="field of the JSONL file (default: text)")]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", help="masks a row, a multiple of the block")
]
BlockLength = Annotated[int, typer.Option(help="tokens of a block, filled left to right")]
Commit = Annotated[str, typer.Option(help="quota[:steps a block], threshold[:p] or factor[:f]")]
Steps = Annotated[int | None, typer.Option(help="forwards for all blocks together (with --commit quota)")]
Cache = Annotated[str, typer.Option(help="none, prefix or dual")]
RefreshEvery = Annotated[int | None, typer.Option(help="a full forward every k steps of a block")]
Skip = Annotated[
    str | None, typer.Option(help="token or importance; options behind a colon: token:layer_k=3")
]
Delay = Annotated[
    bool, typer.Option("--delay", help="reuse what the block's tokens held a step after their commit")
]
SuffixWindow = Annotated[
    int | None, typer.Option(help="leave out most masks behind the block, all beyond so many tokens")
]
Remasking = Annotated[str, typer.Option(help="low-confidence or random")]
Temperature = Annotated[float, typer.Option(help="0 is greedy")]
Seed = Annotated[int, typer.Option(help="row i draws from seed + i")]
EarlyStop = Annotated[
    bool, typer.Option("--early-stop/--no-early-stop", help="end a row at its end-of-text token")
]
Chat = Annotated[bool, typer.Option("--chat", help="put each prompt into the model's chat template")]
Against = Annotated[
    str, typer.Option(help="setting to compare with: none, dual+refresh_every=2+commit=threshold:0.9")
]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="compare; without it no speed is shown")]
Repeats = Annotated[int, typer.Option(help="timed runs of both settings, in turns")]
MaxKl = Annotated[float, typer.Option(help="budget of the verdict: mean KL in nats")]
MinTop1 = Annotated[float, typer.Option(help="budget: share of equal top tokens")]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("diffuse", epilog=EPILOG)
    def diffuse(
        model: ModelArgument,
        prompt: Prompt = None,
        file: File = None,
        field: Field = None,
        max_new_tokens: MaxNewTokens = 128,
        block_length: BlockLength = 32,
        commit: Commit = "quota",
        steps: Steps = None,
        cache: Cache = "none",
        refresh_every: RefreshEvery = None,
        skip: Skip = None,
        delay: Delay = False,
        suffix_window: SuffixWindow = None,
        remasking: Remasking = "low-confidence",
        temperature: Temperature = 0.0,
        seed: Seed = 0,
        early_stop: EarlyStop = True,
        chat: Chat = False,
        against: Against = "none",
        verify: Verify = True,
        repeats: Repeats = 3,
        max_kl: MaxKl = 0.1,
        min_top1: MinTop1 = 0.95,
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        as_json: JsonOption = False,
    ) -> int:
        """Fill in masks behind a prompt; forwards, speed, and the verdict beside it."""
        words = {"block_length": str(block_length), "commit": commit, "cache": cache, "remasking": remasking}
        given = {"refresh_every": refresh_every, "skip": skip, "suffix_window": suffix_window}
        words |= {name: str(value) for name, value in given.items() if value is not None}
        words |= {"delay": ""} if delay else {}
        call = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "early_stop": early_stop,
        }
        _check(against, verify, repeats)
        from twinrun.verify.budget import Budget

        budget = Budget(kl=max_kl, top1=min_top1)  # before a canvas is filled in
        texts = read_prompts(file, field, prompt)
        loaded = open_model(model, dtype, device)
        ours, theirs = _sides(loaded, words, against)
        prompts = [loaded.chat(text) if chat else ours.encode(text) for text in texts]
        shown = _run(ours, prompts, {**call, "steps": steps}, as_json)
        if not verify:
            emit(shown.to_json() | {"tokens_per_second": None, "comparison": None}, as_json)
            return 0

        from twinrun.cli.diffuse_compare import Twin, compare
        from twinrun.cli.diffuse_show import show_comparison

        twin = Twin(ours=ours, theirs=theirs, steps=steps, call=call)
        found = compare(twin, prompts, budget, repeats)
        show_comparison(found, console(as_json))
        emit(found.ours.to_json() | {"comparison": found.to_json()}, as_json)
        return 0 if found.passed else 1


def _check(against: str, verify: bool, repeats: int) -> None:
    from twinrun.errors import ConfigError

    if not verify and against != "none":
        raise ConfigError(
            f"--against {against} together with --no-verify: nothing is compared; leave one out"
        )
    if repeats < 1:
        raise ConfigError(f"--repeats must be at least 1, got {repeats}; 10 or more for numbers to publish")


def _sides(model: Model, words: dict[str, str], against: str) -> tuple[Diffusion, Diffusion]:
    """Build both settings; what `against` does not name is that of plain decoding, in the same blocks."""
    from twinrun.diffusion.diffusion import Diffusion
    from twinrun.diffusion.masked import mask_id_of, refuse_causal
    from twinrun.diffusion.named import read_settings, settings_of

    refuse_causal(model)
    mask_id_of(model)
    ours = Diffusion(model, **read_settings(words, model))
    return ours, Diffusion(
        model, **{"block_length": ours.settings.block_length, **settings_of(against, model)}
    )


def _run(runner: Diffusion, prompts: list[list[int]], call: dict[str, Any], as_json: bool) -> Any:
    """Decode once, the canvas live on a terminal, and print the texts and the forwards."""
    from twinrun.cli.diffuse_canvas import live_canvas
    from twinrun.cli.diffuse_show import show_run

    with live_canvas(runner.model, prompts, int(call["max_new_tokens"])) as observe:
        run = runner.generate(prompts, observe=observe, **call)
    show_run(run, console(as_json))
    return run
