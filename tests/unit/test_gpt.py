"""The small GPT: against a plain float64 decoder, against GPT-2 of transformers, and under every runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, StaticCache

import twinrun as tr
from tests.support import zoo
from tests.support.plain_gpt import plain_logits
from twinrun.bench.remembered import Remembered
from twinrun.models.gpt import GPTConfig, GPTForCausalLM

NORMS = ("pre", "post")
# Largest error of a logit over the largest logit, in float32 eps: worst of 20 seeds, both norms, both attentions, four
# lengths, on two CPU cores, 2026-11. The bound is twice that.
MEASURED_PLAIN_EPS = 5.1
MEASURED_GPT2_EPS = 7.4


def make(norm: str = "pre", seed: int = 0, attention: str = "sdpa") -> GPTForCausalLM:
    """A random model whose biases and norms are not zeros and ones."""
    core: Any = zoo.make(f"gpt-{norm}", seed=seed).core
    core.set_attn_implementation(attention)
    return core


def ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * length + seed)
    return torch.randint(3, 320, (length,), generator=generator).tolist()


@torch.inference_mode()
def logits_of(model: torch.nn.Module, row: list[int], **kwargs: Any) -> Tensor:
    return model(input_ids=torch.tensor([row]), **kwargs).logits[0]


def eps_apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value, in float32 eps."""
    assert found.shape == expected.shape
    gap = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    return float(gap) / torch.finfo(torch.float32).eps


def plain(model: GPTForCausalLM, norm: str, row: list[int], **wrong: Any) -> Tensor:
    return plain_logits(model.state_dict(), row, heads=4, is_pre_norm=norm == "pre", **wrong)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("norm", NORMS)
def test_it_agrees_with_a_plain_decoder_in_float64(norm: str, attention: str) -> None:
    model, limit = make(norm, attention=attention), 2 * MEASURED_PLAIN_EPS
    assert model.model.layers[0].attention.config._attn_implementation == attention
    for length in (1, 2, 7, 23):
        row = ids(length)
        assert eps_apart(logits_of(model, row), plain(model, norm, row)) <= limit
    row, places = ids(7), torch.arange(7)[None] + 505
    expected = plain(model, norm, row, first_position=505)
    assert eps_apart(logits_of(model, row, position_ids=places), expected) <= limit


@pytest.mark.parametrize("wrong", ["positions", "scale", "future", "norm"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_decoder_with_one_thing_wrong_is_refused(norm: str, wrong: str) -> None:
    model, row = make(norm), ids(7)
    assert eps_apart(logits_of(model, row), plain(model, norm, row, wrong=wrong)) > 500 * MEASURED_PLAIN_EPS


def as_gpt2(ours: GPTForCausalLM, shift: int = 0) -> GPT2LMHeadModel:
    """GPT-2 of transformers with our weights; `shift` moves its positions."""
    config = ours.config
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.block_size, n_embd=config.n_embd,
            n_layer=config.n_layer, n_head=config.n_head, attn_implementation="sdpa",
            bos_token_id=None, eos_token_id=None,
        )
    ).eval()  # fmt: skip
    own, renamed = ours.state_dict(), {}
    names = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2", "up_proj": "mlp.c_fc"}
    names |= {"down_proj": "mlp.c_proj", "attention.o_proj": "attn.c_proj"}
    for i in range(config.n_layer):
        for kind in ("weight", "bias"):
            parts = {new: own[f"model.layers.{i}.{old}.{kind}"] for old, new in names.items()}
            parts["attn.c_attn"] = torch.cat(
                [own[f"model.layers.{i}.attention.{p}_proj.{kind}"] for p in "qkv"]
            )
            for name, tensor in parts.items():  # GPT-2 keeps its matrices the other way round
                is_matrix = tensor.ndim == 2
                renamed[f"transformer.h.{i}.{name}.{kind}"] = tensor.T if is_matrix else tensor
    renamed["transformer.wte.weight"] = renamed["lm_head.weight"] = own["model.embed_tokens.weight"]
    renamed["transformer.wpe.weight"] = own["model.embed_positions.weight"].roll(-shift, 0)
    renamed |= {f"transformer.ln_f.{kind}": own[f"model.norm.{kind}"] for kind in ("weight", "bias")}
    theirs.load_state_dict(renamed)
    return theirs


def test_pre_norm_is_gpt2() -> None:
    ours = make("pre")
    theirs = as_gpt2(ours)
    for length in (1, 7, 41, 512):
        row = ids(length)
        assert eps_apart(logits_of(ours, row), logits_of(theirs, row)) <= 2 * MEASURED_GPT2_EPS
    shifted = as_gpt2(ours, shift=1)
    assert eps_apart(logits_of(ours, ids(7)), logits_of(shifted, ids(7))) > 1000 * MEASURED_GPT2_EPS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", NORMS)
def test_every_runner_passes(norm: str, dtype: str) -> None:
    model = zoo.make(f"gpt-{norm}", dtype)
    reference, probes = Remembered(tr.Recompute(model)), tr.probes(model, max_tokens=31)
    for name in zoo.CANDIDATES:
        verdict = tr.verify(reference, zoo.runner(name, model), probes)
        assert verdict.verdict in ("identical", "equivalent"), f"{name}: {verdict.reason}"
        assert verdict.sweep.gap is not None
    assert model.layout.streams, model.layout.why_not


@pytest.mark.parametrize("norm", NORMS)
def test_padding_on_the_left_changes_nothing(norm: str) -> None:
    model, short, long = make(norm), ids(5), ids(12)
    batch = torch.tensor([[0] * 7 + short, long])
    mask = torch.tensor([[0] * 7 + [1] * 5, [1] * 12])
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.inference_mode():
        found = model(input_ids=batch, attention_mask=mask, position_ids=places).logits
        blind = model(input_ids=batch, position_ids=places).logits
    assert eps_apart(found[0, 7:], logits_of(model, short)) < 20
    assert eps_apart(found[1], logits_of(model, long)) < 20
    assert eps_apart(blind[0, 7:], logits_of(model, short)) > 1000


def test_a_folder_comes_back_through_the_auto_classes(tmp_path: Path) -> None:
    model = make("post")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is GPTForCausalLM
    assert type(AutoConfig.from_pretrained(tmp_path)) is GPTConfig
    assert again.config.norm == "post"
    assert again.lm_head.weight is again.model.embed_tokens.weight
    row = ids(9)
    assert torch.equal(logits_of(again, row), logits_of(model, row))
    loaded = tr.load(tmp_path)
    assert loaded.max_context == 512
    with pytest.raises(tr.errors.ConfigError, match=r"exceeds the context .*\(512\)"):
        loaded.encode(ids(513))


def test_generate_of_transformers_gives_the_tokens_of_our_runners() -> None:
    model = zoo.make("gpt-pre")
    ours = tr.KVCache(model).generate(ids(6), max_new_tokens=9, stop_at_eos=False).tokens[0]
    for kind in ("dynamic", "static"):
        out = model.core.generate(
            torch.tensor([ids(6)]),
            max_new_tokens=9,
            do_sample=False,
            cache_implementation=kind,
            eos_token_id=None,
        )
        assert out[0, 6:].tolist() == ours


def test_a_static_cache_holds_what_a_whole_forward_computes() -> None:
    model, row = make(), ids(8)
    cache = StaticCache(config=model.config, max_cache_len=20)
    first = logits_of(model, row[:5], past_key_values=cache)
    rest = logits_of(model, row[5:], past_key_values=cache)
    assert int(cache.get_seq_length()) == 8
    assert eps_apart(torch.cat([first, rest]), logits_of(model, row)) < 20


def test_loss_is_the_mean_of_the_shifted_labels() -> None:
    model, row = make(), torch.tensor([ids(9)])
    labels = row.clone()
    labels[0, 4] = -100
    with torch.inference_mode():
        out = model(input_ids=row, labels=labels)
    chances = out.logits[0, :-1].double().log_softmax(-1)
    picked = [-float(chances[i, row[0, i + 1]]) for i in range(8) if i + 1 != 4]
    assert float(out.loss) == pytest.approx(sum(picked) / len(picked), rel=1e-5)


def test_logits_to_keep_and_the_end_of_the_table() -> None:
    model, row = make(), ids(6)
    whole = logits_of(model, row)
    assert eps_apart(logits_of(model, row, logits_to_keep=2), whole[-2:]) < 20
    assert eps_apart(logits_of(model, row, logits_to_keep=torch.tensor([0, 3])), whole[[0, 3]]) < 20
    with pytest.raises(IndexError):
        logits_of(model, row, position_ids=torch.arange(507, 513)[None])


def test_a_new_model_starts_small_and_has_a_final_norm_only_if_pre_norm() -> None:
    model = GPTForCausalLM(GPTConfig(n_layer=2, n_embd=64, block_size=32))
    for name, weight in model.named_parameters():
        spread = float(weight.detach().std(correction=0))
        expected = 0.02 if weight.ndim == 2 else 0.0
        assert spread == pytest.approx(expected, rel=0.1), name
    assert model.model.norm is not None
    assert GPTForCausalLM(GPTConfig(n_layer=1, n_embd=32, norm="post")).model.norm is None


@pytest.mark.parametrize(
    ("wrong", "message"), [({"n_head": 3}, "must divide n_embd, got 3 and 256"), ({"norm": "mid"}, "'mid'")]
)
def test_a_config_that_no_model_can_have_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig(**wrong)
