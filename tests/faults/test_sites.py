"""A fault sits where it says: the first module that gives another output in a planted run is the one named."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import twinrun as tr
from tests.faults.test_faults import FAMILIES, reference
from tests.support.state import fingerprint
from twinrun.faults.fault import Fault, Site, broken_copy, candidate_for
from twinrun.faults.parts import attentions
from twinrun.faults.prefill import in_chunks
from twinrun.faults.registry import get_fault
from twinrun.faults.reuse import drafted
from twinrun.faults.sites import paths

Calls = list[tuple[str, list[Tensor]]]
TEXTS = (
    ([[9, 31, 7, 8, 64, 3, 12, 5]], [5]),
    ([[21, 6, 48, 90, 17, 2, 33, 4]], [5]),
    ([[40, 3, 0, *range(60, 85)], [11, 9, *range(200, 207)]], [19, 4]),
)
"""Prompts one after the other; the last a padded batch with the pad id in a text, beyond a window of 16."""
MECHANISMS = {
    "chunked-prefill-positions": in_chunks,
    "chunked-prefill-keys": in_chunks,
    "stale-cache-after-rollback": lambda runner: drafted(runner, rolled_back=2),
}
"""What some faults do differently and still right; the fault is the mistake in it."""
RERUN = ("pruned-prefill-not-decoded",)
"""Their forwards run over the whole text where one token was due."""
NO_ROLLBACK = ("stale-cache-after-rollback", "mistral")
"""A cache that drops what left the window cannot be rolled back."""


def without_the_mistake(fault: Fault, runner: Any) -> AbstractContextManager[None]:
    return MECHANISMS.get(fault.name, lambda _runner: nullcontext())(runner)


def outputs_of(runner: Any) -> Calls:
    """Every call of a module while the texts are scored, with the tensors it returned."""
    found: Calls = []

    def record(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            parts = output.values() if isinstance(output, dict) else output
            parts = [output] if isinstance(output, Tensor) else parts
            found.append((name, [part.clone() for part in parts if isinstance(part, Tensor)]))

        return hook

    with ExitStack() as undo:
        for name, part in runner.model.core.named_modules():
            undo.callback(part.register_forward_hook(record(name)).remove)
        for rows, starts in TEXTS:
            runner.score_batch(rows, starts)
    return found


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(nan=7e7), b.nan_to_num(nan=7e7))
        for a, b in zip(ours, theirs, strict=True)
    )


def alike_at_the_end(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether the newest token got the same up to rounding, however many others went through with it."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.ndim == 3]
    return all(torch.allclose(a[:, -1], b[:, -1], rtol=1e-4, atol=1e-4) for a, b in pairs)


def first_departure(right: Calls, wrong: Calls, agree: Any = same) -> str | None:
    for (name, ours), (other, theirs) in zip(right, wrong, strict=True):
        assert name == other
        if not agree(ours, theirs):
            return name
    return None


def is_inside(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or (place != "" and path.startswith(place + ".")) for place in places)


def right_places(fault: Fault, model: tr.Model) -> tuple[str, ...]:
    """Modules in which the fault may first be seen."""
    core = model.core
    if fault.site.modules is not None:
        return tuple(fault.site.modules(model))
    if fault.site.kind == "mask":
        return paths(model, attentions(model))
    names = [name for name, part in core.named_modules() if "embed" in type(part).__name__.lower()]
    return tuple(name for name in names if not is_inside(name, (model.layout.layers_name,)))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_output_that_departs_is_that_of_the_site(name: str) -> None:
    fault, model = get_fault(name), reference(FAMILIES[name][0], "float32").model
    candidate = candidate_for(fault, model)
    assert candidate.model.layout.streams  # found by a forward of its own, which must not be recorded
    with without_the_mistake(fault, candidate):
        right = outputs_of(candidate)
    with fault.planted(candidate):
        wrong = outputs_of(candidate)
    departure = first_departure(right, wrong, alike_at_the_end if name in RERUN else same)
    if fault.site.kind == "scores":
        assert departure is None
        return
    assert departure is not None
    places = right_places(fault, candidate.model)
    assert is_inside(departure, places), f"{departure} is not inside {places}"


@pytest.mark.parametrize(
    ("name", "family"), [(name, family) for name, pair in FAMILIES.items() for family in pair]
)
def test_a_site_names_modules_of_the_model_and_changes_nothing(name: str, family: str) -> None:
    site, model = get_fault(name).site, reference(family, "float32").model
    if site.modules is None:
        assert site.kind in ("input ids", "positions", "mask", "scores")
        return
    before = fingerprint(model.core)
    places = site.modules(model)
    assert places
    assert set(places) <= {path for path, _ in model.core.named_modules()}
    assert fingerprint(model.core) == before


@pytest.mark.parametrize(
    ("name", "family", "places"),
    [
        ("attention-scale-off", "gpt2", ("transformer.h.0.attn",)),
        ("value-scale-off", "llama", ("model.layers.1.self_attn", "model.layers.1.self_attn.v_proj")),
        ("norm-epsilon-off", "llama", ("model.layers.0.input_layernorm",)),
        ("head-not-loaded", "gpt2", ("lm_head",)),
        ("softcap-missing", "gemma2", ("",)),
        ("cache-slot-not-written", "gptj", ("transformer.h.1.attn",)),
    ],
)
def test_places_by_hand(name: str, family: str, places: tuple[str, ...]) -> None:
    site = get_fault(name).site
    assert site.modules is not None
    assert tuple(site.modules(reference(family, "float32").model)) == places


def test_a_site_without_its_place_is_refused() -> None:
    with pytest.raises(tr.errors.ConfigError, match="'cache'"):
        Site("cache")
    with pytest.raises(tr.errors.ConfigError, match="'mask'"):
        Site("mask", lambda _model: ("",))


@pytest.mark.parametrize(
    ("name", "family"), [(n, f) for n in MECHANISMS for f in ("llama", "mistral") if (n, f) != NO_ROLLBACK]
)
def test_what_a_fault_does_differently_is_right_without_its_mistake(name: str, family: str) -> None:
    ours, fault = reference(family, "float32"), get_fault(name)
    assert fault.applies(ours.model) is None
    candidate = tr.KVCache(broken_copy(ours.model), cache="dynamic")
    with without_the_mistake(fault, candidate):
        verdict = tr.verify(ours, candidate, tr.probes(ours.model, max_tokens=41))
    assert verdict.verdict == "equivalent", verdict.reason
