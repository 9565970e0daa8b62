"""Visdom: a real server, a real browser, and a run that is watched while it goes on.

Needs the packages visdom and playwright, a Chromium, and Visdom's browser files, which
`python tests/support/visdom_assets.py FOLDER` gets: IMGCLF_VISDOM_STATIC names their folder.
Where that is set, nothing is skipped.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

import imgclf
from support.photos import save_photos

ASSETS = os.environ.get("IMGCLF_VISDOM_STATIC")
FLAGS = "--no-sandbox --headless=new --disable-gpu --disable-quic --no-first-run --no-proxy-server --disable-sync "
FLAGS += "--disable-background-networking --disable-component-update"

pytestmark = [
    pytest.mark.skipif(not ASSETS, reason="IMGCLF_VISDOM_STATIC names no folder of visdom_assets.py"),
]

# `imgclf train`, which after each epoch waits for a file that lets it go on, when the trackers have heard of the epoch.
WATCHED = """
import sys, time
from pathlib import Path
from imgclf.cli import _training, main
from imgclf.training.events import EpochEnded, StepStarted, TrainingEnded

class View(_training.TrainView):
    done = 0

    def __call__(self, event):
        super().__call__(event)
        if isinstance(event, EpochEnded):
            self.done = event.record.epoch
        if isinstance(event, StepStarted | TrainingEnded):
            while self.done and not Path(f"go-{self.done}").exists():
                time.sleep(0.02)

_training.TrainView = View
sys.argv = ["imgclf", "train", *sys.argv[1:]]
main()
"""

PLOTS = """() => [...document.querySelectorAll(".js-plotly-plot")].map(plot => ({
    title: plot.layout.title.text,
    legend: [...plot.querySelectorAll(".legendtext")].map(text => text.textContent),
    axes: [plot.layout.xaxis.title.text, plot.layout.yaxis.title.text],
    kinds: plot.data.map(trace => trace.type),
    lines: Object.fromEntries(plot.data.map(trace => [trace.name, (trace.y || []).filter(y => y !== null).length])),
    drawn: plot.querySelectorAll(".scatterlayer .trace, .heatmaplayer image").length,
    cells: plot.data[0].z,
}))"""
PICTURES = """() => Object.fromEntries([...document.querySelectorAll(".window")].map(pane => [
    pane.querySelector(".bar").innerText.trim().split("\\n").pop().trim(),
    [...pane.querySelectorAll("img")].map(image => [image.naturalWidth, image.naturalHeight]),
]))"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a Visdom server with a private copy of its program and of its browser files."""
    import visdom

    root = tmp_path_factory.mktemp("visdom")
    shutil.copytree(Path(visdom.__file__).parent, root / "visdom")
    shutil.copytree(Path(ASSETS), root / "visdom" / "static", dirs_exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "visdom.server", "-port", str(port), "-bind_local", "-env_path", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with open(root / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=root)
    try:
        for _ in range(300):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            pytest.fail(f"no server: {(root / 'log').read_text()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def page():
    """A page of Chromium; what its console says of errors is in `page.errors`."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "there is no Chromium"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1500, "height": 1300})
        page.errors = []
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.set_default_timeout(20_000)
        yield page
        browser.close()


@pytest.fixture
def training(server, tmp_path):
    """Begins `imgclf train` on photos, watched on the server; the function gives the process."""
    begun = []

    def begin(*options):
        command = [sys.executable, "-c", WATCHED, *options, "--track", f"visdom={server}"]
        environment = {**os.environ, "PYTHONPATH": str(Path(imgclf.__file__).parent.parent)}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def environments(server):
    with urlopen(f"{server}/env_state", b"{}") as answer:
        return json.load(answer)


def plots(page):
    return {plot["title"]: plot for plot in page.evaluate(PLOTS)}


def until(page, what, seconds=20):
    """Wait for something to be seen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        page.wait_for_timeout(100)
    raise AssertionError(f"not seen; there are {page.evaluate(PLOTS)} and {page.evaluate(PICTURES)}")


def lines_after(page, epochs):
    """The plots of loss and accuracy as soon as they hold so many epochs."""

    def grown():
        found = plots(page)
        both = [found.get(title, {"lines": {}})["lines"] for title in ("Loss", "Accuracy")]
        return found if all(lines.get("train") == epochs and lines.get("valid") == epochs for lines in both) else None

    return until(page, grown)


def test_a_run_is_seen_while_it_goes_on_and_after_it_was_resumed(server, page, training, tmp_path):
    save_photos(tmp_path / "photos")
    options = ("--arch", "lenet", "--size", "32", "--weights", "none", "--precision", "fp32", "--name", "live")
    process = training("photos", *options, "--epochs", "3")
    until(page, lambda: "live" in environments(server))
    page.goto(f"{server}/env/live")
    for epoch in (1, 2, 3):
        shown = lines_after(page, epoch)
        assert process.poll() is None, "the lines were to grow while training runs"
        (tmp_path / f"go-{epoch}").touch()
    for title in ("Loss", "Accuracy"):
        assert shown[title]["legend"][:2] == ["train", "valid"]
        assert shown[title]["axes"] == ["epoch", title.lower()]
        assert shown[title]["drawn"] == len(shown[title]["lines"])
    assert shown["Loss"]["lines"]["train, by steps"] >= 1

    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert f"track: visdom {server}, environment live" in said
    assert "no longer follows" not in said
    matrix = until(page, lambda: next((plot for title, plot in plots(page).items() if "test" in title), None))
    assert matrix["title"].startswith("Confusion matrix, test ")
    assert (matrix["kinds"], matrix["axes"], matrix["drawn"]) == (["heatmap"], ["predicted", "true"], 1)
    assert sum(map(sum, matrix["cells"])) == 9
    panes = until(page, lambda: "Test images: predicted (true)" in (found := page.evaluate(PICTURES)) and found)
    assert {"Settings", "Loss", "Accuracy", "Training images as the model sees them"} <= set(panes)
    for title in ("Training images as the model sees them", "Test images: predicted (true)"):
        (size,) = panes[title]
        assert min(size) > 100
    assert "lenet" in page.locator(".window", has_text="Settings").inner_text()

    process = training("--resume", "runs/live", "--epochs", "5")
    for epoch in (4, 5):
        lines_after(page, epoch)
        (tmp_path / f"go-{epoch}").touch()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    until(page, lambda: len(page.evaluate(PICTURES)) == 6)
    assert [text for text in page.errors if "favicon" not in text] == []  # which Visdom 0.3.0 does not have
