"""`imgclf compare`: which of two runs is better, and on which images they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import Json
from imgclf.cli._output import Force, output_file, run_data
from imgclf.cli._run_table import HEADER, cells
from imgclf.core.errors import DataError, ImgclfError
from imgclf.core.files import PICTURES
from imgclf.core.text import plural
from imgclf.storage.run_folder import ROOT, find_run

if TYPE_CHECKING:
    from imgclf.data.dataset import Pixels, Source
    from imgclf.studies.compare import Change, Comparison

MAX_ROWS = 10  # changed images in a table
MAX_PICTURED = 50  # changed images in the picture
SIGNIFICANCE = 0.05


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Run folder or name of a run.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other run.")],
    runs: Annotated[Path, typer.Option(help="Folder of runs that are given by name.")] = ROOT,
    picture: Annotated[
        Path | None, typer.Option(help=f"Make a picture of the images that changed, up to {MAX_PICTURED}.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compare two runs on their common test images: accuracy, settings and changed predictions.

    [dim]imgclf compare photos-resnet18-1 photos-resnet50-1[/dim]
    """
    if picture is not None:
        places = [place for name in (a, b) for place in run_data(find_run(name, runs))]
        output_file(picture, "--picture", PICTURES, force=force, data=places)
    with console.waiting("loading"):
        from imgclf.studies.compare import compare_runs

        result = compare_runs(a, b, runs=runs)
    drawn = None if picture is None else _draw(result, picture)
    if json:
        console.show_json({**result.to_dict(), "picture": None if drawn is None else str(drawn)})
        return
    _show(result)
    if drawn is not None:
        console.show(f"picture: {drawn}")


def _show(result: Comparison) -> None:
    _say_what_differs(result)
    console.show_table(("", *HEADER), [("a", *cells(result.a)), ("b", *cells(result.b))], keys=2)
    console.show()
    paired, (low, high) = result.paired, result.paired.interval
    points, lowest, highest = (f"{100 * share:+.1f}".replace("-", "−") for share in (paired.difference, low, high))
    images = plural(paired.n, "image")
    console.show(f"b − a:   {points} points (95% interval {lowest} to {highest}) on the same {images}")
    counts = f"both {paired.both:,}, only a {paired.only_a:,}, only b {paired.only_b:,}, neither {paired.neither:,}"
    p = "< 0.001" if paired.p_value < 0.001 else f"= {paired.p_value:.2g}"
    console.show(f"correct: {counts}; McNemar's exact test: p {p}")
    console.show(f"result:  {_verdict(result)}")
    for title, differences in (("setting", result.settings), ("environment", result.environment)):
        if differences:
            console.show()
            console.show_table((title, "a", "b"), [(name, *map(_word, pair)) for name, pair in differences.items()])
    _show_changed("only b is correct", result.fixed)
    _show_changed("only a is correct", result.broken)


def _say_what_differs(result: Comparison) -> None:
    """Say how many test images are left out, and which classes only one of the runs knows."""
    for name, other, count, classes in zip("ab", "ba", result.left_out, result.other_classes, strict=True):
        if count:
            console.warn(f"{plural(count, 'test image')} of {name} left out: {other} was not tested on them")
        if classes:
            console.warn(f"{plural(len(classes), 'class')} of {name} unknown to {other}:", classes)


def _verdict(result: Comparison) -> str:
    if result.same_predictions:
        why = " (both kept the linear probe)" if result.kept_probe else ""
        return f"same prediction for every image{f', equal weights{why}' if result.same_weights else ''}"
    if result.paired.p_value >= SIGNIFICANCE:
        return f"no significant difference on {plural(result.paired.n, 'image')}"
    return f"{'b' if result.paired.difference > 0 else 'a'} is better on images like these"


def _show_changed(title: str, changes: Sequence[Change]) -> None:
    if not changes:
        return
    console.show()
    more = f", {MAX_ROWS} shown, classes in turn (all: --json)" if len(changes) > MAX_ROWS else ""
    console.show(f"{title}: {plural(len(changes), 'image')}{more}")
    rows = [(change.path, change.true, change.a, change.b) for change in changes[:MAX_ROWS]]
    console.show_table(("image", "true class", "a predicts", "b predicts"), rows)


def _draw(result: Comparison, path: Path) -> Path | None:
    """A picture of the images that changed, those that only b classifies correctly first; None where there is none."""
    from imgclf.data.write import require_outside
    from imgclf.plots.figures import GRID_TITLE, save_grid, title_of
    from imgclf.storage.run_folder import open_run
    from imgclf.storage.run_source import labeled_source

    source = labeled_source(None, open_run(Path(result.a.path)))
    require_outside(path, source)
    fixed = max(MAX_PICTURED // 2, MAX_PICTURED - len(result.broken))
    chosen = [*result.fixed[:fixed], *result.broken][:MAX_PICTURED]
    shown, unreadable = [], []
    for change in chosen:
        try:
            shown.append((_pixels(source, change), change))
        except ImgclfError as error:
            unreadable.append(str(error))
    if unreadable:
        console.warn(f"{plural(len(unreadable), 'image')} can't be shown:", unreadable)
    if not shown:
        console.say("no changed image to show: no picture written")
        return None
    if len(chosen) < len(result.changed):
        console.say(f"the picture shows {len(shown)} of {len(result.changed):,} changed images")
    name = (GRID_TITLE - len(" → ")) // 2
    save_grid(
        [pixels for pixels, _ in shown],
        [f"{title_of(change.a, name)} → {title_of(change.b, name)}" for _, change in shown],
        path,
        ["green" if change.better else "red" for _, change in shown],
        ["/".join(Path(change.path).parts[-2:]) for _, change in shown],
        f"{result.a.name} → {result.b.name}; green: only the second is correct, red: only the first",
    )
    return path


def _pixels(source: Source, change: Change) -> Pixels:
    """The image as it was tested."""
    from imgclf.data.dataset import Sample
    from imgclf.data.loading.preview import WHOLE_IMAGE, sample_pixels

    if change.content and source.reader.digest(change.path) != change.content:
        raise DataError(f"{change.path} has changed since the test")
    sample = Sample(change.path, change.true, sha256=change.content)
    return sample_pixels(source, [sample], WHOLE_IMAGE, augmented=False)[0]


def _word(value: object) -> object:
    return "×".join(map(str, value)) if isinstance(value, list) else value
