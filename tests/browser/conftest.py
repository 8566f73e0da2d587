"""A headless Chromium. Where it is missing the tests are skipped, loudly."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.demo_record import demo_record
from twinrun.report import page as demo_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SHOTS = Path("twinrun-out") / "browser-failures"


@pytest.fixture(scope="session")
def browser():
    """One browser for all tests."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("BROWSER TESTS DID NOT RUN: playwright is missing (pip install playwright)")
    if CHROMIUM is None:
        pytest.skip("BROWSER TESTS DID NOT RUN: chromium is missing (apt-get install chromium)")
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(scope="session")
def file(tmp_path_factory) -> Path:
    """The demo's page on disk, from a record with hostile text in every place that takes text."""
    place = tmp_path_factory.mktemp("page") / "index.html"
    place.write_text(demo_page.render(demo_record()), "utf-8")
    return place


@pytest.fixture
def watching():
    """The watcher alone, for the control that proves it sees."""
    return watch


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep the outcome where the fixture can see it."""
    report = (yield).get_result()
    if report.when == "call":
        item.failed = report.failed


def watch(page, complaints, home):
    """Note everything on the console, every error, and every request that leaves `home`."""
    page.on("console", lambda message: complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on(
        "request",
        lambda r: None if r.url.startswith((home, "data:")) else complaints.append(f"request: {r.url}"),
    )


@pytest.fixture
def visit(browser, file, request) -> Iterator:
    """Open the page with a viewport and a colour scheme; a word on the console or network fails the test."""
    contexts, complaints = [], []

    def open_page(width=1280, height=900, scheme="light", url=None):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        found = context.new_page()
        target = url or file.as_uri()
        watch(found, complaints, target.rsplit("/", 1)[0])
        found.goto(target)
        found.wait_for_selector("html[data-ready=yes]", timeout=10_000)
        return found

    yield open_page
    if getattr(request.node, "failed", False) or complaints:
        SHOTS.mkdir(parents=True, exist_ok=True)
        for number, context in enumerate(contexts):
            name = re.sub(r"\W+", "-", request.node.name)
            context.pages[0].screenshot(path=str(SHOTS / f"{name}-{number}.png"), full_page=True)
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def place(request, tmp_path_factory):
    """Address of the page of a record, rendered once; the test file says which in RECORDS and RENDER."""
    folder, found = tmp_path_factory.mktemp("pages"), {}

    def path(name):
        if name not in found:
            found[name] = folder / f"{name}.html"
            text = request.module.RENDER(request.module.RECORDS[name]())
            found[name].write_text(text, "utf-8", "backslashreplace")
        return found[name].as_uri()

    return path


@pytest.fixture
def see(request, visit, place):
    """Open a record's page; the first in RECORDS if none is named."""

    def open_record(name=None, **options):
        return visit(url=place(name or next(iter(request.module.RECORDS))), **options)

    return open_record
