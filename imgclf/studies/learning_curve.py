"""Would more images help? Trains on growing parts of the training images, and tests on the same held-out images."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.core.arguments import as_mapping
from imgclf.core.errors import ConfigError, DataError
from imgclf.core.results import ClassGain, LearningCurve
from imgclf.core.text import printable
from imgclf.data.dataset import Sample, Source
from imgclf.data.duplicates import joined, unit_keys
from imgclf.estimator.classifier import Classifier
from imgclf.estimator.plan import Plan, plan_training
from imgclf.estimator.settings import Request
from imgclf.estimator.warm_start import seconds_a_step
from imgclf.studies.events import CurvePointMeasured, NextTraining, TrainingsPlanned
from imgclf.studies.scaling_law import MIN_SIZES, FittedLaw, HalvedClass, Wrong, class_gains, curve_point, fit_law
from imgclf.training.defaults import resolve_config
from imgclf.training.events import Callback, Event, Progressed, ShowsWarnings, StepEnded, notify, progress_of
from imgclf.training.linear_probe import STRENGTHS, features_of, fit_logistic, linear_head
from imgclf.training.loss import class_weights

# How often each part of the training images is drawn; a full training costs much more than a head on features.
DRAWS = {0.1: 10, 0.2: 8, 0.4: 5, 0.8: 3, 1.0: 1}
FULL_DRAWS = {0.1: 3, 0.2: 2, 0.4: 1, 0.8: 1, 1.0: 1}
CLASS_FITS = 40  # of all classes together, but for each from 4 to 10
MAX_STRENGTHS = 3  # that are tried where more images follow: half a power of ten apart
MIN_CLASS_IMAGES = 2  # in every part

Places = NDArray[np.int64]
Parts = Mapping[float, Sequence[Places]]  # by fraction, for each draw the places of the training images


@dataclass(frozen=True, eq=False)
class _Features:
    """The data of linear heads: features (n, d) and labels (n,) of training and held-out images.

    Training images that belong together have the same number in `units`.
    """

    train: torch.Tensor
    labels: torch.Tensor
    units: torch.Tensor
    held: torch.Tensor
    held_labels: torch.Tensor
    classes: int
    prior: torch.Tensor | None
    class_weights: str | None

    def wrong(self, places: Places, strengths: Sequence[float]) -> tuple[Wrong, float]:
        """The held-out images that a head fitted to these training images classifies wrongly, and the strength of its
        penalty."""
        labels = self.labels[places]
        weight = self._weight(labels)
        weights, bias, strength, _ = fit_logistic(
            self.train[places], labels, self.classes, self.prior, weight, strengths, self.units[places]
        )
        return np.asarray((self.held @ weights.T + bias).argmax(1) != self.held_labels), strength

    def _weight(self, labels: torch.Tensor) -> torch.Tensor:
        """The weights of the classes: each class counts in a part as much as in all images.

        Otherwise a class that lost images would be predicted less often for that reason alone.
        """
        whole, part = (torch.bincount(some, minlength=self.classes).clamp(min=1) for some in (self.labels, labels))
        weight = class_weights(self.labels.tolist(), self.classes, self.class_weights)
        share = (1.0 if weight is None else weight) * whole / part
        return share * part.sum() / (share * part).sum()


def learning_curve(
    data: str | os.PathLike[str] | Source,
    *,
    recipe: str | None = None,
    config: Mapping[str, Any] | None = None,
    full: bool = False,
    callbacks: Sequence[Callback] = (),
) -> LearningCurve:
    """Measure the accuracy with 10, 20, 40, 80 and 100% of the training images, and predict that with twice as many.

    Each part has at least two images of each class that has two. Nothing is written.

    Args:
        data: What would be trained on.
        recipe: The name of a recipe.
        config: Changes of it, as for `Classifier`; a limit of minutes is ignored.
        full: Train the network itself on each part, and test it on the test images. By default linear heads are fitted
            to the features of the frozen network, and tested on validation and test images.
        callbacks: Functions that get the events.

    Raises:
        ConfigError: There are no frozen features or no held-out images.
        DataError: There are too few images.
    """
    began = time.perf_counter()
    config = as_mapping("config", config or {})
    config = {**config, "train": {**as_mapping("train", config.get("train", {})), "minutes": None}}
    request = Request(recipe, config)
    plan = plan_training(request, data, callbacks)
    train, test = plan.split.samples("train"), plan.split.samples("test")
    held = test if full else (*plan.split.samples("valid"), *test)
    if not held:
        raise ConfigError("no held-out images to test on: give some for test in --split, as in 70/15/15")
    parts = draw_parts(train, FULL_DRAWS if full else DRAWS, plan.experiment.train.seed)
    if len(parts) < MIN_SIZES:
        raise DataError(f"{plan.source.name} has {len(train)} training images; a curve needs about ten per class")
    sizes = [len(draws[0]) for draws in parts.values()]
    gains: tuple[ClassGain, ...] = ()
    if full:
        wrong = _train_each(plan, request, parts, callbacks)
        law = fit_law(sizes, list(wrong.values()))
    else:
        features = _features(plan, held, callbacks)
        wrong, strength = _fit_each(features, parts, callbacks)
        law = fit_law(sizes, list(wrong.values()))
        gains = _class_gains(features, plan.source.classes, train, strength, law, callbacks)
    return LearningCurve(
        data=plan.source.name,
        arch=plan.spec.arch,
        full=full,
        held_out=len(held),
        points=tuple(curve_point(fraction, len(parts[fraction][0]), rows) for fraction, rows in wrong.items()),
        law=law.law,
        doubled=law.at(2 * sizes[-1]),
        gain=law.gain(sizes[-1]),
        misfit=law.misfit,
        classes=gains,
        seconds=round(time.perf_counter() - began, 3),
        band=law.band(sizes[0], 2 * sizes[-1]),
    )


def draw_parts(samples: Sequence[Sample], draws: Mapping[float, int], seed: int) -> dict[float, list[Places]]:
    """Draw parts of the samples, nested within each draw.

    Of each class the same fraction is taken, but at least two images. Images of one group, or of equal content, are
    drawn together. Neither the order of the samples nor their names matter. A fraction with no more images than a
    smaller one is left out.

    Args:
        samples: The training images.
        draws: The number of draws for each fraction (0…1), rising.
        seed: Another seed gives other draws.
    """
    orders = [_order(samples, seed, draw) for draw in range(max(draws.values()))]
    parts: dict[float, list[Places]] = {}
    size = 0
    for fraction, count in draws.items():
        found = [
            np.sort(np.concatenate([places[: _share(len(places), fraction)] for places in order.values()]))
            for order in orders[:count]
        ]
        if len(found[0]) > size:
            parts[fraction], size = found, len(found[0])
    return parts


def _share(images: int, fraction: float) -> int:
    return min(images, max(MIN_CLASS_IMAGES, round(fraction * images)))


def _order(samples: Sequence[Sample], seed: int, draw: int) -> dict[str, Places]:
    """For each class, the places of its samples in the order of a draw."""
    units = joined(samples, unit_keys)
    names: dict[int, str] = {}
    for sample, unit in zip(samples, units, strict=True):
        name = sample.group or sample.sha256
        names[unit] = min(name, names.get(unit, name))

    def rank(place: int) -> tuple[bytes, str, str]:
        text = f"{seed}/{draw}/{names[units[place]]}"
        key = blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        return key, samples[place].sha256, samples[place].ref

    order = defaultdict(list)
    for place in sorted(range(len(samples)), key=rank):
        order[samples[place].label].append(place)
    return {label: np.array(order[label], np.int64) for label in sorted(order)}


def _features(plan: Plan, held: Sequence[Sample], callbacks: Sequence[Callback]) -> _Features:
    """The frozen features of a pretrained network."""
    head = linear_head(plan.model)
    if head is None or not plan.pretrained or plan.weights.head != "fresh":
        problem = "has no linear head" if head is None else f"starts {plan.weights.source}"
        raise ConfigError(
            f"{plan.spec.arch} {problem}, so its frozen features are of no use: choose another --arch or --weights, or "
            "train the network itself with --full"
        )
    features, labels, units = _frozen(plan, plan.split.samples("train"), callbacks)
    held_features, held_labels, _ = _frozen(plan, held, callbacks)
    return _Features(
        train=features,
        labels=labels,
        units=units,
        held=held_features.to(features),
        held_labels=held_labels,
        classes=plan.spec.classes,
        prior=getattr(head, "prior", None),
        class_weights=plan.experiment.train.class_weights,
    )


def _frozen(
    plan: Plan, samples: Sequence[Sample], callbacks: Sequence[Callback]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loader, progress = plan.loader(samples), progress_of("computing features", callbacks)
    features, labels, units = features_of(plan.model.to(plan.device), loader, plan.dtype, progress, plan.backend)
    _require_all(len(labels), samples, loader.unreadable)
    return features.cpu().float(), labels, units


def _require_all(read: int, samples: Sequence[Sample], unreadable: Mapping[str, str]) -> None:
    if read < len(samples):
        problems = [f"{printable(ref)}: {why}" for ref, why in unreadable.items()]
        raise DataError("images became unreadable meanwhile; start again", problems)


def _fit_each(features: _Features, parts: Parts, callbacks: Sequence[Callback]) -> tuple[dict[float, Wrong], float]:
    """The mistakes of heads fitted to each part, and the strength of the penalty for all images.

    The first draw of each part chooses the strength: the more images there are, the weaker it is.
    """
    wrong: dict[float, Wrong] = {}
    strength, choice = STRENGTHS[0], STRENGTHS
    done, progress = 0, progress_of("fitting heads", callbacks)
    for fraction, draws in parts.items():
        rows = []
        for places in draws:
            row, strength = features.wrong(places, choice)
            rows.append(row)
            choice = (strength,)
            done += 1
            progress(done, sum(map(len, parts.values())))
        wrong[fraction] = np.stack(rows)
        notify(callbacks, CurvePointMeasured(curve_point(fraction, len(draws[0]), wrong[fraction])))
        weaker = STRENGTHS.index(strength)
        choice = STRENGTHS[weaker : weaker + MAX_STRENGTHS]
    return wrong, strength


def _class_gains(
    features: _Features,
    classes: Sequence[str],
    train: Sequence[Sample],
    strength: float,
    law: FittedLaw,
    callbacks: Sequence[Callback],
) -> tuple[ClassGain, ...]:
    """The gain from the images of each class, by training without half and three quarters of them."""
    draws = min(5, max(2, CLASS_FITS // (2 * len(classes))))
    orders = [_order(train, 0, draw) for draw in range(draws)]
    everything, held_labels = np.arange(len(train)), features.held_labels.numpy()
    halved = []
    for index, name in enumerate(classes):
        images = len(orders[0][name])
        found = HalvedClass(name, images, held_labels == index)
        if images >= 4 * MIN_CLASS_IMAGES:
            half, quarter = (
                np.stack([features.wrong(_without(order[name], share, everything), (strength,))[0] for order in orders])
                for share in (0.5, 0.25)
            )
            found = replace(found, half=half, quarter=quarter)
        halved.append(found)
        notify(callbacks, Progressed("halving classes", index + 1, len(classes)))
    return class_gains(halved, features.wrong(everything, (strength,))[0][None], law.weights)


def _without(places: Places, share: float, everything: Places) -> Places:
    """Everything, but only a share of these places."""
    return np.setdiff1d(everything, places[_share(len(places), share) :])


def _train_each(plan: Plan, request: Request, parts: Parts, callbacks: Sequence[Callback]) -> dict[float, Wrong]:
    """The mistakes of the network itself, trained on each part."""
    train, test = plan.split.samples("train"), plan.split.samples("test")
    held = (*plan.split.samples("valid"), *test)
    total = sum(map(len, parts.values()))
    notify(callbacks, TrainingsPlanned(total, _seconds(plan, parts)))
    data = {**request.changes.get("data", {}), "split_file": None}
    config = {**request.changes, "split": [1.0, 0.0, 0.0], "data": data}  # the parts of the images are settled

    def pass_on_steps(event: Event) -> None:
        if isinstance(event, StepEnded):
            notify(callbacks, event)

    wrong: dict[float, Wrong] = {}
    number = 0
    for fraction, draws in parts.items():
        rows = []
        for places in draws:
            number += 1
            notify(callbacks, NextTraining(number, total))
            part = replace(plan.source, samples=(*(train[place] for place in places), *held))
            classifier = Classifier(recipe=request.recipe, config=config)
            classifier.fit(part, callbacks=[pass_on_steps, ShowsWarnings()])
            if classifier.history_.ended == "interrupted":
                raise KeyboardInterrupt
            predictions = classifier.predictions_of(classifier.source_, test)
            _require_all(len(predictions), test, classifier.unreadable_)
            rows.append(predictions.predicted != predictions.targets)
        wrong[fraction] = np.stack(rows)
        notify(callbacks, CurvePointMeasured(curve_point(fraction, len(draws[0]), wrong[fraction])))
    return wrong


def _seconds(plan: Plan, parts: Parts) -> float:
    """About how long the steps of all trainings will take."""
    config = plan.experiment.train
    if not config.epochs:
        return 0.0
    steps, valid = 0, len(plan.split.samples("valid"))
    for draws in parts.values():
        images = len(draws[0])
        settled = resolve_config(
            plan.asked.train, pretrained=plan.pretrained, images=images, valid=valid, probe=bool(config.probe)
        )
        steps += len(draws) * (settled.epochs or 0) * math.ceil(images / config.batch_size)
    return steps * seconds_a_step(plan.model.to(plan.device), plan.train_loader, config)
