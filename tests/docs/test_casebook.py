"""The casebook's examples run, and what their pages show still comes out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASEBOOK = ROOT / "docs" / "casebook"
GPT, LOGITS, SKIP = "teaching_gpt_cache", "half_precision_logits", "token_skip"
PRUNED, SAMPLING = "pruned_prefill", "lightreasoner"
PADDED = "padded_training"
NUMBER = re.compile(r"(?<![\w.])-?(?:\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.]*\d)")
AGAIN = "run python scripts/casebook_pages.py and read the page again"


@cache
def printed(example: str) -> str:
    script = ROOT / "examples" / f"{example}.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=110, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def shown(example: str) -> str:
    page = (CASEBOOK / f"{example.replace('_', '-')}.md").read_text()
    (block,) = re.findall(r"```text\n(.*?)```", page, re.S)
    return str(block)


def words(text: str) -> list[list[str]]:
    """Lines without their numbers and without text that a model wrote: another machine rounds otherwise."""
    return [NUMBER.sub("#", line.partition(" | '")[0]).split() for line in text.splitlines()]


def table(text: str) -> dict[str, tuple[float, str, str]]:
    """Cache -> (loss, verdict, continuation)."""
    cells = [[c.strip() for c in line.split("|")] for line in text.splitlines() if line.count("|") == 3]
    return {name: (float(loss), verdict, wrote) for name, loss, verdict, wrote in cells[1:]}


@pytest.mark.parametrize(
    "example",
    [GPT, LOGITS, *(pytest.param(e, marks=pytest.mark.slow) for e in (PRUNED, SKIP, SAMPLING, PADDED))],
)
def test_a_page_shows_what_its_example_prints(example: str) -> None:
    assert words(shown(example)) == words(printed(example)), AGAIN


def test_the_words_of_a_page_are_compared() -> None:
    """The control: another verdict, position word or missing line is seen, another rounding is not."""
    page = "sound: equivalent: the worst error is 0.589x, 1.1e-05 nats\nexp(11.09375) = inf"
    assert words(page) == words(page.replace("0.589", "0.61").replace("1.1e-05", "1.3e-05"))
    assert words(page) != words(page.replace("equivalent", "different"))
    assert words(page) != words(page.replace("inf", "NaN"))
    assert words(page) != words(page.splitlines()[0])


def test_the_loss_refutes_the_training() -> None:
    found = table(printed(GPT))
    assert found.keys() == {"off", "sound", "position 0", "no mask", "both"}
    for name, (loss, verdict, _) in table(shown(GPT)).items():
        assert found[name][:2] == (pytest.approx(loss, rel=0.01), verdict), AGAIN
    off, _, right = found["off"]
    assert found["sound"] == (pytest.approx(off, abs=0.0011), "equivalent", right)
    for name, at_least in {"position 0": 0.8, "no mask": 0.1, "both": 0.8}.items():
        loss, verdict, wrote = found[name]
        assert loss > off + at_least, name
        assert verdict == "different"
        assert wrote != right
    damage = found["both"][0] - off
    assert found["position 0"][0] - off > 0.8 * damage  # the page says so: the mask is a tenth of it


def test_both_bugs_of_the_teaching_gpt_are_named() -> None:
    parts = dict(part.split("\n", 1) for part in printed(GPT).split("\n\n")[2:])
    assert parts["sound"].strip() == "trace: no divergence over 24 scored positions"
    for name in ("position 0", "both"):
        assert "trace: positions: step 1 was handed position id 0 for the token at position 21" in parts[name]
        assert "blame (positions): " in parts[name]
    assert "trace: mask: step 1 lets position 21 attend to 1024 keys, the reference to 22" in parts["no mask"]
    assert "blame (mask): " in parts["no mask"]
    assert "model.layers.0.attention" in parts["no mask"]


@pytest.mark.parametrize(
    "fact",
    [
        "exp(11.0859375) = 65248, exp(11.09375) = inf",
        "probability 3.1e-08 is kept as 5.96e-08, its log -16.64",
        "probability 2.9e-08 is kept as 0.00e+00, its log -inf",
        "131072 x 151936 x 2 = 39,829,110,784 bytes",
        "131072 x 151936 x 4 = 79,658,221,568 bytes",
        "1 x 151936 x 4 =        607,744 bytes",
        "20 x 151936 x 4 =     12,154,880 bytes",
    ],
)
def test_exact_numbers_of_the_logits(fact: str) -> None:
    assert fact in printed(LOGITS)
    assert fact in shown(LOGITS), AGAIN


def test_the_arithmetic_is_right() -> None:
    assert 131_072 * 151_936 * 4 == 79_658_221_568
    assert abs(2.0**-24 - 5.96e-8) < 1e-10


def test_errors_of_the_logits() -> None:
    rows = re.findall(
        r"^(float\d+|bfloat16) +(float\d+|bfloat16) +(.+?) {2,}(\S+) +\S+ +\S+ +(\d+) +(\d+) +(\d+)%$",
        printed(LOGITS),
        re.M,
    )
    found = {
        (head, soft, way): (float(worst), int(lost), int(nan))
        for head, soft, way, worst, lost, nan, _ in rows
    }
    assert len(found) == 7
    assert found["float32", "float32", "log_softmax"][0] < 1e-4
    assert found["float16", "float16", "log_softmax"][0] < 0.05
    assert 0.05 < found["bfloat16", "float32", "log_softmax"][0] < 0.25
    assert all(lost == nan == 0 for (_, _, way), (_, lost, nan) in found.items() if way == "log_softmax")
    assert found["float16", "float16", "softmax, then log"][1] > 2867  # of 28,672: the page says a tenth
    assert found["float16", "float16", "exp / sum, then log"][2] > 0
    assert {row[-1] for row in rows} == {"100"}


def test_streaming_does_not_grow() -> None:
    peaks = re.findall(r"(\d+) tokens: whole (\S+) MB, streamed (\S+) MB", printed(LOGITS))
    (few, whole_few, ours_few), (many, whole_many, ours_many) = [tuple(map(float, row)) for row in peaks]
    assert whole_few == pytest.approx(2 * few * 151_936 * 4 / 1e6, abs=0.1)
    assert whole_many == pytest.approx(2 * many * 151_936 * 4 / 1e6, abs=0.1)
    assert ours_few == pytest.approx(ours_many, rel=0.01)
    assert ours_many < whole_many / 3


def test_the_fault_in_the_softmax_is_caught_and_blamed() -> None:
    lines = printed(LOGITS).splitlines()[-3:]
    assert lines[0].startswith("sound: equivalent")
    assert lines[1].startswith("planted: different")
    assert lines[2].startswith("blame (scores): ")


def rows(text: str) -> dict[str, tuple[int, int, int]]:
    """Token skip -> (right answers, per cent of tokens skipped, doubled tokens)."""
    found = re.findall(r"^([a-z][a-z ,.0-9]+?) +\| +(\d+) \| +(\d+) % \| +(\d+) \|", text, re.M)
    return {name: (int(right), int(skipped), int(twice)) for name, right, skipped, twice in found}


def test_the_page_of_the_token_skip_says_what_its_numbers_say() -> None:
    """What the page claims in words, read off what it shows."""
    found = rows(shown(SKIP))
    assert list(found) == [
        "none",
        "sound",
        "rows",
        "positions",
        "early states",
        "as published",
        "published, 1.0",
    ]
    none = found["none"]
    assert found["sound"][0] == none[0]
    assert abs(found["sound"][1] - found["as published"][1]) <= 3  # as many tokens are left out
    assert found["published, 1.0"] == (none[0], 0, none[2])
    assert found["positions"][2] >= 4 * found["sound"][2]
    for name in ("positions", "early states"):
        assert none[0] - found[name][0] == 5, name
    assert found["rows"][0] == none[0] == 23
    assert found["as published"][2] > 3 * none[2]
    text = shown(SKIP)
    assert "step 1 of block 0 compares position 0 with position 41 (32 of 32 tokens" in text
    assert "row j of [1, 73, d] (step 0) against row j of [1, 32, d]" in text
    assert "on the rotary table of position 19 for the token at position 60" in text
    assert "which have passed 3 layers only; they compete in the commit" in text
    shares = [int(n) for n in re.findall(r"proposals, (\d+) % of them the commonest", text)]
    assert (shares[0], shares[3]) == (28, 63)


@pytest.mark.slow
def test_the_token_skip_still_comes_out_as_its_page_says() -> None:
    now, then = rows(printed(SKIP)), rows(shown(SKIP))
    for name, (right, skipped, _) in then.items():
        assert abs(now[name][0] - right) <= 3, (name, AGAIN)
        assert abs(now[name][1] - skipped) <= 3, (name, AGAIN)
    assert now["sound"][0] >= now["none"][0] - 1
    assert now["as published"][0] < now["none"][0] - 3
    assert now["published, 1.0"] == (now["none"][0], 0, now["none"][2])


def padded(text: str) -> dict[str, list[float]]:
    """Way -> cosine, first loss, last loss, true loss."""
    rows = re.findall(r"^(packed|published) +\| +(\S+) \| +(\S+) to (\S+) \| (\S+)$", text, re.M)
    return {name: [float(x) for x in cells] for name, *cells in rows}


def check_padded(text: str) -> None:
    """What the page claims in words."""
    found = padded(text)
    cosine, first, last, true = found["published"]
    (untrained,) = re.findall(r"^untrained .*\| (\S+)$", text, re.M)
    assert found["packed"][0] > 0.999
    assert abs(cosine) < 0.3
    assert first > last > 100 * found["packed"][2]  # it falls, and it is another loss
    assert true > 2 * float(untrained) > found["packed"][3]
    assert "training check, packed: equivalent: " in text
    assert "training check, published: different: " in text
    assert "87 % of the rows" in text


def test_the_page_of_padded_training_says_what_its_numbers_say() -> None:
    check_padded(shown(PADDED))


@pytest.mark.slow
def test_padded_training_still_comes_out_as_its_page_says() -> None:
    check_padded(printed(PADDED))
