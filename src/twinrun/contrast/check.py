"""Is the trick sound here? Both models token by token against one pass each, on one text: every number, and a verdict.

One forward over prompt and answer gives the distributions of all answer tokens only if a model's logits at a position
depend on nothing that follows it. That holds for a causal model by construction, and in practice with few exceptions;
this is where it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twinrun.contrast.check_steps import measured
from twinrun.contrast.checked import SIDES, Checked, CheckText
from twinrun.contrast.problems import Question
from twinrun.contrast.sampler import Sampler
from twinrun.contrast.settings import SampleSettings
from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.models.tokenizers import check_same_tokens
from twinrun.numerics.precision import dtype_name
from twinrun.runners.kvcache import KVCache
from twinrun.runners.recompute import Recompute
from twinrun.runners.score import token_texts
from twinrun.runners.singlepass import SinglePass
from twinrun.verify.case import Case
from twinrun.verify.verify import verify

Progress = Callable[[int, int, str], object]


def answered_texts(
    expert: Model,
    amateur: Model,
    prompts: Sequence[tuple[str, str]],
    *,
    max_new_tokens: int = 32,
    chat: str = "auto",
) -> list[CheckText]:
    """Let the expert answer, greedily, as sampling does; or take the texts as they are.

    Args:
        expert: answers.
        amateur: must have room for prompt and answer too.
        prompts: (label, text).
        max_new_tokens: length of an answer; 0 takes each text itself, checked from its second token on.
        chat: use the chat template: "auto", "on", "off".

    Raises:
        ConfigError: tokenizers that disagree, or a text beyond the context.
    """
    if max_new_tokens < 0:
        raise ConfigError(
            f"max_new_tokens must be at least 0, got {max_new_tokens}; 0 checks the text itself"
        )
    if max_new_tokens == 0:
        check_same_tokens(expert, amateur, [text for _, text in prompts])
        found = [(label, amateur.encode(expert.encode(text)), 1) for label, text in prompts]
    else:
        settings = SampleSettings(max_new_tokens=max_new_tokens, chat=chat)  # type: ignore[arg-type]  # refused there
        sampler = Sampler(expert, amateur, settings)
        asked = [Question(prompt_id=label, text=text, where=label) for label, text in prompts]
        ids = [list(sampler.prompt(question, i).ids) for i, question in enumerate(asked)]
        answers = KVCache(expert).generate(ids, max_new_tokens).tokens
        found = [
            (label, amateur.encode([*prompt, *answer]), len(prompt))
            for (label, _), prompt, answer in zip(prompts, ids, answers, strict=True)
        ]
    return [
        CheckText(
            label=label, ids=tuple(ids), start=start, tokens=tuple(token_texts(expert, ids) or ()) or None
        )
        for label, ids, start in found
    ]


def check(
    expert: Model,
    amateur: Model,
    texts: Sequence[CheckText],
    *,
    beta: float = 0.4,
    sweep: bool = True,
    on_progress: Progress | None = None,
) -> Checked:
    """Compare both models run token by token with one pass each, and judge each by `twinrun.verify`.

    Source: the comparison script of the proposal for LightReasoner (pull request 12 of its project): logits,
        probabilities, the five likeliest ids, and KL at every step.

    Args:
        expert: one model.
        amateur: the other; the same token ids.
        texts: what `answered_texts` returns, or token ids of your own.
        beta: nats, for which steps would be kept either way.
        sweep: let the verdict hear both ways one precision up too.
        on_progress: called with (passes done, passes in all, what is run).

    Returns:
        `Checked`; it passes if both verdicts do.

    Raises:
        ConfigError: no texts, or tokenizers that disagree.

    Differs from the script: it decides by an absolute and a relative tolerance; here the verdict decides, without one.

    Cost: one forward a token and model, twice (once for the table), and half as many one precision up.

    Example:
        >>> pair = load("builtin:expert"), load("builtin:amateur")
        >>> check(*pair, answered_texts(*pair, [("sum", "3 + 4 = 7")], max_new_tokens=0)).passed
        True
    """
    if not texts:
        raise ConfigError("no texts to check; give --prompt TEXT or --data FILE")
    check_same_tokens(expert, amateur)
    total, seconds = 2 + 2 * len(texts), {who: {"sequential": 0.0, "single": 0.0} for who in SIDES}
    tick = on_progress or (lambda *_: None)
    cases = [Case(label=t.label, rows=(t.ids[:-1],), starts=(t.start,)) for t in texts]
    steps = []
    for number, text in enumerate(texts):
        tick(2 * number, total, text.label)
        steps.append((text.label, measured(expert, amateur, text, beta, seconds)))
    verdicts = []
    for number, (who, model) in enumerate(zip(SIDES, (expert, amateur), strict=True)):
        tick(2 * len(texts) + number, total, f"verdict of the {who}")
        verdicts.append(verify(Recompute(model), SinglePass(model), cases, sweep=sweep))
    return Checked(
        expert=expert.name,
        amateur=amateur.name,
        dtype={"expert": dtype_name(expert.dtype), "amateur": dtype_name(amateur.dtype)},
        beta=beta,
        verdicts=(verdicts[0], verdicts[1]),
        texts=tuple(steps),
        seconds=seconds,
    )
