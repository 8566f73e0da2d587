"""Small diffusion decodes with token skip, watched; and the same by the slow oracle, compared step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.plain_skip import PlainRun, plain_decode
from twinrun.diffusion.canvas import Canvas
from twinrun.diffusion.chooser import Chooser
from twinrun.diffusion.commit import Commit, Threshold
from twinrun.diffusion.decode import Decode
from twinrun.diffusion.passes import Passes
from twinrun.diffusion.settings import DiffusionSettings
from twinrun.diffusion.wiring import Wiring
from twinrun.models.model import Model
from twinrun.models.parts import Parts

VOCAB, MASK = 53, 52
PROMPTS = [[7, 1, 30, 12, 4], [9, 9], [40, 3, 2, 51, 8, 20, 6]]
ROOM, BLOCK = 12, 6


def small(seed: int = 0, layers: int = 4, kv_heads: int = 2) -> Model:
    """Random weights; the head is sharpened, so that confidences spread over the whole range."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=64, is_causal=False, initializer_range=0.12,
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        module.lm_head.weight.mul_(4)
    return Model(module)


@dataclass
class Watched:
    """One step as the probe saw it; tensors `[rows, block]`."""

    block: int
    step: int
    full: bool
    positions: Tensor
    open: Tensor
    confidence: Tensor
    hidden: Tensor
    notes: dict[str, Tensor]


class Watch:
    """A probe that copies what a step decided."""

    def __init__(self, wants_layers: bool = False) -> None:
        self.wants_layers = wants_layers
        self.steps: list[Watched] = []

    def before(self, state: Any) -> None:
        self.state = state
        self.was = (
            state.canvas.positions[:, state.columns].clone(),
            state.canvas.open[:, state.columns].clone(),
        )

    def after(self, outcome: Any) -> None:
        state = self.state
        notes = {name: t.clone() for name, t in outcome.notes.items()}
        hidden = outcome.hidden[:, outcome.rows].clone()
        confidence = outcome.confidence.clone()
        self.steps.append(Watched(state.block, state.step, state.full, *self.was, confidence, hidden, notes))


@dataclass(frozen=True)
class Wired:
    """A skip policy whose wiring is another one: how a fault gets in."""

    rule: Any
    wiring: Wiring

    def start(self, parts: Parts) -> Any:
        return self.rule.start(parts, self.wiring)


def decode(
    model: Model, skip: Any, prompts: list[list[int]] = PROMPTS, commit: Commit | None = None, lead: int = 0
) -> tuple[Decode, Watch]:
    """Fill in `ROOM` tokens behind each prompt with the dual cache."""
    parts, watch = Parts(model), Watch()
    settings = DiffusionSettings(block_length=BLOCK, commit=commit or Threshold(0.9), cache="dual", skip=skip)
    generators = [torch.Generator() for _ in prompts]
    chooser = Chooser(parts=parts, settings=settings, mask_id=MASK, generators=generators)
    run = Decode(
        canvas=Canvas.of(prompts, ROOM, mask_id=MASK, pad_id=0), passes=Passes(parts, settings, lead=lead),
        chooser=chooser, block_length=BLOCK, probe=watch,
    )  # fmt: skip
    with torch.inference_mode():
        run.run()
    return run, watch


def plain(model: Model, rule: Any, prompt: list[int]) -> PlainRun:
    """The oracle's decode of one prompt under `Threshold(0.9)`."""

    def choose(sure: dict[int, float]) -> set[int]:
        return {p for p in sure if sure[p] >= 0.9} | {max(sure, key=lambda p: sure[p])}

    with torch.inference_mode():
        return plain_decode(model.model, prompt, ROOM, BLOCK, MASK, choose, rule)


def disagreement(run: Decode, watch: Watch, row: int, told: PlainRun) -> str | None:
    """The first thing in which a row differs from the oracle, in words; None if nothing does."""
    for plain_step in told.steps:
        where = f"block {plain_step.block} step {plain_step.step}"
        seen = next(
            (s for s in watch.steps if (s.block, s.step) == (plain_step.block, plain_step.step)), None
        )
        if seen is None:
            return f"{where}: not run"
        places = seen.positions[row].tolist()
        skipped = seen.notes["skipped"][row].tolist() if "skipped" in seen.notes else [False] * len(places)
        if {p for p, s in zip(places, skipped, strict=True) if s} != plain_step.skipped:
            return f"{where}: skipped {skipped}, oracle {sorted(plain_step.skipped)}"
        for name, mine in (("cosine_mean", plain_step.mean), ("cosine_low", plain_step.low)):
            if mine and _apart(places, seen.notes[name][row], mine, 1e-5):
                return f"{where}: {name}"
        if _apart(places, seen.confidence[row], plain_step.confidence, 1e-4):
            return f"{where}: confidence"
    return None if run.canvases[row] == told.tokens else "tokens"


def _apart(places: list[int], values: Tensor, wanted: dict[int, float], limit: float) -> bool:
    return any(
        abs(v - wanted[p]) > limit for p, v in zip(places, values.tolist(), strict=True) if p in wanted
    )
