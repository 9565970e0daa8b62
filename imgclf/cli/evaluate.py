"""`imgclf evaluate`: how good a model is on labeled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from imgclf.cli import _console as console
from imgclf.cli._inputs import load_classifier
from imgclf.cli._options import Backend, DataDir, Device, Json, Model, OwnArch, Precision
from imgclf.core.text import plural


def evaluate(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", help="Labeled images, as for train. [dim]\\[default: the test images of the run][/dim]"
        ),
    ] = None,
    model: Model = None,
    arch: OwnArch = None,
    part: Annotated[
        str | None,
        typer.Option(help="train, valid, test or all. [dim]\\[default: what the model was not trained on][/dim]"),
    ] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    backend: Backend = "auto",
    json: Json = False,
) -> None:
    """Test a model on labeled images: loss, accuracy and the metrics of each class. Classes are matched by name."""
    from imgclf.cli._results import show_evaluation
    from imgclf.cli._training import TrainView
    from imgclf.data.sources.inputs import far_values
    from imgclf.data.sources.open import open_source
    from imgclf.estimator.classifier import part_named
    from imgclf.estimator.recorder import write_page
    from imgclf.report.collect import Known
    from imgclf.storage.run_folder import PREDICTIONS

    classifier = load_classifier(model, device, precision, arch, backend)
    source = None if data is None else open_source(data, data_dir=data_dir, strict=False)
    part = part_named(part)
    used, samples = classifier.samples_of(source, part)
    if data is not None and part is None and len(samples) < len(used):
        images = plural(len(used) - len(samples), "image")
        console.say(f"{images} left out: trained or validated on, or not in the test part")
    with console.progress("testing") as progress:
        answers = classifier.predictions_of(used, samples, progress)
    result, page = answers.evaluation, None
    console.warn_of_images(classifier.unreadable_, "could not be read, left out of the metrics")
    if far := far_values(used, samples, classifier.preprocess_.levels):
        console.warn(far)
    if data is not None or part in (None, "test"):
        _say_what_was_seen(classifier, result)
    if data is None:
        _say_what_has_changed(classifier, used, part or "test")
        if part in (None, "test") and classifier.run_ is not None:
            _keep(classifier.run_.path / PREDICTIONS, answers)
            view = TrainView()
            with view.progress:
                write_page(classifier.run_, Known(classifier.model_, {"test": answers}, used), [view])
            page = view.page
    if json:
        console.show_json(result.to_dict())
    else:
        show_evaluation(result, f"{used.name}: {plural(result.n, 'image')}")
        if page is not None:
            console.show_page("report: ", page)


def _keep(path: Path, answers: Any) -> None:
    """Write the answers into the run's folder, which need not be the user's own: the figures are there without."""
    from imgclf.evaluation.predictions import write_predictions

    try:
        write_predictions(path, answers)
    except OSError as error:
        console.warn(f"the predictions can't be saved as {path}: {error.strerror}")


def _say_what_was_seen(classifier: Any, result: Any) -> None:
    """Warn where the figures are about images that the model may have learned from."""
    if not classifier.seen_:
        console.warn("this model does not know what it was trained on, so none of these images is left out")
    if result.seen:
        are = "is a training or validation image" if result.seen == 1 else "are training or validation images"
        console.warn(f"{result.seen:,} of {plural(result.n, 'image')} {are} of this model")


def _say_what_has_changed(classifier: Any, source: Any, part: str) -> None:
    """Say which images are not in the run's own split; warn where some of it are gone, or not as they were."""
    from imgclf.data.split import match_rows

    matched = match_rows(classifier.split_.rows, source.samples)
    known = {sample.ref for _, sample in matched if sample is not None}
    new = [sample.ref for sample in source.samples if sample.ref not in known]
    if new:
        console.say(f"{plural(len(new), 'image')} left out, as the run's split does not know them:")
        console.say_list(new)
    gone = [row.ref for row, sample in matched if sample is None and part in ("all", row.split)]
    if gone:
        are = "is" if len(gone) == 1 else "are"
        console.warn(f"{plural(len(gone), 'image')} of the run's {part} part {are} gone or changed:", gone)
