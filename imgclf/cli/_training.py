"""What `imgclf train` does and shows: progress on stderr, the result on stdout."""

from __future__ import annotations

import os
import shlex
import time
import traceback
from collections.abc import Mapping
from datetime import timedelta
from functools import singledispatchmethod
from itertools import chain
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn

from imgclf.cli import _console as console
from imgclf.cli._dry_run import show_plan
from imgclf.cli._output import output_folder, run_data
from imgclf.cli._results import figure, show_evaluation
from imgclf.core.errors import ConfigError
from imgclf.core.results import ENDED, Decision, EpochRecord
from imgclf.core.text import first_few, percent, plural, printable
from imgclf.data.dataset import SPLIT_NAMES
from imgclf.data.sources.folder import FileReader
from imgclf.estimator.classifier import Classifier
from imgclf.estimator.events import (
    DataSplit,
    DecisionsMade,
    ImagesChecked,
    LoaderMade,
    ProbeFitted,
    ReportFailed,
    ReportWritten,
    SourceOpened,
    Tested,
)
from imgclf.estimator.plan import PlanMade, RunReady
from imgclf.models.own import OWN
from imgclf.report.advice import Advice
from imgclf.report.text import initial_name, instead_of_epochs, never_better, valid_losses, why_kept
from imgclf.runtime import distributed
from imgclf.storage.run_folder import INFO, ROOT, SAMPLES, Run, config_source, find_run, open_run
from imgclf.storage.run_list import RunEntry, find_default, why_none
from imgclf.studies.dry_run import dry_run
from imgclf.studies.ensemble import fit_ensemble, require_members
from imgclf.studies.events import EnsembleValidated, NextTraining
from imgclf.tracking.tensorboard import TensorBoard
from imgclf.tracking.tracker import Tracker, tracker
from imgclf.training.events import (
    BaselineMeasured,
    BatchDivided,
    Callback,
    CaptureFailed,
    EpochEnded,
    Event,
    ImagesUnreadable,
    Progressed,
    ShowsWarnings,
    StepEnded,
    TrainingEnded,
    TrainingRetried,
    TrainingStarted,
    Warned,
)
from imgclf.training.state import TrainState

FEW = 30  # test images, of which one is more than three points
UNEVEN = 5
RARELY = 20  # steps
SHARED = (SourceOpened, ImagesChecked, DataSplit, LoaderMade)  # of the members of an ensemble


def run_training(data: str | None, changes: dict[str, Any], options: dict[str, Any]) -> None:
    """Train, and show the result; ends with 130 or 143 where training was interrupted."""
    if "ensemble" in options:
        require_members(options["ensemble"], "--ensemble")
    distributed.join()
    before, view, resumed = find_default(), TrainView(), "resume" in options
    data = _resumable(changes, options) if resumed else _named_data(data, options)
    recipe, where = options.get("recipe"), {"runs": options.get("runs", ROOT), "name": options.get("name")}
    if options.get("dry_run"):
        where |= {"members": options.get("ensemble", 1), "track": options.get("track", ())}
        with view.progress:
            plan = dry_run(data, recipe=recipe, config=changes, callbacks=[view], **where)
        show_plan(plan, as_json=options["json"])
        return
    try:
        with view.progress:
            told: list[Callback] = [view, *_trackers(data, options)]
            if resumed:
                classifier = Classifier().resume(data, epochs=options.get("epochs"), callbacks=told)
            elif members := options.get("ensemble"):
                classifier = fit_ensemble(data, members, recipe=recipe, config=changes, callbacks=told, **where)
            else:
                classifier = Classifier(recipe=recipe, config=changes).fit(data, callbacks=told, **where)
        if classifier.run_ is not None:  # else another process has it
            _show(classifier, view, options, before)
            warn_of_worse(before, find_default())
    except KeyboardInterrupt:
        _say_where_to_go_on(view.run)
        raise typer.Exit(console.Interruption.code) from None
    if classifier.history_.ended == "interrupted":
        raise typer.Exit(console.Interruption.code)


def _named_data(data: str | None, options: Mapping[str, Any]) -> str:
    """What to train on: as it is given, or as the config says."""
    data = data or (config_source(options["config"]) if "config" in options else None)
    if data is None:
        raise ConfigError(
            "there is nothing to train on: name a folder, a CSV file or a data set, as in `imgclf train digits`"
        )
    return data


def _say_where_to_go_on(run: Run | None) -> None:
    """After an interruption that left no time to end well."""
    if run is None or not (run.path / INFO).exists():
        console.say("interrupted; nothing is kept")
    elif open_run(run.path).info.status in ENDED:
        console.say("interrupted")
    else:
        console.say(f"interrupted; go on with: imgclf train --resume {shlex.quote(str(run.path))}")


def _trackers(data: str, options: Mapping[str, Any]) -> list[Tracker]:
    """One callback for all that --track names, or none; of several processes the first one tracks."""
    asked = options.get("track", ())
    if not asked or not distributed.is_main():
        return []
    images = run_data(find_run(data)) if "resume" in options else [data]
    for name, _, place in (each.partition("=") for each in asked):
        if name.strip() == TensorBoard.name and place.strip():
            output_folder(Path(place.strip()), "--track", data=images)
    return [tracker(*asked, warn=console.warn, say=lambda text: console.say(f"track: {text}"))]


def _resumable(changes: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The run folder to go on in; `ConfigError` for options that would change the run."""
    allowed = {"resume", "epochs", "track", "json"}
    if str(changes.get("arch", "")).startswith(OWN):
        allowed |= {"arch"}
    others = sorted(set(options) - allowed)
    if others:
        named = ", ".join("DATA" if key == "data" else "--" + key.replace("_", "-") for key in others)
        raise ConfigError(
            f"--resume continues a run with its own settings; only --epochs and --track can be added, not {named}"
        )
    return str(output_folder(find_run(options["resume"]).path, "--resume"))


def _show(classifier: Classifier, view: TrainView, options: Mapping[str, Any], before: RunEntry | None) -> None:
    run, test = classifier.run_, classifier.metrics_.get("test")
    assert run is not None
    console.warn_of_images(classifier.unreadable_, "left out, unreadable or changed since the check")
    interrupted = classifier.history_.ended == "interrupted"
    if interrupted:
        console.warn(f"interrupted; the best weights so far are kept; go on with: imgclf train --resume {run.path}")
    else:
        _say_claims(classifier)
    if options["json"]:
        console.show_json({**_summary(run), "report": None if view.page is None else str(view.page)})
        return
    if test is not None:
        show_evaluation(test, f"test: {plural(test.n, 'image')} held out")
        if test.n < FEW:
            console.warn(f"only {plural(test.n, 'test image')}: these figures are unreliable")
    if view.page is not None:
        console.show_page("report: ", view.page)
    info, advice, example = run.info, view.advice, _example(classifier, run)
    console.show(f"run:   {run.path}   ({info.seconds or 0:.0f} s in all, {info.train_seconds or 0:.0f} s training)")
    console.show(f"model: {run.model}")
    default = find_default()
    ours = default is not None and default.model == run.model
    if default is None:
        console.show(f"default: none, as {why_none()}")
    elif ours and before is not None and before.data != default.data:
        console.show(f"default: this run; before: {before.path} (other data: {before.data}). --model picks another")
    else:
        console.show(f"default: {'this run' if ours else default.path} ({default.reason})")
    if advice is not None and not interrupted:
        console.warn(advice.text)
        console.show(f"next:  {advice.command or advice.do}")
    elif example is not None:
        other = "" if ours else f" --model {shlex.quote(str(run.path))}"
        if classifier.model_config_.arch.startswith(OWN):
            other += f" --arch {shlex.quote(options['arch'])}"
        console.show(f"next:  imgclf predict {shlex.quote(str(example))}{other}")


def _summary(run: Run) -> dict[str, Any]:
    """The result of a run, as `--json` gives it."""
    info, metrics = run.info, run.info.metrics or {}
    return {
        "run": str(run.path),
        "model": str(run.model),
        "arch": info.arch,
        "classes": list(info.classes),
        "epochs": info.epochs,
        "seconds": {"total": info.seconds, "train": info.train_seconds},
        "valid": metrics.get("valid"),
        "test": metrics.get("test"),
    }


def warn_of_worse(before: RunEntry | None, after: RunEntry | None) -> None:
    """Warn where the default has become a run of lower accuracy on the same data than the default before."""
    if before is None or after is None or before.accuracy is None or after.accuracy is None:
        return
    if after.accuracy < before.accuracy and after.data == before.data:
        kept = f"; to keep that one: imgclf use {shlex.quote(before.name)}" if before.path != after.path else ""
        now, then = (f"{entry.path} ({figure(entry)})" for entry in (after, before))
        console.warn(f"the default is now {now}, before: {then}{kept}")


def _say_claims(classifier: Classifier) -> None:
    """What probabilities and refusals rest on, or why there are none."""
    uncalibrated, missing = classifier.manifest_.calibration["note"], classifier.manifest_.ood.get("missing")
    if uncalibrated and uncalibrated == missing:
        console.say(f"probabilities not calibrated, no predict --reject: {missing}")
        return
    if uncalibrated:
        console.say(f"probabilities not calibrated: {uncalibrated}")
    if missing:
        console.say(f"no predict --reject: {missing}")


def _example(classifier: Classifier, run: Run) -> Path | None:
    """Something to predict that can be typed: an image held out, if there is one also by its folder, or the samples of
    a set that lies in memory."""
    split, source = classifier.split_, classifier.source_
    if not isinstance(source.reader, FileReader):
        return run.path / SAMPLES
    train = {sample.ref for sample in source.samples if sample.split == "train"}
    samples = chain(*map(split.samples, ("test", "valid", "train")))
    folder = Path(source.location)
    ranked = sorted(samples, key=lambda sample: sample.ref in train)
    paths = ((folder if folder.is_dir() else folder.parent) / sample.ref for sample in ranked)
    return next((path for path in paths if path.is_file() and printable(str(path)) == str(path)), None)


class TrainView(ShowsWarnings):
    """Shows the events of `Classifier.fit` on stderr as they come: a callback."""

    def __init__(self) -> None:
        columns = ("{task.description}", BarColumn(30), MofNCompleteColumn(), "{task.fields[note]}")
        self.progress = console.bar(*columns, "{task.fields[left]}", hidden=not distributed.is_main())
        self._task = self.progress.add_task("", visible=False, note="", left="")
        self._began = self._bar_began = 0.0  # the epoch, and the bar
        self._bar_name = ""
        self._epochs = self._member = 0
        self._probed = False
        self._guess = 0.0  # the share of the commonest class
        self._choices: tuple[Decision, ...] = ()
        self.run: Run | None = None
        self.page: Path | None = None
        self.advice: Advice | None = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if not (self._member > 1 and isinstance(event, SHARED)):
            self._show(event)

    @singledispatchmethod
    def _show(self, event: Event) -> None:
        """Other events are not shown."""

    def waiting(self, what: str) -> None:
        """A sign of life while something without steps goes on."""
        self.progress.update(self._task, description=what, total=None, note="", left="", visible=True)

    def evaluating(self, done: int, n: int) -> None:
        """Progress of the test."""
        self._bar("testing", done, n)

    @_show.register
    def _on_progress(self, event: Progressed) -> None:
        self._bar(event.task, event.done, event.total)

    def searching(self, done: int, n: int) -> None:
        """Progress of steps that are only tried; where there is no bar, lines now and then."""
        self._bar("trying rates", done, n)
        if self.progress.disable and done % RARELY == 0:
            console.say(f"       {done} of {n} steps")

    def _bar(self, what: str, done: int, n: int, note: str = "", seconds_left: float | None = None) -> None:
        """A bar of `what`; the time left is that of this bar, unless `seconds_left` says otherwise."""
        now = time.perf_counter()
        if what != self._bar_name:
            self._bar_name, self._bar_began = what, now
        if seconds_left is None:
            seconds_left = (now - self._bar_began) / max(done, 1) * (n - done)
        left = f"{timedelta(seconds=round(seconds_left))} left"
        self.progress.update(
            self._task, description=what, completed=done, total=n, note=note, left=left, visible=done < n
        )

    @_show.register
    def _on_test(self, event: Tested) -> None:
        if event.part == "test":
            self.waiting("finishing")

    @_show.register
    def _on_report(self, event: ReportWritten) -> None:
        self.page, self.advice = event.path, event.advice

    @_show.register
    def _on_failed_report(self, event: ReportFailed) -> None:
        if os.environ.get("IMGCLF_DEBUG"):
            for line in "".join(traceback.format_exception(event.error)).splitlines():
                console.say(line)
        for text in event.warnings:
            console.warn(text)

    @_show.register
    def _on_member(self, event: NextTraining) -> None:
        self._member = event.number
        console.say(f"member {self._member} of {event.total}", "bold")

    @_show.register
    def _on_ensemble(self, event: EnsembleValidated) -> None:
        results = event.results
        names = [*(f"member {number}" for number in range(1, len(results))), "together"]
        console.say("on the validation images", "bold")
        for name, result in zip(names, results, strict=True):
            console.say(f"       {name:10}  {percent(result.accuracy):>7} correct, loss {result.loss:.3f}")

    @_show.register
    def _on_warning(self, event: Warned) -> None:
        console.warn(event.text)

    @_show.register
    def _on_run(self, event: RunReady) -> None:
        self.run = event.run

    @_show.register
    def _on_source(self, event: SourceOpened) -> None:
        source = event.source
        images, classes = plural(len(source), "image"), plural(len(source.classes), "class")
        console.say(f"data:  {source.name}: {images}, {classes} ({first_few(source.classes)})")
        for note in source.notes:
            console.say(f"       {note}")
        if source.skipped:
            console.say("       ignored:")
            console.say_list(source.skipped)

    @_show.register
    def _on_audit(self, event: ImagesChecked) -> None:
        audit = event.audit
        reasons = {bad.ref: bad.reason for bad in audit.unreadable}
        console.warn_of_images(reasons, "can't be read and will be left out")
        for finding in audit.findings:
            console.warn(finding)
        counts = sorted(audit.source.counts().items(), key=lambda item: item[1])
        (rarest, few), (_, many) = counts[0], counts[-1]
        self._guess = many / len(audit.source)
        if many >= UNEVEN * few:
            console.warn(f"classes are uneven, from {few:,} ({rarest}) to {many:,}: look at the balanced accuracy")

    @_show.register
    def _on_split(self, event: DataSplit) -> None:
        split = event.split
        sizes = ", ".join(f"{name} {len(split.samples(name)):,}" for name in SPLIT_NAMES)
        console.say(f"split: {sizes}")
        for note in split.notes:
            console.say(f"       {note}")
        for finding in split.findings:
            console.warn(finding)

    @_show.register
    def _on_plan(self, event: PlanMade) -> None:
        plan = event.plan
        config = plan.experiment.train
        if self._member > 1:
            console.say(f"       the same images and network, seed {config.seed}")
            return
        parameters = sum(p.numel() for p in plan.model.parameters())
        height, width = plan.preprocess.size
        colors = "gray" if plan.preprocess.channels == 1 else f"{plan.preprocess.channels} channels"
        start = plan.weights.source.removeprefix("from ")
        console.say(f"model: {plan.spec.arch}, {parameters:,} parameters, {height}×{width}, {colors}, from {start}")
        by = "; inference by OpenVINO" if plan.backend == "openvino" else ""
        console.say(f"device: {plan.device}, {str(plan.dtype).removeprefix('torch.')}{by}")
        if plan.would_gain_from_openvino:
            console.say('        pip install "imgclf[openvino]" makes predictions 2 to 4 times as fast here', "dim")
        if plan.weights.note:  # only what is not as it was asked for is an alarm
            (console.warn if plan.weights.head == "fresh" else console.say)(plan.weights.note)
        if config.epochs == 0:
            console.say("train: a linear probe only (linear head on frozen features)")
            return
        epochs, augment = plural(config.epochs or 0, "epoch"), plan.experiment.augment
        steps = f"{config.optimizer} lr {config.lr:g} {config.schedule}, batch {config.batch_size}"
        console.say(f"train: {epochs}, {steps}, augmentation {augment}, seed {config.seed}")

    @_show.register
    def _on_probe(self, event: ProbeFitted) -> None:
        probe = event.probe
        if probe.note:
            console.say(f"probe: not measured: {probe.note}")
            return
        how = f"linear head on frozen features, cross-validated, {probe.seconds:.0f} s"
        console.say(f"probe: {probe.accuracy:.1%} ± {100 * probe.error:.1f} ({how})")
        if probe.accuracy - 2 * probe.error <= self._guess:
            console.warn(
                f"no better than to call every image the commonest class ({self._guess:.1%}): "
                "are the images large enough (--size), and the labels right?"
            )

    @_show.register
    def _on_decisions(self, event: DecisionsMade) -> None:
        new = [choice for choice in event.decisions if choice not in self._choices]
        self._choices = event.decisions
        if new:
            console.say()
        width = max((len(choice.value) for choice in new), default=0)
        for choice in new:
            console.say_beside(f"       {choice.name:13}  {choice.value:{width}}  ", choice.reason)

    @_show.register
    def _on_baseline(self, event: BaselineMeasured) -> None:
        result = event.result
        if self._epochs:
            name = "probe" if self._probed else "init"
            console.say(f"{name:>6}  {'':10}  {'':8}  {result.loss:10.4f}  {result.accuracy:8.1%}")
        else:
            console.say(f"valid: {percent(result.accuracy)} of {plural(result.n, 'image')}, loss {result.loss:.3f}")

    @_show.register
    def _on_loader(self, event: LoaderMade) -> None:
        console.say(f"cache: {event.loader.cache_level}")

    @_show.register
    def _on_divided_batch(self, event: BatchDivided) -> None:
        planned, size = -(-event.batch_size // distributed.world_size()), event.micro_batch_size  # of this process
        parts = f"{planned} → {-(-planned // size)} × {size}"
        console.warn(f"too little memory for a whole batch: {parts}, same gradient")

    @_show.register
    def _on_failed_capture(self, event: CaptureFailed) -> None:
        console.warn(f"the step can't be captured as a CUDA graph, and is taken operation by operation: {event.reason}")

    @_show.register
    def _on_start(self, event: TrainingStarted) -> None:
        state = event.state
        self._epochs, self._probed = state.epochs, bool(state.config.probe)
        if state.epoch or state.batch_index:
            within = f", step {state.batch_index} of {state.steps_per_epoch}" if state.batch_index else ""
            console.say(f"       continuing after epoch {state.epoch}{within}")
        if state.epochs:
            console.say("")
            console.say(" epoch  train loss  accuracy  valid loss  accuracy  lr at end  seconds", "bold")
            self.waiting("first step")
        self._began = time.perf_counter()

    @_show.register
    def _on_step(self, event: StepEnded) -> None:
        state = event.state
        seconds = time.perf_counter() - self._began
        note = f"{state.images / max(seconds, 1e-9):,.0f} images/s, loss {state.loss:.4f}"
        left = _seconds_left(state, seconds)
        self._bar(f"epoch {state.epoch + 1}/{state.epochs}", state.step, state.steps_per_epoch, note, left)

    @_show.register
    def _on_epoch(self, event: EpochEnded) -> None:
        console.say(_row(event.record))
        self._began = time.perf_counter()

    @_show.register
    def _on_unreadable(self, event: ImagesUnreadable) -> None:
        console.warn_of_images(event.reasons, "left out, unreadable or changed since the check")

    @_show.register
    def _on_retry(self, event: TrainingRetried) -> None:
        state = event.state
        console.warn(
            f"epoch {state.epoch + 1}: the loss is not finite; back to the last good weights, learning rate halved "
            f"(retry {state.retries})"
        )

    @_show.register
    def _on_end(self, event: TrainingEnded) -> None:
        state = event.state
        if state.ended == "stopped early":
            console.say(f"stopped early: no better epoch for {state.config.patience}")
        best = state.result().best
        if best is None and state.best and state.epochs:
            how = never_better(valid_losses(state.result()), state.best_loss)
            probed = bool(state.config.probe)
            console.say(f"kept:  {initial_name(probed=probed)} (valid loss {state.best_loss:.4f}): {how}")
            if state.ended != "interrupted":
                console.say(f"       {instead_of_epochs(len(state.result()), state.ended, probed=probed)}")
        if best is not None and best.valid_loss is not None:
            console.say(f"kept:  epoch {best.epoch} ({why_kept(state.result())}{best.valid_loss:.4f})")
        console.say("")


def _row(record: EpochRecord) -> str:
    valid, saved = f"{'–':>10}  {'–':>8}", ""
    if record.valid_loss is not None:
        valid = f"{record.valid_loss:10.4f}  {record.valid_accuracy:8.1%}"
        saved = "  saved" if record.best else ""
    train = f"{record.epoch:6d}  {record.train_loss:10.4f}  {record.train_accuracy:8.1%}"
    return f"{train}  {valid}  {record.lr:9.2g}  {record.seconds:7.1f}{saved}"


def _seconds_left(state: TrainState, seconds: float) -> float:
    """How long training goes on, if no epoch is left out, where this one has taken so many seconds."""
    known = [record.seconds for record in state.history]
    epoch = sum(known[-3:]) / len(known[-3:]) if known else seconds * state.steps_per_epoch / max(state.step, 1)
    return epoch * (state.epochs - state.epoch - state.step / state.steps_per_epoch)
