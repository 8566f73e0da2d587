"""The demo's page in a headless browser: from disk and a server, by keyboard, dark, narrow, hostile text."""

import functools
import http.server
import threading

import pytest

from tests.support.demo_record import HOSTILE

SIZES = [(1280, 900), (768, 1024), (390, 844), (320, 640)]


def shown_tip(page):
    page.wait_for_selector("#tip:not([hidden])", timeout=5_000)
    return page.locator("#tip")


def lightness(page, selector, what):
    """Relative luminance, 0 to 1, of a computed colour."""
    rgb = page.locator(selector).first.evaluate(
        "(e, what) => getComputedStyle(e)[what].match(/[\\d.]+/g).slice(0, 3).map(Number)", what
    )
    parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_it_says_what_was_found(visit):
    page = visit()
    assert "twinrun demo" in page.title()
    assert page.locator("#outcome").inner_text() == "Every fast path is the same model."
    assert page.locator("#paths table.verdicts tbody tr").count() == 3
    told = page.locator("#paths table.verdicts").inner_text()
    assert "82.7×" in told or "83×" in told
    assert page.locator("#diffusion table.verdicts tbody tr").count() == 2
    assert "lossy" in page.locator("#diffusion table.verdicts").inner_text()
    assert page.locator("#prune table.verdicts tbody tr").count() == 2
    assert "12, 9, 5" in page.locator("#prune").inner_text()
    assert page.locator(".card .badge").inner_text() == "caught"
    assert page.locator(".glossary dt").count() >= 9


def test_hostile_text_is_shown_and_never_run(visit):
    page = visit()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator(".question").nth(1).inner_text()
    page.locator(".tokens").nth(1).locator(".tok").first.hover()
    assert "<script>" in shown_tip(page).inner_text()
    assert page.evaluate("window.hacked") is None


def test_from_a_server_too(visit, file):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=file.parent)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = visit(url=f"http://127.0.0.1:{server.server_port}/index.html")
        assert page.locator("h1").is_visible()
        server.shutdown()


def test_hover_shows_both_sides(visit):
    page = visit()
    page.locator(".tokens .tok.chosen").first.hover()
    tip = shown_tip(page).inner_text()
    for text in ("expert", "amateur", "KL 1.20 nats, chosen", "position 21", "%"):
        assert text in tip
    page.mouse.move(2, 2)
    page.wait_for_selector("#tip", state="hidden", timeout=5_000)


def test_the_keyboard_reaches_every_token(visit):
    page = visit()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('tok')"):
            break
    here = functools.partial(page.evaluate, "Number(document.activeElement.dataset.i)")
    assert here() == 0
    assert "position 20" in shown_tip(page).inner_text()
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    last = page.locator(".tokens").first.locator(".tok").count() - 1
    moves = {"ArrowRight": 1, "ArrowDown": 3, "ArrowUp": 1, "End": last, "ArrowLeft": last - 1, "Home": 0}
    for key, expected in moves.items():
        page.keyboard.press(key)
        assert here() == expected, key
    page.keyboard.press("ArrowLeft")
    assert here() == 0, "the first token is the end of the way"
    page.keyboard.press("Escape")
    page.wait_for_selector("#tip", state="hidden", timeout=5_000)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY", "one text is one stop"


def test_the_skip_link_comes_first(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.locator(".skip").evaluate(
        "e => e === document.activeElement && e.getBoundingClientRect().left >= 0"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_scheme_and_keep_their_contrast(visit, scheme):
    page = visit(scheme=scheme)
    ground = lightness(page, "body", "backgroundColor")
    assert ground < 0.05 if scheme == "dark" else ground > 0.8
    panel = lightness(page, ".card", "backgroundColor")
    for selector in (
        "body",
        ".note",
        ".mark.equivalent",
        ".mark.different",
        ".mark.lossy",
        ".outcome",
        ".question",
    ):
        ink = lightness(page, selector, "color")
        for behind in (ground, panel):
            contrast = (max(ink, behind) + 0.05) / (min(ink, behind) + 0.05)
            assert contrast >= 4.5, f"{selector}: {contrast:.2f} (WCAG AA asks for 4.5)"


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_no_width_scrolls_sideways(visit, width, height):
    page = visit(width, height)
    page.locator("details").evaluate_all("all => all.forEach(e => { e.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".tokens .tok.chosen").first.hover()
    box = shown_tip(page).bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert box["y"] >= 0


def test_labels_stand_in_for_the_head_of_a_narrow_table(visit):
    page = visit(390, 844)
    assert not page.locator("thead").first.is_visible()
    label = (
        page.locator("td[data-label=flips]").nth(1).evaluate("e => getComputedStyle(e, '::before').content")
    )
    assert label == '"flips"'


def test_without_script_the_text_is_still_there(browser, file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator(".tok").first.is_visible()
    assert "equivalent" in page.locator("#paths table.verdicts").inner_text()
    context.close()


def test_a_page_that_complains_is_noticed(browser, watching, tmp_path):
    """The control: the watcher of all other tests sees a request, a message and an error."""
    place = tmp_path / "bad.html"
    place.write_text(
        "<img src='http://127.0.0.1:9/x.png'><script>console.log('hi'); missing()</script>", "utf-8"
    )
    context, complaints = browser.new_context(), []
    page = context.new_page()
    watching(page, complaints, tmp_path.as_uri())
    page.goto(place.as_uri())
    context.close()
    for kind in ("request: http://127.0.0.1:9", "console: hi", "error: missing"):
        assert any(found.startswith(kind) for found in complaints), (kind, complaints)
