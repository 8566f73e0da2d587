"""Traces made by hand: what the trace page and the terminal report are given. Deterministic, no model."""

from __future__ import annotations

import math
from typing import Any

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'&"
RTL = "abc\u202efed\u2066x"
CONTROL = "a\x00b\x07c\x1b[31md\u2028e\ufeff"
WORDS = (
    " the", " cat", " sat", " on", " a", " mat", ",", " and", " then", " it", " saw", " two", " dogs", ".",
    "\n", " One", " of", " them", " ran", " away", " fast",
)  # fmt: skip
LAYERS = ["embedding", *map(str, range(8))]


def _noise(*seed: int) -> float:
    """A number in [0, 1) that depends on its seed alone."""
    x = math.sin(sum((i + 1) * 12.9898 * s for i, s in enumerate(seed)) + 4.1414) * 43758.5453
    return x - math.floor(x)


def _row(position: int, shift: int, wobble: float, words: tuple[str, ...]) -> dict[str, Any]:
    """A scored position whose likeliest token is `shift` further in the list of words."""
    base = position * 7 + position // 5
    ids = [(base + shift + 3 * k) % len(words) for k in range(5)]
    weights = [math.exp(-(1.1 + _noise(position)) * k) for k in range(5)]
    probs = [w / sum(weights) * 0.97 * (1 - wobble * (k + 1)) for k, w in enumerate(weights)]
    return {
        "position": position,
        "token": 100 + ids[0],
        "piece": words[ids[0]],
        "logprob": math.log(probs[0]),
        "top": [[100 + i, words[i], p] for i, p in zip(ids, probs, strict=True)],
        "entropy": -sum(p * math.log(p) for p in probs),
        "margin": math.log(probs[0] / probs[1]) * 3,
    }


def _step(index: int, first: int, last: int, rows: list[dict[str, Any]], cached: bool) -> dict[str, Any]:
    return {
        "step": index,
        "seconds": 0.002 + 1e-5 * (last - first) + 2e-4 * _noise(index),
        "computed": [first, last],
        "position_ids": [first, last],
        "cache": [last + 1] * (len(LAYERS) - 1) if cached else None,
        "keys": [first + 1, last + 1],
        "rows": rows,
    }


def _free(prompt: int, steps: int, part: int | None, words: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """Recompute (a triangle) and a cache (a diagonal); from step `part` on most tokens differ."""
    sides: list[list[dict[str, Any]]] = [[], []]
    for index in range(steps):
        position = prompt - 1 + index
        apart = part is not None and index >= part and (index == part or _noise(index, 3) < 0.7)
        late = 0.02 if part is not None and index >= part else 1e-7 * _noise(index)
        sides[0].append(_step(index, 0, position, [_row(position, 0, 0.0, words)], cached=False))
        first = 0 if index == 0 else position
        sides[1].append(
            _step(index, first, position, [_row(position, 3 if apart else 0, late, words)], cached=True)
        )
    return sides


def _forced(start: int, length: int, part: int | None, words: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """One forward a token against one forward for all."""
    slow = [
        _step(i, 0, p, [_row(p, 0, 0.0, words)], cached=False) for i, p in enumerate(range(start, length))
    ]
    rows = [
        _row(p, 3 if part is not None and p >= part and _noise(p, 9) < 0.5 else 0, 1e-8, words)
        for p in range(start, length)
    ]
    return [slow, [_step(0, 0, length - 1, rows, cached=False)]]


def _curves(positions: list[int], part: int | None, bad_layer: int) -> dict[str, Any]:
    error, cosine = [], []
    for position in positions:
        row: list[float | None] = []
        for layer in range(len(LAYERS)):
            quiet = 1.5e-7 * (1 + layer) * (0.6 + 0.6 * _noise(position, layer))
            loud = part is not None and position >= part and layer > bad_layer
            row.append(0.0 if layer == 0 else (0.04 * (1 + 0.3 * layer) if loud else quiet))
        error.append(row)
        cosine.append([None if e is None else 1.0 - e * e / 2 for e in row])
    noise = [None, *(6e-7 * (1 + layer) for layer in range(1, len(LAYERS)))]
    return {"positions": positions, "layers": LAYERS, "error": error, "cosine": cosine, "noise": noise}


def _table(bad_layer: int, position: int) -> list[dict[str, Any]]:
    parts = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.rotary",
             "self_attn", "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp")  # fmt: skip
    rows, reached = [], False
    for layer in range(len(LAYERS) - 1):
        for number, part in enumerate(parts):
            hit = layer == bad_layer and part == "self_attn.rotary"
            loud, reached = 0.03 * (1 + 0.1 * layer), reached or hit
            quiet = 2e-7 * (1 + _noise(layer, number))
            rows.append({
                "module": f"model.layers.{layer}.{part}", "layer": layer, "noise": 9e-7, "position": position,
                "error_in": loud if reached and not hit else quiet, "error_out": loud if reached else quiet,
            })  # fmt: skip
    return rows


def trace_record(
    *, mode: str = "free", prompt: int = 12, steps: int = 40, part: int | None = 14,
    words: tuple[str, ...] = WORDS, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """One trace; `part` is the step (free) or the row (forced) where the sides part, None for never."""
    bad_layer = 4
    at = None if part is None else prompt - 1 + part
    if mode == "free":
        names, sides = ("recompute", "kv-cache:static"), _free(prompt, steps, part, words)
    else:
        names, sides = ("recompute", "single-pass"), _forced(prompt - 1, prompt - 1 + steps, at, words)
    pieces = [words[(5 * i) % len(words)] for i in range(prompt)]
    module = f"model.layers.{bad_layer}.self_attn.rotary"
    found: dict[str, Any] = {
        "schema": "twinrun.trace/1", "model": "builtin:expert", "dtype": "float32", "mode": mode, "complete": True,
        "prompt": {"ids": [100 + (5 * i) % len(words) for i in range(prompt)], "pieces": pieces},
        "sides": {
            key: {
                "runner": name, "finish": "length", "seconds": sum(s["seconds"] for s in side), "steps": side,
                "text": "".join(row["piece"] for step in side for row in step["rows"]),
            }
            for key, name, side in zip(("reference", "candidate"), names, sides, strict=True)
        },
        "divergence": None, "blame": None,
        "verdict": {"verdict": "identical", "reason": "every logit agrees bit for bit", "ratio_max": 1.0,
                    "ratio_rms": 1.0, "kl_max": 0.0, "top1_agreement": 1.0},
        "curves": _curves(list(range(prompt - 1, prompt - 1 + steps)), at, bad_layer),
        "env": {"platform": "Linux", "cpu": "A CPU", "gpus": [], "packages": {"torch": "2.9.0"}, "python": "3.13"},
        "seconds": 1.25,
    }  # fmt: skip
    if part is not None and at is not None:
        found["divergence"] = {
            "kind": "numeric divergence", "step": part, "position": at, "margin": 0.412, "noise": 3.1e-6,
            "ratio": 132_900.0,
            "sentence": f"The two runs part at step {part}, position {at}: the reference says '{words[0]}', "
            f"the candidate '{words[3]}'.",
        }  # fmt: skip
        found["blame"] = {
            "kind": "module", "module": module, "layer": bad_layer, "step": part, "position": at,
            "mode": "shadow", "precision": "float64", "error_in": 2.1e-7, "error_out": 0.042, "noise": 9e-7,
            "sentence": f"{module} receives the same input within noise and returns another output.",
            "table": _table(bad_layer, at),
        }  # fmt: skip
        found["verdict"] = {
            "verdict": "different", "reason": "one precision up the gap stays", "ratio_max": 14_200.0,
            "ratio_rms": 880.0, "kl_max": 1.9, "top1_agreement": 0.61,
        }  # fmt: skip
    return found | changes


def forced_record() -> dict[str, Any]:
    """Teacher forcing: one forward a token against a single pass."""
    return trace_record(mode="forced", steps=60, prompt=8, part=31)


def hostile_record() -> dict[str, Any]:
    """Hostile text wherever a record holds text."""
    words = (
        HOSTILE,
        RTL,
        CONTROL,
        "{{ 7 * 7 }}",
        "\ud800",
        "<b>",
        "é",
        "\t",
        "</style>",
        "&lt;",
        "'",
        "x" * 300,
    )
    found = trace_record(
        words=words, model=f"m {HOSTILE}", dtype=HOSTILE, env={"cpu": HOSTILE, "platform": RTL}
    )
    found["divergence"] |= {"sentence": f"{HOSTILE} {RTL} {CONTROL}", "kind": HOSTILE}
    found["blame"] |= {"sentence": HOSTILE, "module": HOSTILE, "precision": HOSTILE}
    found["blame"]["table"][0]["module"] = HOSTILE
    found["verdict"] |= {"reason": HOSTILE}
    found["curves"]["layers"] = [HOSTILE, *LAYERS[1:]]
    for side in found["sides"].values():
        side |= {"runner": HOSTILE, "text": HOSTILE + RTL, "finish": CONTROL}
    return found


def long_record(steps: int = 4096) -> dict[str, Any]:
    """A run of thousands of steps that parts near its end."""
    found = trace_record(steps=steps, prompt=64, part=steps - 600)
    chosen = [p for p in found["curves"]["positions"] if p % 8 == 0 or p == found["divergence"]["position"]]
    found["curves"] = _curves(chosen, found["divergence"]["position"], 4)
    return found


def bare_record() -> dict[str, Any]:
    """A trace that parts nowhere and knows little: no blame, no curves, no verdict, nulls in rows."""
    found = trace_record(part=None, verdict=None, curves=None, env={})
    for side in found["sides"].values():
        side |= {"text": None, "finish": None}
        for step in side["steps"]:
            step |= {"cache": None, "keys": None, "position_ids": None}
            for row in step["rows"]:
                row |= {"piece": None, "logprob": None, "entropy": None, "margin": None, "top": []}
        side["steps"][-1]["rows"][0]["token"] = None
    return found


def killed_record() -> dict[str, Any]:
    """A recording that was killed: the candidate has fewer steps, and none of the sums exist."""
    found = trace_record(complete=False, part=None, verdict=None, curves=None)
    found["sides"]["candidate"]["steps"] = found["sides"]["candidate"]["steps"][:23]
    for side in found["sides"].values():
        side |= {"finish": None, "text": None}
    return found
