"""Tests the triage page of a running daemon in headless Chromium.

    .venv/bin/python -m pytest tests/triage [--screenshots DIR]

`residuald demo` streams on its embedded broker and serves the page. Needs Chromium. Uses the binary that RESIDUALD
names, or else the newest of target/release and target/debug.
"""

import contextlib
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE_BYTES = 150_000
PATIENCE = 60_000  # ms; the machine may be busy
expect.set_options(timeout=PATIENCE)


def missing(what: str) -> None:
    """Skips the test with a message, or fails it if RESIDUALD_TEST_STRICT is set."""
    assert not os.environ.get("RESIDUALD_TEST_STRICT"), f"RESIDUALD_TEST_STRICT is set and {what}"
    print(f"\n!!! SKIPPED tests/triage: {what}", file=sys.__stderr__)
    pytest.skip(what)


def binary() -> Path:
    named = os.environ.get("RESIDUALD")
    built = [Path(named)] if named else [ROOT / "target" / kind / "residuald" for kind in ("release", "debug")]
    there = [path for path in built if path.exists()]
    if not there:
        missing("residuald is not built: make build")
    return max(there, key=lambda path: path.stat().st_mtime)


@contextlib.contextmanager
def demo(*arguments: str):
    """Runs `residuald demo`, whose stream does not end, and yields its address."""
    command = [binary(), "demo", "--listen", "127.0.0.1:0", *arguments]
    daemon = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = []
        for line in daemon.stdout:
            said.append(line)
            if found := re.search(r"http://[\d.:]+", line):
                yield found[0]
                return
        pytest.fail("residuald demo exited before it printed its address: " + "".join(said))
    finally:
        daemon.kill()
        daemon.wait()


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        missing("there is no chromium: make tools")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address: str, **settings):
    """Opens the page. Fails the test if the page has errors or sends requests to another server."""
    context = browser.new_context(viewport={"width": 1360, "height": 1000}, **settings)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: line.type == "error" and problems.append(line.text))
    page.on("request", lambda asked: asked.url.startswith((address, "data:", "blob:")) or problems.append(asked.url))
    page.goto(address)
    yield page
    context.close()
    assert problems == []


def until(true, what: str) -> None:
    """Waits until `true()` holds. Polls in Python, because the page's security policy forbids evaluating strings."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not true():
        assert time.monotonic() < deadline, f"timed out while waiting for {what}"
        time.sleep(0.05)


def shoot(page, request, name: str) -> None:
    if folder := request.config.getoption("--screenshots"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def number(page, tile: str) -> float:
    text = page.locator(".tile", has_text=tile).locator("b").inner_text()
    return float(text.replace(",", ""))


def test_payments_live_filtered_and_opened(browser, request):
    with (
        demo("--rate", "400") as address,
        opened(browser, address, permissions=["clipboard-read", "clipboard-write"]) as page,
    ):
        rows = page.locator("#anomalies tr")
        expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#model")).to_contain_text("payments")
        expect(rows.nth(4)).to_be_visible()

        # Live: numbers grow and new anomalies appear at the top without a reload.
        before, first = number(page, "scored"), rows.first.get_attribute("data-number")
        until(lambda: rows.first.get_attribute("data-number") != first, "a newer anomaly")
        assert number(page, "scored") > before
        assert number(page, "unaccounted") == 0
        points = page.locator("#rate polyline")
        until(lambda: len(points.get_attribute("points").split()) > 2, "a curve")
        assert page.locator("#scores .observed-bar").count() == 13
        assert page.locator("#scores .threshold").count() == 1
        shoot(page, request, "payments-light")

        # Reasons: shares as bars, with observed and expected values beside them.
        reason = rows.first.locator(".reason").first
        assert 0 < float(reason.locator("meter").get_attribute("value")) <= 1
        expect(reason.locator(".expected")).to_contain_text("expected")

        # Filters.
        page.locator("#severity").select_option("critical")
        severities = page.locator("#anomalies tr td:nth-child(2)")
        until(lambda: set(severities.all_inner_texts()) == {"critical"}, "critical ones only")
        expect(rows.first).to_be_visible()
        page.locator("#severity").select_option("")
        page.locator("#since").select_option("300")
        expect(rows.first).to_be_visible()

        # Opening: one click shows the record and copies its id.
        page.locator("#live").uncheck()
        name = rows.first.locator(".id").inner_text()
        rows.first.click()
        expect(page.locator("#detail")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == name
        expect(page.locator("#id")).to_have_text(name)
        expect(page.locator("#reasons")).to_contain_text("most like the normal record")
        record = json.loads(page.locator("#record").inner_text())
        assert {"payment_id", "merchant"} <= record.keys()
        shoot(page, request, "payments-record")

        # Keyboard navigation.
        page.keyboard.press("Escape")
        expect(page.locator("#detail")).to_be_hidden()
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.rowIndex") == 2
        page.keyboard.press("Enter")
        expect(page.locator("#id")).to_have_text(rows.nth(1).locator(".id").inner_text())


def frauds_only(directory: Path) -> Path:
    bundle, sample = ROOT / "models/payments", "sample.ndjson.gz"
    made = shutil.copytree(bundle, directory / "payments", ignore=shutil.ignore_patterns(sample))
    with gzip.open(bundle / sample, "rt") as records, gzip.open(made / sample, "wt") as frauds:
        frauds.writelines(record for record in records if json.loads(record)["label"])
    return made


def test_ten_thousand_anomalies_and_no_more_are_kept(browser, tmp_path):
    def listed(query: str) -> list[int]:
        with urllib.request.urlopen(f"{address}/anomalies?{query}") as answer:
            return [anomaly["number"] for anomaly in json.load(answer)]

    with demo("--bundle", str(frauds_only(tmp_path)), "--rate", "2000") as address:
        until(lambda: listed("limit=1") > [10_500], "more anomalies than are kept")
        newest = listed("limit=1")[0]
        kept = listed(f"before={newest - 9_900}")
        assert 0 < len(kept) <= 200
        assert min(kept) > newest - 10_000
        assert listed(f"before={newest - 10_000}") == []
        with opened(browser, address) as page:
            rows = page.locator("#anomalies tr")
            expect(rows.nth(199)).to_be_visible()
            page.locator("#live").uncheck()
            for count in (200, 400, 600):
                expect(rows).to_have_count(count)
                page.locator("#more").click()
            expect(rows).to_have_count(800)
            shown = [int(row.get_attribute("data-number")) for row in rows.all()[::50]]
            assert shown == sorted(shown, reverse=True)
            page.locator("#severity").select_option("critical")
            expect(rows.first).to_be_visible()


def test_images_side_by_side_in_the_dark(browser, request):
    stream = demo("--bundle", "models/surface", "--rate", "60")
    with stream as address, opened(browser, address, color_scheme="dark") as page:
        rows = page.locator("#anomalies tr")
        expect(rows.nth(3)).to_be_visible()
        page.locator("#live").uncheck()
        rows.first.click()
        expect(page.locator("#detail")).to_be_visible()
        captions = page.locator("#images figcaption").all_inner_texts()
        assert captions == ["original", "expected", "heat"]
        sizes = page.evaluate("[...document.querySelectorAll('#images img')].map(i => [i.complete, i.naturalWidth])")
        assert all(complete and width >= 48 for complete, width in sizes), sizes
        assert page.locator("#images .region").count() >= 1
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        shoot(page, request, "surface-dark")


def test_what_the_page_asks_for_is_small_safe_and_checked(browser):
    with demo("--rate", "50") as address:
        total = 0
        for path in ("/", "/triage.js", "/triage.css"):
            with urllib.request.urlopen(address + path) as answer:
                total += len(answer.read())
                assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert total < PAGE_BYTES
        for path, code in (
            ("/anomalies?severity=bad", 400),
            ("/anomalies/0", 404),
            ("/anomalies/x", 400),
            ("/anomalies/9999/image", 404),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(address + path)
            assert refused.value.code == code
