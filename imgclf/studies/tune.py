"""Search for better settings: Optuna's TPE over the few that matter most, with poor trials pruned."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from imgclf.core.arguments import as_path, plain, whole
from imgclf.core.config import ExperimentConfig, from_dict, to_dict
from imgclf.core.errors import ConfigError, MissingExtra, TrainingDiverged
from imgclf.data.write import require_outside
from imgclf.estimator.classifier import Classifier
from imgclf.estimator.plan import Plan, plan_training
from imgclf.estimator.settings import Request, with_train
from imgclf.storage.run_folder import STEM_LENGTH, require_free, write_config
from imgclf.studies.events import NextTraining
from imgclf.training.events import BaselineMeasured, Callback, EpochEnded, Event, StepEnded, notify

if TYPE_CHECKING:
    import optuna

FACTOR = 10  # of the default learning rate and weight decay, up and down
AUGMENTS = ("none", "light", "standard", "strong")
STARTUP_TRIALS = 5  # that are drawn at random and never pruned
MIN_IMPORTANCE_TRIALS = STARTUP_TRIALS + 1  # complete ones, to tell how much each setting matters
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "diverged"}
# What may differ when a search is resumed: where and how fast it computes, and not what.
MACHINERY = {"keep", "data", "checkpoint_every", "workers", "device", "precision", "compile"}


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        number: From 0.
        ended: `complete`, `pruned` or `diverged`.
        loss: The validation loss of its best epoch, if complete.
        values: The settings.
        default: Whether they are the defaults, of training without a search.
        initial_kept: Whether no epoch was significantly better than the initial model, which training would keep.
    """

    number: int
    ended: str
    loss: float | None
    values: Mapping[str, Any]
    default: bool = False
    initial_kept: bool = False


@dataclass(frozen=True)
class TrialEnded(Event):
    """A trial has ended."""

    trial: Trial


@dataclass(frozen=True)
class Tuning:
    """The result of a search.

    Attributes:
        data: The name of the data.
        arch: The network.
        trials: All trials, the best first.
        initial_loss: The validation loss before the first step, None if the head is random then. Training keeps the
            initial model unless an epoch is significantly better.
        importances: How much each setting matters (0…1, in total 1); empty with too few trials.
        config: The file of the best settings.
        ended: `done`, `out of time` or `interrupted`.
    """

    data: str
    arch: str
    trials: tuple[Trial, ...]
    initial_loss: float | None
    importances: Mapping[str, float]
    config: str
    ended: str = "done"

    @property
    def default_loss(self) -> float | None:
        """The validation loss of training without a search."""
        default = next((trial for trial in self.trials if trial.default), None)
        return None if default is None else self.initial_loss if default.initial_kept else default.loss

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form."""
        return asdict(self)


@dataclass(frozen=True)
class _Search:
    """The common values of the trials. `defaults` are the default values of the tuned settings."""

    study: optuna.Study
    data: str
    plan: Plan
    defaults: Mapping[str, Any]
    deadline: float
    callbacks: Sequence[Callback]


class _OutOfTime(Exception):
    """The search has used its time."""


def tune(
    data: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    config: Mapping[str, Any] | None = None,
    trials: int = 20,
    minutes: float | None = None,
    folder: str | os.PathLike[str] = "runs",
    callbacks: Sequence[Callback] = (),
) -> Tuning:
    """Try settings of training, and write the best ones to `folder`/tune-NAME.toml.

    All trials have the same split and are ranked by their lowest validation loss; test images are not used. Trials that
    beat the initial model come first. The first trial has the default settings and is never pruned. Others are pruned
    when they are worse than half of the trials after as many epochs.

    The trials are stored in `folder`/tune-NAME.db: the same call resumes the search. A trial that was interrupted comes
    first then. With `minutes`, no trial begins that would not finish in time, judged by the ones before.

    Args:
        data: What to train on.
        recipe: The name of a recipe.
        config: Changes of it, as for `Classifier`.
        trials: The number of trials in total.
        minutes: The time limit.
        folder: Where to write.
        callbacks: Functions that get the events: of the plan, of each trial, and of its steps.

    Raises:
        MissingExtra: Optuna is not installed.
        ConfigError: There are no validation images, the file holds trials of other settings, or no trial finished.
    """
    _require_optuna()
    data, folder, trials = str(as_path("data", data)), as_path("folder", folder), whole("trials", trials, 1)
    minutes = math.inf if minutes is None else plain(minutes)
    if not isinstance(minutes, int | float) or not minutes > 0:
        raise ConfigError(f"minutes is {minutes!r}; allowed: a number above 0")
    require_free(folder, None)
    deadline = time.monotonic() + 60 * minutes
    plan = plan_training(Request(recipe, config or {}), data, callbacks)
    if not plan.split.samples("valid"):
        raise ConfigError("no validation images to rank trials by: give some in --split, as in 70/15/15")
    if not plan.experiment.train.epochs:
        raise ConfigError("there are no epochs to tune: choose another --recipe than probe, or more --epochs")
    require_outside(folder, plan.source)
    base = folder / f"tune-{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(plan.source.name).name)[:STEM_LENGTH]}"
    for result in (Path(f"{base}.toml"), Path(f"{base}.png")):
        if result.exists() and not Path(f"{base}.db").exists():
            raise ConfigError(f"{result} already exists, and there is no search to resume: move it away")
    folder.mkdir(parents=True, exist_ok=True)
    search = _Search(_open_study(Path(f"{base}.db"), plan), data, plan, _defaults(plan), deadline, callbacks)
    waiting = [t for t in search.study.trials if t.user_attrs.get("default")]
    if not any(t.state.name == "WAITING" or _counts(t) for t in waiting):
        search.study.enqueue_trial(dict(search.defaults), user_attrs={"default": True})
    return _result(search, Path(f"{base}.toml"), _run_trials(search, trials))


def _require_optuna() -> None:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra("tune", "searches for settings") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _open_study(path: Path, plan: Plan) -> optuna.Study:
    """The study in a file, new or resumed; `ConfigError` if it has other settings or the file is no study."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    values = to_dict(plan.experiment)
    settings = {key: value for key, value in {**values, **values["train"]}.items() if key not in MACHINERY | {"train"}}
    settings = json.loads(json.dumps({**settings, "images": plan.split.digest}))
    try:
        study = optuna.create_study(
            study_name=path.stem,
            storage=optuna.storages.RDBStorage(f"sqlite:///{path}", {"poolclass": NullPool}),  # else files stay open
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1),
            load_if_exists=True,
        )
        begun = len(study.trials)
        if not begun:
            study.set_user_attr("settings", settings)
        known = study.user_attrs.get("settings", {})
    except (SQLAlchemyError, RuntimeError) as error:  # RuntimeError: written by another version of Optuna
        reason = str(getattr(error, "orig", error)).splitlines()[0]
        raise ConfigError(f"can't use {path} for the trials: {reason}; move it away, or give other --runs") from None
    others = sorted(key for key, value in settings.items() if known.get(key, ...) != value)
    if others:
        raise ConfigError(
            f"{path} has trials with other settings ({', '.join(others)}): use the same settings, give other --runs, "
            "or delete it"
        )
    # A resumed search must not draw the same random settings again.
    seed = plan.experiment.train.seed + begun
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    return study


def _defaults(plan: Plan) -> dict[str, Any]:
    """The tuned settings with their default values; the layer decay only for pretrained weights."""
    names = ["lr", "weight_decay", "label_smoothing", *(["layer_decay"] if plan.pretrained else [])]
    return {**{name: getattr(plan.experiment.train, name) for name in names}, "augment": plan.experiment.augment}


def _suggest(trial: optuna.Trial, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one trial, around the defaults."""
    lr, decay, smoothing, augment = (defaults[name] for name in ("lr", "weight_decay", "label_smoothing", "augment"))
    lowest, highest = (decay / FACTOR, min(10.0, decay * FACTOR)) if decay else (0.0, 0.3)
    settings = {
        "lr": trial.suggest_float("lr", lr / FACTOR, min(1e3, lr * FACTOR), log=True),
        "weight_decay": trial.suggest_float("weight_decay", lowest, highest, log=bool(decay)),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, max(0.2, smoothing)),
        "augment": trial.suggest_categorical("augment", list(dict.fromkeys((augment, *AUGMENTS)))),
    }
    if "layer_decay" in defaults:
        settings["layer_decay"] = trial.suggest_float("layer_decay", min(0.5, defaults["layer_decay"]), 1.0)
    return settings


def _with(experiment: ExperimentConfig, settings: Mapping[str, Any]) -> ExperimentConfig:
    train = {key: value for key, value in settings.items() if key != "augment"}
    return with_train(replace(experiment, augment=settings["augment"]), **train)


def _run_trials(search: _Search, trials: int) -> str:
    """Run trials up to this number in total; returns how the search ended."""
    import optuna

    study = search.study
    while (done := sum(map(_counts, study.trials))) < trials:
        if time.monotonic() + _expected_seconds(study) > search.deadline:
            return "out of time"
        trial = study.ask()
        notify(search.callbacks, NextTraining(done + 1, trials))
        try:
            state, loss = _run_trial(search, trial)
        except BaseException as end:
            if trial.params:  # it comes first when the search is resumed
                study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
            trial.set_user_attr("interrupted", True)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if isinstance(end, _OutOfTime):
                return "out of time"
            if isinstance(end, KeyboardInterrupt):
                return "interrupted"
            raise
        study.tell(trial, loss, state=getattr(optuna.trial.TrialState, state))
        notify(search.callbacks, TrialEnded(_as_value(study.trials[trial.number], done)))
    return "done"


def _expected_seconds(study: optuna.Study) -> float:
    """How long a trial takes that is not pruned; 0 before the first."""
    known = [t.duration.total_seconds() for t in study.trials if t.state.name == "COMPLETE" and t.duration is not None]
    return median(known) if known else 0.0


def _run_trial(search: _Search, trial: optuna.Trial) -> tuple[str, float | None]:
    """How a trial ended, and its lowest validation loss; raises `_OutOfTime`, and `KeyboardInterrupt` on a signal."""
    import optuna

    experiment = _with(search.plan.experiment, _suggest(trial, search.defaults))

    def watch(event: Event) -> None:
        match event:
            case StepEnded():
                notify(search.callbacks, event)
                if time.monotonic() > search.deadline:
                    raise _OutOfTime
            case BaselineMeasured(result=result) if "initial_loss" not in search.study.user_attrs:
                search.study.set_user_attr("initial_loss", result.loss)
            case EpochEnded(state=state) if event.record.valid_loss is not None:
                trial.report(event.record.valid_loss, state.epoch)
                if state.epoch < state.epochs and not trial.user_attrs.get("default") and trial.should_prune():
                    raise optuna.TrialPruned

    try:
        history = Classifier(recipe=experiment).fit(search.data, callbacks=[watch]).history_
    except optuna.TrialPruned:
        return "PRUNED", None
    except TrainingDiverged:
        return "FAIL", None
    if history.ended == "interrupted":
        raise KeyboardInterrupt
    if history.best is not None:
        return "COMPLETE", history.best.valid_loss
    trial.set_user_attr("initial_kept", True)  # the loss of the initial model would make all such trials alike
    return "COMPLETE", min(record.valid_loss for record in history if record.valid_loss is not None)


def _counts(trial: Any) -> bool:
    """Whether a trial came to an end of its own."""
    return bool(trial.state.is_finished()) and not trial.user_attrs.get("interrupted")


def _as_value(trial: Any, number: int) -> Trial:
    loss = trial.value if trial.state.name == "COMPLETE" else None
    marks = {name: bool(trial.user_attrs.get(name)) for name in ("default", "initial_kept")}
    return Trial(number, STATES[trial.state.name], loss, dict(trial.params), **marks)


def _result(search: _Search, path: Path, ended: str) -> Tuning:
    import optuna

    trials = [_as_value(trial, number) for number, trial in enumerate(filter(_counts, search.study.trials))]
    done = sorted((t for t in trials if t.loss is not None), key=lambda t: (t.initial_kept, t.loss or 0.0, t.number))
    if not done and ended == "interrupted":
        raise KeyboardInterrupt
    if not done:
        raise ConfigError("no trial finished: give more --minutes, or fewer --epochs")
    importances: dict[str, float] = {}
    if len(done) >= MIN_IMPORTANCE_TRIALS and len({trial.loss for trial in done}) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        importances = optuna.importance.get_param_importances(search.study, evaluator=evaluator)
    experiment = search.plan.experiment
    write_config(path, from_dict(ExperimentConfig, to_dict(_with(experiment, done[0].values))), search.data)
    ranked = (*done, *(trial for trial in trials if trial.loss is None))
    initial_loss = search.study.user_attrs.get("initial_loss")
    return Tuning(search.plan.source.name, experiment.arch, ranked, initial_loss, importances, str(path), ended)
