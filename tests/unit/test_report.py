"""Reports: whole files or none, honest JSON, no speed without a verdict, a page that escapes everything."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tests.support.demo_record import HOSTILE, demo_record, reference_record, verdict_record
from twinrun.errors import ConfigError, NonFiniteError
from twinrun.records.write import to_json, write_bytes, write_json, write_text
from twinrun.report import canvas_page, charts, page, plots, tables, trace_page, view, words
from twinrun.verify import witness

PNG = b"\x89PNG\r\n\x1a\n"


def printed(thing, width=100):
    out = Console(width=width, record=True, file=open(os.devnull, "w"), color_system=None)  # noqa: SIM115  closed with the process
    out.print(thing)
    return out.export_text()


def test_the_rule_shown_is_the_rule_judged_by():
    assert (words.RATIO_MAX, words.RATIO_RMS) == (witness.RATIO_MAX, witness.RATIO_RMS)


# --- files


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    place = tmp_path / "deep" / "a.txt"
    write_text(place, "old")
    write_text(place, "new ü \udc80")
    assert place.read_text("utf-8") == "new ü \\udc80"
    assert os.listdir(place.parent) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    place = write_bytes(tmp_path / "a", b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ConfigError, match=r"cannot write .*No space left"):
        write_bytes(place, b"new")
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_an_interrupted_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    place = write_bytes(tmp_path / "a", b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(place, b"new")
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_a_file_is_a_bad_request(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot write"):
        write_text(tmp_path / "file" / "a.txt", "x")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_is_no_number_and_names_it(bad, tmp_path):
    with pytest.raises(NonFiniteError, match=r"a\.b\[1\]"):
        write_json(tmp_path / "x.json", {"a": {"b": [1.0, bad]}})
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_what_has_no_form():
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        to_json({"a": object()})


def test_json_round_trip(tmp_path):
    record = demo_record()
    assert json.loads(write_json(tmp_path / "x.json", record).read_text("utf-8")) == json.loads(
        json.dumps(record)
    )


# --- words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.2345, "1.23"),
        (999.4, "999"),
        (4321.0, "4321"),
        (2.3e-7, "2.3e-7"),
        (1e-5, "1e-5"),
    ],
)
def test_three_digits(value, text):
    assert words.short(value) == text


def test_factors_and_durations():
    assert [words.times(v) for v in (None, 1.15, 11_342.0, 3e9)] == ["–", "1.15×", "11,000×", "3e9×"]
    assert [words.seconds(v) for v in (None, 0.0351, 0.99996, 3.98, 120.0)] == [
        "–",
        "35.1 ms",
        "1 s",
        "3.98 s",
        "120 s",
    ]
    assert words.spread(3.05, 2.9, 3.4) == "3.0× (2.9–3.4)"
    assert words.spread(82.7, 77.8, 187.8) == "83× (78–188)"


def test_flips_in_words():
    count = [{"flips": {"ties": t, "real": r}} for t, r in ((0, 0), (1, 0), (2, 3))]
    assert [words.flips(row) for row in (*count, {})] == ["none", "1 tie", "3 real, 2 ties", "–"]


# --- tables


def test_a_passing_verdict_has_its_speed_with_spread():
    shown = printed(tables.verdict_table([reference_record(), verdict_record()]), width=80)
    assert "≈ equivalent" in shown
    assert "120 ms" in shown
    assert "83× (78–88)" in shown
    assert "…" not in shown, "80 columns hold the table"


def test_a_verdict_that_fails_shows_no_speed():
    shown = printed(tables.verdict_table([verdict_record("different")]))
    assert "≠ different" in shown
    assert "120 ms" not in shown
    assert "83×" not in shown


def test_names_are_text_and_not_markup():
    shown = printed(tables.verdict_table([verdict_record(candidate="[red]x[/red]")]))
    assert "[red]x[/red]" in shown
    case = verdict_record()["cases"][0] | {"case": "[bold]c"}
    assert "[bold]c" in printed(tables.case_table({"cases": [case]}))


def test_chosen_tokens_are_marked_without_colour():
    text = tables.token_text(["a ", "b", "c"], [None, 0.4, 0.41])
    assert text.plain == "a bc"
    assert ["underline" in str(span.style) for span in text.spans] == [False, False, True]


# --- plots


def test_plots_are_png_and_need_no_pyplot():
    row = verdict_record()
    drawn = [
        plots.error_ratios([reference_record(), row, verdict_record("different", ratio_max=1e6)]),
        plots.error_ratios([]),
        plots.speed_ups([reference_record(), row, verdict_record("different")]),
        plots.speed_ups([]),
        plots.kl_histogram([0.0, 1e-9, 0.39, 0.41, 12.0]),
        plots.kl_histogram([]),
        plots.kl_strips([("a $x_1$", [None, 0.0, 0.5, 9.0])]),
        plots.speed_by_length([64, 256], {"recompute": [1.0, 9.0], "single-pass": [0.01, 0.02]}),
    ]
    assert all(png.startswith(PNG) for png in drawn)


def test_report_starts_without_matplotlib_or_torch():
    code = "import sys, twinrun.report.page, twinrun.report.plots, twinrun.report.tables as t; "
    code += "sys.exit(bool({'matplotlib', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    "values", [[], [0.0], [0.39, 0.3999, 0.4001, 0.41], [1e-12, 1e3], [10.0**k for k in range(-6, 3)]]
)
def test_bins_hold_every_value_and_part_at_the_threshold(values):
    counts, edges = charts.log_bins(values)
    assert sum(counts) == len(values)
    assert len(edges) == len(counts) + 1
    assert edges == sorted(edges)
    above = sum(n for n, low in zip(counts, edges[:-1], strict=True) if low >= 0.4 * 0.999)
    assert above == sum(v >= 0.4 for v in values)


# --- the page


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


@pytest.fixture(scope="module")
def read():
    reader = Reader()
    reader.feed(page.render(demo_record()))
    return reader


def test_hostile_text_stays_text(read):
    assert read.tags.count("script") == 2, "the data and our own script"
    assert "img" not in read.tags
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert HOSTILE in "".join(read.text)
    assert "{{ 7 * 7 }}" in "".join(read.text)


def test_embedded_json_survives_and_cannot_end_its_element():
    html = page.render(demo_record())
    inside = re.search(r'<script type="application/json" id="tips">(.*?)</script>', html, re.DOTALL)
    assert inside is not None
    assert "<" not in inside[1]
    data = json.loads(inside[1])
    assert data[1][0]["token"] == HOSTILE
    assert data[1][0]["expert"][1][0] == HOSTILE
    assert data[0][0]["position"] == 20


def test_nothing_is_fetched(read):
    targets = [value for name, value in read.attributes if name in ("src", "href")]
    assert targets
    assert all(value.startswith("#") for value in targets)
    assert "@import" not in page.render(demo_record())
    assert "link" not in read.tags


def test_the_policy_names_our_script_only(read):
    policy = next(v for n, v in read.attributes if n == "content" and v.startswith("default-src"))
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]


def test_figures_are_embedded():
    html = page.render(demo_record(), {"Seconds by length": PNG})
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in html
    assert "Seconds by length" in html


def test_a_failed_path_and_a_missed_fault_are_said(read):
    record = demo_record(passed=False, outcome="Not as it should be: x.")
    record["twins"][0]["rows"][1] = verdict_record("different", ratio_max=40.0)
    record["faults"][0]["caught"] = False
    html = page.render(record)
    assert "no speed without a verdict that passes" in html
    assert "not caught" in html
    assert "Not as it should be" in html
    assert "no speed without" not in "".join(read.text)


def test_a_demo_without_amateur_says_so():
    html = page.render(demo_record(contrast={"skipped": "no --amateur was given"}, amateur=None))
    assert "Not shown: no --amateur was given" in html


def test_the_words_are_explained(read):
    text = "".join(read.text)
    for word in (
        "identical",
        "equivalent",
        "lossy",
        "different",
        "error ratio",
        "sweep",
        "flip, tie flip",
        "oracle",
    ):
        assert word in text


def test_strip_says_where_the_sides_part():
    found = charts.strip({"positions": [50, 51, 52], "gap_up": [1e-6, 1e-6, 1.0], "allowed": 1e-4})
    assert found is not None
    assert (found["parts_at"], found["odd"]) == (52, 1)
    assert found["columns"][1]["height"] < found["line_at"] < found["columns"][2]["height"]
    assert charts.strip({"positions": [], "gap_up": [], "allowed": 1e-4}) is None
    assert charts.strip({"positions": [1], "gap_up": [0.0], "allowed": None}) is None


def test_meters_are_inside_their_cell():
    for value in (0.0, 1.0, 1.999, 2.001, 1e9):
        meter = view.ratio_meter(value, 2.0, 2.0)
        assert meter is not None
        assert 0 <= meter["width"] <= 100
        assert meter["over"] == (value > 2)


def test_witnesses_tell_who_convicts():
    only_sweep = verdict_record(
        "different", sweep={"gap": 1.0, "allowed": 0.1, "low": "bfloat16", "high": "float32"}
    )
    assert [said["convicts"] for said in view.witnesses(only_sweep)] == [False, True]
    unheard = verdict_record(
        sweep={"gap": None, "allowed": None, "high": None, "why_not": "it was switched off"}
    )
    assert [said["text"] for said in view.witnesses(unheard)] == ["lets it pass", "not heard"]


def test_templates_are_found_as_package_data():
    spec = importlib.util.find_spec("twinrun.report")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = os.path.join(next(iter(spec.submodule_search_locations)), "templates")
    demo = {"frame.html.j2", "page.html.j2", "contrast.html.j2", "parts.html.j2", "script.js", "style.css"}
    trace = {"trace.html.j2", "trace_parts.html.j2", "trace.css", *trace_page.SCRIPTS}
    canvas = {"canvas.html.j2", "canvas.css", *canvas_page.SCRIPTS}
    assert set(os.listdir(folder)) == demo | trace | canvas
