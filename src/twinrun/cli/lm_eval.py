"""`twinrun lm-eval`: lm-evaluation-harness, with twinrun's runners as its models."""

from __future__ import annotations

import sys

import typer

EPILOG = """Everything behind the command is the harness's own; twinrun only adds the model `twinrun`:

twinrun lm-eval run --model twinrun --model_args pretrained=./model,runner=single-pass --tasks arc_easy

twinrun lm-eval run --model twinrun --model_args pretrained=./model,runner=pruned,scorer=./scorers --tasks gsm8k

twinrun lm-eval run --model twinrun --model_args pretrained=./model,runner=pruned,selector=norm,schedule=4:0.7/7:0.5

Exit code 2: bad request; 3: the harness is not installed (pip install 'twinrun\\[lm-eval]')."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        "lm-eval",
        epilog=EPILOG,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )
    def lm_eval(context: typer.Context) -> int:
        """Run lm-evaluation-harness on any runner of twinrun; its arguments are passed on."""
        from twinrun.models.load import quiet_transformers
        from twinrun.quality.harness import harness_model

        if context.args[:1] in (["--help"], ["-h"]) or not context.args:
            sys.stdout.write(EPILOG.replace("\\[", "[") + "\n\n")
        harness_model()
        quiet_transformers()
        from lm_eval.__main__ import cli_evaluate

        before, sys.argv = sys.argv, ["lm-eval", *context.args]
        try:
            cli_evaluate()
        except SystemExit as ended:  # argparse's way to say done, or no
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except (ValueError, TypeError, KeyError, NotImplementedError) as error:
            return _refused(error)
        finally:
            sys.argv = before
        return 0


def _refused(error: Exception) -> int:
    from twinrun.errors import TwinrunError

    if isinstance(error, TwinrunError):
        raise error
    sys.stderr.write(f"twinrun: lm-eval: {' '.join(str(error).split())[:300]}\n")
    return 2
