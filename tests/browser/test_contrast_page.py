"""The page of contrast samples in a headless browser: hostile text, hover, keyboard, narrow, dark, without script."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.contrast_record import HOSTILE, shown_record
from twinrun.report.contrast_page import render_contrast


def record(**changes):
    with TemporaryDirectory() as folder:
        return shown_record(Path(folder), **changes)


RECORDS = {"whole": record, "store": lambda: record(alternatives=False, parts=3)}
RENDER = render_contrast


def shown_tip(page):
    page.wait_for_selector("#tip:not([hidden])", timeout=5_000)
    return page.locator("#tip")


def test_hostile_text_is_shown_and_never_run(see):
    page = see()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator(".question").first.inner_text()
    page.locator(".tokens").first.locator(".tok").nth(1).hover()
    tip = shown_tip(page).inner_text()
    assert "<script>" in tip
    assert "KL 0.500 nats, kept" in tip
    assert page.evaluate("window.hacked") is None


def test_a_kept_step_shows_both_models_and_its_label(see):
    page = see()
    page.locator(".tokens .tok.chosen").nth(2).hover()
    assert [head.inner_text() for head in shown_tip(page).locator("h4").all()] == [
        "expert",
        "amateur",
        "label",
    ]
    assert "75.0 %" in page.locator("#tip .side").nth(2).inner_text()
    page.locator(".tokens .tok:not(.chosen)").first.hover()
    assert page.locator("#tip h4").count() == 2


def test_from_the_folder_alone_a_kept_step_shows_its_label(see):
    page = see("store")
    assert "2 of 3 batches" in page.locator("#incomplete").inner_text()
    assert "give --expert and --amateur" in page.locator("#answers .note").inner_text()
    page.locator(".tokens .tok.chosen").first.hover()
    assert [head.inner_text() for head in shown_tip(page).locator("h4").all()] == ["label"]


def test_the_keyboard_walks_tokens_and_kept_steps(see):
    page = see()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('tok')"):
            break
    here = functools.partial(page.evaluate, "Number(document.activeElement.dataset.i)")
    assert here() == 0
    assert "step 0, position 3" in shown_tip(page).inner_text()
    moves = {"ArrowDown": 1, "ArrowRight": 2, "End": 8, "ArrowUp": 7, "ArrowLeft": 6, "Home": 0}
    for key, expected in moves.items():
        page.keyboard.press(key)
        assert here() == expected, key
    page.keyboard.press("Escape")
    page.wait_for_selector("#tip", state="hidden", timeout=5_000)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_no_width_scrolls_sideways(see, width, scheme):
    page = see(width=width, height=800, scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach(e => { e.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".tokens .tok.chosen").first.hover()
    box = shown_tip(page).bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


def test_without_script_answers_and_kept_steps_are_there(browser, place):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(place("whole"))
    assert page.locator(".tokens .tok").count() == 18
    assert page.locator(".tokens .tok.chosen").count() == 8
    assert page.locator(".bins i.above").count() > 0
    context.close()
