"""Several classifiers as one: their mean probabilities, in one model file."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imgclf.core.arguments import as_path, named_values, plain, require
from imgclf.core.errors import ConfigError, NotFitted
from imgclf.core.files import read_text, write_text
from imgclf.core.results import History
from imgclf.data.split import pack_keys
from imgclf.estimator.calibrate import Calibrated, calibrate_model, features_of
from imgclf.estimator.classifier import Classifier
from imgclf.estimator.fit import Data
from imgclf.models.ensemble import Ensemble
from imgclf.runtime import distributed
from imgclf.storage.run_folder import CONFIG, SPLIT, create_run, require_free, stem_of
from imgclf.studies.events import EnsembleValidated, NextTraining
from imgclf.training.events import Callback, Warned, notify, with_warnings

MOST = 100
AS_ONE = """\
# One of the {members} networks of this ensemble, the one with seed {seed}. With --config alone one network is trained;
# all of them are trained again by adding --ensemble {members}.
"""


def require_members(members: int, name: str = "members") -> None:
    """Raise `ConfigError` for a number of networks that is no ensemble; `name` is what the user calls it."""
    if not isinstance(members, int) or not 2 <= members <= MOST:
        raise ConfigError(f"{name} is {members!r}; allowed: 2 to {MOST} networks")


def combine(classifiers: Sequence[Classifier]) -> Classifier:
    """One classifier that answers with the mean probabilities of several, which keep their own weights; of one, a copy
    that claims what this one claims.

    They have the same architecture, classes and pixels, as those of several seeds or folds do; `ConfigError` where they
    differ. Images that any of them has seen count as seen. The history is theirs, one after the other.
    """
    classifiers = list(classifiers) if isinstance(classifiers, Iterable) else [classifiers]
    for member in classifiers:
        require("a classifier to combine", member, Classifier)
    if not classifiers:
        raise ConfigError("there are no classifiers to combine; give one or more")
    if not all(hasattr(member, "model_") for member in classifiers):
        raise NotFitted("these classifiers are not all fitted yet: call fit, or Classifier.load")
    first = classifiers[0]
    for other in classifiers[1:]:
        for name, one, two in (
            ("networks", first.model_config_, other.model_config_),
            ("classes", first.classes_, other.classes_),
            (
                "pixels",
                replace(first.preprocess_, steps=(), compose=None),
                replace(other.preprocess_, steps=(), compose=None),
            ),
        ):
            if one != two:
                raise ConfigError(f"an ensemble needs equal {name}; these differ: {one} and {two}")
    joined = copy.copy(first)
    networks = [copy.deepcopy(classifier.model_) for classifier in classifiers]
    joined.model_ = Ensemble(networks).eval() if len(networks) > 1 else networks[0]
    joined.model_config_ = replace(first.model_config_, members=len(classifiers))
    joined.seen_ = frozenset().union(*(classifier.seen_ for classifier in classifiers))
    joined.metrics_, joined.predictions_, joined.run_, joined.unreadable_ = {}, {}, None, {}
    if len(classifiers) == 1:
        joined.metrics_, joined.predictions_ = dict(first.metrics_), dict(first.predictions_)
        return joined
    calibrated = _examine(joined, classifiers)
    if calibrated.answers is not None:
        joined.predictions_["valid"], joined.metrics_["valid"] = calibrated.answers, calibrated.answers.evaluation
    joined.ood_ = calibrated.unknown
    manifest = replace(first.manifest_, spec=joined.model_config_, metrics={}, seen=pack_keys(joined.seen_))
    joined.manifest_ = calibrated.within(manifest)
    if all(hasattr(classifier, "history_") for classifier in classifiers):
        joined.history_ = History(tuple(record for classifier in classifiers for record in classifier.history_))
    return joined


def _examine(joined: Classifier, classifiers: Sequence[Classifier]) -> Calibrated:
    """What an ensemble may claim: where its members were fitted here, on one split, its validation images tell."""
    fitted = all(hasattr(classifier, "source_") for classifier in classifiers)
    if not fitted or len({classifier.split_.digest for classifier in classifiers}) > 1:
        reason = "it was joined of models whose validation images are not at hand; `train --ensemble` has them"
        return Calibrated(note=reason, missing=reason)
    valid, train = joined.split_.samples("valid"), joined.split_.samples("train")
    load = partial(joined.plan_.loader, shard=distributed.shard())
    if not valid:
        return Calibrated(note="there are no validation images", missing="there are no validation images")
    return calibrate_model(
        joined.model_, load(valid, cache="off"), lambda: features_of(joined.model_, load(train, cache="off"))
    )


def fit_ensemble(
    data: Data,
    members: int,
    changes: Mapping[str, Any],
    *,
    recipe: str | None = None,
    runs: str | os.PathLike[str],
    name: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Classifier:
    """Train `members` classifiers that differ in their seed alone, on the same split, and join them.

    Each has a run folder of its own, and so has the ensemble: NAME-member-1 and so on and NAME, or without a `name`
    DATA-ARCH-1 and so on and DATA-ARCH-ensemble-1. A seed s stands for s, s + 1, and so on. Of members that end with
    equal weights one is joined, as where all keep the same start; that is said. Where training is interrupted, that
    member is what comes back. Raises what `fit` raises.
    """
    members, changes = plain(members), named_values("changes", changes)
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
        mine = dict(changes)
        if trained:
            first = trained[0]
            assert first.run_ is not None
            mine["train"] = {**mine.get("train", {}), "seed": first.config_.train.seed + number}
            mine["data"] = {**mine.get("data", {}), "split_file": str(first.run_.path / SPLIT)}
        classifier = Classifier(recipe=recipe, config=mine).fit(data, runs=runs, name=own_name, callbacks=callbacks)
        if classifier.history_.ended == "interrupted":
            return classifier
        trained.append(classifier)
    different = _different(trained)
    if len(different) < members:
        notify(with_warnings(callbacks), Warned(_about_equals(members, len(different))))
    joined = combine(different)
    _write_run(joined, members, different, runs, name)
    if "valid" in joined.metrics_ and len(different) > 1:
        notify(callbacks, EnsembleValidated(tuple(one.metrics_["valid"] for one in (*trained, joined))))
    return joined


def _different(trained: Sequence[Classifier]) -> list[Classifier]:
    """Those whose weights no one before them has."""
    found: list[Classifier] = []
    for classifier in trained:
        if not any(_equal(classifier.model_, other.model_) for other in found):
            found.append(classifier)
    return found


def _equal(one: nn.Module, two: nn.Module) -> bool:
    weights, others = one.state_dict(), two.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def _about_equals(members: int, different: int) -> str:
    """Weights that are equal in spite of other seeds are those that all had before the first step."""
    who, what = f"{members - different + 1} of {members}", "joined with the others"
    if different == 1:
        who, what = f"all {members}", "saved"
    return f"{who} members kept the same start: one of them is {what}: equal networks would only be slower"


def _write_run(joined: Classifier, members: int, trained: Sequence[Classifier], runs: Path, name: str | None) -> None:
    """A run folder with the split and the config of the first of `members`, of which those `trained` were joined."""
    first, seed = trained[0].run_, trained[0].config_.train.seed
    assert first is not None

    def fill(folder: Path) -> None:
        shutil.copy(first.path / SPLIT, folder / SPLIT)
        write_text(folder / CONFIG, AS_ONE.format(members=members, seed=seed) + read_text(first.path / CONFIG))

    own = ("number", "epochs", "seconds", "seconds_before")
    info = {key: value for key, value in first.info.items() if key not in own}
    info["members"] = [str(member.run_.path) for member in trained if member.run_ is not None]
    stem = name or stem_of(info["data"], info["arch"], "ensemble")
    joined.run_ = create_run(runs, stem, info, exact=name is not None, fill=fill)
    joined.save(joined.run_.model)
