"""Between the plan and the first step: first pixels, a probe, what the labels bear, how much time there is."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imgclf.core.config import PreprocessConfig, TrainConfig
from imgclf.core.errors import ConfigError, ModelFileError
from imgclf.core.results import Decision, Probe
from imgclf.data.dataset import Sample, Source
from imgclf.data.loading.loader import Loader
from imgclf.data.split import content_key, unpack_contents
from imgclf.estimator.decisions import describe
from imgclf.estimator.events import DecisionsMade, ProbeFitted
from imgclf.estimator.plan import Plan, plan_training
from imgclf.estimator.settings import Request
from imgclf.evaluation.inference import evaluate, infer
from imgclf.runtime import distributed
from imgclf.storage.model_file import read_manifest
from imgclf.training.defaults import EPOCHS
from imgclf.training.events import Callback, notify, progress_of
from imgclf.training.linear_probe import fit_probe_on_features
from imgclf.training.loss import class_weights
from imgclf.training.throughput import train_rate
from imgclf.transforms.ops_cpu import LUMA
from imgclf.transforms.preprocess import to_input
from imgclf.transforms.presets import RECOLORING, limited

FIRST_PIXELS = 5_000 * 32 * 32  # of each channel, for a network that starts from the data
SEEN = 200  # valid images that are looked at in other ways
MEASURED = 3.0  # seconds
LONGER = 4  # times as many epochs as would be taken without a limit, at most
Alteration = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Start:
    """The plan with what was found out, the probe if there is one, and every decision with its reason; and the features
    (m, d) of training images by which the probe was fitted."""

    plan: Plan
    probe: Probe | None = None
    decisions: tuple[Decision, ...] = ()
    features: NDArray[np.float32] | None = None


def warm_start(plan: Plan, callbacks: Sequence[Callback]) -> Start:
    """Bring the model of a plan to where training starts, and settle what its first answers tell.

    Tells the callbacks of the probe and of the decisions. Raises what `fit_to_time` and `fit_probe` raise.
    """
    train, valid = plan.split.samples("train"), plan.valid_loader
    load = partial(plan.loader, shard=distributed.shard(), cache="auto")
    if not plan.pretrained:
        most = max(1, FIRST_PIXELS // math.prod(plan.preprocess.size))
        few = load(train[:: -(-len(train) // most)], shard=(0, 1), device=torch.device("cpu"))
        init_from = getattr(plan.model, "init_from", None)
        if init_from is not None:  # it starts from images, on the processor
            init_from(torch.cat([to_input(batch.pixels, few.preprocess, few.device) for batch in few.epoch()]))
    plan.model.to(plan.device).eval()
    start, found = Start(plan), tuple[Decision, ...]()
    if plan.experiment.train.probe:
        start = probe_head(plan, load(train, cache=plan.experiment.data.cache), callbacks)
    if plan.experiment.train.epochs and valid is not None and plan.knows_classes:
        plan, found = check_label_preserving(plan, load(valid.samples[:: -(-len(valid) // SEEN)]))
    if plan.experiment.train.epochs and plan.experiment.train.minutes is not None:
        plan, decision = fit_to_time(plan)
        found = (*found, decision)
    start = replace(start, plan=plan, decisions=describe(plan, found))
    notify(callbacks, DecisionsMade(start.decisions))
    return start


def plan_start(request: Request, data: str | os.PathLike[str] | Source, callbacks: Sequence[Callback]) -> Start:
    """Where training takes its first step.

    A limit of minutes is left aside: nothing is fitted to it. Raises what training would raise before its first step.
    """
    return warm_start(plan_training(request, data, callbacks).with_train(minutes=None), callbacks)


def has_seen(plan: Plan, samples: Sequence[Sample]) -> bool:
    """Whether a plan starts from a model file of ours that has seen some of the samples, or can't tell what it saw."""
    if plan.weights.used != "file":
        return False
    try:
        seen = unpack_contents(read_manifest(plan.weights.source).seen)
    except ModelFileError:  # of others, as published weights are
        return False
    return not seen or any(content_key(sample) in seen for sample in samples)


def probe_head(plan: Plan, loader: Loader, callbacks: Sequence[Callback]) -> Start:
    """Give the network, on its own device, the head of a logistic regression on its features of the loader's images."""
    model, config = plan.model, plan.experiment.train
    weight = class_weights(loader.targets, len(loader.classes), config.class_weights)
    probe, features = fit_probe_on_features(
        model,
        loader,
        plan.dtype,
        weight=weight,
        progress=progress_of("computing features", callbacks),
        backend=plan.backend,
    )
    if has_seen(plan, loader.samples):
        note = "the network was trained on some of these images"
        probe = replace(probe, accuracy=math.nan, error=math.nan, loss=math.nan, note=note)
    notify(callbacks, ProbeFitted(probe))
    return Start(plan, probe, features=features)


def check_label_preserving(plan: Plan, valid: Loader) -> tuple[Plan, tuple[Decision, ...]]:
    """Whether mirrored images keep their labels, and images in gray, where that was left open.

    A model whose head knows the classes is asked about valid images as they are and altered. An alteration changes
    labels where, of the answers that turn from right to wrong or from wrong to right, significantly more turn wrong
    (McNemar 1947, two standard errors). Gives the plan without augmentation that changes labels, and what was found.
    """
    experiment, preprocess, model = plan.experiment, plan.preprocess, plan.model
    asked: list[tuple[str, str, Alteration]] = []
    if experiment.mirror is None and any(step.op in ("flip", "alternating_flip") for step in preprocess.steps):
        asked.append(("mirror", "mirrored", lambda images: images.flip(3)))
    if experiment.recolor is None and preprocess.channels == 3 and any(s.op in RECOLORING for s in preprocess.steps):
        asked.append(("recolor", "gray", _graying(preprocess)))
    if not asked:
        return plan, ()
    right = _right(model, valid, plan.device, plan.dtype)
    decisions = []
    for field, word, alter in asked:
        altered = _right(nn.Sequential(_Altered(alter), model), valid, plan.device, plan.dtype)
        harmless = _harmless(right, altered)
        found: dict[str, Any] = {field: harmless}
        experiment = replace(experiment, **found)
        figures = f"accuracy on {len(right)} valid images {right.mean():.1%}, {word} {altered.mean():.1%}"
        decisions.append(Decision(field, "yes" if harmless else "no", figures))
    steps = limited(preprocess.steps, mirror=experiment.mirror is not False, recolor=experiment.recolor is not False)
    plan = replace(plan, experiment=experiment, preprocess=replace(preprocess, steps=steps))
    return plan if steps == preprocess.steps else plan.with_new_loaders(), tuple(decisions)


class _Altered(nn.Module):
    """A layer without weights."""

    def __init__(self, alter: Alteration) -> None:
        super().__init__()
        self._alter = alter

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The altered images."""
        return self._alter(images)


def _graying(preprocess: PreprocessConfig) -> Alteration:
    """Normalized images (n, 3, height, width) as if they had been gray."""

    def gray(images: torch.Tensor) -> torch.Tensor:
        known = torch.tensor(
            [LUMA.tolist(), preprocess.mean, preprocess.std], dtype=torch.float32, device=images.device
        )
        luma, mean, std = known[:, :, None, None]
        level = ((images * std + mean) * luma).sum(1, keepdim=True)
        altered: torch.Tensor = (level - mean) / std
        return altered

    return gray


def _right(model: nn.Module, loader: Loader, device: torch.device, precision: torch.dtype) -> np.ndarray[Any, Any]:
    logits, targets, _ = infer(model, loader, device, None, precision)
    right: np.ndarray[Any, Any] = logits.argmax(1) == targets
    return right


def _harmless(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> bool:
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    return lost - won <= 2 * math.sqrt(lost + won)


def fit_to_time(plan: Plan) -> tuple[Plan, Decision]:
    """The plan with as many epochs as fit in its `minutes`, of which the time since the plan was begun is gone.

    A few steps of a copy of the model are measured, and one look at valid; time is left for the last one. An epoch is
    cut where the time does not suffice for a whole one. Epochs that were asked for are the most, else four times as
    many as without a limit. The config's `minutes` become those of training itself, which ends then whatever was
    measured. Raises `ConfigError` where nothing remains.
    """
    config, valid = plan.experiment.train, plan.valid_loader
    assert config.minutes is not None
    step = seconds_a_step(plan.model, plan.train_loader, config)
    began = time.perf_counter()
    if valid is not None:
        evaluate(plan.model, valid)
    check = time.perf_counter() - began
    left = 60 * config.minutes - (time.perf_counter() - plan.began) - check
    if left <= step + check:
        raise ConfigError(f"minutes is {config.minutes:g}, and nothing of it remains for training: give more time")
    steps = plan.steps_per_epoch
    most = plan.asked.train.epochs or LONGER * EPOCHS[plan.pretrained][1]
    epochs = min(most, max(1, math.ceil(left / (steps * step + check))))
    cut = min(steps, max(1, int((left / epochs - check) / step)))
    epoch_steps = cut if cut < steps else config.epoch_steps
    value = f"{epochs}" + (f", of {cut} of {steps} steps" if cut < steps else "")
    reason = f"{left:.0f} s are left for training, a step takes {1000 * step:,.0f} ms"
    timed = plan.with_train(epochs=epochs, epoch_steps=epoch_steps, minutes=left / 60)
    return timed, Decision("epochs", value, reason)


def seconds_a_step(model: nn.Module, loader: Loader, config: TrainConfig) -> float:
    """How long a step takes with what belongs to it, measured for about three seconds on a copy of the model."""
    return loader.batch_size / train_rate(model, loader, config, MEASURED)
