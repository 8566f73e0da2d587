"""Bad input to pruning: one line each, with the value, the rule and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import twinrun as tr
from tests.support.prune import SCHEDULE, full, ids
from twinrun.errors import ConfigError, MissingBackendError, ShapeError, UnsupportedModelError
from twinrun.prune.schedule import Schedule
from twinrun.prune.selectors.oracle import Oracle


class Constant:
    """A scorer that belongs to layers 1 and 2 of a model of width 64."""

    layers, width = (1, 2), 64

    def score(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(hidden.shape[:2])


class Few(Constant):
    layers = (1,)


class Wide(Constant):
    width = 128


class Foreign(Constant):
    def check(self, model: Any) -> None:
        raise ConfigError("this scorer was trained on another model; train one for it")


def pruned(**given: Any) -> tr.Pruned:
    return tr.Pruned(full("llama"), **{"schedule": SCHEDULE, **given})


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "empty": (lambda: Schedule.of({}), "has no stages; give at least one"),
    "no schedule": (lambda: Schedule.of(0.9), r"a schedule is \{layer: keep\}"),
    "out of order": (lambda: Schedule.of({7: 0.8, 4: 0.7}), "from layer 7 to layer 4; give layers in rising order"),
    "growing": (lambda: Schedule.of({4: 0.7, 7: 0.8}), r"layer 7 keeps 0.8, more than layer 4 \(0.7\)"),
    "growing tokens": (lambda: Schedule.of({4: 70, 7: 80}), "layer 7 keeps 80, more than layer 4"),
    "zero": (lambda: Schedule.of({4: 0.0}), r"has keep ratio 0.0; it must be in \(0, 1\]"),
    "negative": (lambda: Schedule.of({4: -0.5}), r"must be in \(0, 1\]"),
    "above one": (lambda: Schedule.of({4: 1.5}), r"has keep ratio 1.5; it must be in \(0, 1\]"),
    "nan": (lambda: Schedule.of({4: float("nan")}), r"must be in \(0, 1\]"),
    "below one token": (lambda: Schedule.of({4: 0}), "keeps 0 tokens; keep at least 1"),
    "truth": (lambda: Schedule.of({4: True}), "keeps True; give a float"),
    "word": (lambda: Schedule.of({4: "half"}), "keeps 'half'; give a float"),
    "layer 0": (lambda: Schedule.of({0: 0.9}), "a stage at layer 0: transformers reads the length"),
    "layer -1": (lambda: Schedule.of({-1: 0.9}), "give the index of a layer"),
    "ratio": (lambda: Schedule.geometric(32, 1.2), r"ratio must be in \(0, 1\], got 1.2"),
    "every": (lambda: Schedule.geometric(32, every=0), "every must be at least 1 layer, got 0"),
    "first": (lambda: Schedule.geometric(4), "first=4 is beyond the last layer of 4"),
    "beyond the model": (lambda: pruned(selector="norm", schedule={1: 0.9, 5: 0.5}), "at layer 5 .* last is 2"),
    "nothing to prune": (lambda: Schedule.of({1: 0.5}).kept(0), "a prompt of 0 tokens"),
    "protect_first": (lambda: pruned(selector="norm", protect_first=-1), "protect_first must be a number of tokens"),
    "protect_last": (lambda: pruned(selector="norm", protect_last=1.5), "is a share beyond 1; give tokens as an int"),
    "protect_last nan": (lambda: pruned(selector="norm", protect_last=float("nan")), "protect_last must be"),
    "unknown selector": (lambda: pruned(selector="recensy"), "no selector 'recensy'.*Did you mean 'recency'"),
    "no selector": (lambda: pruned(), "neither a scorer nor a selector was given"),
    "both": (lambda: pruned(scorer=Constant(), selector="norm"), "a scorer and a selector were given"),
    "no score": (lambda: pruned(selector=3), "selector is a int without score"),
    "no scorer": (lambda: pruned(scorer=3), "scorer is a int; give what"),
    "scorer of other layers": (lambda: pruned(scorer=Few()), "was trained for layers 1 and .* prunes at layer 2"),
    "scorer of another width": (lambda: pruned(scorer=Wide()), "reads hidden states of width 128 and .* has 64"),
    "scorer of another model": (lambda: pruned(scorer=Foreign()), "trained on another model"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_settings_are_refused_in_one_line(name: str) -> None:
    call, words = WRONG[name]
    with pytest.raises((ConfigError, UnsupportedModelError), match=words) as told:
        call()
    assert "\n" not in str(told.value)


def test_good_settings_are_not() -> None:
    assert pruned(scorer=Constant()).name == "pruned:learned+schedule=1:0.7,2:0.45"
    assert pruned(selector="norm", protect_first=0, protect_last=3).protection.last == 3


def test_scores_of_another_shape_are_refused() -> None:
    class Short:
        name = "short"

        def score(self, seen: Any) -> torch.Tensor:
            return torch.zeros(1, 3)

    with pytest.raises(ShapeError, match=r"scores are \(1, 3\) float32 for \(1, 40\) tokens"):
        pruned(selector=Short()).score(ids(40), 40)


def test_oracle_scores_decide_and_are_held_to_their_prompt() -> None:
    text, rows = ids(40), [ids(40), ids(20, seed=3)]
    wanted = torch.zeros(40)
    wanted[[9, 11, 13]] = 1.0
    p = pruned(selector=Oracle({1: wanted, 2: wanted}), schedule={1: 0.5, 2: 0.3})
    p.score(text, 40)
    assert p.last is not None
    assert {9, 11, 13} <= set(p.last.kept_positions()[2])
    short = torch.zeros(20)
    short[7] = 1.0
    p = pruned(selector=Oracle({1: [wanted, short]}), schedule={1: 0.4})
    p.score_batch(rows, [40, 20])
    assert p.last is not None
    assert {9, 11, 13} <= set(p.last.kept_positions(0)[1])
    assert 7 in p.last.kept_positions(1)[1]
    with pytest.raises(
        ShapeError, match=r"scores were given for prompts of \(40, 20\) tokens and the batch has \(40,\)"
    ):
        p.score(text, 40)
    with pytest.raises(ConfigError, match="no scores were given for layer 2, only for 1"):
        pruned(selector=Oracle({1: wanted}), schedule={1: 0.9, 2: 0.4}).score(text, 40)


def test_attention_scores_are_the_last_row_of_the_attention_matrix() -> None:
    """Against eager attention's own weights of the layer, on the tokens that it would have been given."""
    m = full("qwen3")
    p = tr.Pruned(m, selector="attention", schedule={1: 0.5, 2: 0.5})
    p.score(ids(40), 40)
    m.config._attn_implementation = "eager"
    with torch.inference_mode():
        weights = m.model(torch.tensor([ids(40)]), output_attentions=True).attentions[1]
    assert p.last is not None
    torch.testing.assert_close(p.last.stages[0].scores, weights[:, :, -1].mean(1), rtol=1e-5, atol=1e-7)


def test_attention_is_refused_where_it_cannot_be_read() -> None:
    with pytest.raises(UnsupportedModelError, match="do not take their attention from the config"):
        tr.Pruned(full("bloom"), selector="attention", schedule=SCHEDULE).score(ids(40), 40)


def test_random_draws_differ_by_seed_prompt_and_stage_and_repeat() -> None:
    def kept(seed: int, text: list[int]) -> Any:
        p = pruned(selector="random", seed=seed, schedule={1: 0.5})
        p.score(text, len(text))
        assert p.last is not None
        return p.last.kept_positions()[1]

    assert kept(0, ids(40)) == kept(0, ids(40))
    assert kept(0, ids(40)) != kept(1, ids(40))
    assert kept(0, ids(40)) != kept(0, ids(40, seed=1))


def test_random_draws_are_even() -> None:
    from twinrun.prune.selector import Seen
    from twinrun.prune.selectors.random import Random

    tokens = torch.arange(20_000)[None]
    hidden = torch.zeros(1, 20_000, 1)
    seen = Seen(
        layer=1, stage=0, hidden=hidden, positions=tokens, real=tokens >= 0, lengths=(20_000,), ids=tokens
    )
    scores = Random(7).score(seen)
    assert float(scores.min()) >= 0
    assert float(scores.max()) < 1
    assert float(scores.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(torch.corrcoef(torch.stack([scores[0, 1:], scores[0, :-1]]))[0, 1]) == pytest.approx(
        0, abs=0.02
    )


def test_a_press_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kvpress", None)
    with pytest.raises(MissingBackendError, match=r"pip install 'twinrun\[kvpress\]'"):
        pruned(selector="press:knorm")


class Keys:
    """What a press of kvpress is: it scores the keys of one layer, head by head."""

    def score(
        self, module: Any, hidden: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
    ) -> torch.Tensor:
        assert (
            hidden.shape[1] == keys.shape[2] == values.shape[2] == kwargs["position_embeddings"][0].shape[1]
        )
        assert module.rotary_emb is not None
        found: torch.Tensor = -keys.norm(dim=-1)
        return found


def test_a_press_scores_the_keys_of_the_layer() -> None:
    from twinrun.prune.selectors.press import Press

    m = full("llama")
    p = tr.Pruned(m, selector=Press(Keys(), m), schedule={1: 0.5})
    p.score(ids(40), 40)
    cache: Any = m.model(torch.tensor([ids(40)]), use_cache=True).past_key_values
    assert p.last is not None
    torch.testing.assert_close(p.last.stages[0].scores, -cache.layers[1].keys.norm(dim=-1).mean(1))
    assert not hasattr(m.layout.layers[1].self_attn, "rotary_emb")
    with pytest.raises(UnsupportedModelError, match="counts padding as text"):
        p.score_batch([ids(40), ids(20)], [40, 20])
    with pytest.raises(ConfigError, match="int does not score tokens"):
        Press(3, m)


NAMED = {
    "pruned:recency+ratio=0.8+first=1+every=1": {1: 0.8, 2: 0.8**2},
    "pruned:norm+schedule=1:0.7,2:0.45+protect_first=2+protect_last=0.2": {1: 0.7, 2: 0.45},
    "pruned:random+schedule=1:30,2:20+protect_last=5": {1: 30, 2: 20},
}


@pytest.mark.parametrize("name", NAMED)
def test_a_name_builds_the_runner_that_bears_it(name: str) -> None:
    from twinrun.runners.registry import build_runner

    m = full("llama")
    p = build_runner(name, m)
    assert isinstance(p, tr.Pruned)
    assert p.schedule == Schedule.of(NAMED[name])
    assert p.name == name
    assert isinstance(build_runner(p.name, m), tr.Pruned)


BAD_NAMES = {
    "pruned:recensy+schedule=1:0.5": "no selector 'recensy'",
    "pruned:norm+ration=0.5": "'ration=0.5' is no setting of a pruned runner.*Did you mean 'ratio'",
    "pruned:norm+ratio=many": "ratio 'many' is no number",
    "pruned:norm+seed=1.5": "seed '1.5' is no whole number",
    "pruned:norm+schedule=1-0.5": "is not LAYER:KEEP",
    "pruned:norm+schedule=1:0.5+ratio=0.9": "gives a schedule and ratio",
    "pruned:norm+seed=1+seed=2": "sets seed a second time",
    "pruned+ratio=0.9+first=1": "neither a scorer nor a selector was given",
    "prunned": "Did you mean 'pruned'",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_in_one_line(name: str) -> None:
    from twinrun.runners.registry import build_runner

    with pytest.raises(ConfigError, match=BAD_NAMES[name]) as told:
        build_runner(name, full("llama"))
    assert "\n" not in str(told.value)
