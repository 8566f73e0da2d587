"""Arithmetic of a sweep: operations, bytes, shares and ratios against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import twinrun as tr
from tests.support.sweeps import MIB, Engine, cheap_ceilings, flops_by_hand
from twinrun.bench import ceilings as ceilings_module
from twinrun.bench import hardware
from twinrun.bench.cache import held_bytes, watching
from twinrun.bench.ceilings import Ceilings, Matmul, Read, measure_ceilings
from twinrun.bench.cell import text_against, within_noise
from twinrun.bench.flops import count_flops, counter
from twinrun.bench.passage import run_forced
from twinrun.bench.refusal import Refusal, foreseen
from twinrun.bench.rows import differing_key
from twinrun.bench.shares import arithmetic_share, cache_bytes_read, reading_share
from twinrun.bench.timing import PairedRatio
from twinrun.bench.weights import digest, read_bytes
from twinrun.errors import ConfigError
from twinrun.records.bench_words import seconds, share, size


def hand_made(cache: int | None = 50, *, beyond: bool = True) -> Ceilings:
    return Ceilings(
        matmul={"float32": Matmul(dtype="float32", flops_per_second=1000.0, width=8)},
        memory_read=Read(num_bytes=400, bytes_per_second=200.0, how="sum"),
        cache_read=Read(num_bytes=40, bytes_per_second=800.0, how="sum"),
        last_level_cache_bytes=cache,
        beyond_cache=beyond,
        device="cpu",
        threads=1,
    )


def test_mfu_is_operations_a_second_over_the_ceiling() -> None:
    found = arithmetic_share(500, 2.0, "float32", hand_made())
    assert found == {"flops_per_second": 250.0, "mfu": 0.25, "mfu_note": None}
    assert arithmetic_share(500, 2.0, "bfloat16", hand_made())["mfu"] is None
    assert arithmetic_share(0, 2.0, "float32", hand_made())["mfu_note"].startswith("no operation was counted")


def test_no_share_is_over_100_percent_in_silence() -> None:
    assert "over 100 %" in arithmetic_share(5000, 2.0, "float32", hand_made())["mfu_note"]
    assert "over 100 %" in reading_share(900, 100.0, 1.0, hand_made())["read_note"]
    assert "over 100 %" in reading_share(30, 10.0, 0.01, hand_made())["read_note"]


def test_mbu_is_bytes_a_second_over_the_memory_ceiling() -> None:
    found = reading_share(90, 10.0, 2.0, hand_made())
    assert (found["read_bytes_per_token"], found["read_bytes_per_second"], found["mbu"]) == (
        100.0,
        50.0,
        0.25,
    )
    assert (found["cache_read_share"], found["read_note"]) == (None, None)


def test_what_fits_into_the_cache_claims_no_share_of_memory_bandwidth() -> None:
    found = reading_share(30, 10.0, 1.0, hand_made())
    assert found["mbu"] is None
    assert found["cache_read_share"] == 40 / 800
    assert "memory bandwidth is no ceiling" in found["read_note"]


def test_mbu_says_what_makes_it_unknown() -> None:
    assert "recomputes" in reading_share(90, 0.0, 1.0, hand_made())["read_note"]
    assert "experts" in reading_share(90, 10.0, 1.0, hand_made(), routed=True)["read_note"]
    assert "unknown" in reading_share(90, 10.0, 1.0, hand_made(None, beyond=False))["read_note"]


def test_cache_bytes_read_follow_the_mean_length() -> None:
    assert cache_bytes_read(1000, [10], [30]) == pytest.approx(1000 * 20 / 30)
    assert cache_bytes_read(1000, [8, 4], [8, 8]) == 1000 * 14 / 16  # a layer that is full stays so
    assert cache_bytes_read(None, [1], [2]) == cache_bytes_read(1000, [], []) == 0


@pytest.mark.parametrize("length", [1, 7, 40])
def test_operations_are_those_of_the_closed_formula(shared_llama: tr.Model, length: int) -> None:
    config, new = shared_llama.config, 6
    ids = [3 + i % 50 for i in range(length + new)]
    cached = count_flops(tr.KVCache(shared_llama), ids, length, new)
    assert cached.prefill == flops_by_hand(config, length, length)
    assert cached.token_first == flops_by_hand(config, 1, length + 1)
    assert cached.token_last == flops_by_hand(config, 1, length + new - 1)
    plain = count_flops(tr.Recompute(shared_llama), ids, length, new)
    assert plain.token_last == flops_by_hand(config, length + new - 1, length + new - 1)
    assert plain.token_last > 0.9 * length * cached.token_last  # the control: the two are told apart
    assert cached.token_mean == pytest.approx(
        sum(flops_by_hand(config, 1, length + i) for i in range(1, new)) / 5
    )


def test_attention_on_a_cpu_is_counted() -> None:
    q = torch.zeros(1, 2, 5, 8)
    with counter() as found:
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert found.get_total_flops() == 4 * 2 * 5 * 5 * 8


def test_one_or_two_new_tokens_are_counted_too(shared_llama: tr.Model) -> None:
    one = count_flops(tr.KVCache(shared_llama), [5, 6, 7], 2, 1)
    assert (one.token_first, one.token_last) == (0, 0)
    two = count_flops(tr.KVCache(shared_llama), [5, 6, 7, 8], 2, 2)
    assert two.token_first == two.token_last == flops_by_hand(shared_llama.config, 1, 3)


def test_weights_read_are_all_but_the_embedding_table(shared_llama: tr.Model) -> None:
    module = shared_llama.model
    table = module.get_input_embeddings().weight
    every = sum(p.numel() for p in module.parameters())
    tied = module.get_output_embeddings().weight is table
    other = sum(b.numel() for b in module.buffers() if b.numel() > 1)
    assert read_bytes(shared_llama) == 4 * (every + other - (0 if tied else table.numel()))


def test_the_digest_tells_weights_apart(shared_llama: tr.Model) -> None:
    from tests.support.zoo import make

    other = make("llama", "float32")
    assert digest(other) == digest(shared_llama)
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1
    assert digest(other) != digest(shared_llama)


def test_cache_bytes_are_seen_whatever_the_class(shared_llama: tr.Model) -> None:
    config = shared_llama.config
    slot = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    for kind, slots in (("dynamic", 8), ("static", 9)):
        runner = tr.KVCache(shared_llama, kind)
        with watching(runner.module) as seen:
            run_forced(runner, [5, 6, 7, 8, 9], 4)
            held = seen.num_bytes
        assert held is not None
        assert held // slot == slots, kind
    with watching(object()) as seen:
        assert seen.num_bytes is None


def test_a_storage_counts_once_and_wrapped_tensors_are_unpacked() -> None:
    class Layer:
        def __init__(self) -> None:
            self.keys = torch.zeros(6)
            self.view = self.keys[2:]
            self.scales = {"a": [torch.zeros(2, dtype=torch.int8)]}
            self.me = self

    assert held_bytes(Layer()) == 24 + 2
    assert held_bytes([torch.nn.Linear(3, 3), "text", None]) == 0


def test_a_passage_reads_the_clock_at_every_token(shared_llama: tr.Model) -> None:
    ticks = iter(range(100))
    found = run_forced(tr.KVCache(shared_llama), [5, 6, 7], 4, clock=lambda: float(next(ticks)))
    assert (found.prefill_seconds, found.token_seconds, found.decode_seconds) == (1.0, [1.0, 1.0, 1.0], 3.0)
    assert found.total_seconds == 5.0
    assert (found.lengths_prefill[0], found.lengths_end[0]) == (3, 6)


def test_end_of_text_does_not_shorten_a_run(shared_llama: tr.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    every = frozenset(range(shared_llama.vocab_size))
    monkeypatch.setattr(type(shared_llama), "eos_ids", property(lambda _: every))
    assert len(tr.KVCache(shared_llama).generate([5], 4).tokens[0]) == 1  # the control: it would end at once
    assert len(run_forced(tr.KVCache(shared_llama), [5], 4).tokens) == 4


def test_an_engine_that_stops_by_itself_or_observes_nothing_is_refused(shared_llama: tr.Model) -> None:
    with pytest.raises(ConfigError, match="stopped after 2 of 4 tokens"):
        run_forced(Engine(tr.KVCache(shared_llama), eos_after=2), [5, 6], 4)

    class Silent(Engine):
        def generate(self, prompt: Any, max_new_tokens: int, observe: Any = None) -> tr.Run:
            return super().generate(prompt, max_new_tokens)

    with pytest.raises(ConfigError, match="observed no step"):
        run_forced(Silent(tr.KVCache(shared_llama)), [5, 6], 4)


def test_within_noise_looks_both_ways() -> None:
    aa = PairedRatio(median=1.0, p10=0.9, p90=1.05, pairs=9)

    def speed(median: float) -> PairedRatio:
        return PairedRatio(median=median, p10=median, p90=median, pairs=9)

    assert [within_noise(speed(x), aa) for x in (0.85, 0.91, 1.0, 1.1, 1.2)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert within_noise(speed(1.0), None) is None
    assert text_against([1, 2, 3], [1, 5, 3]) == {"first_difference": 1}
    assert text_against([1, 2], [1, 2]) == {"first_difference": None}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out of memory"),
        (ConfigError("prompt of 40 tokens exceeds the context"), "too long"),
        (RuntimeError("shapes do not match"), "failed"),
    ],
)
def test_refusals_are_told_apart(error: Exception, status: str) -> None:
    assert Refusal.of(error, tokens=50, context=40).status == status
    assert Refusal.of(ConfigError("other"), tokens=30, context=40).status == "failed"


def test_memory_is_foreseen_from_two_shorter_lengths() -> None:
    assert foreseen({10: 100}, 40, free=1) is None
    assert foreseen({10: 100, 20: 150}, 40, free=250) is None
    found = foreseen({10: 100, 20: 150, 80: 9}, 40, free=249)
    assert found is not None
    assert found.status == "out of memory"
    assert found.reason.startswith("250 bytes foreseen")


def test_ceilings_are_measured_and_say_how(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_ceilings(monkeypatch, cache_bytes=MIB // 2)
    found = measure_ceilings({torch.float32, torch.bfloat16}, torch.device("cpu"), 4 * 4096, tries=2)
    assert set(found.matmul) == {"float32", "bfloat16"}
    assert all(m.flops_per_second > 0 and m.width == 64 for m in found.matmul.values())
    assert (found.memory_read.num_bytes, found.beyond_cache) == (MIB, True)
    assert found.cache_read is not None
    assert found.cache_read.num_bytes == 4 * 4096
    json.dumps(found.to_json(), allow_nan=False)
    cheap_ceilings(monkeypatch, cache_bytes=8 * MIB)  # a quarter of what is free does not reach beyond it
    assert not measure_ceilings({torch.float32}, torch.device("cpu"), 1, tries=1).beyond_cache
    assert ceilings_module.SIZES == {"cpu": (64,)}


def test_the_last_level_cache_is_the_largest_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("index0", "48K"), ("index1", "2048K"), ("index2", "30M"), ("index3", "what")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(text + "\n")
    monkeypatch.setattr(hardware, "CACHES", tmp_path)
    assert hardware.last_level_cache_bytes(torch.device("cpu")) == 30 * MIB
    monkeypatch.setattr(hardware, "CACHES", tmp_path / "absent")
    assert hardware.last_level_cache_bytes(torch.device("cpu")) is None


def test_the_first_difference_of_two_requests_is_named() -> None:
    a = {"model": "m", "env": {"packages": {"torch": "1"}}, "runners": [{"name": "x"}, {"name": "y"}]}
    assert differing_key(a, json.loads(json.dumps(a))) is None
    assert differing_key(a, {**a, "env": {"packages": {"torch": "2"}}}) == "env.packages.torch"
    assert differing_key(a, {**a, "runners": [{"name": "x"}, {"name": "z"}]}) == "runners[1].name"
    assert differing_key(a, {**a, "runners": a["runners"][:1]}) == "runners"
    assert differing_key(a, {**a, "extra": 1}) == "extra"


def test_numbers_are_worded_with_units() -> None:
    assert [seconds(x) for x in (0.0000123, 0.0123, 1.0, 123.4, 0.9996)] == [
        "0.0123 ms",
        "12.3 ms",
        "1.00 s",
        "123 s",
        "1.00 s",
    ]
    assert [size(x) for x in (0, 999, 1500, 10_600_000, 2_000_000_000, None)] == [
        "0 B",
        "999 B",
        "1.50 kB",
        "10.6 MB",
        "2.00 GB",
        "–",
    ]
    assert [share(x) for x in (0.62, 0.031, 0.0004, 1.2)] == ["62 %", "3.1 %", "0.04 %", "120 %"]
