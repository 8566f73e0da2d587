"""The page and the terminal report of two canvases: escaped, self-contained, readable without a script."""

from __future__ import annotations

import copy
import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

import twinrun as tr
from tests.support import canvas_record as made
from twinrun.models import zoo
from twinrun.report import canvas_view, html
from twinrun.report.canvas_page import SCRIPTS, pack, render_canvas_trace
from twinrun.report.canvas_text import canvas_text
from twinrun.report.words import harmless
from twinrun.trace.canvas_shown import canvas_shown

RECORDS = {
    "wrong": made.canvas_record,
    "clean": made.clean_record,
    "hostile": made.hostile_record,
    "killed": made.killed_record,
}
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]")


class Reader(HTMLParser):
    """Tags, attributes and text of a page, the way a browser parses them; text of scripts is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def printed(record: dict[str, object]) -> str:
    out = io.StringIO()
    Console(width=140, file=out, color_system=None).print(canvas_text(record))
    return out.getvalue()


@pytest.mark.parametrize("name", RECORDS)
def test_a_page_holds_everything_and_asks_for_nothing(name: str) -> None:
    page = render_canvas_trace(RECORDS[name]())
    found = read(page)
    assert found.tags.count("script") == 2
    assert not {"img", "link", "iframe", "object"} & set(found.tags)
    assert not [v for k, v in found.attributes if k in ("src", "onclick", "onerror")]
    assert not [v for k, v in found.attributes if k == "href" and not str(v).startswith("#")]
    (policy,) = [v for k, v in found.attributes if k == "content" and "default-src" in str(v)]
    script = re.findall(r"<script>(.*?)</script>", page, re.S)[0]
    assert f"'sha256-{html.digest(script)}'" in str(policy)
    assert "unsafe-eval" not in str(policy)
    assert not UNSEEN.search("".join(found.text))


def test_the_script_builds_no_markup_from_text() -> None:
    source = "".join(map(html.source, SCRIPTS))
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
    ):
        assert word not in source, word


def test_hostile_text_is_text() -> None:
    page = render_canvas_trace(made.hostile_record())
    assert "<script>window" not in page
    assert page.count("</script>") == 2
    text = "".join(read(page).text)
    assert harmless(made.HOSTILE) in text
    assert "⟨202E⟩" in text
    assert "{{ 7 * 7 }}" in text


def test_what_is_wrong_and_how_it_ends_can_be_read_without_a_script() -> None:
    text = "".join(read(render_canvas_trace(made.canvas_record())).text)
    assert text.count("step 1 of block 0 compares position 0 with position 11") == 2
    assert "The runs part: step 5 of block 0 commits position 16" in text
    page = render_canvas_trace(made.canvas_record())
    cells = re.findall(r'<span class="cell([^"]*)" data-p="(\d+)"><bdi>(.*?)</bdi>', page)
    assert [int(p) for _, p, _ in cells] == 2 * list(range(11, 27))
    assert ["differs" in kind for kind, _, _ in cells] == 2 * ([False] * 5 + [True] * 11)
    assert text.count("block 0, step 7") == 2
    assert "76 kept, mean cosine 0.93000" in text
    assert "36 skipped, mean cosine 0.99998" in text


def test_a_killed_recording_shows_what_there_is() -> None:
    page = render_canvas_trace(made.killed_record())
    assert 'id="incomplete"' in page
    assert "as far as the recording goes" in page
    assert page.count('class="cell open') - page.count('<i class="cell open') == 2  # of the block under way
    assert "Not shown: no side skips tokens by their cosine" in page


def test_bars_are_shares_of_the_tallest() -> None:
    (figure,) = canvas_view.histograms(made.canvas_record())
    assert max(bar["kept_height"] for bar in figure["bars"]) == 100
    assert figure["bars"][3]["skipped_height"] == pytest.approx(100 * 16 / 30, abs=0.01)
    assert figure["bars"][0]["label"].startswith("below ")
    assert figure["bars"][-1]["label"].endswith(" and up")


@pytest.mark.parametrize(
    ("name", "state", "kind"),
    [
        ("wrong", "bad", "skip decision"),
        ("clean", "good", "no divergence"),
        ("killed", "good", "no divergence"),
    ],
)
def test_the_headline_says_the_worst_thing(name: str, state: str, kind: str) -> None:
    said = canvas_view.headline(RECORDS[name]())
    assert (said["state"], said["kind"]) == (state, kind)


def test_parting_by_design_is_no_alarm_and_parting_otherwise_is() -> None:
    record = made.canvas_record(wrong=False)
    assert canvas_view.headline(record)["state"] == "tie"
    record["divergence"] |= {"by_design": False}
    assert canvas_view.headline(record)["state"] == "bad"


@pytest.mark.parametrize("name", RECORDS)
def test_the_terminal_says_the_same(name: str) -> None:
    record = RECORDS[name]()
    text = printed(record)
    assert not UNSEEN.search(text.replace("\n", ""))
    if name == "wrong":
        assert "≠ skip decision  step 1 of block 0 compares position 0 with position 11" in text
        assert "candidate: 76 kept, mean cosine 0.93000; 36 skipped, mean cosine 0.99998" in text
        (marked,) = [line for line in text.splitlines() if line.startswith("→")]
        assert marked.split()[1] == "1"
    if name == "killed":
        assert "not complete" in text


def test_what_the_script_reads_is_small_and_plain() -> None:
    record = made.canvas_record()
    before = copy.deepcopy(record)
    packed = pack(record)
    assert record == before
    assert packed["parts"] == 1  # the finding comes before the place where the runs part
    assert pack(made.canvas_record(wrong=False))["parts"] == 5
    assert len(json.dumps(packed, allow_nan=False)) < 16_000
    step = packed["sides"][1]["steps"][1]
    assert [step[0], step[1], step[2], step[4]] == [0, 1, 0, 11]
    assert step[7] == [[12, packed["strings"].index(made.WORDS[1])]]


def test_a_real_trace_can_be_shown() -> None:
    model = zoo.make("llada")
    skip = tr.Diffusion(model, block_length=8, cache="dual", skip=tr.TokenSkip(layer_k=2, threshold=0.99))
    found = tr.trace(
        tr.Diffusion(model, block_length=8), skip, [5, 6, 7, 9], max_new_tokens=16, early_stop=False
    )
    record = json.loads(json.dumps(canvas_shown(found), allow_nan=False))
    page = render_canvas_trace(record)
    assert page.count('data-p="') == 2 * 16
    assert "diffusion:dual+skip" in printed(record)
