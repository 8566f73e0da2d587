"""The trace page in a headless browser: map, keys, panel, curves, tables, texts, widths, dark, long, hostile."""

import re
from functools import partial

import pytest
from playwright.sync_api import expect

from tests.support import trace_record as made
from twinrun.report.trace_page import render_trace

RECORDS = {
    "free": made.trace_record,
    "forced": made.forced_record,
    "hostile": made.hostile_record,
    "long": made.long_record,
    "bare": made.bare_record,
    "killed": made.killed_record,
}
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 18, 22
"""Margins of the map's plot in CSS pixels, as in trace_map.js."""


RENDER = render_trace


def here(page):
    """The sentence that says what is selected."""
    return page.locator("#here").inner_text() or page.locator("#here").text_content()


def numbers(page):
    """Step (of the reference) and position of the selection, read from the panel's title."""
    return [int(n) for n in re.findall(r"\d+", page.locator("#unit-title").inner_text())]


def on_map(page, side, step, position, steps, positions):
    """Click the middle of a cell of an unzoomed map."""
    canvas = page.locator(f"#map-{side} .over")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    wide, high = box["width"] - LEFT - RIGHT, box["height"] - TOP - BOTTOM
    at = {"x": LEFT + (position + 0.5) / positions * wide, "y": TOP + (step + 0.5) / steps * high}
    canvas.click(position=at)


def test_the_divergence_is_said_and_selected_first(see):
    page = see()
    assert "twinrun trace" in page.title()
    box = page.locator("#outcome").inner_text()
    for part in ("numeric divergence", "step 14, position 25", "Blame", "self_attn.rotary"):
        assert part in box, part
    assert numbers(page) == [14, 25]
    assert "different tokens" in here(page)
    assert page.locator("#unit .side").count() == 2
    assert page.locator("#unit .alt").count() == 10
    assert page.locator("tr.apart").first.inner_text().startswith("token")


def test_keys_move_the_selection_and_the_panel_with_it(see):
    page = see()
    page.locator("#map-reference").focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = page.locator("#unit .side").first.inner_text()
    moves = {
        "ArrowDown": 15, "ArrowRight": 16, "ArrowUp": 15, "ArrowLeft": 14, "PageDown": 24, "PageUp": 14,
        "Home": 0, "End": 39, "d": 14, "n": 15, "p": 14,
    }  # fmt: skip
    for key, step in moves.items():
        page.keyboard.press(key)
        assert numbers(page) == [step, step + 11], key
        if step != 14:
            assert page.locator("#unit .side").first.inner_text() != before, key
        assert page.locator("#map-reference").get_attribute("aria-valuenow") == str(step)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert numbers(page) == [0, 11], "the first step is the end of the way"
    assert page.locator("#map-reference").get_attribute("aria-valuetext") == here(page)


def test_d_works_from_anywhere_but_a_text_field(see):
    page = see()
    page.locator("#map-reference").press("Home")
    page.locator("#module-filter").fill("")
    page.locator("#module-filter").press("d")
    assert numbers(page) == [0, 11]
    page.locator("#module-filter").fill("")
    page.locator("#only-different").focus()
    page.locator("#zoom-in").press("d")
    assert numbers(page) == [14, 25]


@pytest.mark.parametrize("side", ["reference", "candidate"])
@pytest.mark.parametrize("step", [0, 7, 23, 39])
def test_a_click_on_the_map_selects_that_step(see, side, step):
    page = see()
    on_map(page, side, step, step + 11, 40, 51)
    assert numbers(page) == [step, step + 11]


def test_a_click_on_a_single_pass_selects_the_position(see):
    page = see("forced")
    assert "candidate step 0" in page.locator("#unit-title").inner_text()
    on_map(page, "candidate", 0, 50, 60, 67)
    assert numbers(page) == [43, 0, 50]
    on_map(page, "reference", 20, 3, 60, 67)
    assert numbers(page) == [20, 0, 27], "a row of the triangle is one step, wherever it is clicked"


def test_a_drag_zooms_and_a_click_still_finds_its_step(see):
    page = see()
    canvas = page.locator("#map-reference .over")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 80, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 160, steps=4)
    assert page.locator("#map-reference .brush").is_visible()
    page.mouse.up()
    told = page.locator("#window").inner_text()
    p0, p1, s0, s1 = map(int, re.findall(r"\d+", told))
    assert 0 < s0 < s1 < 39, told
    assert 0 < p0 < p1 < 50, told
    assert numbers(page) == [14, 25], "a drag selects nothing"
    canvas.click(position={"x": box["width"] / 2, "y": TOP + (box["height"] - TOP - BOTTOM) / 2})
    assert abs(numbers(page)[0] - (s0 + s1) / 2) <= 1
    page.locator("#map-reference").press("End")
    expect(page.locator("#window")).to_contain_text("39")
    page.locator("#zoom-all").click()
    assert page.locator("#window").inner_text() == "all 51 positions, 40 steps"


def test_the_map_draws_the_shapes_of_both_runs(see):
    page = see()
    inked = """(side) => {
      const canvas = document.querySelector(`#map-${side} canvas`);
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const wanted = getComputedStyle(document.documentElement).getPropertyValue("--bar-2").trim();
      const [r, g, b] = [1, 3, 5].map((i) => parseInt(wanted.slice(i, i + 2), 16));
      let count = 0;
      for (let i = 0; i < pixels.length; i += 4)
        count += Math.abs(pixels[i] - r) + Math.abs(pixels[i + 1] - g) + Math.abs(pixels[i + 2] - b) < 6;
      return count / (canvas.width * canvas.height);
    }"""
    triangle, diagonal = (page.evaluate(inked, side) for side in ("reference", "candidate"))
    assert triangle > 0.3
    assert diagonal < 0.05
    assert diagonal > 0


def test_the_strip_selects_too(see):
    page = see()
    box = page.locator("#strip").bounding_box()
    width = box["width"] - LEFT - 38 - 2
    page.locator("#strip").click(position={"x": LEFT + width * 30.5 / 40, "y": 20})
    assert numbers(page) == [30, 41]


def test_curves_have_a_band_and_say_where_it_is_left(see):
    page = see()
    assert page.locator("#curve-error polygon.band").count() == 1
    assert page.locator("#curve-error .over").count() == 4
    assert "Beyond rounding from layer 4 on" in page.locator("#curve-place").inner_text()
    page.locator("#curve-error").focus()
    page.keyboard.press("Home")
    assert "embedding: relative error 0" in page.locator("#curve-value").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#curve-value").inner_text().startswith("layer 0: relative error")
    assert "layer 0" in page.locator("#curve-angle").get_attribute("aria-valuetext")
    assert numbers(page) == [14, 25], "keys of a chart move the layer, not the step"
    page.locator("#curve-error").hover(position={"x": 200, "y": 100})
    page.locator("#curve-table summary").click()
    expect(page.locator("#curve-table tbody tr")).to_have_count(9)
    page.locator("#map-reference").press("Home")
    page.wait_for_selector("#curve-error .over", state="detached")
    assert "Every layer is inside" in page.locator("#curve-place").inner_text()


def test_a_row_of_the_table_selects_everywhere(see):
    page = see()
    page.locator("#steps tbody tr").nth(5).click()
    assert numbers(page) == [5, 16]
    page.keyboard.press("ArrowDown")
    assert numbers(page) == [6, 17]
    page.keyboard.press("End")
    assert numbers(page) == [39, 50]
    assert page.evaluate("document.activeElement.closest('tr').dataset.u") == "39"
    assert "page 2 of 2" in page.locator("#page-place").inner_text()
    page.locator("#only-different").check()
    assert "18 rows" in page.locator("#page-place").inner_text()
    assert page.locator("#steps tbody tr .state.s0").count() == 0
    page.locator("#steps tbody .pick").first.focus()
    page.keyboard.press("Enter")
    assert numbers(page)[0] >= 14


def test_modules_are_found_and_the_first_bad_one_is_marked(see):
    page = see()
    first = page.locator("#modules tr.first")
    assert first.count() == 1
    assert "it starts here" in first.inner_text()
    assert first.evaluate(
        "e => { const [a, b] = [e, document.getElementById('modules')].map(n => n.getBoundingClientRect());"
        " return a.top >= b.top && a.bottom <= b.bottom }"
    ), "it is scrolled into its box"
    page.locator("#module-filter").fill("Q_PROJ 5")
    assert page.locator("#modules tbody tr:visible").count() == 1
    assert page.locator("#module-count").inner_text() == "1 of 80 modules"
    page.locator("#module-filter").fill("")
    page.locator("#only-over").check()
    assert page.locator("#modules tbody tr:visible").count() == 26 + 10


def test_tokens_of_both_texts_select_their_step(see):
    page = see()
    assert page.locator("#text-reference .tok").count() == 40
    assert page.locator("#text-reference .tok.differs").first.get_attribute("data-u") == "14"
    assert page.locator("#text-candidate .tok.late").count() == 26
    page.locator("#text-candidate .tok").nth(20).hover()
    assert numbers(page) == [20, 31]
    page.wait_for_selector("#text-reference .tok.selected[data-u='20']")
    page.locator("#text-reference .tok.selected").focus()
    page.keyboard.press("ArrowRight")
    assert numbers(page) == [21, 32]
    assert page.evaluate("document.activeElement.dataset.u") == "21"


def test_everything_can_be_reached_by_tab(see):
    page = see()
    seen = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    for wanted in (
        "skip", "to-divergence", "zoom-in", "map-reference", "map-candidate", "curve-error", "curve-angle",
        "tok late differs parts selected", "pick", "page-next", "only-different", "module-filter", "modules",
    ):  # fmt: skip
        assert wanted in seen, (wanted, seen)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["free", "bare", "killed"])
def test_colours_follow_the_scheme_and_keep_their_contrast(see, scheme, name):
    page = see(name, scheme=scheme)
    luminance = """(e, what) => {
      const rgb = getComputedStyle(e)[what].match(/[\\d.]+/g).slice(0, 3).map(Number)
        .map((c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2];
    }"""
    ground = page.locator("body").evaluate(luminance, "backgroundColor")
    panel = page.locator(".panel").evaluate(luminance, "backgroundColor")
    assert ground < 0.05 if scheme == "dark" else ground > 0.8
    for selector in ("body", ".note", "#unit-title", ".state", ".legend", ".facts dd", "figcaption small"):
        ink = page.locator(selector).first.evaluate(luminance, "color")
        for behind in (ground, panel):
            contrast = (max(ink, behind) + 0.05) / (min(ink, behind) + 0.05)
            assert contrast >= 4.5, f"{selector}: {contrast:.2f} (WCAG AA asks for 4.5)"


def test_a_change_of_scheme_repaints_the_map(see):
    page = see()
    ink = partial(
        page.evaluate,
        "document.querySelector('#map-reference canvas').toDataURL() + document.querySelector('#heat').toDataURL()",
    )
    light = ink()
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(300)  # the page's security policy refuses a predicate that is polled
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert ink() != light


@pytest.mark.parametrize("width", [1440, 1024, 768, 390, 320])
@pytest.mark.parametrize("name", ["free", "hostile", "forced"])
def test_no_width_scrolls_sideways(see, width, name):
    page = see(name, width=width, height=844)
    page.locator("details").evaluate_all("all => all.forEach(e => { e.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_text_is_shown_and_never_run(see):
    page = see("hostile")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert made.HOSTILE in page.locator("#text-reference").inner_text()
    assert "⟨001B⟩" in page.locator("#text-reference").inner_text()
    assert "⟨202E⟩" in page.locator("#outcome").inner_text()
    for _ in range(12):
        page.locator("#map-reference").press("ArrowDown")
    assert page.evaluate("window.hacked") is None


def test_thousands_of_steps_stay_usable(see):
    page = see("long")
    assert numbers(page) == [3496, 3559]
    assert page.locator("#steps tbody tr").count() == 25
    page.locator("#map-candidate").focus()
    page.evaluate(
        "for (let i = 0; i < 200; i++) document.activeElement.dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowUp', bubbles: true}))"
    )
    assert numbers(page) == [3296, 3359]
    page.keyboard.press("d")
    for _ in range(6):
        page.locator("#map-candidate").press("+")
    p0, p1, s0, s1 = map(int, re.findall(r"\d+", page.locator("#window").inner_text()))
    assert s0 <= 3496 <= s1 <= s0 + 80
    assert p0 <= 3559 <= p1
    page.keyboard.press("End")
    assert numbers(page) == [4095, 4158]
    expect(page.locator("#window")).to_contain_text("4095")
    page.wait_for_selector("#text-reference .tok.selected[data-u='4095']")


def test_a_bare_trace_and_a_killed_one_work(see):
    bare = see("bare")
    assert numbers(bare) == [0, 11]
    assert bare.locator("#to-divergence").is_disabled()
    assert bare.locator(".chart").count() == 0
    bare.locator("#map-reference").press("End")
    assert "no token recorded" in here(bare)
    killed = see("killed")
    assert killed.locator("#incomplete").is_visible()
    killed.locator("#map-reference").press("End")
    assert "one side only" in here(killed)
    assert "no row at this step" in killed.locator("#unit").inner_text()


def test_without_script_the_findings_are_still_there(browser, place):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(place("free"))
    assert "step 14, position 25" in page.locator("#outcome").inner_text()
    assert page.locator("#modules tbody tr").count() == 80
    assert "need script" in page.locator("body").inner_text()
    context.close()
