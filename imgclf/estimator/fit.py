"""The stages of a fit, in the order in which they happen: `fit` is all of it on one screen."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from imgclf.core.config import ExperimentConfig, from_dict
from imgclf.core.errors import ConfigError
from imgclf.core.results import Evaluation
from imgclf.data.dataset import Source
from imgclf.data.loading.preview import pick_samples
from imgclf.data.sources.inputs import far_values
from imgclf.estimator.calibrate import calibrate
from imgclf.estimator.events import FitEnded, LoaderMade, Tested
from imgclf.estimator.plan import Plan, RunReady, plan_training
from imgclf.estimator.recorder import FitResult, manifest_of, start_run, write_page
from imgclf.estimator.settings import Request, with_train
from imgclf.estimator.warm_start import Start, warm_start
from imgclf.evaluation.inference import collect_predictions, preview_predictions
from imgclf.evaluation.predictions import Predictions
from imgclf.models.backbones import find_arch
from imgclf.report.collect import Known
from imgclf.runtime import distributed
from imgclf.storage.run_folder import CHECKPOINT, CONFIG, REPORT, Run, find_run, held, run_config
from imgclf.training.checkpoint import has_checkpoint, load_checkpoint
from imgclf.training.events import Callback, Warned, notify, progress_of, with_warnings
from imgclf.training.loop import train

Data = str | os.PathLike[str] | Source
SHOWN_IMAGES = 20  # of a tested part, for trackers


def fit(request: Request, data: Data, callbacks: Sequence[Callback] = ()) -> FitResult:
    """Train as requested; see `Classifier.fit`. With a run folder, also test and write the report."""
    began = time.perf_counter()
    distributed.join()
    callbacks = with_warnings(callbacks)
    plan = plan_training(request, data, callbacks)
    notify(callbacks, LoaderMade(plan.train_loader))
    cached = replace(plan.experiment.data, cache=plan.train_loader.cache_level.name)
    plan = replace(plan, experiment=replace(plan.experiment, data=cached))
    recorder = start_run(request, plan, data)
    run = None if recorder is None else recorder.run
    callbacks = callbacks if recorder is None else (recorder, *callbacks)
    with nullcontext() if recorder is None else recorder.at_work():
        start = warm_start(plan, callbacks) if request.state is None else Start(plan)
        plan = start.plan
        if recorder is not None and request.state is None:
            recorder.begin(start)
        notify(callbacks, RunReady(run, plan))
        history = train(
            plan.model,
            plan.train_loader,
            plan.valid_loader,
            plan.experiment.train,
            callbacks=callbacks,
            checkpoint=None if run is None else run.path / CHECKPOINT,
            resume=request.state,
            keep_start=plan.knows_classes,
        )
        calibrated = calibrate(plan, history, start.features, callbacks)
        if recorder is not None:
            recorder.keep(calibrated)
        predictions, unreadable = dict(calibrated.predictions), plan.unreadable
        if (request.runs or request.resume) and history.ended != "interrupted" and plan.split.samples("test"):
            predictions["test"], missed = test(plan, calibrated.temperature, callbacks)
            unreadable |= missed
        for part, known in predictions.items():
            notify(callbacks, tested(plan, part, known.evaluation))
        manifest = calibrated.within(manifest_of(plan, predictions))
        learnt = FitResult(start, history, manifest, calibrated.ood, predictions, unreadable)
        if recorder is not None:
            learnt = replace(learnt, run=recorder.finish(learnt, time.perf_counter() - began))
    notify(callbacks, FitEnded(history.ended))
    if learnt.run is not None:
        write_page(learnt.run, Known(plan.model, predictions, plan.source), callbacks)
    return learnt


def test(plan: Plan, temperature: float, callbacks: Sequence[Callback]) -> tuple[Predictions, Mapping[str, str]]:
    """The predictions of a plan's model for the test images, and those that could not be read, with the reason."""
    samples = plan.split.samples("test")
    if far := far_values(plan.source, samples, plan.preprocess.levels):
        notify(callbacks, Warned(far))
    cache = "disk" if plan.experiment.data.cache == "disk" else "off"  # for the next time
    loader = plan.loader(samples, cache=cache, shard=distributed.shard())
    progress = progress_of("testing", callbacks)
    predictions = collect_predictions(
        plan.model, loader, None, progress, temperature=temperature, seen=plan.seen, backend=plan.backend
    )
    return predictions, loader.unreadable


def resume(path: Path, epochs: int | None, callbacks: Sequence[Callback]) -> FitResult:
    """Resume the training of a run; see `Classifier.resume`."""
    distributed.join()
    run, callbacks = find_run(path), with_warnings(callbacks)
    with held(run) if distributed.is_main() else nullcontext():
        run = find_run(run.path)  # again, now that no other process writes to it
        experiment, data = read_experiment(run)
        begun = run.info.status not in ("running", "failed") or has_checkpoint(run.path / CHECKPOINT)
        state = load_checkpoint(run.path / CHECKPOINT, lambda text: notify(callbacks, Warned(text))) if begun else None
        if epochs is not None:
            experiment = with_train(experiment, epochs=epochs)
        _require_more(run, experiment.train.epochs, 0 if state is None else state["epoch"])
        return fit(Request(experiment, run=run, resume=True, state=state), data, callbacks)


def _require_more(run: Run, epochs: int | None, reached: int) -> None:
    """Raise `ConfigError` for a run that has nothing left to do; one that was killed during its test has."""
    done = run.info.status == "done"
    if epochs is not None and epochs >= reached + done:
        return
    untested = "" if run.info.metrics is not None else f", or see how good it is: imgclf evaluate --model {run.path}"
    if not untested and not (run.path / REPORT).exists():
        untested = f", or write its report: imgclf report {run.path}"
    raise ConfigError(f"{run.path} has finished {reached} epochs; train more with --epochs N{untested}")


def repeat(path: Path, callbacks: Sequence[Callback]) -> FitResult:
    """Train again from the start as a run did, writing nothing; see `Classifier.repeat`."""
    run = find_run(path)
    experiment, data = read_experiment(run)
    # As many epochs as the time limit allowed then, without a limit now.
    return fit(Request(with_train(experiment, minutes=None), run=run), data, callbacks)


def read_experiment(run: Run) -> tuple[ExperimentConfig, str]:
    """The experiment of a run, and the name of its data.

    Raises `ConfigError` if the data were a `Source` object, and for an ensemble, which was not trained as a whole.
    """
    if run.info.members:
        members = ", ".join(run.info.members)
        raise ConfigError(
            f"{run.path} is an ensemble, which was not trained as one; name one of its members: {members}"
        )
    values, data = run_config(run)
    if data is None:
        raise ConfigError(f"{run.path / CONFIG} names no data: a run on a Source of your own can't be trained again")
    experiment = from_dict(ExperimentConfig, values)
    find_arch(experiment.arch)  # a network of the user's own is asked for before any image is read
    return experiment, data


def tested(plan: Plan, part: str, result: Evaluation) -> Tested:
    """The event of a test of a plan's model on a part of its data."""

    def sample() -> Sequence[Any]:
        samples = pick_samples(plan.source.with_samples(plan.split.samples(part)), SHOWN_IMAGES)
        return preview_predictions(plan.model, plan.loader(samples, cache="off"))

    return Tested(part, result, sample)
