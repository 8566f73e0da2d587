"""The scorer of SDTP: one small MLP for each pruned layer, from a token's hidden state to a score; higher is kept.

Source: arXiv:2504.04514, Eq. 1: `pi = MLP(GELU(MLP(x)))`. Where this differs, on purpose:
- one output instead of two. Only the difference of two logits decides in a softmax, and only the order of the scores
  decides in a top-k; the second logit is the threshold of the schedule's budget (`twinrun.prune.simulate`).
- the hidden state is divided by its root mean square first (no weights): residual streams grow by orders of magnitude
  with depth, and a few channels of a few tokens by more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from twinrun.errors import CheckpointError, ConfigError, ShapeError
from twinrun.models.builtin_names import builtin_folder
from twinrun.models.identity import hidden_width, model_fingerprint
from twinrun.models.model import Model
from twinrun.prune.cost import MAX_SHARE, model_flops_per_token
from twinrun.records.write import write_bytes, write_json

SCHEMA = "twinrun.scorer/1"
WEIGHTS, FACTS = "scorer.safetensors", "scorer.json"
BUILTIN = "scorer"
"""Folder of a built-in's scorers inside the built-in."""
EPSILON = 1e-6


class Scorer(nn.Module):
    """One two-layer GELU MLP for each pruned layer, all in one module.

    Attributes:
        layers: the pruned layers, ascending; layer `i` is scored on its own input.
        width: of the hidden states.
        hidden: width inside the MLPs.
        num_layers: of the model.
        fingerprint: of the model (`twinrun.models.identity.model_fingerprint`).
        facts: what else is known about it: name of the model, share of its operations, training, measured quality.
    """

    def __init__(
        self, *, layers: Sequence[int], width: int, hidden: int, num_layers: int, fingerprint: str
    ) -> None:
        """Build MLPs with torch's initial weights; use `new` or `load`, which know the model."""
        super().__init__()
        self.layers = check_layers(layers, num_layers)
        self.width, self.hidden, self.num_layers = width, hidden, num_layers
        self.fingerprint = fingerprint
        self.facts: dict[str, Any] = {}
        self.inner = nn.ModuleDict({str(i): nn.Linear(width, hidden) for i in self.layers})
        self.outer = nn.ModuleDict({str(i): nn.Linear(hidden, 1) for i in self.layers})

    @classmethod
    def new(cls, model: Model, layers: Sequence[int], hidden: int | None = None, seed: int = 0) -> Scorer:
        """Return an untrained scorer in float32 on the model's device, initialised from `seed`.

        Args:
            model: whose hidden states will be scored.
            layers: pruned layers, from 1 to the last (0-based); layer 0 is never pruned.
            hidden: width inside the MLPs; None is a quarter of the model's, less where that would cost too much.
            seed: of the initial weights; torch's own random state is not touched.

        Raises:
            ConfigError: no layers, one twice, layer 0 or one beyond the last; or a `hidden` with which the scorers
                cost 1 % of the model's operations or more.

        Cost: one forward of 64 tokens, which counts the model's operations.

        Example:
            >>> scorer = Scorer.new(load("builtin:expert"), [3])
            >>> scorer.score(3, torch.randn(2, 5, 192)).shape
            torch.Size([2, 5])
        """
        count, width = len(model.layout.layers), hidden_width(model)
        found = check_layers(layers, count)
        budget = model_flops_per_token(model)
        if hidden is None:
            most = int(0.9 * MAX_SHARE * budget / (2 * len(found) * (width + 1)))
            hidden = max(1, min(width // 4, most))
        share = _flops(1, len(found), width, hidden) / budget
        if share >= MAX_SHARE:
            raise ConfigError(
                f"scorers with hidden={hidden} in {len(found)} layers cost {share:.1%} of {model.name}'s operations; "
                f"they must stay under {MAX_SHARE:.0%}: choose a smaller hidden or fewer layers"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            scorer = cls(
                layers=found,
                width=width,
                hidden=hidden,
                num_layers=count,
                fingerprint=model_fingerprint(model),
            )
        scorer.facts = {"model": model.name, "share_of_model_flops": share, "seed": seed}
        return scorer.to(model.device)

    def score(self, layer: int, hidden: Tensor) -> Tensor:
        """Score tokens by the input of `layer`.

        Args:
            layer: one of `layers`.
            hidden: `[..., tokens, width]`, any floating dtype. The first product runs in the precision of the scorer's
                weights, everything else in float32.

        Returns:
            `[..., tokens]` float32; a higher score is kept. Gradients flow into the scorer and into `hidden`.

        Raises:
            ConfigError: no MLP for that layer.
            ShapeError: hidden states of another width.
        """
        key = str(layer)
        if key not in self.inner:
            raise ConfigError(
                f"this scorer has no MLP for layer {layer}; it scores {', '.join(map(str, self.layers))}"
            )
        if hidden.shape[-1] != self.width:
            raise ShapeError(
                f"hidden states are {hidden.shape[-1]} wide, this scorer was made for {self.width}"
            )
        first: Any = self.inner[key]
        last: Any = self.outer[key]
        normed = F.rms_norm(hidden.float(), (self.width,), eps=EPSILON)
        inside: Tensor = F.gelu(first(normed.to(first.weight.dtype))).float()
        # NOTE: summed in float32 also in a half-precision scorer; 8 bits of mantissa would tie most scores.
        found: Tensor = inside @ last.weight[0].float() + last.bias.float()
        return found

    def forward(self, layer: int, hidden: Tensor) -> Tensor:
        """Do what `score` does."""
        return self.score(layer, hidden)

    @property
    def schedule(self) -> dict[int, float | int] | None:
        """The schedule that it was trained for, `{layer: keep}`; None for an untrained scorer."""
        found = self.facts.get("training", {}).get("settings", {}).get("schedule")
        return None if found is None else {int(layer): keep for layer, keep in found.items()}

    def flops(self, tokens: int) -> int:
        """Operations to score so many tokens once in each layer (a multiplication and an addition are two)."""
        return _flops(tokens, len(self.layers), self.width, self.hidden)

    def check(self, model: Model) -> None:
        """Refuse to score another model than the one this was made for.

        Raises:
            ConfigError: another number of layers, width, config or weights.
        """
        count, width = len(model.layout.layers), hidden_width(model)
        made = self.facts.get("model", "a model")
        if (count, width) != (self.num_layers, self.width):
            raise ConfigError(
                f"this scorer was made for {made} ({self.num_layers} layers, width {self.width}), "
                f"{model.name} has {count} layers, width {width}; train one with `twinrun prune train`"
            )
        found = model_fingerprint(model)
        if found != self.fingerprint:
            raise ConfigError(
                f"this scorer was made for {made} with fingerprint {self.fingerprint}, {model.name} has {found}: other "
                "weights or another config; train one with `twinrun prune train`"
            )

    def save(self, folder: str | Path) -> Path:
        """Write `scorer.safetensors` and `scorer.json`; each is whole or absent. Returns the folder.

        Raises:
            NonFiniteError: a fact that is NaN or infinite.
            ConfigError: the folder cannot be written to.
        """
        place = Path(folder)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_bytes(place / WEIGHTS, save_tensors(state))
        write_json(
            place / FACTS,
            {
                "schema": SCHEMA,
                "layers": list(self.layers),
                "width": self.width,
                "hidden": self.hidden,
                "num_layers": self.num_layers,
                "fingerprint": self.fingerprint,
                **self.facts,
            },
        )
        return place

    @classmethod
    def load(cls, folder: str | Path, model: Model | None = None) -> Scorer:
        """Read what `save` wrote: a folder, or "builtin:NAME" for the scorers inside a built-in.

        Args:
            folder: where; a folder, or a built-in's name.
            model: checked against the scorer, and the scorer moves to its device; None checks nothing.

        Raises:
            CheckpointError: files missing, damaged, or of another kind.
            ConfigError: made for another model.

        Cost: milliseconds; no code of the files is run.
        """
        place = scorer_folder(folder)
        facts = _read_facts(place)
        known = ("layers", "width", "hidden", "num_layers", "fingerprint")
        try:
            scorer = cls(**{key: facts[key] for key in known})
            scorer.load_state_dict(load_tensors((place / WEIGHTS).read_bytes()))
        except (KeyError, TypeError, OSError, RuntimeError, SafetensorError, ConfigError) as error:
            raise CheckpointError(
                f"{place} holds no whole scorer ({str(error).splitlines()[0]}); copy {WEIGHTS} and {FACTS} again"
            ) from error
        scorer.facts = {key: value for key, value in facts.items() if key not in (*known, "schema")}
        if model is not None:
            scorer.check(model)
            scorer.to(model.device)
        return scorer.eval()


def check_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return pruned layers in ascending order.

    Raises:
        ConfigError: none, one twice, layer 0, or one that the model does not have.
    """
    found = tuple(sorted(int(layer) for layer in layers))
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"pruned layers must be given, each once; got {list(layers)}")
    if found[0] < 1 or found[-1] >= num_layers:
        wrong = found[0] if found[0] < 1 else found[-1]
        raise ConfigError(
            f"layer {wrong} cannot be pruned; a model of {num_layers} layers is pruned at 1 to {num_layers - 1} "
            "(layer 0 keeps the whole prompt: its cache length is the position of the next token)"
        )
    return found


def scorer_folder(name: str | Path) -> Path:
    """The folder that `Scorer.load` reads: a path as it is, "builtin:NAME" inside the package."""
    text = str(name)
    return (
        builtin_folder(text.removeprefix("builtin:")) / BUILTIN if text.startswith("builtin:") else Path(name)
    )


def shipped_scorer(model: Model) -> str | None:
    """Name of the scorers that come with a built-in model, as `Scorer.load` takes it; None where there are none.

    Example:
        >>> shipped_scorer(load("builtin:long")), shipped_scorer(load("builtin:expert"))
        ('builtin:long', None)
    """
    is_there = model.name.startswith("builtin:") and (scorer_folder(model.name) / FACTS).is_file()
    return model.name if is_there else None


def _flops(tokens: int, layers: int, width: int, hidden: int) -> int:
    return 2 * tokens * layers * hidden * (width + 1)


def _read_facts(place: Path) -> dict[str, Any]:
    try:
        facts = json.loads((place / FACTS).read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{place} has no {FACTS}; give a folder that `twinrun prune train` or Scorer.save wrote"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{place / FACTS} is not valid JSON ({error}); copy it again") from error
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        raise CheckpointError(f"{place / FACTS} is no {SCHEMA} record; train the scorer again")
    return facts
