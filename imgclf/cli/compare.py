"""`imgclf compare`: which of two runs is better, and on which images they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import Json
from imgclf.cli._output import Force, output_file, run_data
from imgclf.cli.runs import HEADER, cells
from imgclf.cli.show import WHOLE
from imgclf.core.errors import DataError, ImgclfError
from imgclf.core.files import PICTURES
from imgclf.core.text import plural
from imgclf.storage.run_folder import ROOT, find_run

if TYPE_CHECKING:
    from imgclf.data.dataset import Pixels, Source
    from imgclf.studies.compare import Change, Comparison

SHOWN = 10  # images of each kind
MOST = 50  # images of a picture
UNSURE = 0.05


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run folder, or its name.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.", show_default=False)],
    runs: Annotated[Path, typer.Option(help="Where runs are that are given by their names.")] = ROOT,
    picture: Annotated[
        Path | None,
        typer.Option(help=f"Make a picture of the images that changed, up to {MOST}.", show_default=False),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compare two runs on the test images that both have: accuracy, settings, and the images that changed.

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
    console.show(
        f"b − a:  {_points(paired.difference)} points, 95 % interval {_points(low)} to {_points(high)}, on the same "
        f"{plural(paired.n, 'image')}"
    )
    console.show(
        f"right:  both {paired.both:,}, only a {paired.only_a:,}, only b {paired.only_b:,}, neither {paired.neither:,}"
        f"; McNemar's exact test: p {_p(paired.p_value)}"
    )
    console.show(f"so:     {_verdict(result)}")
    for title, differences in (("setting", result.settings), ("not the same", result.surroundings)):
        if differences:
            console.show()
            console.show_table((title, "a", "b"), [(name, *map(_word, pair)) for name, pair in differences.items()])
    _show_changed("wrong in a, right in b", result.fixed)
    _show_changed("right in a, wrong in b", result.broken)


def _say_what_differs(result: Comparison) -> None:
    """Say on how many of their test images the runs are compared, and which classes only one of them knows."""
    for name, other, count, classes in zip("ab", "ba", result.left_out, result.alone, strict=True):
        if count:
            console.warn(f"{plural(count, 'test image')} of {name} left out, as {other} was not tested on them")
        if classes:
            console.warn(f"{other} does not know {plural(len(classes), 'class')} of {name}:")
            console.say_list(classes)


def _verdict(result: Comparison) -> str:
    if result.same_answers:
        return f"both give the same answer to every image{': the weights are equal' if result.same_weights else ''}"
    if result.paired.p_value >= UNSURE:
        return f"these {plural(result.paired.n, 'image')} don't tell which of the two is better"
    return f"{'b' if result.paired.difference > 0 else 'a'} is better on images like these"


def _show_changed(title: str, changes: Sequence[Change]) -> None:
    if not changes:
        return
    console.show()
    more = f", of which {SHOWN} are here, the classes in turn (all: --json)" if len(changes) > SHOWN else ""
    console.show(f"{title}: {plural(len(changes), 'image')}{more}")
    rows = [(change.path, change.true, change.a, change.b) for change in changes[:SHOWN]]
    console.show_table(("image", "is", "a said", "b said"), rows)


def _draw(result: Comparison, path: Path) -> Path | None:
    """A picture of the images that changed, those that b gets right first; None where there is none to show."""
    from imgclf.data.write import require_outside
    from imgclf.plots.grids import GRID_TITLE, save_grid, title_of
    from imgclf.storage.run_data import labeled_source
    from imgclf.storage.run_folder import open_run

    source = labeled_source(None, open_run(Path(result.a.path)))
    require_outside(path, source)
    better = max(MOST // 2, MOST - len(result.broken))
    chosen = [*result.fixed[:better], *result.broken][:MOST]
    shown, gone = [], []
    for change in chosen:
        try:
            shown.append((_pixels(source, change), change))
        except ImgclfError as error:
            gone.append(str(error))
    if gone:
        console.warn(f"{plural(len(gone), 'image')} can't be shown:")
        console.say_list(gone)
    if not shown:
        console.say("there is no image that changed to show, so there is no picture")
        return None
    if len(chosen) < len(result.changed):
        console.say(f"the picture shows {len(shown)} of the {len(result.changed):,} images that changed")
    name = (GRID_TITLE - len(" → ")) // 2
    save_grid(
        [pixels for pixels, _ in shown],
        [f"{title_of(change.a, name)} → {title_of(change.b, name)}" for _, change in shown],
        path,
        ["green" if change.better else "red" for _, change in shown],
        ["/".join(Path(change.path).parts[-2:]) for _, change in shown],
        f"{result.a.name} said → {result.b.name} said; green: the second is right, red: the first",
    )
    return path


def _pixels(source: Source, change: Change) -> Pixels:
    """The image as it was tested."""
    from imgclf.data.dataset import Sample
    from imgclf.data.loading.preview import sample_pixels

    if change.content and source.reader.digest(change.path) != change.content:
        raise DataError(f"{change.path} is not what it was")
    (pixels,) = sample_pixels(source, [Sample(change.path, change.true, sha256=change.content)], WHOLE, augmented=False)
    return pixels


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _word(value: object) -> object:
    return "×".join(map(str, value)) if isinstance(value, list) else value
