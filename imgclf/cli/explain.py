"""`imgclf explain`: which parts of an image drove the prediction, and the kernels and feature maps of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgclf.cli import _console as console
from imgclf.cli._inputs import PixelStore, expand, load_classifier
from imgclf.cli._options import Device, Json, Model, OwnArch
from imgclf.cli._output import model_data, output_folder
from imgclf.core.config import EXPLAIN_METHODS
from imgclf.core.options import listed
from imgclf.core.text import percent, plural

if TYPE_CHECKING:
    from imgclf.data.dataset import Pixels, Sample, Source
    from imgclf.estimator.classifier import Classifier

    Naming = Callable[[str, str], Path]

FOLDER = Path("explanations")
AT_ONCE = 16  # images in memory together
MIN_CELLS = 4  # along each side of the feature maps: fewer locate nothing
PLAIN_SIDE = 224  # of an image that no model looks at, at most


def explain(
    images: PixelStore,
    method: Annotated[str, typer.Option(help=f"Method: {listed(EXPLAIN_METHODS)}.")] = EXPLAIN_METHODS[0],
    class_: Annotated[
        str | None, typer.Option("--class", help="Class to explain. [dim]\\[default: the predicted class][/dim]")
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Show classic and learned kernels and their output instead.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show the feature maps of each stage of the network instead.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the pictures.")] = FOLDER,
    model: Model = None,
    arch: OwnArch = None,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Show which parts of an image drove the prediction. Images that can't be read are listed."""
    from imgclf.core.errors import ConfigError
    from imgclf.core.registry import unknown_name

    if method not in EXPLAIN_METHODS:
        raise unknown_name("method", method, list(EXPLAIN_METHODS))
    views = [name for name, wanted in (("kernels", kernels), ("layers", layers)) if wanted]
    if views and (class_ is not None or method != EXPLAIN_METHODS[0]):
        raise ConfigError(f"--{views[0]} shows layers, not the evidence for a class: leave out --class and --method")
    paths = list(expand(images))
    if not paths:
        raise ConfigError("no images to explain: name files, folders or globs")
    output_folder(out, "--out", data=[*paths, *model_data(model)])
    alone = views == ["kernels"] and _is_without_model(model)
    classifier = None if alone else load_classifier(model, device, arch=arch)

    from imgclf.data.sources.inputs import inputs_source

    source = inputs_source(paths)
    picture_of = _naming(out)
    rows: Iterator[dict[str, Any]]
    if views:
        rows = (row for sample in source.samples for row in _looked_at(source, sample, views, classifier, picture_of))
    else:
        assert classifier is not None
        rows = _explained(source, classifier, method, class_, picture_of)
    _report(rows, len(source) * max(1, len(views)), json)


def _explained(
    source: Source, classifier: Classifier, method: str, label: str | None, picture_of: Naming
) -> Iterator[dict[str, Any]]:
    """A row for each image, whose picture is written then."""
    from imgclf.plots.figures import save_explanation

    warned = False
    for start in range(0, len(source), AT_ONCE):
        part = source.with_samples(source.samples[start : start + AT_ONCE])
        for explanation in classifier.explain(part, method=method, label=label):
            picture = None
            if explanation.cells and min(explanation.cells) < MIN_CELLS and not warned:
                warned = True
                cells = "×".join(map(str, explanation.cells))
                other = "try --method occlusion, or train with a larger --size"
                console.warn(f"the last feature maps have only {cells} cells, too few to locate anything: {other}")
            if explanation.heat is not None:
                picture = picture_of(explanation.path, method)
                save_explanation(explanation, picture)
                if not explanation.heat.any():
                    nothing = f"no evidence for {explanation.label}: the heat map is empty"
                    console.warn(f"{explanation.path}: {nothing}")
            yield _row(picture, **explanation.to_dict())


def _looked_at(
    source: Source, sample: Sample, views: Sequence[str], classifier: Classifier | None, picture_of: Naming
) -> Iterator[dict[str, Any]]:
    """A row for each view of an image, whose picture is written then."""
    from imgclf.data.images import BadImage
    from imgclf.plots.kernels import first_convolution, save_kernels, save_stages, stage_maps

    for view in views:
        picture, error = None, None
        try:
            pixels = _pixels(source, sample, classifier)
        except BadImage as bad:
            error = bad.reason
        else:
            picture = picture_of(sample.ref, view)
            network = None if classifier is None else (classifier.model_, pixels, classifier.preprocess_)
            if view == "layers" and network:
                save_stages(stage_maps(*network), sample.ref, picture)
            else:
                save_kernels(pixels, sample.ref, picture, first_convolution(*network) if network else None)
        yield _row(picture, path=sample.ref, method=view, error=error)


def _pixels(source: Source, sample: Sample, classifier: Classifier | None) -> Pixels:
    """The input of the model or, without a model, the image no larger than its picture needs to be."""
    from imgclf.data.loading.preview import sample_pixels
    from imgclf.transforms.preprocess import resize

    if classifier is not None:
        return sample_pixels(source, [sample], classifier.preprocess_, augmented=False)[0]
    pixels = source.open(sample.ref)
    height, width = pixels.shape[:2]
    scale = min(1, PLAIN_SIDE / max(height, width))
    return resize(pixels, (max(3, round(height * scale)), max(3, round(width * scale))), "bicubic")


def _naming(out: Path) -> Naming:
    """A function that gives each picture of this command a name of its own."""
    from imgclf.plots.figures import free_path

    taken: set[Path] = set()

    def name(image: str, kind: str) -> Path:
        path = free_path(out, image, kind, taken)
        taken.add(path)
        return path

    return name


def _is_without_model(model: str | None) -> bool:
    """Whether only the classic kernels can be shown, with a message."""
    from imgclf.core.errors import ModelFileError
    from imgclf.storage.run_list import default_run

    if model is not None:
        return False
    try:
        default_run()
    except ModelFileError as error:
        console.say(f"no model, so only the classic kernels are drawn: {error}", "dim")
        return True
    return False


def _row(picture: Path | None, **values: Any) -> dict[str, Any]:
    empty = {"path": None, "label": None, "confidence": None, "method": None, "picture": picture and str(picture)}
    return {**empty, "error": None, **values}


def _report(rows: Iterator[dict[str, Any]], count: int, json: bool) -> None:
    """Show what was made, as a table or as JSON lines; the command ends with 1 where something was not."""
    cells: list[list[object]] = []
    failed = 0
    with console.progress("explaining", streamed=json) as progress:
        for done, row in enumerate(rows, 1):
            failed += row["error"] is not None
            if json:
                console.show_json(row)
            else:
                sure = None if row["confidence"] is None else percent(row["confidence"])
                label = "error" if row["error"] else row["label"]
                cells.append([row["path"], label, sure, row["error"] or row["picture"]])
            progress(done, count)
    if not json:
        console.show_table(["image", "class", "confidence", "picture"], cells)
    if failed:
        console.warn(f"{plural(failed, 'picture')} of {count:,} could not be made")
        raise typer.Exit(1)
