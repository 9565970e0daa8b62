"""The page of a run in a real Chromium: no error, no request, the switches work, and it fits a telephone and paper."""

import os
import shutil

import numpy as np
import pytest

from imgclf.core.config import ExperimentConfig
from imgclf.core.results import EpochRecord, History
from imgclf.evaluation.predictions import Predictions
from imgclf.report import page as report_page
from imgclf.report.thumbnails import picture_of
from imgclf.report.view import Look, Network, ReportData, Samples
from imgclf.storage.run_folder import RunInfo

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = os.environ.get("IMGCLF_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium, and IMGCLF_CHROMIUM names none")
FLAGS = (
    *("--no-sandbox", "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
CLASSES = ("cat", "dog", "<img src=x onerror=alert(1)>", "x" * 200, "מילים 😀", 'say "owl"')


def write_page(path):
    """A page with every part, of six classes with awkward names."""
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(6), 20)
    logits = rng.normal(size=(120, 6)).astype(np.float32)
    logits[np.arange(120), targets] += 2
    refs = tuple(f"a_folder_of_some_length/{i:04d}.jpg" for i in range(120))
    predictions = Predictions(logits, targets, refs, ("",) * 120, CLASSES, 1.5)
    pixels = rng.integers(0, 255, (120, 60, 80, 3)).astype(np.uint8)
    looks = {ref: Look((60, 80), float(i), *picture_of(pixels[i])) for i, ref in enumerate(refs)}
    records = tuple(EpochRecord(i, 2 / i, 0.9, 1 / i, 0.7, 0.1, 1.0, i == 3) for i in range(1, 6))
    info = RunInfo(
        created="today",
        status="done",
        data="photos",
        unreadable=(("a.jpg", "broken"),),
        arch="lenet",
        preprocess={"size": [28, 28], "channels": 1},
        weights={"source": "from scratch"},
        decisions=({"name": "resize_mode", "value": "crop", "reason": "keeps the shapes"},),
    )
    data = ReportData(
        "a run with a rather long name that has to be broken somewhere",
        info,
        ExperimentConfig(),
        {name: {"train": 9, "valid": 3, "test": 20} for name in CLASSES},
        History(records),
        Network(kernels=rng.normal(size=(6, 1, 5, 5)).astype(np.float32)),
        predictions,
        looks=looks,
        sampled=frozenset(refs),
        samples=Samples(tuple(pixels[:4]), CLASSES[:4], "standard"),
        config="split = [0.7]\n" * 30,
        commands=(("imgclf reproduce runs/first", "Again:"),),
        facts={"seed": "0"},
    )
    path.write_text(report_page.render(data), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("report") / "report.html").as_uri()


@pytest.fixture
def open_page(browser, address):
    """Opens the page; nothing may be said on the console, and nothing be asked of a network, until the test ends."""
    contexts, said, asked = [], [], []

    def opened(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: asked.append(request.url))
        page.route(lambda url: not url.startswith(("file:", "data:")), lambda route: route.abort())
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if url != address and not url.startswith("data:image/")] == []


def test_counts_and_shares_can_be_switched(open_page):
    page = open_page()
    cells = page.locator("#matrix button")
    counts = cells.all_inner_texts()
    assert all(text.isdecimal() for text in counts)
    assert sum(map(int, counts)) == 120
    share = page.get_by_role("button", name="Shares of the row")
    share.click()
    assert share.get_attribute("aria-pressed") == "true"
    shares = cells.all_inner_texts()
    assert shares[0] == f"{round(100 * int(counts[0]) / 20)}%"
    assert all(text.endswith("%") for text in shares)
    page.get_by_role("button", name="Counts").click()
    assert cells.all_inner_texts() == counts


def test_a_click_on_a_cell_shows_its_images_also_by_keyboard(open_page):
    page = open_page()
    panel = page.locator("#cell")
    assert panel.is_hidden()
    wrong = page.locator("#matrix td:not(.hit) button").first
    wrong.focus()
    page.keyboard.press("Enter")
    assert panel.is_visible()
    count = int(wrong.inner_text())
    images = panel.locator("img")
    assert images.count() == min(count, report_page.PER_CELL)
    assert images.first.evaluate("image => image.complete && image.naturalWidth") == 80
    assert " predicted as " in page.locator("#cell-title").inner_text()
    hit = page.locator("#matrix td.hit button").first
    hit.click()
    assert images.count() == min(int(hit.inner_text()), report_page.PER_CELL)
    assert page.locator("#matrix [aria-expanded]").count() == 1


def test_the_classes_can_be_sorted(open_page):
    page = open_page()
    table = page.locator("#classes-table")

    def column(number):
        return table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()

    table.get_by_role("button", name="recall").click()
    falling = [float(text.removesuffix("%")) for text in column(3)]
    assert falling == sorted(falling, reverse=True)
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="recall").click()
    assert [float(text.removesuffix("%")) for text in column(3)] == falling[::-1]
    table.get_by_role("button", name="class").click()
    assert column(1)[:2] != []
    assert [name for name in column(1) if name in ("cat", "dog")] == ["cat", "dog"]


def lightness(page, selector, what):
    color = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{what}")
    return sum(map(float, color.partition("(")[2].rstrip(")").split(",")[:3])) / 3


def test_light_and_dark(open_page):
    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    for page, is_dark in ((light, False), (dark, True)):
        assert (lightness(page, "body", "backgroundColor") < 60) == is_dark
        assert (lightness(page, "body", "color") > 200) == is_dark
        assert (lightness(page, ".chart svg text", "fill") > 120) == is_dark
    light.get_by_role("button", name="Dark").click()
    assert lightness(light, "body", "backgroundColor") < 60
    light.emulate_media(media="print")
    assert lightness(light, "body", "backgroundColor") > 250


@pytest.mark.parametrize("width", [320, 390, 820])
def test_a_narrow_page_is_not_wider_than_the_screen(open_page, width):
    page = open_page(viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    page.locator("#matrix button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [390, 800, 1100, 1280])
def test_the_suggested_thresholds_are_seen_whole(open_page, width):
    page = open_page(viewport={"width": width, "height": 800})
    table = page.locator("#confidence .beside .scroll")
    assert table.locator("tbody tr").count() > 0
    assert table.evaluate("part => part.scrollWidth <= part.clientWidth")
    assert table.evaluate(
        "part => part.getBoundingClientRect().right <= part.closest('section').getBoundingClientRect().right"
    )


def test_on_paper_all_but_what_is_looked_up_is_open_and_the_buttons_are_gone(open_page):
    page = open_page()
    closed = page.locator("details:not([open], .reference)")
    assert closed.count() > 0
    page.emulate_media(media="print")
    # Not wait_for_function: it evaluates a string within the page, whose policy refuses that whenever it waits.
    playwright.expect(closed).to_have_count(0)
    assert page.locator("nav").is_hidden()
    assert page.locator("#theme").is_hidden()
    assert page.locator(".layers").is_hidden()
    page.set_viewport_size({"width": 680, "height": 1000})  # A4 within its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    assert len(page.pdf(format="A4")) > 10_000
    page.emulate_media(media="screen")
    playwright.expect(closed).not_to_have_count(0)


def test_every_image_has_a_text_and_every_table_a_caption(open_page):
    page = open_page()
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("img").evaluate_all("all => all.filter(one => !one.naturalWidth).length") == 0
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("h1").count() == 1
    assert page.locator("main script").count() == 1  # the data of the cells, which do not run
