"""What was settled for a run and why, in words: the table before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from operator import attrgetter

from imgclf.core.results import Decision
from imgclf.core.text import printable
from imgclf.data.dataset import Sample
from imgclf.estimator.plan import Plan
from imgclf.models.backbones import find_arch
from imgclf.models.weights import AUTO
from imgclf.training.defaults import JUDGES
from imgclf.training.recipes import EXPERIMENTS

BY_USER = "set by you"
SHARED = "as given, else that of the initial model"


def describe(plan: Plan, found: Sequence[Decision] = ()) -> tuple[Decision, ...]:
    """One line for each thing that a user may want to choose otherwise; `found` are those that were measured."""
    measured, train = {decision.name: decision for decision in found}, plan.split.samples("train")
    rows = [*_pixels(plan, train), *_training(plan, train)]
    return tuple(measured.pop(row.name, row) for row in rows) + tuple(measured.values())


def _pixels(plan: Plan, train: Sequence[Sample]) -> Iterator[Decision]:
    preprocess, arch = plan.preprocess, find_arch(plan.spec.arch)
    (height, width), sizes = preprocess.size, plan.audit.sizes
    if plan.asked.arch == AUTO:
        best = f"the best with pretrained weights on this machine ({plan.weights.source}); --arch picks another"
        plain = "the default; --arch picks another"
        yield Decision("arch", plan.spec.arch, best if plan.weights.used == "pretrained" else plain)
    small = "" if sizes is None else f"the images are small: {sizes.median[0]}×{sizes.median[1]} in the median"
    reason = "the network's own" if preprocess.size == arch.size else small
    yield Decision("size", f"{height}×{width}", _reason(plan, "size", reason))
    wide = "" if sizes is None else f"a crop would cut too much: width by height is {_range(*sizes.aspects)}"
    how = {"crop": "crops the longer side", "pad": "pads the shorter side"}.get(preprocess.resize_mode)
    fit = wide if how is None else f"{how}; keeps the aspect ratio"
    fit = "the network's own" if preprocess.resize_mode == arch.resize_mode != "crop" else fit
    yield Decision("resize_mode", preprocess.resize_mode, _reason(plan, "resize_mode", fit))
    if preprocess.levels:
        deep = sum(sample.levels is not None for sample in train)
        why = f"become 0 to 255; {deep:,} of {len(train):,} training images have more than 8 bits"
        yield Decision("levels", ", ".join(map(str, preprocess.levels)), why)
    yield Decision("augment", str(plan.experiment.augment), _reason(plan, "augment", _start(plan)))


def _start(plan: Plan) -> str:
    return "from pretrained weights" if plan.pretrained else "from scratch"


def _training(plan: Plan, train: Sequence[Sample]) -> Iterator[Decision]:
    asked, config = plan.asked.train, plan.experiment.train
    start = _start(plan)
    yield Decision("probe", _yes(config.probe), _reason(plan, "train.probe", _why_probe(plan)))
    if config.epochs == 0:
        if asked.epochs is None:
            why = f"{JUDGES} valid images or more could tell whether training does better; --epochs trains all the same"
            yield Decision("epochs", "0", why)
        return
    norms = "few, small batches: pretrained statistics are kept" if config.freeze_norm else start
    frozen = (
        "of twelve parts of the depth, the first ones are not trained" if config.freeze_stages else "all is trained"
    )
    decay = f"each twelfth of the layers learns at {config.layer_decay:g} × the rate of the next"
    decay = f"off: one rate for all layers, {start}" if config.layer_decay == 1 else decay
    counts = Counter(sample.label for sample in train).most_common()
    (most, many), (least, few) = counts[0], counts[-1]
    spread = f"{few:,} ({printable(least)}) to {many:,} ({printable(most)}) images per class"
    for name, value, why in (
        ("epochs", str(config.epochs), f"{len(train):,} training images, {start}"),
        ("lr", f"{config.lr:g}", f"{config.optimizer}, {start}"),
        ("layer_decay", f"{config.layer_decay:g}", decay),
        ("freeze_norm", _yes(config.freeze_norm), norms),
        ("freeze_stages", str(config.freeze_stages), f"{frozen}, {start}"),
        ("ema", f"{config.ema:g}", "the running mean of the weights is kept" if config.ema else start),
        ("class_weights", str(config.class_weights), spread if few < many else f"{few:,} images per class"),
    ):
        yield Decision(name, value, _reason(plan, f"train.{name}", why))


def _why_probe(plan: Plan) -> str:
    """Why training begins with a linear head on frozen features, or why it does not."""
    if not plan.pretrained:
        return "from scratch"
    if plan.weights.head == "whole":
        return "the head knows the classes already"
    if not plan.experiment.train.probe:
        return "it has no linear last layer with a bias"
    return "some classes are new to the head" if plan.weights.head == "part" else "from pretrained weights"


def _reason(plan: Plan, name: str, reason: str) -> str:
    """Why a field of the experiment ("size", "train.lr") has its value: `reason`, unless the user or a recipe says."""
    given = attrgetter(name)(plan.asked)
    if given is None:
        return reason
    if plan.base is not None and attrgetter(name)(EXPERIMENTS.get(plan.base)) == given:
        return f"recipe {plan.base}"
    return SHARED if plan.asked.init and name in ("size", "resize_mode") else BY_USER


def _range(low: float, high: float) -> str:
    ends = f"{low:.2f}", f"{high:.2f}"
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _yes(value: bool | None) -> str:
    return "yes" if value else "no"
