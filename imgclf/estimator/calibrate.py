"""Calibration of a trained network: the temperature of its probabilities, and its unknown-image detection."""

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
from imgclf.storage.model_file import Manifest
from imgclf.training.events import Callback, progress_of

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Calibrated:
    """The validation predictions at the fitted temperature, and the unknown-image detector (`ood`).

    `note` says why the temperature is 1, and `missing` why there is no detector; "" where there is one.
    """

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
        """The divisor of the logits."""
        return 1.0 if self.valid is None else self.valid.temperature

    def within(self, manifest: Manifest) -> Manifest:
        """A manifest with this calibration; saving adds the shapes of the detector."""
        images = 0 if self.note or self.valid is None else len(self.valid)
        calibration = {"temperature": self.temperature, "images": images, "note": self.note}
        return replace(manifest, calibration=calibration, ood={"missing": self.missing})


def calibrate(plan: Plan, history: History, known: Features | None, callbacks: Sequence[Callback]) -> Calibrated:
    """Fit the temperature and the unknown-image detector of a trained network on its validation images.

    Args:
        plan: The plan of the training, with the trained network.
        history: The history of the training; an interrupted one is not calibrated.
        known: Features (m, d) of training images before the first step, valid where only the head was changed.
        callbacks: Functions that get the progress.
    """
    if history.ended == "interrupted":
        return Calibrated(note="training was interrupted", missing="training was interrupted")
    if plan.valid_loader is None:
        return Calibrated(note="there are no validation images", missing="there are no validation images")
    model, valid, ood = plan.model, plan.valid_loader, None
    try:
        if len(valid) < MIN_VALID_IMAGES:
            raise ConfigError(f"needs {MIN_VALID_IMAGES} validation images, has {len(valid)}")
        predictions, features = predictions_with_features(model, valid, backend=plan.backend)
        if known is None or not plan.knows_classes or history.best is not None:
            # bfloat16 is precise enough for reference points; large features overflow in float16.
            precision = plan.dtype if plan.dtype is torch.bfloat16 else torch.float32
            progress = progress_of("computing features for unknown-image detection", callbacks)
            known = features_of(model, plan.train_loader, progress, precision, plan.backend)
        ood, missing = fit_ood(known, predictions.logits, features), ""
    except ConfigError as error:
        predictions, missing = collect_predictions(model, valid, backend=plan.backend), str(error)
    temperature, note = choose_temperature(predictions.logits, predictions.targets)
    return Calibrated(note, missing, replace(predictions, temperature=temperature), ood)


def features_of(
    model: nn.Module,
    loader: Loader,
    progress: Progress | None = None,
    precision: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Features:
    """The features (m, d) of up to 2,000 of the loader's samples, evenly from their classes, as they are evaluated."""
    chosen = loader.as_evaluated(choose_evenly(np.array(loader.targets)).tolist())
    return predictions_with_features(model, chosen, progress, precision, backend)[1]
