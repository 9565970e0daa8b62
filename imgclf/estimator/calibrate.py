"""What a trained network may claim: a temperature for its probabilities, and what it knows unlike images by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imgclf.core.errors import ConfigError
from imgclf.core.results import History
from imgclf.data.loading.loader import Loader
from imgclf.estimator.plan import Plan
from imgclf.evaluation.calibration import choose_temperature
from imgclf.evaluation.inference import Progress, collect_predictions, predictions_with_features
from imgclf.evaluation.ood import MIN_VALID_IMAGES, OodDetector, choose_evenly, fit_ood
from imgclf.evaluation.predictions import Predictions
from imgclf.models.features import feature_layers
from imgclf.storage.model_file import Manifest
from imgclf.training.events import Callback, progress_of

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Calibrated:
    """Why the temperature is 1, as a `note`, and why it is not known what is unlike the images, as `missing`; "" where
    they are known: what the network says of the validation images at the temperature, and the detector (`ood`)."""

    note: str
    missing: str
    valid: Predictions | None = None
    ood: OodDetector | None = None

    @property
    def predictions(self) -> dict[str, Predictions]:
        """By part."""
        return {} if self.valid is None else {"valid": self.valid}

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        return 1.0 if self.valid is None else self.valid.temperature

    def within(self, manifest: Manifest) -> Manifest:
        """A manifest with this calibration; the shapes of what is known are filled in where it is saved."""
        images = 0 if self.note or self.valid is None else len(self.valid)
        calibration = {"temperature": self.temperature, "images": images, "note": self.note}
        return replace(manifest, calibration=calibration, ood={"missing": self.missing})


def calibrate(plan: Plan, history: History, known: Features | None, callbacks: Sequence[Callback]) -> Calibrated:
    """Find out what the trained network of a plan may claim, by its validation images.

    Args:
        plan: What was trained.
        history: How training went; who interrupts it does not want to wait.
        known: Features (m, d) of training images before the first step, which hold where only the head was changed.
        callbacks: Told of the progress.
    """
    if history.ended == "interrupted":
        return Calibrated(note="training was interrupted", missing="training was interrupted")
    if plan.valid_loader is None:
        return Calibrated(note="there are no validation images", missing="there are no validation images")
    model, valid, ood = plan.model, plan.valid_loader, None
    missing = _why_not(model, valid)
    if missing:
        answers = collect_predictions(model, valid)
    else:
        answers, features = predictions_with_features(model, valid)
    temperature, note = choose_temperature(answers.logits, answers.targets)
    if not missing:
        if known is None or not plan.knows_classes or history.best is not None:
            # bfloat16 is enough for the points that others are compared with; float16 has no room for large features.
            precision = plan.dtype if plan.dtype is torch.bfloat16 else torch.float32
            told = progress_of("computing features for unknown-image detection", callbacks)
            known = features_of(model, plan.train_loader, told, precision)
        try:
            ood = fit_ood(known, answers.logits, features)
        except ConfigError as error:
            missing = str(error)
    return Calibrated(note, missing, replace(answers, temperature=temperature), ood)


def _why_not(model: nn.Module, valid: Loader) -> str:
    """Why the features of these images would be of no use; "" where they are."""
    if len(valid) < MIN_VALID_IMAGES:
        return f"needs {MIN_VALID_IMAGES} validation images, has {len(valid)}"
    try:
        feature_layers(model)
    except ConfigError as error:
        return str(error)
    return ""


def features_of(
    model: nn.Module, loader: Loader, progress: Progress | None = None, precision: torch.dtype = torch.float32
) -> Features:
    """The features (m, d) of up to 2,000 of the loader's samples, evenly from their classes, as they are evaluated."""
    chosen = loader.as_evaluated(choose_evenly(np.array(loader.targets)).tolist())
    return predictions_with_features(model, chosen, progress, precision)[1]
