"""Several classifiers as one: their mean probabilities, in one model file."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imgclf.core.arguments import as_mapping, as_path, plain, require
from imgclf.core.errors import ConfigError, NotFitted
from imgclf.core.files import read_text, write_text
from imgclf.core.results import History
from imgclf.data.split import pack_keys
from imgclf.estimator.calibrate import Calibrated, calibrate
from imgclf.estimator.classifier import Classifier
from imgclf.estimator.fit import Data, test
from imgclf.estimator.recorder import write_page, write_result
from imgclf.models.ensemble import Ensemble
from imgclf.report.collect import Known
from imgclf.runtime import distributed
from imgclf.storage.run_folder import CONFIG, SPLIT, Run, create_run, require_free, stem_of
from imgclf.studies.events import EnsembleValidated, NextTraining
from imgclf.training.events import Callback, Warned, notify, with_warnings

MAX_MEMBERS = 100
COMMENT = """\
# The network with seed {seed} of this ensemble of {members}. --config with this file trains one network; add
# --ensemble {members} to train all of them.
"""


def require_members(members: int, name: str = "members") -> None:
    """Raise `ConfigError` for a number of networks that is no ensemble; `name` is the name of the setting."""
    if not isinstance(members, int) or not 2 <= members <= MAX_MEMBERS:
        raise ConfigError(f"{name} is {members!r}; allowed: 2 to {MAX_MEMBERS} networks")


def combine(classifiers: Sequence[Classifier]) -> Classifier:
    """Join classifiers into one that predicts their mean probabilities; a single one is copied.

    The weights are copied. Images that any of them has seen count as seen; the history is theirs, one after the other.

    Args:
        classifiers: Fitted or loaded classifiers of equal architecture, classes and pixels.

    Raises:
        ConfigError: There are none, or they differ.
        NotFitted: One of them is not fitted.
    """
    classifiers = list(classifiers) if isinstance(classifiers, Iterable) else [classifiers]
    for member in classifiers:
        require("a classifier to combine", member, Classifier)
    if not classifiers:
        raise ConfigError("there are no classifiers to combine; give one or more")
    if not all(hasattr(member, "model_") for member in classifiers):
        raise NotFitted("not all of these classifiers are fitted: call fit, or Classifier.load")
    first = classifiers[0]
    for other in classifiers[1:]:
        for (name, one), two in zip(_in_common(first).items(), _in_common(other).values(), strict=True):
            if one != two:
                raise ConfigError(f"an ensemble needs equal {name}; these differ: {one} and {two}")
    joined, networks = copy.copy(first), [copy.deepcopy(classifier.model_) for classifier in classifiers]
    joined.run_, joined.unreadable_ = None, {}
    if len(classifiers) == 1:
        joined.model_ = networks[0]
        joined.metrics_, joined.predictions_ = dict(first.metrics_), dict(first.predictions_)
        return joined
    joined.model_ = Ensemble(networks).eval()
    joined.model_config_ = replace(first.model_config_, members=len(classifiers))
    joined.seen_ = frozenset().union(*(classifier.seen_ for classifier in classifiers))
    calibrated = _calibrate(joined, classifiers)
    joined.predictions_ = calibrated.predictions
    joined.metrics_ = {part: known.evaluation for part, known in joined.predictions_.items()}
    joined.ood_ = calibrated.ood
    manifest = replace(first.manifest_, model=joined.model_config_, metrics={}, seen=pack_keys(joined.seen_))
    joined.manifest_ = calibrated.within(manifest)
    histories = [getattr(classifier, "history_", History()) for classifier in classifiers]
    joined.history_ = History(tuple(chain.from_iterable(histories)))
    return joined


def _in_common(classifier: Classifier) -> dict[str, Any]:
    """The values that the members of an ensemble must share."""
    pixels = replace(classifier.preprocess_, steps=(), compose=None)
    return {"networks": classifier.model_config_, "classes": classifier.classes_, "pixels": pixels}


def _calibrate(joined: Classifier, classifiers: Sequence[Classifier]) -> Calibrated:
    """Calibrate with the validation images, if the members were fitted here on one split."""
    fitted = all(hasattr(classifier, "source_") for classifier in classifiers)
    if not fitted or len({classifier.split_.digest for classifier in classifiers}) > 1:
        reason = "it was combined from models without their validation images; use `train --ensemble`"
        return Calibrated(note=reason, missing=reason)
    return calibrate(replace(joined.plan_, model=joined.model_), History(), None, ())


def fit_ensemble(
    data: Data,
    members: int,
    *,
    recipe: str | None = None,
    config: Mapping[str, Any] | None = None,
    runs: str | os.PathLike[str] = "runs",
    name: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Classifier:
    """Train classifiers that differ only in their seed, on the same split, and combine them.

    Each member has its own run folder: NAME-member-1 and so on, or DATA-ARCH-1 and so on without a name. That of the
    ensemble is NAME, or DATA-ARCH-ensemble-1. Of members with equal weights, which kept the initial model, one is used.
    If training is interrupted, the interrupted member is returned.

    Args:
        data: What to train on.
        members: The number of networks, 2 to 100; a seed s stands for s, s + 1, and so on.
        recipe: The name of a recipe.
        config: Changes of it, as for `Classifier`.
        runs: The folder of the run folders.
        name: The name of the run folder.
        callbacks: Functions that get the events.

    Raises what `fit` raises.
    """
    members, config = plain(members), as_mapping("config", config or {})
    require_members(members)
    if distributed.shard()[1] > 1:
        raise ConfigError("an ensemble is trained by one process: start it without torchrun, or its members one by one")
    runs = as_path("runs", runs)
    names = [None if name is None else f"{name}-member-{number + 1}" for number in range(members)]
    for taken in (name, *names):
        require_free(runs, taken)
    trained: list[Classifier] = []
    for number, own_name in enumerate(names):
        notify(callbacks, NextTraining(number + 1, members))
        own = dict(config)
        if trained:
            first = trained[0]
            assert first.run_ is not None
            own["train"] = {**own.get("train", {}), "seed": first.config_.train.seed + number}
            own["data"] = {**own.get("data", {}), "split_file": str(first.run_.path / SPLIT)}
        classifier = Classifier(recipe=recipe, config=own).fit(data, runs=runs, name=own_name, callbacks=callbacks)
        if classifier.history_.ended == "interrupted":
            return classifier
        trained.append(classifier)
    different = [
        classifier
        for number, classifier in enumerate(trained)
        if not any(_equal(classifier.model_, other.model_) for other in trained[:number])
    ]
    if len(different) < members:  # in spite of other seeds: they have the weights from before the first step
        who = "all" if len(different) == 1 else f"{members - len(different) + 1} of"
        text = f"{who} {members} members kept the initial model: only one of these equal networks is used"
        notify(with_warnings(callbacks), Warned(text))
    joined = combine(different)
    run = _make_run(joined, members, different, runs, name)
    _test(joined, run, callbacks)
    if "valid" in joined.metrics_ and len(different) > 1:
        notify(callbacks, EnsembleValidated(tuple(one.metrics_["valid"] for one in (*trained, joined))))
    return joined


def _equal(one: nn.Module, two: nn.Module) -> bool:
    weights, others = one.state_dict(), two.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def _make_run(joined: Classifier, members: int, trained: Sequence[Classifier], runs: Path, name: str | None) -> Run:
    """A run folder with the split and the config of the first of `members`, of which those `trained` were joined."""
    first, seed = trained[0].run_, trained[0].config_.train.seed
    assert first is not None

    def fill(folder: Path) -> None:
        shutil.copy(first.path / SPLIT, folder / SPLIT)
        write_text(folder / CONFIG, COMMENT.format(members=members, seed=seed) + read_text(first.path / CONFIG))

    paths = tuple(str(member.run_.path) for member in trained if member.run_ is not None)
    info = replace(first.info, members=paths, epochs=None, seconds=None, train_seconds=None, metrics=None)
    stem = name or stem_of(info.data, info.arch, "ensemble")
    run = create_run(runs, stem, info, exact=name is not None, fill=fill)
    joined.save(run.model)
    return run


def _test(joined: Classifier, run: Run, callbacks: Sequence[Callback]) -> None:
    """Test an ensemble on the images held out, if there are any, and write what came of it into its run folder."""
    plan = replace(joined.plan_, model=joined.model_)
    if joined.split_.samples("test"):
        predictions, unreadable = test(plan, joined.temperature_, with_warnings(callbacks))
        joined.unreadable_ = dict(unreadable)
        joined.predictions_["test"], joined.metrics_["test"] = predictions, predictions.evaluation
        joined.save(run.model)
    facts = {"epochs": len(joined.history_), "unreadable_later": tuple(joined.unreadable_.items())}
    joined.run_ = write_result(run, plan, joined.predictions_, status="done", **facts)
    write_page(joined.run_, Known(joined.model_, joined.predictions_, joined.source_), callbacks)
