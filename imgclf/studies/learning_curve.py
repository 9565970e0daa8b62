"""Would more images help? Trains on growing parts of the training images, and tests on the same held-out ones."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.core.arguments import named_values
from imgclf.core.errors import ConfigError, DataError
from imgclf.core.results import ClassGain, LearningCurve
from imgclf.core.text import printable
from imgclf.data.dataset import Sample, Source
from imgclf.data.duplicates import joined, unit_keys
from imgclf.data.split import Split
from imgclf.estimator.classifier import Classifier
from imgclf.estimator.plan import Plan, make_plan, open_and_split
from imgclf.estimator.settings import Request
from imgclf.estimator.warm_start import seconds_a_step
from imgclf.studies.events import CurvePointMeasured, NextTraining, TrainingsPlanned
from imgclf.studies.scaling_law import FEWEST, FittedLaw, HalvedClass, Wrong, class_gains, curve_point, fit_law
from imgclf.training.defaults import resolve_config
from imgclf.training.events import Callback, Event, Progressed, ShowsWarnings, StepEnded, notify
from imgclf.training.linear_probe import STRENGTHS, features_of, fit_logistic, linear_head
from imgclf.training.loss import class_weights

# How often each part of the training images is drawn; a full training costs much more than a head on features.
DRAWS = {0.1: 10, 0.2: 8, 0.4: 5, 0.8: 3, 1.0: 1}
FULL_DRAWS = {0.1: 3, 0.2: 2, 0.4: 1, 0.8: 1, 1.0: 1}
CLASS_FITS = 40  # of all classes together, but for each from 4 to 10
WEAKER = 3  # strengths that are tried where more images follow: half a power of ten apart
ALONE = 2  # images of a class, at least, in every part

Places = NDArray[np.int64]
Parts = Mapping[float, Sequence[Places]]  # by fraction, for each draw the places of the training images


@dataclass(frozen=True, eq=False)
class _Features:
    """What a linear head is fitted to and judged by: features (n, d) and labels (n,) of images to train and to test;
    those to train that belong together have one number in `units`."""

    train: torch.Tensor
    labels: torch.Tensor
    units: torch.Tensor
    held: torch.Tensor
    held_labels: torch.Tensor
    classes: int
    prior: torch.Tensor | None
    class_weights: str | None

    def wrong(self, places: Places, strengths: Sequence[float]) -> tuple[Wrong, float]:
        """Which held-out images a head that is fitted to these training images calls something else, and the strength
        of its penalty."""
        labels = self.labels[places]
        weight = self._weight(labels)
        features = self.train[places]
        weights, bias, strength, _ = fit_logistic(
            features, labels, self.classes, self.prior, weight, strengths, self.units[places]
        )
        return np.asarray((self.held @ weights.T + bias).argmax(1) != self.held_labels), strength

    def _weight(self, labels: torch.Tensor) -> torch.Tensor:
        """The weights of the classes, by which each counts in a part for as much as it does in the whole.

        Else a class that lost some of its images would be called less often for that alone.
        """
        whole, part = (torch.bincount(some, minlength=self.classes).clamp(min=1) for some in (self.labels, labels))
        weight = class_weights(self.labels.tolist(), self.classes, self.class_weights)
        share = (1.0 if weight is None else weight) * whole / part
        return share * part.sum() / (share * part).sum()


def learning_curve(
    data: str | os.PathLike[str] | Source,
    changes: Mapping[str, Any],
    *,
    recipe: str | None = None,
    full: bool = False,
    callbacks: Sequence[Callback] = (),
) -> LearningCurve:
    """The accuracy with 10, 20, 40, 80 and 100 % of the training images, and what twice as many would bring.

    `changes` are those of an `ExperimentConfig`, as for training; a limit of minutes is left aside. The features of the
    frozen network are computed once, and a linear head is fitted to each part, several times to other draws of it; the
    valid and test images judge. With `full` the network itself is trained as `Classifier` does, and the test images
    judge, since valid chooses the epoch. A draw's smaller parts lie within its larger ones, and each holds at least two
    images of a class that has them. Nothing is written.

    Raises `ConfigError` where there are no frozen features or no images to judge by, `DataError` for too few images,
    and what training raises.
    """
    began = time.perf_counter()
    train = named_values("train", named_values("changes", changes).get("train", {}))
    changes = {**changes, "train": {**train, "minutes": None}}
    request = Request(recipe, changes)
    audited, split = open_and_split(request, data, callbacks)
    plan, source = make_plan(request, audited, split, callbacks), audited.source
    held = split.samples("test") if full else (*split.samples("valid"), *split.samples("test"))
    if not held:
        raise ConfigError("there are no images to judge by: give some for test in --split, as in 70/15/15")
    parts = draw_parts(split.samples("train"), FULL_DRAWS if full else DRAWS, plan.experiment.train.seed)
    if len(parts) < FEWEST:
        raise DataError(
            f"{source.name} has {len(split.samples('train'))} images to train on; a curve needs about ten a class"
        )
    law: FittedLaw
    gains: tuple[ClassGain, ...] = ()
    if full:
        wrong = _train_each(plan, source, split, parts, {"recipe": recipe, "config": _as_divided(changes)}, callbacks)
        law = _law(parts, wrong)
    else:
        features = _features(plan, split.samples("train"), held, callbacks)
        wrong, strength = _fit_each(features, parts, callbacks)
        law = _law(parts, wrong)
        gains = _class_gains(features, source.classes, split.samples("train"), strength, law, callbacks)
    first, last = (float(len(draws[0])) for draws in (parts[min(parts)], parts[max(parts)]))
    return LearningCurve(
        data=source.name,
        arch=plan.spec.arch,
        full=full,
        held_out=len(held),
        points=tuple(curve_point(fraction, len(parts[fraction][0]), rows) for fraction, rows in wrong.items()),
        law=law.law,
        doubled=law.at(2 * last),
        gain=law.gain(last),
        misfit=law.misfit,
        classes=gains,
        seconds=round(time.perf_counter() - began, 3),
        band=law.band(first, 2 * last),
    )


def draw_parts(samples: Sequence[Sample], draws: Mapping[float, int], seed: int) -> dict[float, list[Places]]:
    """Parts of the samples by fraction, so many draws of each; those of one draw lie within each other.

    Of each class the same fraction is taken, at least two images where it has them. Images of one group, or of equal
    content, come together. Neither the order of the samples nor their names matter. Where a larger fraction holds no
    more images than a smaller one it is left out.
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
    return min(images, max(ALONE, round(fraction * images)))


def _order(samples: Sequence[Sample], seed: int, draw: int) -> dict[str, Places]:
    """For each class the places of its samples in the order in which this draw takes them."""
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


def _law(parts: Parts, wrong: Mapping[float, Wrong]) -> FittedLaw:
    return fit_law([len(draws[0]) for draws in parts.values()], list(wrong.values()))


def _features(plan: Plan, train: Sequence[Sample], held: Sequence[Sample], callbacks: Sequence[Callback]) -> _Features:
    """The frozen features of a plan's network, where it knows more than nothing."""
    if not plan.pretrained or plan.weights.head != "fresh" or linear_head(plan.model) is None:
        problem = "has no linear head" if linear_head(plan.model) is None else f"starts {plan.weights.source}"
        raise ConfigError(
            f"{plan.spec.arch} {problem}, so its frozen features tell nothing: choose another --arch or --weights, or "
            "train the network itself with --full"
        )
    total, before = len(train) + len(held), len(train)

    def tell(done: int) -> None:
        notify(callbacks, Progressed("computing features", done, total))

    features, labels, units = _frozen(plan, train, tell)
    judged, answers, _ = _frozen(plan, held, lambda done: tell(before + done))
    return _Features(
        train=features,
        labels=labels,
        units=units,
        held=judged.to(features),
        held_labels=answers,
        classes=plan.spec.classes,
        prior=getattr(linear_head(plan.model), "prior", None),
        class_weights=plan.experiment.train.class_weights,
    )


def _frozen(
    plan: Plan, samples: Sequence[Sample], progress: Callable[[int], None]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    model, loader = plan.model.to(plan.device), plan.loader(samples)
    features, labels, units = features_of(model, loader, plan.dtype, lambda done, _: progress(done))
    _require_all(len(labels), samples, loader.lost)
    return features.cpu().float(), labels, units


def _require_all(read: int, samples: Sequence[Sample], lost: Mapping[str, str]) -> None:
    if read < len(samples):
        problems = [f"{printable(ref)}: {why}" for ref, why in lost.items()]
        raise DataError("images became unreadable meanwhile; start again", problems)


def _fit_each(features: _Features, parts: Parts, callbacks: Sequence[Callback]) -> tuple[dict[float, Wrong], float]:
    """What heads on each part call something else, and the strength of the penalty for all images.

    It is chosen by each part's first draw: the more images there are, the weaker it is.
    """
    wrong: dict[float, Wrong] = {}
    strength, choice = STRENGTHS[0], STRENGTHS
    done, total = 0, sum(map(len, parts.values()))
    for fraction, draws in parts.items():
        rows = []
        for places in draws:
            row, strength = features.wrong(places, choice)
            rows.append(row)
            choice = (strength,)
            done += 1
            notify(callbacks, Progressed("fitting heads", done, total))
        wrong[fraction] = np.stack(rows)
        notify(callbacks, CurvePointMeasured(curve_point(fraction, len(draws[0]), wrong[fraction])))
        weaker = STRENGTHS.index(strength)
        choice = STRENGTHS[weaker : weaker + WEAKER]
    return wrong, strength


def _class_gains(
    features: _Features,
    classes: Sequence[str],
    train: Sequence[Sample],
    strength: float,
    law: FittedLaw,
    callbacks: Sequence[Callback],
) -> tuple[ClassGain, ...]:
    """What each class's images bring, by leaving out half of them and three quarters."""
    draws = min(5, max(2, CLASS_FITS // (2 * len(classes))))
    orders = [_order(train, 0, draw) for draw in range(draws)]
    everything, held_labels = np.arange(len(train)), features.held_labels.numpy()
    halved = []
    for index, name in enumerate(classes):
        images = len(orders[0][name])
        found = HalvedClass(name, images, held_labels == index)
        if images >= 4 * ALONE:
            half, quarter = (
                np.stack([features.wrong(_without(order[name], share, everything), (strength,))[0] for order in orders])
                for share in (0.5, 0.25)
            )
            found = replace(found, half=half, quarter=quarter)
        halved.append(found)
        notify(callbacks, Progressed("halving classes", index + 1, len(classes)))
    return class_gains(halved, features.wrong(everything, (strength,))[0][None], law.weights)


def _without(places: Places, share: float, everything: Places) -> Places:
    """All places, but of these ones only a share."""
    return np.setdiff1d(everything, places[_share(len(places), share) :])


def _train_each(
    plan: Plan,
    source: Source,
    split: Split,
    parts: Parts,
    asked: Mapping[str, Any],
    callbacks: Sequence[Callback],
) -> dict[float, Wrong]:
    """What the network calls something else when it is trained on each part, as training does it."""
    train, held = split.samples("train"), (*split.samples("valid"), *split.samples("test"))
    judged = split.samples("test")
    total = sum(map(len, parts.values()))
    notify(callbacks, TrainingsPlanned(total, _seconds(plan, parts)))

    def listen(event: Event) -> None:
        if isinstance(event, StepEnded):
            notify(callbacks, event)

    wrong: dict[float, Wrong] = {}
    number = 0
    for fraction, draws in parts.items():
        rows = []
        for places in draws:
            number += 1
            notify(callbacks, NextTraining(number, total))
            part = replace(source, samples=(*(train[place] for place in places), *held))
            classifier = Classifier(recipe=asked["recipe"], config=asked["config"]).fit(
                part, callbacks=[listen, ShowsWarnings()]
            )
            if classifier.history_.ended == "interrupted":
                raise KeyboardInterrupt
            answers = classifier.answer(classifier.source_, judged)
            _require_all(len(answers), judged, classifier.unreadable_)
            rows.append(answers.predicted != answers.targets)
        wrong[fraction] = np.stack(rows)
        notify(callbacks, CurvePointMeasured(curve_point(fraction, len(draws[0]), wrong[fraction])))
    return wrong


def _as_divided(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes of an experiment for images whose places are settled: nothing more is held out."""
    return {**changes, "split": [1.0, 0.0, 0.0], "data": {**changes.get("data", {}), "split_file": None}}


def _seconds(plan: Plan, parts: Parts) -> float:
    """About how long all the trainings will take: the steps alone."""
    config = plan.experiment.train
    if not config.epochs:
        return 0.0
    step = seconds_a_step(plan.model.to(plan.device), plan.train_loader, config)
    steps = 0
    for draws in parts.values():
        images = len(draws[0])
        settled = resolve_config(
            plan.asked.train,
            pretrained=plan.pretrained,
            images=images,
            valid=len(plan.split.samples("valid")),
            probe=bool(config.probe),
        )
        steps += len(draws) * (settled.epochs or 0) * math.ceil(images / config.batch_size)
    return steps * step
