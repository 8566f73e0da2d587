"""The slow oracle of diffusion decoding: identities it must have by itself, then the library held against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import twinrun as tr
from tests.support.diffusion_folders import MASK, llada_folder
from tests.support.plain_diffusion import PlainDiffusion, PlainRun
from tests.support.plain_llada import plain_llada_logits

PROMPT = [3, 17, 8, 25, 3]
RULES: dict[tuple[str, float], Any] = {
    ("quota", 8): tr.Quota(),
    ("quota", 3): tr.Quota(3),
    ("threshold", 0.3): tr.Threshold(0.3),
    ("factor", 1.5): tr.Factor(1.5),
}
CACHES: list[dict[str, Any]] = [
    {"cache": "none"}, {"cache": "prefix"}, {"cache": "dual"}, {"cache": "dual", "refresh_every": 2},
    {"cache": "prefix", "refresh_every": 3},
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("llada")
    return {n: llada_folder(root / str(n), layers=n) for n in (1, 3)}


def slow(folder: Path, rule: tuple[str, float] = ("quota", 8), **kw: Any) -> PlainDiffusion:
    fields = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    return PlainDiffusion(weights=weights, fields=fields, **({"block": 8, "rule": rule} | kw))


def commits(run: PlainRun) -> list[dict[int, tuple[int, float]]]:
    return [step.committed for step in run.steps]


def close(one: PlainRun, other: PlainRun) -> bool:
    """The same tokens at the same places in every step, confidences to rounding."""
    if [list(c) for c in commits(one)] != [list(c) for c in commits(other)] or one.canvas != other.canvas:
        return False
    pairs = (
        zip(a.values(), b.values(), strict=True) for a, b in zip(commits(one), commits(other), strict=True)
    )
    return all(abs(p - q) < 1e-12 for step in pairs for (_, p), (_, q) in step)


def test_its_forward_is_that_of_the_plain_llada(folders: dict[int, Path]) -> None:
    oracle = slow(folders[3])
    logits = oracle.run(PROMPT, list(range(5)), [{} for _ in range(3)])
    wanted = plain_llada_logits(oracle.weights, oracle.fields, PROMPT)
    assert torch.allclose(torch.stack([logits[p] for p in range(5)]), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_identities_of_the_caches(folders: dict[int, Path], rule: tuple[str, float]) -> None:
    plain, prefix, dual = (
        slow(folders[3], rule, cache=c).generate(PROMPT, 16) for c in ("none", "prefix", "dual")
    )
    assert plain.canvas != dual.canvas != prefix.canvas, "the control: caches change what is written"
    for cache in ("prefix", "dual"):
        assert close(slow(folders[3], rule, cache=cache, refresh_every=1).generate(PROMPT, 16), plain)
        first = slow(folders[3], rule, cache=cache).generate(PROMPT, 16)
        assert commits(first)[0] == commits(plain)[0], "the first step of a block is a full forward"
        assert close(
            slow(folders[1], rule, cache=cache).generate(PROMPT, 16),
            slow(folders[1], rule).generate(PROMPT, 16),
        )
    alike = [slow(folders[3], rule, cache=c).generate(PROMPT, 8) for c in ("prefix", "dual")]
    assert close(*alike), "with one block nothing stands behind it"


def test_identities_of_the_rules(folders: dict[int, Path]) -> None:
    single = slow(folders[3]).generate(PROMPT, 16)
    assert [len(c) for c in commits(single)] == [1] * 16
    for rule in (("threshold", 1.01), ("factor", 0.0)):
        assert close(slow(folders[3], rule).generate(PROMPT, 16), single)
    for rule in (("threshold", 0.0), ("factor", 100.0), ("quota", 1)):
        assert [len(c) for c in commits(slow(folders[3], rule).generate(PROMPT, 16))] == [8, 8]
    counts = [len(c) for c in commits(slow(folders[3], ("quota", 3)).generate(PROMPT, 16))]
    assert counts == [3, 3, 2, 3, 3, 2]


def test_rules_on_numbers() -> None:
    """Worked by hand; a threshold takes what equals it, and a factor does not take a last one that fails."""
    rule = slow_rule(("factor", 1.0))
    assert rule.choose({0: 0.99, 1: 0.2, 2: 0.99, 3: 0.99}, 0) == {0, 2, 3}
    assert rule.choose({0: 0.9, 1: 0.1}, 0) == {0}
    assert rule.choose({7: 0.01}, 0) == {7}
    assert slow_rule(("threshold", 0.9)).choose({0: 0.9, 1: 0.89, 2: 0.95}, 0) == {0, 2}
    assert slow_rule(("threshold", 0.99)).choose({0: 0.9, 1: 0.9}, 0) == {0}
    assert slow_rule(("quota", 3)).choose({0: 0.1, 1: 0.5, 2: 0.5, 3: 0.4}, 2) == {1, 2}


def slow_rule(rule: tuple[str, float]) -> PlainDiffusion:
    return PlainDiffusion(weights={}, fields={"mask_token_id": 0, "n_layers": 0}, block=8, rule=rule)


def test_masks_ends_and_noise(folders: dict[int, Path]) -> None:
    given = [3, MASK, 8, MASK]
    run = slow(folders[3], cache="dual").generate(given, 16)
    assert MASK not in run.canvas
    assert sorted(p for c in commits(run) for p in c) == list(range(4, 20))
    end = run.canvas[5]
    short = slow(folders[3], cache="dual", ends=[end]).generate(given, 16)
    at = run.canvas.index(end)
    assert short.tokens == run.canvas[: at + 1]
    assert len(short.steps) < len(run.steps)
    silent = slow(folders[3], cache="dual", temperature=0.7, noise=lambda *_: torch.zeros(41))
    assert close(silent.generate(given, 16), run)
    source = torch.Generator().manual_seed(1)
    drawn: dict[tuple[int, int], Tensor] = {}

    def noise(forward: int, position: int) -> Tensor:
        uniform = torch.rand(41, generator=source, dtype=torch.float64)
        return drawn.setdefault((forward, position), -(-uniform.log()).log())

    assert slow(folders[3], temperature=2.0, noise=noise).generate(given, 16).canvas != run.canvas


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("shifts", [False, True], ids=["", "shifted"])
def test_the_library_agrees(
    folders: dict[int, Path], rule: tuple[str, float], cache: dict[str, Any], shifts: bool
) -> None:
    """In float64, so that no tie is decided by rounding: the same token at the same place in every forward."""
    model = tr.load(folders[3])
    model.model.double()
    model.config.shifts_logits = shifts
    runner = tr.Diffusion(model, block_length=8, commit=RULES[rule], **cache)
    for prompt in (PROMPT, [MASK, 9]):
        wanted = slow(folders[3], rule, shifts=shifts, ends=[1], **cache).generate(prompt, 16)
        got = runner.generate(prompt, 16)
        assert got.tokens[0] == wanted.tokens
        assert [step.full for step in got.steps] == [step.full for step in wanted.steps]
        for mine, theirs in zip(got.steps, wanted.steps, strict=True):
            assert dict(zip(mine.positions[0], mine.tokens[0], strict=True)) == {
                p: token for p, (token, _) in theirs.committed.items()
            }
            sure = [c for _, c in theirs.committed.values()]
            assert mine.confidence[0] == pytest.approx(sure, abs=1e-6)  # transformers keeps norms in float32
        other = slow(folders[3], rule, shifts=not shifts, **cache).generate(prompt, 16)
        assert other.canvas != got.canvases[0], "the control: another reading of the logits is told apart"
