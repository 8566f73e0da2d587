"""lm-evaluation-harness on twinrun's runners: the numbers of its own back end, task by task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import twinrun as tr
from twinrun.errors import ConfigError
from twinrun.models.load import local_folder
from twinrun.quality.harness import continuation, loglikelihoods

TASK = """
task: twin_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
{more}
metadata: {{version: 1}}
"""
KINDS = {
    "multiple_choice": (
        "{{q}}",
        "{{a}}",
        'doc_to_choice: "{{choices}}"\nmetric_list: [{metric: acc}, {metric: acc_norm}]',
    ),
    "generate_until": (
        "{{q}}",
        "{{choices[0]}}",
        'generation_kwargs: {until: ["\\n", "9"], max_gen_toks: 5, do_sample: false}\n'
        "metric_list: [{metric: exact_match}]",
    ),
    "loglikelihood_rolling": (
        "",
        "{{q}}",
        "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]",
    ),
}


def plain_loglikelihood(model: tr.Model, context: list[int], end: list[int]) -> float:
    """One forward, float64 softmax, no code of the harness class."""
    with torch.inference_mode():
        logits = model.model(torch.tensor([[*context, *end]])).logits[0].double()
    each = logits.log_softmax(-1)[len(context) - 1 : -1]
    return float(sum(row[i] for row, i in zip(each, end, strict=True)))


PAIRS = [([30, 40, 50], [60, 70]), ([31], [41, 51, 61]), ([5] * 20, [6])]


@pytest.mark.parametrize("kind", [tr.KVCache, tr.SinglePass, tr.Recompute])
@pytest.mark.parametrize("batch", [1, 3])
def test_loglikelihoods_agree_with_a_plain_forward(shared_llama: tr.Model, kind: type, batch: int) -> None:
    found = loglikelihoods(kind(shared_llama), PAIRS, batch, 64)
    for (value, is_greedy), (context, end) in zip(found, PAIRS, strict=True):
        assert value == pytest.approx(plain_loglikelihood(shared_llama, context, end), abs=1e-4)
        assert value != pytest.approx(plain_loglikelihood(shared_llama, context, [*end[:-1], 9]), abs=1e-3)
        assert not is_greedy
    best = int(tr.KVCache(shared_llama).generate([30, 40, 50], 1).tokens[0][0])
    assert loglikelihoods(kind(shared_llama), [([30, 40, 50], [best])], batch, 64)[0][1]


def test_a_pruned_context_changes_the_number_and_only_the_context_is_pruned(shared_llama: tr.Model) -> None:
    runner = tr.Pruned(shared_llama, selector="recency", schedule={1: 0.5})
    pair = (list(range(30, 60)), [60, 70])
    value = loglikelihoods(runner, [pair], 1, 64)[0][0]
    assert runner.last.lengths == (30,)
    assert value != pytest.approx(plain_loglikelihood(shared_llama, *pair), abs=1e-3)


def test_what_is_too_long_loses_its_beginning(shared_llama: tr.Model) -> None:
    whole = loglikelihoods(tr.SinglePass(shared_llama), [(list(range(30, 60)), [60])], 1, 10)[0][0]
    assert whole == pytest.approx(plain_loglikelihood(shared_llama, list(range(51, 60)), [60]), abs=1e-4)
    with pytest.raises(ConfigError, match="does not fit into 10 tokens"):
        loglikelihoods(tr.SinglePass(shared_llama), [([30], [31] * 10)], 1, 10)


def test_a_continuation_ends_before_its_stop_string(expert: tr.Model) -> None:
    runner = tr.KVCache(expert)
    prompt = expert.encode("Tom has 3 apples and buys 4 more.")
    whole = continuation(runner, prompt, {"max_gen_toks": 12}, 512, 256)
    assert len(whole) > 3
    stop = whole[2:4]
    assert (
        continuation(runner, prompt, {"until": [stop], "max_gen_toks": 12}, 512, 256) == whole.split(stop)[0]
    )
    with pytest.raises(ConfigError, match="num_beams: twinrun's runners choose greedily"):
        continuation(runner, prompt, {"num_beams": 4}, 512, 256)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_harness_gives_the_numbers_of_its_own_back_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from twinrun.quality.harness import NAME, harness_model

    harness_model()
    rows = tmp_path / "rows.jsonl"
    sums = [{"q": f"{a} + 4 =", "choices": [f" {a + 4}", f" {a + 5}", " 3"], "a": 0} for a in range(2, 8)]
    rows.write_text("\n".join(map(json.dumps, sums)))
    for kind, (text, target, more) in KINDS.items():
        (tmp_path / f"{kind}.yaml").write_text(
            TASK.format(kind=kind, rows=rows, text=text, target=target, more=more)
        )
    tasks = [f"twin_{kind}" for kind in KINDS]

    def numbers(model: str, arguments: str) -> dict[str, float]:
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        found = simple_evaluate(
            model=model, model_args=arguments, tasks=tasks, task_manager=manager, device="cpu"
        )
        return {
            f"{task}/{key}": value
            for task, row in found["results"].items()
            for key, value in row.items()
            if isinstance(value, float)
        }

    own = numbers("hf", f"pretrained={local_folder('builtin:expert')},dtype=float32")
    assert len(own) >= 4
    for runner in ("single-pass", "kv-cache:static", "recompute", "pruned,selector=recency,keep=1.0,first=1"):
        found = numbers(NAME, f"pretrained=builtin:expert,dtype=float32,runner={runner}")
        assert found == pytest.approx(own, rel=1e-5), runner
    pruned = numbers(
        NAME,
        "pretrained=builtin:expert,dtype=float32,runner=pruned,selector=recency,schedule=1:1/2:1,protect_last=0.0",
    )
    assert pruned.keys() == own.keys()
