"""What `diffusion_skip.py` measures with: the arms, a LLaDA of random weights, watched decodes, tasks, layer costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import twinrun as tr
from twinrun.bench.timing import Timing, interleave
from twinrun.models.parts import Slots
from twinrun.tasks.arithmetic import Problem, is_exact, problem

DUAL, DEFAULT, TUNED, RANKED = "dual cache", "token skip, default", "token skip, tuned", "importance skip"
NEVER = "token skip, threshold 1"
TUNED_SETTINGS = {"threshold": 0.99}  # measured: docs/token-skip.md
SEED, FIRST = 7, 1_000
BATCH = 50
LLADA = {
    "0.3b": {
        "vocab_size": 32_000, "hidden_size": 1_024, "intermediate_size": 2_816, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16,
    },
    # 0.3B as above with the vocabulary of LLaDA, and the shape of LLaDA-8B (its config.json).
    "0.3b-v126k": {
        "vocab_size": 126_464, "hidden_size": 1_024, "intermediate_size": 2_816, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16,
    },
    "8b": {
        "vocab_size": 126_464, "hidden_size": 4_096, "intermediate_size": 12_288, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "quick": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    },
}  # fmt: skip


def policies(layers: int) -> dict[str, Any]:
    """The arms: what is skipped in a model of so many layers."""
    shallow = max(2, layers // 3)
    return {
        DUAL: None,
        DEFAULT: tr.TokenSkip.for_depth(layers),
        TUNED: tr.TokenSkip(layer_k=shallow, **TUNED_SETTINGS),
        RANKED: tr.ImportanceSkip(),
    }


def choices(layers: int) -> dict[str, Any]:
    """Other settings, for accuracy alone: what neighbours, refreshing and depth are worth."""
    tuned = policies(layers)[TUNED]
    other = [{"neighbours": n} for n in (0, 1, 4)] + [{"neighbours": 0, "refresh_every": 4}]
    found = {
        f"tuned, {', '.join(f'{k}={v}' for k, v in each.items())}": replace(tuned, **each) for each in other
    }
    return found | {"default, threshold=0.999": tr.TokenSkip.for_depth(layers, threshold=0.999)}


def random_llada(
    shape: str, seed: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tr.Model:
    """A LLaDA of that shape with transformers' own random weights (standard deviation 0.02), drawn on the device."""
    sizes: dict[str, Any] = LLADA[shape]
    torch.manual_seed(seed)
    config = LlamaConfig(
        **sizes, max_position_embeddings=4_096, rms_norm_eps=1e-5, is_causal=False, pad_token_id=0,
        bos_token_id=None, eos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip
    config.mask_token_id = sizes["vocab_size"] - 1
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            module = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    model = tr.load(module.eval())
    model.name = f"LLaDA {shape}, random weights, seed {seed}"
    return model


def held_out(count: int) -> list[Problem]:
    """Held-out problems of one step, none of those that were looked at when the settings were chosen."""
    return [problem(FIRST + i, seed=SEED, split="heldout", steps=(1, 1)) for i in range(count)]


def prompts(model: tr.Model, items: Sequence[Problem]) -> list[list[int]]:
    """Questions in chat form, up to where the answer begins."""
    core = model.tokenizer.backend_tokenizer
    return [core.encode(f"<|user|>{item.question}<|end|><|assistant|>").ids for item in items]


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion. Source: Wilson 1927, JASA 22(158), the score interval."""
    rate, share = hits / total, z * z / total
    middle = (rate + share / 2) / (1 + share)
    half = z * math.sqrt(rate * (1 - rate) / total + share / (4 * total)) / (1 + share)
    return max(0.0, middle - half), min(1.0, middle + half)


def accuracy(runner: tr.Diffusion, items: Sequence[Problem], room: int) -> dict[str, Any]:
    """Exact answers of a runner, with their Wilson interval, forwards, and the share of token-layers skipped."""
    asked, hits, forwards, done, whole = prompts(runner.model, items), 0, 0, 0, 0
    for start in range(0, len(items), BATCH):
        run = runner.generate(asked[start : start + BATCH], room)
        texts = run.texts or []
        hits += sum(map(is_exact, texts, items[start : start + BATCH]))
        forwards += run.nfe
        cached = [step for step in run.steps if not step.full]
        done += sum(step.token_layers for step in cached)
        whole += sum(step.computed for step in cached) * run.num_layers
    low, high = wilson(hits, len(items))
    return {
        "exact": hits / len(items), "interval_95": [low, high], "hits": hits, "problems": len(items),
        "forwards": forwards, "skip_ratio": 1 - done / whole if whole else 0.0,
    }  # fmt: skip


@dataclass
class Stopwatch:
    """Decodes that stop after a number of forwards."""

    runner: tr.Diffusion
    asked: list[list[int]]
    room: int
    most: int

    def __call__(self) -> tr.DiffusionRun:
        """Decode at most so many forwards."""
        return self.runner.generate(
            self.asked, self.room, early_stop=False, observe=lambda step: step.index + 1 >= self.most
        )


def timed(
    model: tr.Model, asked: list[list[int]], policy: dict[str, Any], settings: dict[str, Any], repeats: int
) -> tuple[dict[str, Timing], dict[str, Timing], dict[str, float]]:
    """Time decodes under several policies in turns.

    Args:
        model: runs them.
        asked: prompts of the batch.
        policy: arms; the first one is timed twice.
        settings: `block`, `room`, `commit`, and `most` forwards a decode.
        repeats: rounds.

    Returns:
        By arm: seconds of a decode, seconds of one cached step (mean over a decode), skipped token-layers over all.
    """
    room, most = settings["room"], settings["most"]
    runners = {
        name: tr.Diffusion(
            model, block_length=settings["block"], cache="dual", commit=settings["commit"], skip=skip
        )
        for name, skip in policy.items()
    }
    arms = {name: Stopwatch(runner, asked, room, most) for name, runner in runners.items()}
    steps: dict[str, list[float]] = {}
    ratios: dict[str, float] = {}

    def keep(name: str, run: tr.DiffusionRun) -> None:
        cached = [step.seconds for step in run.steps if not step.full]
        cached = cached or [
            step.seconds for step in run.steps
        ]  # a block so small that its first step fills it
        steps.setdefault(name, []).append(sum(cached) / len(cached))
        ratios[name] = run.skip_ratio

    whole = interleave(arms, repeats=repeats, on_result=keep)
    return whole, {name: Timing.of(steps[name]) for name in whole}, ratios


def layer_costs(model: tr.Model, widths: Sequence[int], room: int, repeats: int) -> list[dict[str, float]]:
    """Seconds of a layer on 1 row of so many tokens that attend to `room` slots: all layers in turn, over their number.

    In turn, because a layer called again and again would find its weights in the processor's cache. `efficiency` is
    the first width's seconds a token over this one's: what is lost when fewer tokens go through.
    """
    parts = tr.Diffusion(model).parts
    layers, size = parts.num_layers, int(model.config.hidden_size)
    slots = Slots(room)

    def arm(tokens: int) -> Any:
        hidden = torch.randn(1, tokens, size, device=model.device, dtype=model.dtype)
        rotary = parts.rotary(hidden, torch.arange(tokens, device=model.device)[None])

        def call() -> None:
            slots.at = slice(0, tokens)
            with torch.inference_mode():
                for layer in range(layers):
                    parts.layer(layer, hidden, rotary, None, slots)

        return call

    found = interleave({str(w): arm(w) for w in widths}, repeats=repeats)
    seconds = {w: found[str(w)].seconds_median / layers for w in widths}
    best = seconds[widths[0]] / widths[0]
    return [{"tokens": w, "seconds_median": s, "efficiency": best * w / s} for w, s in seconds.items()]
