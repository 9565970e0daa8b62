"""The work behind `Classifier.fit`, `resume` and `repeat`: from what was asked to what was learnt, or a run folder."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imgclf.core.config import ExperimentConfig, to_dict
from imgclf.core.errors import ConfigError, ImgclfError
from imgclf.core.results import Decision, Evaluation, History, Probe
from imgclf.data.dataset import Source
from imgclf.data.loading.loader import Loader
from imgclf.data.loading.preview import pick_samples
from imgclf.data.sources.open import open_source
from imgclf.data.split import Split, pack_contents
from imgclf.data.write import require_outside
from imgclf.estimator.calibrate import Calibrated, calibrate, features_of
from imgclf.estimator.events import DecisionsMade, FitEnded, LoaderMade, Tested
from imgclf.estimator.plan import (
    Plan,
    PlanMade,
    RunReady,
    choose_experiment,
    fit_experiment,
    make_plan,
    plan_as,
    plan_loader,
    read_data,
    read_experiment,
    recipe_name,
)
from imgclf.estimator.recorder import Recorder, start_run
from imgclf.estimator.warm_start import Start, begin, knows_classes
from imgclf.evaluation.inference import preview_predictions
from imgclf.runtime import distributed
from imgclf.runtime.compute import kept_memory
from imgclf.runtime.device import pick_device, pick_precision
from imgclf.storage.model_file import Manifest, save_model
from imgclf.storage.run_data import reading_options
from imgclf.storage.run_folder import (
    CHECKPOINT,
    CONFIG,
    PREDICTIONS,
    REPORT,
    Run,
    find_run,
    held,
    open_run,
    require_free,
    spent_seconds,
    write_config,
    write_info,
)
from imgclf.training.checkpoint import has_checkpoint, load_checkpoint
from imgclf.training.events import Callback, Event, Warned, as_callbacks, notify, progress_of, with_warnings
from imgclf.training.loop import train

Data = str | os.PathLike[str] | Source
SHOWN_IMAGES = 20  # of a part that is tested, for those who follow training


@dataclass(frozen=True)
class Work:
    """What is there before the first step: a plan with its network, the images, the loaders of training and, if there
    are images for it, of validation, and the run folder, if there is one."""

    plan: Plan
    source: Source
    split: Split
    loader: Loader
    valid: Loader | None
    run: Run | None = None


@dataclass(frozen=True)
class FitResult:
    """What came of training: the last state of the work, how it went, what the network may claim, and the images that
    became unreadable meanwhile. `probe` is None where there was none, or it was made before training was resumed."""

    work: Work
    history: History
    manifest: Manifest
    calibrated: Calibrated
    probe: Probe | None = None
    choices: tuple[Decision, ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict)


def fit_data(
    data: Data,
    recipe: str | ExperimentConfig | None,
    changes: Mapping[str, Any],
    compose: Mapping[str, Any] | None = None,
    *,
    runs: Path | None,
    name: str | None,
    callbacks: Sequence[Callback],
) -> FitResult:
    """Train on some data by a recipe with changes; `compose` is a user's own augmentation. See `Classifier.fit`."""
    callbacks = as_callbacks(callbacks)
    distributed.join()
    reading = choose_experiment(recipe, changes).data
    source = open_source(data, **reading_options(reading))
    experiment = fit_experiment(recipe, changes, source)
    if runs is not None and distributed.is_main():
        require_outside(runs, source)
        require_free(runs, name)
    callbacks = with_warnings(callbacks) if distributed.is_main() else ()
    audited, split = read_data(source, experiment, callbacks)
    valid = len(split.samples("valid"))
    plan = make_plan(experiment, audited.source, split.samples("train"), compose, audited.sizes, valid)
    base = recipe_name(recipe, changes, source.default_recipe)
    plan = replace(plan, base=base, findings=audited.all_findings)
    work = _prepare(plan, audited.source, split, callbacks)
    if runs is None or not distributed.is_main():
        return _learn(work, callbacks)
    named = None if isinstance(data, Source) else os.fspath(data)
    run = start_run(runs, name, manifest_of(work), work.plan.experiment, split, named, audited, base)
    with held(run):
        return _learn(replace(work, run=run), callbacks)


def resume_run(path: Path, epochs: int | None, callbacks: Sequence[Callback]) -> FitResult:
    """Go on with the training of a run. See `Classifier.resume`."""
    callbacks = as_callbacks(callbacks)
    distributed.join()
    run = find_run(path)
    path = run.path
    with held(run) if distributed.is_main() else nullcontext():
        experiment, data = read_experiment(run)
        fresh = run.info["status"] in ("running", "failed") and not has_checkpoint(path / CHECKPOINT)
        callbacks = with_warnings(callbacks) if distributed.is_main() else ()
        state = None if fresh else load_checkpoint(path / CHECKPOINT, lambda text: notify(callbacks, Warned(text)))
        reached = 0 if state is None else state["epoch"]
        planned = experiment.train.epochs
        config = experiment.train if epochs is None else replace(experiment.train, epochs=epochs)
        ended = run.info["status"] == "done"  # else it was killed before its result was written
        if config.epochs is None or config.epochs < reached + ended:
            untested = "" if "result" in run.info else f", or see how good it is: imgclf evaluate --model {path}"
            if not untested and not (path / REPORT).exists():
                untested = f", or write its report: imgclf report {path}"
            raise ConfigError(f"{path} has finished {reached} epochs; go on to more with --epochs N{untested}")
        experiment = replace(experiment, train=config)
        work = _prepare(*plan_as(run, experiment, data, callbacks, weights=fresh), callbacks)
        if distributed.is_main():
            extended = run.info.get("extended", [])
            if config.epochs != planned:
                write_config(path / CONFIG, experiment, data)
                extended = [*extended, planned]
            before = max(spent_seconds(run) or 0.0, 0.0 if state is None else state["spent"])
            of_before = ("result", "seconds")  # which are no more
            run = replace(run, info={key: value for key, value in run.info.items() if key not in of_before})
            more = {"status": "running", "pid": os.getpid(), "extended": extended, "seconds_before": round(before, 3)}
            work = replace(work, run=write_info(run, **more))
        return _learn(work, callbacks, state)


def repeat_run(path: Path, callbacks: Sequence[Callback]) -> FitResult:
    """Train again from the start as a run did, writing nothing. See `Classifier.repeat`."""
    callbacks = as_callbacks(callbacks)
    distributed.join()
    run = find_run(path)
    experiment, data = read_experiment(run)
    # What the time allowed then is what is done again, in whatever time it takes now.
    experiment = replace(experiment, train=replace(experiment.train, minutes=None))
    callbacks = with_warnings(callbacks) if distributed.is_main() else ()
    return _learn(_prepare(*plan_as(run, experiment, data, callbacks, weights=True), callbacks), callbacks)


def manifest_of(work: Work, metrics: Mapping[str, Evaluation] | None = None) -> Manifest:
    """What the model file says of work with these results by part."""
    plan, split = work.plan, work.split
    return Manifest(
        plan.spec,
        work.source.classes,
        plan.recipe,
        weights=asdict(plan.weights),
        metrics=figures(metrics or {}, split),
        data=work.source.name,
        seen=pack_contents((*split.samples("train"), *split.samples("valid"))),
    )


def figures(metrics: Mapping[str, Evaluation], split: Split) -> dict[str, dict[str, Any]]:
    """Results as a model file holds them: with the digest of the split that they were measured on, and without the
    confusion matrix, whose size grows with the square of the classes."""
    plain = {part: result.to_dict() for part, result in metrics.items()}
    for values in plain.values():
        values["split"] = split.digest
        for one in filter(None, (values, values["unseen"])):
            del one["confusion"]
    return plain


def keeping_memory(stack: ExitStack) -> Callback:
    """A callback by which what training frees serves what comes after it as well, until the stack is closed."""

    def keep(event: Event) -> None:
        if isinstance(event, RunReady):
            stack.enter_context(kept_memory(pick_device(event.plan.experiment.train.device)))

    return keep


def _prepare(plan: Plan, source: Source, split: Split, callbacks: Sequence[Callback]) -> Work:
    """The loaders of a plan, which then says where their pixels are kept."""
    notify(callbacks, PlanMade(plan))
    load = partial(plan_loader, plan, source, shard=distributed.shard())
    loader, held_out = load(split.samples("train"), train=True), split.samples("valid")
    valid = load(held_out) if held_out else None
    experiment = plan.experiment
    experiment = replace(experiment, data=replace(experiment.data, cache=loader.tier.name))
    notify(callbacks, LoaderMade(loader))
    return Work(replace(plan, experiment=experiment), source, split, loader, valid)


def _learn(work: Work, callbacks: Sequence[Callback], state: dict[str, Any] | None = None) -> FitResult:
    """Train, from `state` on where there is one, and find out how good the result is."""
    with note_failure(work.run, fresh=state is None):
        return _train_and_examine(work, callbacks, state)


def _train_and_examine(work: Work, callbacks: Sequence[Callback], state: dict[str, Any] | None) -> FitResult:
    start: Start | None = None
    if state is None:
        work, start = _begin(work, callbacks)
    run, model = work.run, work.plan.model
    if run is not None:
        callbacks = (Recorder(run, manifest_of(work), work.plan.experiment.keep), *callbacks)
    notify(callbacks, RunReady(run, work.plan))
    before = {} if state is None else state["lost"]
    with _noting_losses(work, before):
        history = train(
            model,
            work.loader,
            work.valid,
            work.plan.experiment.train,
            callbacks=callbacks,
            checkpoint=None if run is None else run.path / CHECKPOINT,
            resume=state,
            keep_start=knows_classes(work.plan),
        )
    calibrated = _examine(work, history, start, callbacks)
    lost = _lost(work, before)
    metrics = {} if calibrated.answers is None else {"valid": calibrated.answers.evaluation}
    for part, result in metrics.items():
        notify(callbacks, tested(work.plan, work.source, work.split, part, result))
    manifest = calibrated.within(manifest_of(work, metrics))
    if run is not None:
        (run.path / PREDICTIONS).unlink(missing_ok=True)  # of a model that is no more, where this one was resumed
        save_model(run.model, model, manifest, calibrated.unknown)
        seconds = round(time.perf_counter() - work.plan.began, 3)
        ended = {
            "status": history.ended,
            "epochs": len(history),
            "seconds": seconds,
            "lost": [*map(list, lost.items())],
        }
        work = replace(work, run=write_info(run, **ended))
    notify(callbacks, FitEnded(history.ended))
    probe, choices = (None, ()) if start is None else (start.probe, start.choices)
    return FitResult(work, history, manifest, calibrated, probe, choices, lost)


def _examine(work: Work, history: History, start: Start | None, callbacks: Sequence[Callback]) -> Calibrated:
    """What the trained network may claim, by the images of validation; who interrupts does not want to wait."""
    if history.ended == "interrupted":
        return Calibrated(note="training was interrupted", missing="training was interrupted")
    if work.valid is None:
        return Calibrated(note="there are no validation images", missing="there are no validation images")
    plan, model, known = work.plan, work.plan.model, None if start is None else start.features
    if knows_classes(plan) and history.best is None and known is not None:  # nothing but the head was ever changed
        return calibrate(model, work.valid, lambda: known)
    # bfloat16 is enough for the points that others are compared with; float16 has no room for large features.
    precision = pick_precision(plan.experiment.train.precision, pick_device(plan.experiment.train.device))
    precision = precision if precision is torch.bfloat16 else torch.float32
    told = progress_of("computing features for unknown-image detection", callbacks)
    return calibrate(model, work.valid, lambda: features_of(model, work.loader, told, precision))


def _begin(work: Work, callbacks: Sequence[Callback]) -> tuple[Work, Start]:
    """Everything between the plan and the first step."""
    plan, source, run = work.plan, work.source, work.run
    told: list[Callback] = [*callbacks] if run is None else [Recorder(run, manifest_of(work)), *callbacks]
    load = partial(plan_loader, plan, source, shard=distributed.shard(), cache="auto")
    start = begin(plan, work.split, (work.loader, work.valid), load, told)
    work = replace(work, plan=start.plan)
    if start.plan.recipe != plan.recipe:
        again = plan_loader(start.plan, source, work.loader.samples, train=True, shard=distributed.shard())
        work = replace(work, loader=again)
    if run is not None:
        write_config(run.path / CONFIG, start.plan.experiment, run.info["source"])
        choices = [asdict(choice) for choice in start.choices]
        work = replace(work, run=write_info(run, recipe=to_dict(start.plan.recipe), choices=choices))
    notify(told, DecisionsMade(start.choices))
    return work, start


def _lost(work: Work, before: Mapping[str, str]) -> dict[str, str]:
    """The images that couldn't be read at some time, with those from `before` training was resumed."""
    return {**before, **work.loader.lost, **(work.valid.lost if work.valid is not None else {})}


@contextmanager
def _noting_losses(work: Work, before: Mapping[str, str]) -> Iterator[None]:
    """Tell a run folder of the images that were lost until an error ends training, or `before`."""
    try:
        yield
    except BaseException:
        if work.run is not None:
            _tell(work.run, lost=[*map(list, _lost(work, before).items())])
        raise


@contextmanager
def note_failure(run: Run | None, *, fresh: bool = False) -> Iterator[None]:
    """Tell a run folder of the error or the interrupt that ends the work; remove it where it is interrupted before the
    first step."""
    try:
        yield
    except KeyboardInterrupt:
        if run is not None and fresh and not (run.path / CHECKPOINT).exists():
            shutil.rmtree(run.path)
        elif run is not None:
            _tell(run, status="interrupted")
        raise
    except Exception as error:
        if run is not None:
            _tell(run, status="failed", error=f"{type(error).__name__}: {error}")
        raise


def _tell(run: Run, **facts: Any) -> None:
    with suppress(OSError, ImgclfError):  # what ended the work is what is told
        write_info(open_run(run.path), **facts)


def tested(plan: Plan, source: Source, split: Split, part: str, result: Evaluation) -> Tested:
    """What to tell of a test of a plan's model on a part of its data."""

    def sample() -> Sequence[Any]:
        samples = pick_samples(source.with_samples(split.samples(part)), SHOWN_IMAGES)
        return preview_predictions(plan.model, plan_loader(plan, source, samples, cache="off"))

    return Tested(part, result, sample)
