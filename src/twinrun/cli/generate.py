"""`twinrun generate`: run a model freely with any runner."""

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
    progress,
    read_prompts,
)

EPILOG = """Examples:

twinrun generate builtin:expert --chat --prompt "Tom has 3 apples and buys 4 more. How many has he?"

twinrun generate builtin:expert --prompt "The list" --temperature 0.8 --top-p 0.95 --seed 7

twinrun generate ./my-model --runner kv-cache:static --file prompts.jsonl --field question --json"""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("generate", epilog=EPILOG)
    def generate(
        model: ModelArgument,
        prompt: Annotated[
            list[str] | None, typer.Option("--prompt", "-p", help="a text; repeat it for a batch")
        ] = None,
        file: Annotated[
            str | None, typer.Option("--file", "-f", help="a text file, or JSONL with --field")
        ] = None,
        field: Annotated[str | None, typer.Option(help="field of the JSONL file (default: text)")] = None,
        runner: Annotated[
            str, typer.Option("--runner", "-r", help="see `twinrun runners`")
        ] = "kv-cache:dynamic",
        max_new_tokens: Annotated[
            int, typer.Option("--max-new-tokens", "-n", help="tokens a row at most")
        ] = 128,
        chat: Annotated[
            bool, typer.Option("--chat", help="put each prompt into the model's chat template")
        ] = False,
        temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
        top_k: Annotated[int, typer.Option(help="draw from the k likeliest tokens; 0 keeps all")] = 0,
        top_p: Annotated[float, typer.Option(help="draw from the smallest set with this mass")] = 1.0,
        seed: Annotated[int, typer.Option(help="row i draws from seed + i")] = 0,
        dtype: DtypeOption = "auto",
        device: DeviceOption = "auto",
        trust_remote_code: TrustOption = False,
        as_json: JsonOption = False,
    ) -> None:
        """Generate text, greedily or sampled, from one prompt or a batch."""
        texts = read_prompts(file, field, prompt)
        loaded = open_model(model, dtype, device, trust_remote_code=trust_remote_code)

        from twinrun.runners.registry import build_runner

        side = build_runner(runner, loaded)
        prompts = [loaded.chat(text) for text in texts] if chat else texts
        with progress(max_new_tokens, "generating") as (bar, task):
            run = side.generate(
                prompts,
                max_new_tokens,
                lambda step: bar.update(task, completed=step.index + 1),
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
            )
        out = console(as_json)
        shown = run.texts if run.texts is not None else [str(ids) for ids in run.tokens]
        for number, (text, why) in enumerate(zip(shown, run.finish, strict=True), 1):
            if len(shown) > 1:
                out.print(f"--- {number} ({why})", markup=False)
            out.print(text, markup=False)
        emit(run.to_json(), as_json)
