"""`imgclf predict`: images in, classes out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from imgclf.cli import _console as console
from imgclf.cli._inputs import PixelStore, expand, load_classifier
from imgclf.cli._options import Backend, Device, Json, Model, OwnArch, Precision
from imgclf.cli._output import Force, model_data, output_file
from imgclf.core.config import DataConfig
from imgclf.core.text import percent, plural


def predict(
    images: PixelStore,
    model: Model = None,
    arch: OwnArch = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to list per image.")] = 3,
    json: Json = False,
    csv: Annotated[Path | None, typer.Option(help="Write the predictions to this CSV file.")] = None,
    force: Force = False,
    reject: Annotated[
        float | None,
        typer.Option(help="Mark images unlike the training data as unknown; e.g. 0.05 also marks 5% of normal ones."),
    ] = None,
    max_pixels: Annotated[
        int,
        typer.Option(
            min=1,
            help=f"Largest image, in pixels. [dim]\\[default: {DataConfig.max_pixels:,}][/dim]",
            show_default=False,
        ),
    ] = DataConfig.max_pixels,
    device: Device = "auto",
    precision: Precision = "fp32",
    backend: Backend = "auto",
) -> None:
    """Classify images. A file that can't be read gets a row with an error, and the exit code is then 1."""
    from imgclf.core.files import csv_text, write_text

    paths = list(expand(images))
    if csv is not None:
        output_file(csv, "--csv", (".csv",), force=force, data=[*paths, *model_data(model)])
    classifier = load_classifier(model, device, precision, arch, backend)

    from imgclf.data.sources.inputs import far_values, inputs_source

    source = inputs_source(paths, max_pixels=max_pixels)
    rows: list[list[object]] = []
    judged = reject is not None
    top = min(top, len(classifier.classes_))
    row_of = partial(_table_row, judged=judged) if csv is None else partial(_csv_row, top=top, judged=judged)
    failed = refused = 0
    with console.progress("predicting", streamed=json) as progress:
        for done, prediction in enumerate(classifier.predict_each(source, top=top, reject=reject), 1):
            failed += prediction.error is not None
            refused += prediction.accepted is False
            if json:
                console.show_json(prediction.to_dict())
            if csv is not None or not json:  # else nothing is kept: there may be millions
                rows.append(row_of(prediction))
            progress(done, len(source))
            if csv is None and console.nobody_reads():
                return
    if csv is not None:
        ranked = (name for i in range(2, top + 1) for name in (f"label{i}", f"confidence{i}"))
        judgement = ["unknown_score", "accepted"] if judged else []
        header = ["path", "label", "confidence", *ranked, *judgement, "error"]
        write_text(csv, csv_text([header, *rows]))
        console.say(f"{plural(len(rows), 'row')} written to {csv}")
    elif not json:
        header = ["image", "class", "confidence", "runners-up", *(["unknown score"] if judged else [])]
        shown = [i for i, name in enumerate(header) if name != "runners-up" or any(row[i] for row in rows)]
        console.show_table([header[i] for i in shown], [[row[i] for i in shown] for row in rows])
    if reject is not None and failed < len(source):
        assert classifier.ood_ is not None  # else it could not judge
        known, threshold = plural(len(source) - failed, "image"), classifier.ood_.threshold(reject)
        why = f"unlike the training images (unknown above a score of {threshold:.2f})"
        console.say(f"{refused:,} of {known} unknown: {why}")
    if far := far_values(source, source.samples, classifier.preprocess_.levels):
        console.warn(far)
    if failed:
        console.warn(f"{failed:,} of {plural(len(source), 'input')} could not be read")
        raise typer.Exit(1)


def _table_row(prediction: Any, judged: bool) -> list[object]:
    if prediction.error is not None:
        return [prediction.path, "error", None, prediction.error, *([None] if judged else [])]
    likely = [f"{label} {percent(share)}" for label, share in prediction.top]
    score = [f"{prediction.unknown_score:.2f}"] if judged else []
    if prediction.accepted is False:
        return [prediction.path, "unknown", None, ", ".join(likely), *score]
    return [prediction.path, prediction.label, percent(prediction.confidence), ", ".join(likely[1:]), *score]


def _csv_row(prediction: Any, top: int, judged: bool) -> list[object]:
    cells: list[object] = [prediction.path]
    for label, share in prediction.top:
        cells += [label, f"{share:.6f}"]
    cells += [""] * (1 + 2 * top - len(cells))
    if judged and prediction.error is not None:
        cells += ["", ""]
    elif judged:
        cells += [round(prediction.unknown_score, 6), "true" if prediction.accepted else "false"]
    return [*cells, prediction.error or ""]
