"""The trace as a page and in a terminal: escaped, self-contained, honest about what is not known."""

import copy
import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tests.support import trace_record as made
from twinrun.report import html, trace_pairs, trace_view
from twinrun.report.trace_pack import digits, pack
from twinrun.report.trace_page import SCRIPTS, render_trace, script_text
from twinrun.report.trace_text import trace_text
from twinrun.report.words import harmless

RECORDS = {
    "free": made.trace_record,
    "forced": made.forced_record,
    "hostile": made.hostile_record,
    "bare": made.bare_record,
    "killed": made.killed_record,
}
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]")


class Reader(HTMLParser):
    """Collects tags, attributes and text of a page, the way a browser parses them."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def embedded(page):
    inside = re.search(r'<script type="application/json" id="trace">(.*?)</script>', page, re.DOTALL)
    assert inside is not None
    return inside[1]


def printed(record, width=100):
    out = io.StringIO()
    Console(width=width, file=out, color_system=None).print(trace_text(record))
    return out.getvalue()


# --- the page


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_makes_a_page_and_a_terminal_report(name):
    record = RECORDS[name]()
    before = copy.deepcopy(record)
    assert read(render_trace(record)).tags.count("script") == 2, "the data and our own script"
    assert printed(record)
    assert record == before, "a report changes nothing"


@pytest.mark.parametrize("name", RECORDS)
def test_nothing_is_fetched_and_nothing_runs_but_our_script(name):
    page = render_trace(RECORDS[name]())
    reader = read(page)
    targets = [value for key, value in reader.attributes if key in ("src", "href", "action", "srcset")]
    assert targets
    assert all(value.startswith("#") for value in targets)
    assert not [key for key, _ in reader.attributes if key.startswith("on")]
    assert not {"link", "img", "iframe", "object", "form"} & set(reader.tags)
    assert "@import" not in page
    policy = next(v for k, v in reader.attributes if k == "content" and v.startswith("default-src"))
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{html.digest(script_text())}'" in policy
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


def test_hostile_text_stays_text_and_unseen_characters_are_named():
    page = render_trace(made.hostile_record())
    reader = read(page)
    assert made.HOSTILE in "".join(reader.text)
    assert "{{ 7 * 7 }}" in "".join(reader.text)
    assert UNSEEN.search(page) is None
    assert "⟨202E⟩" in page
    page.encode("utf-8")


def test_embedded_json_survives_and_cannot_end_its_element():
    inside = embedded(render_trace(made.hostile_record()))
    assert "<" not in inside
    data = json.loads(inside)
    assert {made.HOSTILE, made.RTL, made.CONTROL, "\ud800"} <= set(data["strings"])


def test_the_headline_has_its_numbers():
    text = " ".join("".join(read(render_trace(made.trace_record())).text).split())
    for part in (
        "The two runs part at step 14, position 25",
        "numeric divergence",
        "0.412",
        "3.1e-6",
        "130,000×",
        "model.layers.4.self_attn.rotary",
        "Verdict different",
        "it starts here",
    ):
        assert part in text, part


def test_what_is_not_known_is_said():
    text = " ".join("".join(read(render_trace(made.bare_record())).text).split())
    assert "The two runs do not part: 40 positions compared." in text
    assert "Not shown: the hidden states of the layers were not recorded." in text
    assert "Not shown: no module was looked for." in text
    assert "not complete" not in text
    assert "null" not in text.partition("Written by")[0]
    assert "None" not in text.partition("Written by")[0]


def test_a_killed_recording_is_said_and_only_common_positions_are_counted():
    page = render_trace(made.killed_record())
    assert "The recording is not complete." in page
    assert "do not part as far as the recording goes: 23 positions compared" in page
    assert "23/23" in page


def test_differing_tokens_without_a_divergence_are_not_called_clean():
    record = made.trace_record() | {"divergence": None}
    head = trace_view.headline(record)
    assert head["state"] == "tie"
    assert "18 of 40 tokens differ" in head["sentence"]


def test_a_tie_flip_is_no_bug():
    record = made.trace_record()
    record["divergence"] |= {"kind": "tie flip", "ratio": 0.4}
    assert trace_view.headline(record)["state"] == "tie"
    assert [tile["state"] for tile in trace_view.numbers(record)][3] == ""


@pytest.mark.parametrize("kind", trace_view.MEANING)
def test_every_kind_of_divergence_is_explained_even_without_a_place(kind):
    record = made.trace_record(blame=None)
    record["divergence"] = {"kind": kind, "sentence": ""} | dict.fromkeys(
        ("step", "position", "margin", "noise", "ratio")
    )
    text = " ".join("".join(read(render_trace(record)).text).split())
    assert trace_view.MEANING[kind] in text
    assert "The two runs part at an unknown place." in text
    assert pack(record)["divergence"]["unit"] is None


def test_the_script_is_whole_and_touches_no_markup():
    assert len(SCRIPTS) == len(set(SCRIPTS))
    script = script_text()
    assert "</script" not in script.lower()
    for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest"):
        assert word not in script, word


def test_a_long_trace_stays_small():
    record = made.long_record(1024)
    page = render_trace(record)
    assert len(page) < 700 * 1024
    assert len(embedded(page)) < len(json.dumps(record)) / 2


# --- pairing


def test_free_runs_pair_in_order_and_forced_ones_by_position():
    free = trace_pairs.units(made.killed_record())
    assert [u.state for u in free] == [trace_pairs.SAME] * 23 + [trace_pairs.ALONE] * 17
    forced = made.forced_record()
    forced["sides"]["candidate"]["steps"][0]["rows"].reverse()
    found = trace_pairs.units(forced)
    assert [u.position for u in found] == sorted(u.position for u in found)
    rows = [trace_pairs.row_at(forced, "candidate", u.candidate) for u in found]
    assert [row["position"] for row in rows] == [u.position for u in found]


def test_a_free_run_at_a_wrong_position_still_pairs():
    record = made.trace_record()
    for i, step in enumerate(record["sides"]["candidate"]["steps"]):
        step["rows"][0]["position"] = i
    assert len(trace_pairs.units(record)) == 40


def test_a_position_scored_twice_pairs_with_its_twin():
    record = made.forced_record()
    for side in record["sides"].values():
        side["steps"][0]["rows"].append(copy.deepcopy(side["steps"][0]["rows"][0]))
    assert len(trace_pairs.units(record)) == 61


def test_a_run_without_rows_is_a_page_too():
    record = made.bare_record()
    for side in record["sides"].values():
        side["steps"] = []
    assert "No rows were recorded." in render_trace(record)
    assert pack(record)["units"] == []
    assert "0 forwards" in printed(record)


def test_the_divergence_is_found_in_both_modes():
    assert pack(made.trace_record())["divergence"]["unit"] == 14
    assert pack(made.forced_record())["divergence"]["unit"] == 31
    record = made.trace_record()
    record["divergence"]["position"] = 3
    assert pack(record)["divergence"]["unit"] == 14, "the step decides when running free"


# --- packing


def test_equal_caches_are_one_number_and_unequal_ones_stay():
    record = made.trace_record()
    record["sides"]["candidate"]["steps"][1]["cache"][2] = 5
    steps = pack(record)["sides"][1]["steps"]
    assert steps[0][4] == 12
    assert steps[1][4] == [13, 13, 5, 13, 13, 13, 13, 13]


def test_numbers_keep_what_a_difference_needs():
    record = made.trace_record()
    row = pack(record)["sides"][0]["rows"][3]
    assert row[4] == record["sides"]["reference"]["steps"][3]["rows"][0]["logprob"], "all digits"
    assert digits(float("inf"), 4) is None
    assert digits(1e300, 4) == 1e300
    angle = pack(record)["curves"]["angle"][0]
    assert all(value is None or value >= 0 for value in angle)


def test_a_cosine_above_one_is_no_negative_distance():
    record = made.trace_record()
    record["curves"]["cosine"][0] = [1.0000001] * 9
    assert pack(record)["curves"]["angle"][0] == [0] * 9


# --- the blame table and the layers


def test_the_module_to_blame_is_the_first_and_marked_once():
    rows = trace_view.blame_rows(made.trace_record())
    first = [row["number"] for row in rows if row["first"]]
    assert first == [45]
    assert rows[44]["module"] == "model.layers.4.self_attn.rotary"
    assert all(0 <= row["width"] <= 100 for row in rows)


def test_without_a_named_module_the_first_beyond_the_noise_is_marked():
    record = made.trace_record()
    record["blame"]["module"] = None
    assert [r["number"] for r in trace_view.blame_rows(record) if r["first"]] == [45]


def test_unknown_noise_convicts_nobody():
    record = made.trace_record()
    for row in record["blame"]["table"]:
        row |= {"noise": None, "error_in": None}
    record["curves"]["noise"] = [None] * 9
    render_trace(record)
    assert not any(row["over"] for row in trace_view.blame_rows(record))
    assert not any(row["over"] for row in trace_view.layer_rows(record, 25))


def test_layers_at_a_position_take_the_last_curve_before_it():
    record = made.trace_record()
    for key in ("positions", "error", "cosine"):
        record["curves"][key] = record["curves"][key][::4]
    assert trace_view.layer_rows(record, 26)[0]["position"] == 23
    assert trace_view.layer_rows(record, 0)[0]["position"] == 11
    assert trace_view.layer_rows(record, None)[0]["position"] == 11


# --- the terminal


def test_the_terminal_shows_five_steps_to_each_side():
    text = printed(made.trace_record())
    rows = [line for line in text.splitlines() if re.match(r"^[→ ]\s+\d+\s+\d+ ", line)]
    assert [int(re.findall(r"\d+", line)[0]) for line in rows] == list(range(9, 20))
    assert [line[0] for line in rows] == [" "] * 5 + ["→"] + [" "] * 5
    for part in ("margin 0.412", "noise 3.1e-6", "ratio 130,000×", "▲ beyond rounding", "≠ different tokens"):
        assert part in text, part


def test_the_terminal_is_safe_from_what_it_prints():
    record = made.hostile_record()
    record["model"] = "[bold]m[/bold] \x1b]0;title\x07"
    text = printed(record)
    assert "[bold]m[/bold]" in text
    assert UNSEEN.search(text.replace("\n", "")) is None


def test_the_terminal_fits_eighty_columns():
    assert max(map(len, printed(made.trace_record(), width=80).splitlines())) <= 80
    assert "…" not in printed(made.trace_record(), width=80)


def test_harmless_text_stays_as_it_is():
    assert harmless("a b\n\té 😀 –") == "a b\n\té 😀 –"
    assert harmless(None) == ""
