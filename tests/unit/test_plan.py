"""The planner against bytes that built models hold, and against arithmetic done by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import twinrun as tr
from tests.support import measured
from tests.support.tiny import tiny_folder
from tests.support.zoo import CONFIGS, FAMILIES, make
from twinrun.bench.memory import peak_extra_bytes
from twinrun.errors import (
    CheckpointError,
    ConfigError,
    MissingBackendError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from twinrun.models import memory, skeleton
from twinrun.models.builtin_names import builtin_folder
from twinrun.numerics.units import parse_bytes, show_bytes
from twinrun.plan import caches
from twinrun.plan.caches import PACKED, LayerShape, cache_bytes
from twinrun.plan.fit import CLOSE, largest

WITHIN = 0.10
BATCH, CONTEXT, NEW = 2, 70, 3
QUICK = [("mistral", "float32"), ("deepseek3", "float32"), ("gpt2", "float32"), ("falcon", "bfloat16")]
QWEN_7B = {
    "vocab_size": 152_064, "hidden_size": 3_584, "intermediate_size": 18_944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 131_072, "dtype": "bfloat16",
}  # fmt: skip


def agrees(predicted: int, found: int) -> bool:
    """The check of the benchmark and of every test here."""
    return abs(predicted / found - 1) <= WITHIN


def plan_of(source: Any, **sizes: Any) -> tr.MemoryPlan:
    sizes = {"context": CONTEXT, "batch": BATCH, "new_tokens": NEW, "memory": 1, "device": "cpu", **sizes}
    return tr.plan_memory(source, **sizes)


def ids_for(batch: int = BATCH, context: int = CONTEXT) -> torch.Tensor:
    return torch.arange(batch * context).view(batch, context).remainder(300)


def compare(family: str, dtype: str) -> dict[str, tuple[int, int]]:
    """(predicted, measured) of everything in one plan."""
    module = make(family, dtype).model
    size = min(CONTEXT, (getattr(module.config, "max_position_embeddings", None) or CONTEXT) - NEW)
    plan, ids = plan_of(module, dtype=dtype, context=size), ids_for(context=size)
    found = {"weights": (plan.weights_bytes, measured.weights(module))}
    for kind in ("dynamic", "static"):
        if (family, kind) == ("bloom", "static"):  # transformers cannot run it; see zoo.KNOWN
            continue
        peak = plan.cache(kind).total_bytes - plan.weights_bytes
        found[f"{kind} peak"] = (peak, measured.peak(module, ids, kind, NEW))
        found[f"{kind} cache"] = (plan.cache(kind).device_bytes, measured.cache(module, ids, kind, NEW))
    for policy, upcast in (("whole prompt", False), ("whole prompt, float32", True)):
        found[policy] = (plan.policy(policy).prefill_bytes, measured.whole_prompt(module, ids, upcast=upcast))
    return found


@pytest.mark.parametrize(("family", "dtype"), QUICK)
def test_predictions_agree_with_what_is_held(family: str, dtype: str) -> None:
    assert [name for name, pair in compare(family, dtype).items() if not agrees(*pair)] == []


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees(family: str) -> None:
    assert [name for name, pair in compare(family, "bfloat16").items() if not agrees(*pair)] == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_quantised_cache_agrees(dtype: str) -> None:
    module, ids = make("llama", dtype).model, ids_for(context=200)
    plan = plan_of(module, dtype=dtype, context=200)
    found = plan.cache("quantized")
    assert agrees(found.device_bytes, measured.cache(module, ids, "quantized", NEW))
    assert agrees(found.total_bytes - plan.weights_bytes, measured.peak(module, ids, "quantized", NEW))
    assert not agrees(plan.cache("dynamic").device_bytes, measured.cache(module, ids, "quantized", NEW))
    assert PACKED in [row.kind for row in plan.caches]
    kinds = [row.kind for row in plan_of(make("mistral").model).caches]
    assert kinds == ["dynamic", "static", "rolling"]


def test_streamed_scores_agree() -> None:
    model = make("qwen3", "bfloat16")
    rows = ids_for().tolist()

    def scored() -> object:
        return [s.stats(top_k=1) for s in tr.SinglePass(model).score_batch(rows, [1] * BATCH)]

    scored()
    plan = plan_of(model, dtype="bfloat16")
    assert agrees(plan.policy("streamed").prefill_bytes, peak_extra_bytes(scored))


def test_the_check_refuses_a_plan_that_forgets_something() -> None:
    """The control: each of these errors has been made by somebody's estimate."""
    config = hf.LlamaConfig(**{**CONFIGS["llama"][1], "vocab_size": 4096})
    module: Any = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    ids, plan = ids_for(), plan_of(config, dtype="bfloat16")
    cache, whole = (
        measured.cache(module, ids, "dynamic", NEW),
        measured.whole_prompt(module, ids, upcast=True),
    )
    assert agrees(plan.cache("dynamic").device_bytes, cache)
    assert agrees(plan.policy("whole prompt, float32").prefill_bytes, whole)
    groups = config.num_attention_heads // config.num_key_value_heads
    assert not agrees(plan.cache("dynamic").device_bytes * groups, cache)  # every head has its own keys
    assert not agrees(plan.policy("whole prompt").prefill_bytes, whole)  # no float32 copy
    assert not agrees(plan.cache("dynamic").device_bytes // BATCH, cache)  # one row
    held = measured.weights(module)
    assert agrees(plan.weights_bytes, held)
    assert not agrees(plan.weights_by_dtype["float32"], held)


def test_a_window_is_not_forgotten() -> None:
    module = make("mistral").model
    cache = measured.cache(module, ids_for(), "dynamic", NEW)
    assert agrees(plan_of(module).cache("dynamic").device_bytes, cache)
    without = hf.MistralConfig(**{**CONFIGS["mistral"][1], "sliding_window": None})
    assert not agrees(plan_of(without).cache("dynamic").device_bytes, cache)


def test_eager_attention_is_not_taken_for_fused() -> None:
    found = {}
    for attention in ("sdpa", "eager"):
        config = hf.LlamaConfig(**CONFIGS["llama"][1])
        module: Any = hf.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
        plan = plan_of(config, attention=attention, context=300)
        assert plan.attention == attention
        found[attention] = (plan.policy("last row").total_bytes - plan.weights_bytes, module)
    for attention, (predicted, module) in found.items():
        peak = measured.peak(module, ids_for(context=300), "dynamic", NEW)
        assert agrees(predicted, peak), attention
        other = found["eager" if attention == "sdpa" else "sdpa"][0]
        assert not agrees(other, peak)


def test_the_numbers_of_a_large_model_by_hand() -> None:
    config = hf.Qwen2Config(**{**QWEN_7B, "num_hidden_layers": 2})
    plan = plan_of(config, context=131_072, batch=1, new_tokens=0, memory="80GB", device="cuda")
    width, inner, heads = 3_584, 18_944, 4 * 128
    layer = 2 * width * width + 2 * width * heads + 3 * width * inner + width + 2 * heads + 2 * width
    assert plan.parameters == 2 * layer + 2 * 152_064 * width + width
    assert plan.dtype == "bfloat16"
    assert plan.cache("dynamic").device_bytes == 2 * 2 * 4 * 128 * 131_072 * 2
    whole, wide = plan.policy("whole prompt"), plan.policy("whole prompt, float32")
    assert whole.logits_bytes == 131_072 * 152_064 * 2
    assert wide.logits_bytes - whole.logits_bytes == 131_072 * 152_064 * 4  # 79.7 GB
    assert wide.total_bytes - whole.total_bytes > 78_000_000_000
    assert plan.policy("last row").logits_bytes == 152_064 * 2
    assert plan.activations_bytes["eager"] > 28 * 131_072**2 * 2  # one layer's scores, every head
    assert not wide.fits
    assert plan.policy("streamed").fits
    assert plan.advice.policy == "streamed"
    assert plan.policy("streamed").logits_bytes < 100_000_000


def test_planning_a_large_model_allocates_nothing() -> None:
    config = hf.Qwen2Config(**{**QWEN_7B, "num_hidden_layers": 2})
    plan_of(config)
    assert peak_extra_bytes(lambda: plan_of(config, context=4096)) < 2**20  # the model itself has 3 GB


def test_weights_are_those_of_the_file() -> None:
    plan = plan_of("builtin:expert")
    with safe_open(builtin_folder("expert") / "model.safetensors", framework="pt") as tensors:
        stored = sum(math.prod(tensors.get_slice(k).get_shape()) for k in tensors.keys())  # noqa: SIM118  safe_open is no mapping
    assert plan.parameters == stored
    assert 0 <= plan.weights_bytes - 2 * stored < 1024  # rotary frequencies


def test_a_config_is_enough(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "whole")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "bare").mkdir()
    for place in (tmp_path / "bare" / "config.json", tmp_path / "some.json"):
        place.write_text(json.dumps(config))
    plans = [plan_of(str(p)) for p in (folder, tmp_path / "bare", tmp_path / "some.json")]
    assert len({(p.weights_bytes, p.cache("static").total_bytes) for p in plans}) == 1
    loaded = tr.load(folder)
    assert plan_of(loaded).weights_bytes == plans[0].weights_bytes == measured.weights(loaded.model)


def test_a_plan_changes_no_config() -> None:
    config = hf.LlamaConfig(**CONFIGS["llama"][1])
    before = (config.to_json_string(), config._attn_implementation)
    plan_of(config, attention="eager", dtype="bfloat16")
    assert (config.to_json_string(), config._attn_implementation) == before


HALF: dict[str, Any] = {"heads": 2, "key_width": 20, "value_width": 12, "dtype": torch.bfloat16}
SHAPES = (LayerShape(index=0, **HALF), LayerShape(index=1, window=16, **HALF))


@pytest.mark.parametrize(
    ("kind", "context", "new", "device", "host"),
    [
        ("dynamic", 40, 0, 128 * (40 + 40), 0),
        ("dynamic", 40, 2, 128 * (42 + 16), 0),
        ("static", 40, 2, 128 * (42 + 16), 0),
        ("rolling", 40, 2, 128 * (32 + 16), 0),
        ("offloaded", 40, 2, 128 * (42 + 16), 0),
        ("quantized", 40, 2, 2 * 42 * 64, 0),
        (PACKED, 40, 0, 2 * (40 * 32 + 40 * 4), 0),
        (PACKED, 40, 2, 2 * (40 * 32 + 40 * 4 + 2 * 128), 0),
    ],
)
def test_caches_by_hand(kind: str, context: int, new: int, device: int, host: int) -> None:
    found = cache_bytes(kind, SHAPES, 1, context, new, limit=32)
    assert (found.device, found.host) == (device, host)
    more = cache_bytes(kind, SHAPES, 3, context, new, limit=32)
    assert more.device == 3 * device


def test_offloaded_layers_wait_in_host_memory() -> None:
    deep = SHAPES[:1] * 10
    found = cache_bytes("offloaded", deep, 1, 8, 0, None)
    assert (found.device, found.host) == (2 * 128 * 8, 8 * 128 * 8)


@given(
    a=st.integers(0, 1000), b=st.integers(1, 50), c=st.integers(0, 3), room=st.integers(1, 10**6),
    start=st.integers(1, 4000),
)  # fmt: skip
def test_the_largest_size_is_found(a: int, b: int, c: int, room: int, start: int) -> None:
    def need(size: int) -> int:
        return a + b * size + c * size * size

    found = largest(need, room, start, 4000)
    best = max((n for n in range(1, 4001) if need(n) <= room), default=0)
    assert found <= best
    assert found >= best - max(1, int(CLOSE * best)) or found == best == 0


def test_what_is_said_to_fit_fits_and_hardly_more_would() -> None:
    config, room = hf.LlamaConfig(**{**CONFIGS["llama"][1], "max_position_embeddings": 100_000}), "40MiB"
    plan = plan_of(config, memory=room)
    assert plan.fits
    assert plan.advice.policy == "last row"
    for size in ("context", "batch"):
        best = getattr(plan.advice, f"largest_{size}")
        assert plan_of(config, memory=room, **{size: best}).cache("dynamic").fits
        assert not plan_of(config, memory=room, **{size: int(best * 1.05) + 1}).cache("dynamic").fits


def test_nothing_fits_says_what_is_missing() -> None:
    config = hf.LlamaConfig(**CONFIGS["llama"][1])
    tight = plan_of(config, memory="1MiB", dtype="float32", context=500)
    assert not tight.fits
    assert "nothing fits: at least" in tight.advice.text
    weights = plan_of(config, memory=500_000, dtype="float32").advice.text
    assert "the weights alone are" in weights
    assert "choose bfloat16" in weights
    assert "choose a larger machine" in plan_of(config, memory="1KB", dtype="float32").advice.text


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 10**9), ("1.5 GiB", 3 * 2**29), ("512mib", 2**29), ("7", 7), (7, 7), ("2kB", 2000)],
)
def test_amounts_of_memory(text: Any, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "24QB", "-3GB", "0", 0, -1, True, "1e9", "4 4GB", "nan"])
def test_no_amounts_of_memory(text: Any) -> None:
    with pytest.raises(ConfigError, match="is no amount of bytes; write it like 24GB"):
        parse_bytes(text)


@given(st.integers(0, 2**52))
def test_shown_sizes_are_close(size: int) -> None:
    shown = show_bytes(size)
    amount, unit = shown.replace(",", "").split()
    assert parse_bytes(f"{amount}{unit}" if size else "1") == pytest.approx(size or 1, rel=6e-3, abs=1)


@pytest.mark.parametrize(
    ("source", "settings", "error", "words"),
    [
        ("builtin:exprt", {}, ConfigError, "Did you mean 'builtin:expert'"),
        ("expert", {}, ConfigError, "Did you mean 'builtin:expert'"),
        ("owner/name", {}, MissingBackendError, "hub cannot be reached"),
        (hf.BertConfig(), {}, UnsupportedModelError, "no decoder; twinrun plans causal LMs"),
        (hf.T5Config(), {}, UnsupportedModelError, "no decoder"),
        (hf.MambaConfig(num_hidden_layers=1, hidden_size=32), {}, UnsupportedModelError, "keys and values"),
        ("builtin:expert", {"context": 0}, ConfigError, "context must be a whole number, at least 1, got 0"),
        ("builtin:expert", {"batch": -2}, ConfigError, "batch must be .* got -2"),
        ("builtin:expert", {"new_tokens": -1}, ConfigError, "new_tokens must be .* at least 0, got -1"),
        ("builtin:expert", {"memory": "lots"}, ConfigError, "memory 'lots' is no amount"),
        ("builtin:expert", {"dtype": "int3"}, ConfigError, "unknown dtype"),
        ("builtin:expert", {"device": "tpu"}, ConfigError, "unknown device 'tpu'"),
        ("builtin:expert", {"attention": "spda"}, ConfigError, "Did you mean 'sdpa'"),
        (hf.BloomConfig(), {"attention": "sdpa"}, ConfigError, "has no attention 'sdpa'; use attention='eager'"),
    ],
)  # fmt: skip
def test_bad_requests_are_one_line(source: Any, settings: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        plan_of(source, **settings)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    for name, text, words in (("a.json", "{", "not valid JSON"), ("b.json", "[1]", "names no model_type")):
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError, match=words):
            plan_of(str(tmp_path / name))
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        plan_of(str(tmp_path))


def test_beyond_the_limit_is_a_note_and_packed_weights_are_another() -> None:
    config = hf.LlamaConfig(**CONFIGS["llama"][1])
    beyond = plan_of(config, context=600, memory="8GB")
    assert "603 tokens are more than the 512 the model was built for" in beyond.notes[0]
    assert beyond.advice.largest_context == 512 - NEW
    config.quantization_config = {"quant_method": "awq"}
    assert [note[:10] for note in plan_of(config).notes] == ["the checkp", "the tiles "]


def test_a_forward_that_needs_numbers_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def needy(*_args: Any, **_kwargs: Any) -> None:
        torch.zeros(3, device="meta").nonzero()

    monkeypatch.setattr(caches, "forward", needy)
    with pytest.raises(UnsupportedModelError, match="Qwen3ForCausalLM cannot be followed without numbers"):
        plan_of("builtin:expert")


def test_a_hub_model_that_cannot_fit_is_refused_before_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    from twinrun.models import load

    fetched: list[str] = []
    config = hf.LlamaConfig(**CONFIGS["llama"][1])
    monkeypatch.setattr(load, "check_reachable", lambda *_args: None)
    monkeypatch.setattr(
        skeleton, "read_config", lambda source, **_: (source if source is config else config, "x")
    )
    monkeypatch.setattr(load, "_from_pretrained", lambda *_args: fetched.append("weights"))
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 1000)
    with pytest.raises(OutOfMemoryError, match=r"owner/name needs .* for its weights alone"):
        tr.load("owner/name")
    assert fetched == []


def test_the_record_is_json_and_reads_well() -> None:
    plan = plan_of("builtin:amateur", memory="1GiB")
    assert json.loads(json.dumps(plan.to_json(), allow_nan=False))["advice"]["policy"] == "last row"
    assert "MemoryPlan('builtin:amateur', bfloat16, sdpa, 2 x 70 tokens + 3: whole prompt" in repr(plan)
    assert replace(plan, fits=False).fits is False
    with pytest.raises(AttributeError):
        plan.fits = False
