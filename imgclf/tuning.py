"""Search for better settings: Optuna's TPE over a few that matter, with bad trials cut short."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgclf.classifier import Classifier
from imgclf.errors import ConfigError, MissingExtra, TrainingDiverged
from imgclf.plan import plan_training
from imgclf.run import write_config
from imgclf.specs import Experiment, from_dict, to_dict
from imgclf.training.callbacks import Callback, TrainState

if TYPE_CHECKING:
    import optuna

FACTOR = 10  # of the usual learning rate, up and down
AUGMENTS = ("none", "light", "standard", "strong")
STARTED = 5  # trials that are drawn at random and never cut short


@dataclass(frozen=True)
class Trial:
    """One trial: its number from 0, how it ended (complete, pruned, failed), its valid loss, what was changed."""

    number: int
    ended: str
    loss: float | None
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Tuning:
    """All trials with the best first, how much each setting matters (0…1, empty with too few trials), the file of the
    best settings."""

    trials: tuple[Trial, ...]
    importances: Mapping[str, float]
    config: str

    def to_dict(self) -> dict[str, Any]:
        """The documented `--json` form."""
        return asdict(self)


class _TimeIsUp(Exception):
    """The whole of the search has taken its time."""


def tune(
    data: str,
    changes: Mapping[str, Any],
    *,
    recipe: str | None = None,
    trials: int = 20,
    minutes: float | None = None,
    folder: str | os.PathLike[str] = "runs",
    callbacks: Sequence[Callback] = (),
    told: Callable[[Trial], None] = lambda trial: None,
) -> Tuning:
    """Try `trials` settings of the training of `data`, in all, and write the best one to `folder`/tune-NAME.toml.

    The first trial is training as it would be without a search. All have the same split, and are judged by their lowest
    valid loss; the test part is not looked at. `folder`/tune-NAME.db remembers the trials: the same call goes on. A
    trial that is worse than half of the others after as many epochs is ended. No trial begins after `minutes`, and the
    one that is under way then is not counted. `told` hears of each trial that ended.

    Raises `MissingExtra` without Optuna, `ConfigError` for data without a valid part, and what training raises.
    """
    optuna = _optuna()
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    plan, source, split = plan_training(data, changes, recipe, callbacks)
    if not split.samples("valid"):
        raise ConfigError("there are no valid images to judge a trial by; give some in --split, as in 70/15/15")
    usual = plan.experiment
    if not usual.train.epochs:
        raise ConfigError("there are no epochs to tune: choose another --recipe than probe, or more --epochs")
    base = Path(folder) / f"tune-{Path(source.name).name}"
    base.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=base.name,
        storage=f"sqlite:///{base.with_suffix('.db')}",
        sampler=optuna.samplers.TPESampler(seed=usual.train.seed, n_startup_trials=STARTED),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTED, n_warmup_steps=1),
        load_if_exists=True,
    )
    what = f"{plan.spec.arch} {plan.recipe.size} {usual.train.epochs} epochs {split.digest}"
    if study.user_attrs.get("what", what) != what:
        raise ConfigError(f"{base.with_suffix('.db')} is of another network, size, split or number of epochs: move it")
    study.set_user_attr("what", what)
    if not study.trials:
        study.enqueue_trial(_usual_values(usual))
    while len(_counted(study)) < trials and time.monotonic() < deadline:
        trial = study.ask()
        try:
            state, loss = _run_trial(trial, data, usual, deadline)
        except _TimeIsUp:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            break
        study.tell(trial, loss, state=getattr(optuna.trial.TrialState, state))
        told(_as_value(study.trials[trial.number]))
    return _result(study, usual, base, data)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra("tune", "searches for settings") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _usual_values(usual: Experiment) -> dict[str, Any]:
    train = usual.train
    values = {"lr": train.lr, "weight_decay": train.weight_decay, "label_smoothing": train.label_smoothing}
    return {**values, "augment": usual.augment, "layer_decay": train.layer_decay}


def _suggest(trial: optuna.Trial, usual: Experiment) -> dict[str, Any]:
    """The values of one trial, around the usual ones."""
    lr, augment = usual.train.lr or 0.0, usual.augment or ""
    return {
        "lr": trial.suggest_float("lr", lr / FACTOR, lr * FACTOR, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 0.0, max(0.3, usual.train.weight_decay)),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, max(0.2, usual.train.label_smoothing)),
        "augment": trial.suggest_categorical("augment", list(dict.fromkeys((augment, *AUGMENTS)))),
        "layer_decay": trial.suggest_float("layer_decay", 0.5, 1.0),
    }


def _with(usual: Experiment, values: Mapping[str, Any]) -> Experiment:
    train = {key: value for key, value in values.items() if key != "augment"}
    return replace(usual, augment=values["augment"], train=replace(usual.train, **train))


def _run_trial(trial: optuna.Trial, data: str, usual: Experiment, deadline: float) -> tuple[str, float | None]:
    """How a trial ended, and its lowest valid loss."""
    import optuna

    experiment = _with(usual, _suggest(trial, usual))

    def watch(event: str, subject: Any) -> None:
        if event == "step" and time.monotonic() > deadline:
            raise _TimeIsUp
        if event == "epoch" and isinstance(subject, TrainState) and subject.history[-1].valid_loss is not None:
            trial.report(subject.history[-1].valid_loss, subject.epoch)
            if subject.epoch < subject.epochs and trial.should_prune():
                raise optuna.TrialPruned

    try:
        classifier = Classifier(recipe=experiment).fit(data, callbacks=[watch])
    except optuna.TrialPruned:
        return "PRUNED", None
    except TrainingDiverged:
        return "FAIL", None
    return "COMPLETE", classifier.metrics_["valid"].loss


def _counted(study: optuna.Study) -> list[Any]:
    return [trial for trial in study.trials if trial.state.is_finished()]


def _as_value(trial: Any) -> Trial:
    loss = trial.value if trial.state.name == "COMPLETE" else None
    return Trial(trial.number, trial.state.name.lower(), loss, dict(trial.params))


def _result(study: optuna.Study, usual: Experiment, base: Path, data: str) -> Tuning:
    import optuna

    trials = [_as_value(trial) for trial in _counted(study)]
    done = sorted((t for t in trials if t.loss is not None), key=lambda t: (t.loss or 0.0, t.number))
    if not done:
        raise ConfigError("no trial was finished: give more --minutes")
    importances: dict[str, float] = {}
    if len(done) > STARTED and len({trial.loss for trial in done}) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
    path = base.with_suffix(".toml")
    write_config(path, from_dict(Experiment, to_dict(_with(usual, done[0].values))), data)
    others = [trial for trial in trials if trial.loss is None]
    return Tuning((*done, *others), importances, str(path))
