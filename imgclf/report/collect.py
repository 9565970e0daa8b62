"""The report of a run: gathers what its folder, its model and its images have to say, and writes the page."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from imgclf.core.arguments import as_path
from imgclf.core.config import CUSTOM, ExperimentConfig, PreprocessConfig, from_dict
from imgclf.core.errors import ImgclfError, UnknownName
from imgclf.core.files import read_text, write_text
from imgclf.core.results import ENDED
from imgclf.core.text import plural, printable
from imgclf.data.audit import audit
from imgclf.data.classes import spelled_as
from imgclf.data.dataset import SPLIT_NAMES, Pixels, Sample, Source
from imgclf.data.images import BadImage
from imgclf.data.loading.loader import Loader
from imgclf.data.loading.preview import pick_samples, sample_pixels
from imgclf.data.split import (
    FRACTIONS,
    Split,
    in_percent,
    match_rows,
    open_fractions,
    read_split,
    unpack_contents,
)
from imgclf.data.write import require_outside
from imgclf.evaluation.inference import collect_predictions
from imgclf.evaluation.predictions import Predictions, read_predictions
from imgclf.models.backbones import find_arch
from imgclf.models.ensemble import Ensemble
from imgclf.models.offline import have_offline_weights
from imgclf.models.own import is_known
from imgclf.models.summary import layer_table
from imgclf.report.page import pictures_to_show, render
from imgclf.report.thumbnails import look_at
from imgclf.report.view import Look, Network, NextSteps, ReportData, Samples
from imgclf.runtime.device import pick_device
from imgclf.storage.model_file import load_model
from imgclf.storage.run_folder import (
    CHECKPOINT,
    CONFIG,
    EVENTS,
    HISTORY,
    PREDICTIONS,
    REPORT,
    SPLIT,
    Run,
    RunInfo,
    find_run,
    read_config,
    read_history,
    read_start,
)
from imgclf.storage.run_source import labeled_source
from imgclf.training.checkpoint import has_checkpoint
from imgclf.training.linear_probe import linear_head

SAMPLE_IMAGES = 24  # of training
MAX_SUBGROUP_IMAGES = 2_000  # whose size and brightness are measured
LONGER_FACTOR = 2  # of the epochs or minutes that a longer training takes
MORE_TEST_FRACTIONS = (0.6, 0.1, 0.3)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Known:
    """What is known of a run: its network, its predictions by part, and its images; else `not_shown` says why not."""

    model: nn.Module | None = None
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    source: Source | None = None
    not_shown: str = ""


def write_report(
    run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, progress: Progress | None = None
) -> Path:
    """Write the report of a run, and return its path.

    Predictions for its test images that are missing are made again, if the model and the images are there. A run
    without test images is reported on its validation images.

    Args:
        run: A run folder, or the name of a run under `runs`.
        out: The file to write; by default, `report.html` in the run folder.
        progress: Is told (images done, images in all).

    Raises:
        DataError: This is no run folder, or `out` is inside the data.
    """
    folder = find_run(run)
    path = as_path("out", out) if out is not None else folder.path / REPORT
    known = _find_out(folder, progress)
    if known.source is not None:
        require_outside(path, known.source)
    write_text(path, render(gather(folder, known, progress)))
    return path


def _find_out(run: Run, progress: Progress | None) -> Known:
    """The network of a run, its images, and its predictions: as they were kept, or made now."""
    kept, model, rows = {}, None, read_split(run.path / SPLIT)
    if run.model.is_file():
        if (run.path / PREDICTIONS).is_file():
            kept["test"] = read_predictions(run.path / PREDICTIONS)
        if is_known(run.info.arch):  # else a network of the user's own, whose code is not named
            model, manifest = load_model(run.model)
    part = next((name for name in ("test", "valid") if any(row.split == name for row in rows)), None)
    try:
        source = labeled_source(None, run)
        if kept or model is None or part is None:
            return Known(model, kept, source)
        source = spelled_as(audit(source, strict=False, allow_unreadable=1.0).source, manifest.classes)
    except (ImgclfError, OSError) as error:
        reason = printable(str(error).splitlines()[0])
        return Known(model, kept, None, f"The images were not found ({reason}), so no pictures are shown.")
    samples = [sample for row, sample in match_rows(rows, source.samples) if sample is not None and row.split == part]
    loader = Loader(source, samples, manifest.preprocess, classes=manifest.classes, device=pick_device("auto"))
    temperature, seen = float(manifest.calibration["temperature"]), unpack_contents(manifest.seen)
    model = model.to(loader.device)
    predictions = collect_predictions(model, loader, progress=progress, temperature=temperature, seen=seen)
    return Known(model, {part: predictions}, source)


def gather(run: Run, known: Known, progress: Progress | None = None) -> ReportData:
    """Everything that the page of a run shows.

    Args:
        run: The run.
        known: Its network, predictions and images, as far as they are available.
        progress: Is told (images done, images in all) while pictures are made.
    """
    source, not_shown, info = known.source, known.not_shown, run.info
    part = "test" if "test" in known.predictions else "valid"
    predictions = known.predictions.get(part)
    rows = read_split(run.path / SPLIT)
    values, _ = read_config(run.path / CONFIG)
    experiment, preprocess = from_dict(ExperimentConfig, values), from_dict(PreprocessConfig, info.preprocess)
    source = source and source.at_levels(preprocess.levels)
    history = read_history(run.path / HISTORY)
    counts = {label: dict.fromkeys(SPLIT_NAMES, 0) for label in info.classes}
    for row in rows:
        counts[row.label][str(row.split)] += 1
    looks: Mapping[str, Look] = {}
    refs = () if predictions is None else predictions.refs
    sampled = frozenset(refs[i] for i in np.random.default_rng(0).permutation(len(refs))[:MAX_SUBGROUP_IMAGES].tolist())
    if source is not None and predictions is not None:
        looks, not_shown = _look(source, predictions, sampled, progress)
    return ReportData(
        name=run.path.absolute().name,
        info=info,
        experiment=experiment,
        counts=counts,
        history=history,
        network=Network() if known.model is None else _network(known.model, preprocess),
        predictions=predictions,
        part=part,
        looks=looks,
        sampled=sampled,
        not_shown=not_shown,
        samples=Samples() if source is None else _samples(source, rows, preprocess, experiment),
        config=read_text(run.path / CONFIG),
        commands=_commands(run, experiment),
        start=read_start(run.path / EVENTS),
        next_steps=_next_steps(run, experiment, known.model, rows, len(history)),
        offline=have_offline_weights(),
        facts=_facts(info, Split(tuple(rows)).digest, experiment.train.seed),
    )


def _look(
    source: Source, predictions: Predictions, sampled: Set[str], progress: Progress | None
) -> tuple[dict[str, Look], str]:
    """A look at the images to show and at the `sampled` ones, and a note where some of the former can't be shown."""
    pictured = {predictions.refs[i] for i in pictures_to_show(predictions)}
    shown, named = pictured | sampled, zip(predictions.refs, predictions.contents, strict=True)
    looks = look_at(source, [image for image in named if image[0] in shown], pictured, progress)
    gone = len(pictured - looks.keys())
    note = f"{plural(gone, 'image')} not shown: unreadable, or changed since they were predicted." if gone else ""
    return looks, note


def _network(model: nn.Module, preprocess: PreprocessConfig) -> Network:
    one = _one(model)
    kernels = next((m.weight.detach().cpu().numpy() for m in one.modules() if isinstance(m, nn.Conv2d)), None)
    parameters = sum(p.numel() for p in model.parameters())
    return Network(parameters, layer_table(one, preprocess.size, preprocess.channels), kernels)


def _samples(
    source: Source, rows: Sequence[Sample], preprocess: PreprocessConfig, experiment: ExperimentConfig
) -> Samples:
    """Training images with the pixels of the first epoch; a probe sees them without augmentation."""
    train = source.with_samples(row for row in rows if row.split == "train")
    chosen, seed, augmented = pick_samples(train, SAMPLE_IMAGES), experiment.train.seed, experiment.train.epochs != 0
    images: list[Pixels] = []
    titles = []
    for sample in chosen:
        with suppress(BadImage):  # gone: `gather` says so of the images that count
            images += sample_pixels(source, [sample], preprocess, augmented=augmented, seed=seed)
            titles.append(sample.label)
    augmentation = str(experiment.augment or "none") if augmented else "none"
    return Samples(tuple(images), tuple(titles), augmentation)


def _one(model: nn.Module) -> nn.Module:
    """A network or, of an ensemble, one of its members."""
    return next(model.members.children()) if isinstance(model, Ensemble) else model


def _is_named(run: Run) -> bool:
    """Whether commands can train as a run did: they know no source and no network of the user's own."""
    try:
        return bool(run.info.source) and find_arch(run.info.arch).family != "own"
    except UnknownName:
        return False


def _resume(run: Run) -> str:
    """The command that resumes a run; "" where that is not possible."""
    begun = run.info.status in ("running", "failed") or has_checkpoint(run.path / CHECKPOINT)
    possible = _is_named(run) and begun and not run.info.members
    return f"imgclf train --resume {shlex.quote(str(run.path))}" if possible else ""


def _anew(run: Run, experiment: ExperimentConfig) -> str:
    """The command that trains as a run did; "" where no config can say how."""
    if not _is_named(run) or experiment.augment == CUSTOM:
        return ""
    members = len(run.info.members)
    ensemble = f" --ensemble {members}" if members > 1 else ""
    return f"imgclf train --config {shlex.quote(str(run.path / CONFIG))}{ensemble}"


def _next_steps(
    run: Run, experiment: ExperimentConfig, model: nn.Module | None, rows: Sequence[Sample], epochs: int
) -> NextSteps:
    """The commands for what may be done next with a run of this many `epochs`."""
    if not run.info.source:
        return NextSteps()
    place, config = experiment.data, experiment.train
    data = shlex.quote(run.info.source)
    if place.data_dir is not None:
        data += f" --data-dir {shlex.quote(place.data_dir)}"
    resume, anew, asked = _resume(run), _anew(run, experiment), run.info.minutes
    longer = resume
    if config.minutes is not None:  # those that were left for training, so what was asked for has to be known
        longer = f"{anew} --minutes {math.ceil(LONGER_FACTOR * asked)}" if anew and asked else ""
    tests = _is_named(run) and run.model.is_file()
    brought, held_out = run.info.given_parts, (experiment.split or FRACTIONS)[2]
    free = anew and experiment.init is None and "test" not in brought  # else images keep their places
    more = in_percent(open_fractions(brought, MORE_TEST_FRACTIONS)) if held_out < MORE_TEST_FRACTIONS[2] else ""
    return NextSteps(
        data,
        evaluate=f"imgclf evaluate --model {shlex.quote(str(run.path))}" if tests else "",
        resume=resume,
        longer=f"{longer} --epochs {LONGER_FACTOR * epochs}" if longer else "",
        hold_out=f"{anew} --split {in_percent(open_fractions(brought))}" if free else "",
        curve=_curve(run, model, rows) if anew else "",
        more_test=more if free else "",
    )


def _curve(run: Run, model: nn.Module | None, rows: Sequence[Sample]) -> str:
    """The command for the learning curve of a run's network: on its features, if they are pretrained and a linear head
    can stand on them, or of its training from scratch, if there are test images to judge by; else ""."""
    weights = run.info.weights
    scratch = weights["used"] == "none"
    if scratch:
        possible = any(row.split == "test" for row in rows)
    else:
        possible = weights["used"] != "file" and model is not None and linear_head(_one(model)) is not None
    data, config = shlex.quote(run.info.source or run.info.data), shlex.quote(str(run.path / CONFIG))
    command = f"imgclf learning-curve {data} --config {config}"
    return f"{command}{' --full' if scratch else ''}" if possible else ""


def _commands(run: Run, experiment: ExperimentConfig) -> tuple[tuple[str, str], ...]:
    """What to type to train again, and what each is good for."""
    if not _is_named(run):
        return ()
    if run.info.status not in ENDED:
        resume = _resume(run)
        return ((resume, "Resume this run:"),) if resume else ()
    if run.info.members:
        purpose = "Train a member of this ensemble again on the same split, and compare:"
        return tuple((f"imgclf reproduce {shlex.quote(member)}", purpose) for member in run.info.members)
    again = "Train again on the same split, and compare weights and metrics:"
    reproduce, anew = f"imgclf reproduce {shlex.quote(str(run.path))}", _anew(run, experiment)
    return ((reproduce, again), *([(anew, "Start a new run with the same configuration:")] if anew else []))


def _facts(info: RunInfo, split: str, seed: int) -> dict[str, str]:
    facts = {"data": info.source or info.data, "seed": seed, "split (sha256)": split[:16]}
    facts |= {**info.machine, **info.versions}
    return {name: str(value) for name, value in facts.items() if name != "processes"}
