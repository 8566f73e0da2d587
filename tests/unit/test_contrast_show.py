"""Samples as a page: counts, kept steps, alternatives of the right models, and nothing in them that can do harm."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import twinrun as tr
from tests.support.contrast_record import BIDI, HOSTILE, sample_folder, sampled, shown_record
from twinrun.contrast.problems import read_questions
from twinrun.contrast.sample import sample
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.shown import Selection, shown
from twinrun.contrast.store import SampleStore
from twinrun.errors import ConfigError, SamplesError
from twinrun.report import charts, contrast_plots, contrast_view, html, view
from twinrun.report.contrast_page import render_contrast


class Tags(HTMLParser):
    """Every tag with its attributes, and the text inside tokens and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[tuple[str, bool, str]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if "data-i" in dict(attrs):
            self.tokens.append(("", "chosen" in (dict(attrs)["class"] or ""), dict(attrs)["style"] or ""))

    def handle_data(self, data):
        last, attrs = self.tags[-1] if self.tags else ("", {})
        if last == "script":
            self.scripts[-1] += data
        elif "data-i" in attrs:
            text, chosen, style = self.tokens[-1]
            self.tokens[-1] = (text + data, chosen, style)

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", {}))


@pytest.fixture(scope="module")
def pair():
    return tuple(tr.load(f"builtin:{who}", dtype="float32") for who in ("expert", "amateur"))


@pytest.fixture(scope="module")
def real(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "s"
    settings = SampleSettings(max_new_tokens=20, batch_size=2)
    sample(*pair, read_questions("builtin:arithmetic", limit=3), folder, settings=settings)
    return SampleStore(folder)


# --- the record


def test_counts_are_of_the_whole_folder_and_refused_problems_apart(tmp_path):
    record = shown(sample_folder(tmp_path), selection=Selection(limit=1))
    assert record["counts"] == {
        "problems": 3, "answers": 2, "refused": 1, "cut_off": 1, "steps": 18, "kept": 8,
    }  # fmt: skip
    assert len(record["kl"]) == 18
    assert [text["prompt_id"] for text in record["texts"]] == [f"one {HOSTILE}"]
    assert contrast_view.share(record["counts"]) == "44.4 %"
    assert record["complete"] is True


def test_kept_is_what_the_folder_kept_not_what_lies_above_beta(tmp_path):
    text = shown(sample_folder(tmp_path))["texts"][0]
    assert text["chosen"] == [1, 4, 7, 8]
    assert text["kl"][0] > 0.4
    assert list(text["labels"]) == text["chosen"]
    assert text["labels"][1] == [(HOSTILE, 0.75), ("é$x^$", 0.25)]


def test_without_models_a_token_that_no_label_names_stands_as_its_id(tmp_path):
    text = shown(sample_folder(tmp_path))["texts"][0]
    assert text["tokens"][-1] == "#9"
    assert text["tokens"][7] == "三"
    assert text["unnamed"] == 1
    assert text["expert"] is None


def test_problems_are_found_by_id_and_a_wrong_id_is_refused(tmp_path):
    store = sample_folder(tmp_path)
    found = shown(store, selection=Selection(ids=(f"two {BIDI}",)))
    assert [text["start"] for text in found["texts"]] == [3]
    with pytest.raises(SamplesError, match=r"no answer to 'refused'.*trajectories\.jsonl"):
        shown(store, selection=Selection(ids=("refused",)))
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        Selection(limit=0)


def test_a_folder_without_answers_says_why(tmp_path):
    store = SampleStore.create(tmp_path / "a", {"settings": {}}, parts=2)
    with pytest.raises(SamplesError, match="no answers yet"):
        shown(store)
    store.append(0, [sampled("x", 0, refused="NaN")])
    with pytest.raises(SamplesError, match=r"all 1 problems .* were refused"):
        shown(store)


def test_alternatives_are_the_models_own(real, pair):
    """The oracle asks each model about each prefix, in float64."""
    record = shown(real, models=pair, selection=Selection(limit=2, top_k=3))
    assert record["kl_gap_max"] < 1e-5
    rows = list(real.trajectories())
    for text, row in zip(record["texts"], rows, strict=False):
        for who, model in zip(("expert", "amateur"), pair, strict=True):
            for t in (0, len(row.answer_ids) - 1):
                prefix = torch.tensor([[*row.prompt_ids, *row.answer_ids[:t]]])
                with torch.inference_mode():
                    p = model.model(input_ids=prefix).logits[0, -1].double().softmax(-1)
                top = p.topk(3)
                assert [round(x, 4) for _, x in text[who][t]] == [round(x, 4) for x in top.values.tolist()]
                assert text[who][t][0][0] == model.tokenizer.decode([int(top.indices[0])])
    assert "".join(record["texts"][0]["tokens"]).startswith(record["texts"][0]["answer"][:5])


def test_a_folder_whose_kl_was_changed_does_not_agree(real, pair, tmp_path):
    """The control of `kl_gap_max`."""
    header = {key: value for key, value in real.header.items() if key not in ("schema", "parts")}
    store = SampleStore.create(tmp_path / "changed", header, parts=1)
    first = next(real.sampled())
    kl = list(first.trajectory.kl)
    kl[3] += 0.01
    store.append(0, [replace(first, trajectory=replace(first.trajectory, kl=tuple(kl)))])
    assert shown(store, models=pair)["kl_gap_max"] == pytest.approx(0.01, rel=1e-2)


def test_other_models_are_refused(real, pair):
    with pytest.raises(ConfigError, match=r"expert.* was made of another model than builtin:amateur"):
        shown(real, models=(pair[1], pair[0]))


# --- the page


@pytest.mark.parametrize("alternatives", [True, False])
def test_hostile_text_stays_text(tmp_path, alternatives):
    page = render_contrast(shown_record(tmp_path, alternatives=alternatives))
    found = Tags(page)
    names = [tag for tag, _ in found.tags]
    assert names.count("script") == 2
    assert not {"img", "iframe", "link", "object", "svg"} & set(names)
    assert not [attrs for _, attrs in found.tags if any(key.startswith("on") for key in attrs)]
    assert HOSTILE not in page
    assert "49" not in found.tokens[3][0], "a template in a token is not run"
    assert "\u202e" not in page, "a character that turns the text around stands as its code point"
    assert found.tokens[1][0] == HOSTILE


def test_the_policy_names_the_script_and_allows_nothing_else(tmp_path):
    page = render_contrast(shown_record(tmp_path))
    policy = next(a["content"] for t, a in Tags(page).tags if t == "meta" and a.get("http-equiv"))
    assert policy.startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    )
    assert html.digest(Tags(page).scripts[1]) in policy
    assert html.digest(Tags(page).scripts[1] + " ") not in policy
    assert not re.search(r"(?:src|href)=\"(?!#)", page)


def test_shade_and_mark_of_every_token(tmp_path):
    record = shown_record(tmp_path)
    found = Tags(render_contrast(record)).tokens
    assert len(found) == 18
    for i, (_, chosen, style) in enumerate(found[:9]):
        assert chosen == (i in (1, 4, 7, 8))
        assert style == f"--k:{view.heat(record['texts'][0]['kl'][i])}"


def test_tips_hold_both_models_and_the_label(tmp_path):
    tips = json.loads(Tags(render_contrast(shown_record(tmp_path))).scripts[0])
    assert len(tips) == 2
    kept, other = tips[0][1], tips[0][2]
    assert kept["label"] == [[HOSTILE, 0.75], ["é$x^$", 0.25]]
    assert other["label"] == []
    assert other["expert"][1] == [HOSTILE, 0.06]
    assert other["amateur"][2] == ["a⟨202E⟩b", 0.0]
    assert other["where"] == "step 2, position 5"


def test_an_unfinished_folder_says_so(tmp_path):
    assert 'id="incomplete"' not in render_contrast(shown_record(tmp_path / "a"))
    assert "2 of 3 batches are here" in render_contrast(shown_record(tmp_path / "b", parts=3))


@pytest.mark.parametrize("beta", [0.0, 1e-9, 0.4, 0.55, 50.0])
def test_the_line_of_the_histogram_is_an_edge_of_its_bars(beta):
    values = [0.0, 1e-6, 0.01, 0.39, 0.41, 0.54, 0.56, 2.0, 49.0, 51.0]
    found = charts.histogram(values, beta)
    assert sum(bar["count"] for bar in found["bars"]) == len(values)
    assert 0 <= found["beta_at"] <= 100
    above = sum(bar["count"] for bar in found["bars"] if bar["above"])
    if beta >= 1e-3:
        assert above == found["above"] == sum(value > beta for value in values)


# --- the picture


def test_the_picture_grows_with_the_answers(tmp_path):
    record = shown_record(tmp_path)
    sizes = []
    for texts in (record["texts"][:1], record["texts"], record["texts"] * 60):
        data = contrast_plots.contrast_png({**record, "texts": texts})
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        sizes.append((int.from_bytes(data[16:20]), int.from_bytes(data[20:24])))
    assert sizes[0][0] == sizes[1][0] == sizes[2][0]
    assert sizes[0][1] < sizes[1][1] < sizes[2][1] < 150 * (contrast_plots.MOST_LINES + 20) * 0.17 + 400
    assert contrast_plots._fitting(record["texts"] * 60)[1] <= contrast_plots.MOST_LINES


def test_every_character_of_an_answer_stands_in_the_picture(tmp_path):
    text = shown_record(tmp_path)["texts"][0] | {
        "tokens": ["ab\n", "c", "三三", "e\u0301", "x" * 200],
        "kl": [None] * 5,
    }
    cells = list(contrast_plots._cells(text, 1))
    assert "".join(cell.text for cell in cells) == "ab↵c□□é".replace("é", "e\u0301") + "x" * 200
    assert [cell.line for cell in cells[:4]] == [1, 2, 2, 2]
    assert max(cell.column + cell.width for cell in cells) <= contrast_plots.COLUMNS
    assert len({(cell.line, cell.column) for cell in cells}) == len(cells)
