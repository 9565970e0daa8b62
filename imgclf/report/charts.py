"""Charts as inline SVG that takes the colors and the letters of the page it stands in, light or dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imgclf.core.results import EpochRecord
from imgclf.core.text import percent
from imgclf.data.dataset import Pixels
from imgclf.evaluation.calibration import reliability_bins
from imgclf.evaluation.intervals import wilson_intervals
from imgclf.evaluation.predictions import Predictions
from imgclf.report.confidence import Threshold

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

SIZE = (4.7, 3.0)  # inches: at 72 points each as wide as a telephone, so that letters keep their size there
MARGINS = {"left": 0.13, "right": 0.985, "bottom": 0.16, "top": 0.91}
# matplotlib draws in these colors, and the page says what they are.
INK, MUTED, LINE, BLUE, ORANGE = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", BLUE: "--blue", ORANGE: "--orange"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "imgclf",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
}


@contextmanager
def _chart(name: str, said: str) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on; the list holds the SVG afterwards. `said` describes the chart to who can't see it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    made: list[str] = []
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=SIZE)
        axes = figure.subplots(gridspec_kw=MARGINS)
        yield axes, made
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    made.append(_inline(buffer.getvalue(), name, said))


def _inline(svg: str, name: str, said: str) -> str:
    """The SVG for use within a page: no ids but its own, the page's colors, no style for all."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    svg = re.sub(r"(?<=[\d.-])(\d\.\d\d)\d+", r"\1", svg)
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{said}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"\s*\n\s*", "\n", head + svg[svg.index(">") + 1 :])


def training_curves(
    history: Sequence[EpochRecord], start: tuple[float, float] | None = None, initial: str = "the initial model"
) -> list[str]:
    """Loss and accuracy over the epochs, of train and valid, as two charts with the kept epoch marked.

    Args:
        history: The epochs, in order.
        start: Loss and accuracy on valid before the first epoch, where these mean something. Epoch 0 is marked as kept
            if no other one is.
        initial: What the model of epoch 0 is called.
    """
    epochs = [record.epoch for record in history]
    kept = next((record.epoch for record in reversed(history) if record.best), None if start is None else 0)
    what = initial if kept == 0 else f"epoch {kept}"
    from matplotlib.ticker import MaxNLocator

    charts = []
    for name, title, scale, unit in (("loss", "Loss", 1, ""), ("accuracy", "Accuracy", 100, ", %")):
        with _chart(f"curve-{name}", f"{title} over epochs") as (axes, made):
            for part, color in (("train", ORANGE), ("valid", BLUE)):
                values = [getattr(record, f"{part}_{name}") for record in history]
                if None not in values:
                    marker, places = "o" if len(epochs) <= 30 else "", epochs
                    if start is not None and part == "valid":
                        places, values = [0, *epochs], [start[name == "accuracy"], *values]
                    axes.plot(places, [scale * v for v in values], color=color, label=part, marker=marker, ms=3)
            if kept is not None:
                axes.axvline(kept, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label=f"kept: {what}")
            axes.set(title=f"{title}{unit}", xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(loc="best")
        charts += made
    return charts


def reliability(name: str, title: str, predictions: Predictions) -> str:
    """A reliability diagram: accuracy against confidence.

    Args:
        name: A prefix for the ids in the SVG, unique in the page.
        title: The title of the chart.
        predictions: Those whose probabilities are compared with the true classes.
    """
    bins = reliability_bins(predictions.probabilities, predictions.targets)
    filled, width = np.flatnonzero(bins.count), 100 / len(bins.count)
    n, confidence, accuracy = bins.count[filled], 100 * bins.confidence[filled], 100 * bins.accuracy[filled]
    low, high = wilson_intervals(np.round(bins.accuracy[filled] * n).astype(np.int64), n)
    with _chart(name, f"{title}: accuracy against confidence") as (axes, made):
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label="perfect calibration")
        axes.bar(width * (filled + 0.5), 100 * n / n.sum(), width=0.92 * width, color=LINE, label="images, %")
        axes.vlines(confidence, 100 * low, 100 * high, color=BLUE, linewidth=1, alpha=0.55)
        axes.plot(confidence, accuracy, color=BLUE, marker="o", ms=4.5, label="this model")
        axes.set(title=title, xlim=(0, 102), ylim=(0, 102), xlabel="confidence, %", ylabel="accuracy, %")
        axes.legend(loc="upper left")
    return made[0]


def risk_chart(coverage: Floats, risk: Floats, thresholds: Sequence[Threshold]) -> str:
    """The share of errors among the predictions that are kept, against the share that is kept.

    Args:
        coverage: The shares (n,) of images kept, 0…1.
        risk: The shares (n,) of errors among these, 0…1.
        thresholds: Points to mark.
    """
    with _chart("risk", "Share of wrong predictions against the share of images kept") as (axes, made):
        axes.plot(100 * coverage, 100 * risk, color=BLUE)
        for threshold in thresholds:
            place = (100 * threshold.coverage, 100 * threshold.risk)
            axes.plot(*place, "o", color=ORANGE, ms=5)
            text = f"≥ {percent(threshold.confidence)}"
            axes.annotate(text, place, (-4, 7), textcoords="offset points", ha="right", fontsize=8.5)
        axes.set(title="Errors among the predictions that are kept", xlim=(0, 101))
        axes.set(xlabel="kept, % of the images", ylabel="wrong, % of these")
        axes.set_ylim(bottom=0, top=max(100 * float(risk.max()), 1) * 1.12)
    return made[0]


def kernel_pixels(kernels: NDArray[np.float32], most: int = 64) -> list[Pixels]:
    """Up to `most` kernels (n, channels, height, width) as pixels, each from its smallest to its largest weight; in
    color where they look at three channels, else the mean over the channels in gray."""
    shown = kernels[:most] if kernels.shape[1] in (1, 3) else kernels[:most].mean(axis=1, keepdims=True)
    low, high = shown.min(axis=(1, 2, 3), keepdims=True), shown.max(axis=(1, 2, 3), keepdims=True)
    pixels = np.round(255 * (shown - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
    return list(pixels.transpose(0, 2, 3, 1))
