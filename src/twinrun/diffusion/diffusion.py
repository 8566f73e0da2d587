"""The runner of masked-diffusion models: `twinrun.Diffusion`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from twinrun.diffusion.canvas import Canvas
from twinrun.diffusion.chooser import Chooser
from twinrun.diffusion.decode import Decode
from twinrun.diffusion.masked import mask_id_of, refuse_causal
from twinrun.diffusion.passes import Passes
from twinrun.diffusion.probe import Before, Probe
from twinrun.diffusion.request import check_length, rule_for
from twinrun.diffusion.saved import save_state
from twinrun.diffusion.scoring import score_rows
from twinrun.diffusion.settings import DiffusionSettings
from twinrun.errors import ConfigError, near_names
from twinrun.models.model import Model, Prompt
from twinrun.models.parts import Parts
from twinrun.records.diffusion_run import DiffusionObserver, DiffusionRun
from twinrun.records.scores import Scores
from twinrun.runners.generation import as_batch
from twinrun.runners.runner import ModelScorer

if TYPE_CHECKING:
    from twinrun.diffusion.replay import Replay


class Diffusion(ModelScorer):
    """Fill in a canvas of masks with a bidirectional model, a few tokens a forward.

    Source: Nie et al. 2025, "LLaDA", arXiv:2502.09992, section 2.4 (blocks, low-confidence remasking); Wu et al. 2025,
    "Fast-dLLM", arXiv:2505.22618 (prefix and dual cache, threshold and factor).

    Differs from the published code: the mask id is never proposed, masks in a prompt are text, padding is masked out,
    a row ends at its end-of-text token, and a cache can be refreshed inside a block.

    Args:
        model: what `twinrun.load` returns: a masked-diffusion model.
        **settings: fields of `DiffusionSettings`: block_length (32), commit (`Quota()`, `Threshold(p)`, `Factor(f)`),
            cache ("none", "prefix", "dual"), refresh_every, remasking, skip, delay, suffix_window.

    Raises:
        UnsupportedModelError: a causal model, or one that cannot be run piece by piece.
        ConfigError: no mask id, an unknown setting, or a value outside its range.

    Cost: "none" computes the whole canvas in every step, "dual" one block in all but the first step of a block. Only
    open positions of the block go through the head.
    """

    kind = "diffusion"
    row = 0
    """Row of a batch that a trace follows."""

    def __init__(self, model: Model, **settings: Any) -> None:
        """Keep the model, unchanged."""
        super().__init__(model)
        known = list(DiffusionSettings.__dataclass_fields__)
        for name in settings:
            if name not in known:
                raise ConfigError(
                    f"unknown setting {name!r}; Diffusion takes {', '.join(known)}.{near_names(name, known)}"
                )
        self.settings = DiffusionSettings(**settings)
        refuse_causal(model)
        self.mask_id = mask_id_of(model)
        self.parts = Parts(model)

    @property
    def name(self) -> str:
        """How records call this runner: "diffusion:dual+refresh_every=2"."""
        return f"{self.kind}:{self.settings.name}"

    @property
    def lead(self) -> int:
        """1 if the row before a position holds its logits (Dream), else 0."""
        return int(self.model.shifts_logits)

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        max_new_tokens: int = 128,
        *,
        steps: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        early_stop: bool = True,
        observe: DiffusionObserver | None = None,
        probe: Probe | None = None,
    ) -> DiffusionRun:
        """Fill in `max_new_tokens` masks behind one prompt, or behind each of a batch of unequal length.

        Args:
            prompt: a text, token ids, or a list of either. Mask ids inside are text and stay.
            max_new_tokens: masks a row, a multiple of block_length.
            steps: forwards for all blocks together, the same number for each; None leaves it to the commit rule.
            temperature: 0 is greedy; else tokens are drawn, row i of a batch from seed + i.
            seed: of drawing and of random remasking.
            early_stop: end a row when its end-of-text token and all before it are decided; earlier tokens are those of
                the full decode.
            observe: called with every `DiffusionStep`; a true answer stops the run.
            probe: a closer observer, with tensors; see `twinrun.diffusion.probe`.

        Raises:
            ConfigError: empty or too long prompts, a length that is no multiple of the block, impossible steps.
            NonFiniteError: the model gives NaN.

        Example:
            >>> m = load("builtin:diffusion")
            >>> run = Diffusion(m, cache="dual", commit=Threshold(0.9)).generate([5, 6, 7], max_new_tokens=32)
            >>> run.nfe <= 32 and m.mask_id not in run.tokens[0]
            True
        """
        settings = self.settings
        blocks = check_length(max_new_tokens, settings.block_length)
        settings = replace(settings, commit=rule_for(settings, blocks, steps))
        if not temperature >= 0:
            raise ConfigError(f"temperature must be at least 0, got {temperature}; 0 is greedy")
        prompts = [self.encode(p, new_tokens=max_new_tokens) for p in as_batch(prompt)]
        began = time.perf_counter()
        with torch.inference_mode():
            chooser = self._chooser(settings, temperature, seed, len(prompts))
            decode = Decode(
                canvas=self.canvas(prompts, max_new_tokens),
                passes=Passes(self.parts, settings, lead=self.lead),
                chooser=chooser,
                block_length=settings.block_length,
                ends=self.model.eos_ids if early_stop else (),
                observe=observe,
                probe=probe,
            )
            decode.run()
        return self._record(
            decode,
            prompts,
            time.perf_counter() - began,
            {
                "max_new_tokens": max_new_tokens,
                "steps": steps,
                "temperature": temperature,
                "seed": seed,
                "early_stop": early_stop,
                **settings.to_json(),
            },
        )

    def canvas(self, prompts: list[list[int]], room: int) -> Canvas:
        """Lay out prompts with `room` masks behind them, on the model's device."""
        model = self.model
        return Canvas.of(prompts, room, mask_id=self.mask_id, pad_id=model.pad_id, device=model.device)

    def saved_state(self, before: Before) -> dict[str, Tensor]:
        """Copy everything that a step depends on; see `twinrun.diffusion.saved`."""
        return save_state(before)

    def rotary_tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[positions, head_dim]` of the positions from 0 on."""
        device = self.model.device
        with torch.inference_mode():
            first = self.parts.embed(torch.zeros(1, 1, dtype=torch.long, device=device))
            cos, sin = self.parts.rotary(first, torch.arange(positions, device=device)[None])
        return cos[0], sin[0]

    def replay(self, state: Any, recorded: Mapping[int, int], **settings: Any) -> Replay:
        """Run a saved step again, as it was and with other settings; see `twinrun.diffusion.replay.replay`."""
        from twinrun.diffusion.replay import replay

        return replay(self, state, recorded, self.row, **settings)

    def rounding(self, state: Any) -> float:
        """Rounding error of the probabilities of a saved full forward; see `twinrun.diffusion.replay.rounding`."""
        from twinrun.diffusion.replay import rounding

        return rounding(self, state, self.row)

    def _chooser(self, settings: DiffusionSettings, temperature: float, seed: int, rows: int) -> Chooser:
        device = self.model.device
        return Chooser(
            parts=self.parts,
            settings=settings,
            mask_id=self.mask_id,
            temperature=temperature,
            generators=[torch.Generator(device).manual_seed(seed + i) for i in range(rows)],
        )

    def _record(
        self, decode: Decode, prompts: list[list[int]], seconds: float, settings: dict[str, Any]
    ) -> DiffusionRun:
        model = self.model
        tokens, finish = decode.results(model.eos_ids)
        texts = [model.decode(row) for row in tokens]
        slots = decode.passes.slots
        return DiffusionRun(
            runner=self.name,
            model=model.name,
            dtype=self.dtype,
            prompts=prompts,
            tokens=tokens,
            canvases=decode.canvases,
            texts=None if model.tokenizer is None else [t or "" for t in texts],
            finish=finish,
            steps=decode.steps,
            settings=settings,
            seconds=seconds,
            num_layers=self.parts.num_layers,
            cache_bytes=0 if slots is None else slots.bytes(),
        )

    def _score(self, rows: list[list[int]], starts: list[int]) -> list[Scores]:
        for row in rows:
            self.encode(row, new_tokens=1)
        return score_rows(self.parts, self.settings, rows, starts, mask_id=self.mask_id, lead=self.lead)
