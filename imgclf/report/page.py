"""The page of a run: from `ReportData` to one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imgclf.core.results import Evaluation, Intervals
from imgclf.core.text import percent, plural, shorten
from imgclf.data.dataset import SPLIT_NAMES
from imgclf.evaluation.intervals import wilson_interval
from imgclf.evaluation.predictions import Predictions
from imgclf.report import charts as figures
from imgclf.report import text as words
from imgclf.report.advice import warnings, without_answers
from imgclf.report.confidence import filled_bins, risk_coverage, suggest_thresholds
from imgclf.report.confusion import (
    Pair,
    by_cell,
    confused_pairs,
    most_confused_classes,
    surest,
    together,
)
from imgclf.report.slices import slice_images
from imgclf.report.thumbnails import picture_of, within
from imgclf.report.view import Look, ReportData

if TYPE_CHECKING:
    from jinja2 import Template

MAX_BYTES = 8_000_000
PICTURE_BUDGET = 3_600_000  # characters; some pictures stand in the page twice
GALLERY = 24
PAIRS, PER_PAIR = 6, 6
PER_CELL, IN_CELLS = 12, 500
MOST_ROWS = 1_000
LONGEST, BRIEF = 100, 40  # characters of a name; of one in a title
UPRIGHT = 4  # characters of a name that fits above a column

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

Cells = Mapping[tuple[int, int], Sequence[int]]


def pictures_to_show(answers: Predictions) -> list[int]:
    """The positions of the images that the page wants to show, the most important first."""
    result = answers.evaluation
    cells, shown = by_cell(answers), set(most_confused_classes(result))
    order = [*surest(answers, right=False, most=GALLERY), *surest(answers, right=True, most=GALLERY)]
    for pair in confused_pairs(result, PAIRS):
        order += cells[pair.true, pair.called][:PER_PAIR]
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
    return environment.get_template("template.html.j2")


def _render(data: ReportData, budget: int) -> str:
    script = _file("script.js")
    return _template().render(
        data=data,
        what=words.what_was_trained(data),
        curves=figures.training_curves(data.history.epochs, data.start) if len(data.history) > 1 else [],
        kernels=_pictures(figures.kernel_pixels(data.trained.kernels)) if data.trained.kernels is not None else [],
        samples=list(zip(_pictures(data.samples.images), data.samples.titles, strict=True)),
        parts=SPLIT_NAMES,
        most_rows=MOST_ROWS,
        result=None if data.answers is None else _of_answers(data, data.answers, budget),
        unanswered=without_answers(data),
        script=script,
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
        style=_file("style.css"),
    )


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _of_answers(data: ReportData, answers: Predictions, budget: int) -> dict[str, Any]:
    """What the template says of the answers."""
    result, intervals = answers.evaluation, answers.evaluation.intervals
    assert intervals is not None  # as answers give them
    right = answers.predicted == answers.targets
    pairs, cells = confused_pairs(result, PAIRS), by_cell(answers)
    labels = [answers.classes[i] for i in answers.targets.tolist()]
    sampled = {ref: look for ref, look in data.looks.items() if ref in data.sampled}
    slicings = slice_images(answers.refs, labels, right, sampled)
    wanted = [answers.refs[i] for i in pictures_to_show(answers)]
    looks = within(data.looks, wanted, budget)
    accuracy = intervals.accuracy
    return {
        "n": result.n,
        "accuracy": result.accuracy,
        "interval": accuracy,
        "expect": words.what_to_expect(data, result, accuracy),
        "warnings": warnings(data, result, accuracy, pairs, slicings),
        "measures": _measures(result, intervals),
        "classes": _class_rows(result),
        "matrix": _matrix(answers, cells, looks),
        "pairs": [_pair(answers, pair, cells, looks) for pair in pairs],
        "mistakes": [_tile(answers, looks, i) for i in surest(answers, right=False, most=GALLERY)],
        "hits": [_tile(answers, looks, i) for i in surest(answers, right=True, most=GALLERY)],
        "wrong": int((~right).sum()),
        "trust": _trust(answers, right),
        "slicings": slicings,
        "sampled": len(sampled),
        "dropped": sum(1 for ref in wanted if ref in data.looks and not looks[ref].picture),
    }


def _measures(result: Evaluation, intervals: Intervals) -> list[dict[str, Any]]:
    """Each figure with its interval and what it says."""
    said = {
        "accuracy": ("Accuracy", "the share of images named right"),
        "balanced_accuracy": ("Balanced accuracy", "the mean over the classes, each counting the same"),
        "macro_f1": ("Macro-F1", "the mean F1 over the classes: neither missed nor called by mistake"),
        "top5": ("Top-5", "the right class is among the five likeliest"),
        "loss": ("Loss", "mean cross-entropy in nats: low where it is right and sure; 0 at best"),
    }
    values = {name: getattr(result, name) for name in said}
    rows = [
        {
            "name": said[name][0],
            "value": value,
            "n": result.n,
            "interval": getattr(intervals, name),
            "share": name != "loss",
            "says": said[name][1],
        }
        for name, value in values.items()
        if value is not None
    ]
    new = result.unseen
    if new is not None and new.intervals is not None:
        unseen = {"name": "Accuracy, unseen", "value": new.accuracy, "n": new.n, "interval": new.intervals.accuracy}
        rows.insert(1, {**unseen, "share": True, "says": "the same of the images that training did not see"})
    return rows


def _class_rows(result: Evaluation) -> dict[str, Any]:
    """The figures of the classes: of all, or of those with the lowest F1 that have images."""
    rows = sorted(result.per_class, key=lambda row: (row.support == 0, row.f1 or 0.0))[:MOST_ROWS]
    kept = {row.name for row in rows}
    return {
        "rows": [
            {"row": row, "interval": row.support and wilson_interval(row.hits, row.support)}
            for row in result.per_class
            if row.name in kept
        ],
        "left_out": len(result.per_class) - len(rows),
    }


def _matrix(answers: Predictions, cells: Cells, looks: Mapping[str, Look]) -> dict[str, Any]:
    """The confusion matrix in its order, and the images of its cells: their pictures once, and where they belong."""
    result = answers.evaluation
    chosen = most_confused_classes(result)
    order = [chosen[i] for i in together(result.confusion_matrix(chosen))]
    pictures: dict[str, int] = {}
    images: dict[str, list[list[Any]]] = {}
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            for position in cells.get((i, j), ()):
                ref = answers.refs[position]
                if ref in looks and looks[ref].picture and len(images.get(f"{row},{column}", ())) < PER_CELL:
                    number = pictures.setdefault(ref, len(pictures))
                    confidence = round(float(answers.probabilities[position, j]), 4)
                    images.setdefault(f"{row},{column}", []).append([number, confidence, _clean(ref)])
    return {
        "names": [_clean(answers.classes[i]) for i in order],
        "counts": result.confusion_matrix(order).tolist(),
        "totals": [result.per_class[i].support for i in order],
        "left_out": len(result.per_class) - len(order),
        "upright": max(len(answers.classes[i]) for i in order) <= UPRIGHT,
        "data": {
            "pictures": [looks[ref].picture for ref in pictures],
            "tiny": [looks[ref].tiny for ref in pictures],
            "cells": images,
            "names": [_short(answers.classes[i]) for i in order],
        },
    }


def _pair(answers: Predictions, pair: Pair, cells: Cells, looks: Mapping[str, Look]) -> dict[str, Any]:
    tiles = [_tile(answers, looks, i) for i in cells[pair.true, pair.called][:PER_PAIR]]
    return {
        "true": answers.classes[pair.true],
        "called": answers.classes[pair.called],
        "pair": pair,
        "tiles": tiles if any(tile["picture"] for tile in tiles) else [],
    }


def _tile(answers: Predictions, looks: Mapping[str, Look], position: int) -> dict[str, Any]:
    """One image with its title."""
    ref, called, true = answers.refs[position], answers.logits[position].argmax(), answers.targets[position]
    look = looks.get(ref)
    return {
        "picture": look.picture if look is not None else "",
        "tiny": look is not None and look.tiny,
        "ref": ref,
        "called": answers.classes[called],
        "true": answers.classes[true],
        "right": bool(called == true),
        "confidence": float(answers.probabilities[position, called]),
    }


def _trust(answers: Predictions, right: NDArray[np.bool_]) -> dict[str, Any]:
    """Calibration before and after the temperature, and what thresholds bring."""
    measured = answers.evaluation.calibration
    assert measured is not None  # as answers give it
    rows = [("not calibrated" if answers.temperature == 1 else "before calibration", measured.before)]
    if answers.temperature != 1:
        rows.append(("after calibration", measured.after))
    taken = (replace(answers, temperature=1.0), answers)
    charts = [
        figures.reliability(f"trust-{number}", name.capitalize(), filled_bins(taken[number]))
        for number, (name, _) in enumerate(rows)
    ]
    confidence = answers.probabilities.max(axis=1)
    answered, errors, _ = risk_coverage(confidence, right)
    thresholds = suggest_thresholds(confidence, right)
    return {
        "temperature": answers.temperature,
        "rows": rows,
        "charts": charts,
        "risk": figures.risk_chart(answered / len(answers), errors / answered, thresholds),
        "thresholds": [{"it": it, "interval": wilson_interval(it.errors, it.answered)} for it in thresholds],
    }


def _pictures(images: Sequence[Any]) -> list[tuple[str, bool]]:
    return [picture_of(pixels) for pixels in images]


def _short(text: str) -> str:
    """A name of a length that fits a table or a title."""
    return _clean(shorten(text, LONGEST))


def _brief(text: str) -> str:
    """A name of a length that fits under a picture, beside another one."""
    return _clean(shorten(text, BRIEF))


def _clean(text: str) -> str:
    """`text` with what UTF-8 or a page can't hold spelt out."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
