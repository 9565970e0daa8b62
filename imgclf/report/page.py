"""The page of a run: from `ReportData` to one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import functools
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from importlib.resources import files
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imgclf.core.results import ClassResult, Evaluation
from imgclf.core.text import percent, plural, shorten
from imgclf.data.dataset import SPLIT_NAMES
from imgclf.evaluation.intervals import wilson_interval
from imgclf.evaluation.predictions import Predictions
from imgclf.report import charts, text
from imgclf.report.advice import no_predictions, warnings
from imgclf.report.confidence import risk_coverage, suggest_thresholds
from imgclf.report.confusion import by_cell, confused_pairs, most_confident, most_confused_classes, together
from imgclf.report.slices import slice_images
from imgclf.report.thumbnails import picture_of, within
from imgclf.report.view import Look, ReportData, accuracy_interval

if TYPE_CHECKING:
    from jinja2 import Template

MAX_BYTES = 8_000_000
PICTURE_BUDGET = 3_600_000  # characters; some pictures stand in the page twice
GALLERY = 24
PAIRS, PER_PAIR = 6, 6
PER_CELL, IN_CELLS = 12, 500
MAX_CLASS_ROWS = 1_000
MAX_NAME_CHARACTERS, MAX_TITLE_CHARACTERS = 100, 40
MAX_UPRIGHT_CHARACTERS = 4  # of a name that fits above a column

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

Cells = Mapping[tuple[int, int], Sequence[int]]


def pictures_to_show(predictions: Predictions) -> list[int]:
    """The positions of the images that the page wants to show, the most important first."""
    result = predictions.evaluation
    cells, shown = by_cell(predictions), set(most_confused_classes(result))
    order = [i for right in (False, True) for i in most_confident(predictions, right=right, most=GALLERY)]
    for pair in confused_pairs(result, PAIRS):
        order += cells[pair.true, pair.predicted][:PER_PAIR]
    inside = [(cell, rows) for cell, rows in sorted(cells.items()) if shown >= set(cell)]
    inside.sort(key=lambda item: item[0][0] == item[0][1])  # confusions before hits
    in_turn = [rows[turn] for turn in range(PER_CELL) for _, rows in inside if turn < len(rows)]
    return list(dict.fromkeys([*order, *in_turn[:IN_CELLS]]))


def render(data: ReportData) -> str:
    """The page as HTML, below 8 MB: where pictures would make it larger, only the most important are in it."""
    html = _render(data, PICTURE_BUDGET)
    return html if len(html.encode()) <= MAX_BYTES else _render(data, 0)


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("imgclf.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: _clean(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "plural": plural, "short": _short, "brief": _brief}
    environment.filters |= {"when": _when, "quote": shlex.quote}
    environment.globals["wilson_interval"] = wilson_interval
    return environment.get_template("template.html.j2")


def _render(data: ReportData, budget: int) -> str:
    script, kernels, initial = _file("script.js"), data.network.kernels, text.initial_name(probed=data.probed)
    return _template().render(
        data=data,
        training=text.what_was_trained(data),
        curves=charts.training_curves(data.history.epochs, data.start, initial) if len(data.history) > 1 else [],
        initial=initial,
        kernels=[] if kernels is None else [picture_of(pixels) for pixels in charts.kernel_pixels(kernels)],
        samples=list(zip(map(picture_of, data.samples.images), data.samples.titles, strict=True)),
        parts=SPLIT_NAMES,
        most_rows=MAX_CLASS_ROWS,
        result=None if data.predictions is None else _from_predictions(data, data.predictions, budget),
        no_predictions=no_predictions(data),
        script=script,
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
        style=_file("style.css"),
    )


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _from_predictions(data: ReportData, predictions: Predictions, budget: int) -> dict[str, Any]:
    """The values of the template that depend on predictions."""
    result = predictions.evaluation
    right = predictions.predicted == predictions.targets
    pairs, cells = confused_pairs(result, PAIRS), by_cell(predictions)
    labels = [predictions.classes[i] for i in predictions.targets.tolist()]
    sampled = {ref: look for ref, look in data.looks.items() if ref in data.sampled}
    slicings = slice_images(predictions.refs, labels, right, sampled)
    wanted = [predictions.refs[i] for i in pictures_to_show(predictions)]
    looks = within(data.looks, wanted, budget)
    tiles = functools.partial(_tiles, predictions, looks)
    return {
        "n": result.n,
        "accuracy": result.accuracy,
        "interval": accuracy_interval(result),
        "expect": text.what_to_expect(data, result),
        "warnings": warnings(data, predictions, pairs, slicings),
        "measures": _measures(result),
        "classes": _class_rows(result),
        "classes_left_out": max(0, len(result.per_class) - MAX_CLASS_ROWS),
        "names": predictions.classes,
        "matrix": _matrix(predictions, cells, looks),
        "pairs": [(pair, tiles(cells[pair.true, pair.predicted][:PER_PAIR])) for pair in pairs],
        "mistakes": tiles(most_confident(predictions, right=False, most=GALLERY)),
        "hits": tiles(most_confident(predictions, right=True, most=GALLERY)),
        "wrong": int((~right).sum()),
        "trust": _trust(predictions, right),
        "slicings": slicings,
        "sampled": len(sampled),
        "dropped": sum(1 for ref in wanted if ref in data.looks and not looks[ref].picture),
    }


def _measures(result: Evaluation) -> list[tuple[Any, ...]]:
    """Each metric: name, value, number of images, interval, meaning."""
    said = (
        ("accuracy", "Accuracy", "share of images classified correctly"),
        ("balanced_accuracy", "Balanced accuracy", "mean recall over the classes, whatever their number of images"),
        ("macro_f1", "Macro-F1", "mean F1 over the classes; F1 is the harmonic mean of precision and recall"),
        ("top5", "Top-5", "the true class is among the five most probable"),
        ("loss", "Loss", "mean cross-entropy in nats; 0 is best"),
    )
    rows: list[tuple[Any, ...]] = [
        (title, getattr(result, name), result.n, getattr(result.intervals, name), says)
        for name, title, says in said
        if getattr(result, name) is not None
    ]
    new = result.unseen
    if new is not None:
        says = "accuracy on the images that were not used in training"
        rows.insert(1, ("Accuracy, unseen", new.accuracy, new.n, accuracy_interval(new), says))
    return rows


def _class_rows(result: Evaluation) -> list[ClassResult]:
    """The figures of the classes: of all, or of those with the lowest F1 that have images."""
    rows = sorted(result.per_class, key=lambda row: (row.support == 0, row.f1 or 0.0))[:MAX_CLASS_ROWS]
    kept = {row.name for row in rows}
    return [row for row in result.per_class if row.name in kept]


def _matrix(predictions: Predictions, cells: Cells, looks: Mapping[str, Look]) -> dict[str, Any]:
    """The confusion matrix in its order, and the images of its cells: their pictures once, and where they belong."""
    result = predictions.evaluation
    chosen = most_confused_classes(result)
    order = [chosen[i] for i in together(result.confusion_matrix(chosen))]
    pictures: dict[str, int] = {}
    images: dict[str, list[list[Any]]] = defaultdict(list)
    for (row, i), (column, j) in product(enumerate(order), repeat=2):
        for position in cells.get((i, j), ()):
            ref = predictions.refs[position]
            if ref in looks and looks[ref].picture and len(images[f"{row},{column}"]) < PER_CELL:
                number = pictures.setdefault(ref, len(pictures))
                confidence = round(float(predictions.probabilities[position, j]), 4)
                images[f"{row},{column}"].append([number, confidence, _clean(ref)])
    return {
        "names": [_clean(predictions.classes[i]) for i in order],
        "counts": result.confusion_matrix(order).tolist(),
        "totals": [result.per_class[i].support for i in order],
        "left_out": len(result.per_class) - len(order),
        "upright": max(len(predictions.classes[i]) for i in order) <= MAX_UPRIGHT_CHARACTERS,
        "data": {
            "pictures": [looks[ref].picture for ref in pictures],
            "tiny": [looks[ref].tiny for ref in pictures],
            "cells": images,
            "names": [_short(predictions.classes[i]) for i in order],
        },
    }


def _tiles(predictions: Predictions, looks: Mapping[str, Look], positions: Sequence[int]) -> list[dict[str, Any]]:
    """Images with their titles."""
    found = []
    for position in positions:
        predicted, true = predictions.logits[position].argmax(), predictions.targets[position]
        tile = {
            "look": looks.get(predictions.refs[position]),
            "ref": predictions.refs[position],
            "predicted": predictions.classes[predicted],
            "true": predictions.classes[true],
            "confidence": float(predictions.probabilities[position, predicted]),
        }
        found.append(tile)
    return found


def _trust(predictions: Predictions, right: NDArray[np.bool_]) -> dict[str, Any]:
    """Calibration before and after the temperature, and the suggested thresholds."""
    measured = predictions.evaluation.calibration
    assert measured is not None  # as predictions give it
    rows = [("not calibrated", measured.before, predictions)]
    if predictions.temperature != 1:
        rows = [
            ("before calibration", measured.before, replace(predictions, temperature=1.0)),
            ("after calibration", measured.after, predictions),
        ]
    confidence = predictions.probabilities.max(axis=1)
    kept, errors, _ = risk_coverage(confidence, right)
    thresholds = suggest_thresholds(confidence, right)
    diagrams = [charts.reliability(f"trust-{i}", name.capitalize(), each) for i, (name, _, each) in enumerate(rows)]
    return {
        "temperature": predictions.temperature,
        "rows": rows,
        "charts": diagrams,
        "risk": charts.risk_chart(kept / len(predictions), errors / kept, thresholds),
        "thresholds": thresholds,
    }


def _short(name: str) -> str:
    """A name of a length that fits a table or a title."""
    return _clean(shorten(name, MAX_NAME_CHARACTERS))


def _brief(name: str) -> str:
    """A name of a length that fits under a picture, beside another one."""
    return _clean(shorten(name, MAX_TITLE_CHARACTERS))


def _when(created: str) -> str:
    """`26 November 2026, 09:36 UTC`."""
    try:
        return f"{datetime.fromisoformat(created):%-d %B %Y, %H:%M} UTC"
    except ValueError:
        return created


def _clean(value: str) -> str:
    """`value` with what UTF-8 or a page can't hold spelt out."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
