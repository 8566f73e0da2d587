"""The page of two canvases in a headless browser: player, keys, cells, widths, dark, no script, hostile text."""

import re

import pytest
from playwright.sync_api import expect

from tests.support import canvas_record as made
from twinrun.report.canvas_page import render_canvas_trace

RECORDS = {
    "wrong": made.canvas_record,
    "parted": lambda: made.canvas_record(wrong=False),
    "clean": made.clean_record,
    "hostile": made.hostile_record,
    "killed": made.killed_record,
}


RENDER = render_canvas_trace


def cell(page, side, position):
    return page.locator(f"#side-{side} .cell[data-p='{position}']")


def at(page):
    """The step that is shown."""
    return int(page.locator("#scrub").input_value())


def test_the_page_opens_where_it_goes_wrong(see):
    page = see()
    assert at(page) == 1
    assert "block 0, step 1: part, 1 committed, 3 skipped" in page.locator("#now-candidate").inner_text()
    assert "compares position 0 with position 11" in page.locator("#outcome").inner_text()
    assert at(see("parted")) == 5
    assert at(see("clean")) == 15


def test_cells_fill_in_step_by_step(see):
    page = see()
    expect(cell(page, "candidate", 12)).to_have_class(re.compile("just"))
    expect(cell(page, "candidate", 11)).not_to_have_class(re.compile("just|open"))
    expect(cell(page, "candidate", 13)).to_have_class(re.compile("open"))
    expect(cell(page, "candidate", 13)).to_have_text("□")
    expect(cell(page, "candidate", 12)).to_have_class(re.compile("skipped"))
    expect(cell(page, "reference", 12)).not_to_have_class(re.compile("skipped"))
    sure = [
        float(cell(page, "reference", p).evaluate("e => e.style.getPropertyValue('--k')")) for p in (12, 14)
    ]
    assert sure == [0.9, 0.7]
    page.locator("#proposals").check()
    expect(cell(page, "candidate", 13)).to_have_text(re.compile(r"^(?!□)."))
    expect(cell(page, "candidate", 13)).to_have_class(re.compile("proposal"))
    page.locator("#to-end").click()
    assert page.locator("#side-candidate .cell.open").count() == 0
    page.locator("#to-start").click()
    assert page.locator("#side-candidate .cell.open").count() == 15


def test_keys_move_the_step_and_the_position(see):
    page = see("parted")
    for key, step in {"ArrowRight": 6, "ArrowLeft": 5, "Home": 0, "End": 15, "d": 5}.items():
        page.keyboard.press(key)
        assert at(page) == step, key
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert "Position 12." in page.locator("#readout").inner_text()
    page.keyboard.press("ArrowUp")
    assert "Position 11." in page.locator("#readout").inner_text()
    page.locator("#scrub").focus()
    page.keyboard.press("ArrowRight")
    assert at(page) == 6, "the slider moves by one, not by two"


def test_a_cell_says_what_it_holds_and_what_it_was_compared_with(see):
    page = see()
    cell(page, "candidate", 15).click()
    said = page.locator("#readout").inner_text()
    assert "Position 15. reference: mask; proposed" in said
    assert "compared with position 4" in said
    assert "mean cosine 0.95999" in said
    expect(cell(page, "reference", 15)).to_have_class(re.compile("selected"))


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_playing_is_asked_for_and_ends(see, motion):
    page = see("clean")
    page.emulate_media(reduced_motion=motion)
    assert page.locator("#play").get_attribute("aria-pressed") == "false"
    page.keyboard.press(" ")
    expect(page.locator("#play")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#step-number")).to_have_text(re.compile(r"step [1-9]\d* of 15"))
    page.locator("#play").click()
    expect(page.locator("#play")).to_have_attribute("aria-pressed", "false")
    page.locator("#to-start").click()
    moving = cell(page, "reference", 11).evaluate("e => getComputedStyle(e).animationName")
    assert (moving == "arrive") == (motion == "no-preference")
    if motion == "no-preference":
        page.locator("#scrub").fill("14")
        page.locator("#play").click()
        expect(page.locator("#play")).to_have_attribute("aria-pressed", "false")  # the last step stops it
        assert at(page) == 15


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_scheme_and_keep_their_contrast(see, scheme):
    page = see(scheme=scheme)
    luminance = """(e, what) => {
      const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
      canvas.fillStyle = getComputedStyle(e)[what];
      canvas.fillRect(0, 0, 1, 1);
      const rgb = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
        .map((c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2];
    }"""
    ground = page.locator("body").evaluate(luminance, "backgroundColor")
    assert ground < 0.05 if scheme == "dark" else ground > 0.8
    for position in (11, 12, 14):  # decided, just committed, open
        found = cell(page, "candidate", position)
        page.wait_for_timeout(200)  # the shade fades in
        ink, behind = (found.evaluate(luminance, what) for what in ("color", "backgroundColor"))
        contrast = (max(ink, behind) + 0.05) / (min(ink, behind) + 0.05)
        assert contrast >= 4.5, f"{position}: {contrast:.2f} (WCAG AA asks for 4.5)"


@pytest.mark.parametrize("width", [1440, 768, 320])
@pytest.mark.parametrize("name", ["wrong", "hostile"])
def test_no_width_scrolls_sideways(see, width, name):
    page = see(name, width=width, height=844)
    page.locator("details").evaluate_all("all => all.forEach(e => { e.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_text_is_shown_and_never_run(see):
    page = see("hostile")
    page.locator("#proposals").check()
    for _ in range(16):
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert "<script>window.hacked=1</script>" in page.locator("#side-reference").inner_text()
    assert "⟨202E⟩" in page.locator("#outcome").inner_text()


def test_a_killed_recording_plays_as_far_as_it_goes(see):
    page = see("killed")
    assert page.locator("#incomplete").is_visible()
    assert "ended after step 5" in page.locator("#now-candidate").inner_text()
    assert page.locator("#to-parting").is_disabled()


def test_without_script_both_ends_and_all_tables_are_there(browser, place):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(place("wrong"))
    assert page.locator("noscript").count() == 1
    assert page.locator(".player").is_hidden()
    assert page.locator("#side-candidate .cell").count() == 16
    assert page.locator(".canvas-steps tbody tr").count() == 16
    assert page.locator(".findings li").count() == 1
    assert page.locator(".cosine-bars").is_visible()
    context.close()
