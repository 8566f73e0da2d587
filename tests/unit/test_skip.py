"""Token skip against a slow float64 oracle, decision for decision, and against the dual cache, bit for bit."""

from __future__ import annotations

import pytest
import torch

import twinrun as tr
from tests.support.plain_skip import PlainCosine, PlainImportance
from tests.support.skip_runs import BLOCK, MASK, PROMPTS, Wired, decode, disagreement, plain, small
from twinrun.diffusion.active import Active
from twinrun.diffusion.commit import Quota, Threshold
from twinrun.diffusion.importance import ImportanceSkip
from twinrun.diffusion.skip import TokenSkip, scaled_layer_k
from twinrun.diffusion.wiring import Wiring
from twinrun.errors import ConfigError
from twinrun.models.parts import Slots

NEAR = 3e-6
"""A decision that is nearer than this to its opposite may differ between float32 and float64."""
HALF = ((1.0, 0.0), (0.5, 0.25), (0.34, 0.5))


def near_skip(**settings):
    """Token skip whose neighbours of changed tokens may be skipped, if nothing else is said: blocks here are short."""
    return TokenSkip(**{"neighbours": 0, **settings})


def agree(model, rule, oracle):
    """Every row, its oracle beside it; what disagrees, and how many decisions there were of each kind."""
    run, watch = decode(model, rule)
    found = []
    for row, prompt in enumerate(PROMPTS):
        told = oracle()
        found.append(disagreement(run, watch, row, (plain(model, told, prompt))))
        assert told.margin > NEAR, "another seed: a tie decides nothing"
    skipped = torch.cat([s.notes["skipped"].flatten() for s in watch.steps if not s.full])
    return found, int(skipped.sum()), int((~skipped).sum())


COSINE = [
    (0, {"layer_k": 2, "threshold": 0.9}),
    (1, {"layer_k": 3, "threshold": 0.97, "outlier": 0.9}),
    (2, {"layer_k": 2, "threshold": 0.95, "refresh_every": 3}),
    (3, {"layer_k": 3, "threshold": 0.99, "neighbours": 1}),
]


@pytest.mark.parametrize(("seed", "settings"), COSINE)
def test_stable_tokens_are_those_of_the_oracle(seed, settings):
    found, skipped, kept = agree(
        small(seed), near_skip(**settings), lambda: PlainCosine(**{"outlier": 0.7, **settings})
    )
    assert found == [None] * 3
    assert min(skipped, kept) > 10, "both answers occur"


@pytest.mark.parametrize(("seed", "every"), [(0, None), (1, 3), (5, None)])
def test_ranked_tokens_are_those_of_the_oracle(seed, every):
    found, skipped, kept = agree(
        small(seed, layers=5),
        ImportanceSkip(schedule=HALF, refresh_every=every),
        lambda: PlainImportance(list(HALF), 0.5, every),
    )
    assert found == [None] * 3
    assert min(skipped, kept) > 10


class ByRow(Wiring):
    """Row j of the block against row j of the whole canvas."""

    def block_of(self, canvas, columns):
        return canvas[:, : columns.stop - columns.start]


class BlockLocal(Wiring):
    """Rotary positions counted from the block's beginning."""

    def rotary_of(self, parts, rotary, active):
        return parts.rotary(rotary[0], active.picks)


class LayerToHead(Wiring):
    """Skipped tokens show their state in front of the cut, and compete with it."""

    def to_head(self, last, entering, computed):
        return torch.where(computed[..., None], last, entering), torch.ones_like(computed)


class TurnedTwice(Slots):
    """Slots that rotate keys which are rotated already."""

    def __init__(self, slots, rotary):
        self.slots, self.rotary = slots, rotary

    def update(self, keys, values, layer_idx, *args, **kwargs):
        cos, sin = (t[:, None] for t in self.rotary)
        low, high = keys.chunk(2, -1)
        return self.slots.update(keys * cos + torch.cat([-high, low], -1) * sin, values, layer_idx)


class RotatedTwice(Wiring):
    def keys_of(self, slots, rotary):
        return TurnedTwice(slots, rotary)


class FirstRow(Wiring):
    """The first row's decision for all."""

    def rows_of(self, keep):
        return keep[:1].expand_as(keep)


@pytest.mark.parametrize("fault", [ByRow, BlockLocal, LayerToHead, RotatedTwice, FirstRow])
def test_each_fault_of_public_code_is_refused(fault):
    seed, settings = COSINE[0]
    model = small(seed)
    run, watch = decode(model, Wired(near_skip(**settings), fault()))
    assert any(
        disagreement(run, watch, row, plain(model, PlainCosine(**{"outlier": 0.7, **settings}), prompt))
        for row, prompt in enumerate(PROMPTS)
    )


def test_a_wrong_alignment_shows_in_the_positions_compared():
    _, watch = decode(small(), near_skip(layer_k=2, threshold=0.9))
    for step in watch.steps:
        assert step.full or torch.equal(step.notes["compared"], step.positions)
    _, watch = decode(small(), Wired(near_skip(layer_k=2, threshold=0.9), ByRow()))
    first = next(s for s in watch.steps if s.step == 1)
    row = PROMPTS.index(max(PROMPTS, key=len))
    assert first.notes["compared"][row].tolist() == list(range(BLOCK))
    assert first.positions[row].tolist() == list(range(len(PROMPTS[row]), len(PROMPTS[row]) + BLOCK))


EXACT = {
    "threshold": {"threshold": 1.0},
    "refresh": {"refresh_every": 1, "threshold": 0.0},
    "depth": {"layer_k": 4},
}


@pytest.mark.parametrize("commit", [Threshold(0.9), Quota()], ids=repr)
@pytest.mark.parametrize("settings", EXACT.values(), ids=EXACT)
def test_what_skips_nothing_is_the_dual_cache_bit_for_bit(settings, commit):
    for kv_heads in (1, 4):
        model = small(4, kv_heads=kv_heads)
        dual, seen = decode(model, None, commit=commit)
        mine, watch = decode(model, near_skip(**{"layer_k": 2, **settings}), commit=commit)
        assert mine.canvases == dual.canvases
        assert len(watch.steps) == len(seen.steps)
        for a, b in zip(watch.steps, seen.steps, strict=True):
            assert torch.equal(a.confidence.nan_to_num(), b.confidence.nan_to_num())
            assert torch.equal(a.hidden, b.hidden)
    _, watch = decode(model, near_skip(layer_k=2, threshold=0.9), commit=commit)
    hidden = [torch.equal(a.hidden, b.hidden) for a, b in zip(watch.steps, seen.steps, strict=False)]
    assert not all(hidden), "the control: skipping is seen"


def test_shifted_logits_skip_too():
    model = small(4)
    dual, _ = decode(model, None, lead=1)
    assert decode(model, near_skip(layer_k=2, threshold=1.0), lead=1)[0].canvases == dual.canvases
    for skip in (near_skip(layer_k=2, threshold=0.9), ImportanceSkip(schedule=HALF)):
        run, watch = decode(model, skip, lead=1)
        assert all(MASK not in row for row in run.canvases)
        assert any(s.notes["skipped"].any() for s in watch.steps if not s.full)


@pytest.mark.parametrize(
    "skip", [near_skip(layer_k=2, threshold=0.9), ImportanceSkip(schedule=HALF)], ids=["t", "i"]
)
def test_a_row_is_the_row_alone(skip):
    model = small(1)
    together, watch = decode(model, skip)
    for row, prompt in enumerate(PROMPTS):
        alone, own = decode(model, skip, [prompt])
        assert alone.canvases == together.canvases[row : row + 1]
        for mine, theirs in zip(own.steps, watch.steps, strict=False):
            if not mine.full and mine.block == theirs.block:
                assert torch.equal(mine.notes["skipped"][0], theirs.notes["skipped"][row])


def test_everything_stable_still_ends_and_changed_tokens_are_computed():
    run, watch = decode(small(2), near_skip(layer_k=2, threshold=0.0, outlier=-1.0), commit=Quota())
    assert all(MASK not in row for row in run.canvases)
    assert len(watch.steps) == 2 * BLOCK
    for before, step in zip(watch.steps, watch.steps[1:], strict=False):
        if not step.full:
            assert torch.equal(~step.notes["skipped"], before.open & ~step.open), "changed ones and no others"


def test_neighbours_of_changed_tokens_are_computed():
    skip = near_skip(layer_k=2, threshold=0.0, outlier=-1.0, neighbours=1)
    _, watch = decode(small(2), skip, PROMPTS[:1], commit=Quota())
    for before, step in zip(watch.steps, watch.steps[1:], strict=False):
        if not step.full:
            at = int((before.open & ~step.open).nonzero()[0, 1])
            want = [i for i in (at - 1, at, at + 1) if 0 <= i < BLOCK]
            assert (~step.notes["skipped"])[0].nonzero().flatten().tolist() == want


@pytest.mark.parametrize("neighbours", [0, 2])
def test_a_skip_is_judged_one_precision_up_too(neighbours):
    model = small(3)
    model.config.mask_token_id = MASK
    skip = near_skip(layer_k=2, threshold=0.9, neighbours=neighbours)
    plain_side, fast = (tr.Diffusion(model, block_length=BLOCK, cache="dual", skip=s) for s in (None, skip))
    found = tr.verify(plain_side, fast, [PROMPTS[0] * 4], budget={"kl": 100.0}, explain=False)
    assert found.verdict == "lossy"
    assert "not heard" not in str(found), "the sweep ran on both sides"


def test_refresh_computes_everything_and_blocks_begin_anew():
    skip = near_skip(layer_k=2, threshold=0.0, outlier=-1.0, refresh_every=3)
    run, watch = decode(small(2), skip, commit=Quota())
    for step in watch.steps:
        if not step.full:
            assert step.notes["skipped"].any() == (step.step % 3 > 0)
            assert (step.notes["computed_at"] >= (step.step - 1) // 3 * 3).all()
            assert step.step > 1 or (step.notes["computed_at"] == 0).all()
    layers = [s.token_layers for s in run.steps if not s.full]
    kept = [int((~s.notes["skipped"]).sum()) for s in watch.steps if not s.full]
    every = BLOCK * len(PROMPTS)
    assert layers == [2 * every + 2 * k for k in kept]


class Asked(torch.overrides.TorchFunctionMode):
    """Counts what waits for the device."""

    def __init__(self):
        super().__init__()
        self.times = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        self.times += name in {"tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "cpu"}
        return func(*args, **(kwargs or {}))


class Counting:
    """A skip policy whose steps are counted."""

    def __init__(self, rule, extra=0):
        self.rule, self.extra, self.times = rule, extra, []

    def start(self, parts):
        forward, outer = self.rule.start(parts), self
        step = type(forward).__call__

        class Counted(type(forward)):
            def __call__(self, feed):
                with Asked() as asked:
                    [feed.ids[0, 0].item() for _ in range(outer.extra)]
                    passed = step(self, feed)
                outer.times.append(asked.times)
                return passed

        forward.__class__ = Counted
        return forward


@pytest.mark.parametrize(
    "skip", [near_skip(layer_k=2, threshold=0.9), ImportanceSkip(schedule=HALF)], ids=["t", "i"]
)
def test_a_step_waits_for_the_device_once(skip):
    counting = Counting(skip)
    decode(small(), counting)
    assert set(counting.times) == {1}
    counting = Counting(skip, extra=1)
    decode(small(), counting)
    assert set(counting.times) == {2}, "the control"


def test_unequal_rows_are_put_where_they_belong():
    draw = torch.Generator().manual_seed(1)
    for _ in range(50):
        rows, tokens = (int(torch.randint(1, 6, (), generator=draw)) for _ in range(2))
        block = torch.randn(3, rows, tokens, 2, generator=draw)
        new = torch.randn(3, rows, tokens, 2, generator=draw)
        first = torch.rand(rows, tokens, generator=draw) < 0.7
        active, _ = Active.everything(rows, tokens, block.device).narrow(first, int(first.sum(1).max()))
        second = torch.rand(rows, active.width, generator=draw) < 0.7
        real = second & active.real
        spare = int(torch.randint(0, 3, (), generator=draw))
        inner, _ = active.narrow(second, min(active.width, int(real.sum(1).max()) + spare))
        want = torch.zeros(rows, tokens, dtype=torch.bool)
        for row in range(rows):
            for column in range(active.width):
                if real[row, column]:
                    want[row, active.picks[row, column]] = True
        assert torch.equal(inner.spread(), want)
        got = block.clone()
        inner.put(got, torch.stack([inner.take(layer) for layer in new]), 2)
        assert torch.equal(got, torch.where(want[None, :, :, None], new, block))
        assert torch.equal(inner.slots(10, 99)[inner.real], inner.picks[inner.real] + 10)
        assert (inner.slots(10, 99)[~inner.real] == 99).all()


WRONG = [
    (TokenSkip, {"layer_k": 1}, "layer_k=1 compares nothing"),
    (TokenSkip, {"threshold": 1.1}, "threshold=1.1 is no mean cosine"),
    (TokenSkip, {"outlier": -2.0}, "outlier=-2.0 is no cosine"),
    (TokenSkip, {"refresh_every": 0}, "refresh_every=0"),
    (TokenSkip, {"neighbours": -1}, "neighbours=-1"),
    (ImportanceSkip, {"schedule": ()}, "must begin with"),
    (ImportanceSkip, {"schedule": ((0.5, 0.0),)}, "must begin with"),
    (ImportanceSkip, {"schedule": ((1.0, 0.0), (0.2, 0.2), (0.5, 0.5))}, "must fall"),
    (ImportanceSkip, {"schedule": ((1.0, 0.0), (0.5, 1.0))}, "must rise"),
    (ImportanceSkip, {"alpha": 2.0}, "alpha=2.0"),
    (ImportanceSkip, {"refresh_every": 0}, "refresh_every=0"),
]


@pytest.mark.parametrize(("kind", "settings", "words"), WRONG)
def test_settings_outside_their_range_are_refused(kind, settings, words):
    with pytest.raises(ConfigError, match=words):
        kind(**settings)


def test_depth_scales_and_too_deep_is_refused():
    assert [scaled_layer_k(n) for n in (1, 2, 6, 24, 28, 32)] == [1, 2, 3, 14, 16, 18]
    assert TokenSkip.for_depth(6, threshold=0.9) == TokenSkip(layer_k=3, threshold=0.9)
    with pytest.raises(ConfigError, match="layer_k=18, but the model has 4 layers; try 2"):
        decode(small(), TokenSkip())
    with pytest.raises(TypeError):
        TokenSkip(18)
