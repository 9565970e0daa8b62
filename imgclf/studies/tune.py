"""Search for better settings: Optuna's TPE over a few that matter, with bad trials cut short."""

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
from imgclf.data.split import Split
from imgclf.data.write import require_outside
from imgclf.estimator.classifier import Classifier
from imgclf.estimator.plan import Plan, make_plan, open_and_split
from imgclf.estimator.settings import Request
from imgclf.storage.run_folder import STEM_LENGTH, require_free, write_config
from imgclf.studies.events import NextTraining
from imgclf.training.events import BaselineMeasured, Callback, EpochEnded, Event, StepEnded, notify

if TYPE_CHECKING:
    import optuna

FACTOR = 10  # of the usual learning rate and weight decay, up and down
AUGMENTS = ("none", "light", "standard", "strong")
STARTED = 5  # trials that are drawn at random and never cut short
ENOUGH = STARTED + 1  # complete trials, to tell what matters
ENDS = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "diverged"}
# What may differ when a search goes on: where and how fast it computes, and not what.
MACHINERY = {"keep", "data", "checkpoint_every", "workers", "device", "precision", "compile"}


@dataclass(frozen=True)
class Trial:
    """One trial: its number from 0, how it ended (complete, pruned, diverged), the valid loss of its best epoch if
    complete, the settings that were tried, and whether they are the `usual` ones, of training without a search.

    `start_kept` says that no epoch was better than the start by more than chance: training would keep the start.
    """

    number: int
    ended: str
    loss: float | None
    values: Mapping[str, Any]
    usual: bool = False
    start_kept: bool = False


@dataclass(frozen=True)
class TrialEnded(Event):
    """A trial has ended."""

    trial: Trial


@dataclass(frozen=True)
class Tuning:
    """All trials of a network on some data, the best first; how much each setting matters (0…1, empty with too few
    trials), the file of the best settings, and how the search ended (`done`, `out of time`, `interrupted`).

    `start` is the valid loss before the first step, where the head knows the classes by then (as that of the baseline
    does): training keeps this start unless an epoch is better by more than chance. Else it is None.
    """

    data: str
    arch: str
    trials: tuple[Trial, ...]
    start: float | None
    importances: Mapping[str, float]
    config: str
    ended: str = "done"

    @property
    def usual_loss(self) -> float | None:
        """The valid loss that training has without a search: of the start, where that is kept."""
        usual = next((trial for trial in self.trials if trial.usual), None)
        return None if usual is None else self.start if usual.start_kept else usual.loss

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form."""
        return asdict(self)


@dataclass(frozen=True)
class _Search:
    """What the trials have in common. `settings` are the usual values of what is tuned, `name` is that of the data."""

    study: optuna.Study
    data: str
    name: str
    usual: ExperimentConfig
    settings: Mapping[str, Any]
    deadline: float
    callbacks: Sequence[Callback]


class _TimeIsUp(Exception):
    """The whole of the search has taken its time."""


def tune(
    data: str | os.PathLike[str],
    changes: Mapping[str, Any],
    *,
    recipe: str | None = None,
    trials: int = 20,
    minutes: float | None = None,
    folder: str | os.PathLike[str] = "runs",
    callbacks: Sequence[Callback] = (),
) -> Tuning:
    """Try `trials` settings of the training of `data`, in all, and write the best one to `folder`/tune-NAME.toml.

    The first trial is training as it would be without a search, and is never cut short. All have the same split, and
    are judged by their lowest valid loss; the test part is not looked at. Trials that beat the start come before all
    others. A trial that is worse than half of the others after as many epochs is ended. `folder`/tune-NAME.db remembers
    the trials: the same call goes on. No trial begins that would not end within `minutes`, as long as others took; one
    that is under way then, or at Ctrl-C, is not counted, and comes first when the search goes on. `callbacks` hear of
    the plan, of each trial and of its steps.

    Raises `MissingExtra` without Optuna, `ConfigError` for data without a valid part, for trials of other settings in
    that file and where no trial was finished in time, and what training raises.
    """
    _optuna()
    data, folder, trials = str(as_path("data", data)), as_path("folder", folder), whole("trials", trials, 1)
    minutes = math.inf if minutes is None else plain(minutes)
    if not isinstance(minutes, int | float) or not minutes > 0:
        raise ConfigError(f"minutes is {minutes!r}; allowed: a number above 0")
    require_free(folder, None)
    deadline = time.monotonic() + 60 * minutes
    request = Request(recipe, changes)
    audited, split = open_and_split(request, data, callbacks)
    plan, source = make_plan(request, audited, split, callbacks), audited.source
    if not split.samples("valid"):
        raise ConfigError("there are no valid images to judge a trial by; give some in --split, as in 70/15/15")
    if not plan.experiment.train.epochs:
        raise ConfigError("there are no epochs to tune: choose another --recipe than probe, or more --epochs")
    require_outside(folder, source)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source.name).name)[:STEM_LENGTH]
    base = folder / f"tune-{stem}"
    for result in (Path(f"{base}.toml"), Path(f"{base}.png")):
        if result.exists() and not Path(f"{base}.db").exists():
            raise ConfigError(f"{result} already exists, and is of no search that goes on: move it away")
    base.parent.mkdir(parents=True, exist_ok=True)
    settings = _usual_settings(plan)
    study = _open_study(Path(f"{base}.db"), plan, split)
    search = _Search(study, data, source.name, plan.experiment, settings, deadline, callbacks)
    if not any(t.user_attrs.get("usual") and (t.state.name == "WAITING" or _counts(t)) for t in study.trials):
        study.enqueue_trial(settings, user_attrs={"usual": True})
    return _result(search, Path(f"{base}.toml"), _go_on(search, trials))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra("tune", "searches for settings") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open_study(path: Path, plan: Plan, split: Split) -> optuna.Study:
    """The study in a file, which is made if it is not there; `ConfigError` for one of other settings or no study."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    asked = json.loads(json.dumps({**_flat(to_dict(plan.experiment)), "images": split.digest}))
    try:
        study = optuna.create_study(
            study_name=path.stem,
            storage=optuna.storages.RDBStorage(f"sqlite:///{path}", {"poolclass": NullPool}),  # else files stay open
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTED, n_warmup_steps=1),
            load_if_exists=True,
        )
        known = study.user_attrs.get("asked")
        begun = len(study.trials)
        if not begun:
            study.set_user_attr("asked", known := asked)
    except (SQLAlchemyError, RuntimeError) as error:  # RuntimeError: written by another version of Optuna
        reason = str(getattr(error, "orig", error)).splitlines()[0]
        raise ConfigError(
            f"{path} can't be used for the trials: {reason}; move it away, or name other --runs"
        ) from None
    if known != asked:
        others = sorted(key for key, value in asked.items() if (known or {}).get(key, ...) != value)
        raise ConfigError(
            f"{path} holds trials with other settings ({', '.join(others)}): ask for the same, name other --runs, or "
            "delete it"
        )
    # A search that goes on must not draw the same random settings again.
    study.sampler = optuna.samplers.TPESampler(seed=plan.experiment.train.seed + begun, n_startup_trials=STARTED)
    return study


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an experiment that make a difference to its result, with those of training among them."""
    return {key: value for key, value in {**values, **values["train"]}.items() if key not in MACHINERY | {"train"}}


def _usual_settings(plan: Plan) -> dict[str, Any]:
    """What is tuned, as it would be without a search; the decay with depth only where the layers know something."""
    train = plan.experiment.train
    settings: dict[str, Any] = {name: getattr(train, name) for name in ("lr", "weight_decay", "label_smoothing")}
    settings["augment"] = plan.experiment.augment
    return {**settings, "layer_decay": train.layer_decay} if plan.pretrained else settings


def _suggest(trial: optuna.Trial, usual: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one trial, around the usual ones."""
    lr, decay, smoothing, augment = (usual[name] for name in ("lr", "weight_decay", "label_smoothing", "augment"))
    lowest, highest = (decay / FACTOR, min(10.0, decay * FACTOR)) if decay else (0.0, 0.3)
    settings = {
        "lr": trial.suggest_float("lr", lr / FACTOR, min(1e3, lr * FACTOR), log=True),
        "weight_decay": trial.suggest_float("weight_decay", lowest, highest, log=bool(decay)),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, max(0.2, smoothing)),
        "augment": trial.suggest_categorical("augment", list(dict.fromkeys((augment, *AUGMENTS)))),
    }
    if "layer_decay" in usual:
        settings["layer_decay"] = trial.suggest_float("layer_decay", min(0.5, usual["layer_decay"]), 1.0)
    return settings


def _with(usual: ExperimentConfig, settings: Mapping[str, Any]) -> ExperimentConfig:
    train = {key: value for key, value in settings.items() if key != "augment"}
    return replace(usual, augment=settings["augment"], train=replace(usual.train, **train))


def _go_on(search: _Search, trials: int) -> str:
    """Run trials until there are so many in all, the time is up or a signal came; says which."""
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
            _put_back(study, trial)
            if isinstance(end, _TimeIsUp):
                return "out of time"
            if isinstance(end, KeyboardInterrupt):
                return "interrupted"
            raise
        study.tell(trial, loss, state=getattr(optuna.trial.TrialState, state))
        notify(search.callbacks, TrialEnded(_as_value(study.trials[trial.number], done)))
    return "done"


def _expected_seconds(study: optuna.Study) -> float:
    """How long a trial takes that is not cut short; 0 before the first."""
    known = [t.duration.total_seconds() for t in study.trials if t.state.name == "COMPLETE" and t.duration is not None]
    return median(known) if known else 0.0


def _put_back(study: optuna.Study, trial: optuna.Trial) -> None:
    """A trial that did not come to its end is the next one when the search goes on."""
    import optuna

    if trial.params:
        study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
    trial.set_user_attr("cut", True)
    study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _run_trial(search: _Search, trial: optuna.Trial) -> tuple[str, float | None]:
    """How a trial ended, and its lowest valid loss. Raises `_TimeIsUp`, and `KeyboardInterrupt` where a signal came."""
    import optuna

    experiment = _with(search.usual, _suggest(trial, search.settings))

    def watch(event: Event) -> None:
        match event:
            case StepEnded():
                notify(search.callbacks, event)
                if time.monotonic() > search.deadline:
                    raise _TimeIsUp
            case BaselineMeasured(result=result) if "start" not in search.study.user_attrs:
                search.study.set_user_attr("start", result.loss)
            case EpochEnded(state=state) if event.record.valid_loss is not None:
                trial.report(event.record.valid_loss, state.epoch)
                if state.epoch < state.epochs and not trial.user_attrs.get("usual") and trial.should_prune():
                    raise optuna.TrialPruned

    try:
        classifier = Classifier(recipe=experiment).fit(search.data, callbacks=[watch])
    except optuna.TrialPruned:
        return "PRUNED", None
    except TrainingDiverged:
        return "FAIL", None
    if classifier.history_.ended == "interrupted":
        raise KeyboardInterrupt
    history = classifier.history_
    if history.best is None:  # the start was kept: its loss would make all such trials alike
        trial.set_user_attr("start_kept", True)
        return "COMPLETE", min(record.valid_loss for record in history if record.valid_loss is not None)
    return "COMPLETE", history.best.valid_loss


def _counts(trial: Any) -> bool:
    """Whether a trial came to an end of its own."""
    return bool(trial.state.is_finished()) and not trial.user_attrs.get("cut")


def _as_value(trial: Any, number: int) -> Trial:
    loss = trial.value if trial.state.name == "COMPLETE" else None
    marks = {name: bool(trial.user_attrs.get(name)) for name in ("usual", "start_kept")}
    return Trial(number, ENDS[trial.state.name], loss, dict(trial.params), **marks)


def _result(search: _Search, path: Path, ended: str) -> Tuning:
    import optuna

    trials = [_as_value(trial, number) for number, trial in enumerate(filter(_counts, search.study.trials))]
    done = sorted((t for t in trials if t.loss is not None), key=lambda t: (t.start_kept, t.loss or 0.0, t.number))
    if not done and ended == "interrupted":
        raise KeyboardInterrupt
    if not done:
        raise ConfigError("no trial was finished: give more --minutes, or fewer --epochs")
    importances: dict[str, float] = {}
    if len(done) >= ENOUGH and len({trial.loss for trial in done}) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        importances = optuna.importance.get_param_importances(search.study, evaluator=evaluator)
    write_config(path, from_dict(ExperimentConfig, to_dict(_with(search.usual, done[0].values))), search.data)
    others = [trial for trial in trials if trial.loss is None]
    arch, start = search.usual.arch, search.study.user_attrs.get("start")
    return Tuning(search.name, arch, (*done, *others), start, importances, str(path), ended)
