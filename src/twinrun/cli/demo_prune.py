"""Step six of the demo: a needle in a long prompt, found with every token and with a third of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from twinrun.bench.timing import interleave, noise, ratio
from twinrun.cli.common import open_model
from twinrun.cli.demo_text import SEED, Text
from twinrun.cli.demo_twins import first_row, lean, score_fully, speed_of
from twinrun.prune.pruned import Pruned
from twinrun.prune.scorer import Scorer
from twinrun.runners.kvcache import KVCache
from twinrun.runners.runner import ModelRunner
from twinrun.tasks.retrieval import Retrieval, RetrievalSettings, is_exact, retrieval
from twinrun.verify.budget import Budget
from twinrun.verify.verify import verify

NAME, START = "builtin:long", "<|endoftext|>"
"""The model, and the token that every text of its training began with."""
BUDGET = Budget(kl=0.1, top1=0.95)
SENTENCES, DIGITS, ROOM, ROUNDS = 100, 5, 12, 3


def pruned() -> dict[str, Any]:
    """Answer with the whole prompt and with a pruned one: tokens left in each layer, the verdict, the speed beside."""
    model = open_model(NAME, "float32")
    scorer = Scorer.load(NAME, model)
    asked = retrieval(
        0, RetrievalSettings(task="niah_single", size=SENTENCES, digits=DIGITS, seed=SEED, split="heldout")
    )
    prompt = model.encode(START + asked.prompt)
    whole, cut = KVCache(model), Pruned(model, scorer, schedule=scorer.schedule)
    ways = [_way(runner, prompt, asked) for runner in (whole, cut)]
    assert cut.last is not None
    text = Text(
        ids=[*prompt, *model.encode(asked.answer_text)], start=len(prompt), source=asked.settings.task
    )
    verdict = verify(whole, cut, [text.case], budget=BUDGET)
    arms = {runner.name: partial(score_fully, runner, text) for runner in (whole, cut)}
    times = interleave(arms, repeats=ROUNDS, warmups=1)
    gain = ratio(times[whole.name], times[cut.name])
    return {
        "model": NAME,
        "prompt_tokens": len(prompt),
        "question": asked.asked[0].question,
        "expected": asked.answer_text.strip(),
        "layer_lengths": list(cut.last.layer_lengths()),
        "ways": ways,
        "twins": {
            "dtype": whole.dtype,
            "repeats": ROUNDS,
            "noise": noise(times).to_json(),
            "rows": [
                first_row(whole, times),
                {**lean(verdict), "speed": speed_of(times[cut.name], gain)},
            ],
        },
    }


def _way(runner: ModelRunner, prompt: list[int], asked: Retrieval) -> dict[str, Any]:
    text = (runner.generate(prompt, max_new_tokens=ROOM).texts or [""])[0]
    return {"runner": runner.name, "text": text.strip(), "is_right": is_exact(text, asked)}
