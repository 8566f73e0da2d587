"""Block-wise diffusion decoding with token skip, one token at a time in float64, in dictionaries by position.

One prompt, greedy, dual cache. It shares no code with the library. A hidden state, a key, a value, a proposal is a
dictionary entry under the absolute position it belongs to, so nothing can be aligned wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class PlainStep:
    """One cached step of a block: what was skipped and why, by position; what was proposed."""

    block: int
    step: int
    skipped: set[int] = field(default_factory=set)
    mean: dict[int, float] = field(default_factory=dict)
    low: dict[int, float] = field(default_factory=dict)
    confidence: dict[int, float] = field(default_factory=dict)


@dataclass
class PlainRun:
    """What a decode gave. `margin` is the smallest distance of any decision from its opposite."""

    tokens: list[int]
    steps: list[PlainStep]
    margin: float


class PlainModel:
    """A bidirectional Llama, one token and one layer at a time."""

    def __init__(self, module: nn.Module) -> None:
        self.w = {name: t.detach().double() for name, t in module.state_dict().items()}
        c = module.config
        self.layers, self.heads, self.shared = (
            c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads
        )  # fmt: skip
        self.size, self.eps = c.hidden_size // c.num_attention_heads, c.rms_norm_eps
        self.theta = c.rope_parameters["rope_theta"]
        self.keys: dict[tuple[int, int], Tensor] = {}
        self.values: dict[tuple[int, int], Tensor] = {}

    def embed(self, token: int) -> Tensor:
        return self.w["model.embed_tokens.weight"][token]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / math.sqrt(float((x * x).mean()) + self.eps) * self.w[name + ".weight"]

    def turn(self, x: Tensor, position: int) -> Tensor:
        half = self.size // 2
        out = x.clone()
        for i in range(half):
            angle = position / self.theta ** (2 * i / self.size)
            a, b = x[i], x[i + half]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def layer(self, layer: int, states: dict[int, Tensor]) -> dict[int, Tensor]:
        """All given tokens write their keys and values, then each attends to every known position."""
        at = f"model.layers.{layer}."
        normed = {p: self.norm(x, at + "input_layernorm") for p, x in states.items()}
        for p, x in normed.items():
            k = (self.w[at + "self_attn.k_proj.weight"] @ x).view(self.shared, self.size)
            self.keys[layer, p] = torch.stack([self.turn(head, p) for head in k])
            self.values[layer, p] = (self.w[at + "self_attn.v_proj.weight"] @ x).view(self.shared, self.size)
        known = sorted(p for of, p in self.keys if of == layer)
        out = {}
        for p, x in states.items():
            q = (self.w[at + "self_attn.q_proj.weight"] @ normed[p]).view(self.heads, self.size)
            parts = []
            for head in range(self.heads):
                mine = self.turn(q[head], p)
                shared = head * self.shared // self.heads
                scores = torch.stack([mine @ self.keys[layer, j][shared] for j in known]) / self.size**0.5
                weights = (scores - scores.max()).exp()
                weights = weights / weights.sum()
                parts.append(
                    sum(w * self.values[layer, j][shared] for w, j in zip(weights, known, strict=True))
                )
            x = x + self.w[at + "self_attn.o_proj.weight"] @ torch.cat(parts)
            h = self.norm(x, at + "post_attention_layernorm")
            gate = self.w[at + "mlp.gate_proj.weight"] @ h
            up = self.w[at + "mlp.up_proj.weight"] @ h
            out[p] = x + self.w[at + "mlp.down_proj.weight"] @ (gate / (1 + (-gate).exp()) * up)
        return out

    def proposal(self, final: Tensor, banned: int) -> tuple[int, float]:
        logits = self.w["lm_head.weight"] @ self.norm(final, "model.norm")
        logits[banned] = -math.inf
        token = int(logits.argmax())
        return token, 1 / float((logits - logits[token]).exp().sum())


@dataclass
class PlainCosine:
    """The stable-token rule, token by token."""

    layer_k: int
    threshold: float
    outlier: float
    refresh_every: int | None = None
    neighbours: int = 0
    margin: float = math.inf

    def cuts(self, _layers: int) -> dict[int, list[int]]:
        return {self.layer_k: list(range(1, self.layer_k))}

    def skips(self, step: int) -> bool:
        return self.refresh_every is None or step % self.refresh_every > 0

    def leave(self, cut: int, going: list[int], seen: PlainSeen, told: PlainStep) -> set[int]:
        left = set()
        for p in going:
            cosines = []
            for layer in range(1, self.layer_k):
                a, b = seen.now[layer][p], seen.then[cut, layer, p]
                cosines.append(min(1.0, float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))))
            mean, low = sum(cosines) / len(cosines), min(cosines)
            told.mean[p], told.low[p] = mean, low
            if any(abs(p - other) <= self.neighbours for other in seen.changed):
                continue
            self.margin = min(self.margin, abs(mean - self.threshold), abs(low - self.outlier))
            if low >= self.outlier and mean > self.threshold:
                left.add(p)
        return left


@dataclass
class PlainImportance:
    """The importance ranking, token by token."""

    schedule: list[tuple[float, float]]
    alpha: float
    refresh_every: int | None = None
    margin: float = math.inf

    def cuts(self, layers: int) -> dict[int, list[int]]:
        found = {}
        for layer in range(1, layers):
            if self.share(layer, layers) < self.share(layer - 1, layers):
                found[layer] = [layer]
        return found

    def share(self, layer: int, layers: int) -> float:
        return [share for share, depth in self.schedule if layer >= depth * layers][-1]

    def skips(self, step: int) -> bool:
        return self.refresh_every is None or step % self.refresh_every > 0

    def leave(self, cut: int, going: list[int], seen: PlainSeen, _told: PlainStep) -> set[int]:
        moved = {}
        for p in going:
            a, b = seen.now[cut][p], seen.then[cut, cut, p]
            size = math.sqrt(float(b @ b)) / math.sqrt(len(b)) + 1e-6
            moved[p] = float((a - b).abs().sum()) / len(b) / size
        most = max(1.0, *moved.values())
        sure = {p: seen.sure.get(p, 0.0) if p in seen.open else 0.0 for p in going}
        rank = {p: self.alpha * sure[p] + (1 - self.alpha) * moved[p] / most for p in going}
        for p in sorted(seen.open & set(going), key=lambda p: -sure[p])[:2]:
            rank[p] += 2
        for p in seen.changed:
            rank[p] += 4
        room = min(len(going), max(int(self.share(cut, seen.layers) * seen.tokens), len(seen.changed) + 2))
        order = sorted(going, key=lambda p: -rank[p])
        if room < len(order):
            self.margin = min(self.margin, rank[order[room - 1]] - rank[order[room]])
        return set(order[room:])


@dataclass
class PlainSeen:
    """What a rule is told, by position."""

    now: dict[int, dict[int, Tensor]]
    then: dict[tuple[int, int, int], Tensor]
    changed: set[int]
    open: set[int]
    sure: dict[int, float]
    tokens: int
    layers: int


def plain_decode(
    module: nn.Module,
    prompt: list[int],
    room: int,
    block: int,
    mask: int,
    choose: Callable[[dict[int, float]], set[int]],
    rule: PlainCosine | PlainImportance | None,
) -> PlainRun:
    """Decode `room` tokens behind `prompt`; `choose` picks positions to commit out of {open position: confidence}."""
    model = PlainModel(module)
    ids = dict(enumerate(list(prompt) + [mask] * room))
    steps: list[PlainStep] = []
    for begin in range(len(prompt), len(prompt) + room, block):
        places = list(range(begin, begin + block))
        opened = set(places)
        cuts = rule.cuts(model.layers) if rule else {}
        then: dict[tuple[int, int, int], Tensor] = {}
        computed: dict[int, int] = {}
        guess: dict[int, int] = {}
        sure: dict[int, float] = {}
        for step in range(block):
            told = PlainStep((begin - len(prompt)) // block, step)
            going = sorted(ids) if step == 0 else places
            states = {p: model.embed(ids[p]) for p in going}
            now: dict[int, dict[int, Tensor]] = {}
            changed = {p for p in places if step and computed[p] != ids[p]}
            for layer in range(model.layers):
                now[layer] = states
                if layer in cuts:
                    if step and rule.skips(step):
                        seen = PlainSeen(now, then, changed, opened, sure, block, model.layers)
                        left = rule.leave(layer, sorted(states), seen, told)
                        told.skipped |= left
                        states = {p: x for p, x in states.items() if p not in left}
                    for p in set(states) & set(places):
                        for watched in cuts[layer]:
                            then[layer, watched, p] = now[watched][p]
                states = model.layer(layer, states)
            for p in set(states) & set(places):
                computed[p] = ids[p]
            for p in opened & set(states):
                guess[p], sure[p] = model.proposal(states[p], mask)
            free = opened
            if isinstance(rule, PlainImportance):
                free = opened - told.skipped or opened
            told.confidence = {p: sure[p] for p in sorted(opened)}
            steps.append(told)
            for p in choose({p: sure[p] for p in sorted(free)}):
                ids[p] = guess[p]
                opened.discard(p)
            if not opened:
                break
    margin = rule.margin if rule else math.inf
    return PlainRun([ids[p] for p in range(len(prompt), len(prompt) + room)], steps, margin)
