"""lm-evaluation-harness on twinrun's runners: a model class that it knows as `twinrun`.

Source: EleutherAI/lm-evaluation-harness 0.4.13, `lm_eval.api.model.TemplateLM`, whose tokenizing and splitting of
context and continuation is inherited. The package is optional, so the class is made when it is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch

from twinrun.errors import ConfigError, MissingBackendError
from twinrun.models.load import load
from twinrun.models.model import Model
from twinrun.quality.sides import runner_named
from twinrun.quality.team import Team
from twinrun.runners.runner import ModelRunner

NAME = "twinrun"
DEFAULT_LENGTH, DEFAULT_NEW_TOKENS = 2048, 256
SAMPLING: tuple[str, ...] = ("top_k", "top_p", "seed")
LOADING = ("dtype", "device", "attention", "trust_remote_code", "revision")
"""Arguments that `twinrun.load` takes; what else is not the harness's belongs to the runner."""


@cache
def harness_model() -> Any:
    """Return the class, registered with the harness under the name `twinrun`.

    Raises:
        MissingBackendError: lm-evaluation-harness is not installed.
    """
    try:
        importlib.import_module(
            "lm_eval.models"
        )  # the harness registers its own only while there is no other
        from lm_eval import utils
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise MissingBackendError(
            "lm-evaluation-harness is not installed; pip install 'twinrun[lm-eval]'"
        ) from error

    @register_model(NAME)
    class TwinrunLM(TemplateLM):  # type: ignore[misc]  # unannotated there
        """A model of the harness whose numbers come from one of twinrun's runners.

        Args:
            pretrained: what `twinrun.load` takes.
            runner: recompute, kv-cache:KIND, single-pass, or pruned.
            batch_size: rows together; "auto" is 1.
            max_length: longest text in tokens; default: the model's context.
            max_gen_toks: tokens of an answer where a task names none.
            **options: dtype, device, attention, revision, trust_remote_code; for `pruned` also scorer, selector,
                schedule (pairs separated by slashes: 4:0.9/7:0.81), keep, first, every, protect_first, protect_last,
                seed.
        """

        def __init__(
            self,
            pretrained: str,
            runner: str = "kv-cache",
            batch_size: int | str = 1,
            max_length: int | None = None,
            max_gen_toks: int = DEFAULT_NEW_TOKENS,
            **options: Any,
        ) -> None:
            super().__init__()
            options.pop("max_batch_size", None)
            self.team = Team()
            self._rank, self._world_size = self.team.rank, self.team.size
            self.runner = _runner(pretrained, runner, options, self.team)
            self.tokenizer = self.runner.model.tokenizer
            self.batch = int(batch_size) if str(batch_size).isdigit() else 1
            own = self.runner.max_context or DEFAULT_LENGTH
            self.max_length = own if max_length is None else min(int(max_length), own)
            self.max_gen_toks = int(max_gen_toks)

        @property
        def device(self) -> str:
            """Where the model runs, as the harness asks for it."""
            return str(self.runner.model.device)

        @property
        def eot_token_id(self) -> int:
            """Id that ends a text; also stands before a text without a context."""
            own = getattr(self.tokenizer, "eos_token_id", None)
            return min(self.runner.model.eos_ids, default=0) if own is None else int(own)

        @property
        def prefix_token_id(self) -> int:
            """Id before a text without a context: the start token, else the end token."""
            start = getattr(self.tokenizer, "bos_token_id", None)
            return self.eot_token_id if start is None else int(start)

        @property
        def tokenizer_name(self) -> str:
            """Name that tells caches of prompts apart."""
            return str(self.runner.model_name).replace("/", "__")

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            """Format messages as text."""
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            """Ids of a text; a start token that the text has already is not put before it again."""
            start = getattr(self.tokenizer, "bos_token", None)
            asked = (
                not (start and string.startswith(start)) if add_special_tokens is None else add_special_tokens
            )
            return [
                int(i) for i in self.tokenizer(string, add_special_tokens=asked, verbose=False)["input_ids"]
            ]

        def _loglikelihood_tokens(
            self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            found = loglikelihoods(self.runner, [r[1:] for r in requests], self.batch, self.max_length)
            for request, result in zip(requests, found, strict=True):
                if request[0] is not None:  # rolling windows have no text of their own
                    self.cache_hook.add_partial("loglikelihood", request[0], result)
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            """Log-likelihood of whole texts, in windows that each predict as many tokens as fit."""
            found = []
            for (text,) in [request.args for request in requests]:
                ids = self.tok_encode(text)
                windows = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - 1, 1)
                pairs = [utils.make_disjoint_window(window) for window in windows]
                parts = loglikelihoods(self.runner, pairs, self.batch, self.max_length)
                total = sum(part[0] for part in parts)
                self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
                found.append(total)
            return found

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            """Greedy or sampled continuations, cut at the first stop string."""
            found = []
            for context, settings in [request.args for request in requests]:
                text = continuation(
                    self.runner, self.tok_encode(context), dict(settings), self.max_length, self.max_gen_toks
                )
                self.cache_hook.add_partial("generate_until", (context, settings), text)
                found.append(text)
            return found

        def all_gather(self, tensor: Any) -> Any:
            """Put the tensors of all processes one behind another."""
            return torch.cat([part.reshape(-1) for part in self.team.gather([tensor.cpu()])])

        def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
            """Objects of all processes, on process `dst`."""
            found = self.team.gather([obj])
            return found if self.team.rank == dst else None

        def barrier(self) -> None:
            """Wait for all processes."""
            self.team.wait()

    return TwinrunLM


def loglikelihoods(
    runner: ModelRunner, pairs: Sequence[Sequence[Sequence[int]]], batch: int, limit: int
) -> list[tuple[float, bool]]:
    """Log-likelihood of continuations in nats, and whether each is the greedy one.

    A pruning runner prunes the context, and the continuation is read behind it. What is too long loses its beginning.

    Args:
        runner: any causal runner.
        pairs: (context ids, continuation ids); both not empty.
        batch: rows together, the longest first.
        limit: longest text in tokens.

    Raises:
        ConfigError: a continuation that does not fit with one token of context.

    Example:
        >>> m = load("builtin:amateur")
        >>> from twinrun.runners.singlepass import SinglePass
        >>> loglikelihoods(SinglePass(m), [([5, 6], [7])], 1, 64)[0][1]
        False
    """
    order = sorted(range(len(pairs)), key=lambda i: (-sum(map(len, pairs[i])), i))
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for at in range(0, len(order), batch):
        chosen = [i for i in order[at : at + batch] if pairs[i][1]]
        rows, starts = [], []
        for i in chosen:
            context, end = pairs[i]
            if not context or len(end) >= limit:
                raise ConfigError(
                    f"a continuation of {len(end)} tokens behind {len(context)} does not fit into {limit} tokens; give "
                    "a larger max_length"
                )
            row = [*context, *end][-limit:]
            rows.append(row)
            starts.append(len(row) - len(end))
        for i, scores in zip(chosen, runner.score_batch(rows, starts) if rows else [], strict=True):
            stats = scores.stats(top_k=1)
            count = len(pairs[i][1])
            wanted = scores.next_ids[-count - 1 : -1]
            is_greedy = bool((stats.top_ids[-count - 1 : -1, 0].cpu() == wanted.cpu()).all())
            found[i] = float(stats.logprob[-count - 1 : -1].double().sum()), is_greedy
    return found


def continuation(
    runner: ModelRunner, prompt: Sequence[int], settings: dict[str, Any], limit: int, otherwise: int
) -> str:
    """Generate until a stop string, and return the text before it.

    Args:
        runner: any causal runner.
        prompt: ids of the context; its beginning is left out where it does not fit.
        settings: the harness's: until, max_gen_toks, do_sample, temperature, top_k, top_p.
        limit: longest text in tokens.
        otherwise: new tokens where the settings name none.

    Raises:
        ConfigError: settings that twinrun's runners do not have (beam search, say).
    """
    stops = _stops(settings.pop("until", None))
    new_tokens = int(
        next((settings.pop(k) for k in ("max_gen_toks", "max_new_tokens") if k in settings), otherwise)
    )
    new_tokens = max(1, min(new_tokens, limit - 1))
    samples = bool(settings.pop("do_sample", False)) and float(settings.get("temperature", 1.0)) > 0
    sampling: dict[str, Any] = {key: settings.pop(key) for key in SAMPLING if key in settings}
    temperature = float(settings.pop("temperature", 1.0))
    if settings:
        raise ConfigError(
            f"{', '.join(settings)}: twinrun's runners choose greedily or sample with temperature, top_k and top_p"
        )
    written: list[int] = []

    def observe(step: Any) -> bool:
        written.append(step.tokens[0])
        text = runner.model.decode(written) or ""
        return any(stop in text for stop in stops)

    chosen: dict[str, Any] = {"temperature": temperature, **sampling} if samples else {}
    run = runner.generate(list(prompt)[-(limit - new_tokens) :], new_tokens, observe, **chosen)
    text = (run.texts or [""])[0]
    for stop in stops:
        text = text.split(stop)[0]
    return text


def _stops(given: Any) -> list[str]:
    """Stop strings of a request, none of them empty."""
    many: Iterable[Any] = [given] if isinstance(given, str) else given or []
    return [str(stop) for stop in many if stop]


def _runner(pretrained: str, name: str, options: dict[str, Any], team: Team) -> ModelRunner:
    loading = dict(_taken(options, LOADING))
    wanted = str(loading.pop("device", None) or "auto")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        wanted = "auto"  # what the harness passes on its own where no device was asked for
    loading["device"] = team.device if team.device is not None and wanted in ("auto", "cuda") else wanted
    model: Model = load(pretrained, **loading)
    if model.tokenizer is None:
        raise ConfigError(f"{model.name} has no tokenizer; the harness's tasks are texts")
    return runner_named(model, name, options)


def _taken(options: dict[str, Any], names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        if name in options:
            yield name, options.pop(name)
