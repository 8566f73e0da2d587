"""Step five of the demo: two problems filled in by a masked-diffusion model, plainly and with a faster setting."""

from __future__ import annotations

from typing import Any

from twinrun.cli.common import open_model
from twinrun.cli.demo_text import SEED
from twinrun.cli.demo_twins import lean, speed_of
from twinrun.cli.diffuse_compare import OURS, THEIRS, Compared, Twin, compare
from twinrun.diffusion.commit import Threshold
from twinrun.diffusion.diffusion import Diffusion
from twinrun.records.diffusion_run import DiffusionRun
from twinrun.tasks.arithmetic import Problem, is_exact, problem
from twinrun.verify.budget import Budget

NAME = "builtin:diffusion"
BUDGET = Budget(kl=0.1, top1=0.95)
ROOM, PROBLEMS, ROUNDS = 32, 2, 2


def filled() -> dict[str, Any]:
    """Answer the problems both ways: forwards, right answers, the verdict on the cache, and the speed beside it."""
    model = open_model(NAME, "float32")
    asked = [problem(i, seed=SEED, split="heldout", steps=(1, 1)) for i in range(PROBLEMS)]
    twin = Twin(
        ours=Diffusion(model, cache="dual", commit=Threshold(0.9)),
        theirs=Diffusion(model),
        call={"max_new_tokens": ROOM},
    )
    found = compare(twin, [model.chat(p.question) for p in asked], BUDGET, ROUNDS)
    return {
        "model": NAME,
        "ways": [_way(found.theirs, asked), _way(found.ours, asked)],
        "twins": {
            "dtype": found.ours.dtype,
            "repeats": ROUNDS,
            "noise": found.noise.to_json(),
            "rows": _rows(found),
        },
    }


def _way(run: DiffusionRun, asked: list[Problem]) -> dict[str, Any]:
    return {
        "runner": run.runner,
        "commit": run.settings["commit"],
        "nfe": run.nfe,
        "nfe_full": run.nfe_full,
        "nfe_block": run.nfe_block,
        "new_tokens": run.new_tokens,
        "right": sum(map(is_exact, run.texts or [], asked)),
        "problems": len(asked),
        "texts": run.texts,
    }


def _rows(found: Compared) -> list[dict[str, Any]]:
    """Both ways as the verdict tables of the demo take them; the plain one is its own reference."""
    assert found.verdict is not None
    plain = {
        "candidate": found.theirs.runner, "verdict": "reference", "dtype": found.theirs.dtype,
        "ratio_max": None, "ratio_rms": None, "kl_mean": None,
        "speed": speed_of(found.times[THEIRS], found.noise),
    }  # fmt: skip
    speed = speed_of(found.times[OURS], found.speed_up)
    return [plain, {**lean(found.verdict), "speed": speed}]
