"""The built-in checkpoints: ordinary folders, one tokenizer, and the skill that their cards claim."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import twinrun
from twinrun.tasks.arithmetic import is_exact, problem

NAMES = ("expert", "amateur")
FOLDER = Path(twinrun.__file__).parent / "models" / "builtin"
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
LIVE_PROBLEMS = 60
# The 95 % interval of the exact answers must lie in here: the expert is good, the amateur weak but coherent.
WINDOW = {"expert": (0.78, 0.95), "amateur": (0.15, 0.50)}


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name):
    return FOLDER / name


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER / "expert")


def load(path):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def live_answers(model, tokenizer, items):
    chats = [[{"role": "user", "content": item.question}] for item in items]
    encoded = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        out = model.generate(**encoded, max_new_tokens=110, do_sample=False)
    return tokenizer.batch_decode(out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)


def live_skill(model, tokenizer, count=LIVE_PROBLEMS):
    items = [problem(i, seed=7, split="heldout") for i in range(count)]
    texts = live_answers(model, tokenizer, items)
    return sum(is_exact(text, item) for text, item in zip(texts, items, strict=True)) / count


def test_the_folder_holds_an_ordinary_checkpoint(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "skill.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert config["dtype"] == "bfloat16"
    assert config["max_position_embeddings"] == 2048
    assert "auto_map" not in config


def test_it_opens_without_twinrun(folder):
    code = f"""
import sys, torch
sys.modules["twinrun"] = None  # an import of it would fail
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained({str(folder)!r}) for kind in (AutoModelForCausalLM, AutoTokenizer))
assert model.dtype == torch.bfloat16 and type(model).__name__ == "Qwen3ForCausalLM"
chat = [{{"role": "user", "content": "Ana has 3 coins. She buys 4 more. How many coins does Ana have now?"}}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=60, do_sample=False)
assert out[0, -1].item() in model.generation_config.eos_token_id
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]


def test_both_use_one_tokenizer():
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        digests = {hashlib.sha256((FOLDER / name / file).read_bytes()).hexdigest() for name in NAMES}
        assert len(digests) == 1, file
    sizes = {AutoConfig.from_pretrained(FOLDER / name).vocab_size for name in NAMES}
    assert sizes == {len(AutoTokenizer.from_pretrained(FOLDER / "amateur"))}


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a", "  two  spaces \n\n\ttab ", "\r\n", "0123456789", "naïve café", "Straße", "Привет, мир",
        "你好,世界", "مرحبا", "שלום", "한국어", "🙂👩‍👩‍👧", "e\u0301", "\u00a0", "\x00\x7f",
        "def f(x): return {'a': [1, 2]}", "don't  stop ,.!", "<|not a special|>",
    ],
)  # fmt: skip
def test_any_text_comes_back_unchanged(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_each_digit_is_a_token(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("x 4821 9").input_ids)
    assert [token for token in tokens if any(c.isdigit() for c in token)] == ["4", "8", "2", "1", "9"]
    assert not any(len(token) > 1 and any(c.isdigit() for c in token) for token in tokenizer.get_vocab())


def test_chat_template(tokenizer):
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>S<|end|><|user|>U<|end|><|assistant|>"
    chat.append({"role": "assistant", "content": "A"})
    assert tokenizer.apply_chat_template(chat, tokenize=False) == text + "A<|end|>"
    marked = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    answer = [i for i, m in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(answer) == "A<|end|>"
    with pytest.raises(Exception, match="roles are"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_generation_stops_at_either_end(folder, tokenizer):
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    assert generation["pad_token_id"] == tokenizer.pad_token_id


def test_the_claimed_skill_is_in_its_window(name, folder):
    skill = json.loads((folder / "skill.json").read_text())["skill"]
    low, high = WINDOW[name]
    assert skill["problems"] >= 1000
    assert skill["hits"] / skill["problems"] == skill["exact"]
    assert low <= skill["interval_95"][0] < skill["exact"] < skill["interval_95"][1] <= high
    assert sum(row["hits"] for row in skill["by_steps"].values()) == skill["hits"]
    assert name == "amateur" or skill["exact"] >= 0.80


def test_the_card_is_drawn_from_the_record(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("builtin_card", SCRIPTS / "builtin_card.py")
    card = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(card)
    report = json.loads((folder / "skill.json").read_text())
    text = (folder / "README.md").read_text()
    assert text == card.render(report)
    assert f"| all | {100 * report['skill']['exact']:.1f} % |" in text
    assert f"{report['parameters']:,} parameters" in text
    assert f"{report['text']['bits_per_byte']:.3f} bits per byte" in text
    assert report["weights_bytes"] == (folder / "model.safetensors").stat().st_size


def test_live_skill_agrees_with_the_card(folder, tokenizer):
    """Four standard errors of 60 problems around the claimed rate: another machine's rounding stays inside."""
    claimed = json.loads((folder / "skill.json").read_text())["skill"]["exact"]
    got = live_skill(load(folder), tokenizer)
    assert abs(got - claimed) <= 4 * (claimed * (1 - claimed) / LIVE_PROBLEMS) ** 0.5


def test_an_untrained_model_of_the_same_shape_scores_nothing(tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(FOLDER / "amateur"), dtype=torch.float32
    ).eval()
    model.generation_config = load(FOLDER / "amateur").generation_config
    assert live_skill(model, tokenizer, 20) <= 0.05


def test_the_amateur_is_weak_but_coherent(tokenizer):
    """Wrong answers must still be answers: worked lines and an end, or contrast would only remove noise."""
    items = [problem(i, seed=7, split="heldout") for i in range(40)]
    texts = live_answers(load(FOLDER / "amateur"), tokenizer, items)
    assert sum("####" in text and " = " in text for text in texts) >= 36
