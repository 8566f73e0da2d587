"""Predicted bytes against measured ones: weights, KV caches, and the peak of each way to make logits.

`tr.plan_memory` sees a config; the measurement builds the model with random weights and runs it. Bars: every predicted
peak and cache is within 10 % of the measured one, above the weights as well as with them. Bytes, not seconds: the
machine need not be quiet. Tensors are counted exactly (twinrun.bench.memory); how far the process itself grew, by the
kernel's count, stands beside some rows and is not judged.

  python benchmarks/memory_plan.py                       all models, a few minutes, 5 GB
  python benchmarks/memory_plan.py --quick --out x.json  small models, seconds
  python benchmarks/memory_plan.py --models gpt2,gemma2  only these
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from _record import at_most, run, say
from _shapes import qwen_config, random_ids
from transformers import AutoModelForCausalLM

import twinrun as tr
from twinrun.bench.memory import peak_extra_bytes, peak_resident_bytes
from twinrun.errors import ConfigError, near_names
from twinrun.runners.forward import forward

ABOUT = "memory predicted from a config, against the bytes that the built model holds"
WITHIN = 0.10
NEW_TOKENS = 3
GEMMA = {
    "vocab_size": 64_000, "hidden_size": 512, "intermediate_size": 2_048, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "sliding_window": 64,
    "query_pre_attn_scalar": 64, "max_position_embeddings": 8_192,
}  # fmt: skip
MISTRAL = {
    "vocab_size": 32_000, "hidden_size": 1_024, "intermediate_size": 3_584, "num_hidden_layers": 4,
    "num_attention_heads": 16, "num_key_value_heads": 4, "sliding_window": 64, "max_position_embeddings": 8_192,
}  # fmt: skip
SMALL = {
    "vocab_size": 2_048,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "head_dim": 16,
}
MODELS: dict[str, tuple[Callable[[], Any], list[tuple[int, int]]]] = {
    # name: (its config or the name of a built-in, the (batch, context) pairs)
    "builtin:expert": (lambda: "builtin:expert", [(1, 512), (4, 256)]),
    "builtin:gpt": (lambda: "builtin:gpt", [(1, 512), (4, 192)]),
    "gpt2": (lambda: hf.GPT2Config(), [(1, 256), (4, 64)]),
    "qwen2.5-0.5b": (lambda: qwen_config("qwen2.5-0.5b"), [(1, 128), (3, 40)]),
    "gemma2": (lambda: hf.Gemma2Config(**GEMMA), [(1, 512), (4, 96)]),
    "mistral": (lambda: hf.MistralConfig(**MISTRAL), [(1, 1024), (4, 96)]),
    "quick": (lambda: qwen_config("quick"), [(2, 96)]),
    "quick-window": (
        lambda: hf.Gemma3TextConfig(**SMALL, num_attention_heads=4, sliding_window=16),
        [(2, 96)],
    ),
}
ATTENTIONS = ("sdpa", "eager")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    models: str = field(
        default="builtin:expert,builtin:gpt,gpt2,qwen2.5-0.5b,gemma2,mistral",
        metadata={"help": "which, separated by commas"},
    )
    new_tokens: int = field(default=NEW_TOKENS, metadata={"help": "tokens generated"})
    seed: int = field(default=0, metadata={"help": "of weights and tokens"})

    @classmethod
    def quick(cls) -> Config:
        """Models for a smoke test."""
        return cls(models="quick,quick-window")


def load(source: Any, dtype: str, attention: str) -> tr.Model | None:
    """The model itself, with random weights unless it is a built-in; None if it lacks that attention."""
    try:
        if isinstance(source, str):
            return tr.load(source, dtype=dtype, attention=attention)
        make: Any = AutoModelForCausalLM.from_config
        return tr.load(make(source, dtype=getattr(torch, dtype), attn_implementation=attention).eval())
    except ValueError:
        return None


def weights_held(model: tr.Model) -> int:
    """Bytes of the storages that parameters and buffers stand on, shared ones once."""
    tensors = [*model.model.parameters(), *model.model.buffers()]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(held.values())


def cache_held(cache: Any) -> int:
    """Bytes of the storages that a cache's keys and values stand on."""
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def ways(model: tr.Model, rows: list[list[int]], new_tokens: int) -> dict[str, Callable[[], object]]:
    """What is measured, under the names of the plan; each call is one whole request."""
    ids = torch.tensor(rows, device=model.device)

    def prompt(*, upcast: bool) -> object:
        cache = tr.KVCache(model).new_cache(ids.shape[1] + new_tokens)
        with torch.inference_mode():
            logits = forward(model, ids, cache=cache, last=False)
            return (logits.float() if upcast else logits), logits, cache

    def scored() -> object:
        scores = tr.SinglePass(model, tr.LogitsPolicy()).score_batch(rows, [1] * len(rows))
        with torch.inference_mode():
            return [each.stats(top_k=1) for each in scores]

    return {
        "whole prompt": lambda: prompt(upcast=False),
        "whole prompt, float32": lambda: prompt(upcast=True),
        "streamed": scored,
        "last row, dynamic": lambda: generated(model, ids, "dynamic", new_tokens),
        "last row, static": lambda: generated(model, ids, "static", new_tokens),
    }


def generated(model: tr.Model, ids: torch.Tensor, kind: str, new_tokens: int) -> Any:
    """Prompt and new tokens through a cache, as `KVCache` feeds it; returns the cache."""
    runner = tr.KVCache(model, cache=kind)
    cache = runner.new_cache(ids.shape[1] + new_tokens)
    with torch.inference_mode():
        logits = forward(model, ids, cache=cache).float()
        for _ in range(new_tokens):
            logits = forward(model, logits[:, -1].argmax(-1, keepdim=True), cache=cache).float()
    return cache


def predicted(plan: tr.MemoryPlan) -> dict[str, int]:
    """Peaks above the weights, under the same names."""
    found = {row.policy: row.total_bytes - plan.weights_bytes for row in plan.logits}
    prompt = {row.policy: row.prefill_bytes for row in plan.logits}
    return {
        "whole prompt": prompt["whole prompt"],
        "whole prompt, float32": prompt["whole prompt, float32"],
        "streamed": found["streamed"],
        "last row, dynamic": plan.cache("dynamic").total_bytes - plan.weights_bytes,
        "last row, static": plan.cache("static").total_bytes - plan.weights_bytes,
    }


def row(what: str, predicted_bytes: int, measured_bytes: int, base: int = 0) -> dict[str, Any]:
    """One line of the record. `off` is of the part above the weights, `off_total` of everything."""
    return {
        "what": what,
        "predicted_bytes": predicted_bytes,
        "measured_bytes": measured_bytes,
        "off": predicted_bytes / measured_bytes - 1,
        "off_total": (predicted_bytes + base) / (measured_bytes + base) - 1,
    }


def compare(model: tr.Model, plan: tr.MemoryPlan, seed: int, *, resident: bool) -> list[dict[str, Any]]:
    """Every prediction of one plan beside its measurement."""
    rows = [random_ids(plan.context, model.vocab_size, seed + i) for i in range(plan.batch)]
    weights = weights_held(model)
    lines = [row("weights", plan.weights_bytes, weights)]
    expected, kept = predicted(plan), list[Any]()
    for name, way in ways(model, rows, plan.new_tokens).items():
        measured = peak_extra_bytes(lambda way=way: kept.append(way()))
        lines.append(row(name, expected[name], measured, weights))
        result = kept.pop()
        if resident:
            lines[-1]["resident_bytes"] = peak_resident_bytes(way)
        if name.startswith("last row"):
            kind = name.rpartition(" ")[2]
            lines.append(row(f"cache, {kind}", plan.cache(kind).device_bytes, cache_held(result)))
        del result
    return lines


def measure(config: Config) -> dict[str, Any]:
    """Compare all models in both precisions under both kinds of attention."""
    settings: list[dict[str, Any]] = []
    names = config.models.split(",")
    for name in names:
        if name not in MODELS:
            raise ConfigError(
                f"no model {name!r}; choose from {', '.join(MODELS)}.{near_names(name, MODELS)}"
            )
    for name in names:
        source, sizes = MODELS[name][0](), MODELS[name][1]
        for dtype in DTYPES:
            for attention in ATTENTIONS:
                torch.manual_seed(config.seed)
                model = load(source, dtype, attention)
                if model is None:
                    say(f"{name} has no {attention} attention")
                    continue
                say(f"{name}, {dtype}, {attention}")
                generated(model, torch.tensor([[1, 2]]), "static", 1)  # caches that torch fills for good
                for batch, context in sizes:
                    plan = tr.plan_memory(
                        source, context=context, batch=batch, new_tokens=config.new_tokens, dtype=dtype,
                        attention=attention, memory=1, device="cpu",
                    )  # fmt: skip
                    lines = compare(model, plan, config.seed, resident=attention == "sdpa" and context >= 256)
                    about = {
                        "model": name,
                        "dtype": dtype,
                        "attention": attention,
                        "batch": batch,
                        "context": context,
                    }
                    settings.append({**about, "rows": lines})
    return {
        "arms": {},
        "ratios": {},
        "settings": settings,
        "notes": _notes(settings),
        "bars": _bars(settings),
    }


def _notes(settings: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'':<46}{'predicted':>12}{'measured':>12}{'off':>8}"]
    for each in settings:
        head = f"{each['model']} {each['dtype']} {each['attention']} {each['batch']}x{each['context']}"
        lines.append(head)
        for line in each["rows"]:
            sizes = [f"{line[key] / 2**20:>8.1f} MiB" for key in ("predicted_bytes", "measured_bytes")]
            lines.append(f"    {line['what']:<42}" + "".join(sizes) + f"{line['off']:>+8.2%}")
    return lines


def _bars(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst of each kind; weights count in total peaks, not in the others."""
    bars = []
    for what in dict.fromkeys(line["what"] for each in settings for line in each["rows"]):
        found = [line for each in settings for line in each["rows"] if line["what"] == what]
        worst = max(abs(line["off"]) for line in found)
        bars.append(at_most(f"{what}, worst of {len(found)}, weights left out", worst, WITHIN, "share"))
    every = [abs(line["off_total"]) for each in settings for line in each["rows"]]
    return [*bars, at_most(f"with the weights, worst of {len(every)}", max(every), WITHIN, "share")]


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("memory_plan", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
