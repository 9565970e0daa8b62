"""`Classifier`: fit, evaluate, predict, save and load, composed of the public functions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.core.arguments import as_path, whole
from imgclf.core.config import EXPLAIN_METHODS, ExperimentConfig
from imgclf.core.errors import ConfigError, DataError, NotFitted, warn_caller
from imgclf.core.results import Evaluation, Explanation, Prediction
from imgclf.core.text import first_few, printable
from imgclf.data.audit import audit
from imgclf.data.classes import spelled_as
from imgclf.data.dataset import SPLIT_NAMES, Sample, Source
from imgclf.data.loading.loader import Loader
from imgclf.data.sources.inputs import far_values, inputs_source
from imgclf.data.split import (
    Split,
    choose_samples,
    match_rows,
    pack_contents,
    read_split,
    unpack_contents,
)
from imgclf.data.write import require_apart
from imgclf.estimator.fit import Data, fit, repeat, resume
from imgclf.estimator.plan import make_loader
from imgclf.estimator.recorder import FitResult, figures
from imgclf.estimator.settings import Builder, own_network, resolve_request
from imgclf.evaluation.inference import Progress, collect_predictions, device_of, predict
from imgclf.evaluation.ood import Rejector
from imgclf.evaluation.openvino import network_for, pick_backend
from imgclf.evaluation.predictions import Predictions, write_predictions
from imgclf.evaluation.saliency import explain
from imgclf.models.own import OWN, own_arch, using
from imgclf.runtime import distributed
from imgclf.runtime.compute import memory_format_of
from imgclf.runtime.device import pick_device, pick_precision
from imgclf.storage.model_file import read_model, save_model
from imgclf.storage.run_folder import (
    CONFIG,
    HISTORY,
    MODEL,
    PREDICTIONS,
    SPLIT,
    Run,
    find_model,
    open_run,
    read_config,
    read_history,
    write_info,
)
from imgclf.storage.run_source import labeled_source
from imgclf.training.events import Callback

PARTS = ("all", *SPLIT_NAMES)
OTHER_NAMES = {"val": "valid", "validation": "valid"}
# What a classifier knows after `fit`, and what sets it.
FITTED = {
    name: setter
    for setter, names in (
        (
            "fit or load",
            "classes_ manifest_ metrics_ model_ model_config_ ood_ predictions_ preprocess_ seen_ unreadable_",
        ),
        ("fit, or by loading a run", "history_ split_"),
        ("fit only", "config_ decisions_ findings_ plan_ probe_ source_ weights_"),
    )
    for name in names.split()
}


def part_named(name: str | None) -> str | None:
    """The part of the data that is called so here or in other tools; `ConfigError` for a name of none."""
    if name is not None and (name := OTHER_NAMES.get(str(name), name)) not in PARTS:
        raise ConfigError(f"part is {name!r}; allowed: {', '.join(PARTS)}")
    return name


class Classifier:
    """An image classifier that follows the contract of scikit-learn: the constructor only stores, `fit` returns `self`.

    Everything left out is chosen to suit the data.

    Args:
        arch: The name of an architecture, or a network of the user's own (`docs/own-networks.md`): a module, its class,
            or a function that returns one. None is the best one whose pretrained weights are on this machine.
        weights: The initial weights: `auto`, `pretrained`, `none`, a path or a hub name.
        init: A run folder or model file to continue from, with its network, pixels and classes.
        size: A side or (height, width) in pixels.
        augment: The name of a preset, or an `albumentations.Compose`.
        recipe: The name of an experiment, or an `ExperimentConfig`, which the other arguments then change.
        config: Changes of any other field of the experiment, as in `{"resize_mode": "pad"}`.
        pretrained: Whether the user's own network has trained weights.
        mean: The mean of the pixels, 0…1 in each channel.
        std: Their standard deviation.

    After `fit` or `load` there are `classes_`, `model_` and `preprocess_` (the preprocessing). After `fit` there are
    also `history_`, `split_`, `source_`, `findings_` (sentences on likely problems of the images), `weights_` (the
    initial weights), `config_` (the experiment with every setting chosen) and `run_`; the results on the parts of the
    data are in `metrics_` and, image by image, in `predictions_`. `history_`, `split_` and `run_` are there after the
    `load` of a run, too; other attributes raise `NotFitted`.

    Example:
        >>> from imgclf import Classifier
        >>> classifier = Classifier("lenet").fit("digits", epochs=1)
        >>> classifier.evaluate().accuracy > 0.5
        True
    """

    precision_ = "fp32"  # of evaluation and prediction
    backend_ = "auto"  # what computes them
    run_: Run | None = None

    def __init__(
        self,
        arch: str | Builder | None = None,
        *,
        weights: str | None = None,
        init: str | os.PathLike[str] | None = None,
        size: int | tuple[int, int] | None = None,
        augment: Any = None,
        recipe: str | ExperimentConfig | None = None,
        config: Mapping[str, Any] | None = None,
        pretrained: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.arch = arch
        self.weights = weights
        self.init = init
        self.size = size
        self.augment = augment
        self.recipe = recipe
        self.config = config
        self.pretrained = pretrained
        self.mean = mean
        self.std = std

    if not TYPE_CHECKING:  # type checkers still find misspelled names

        def __getattr__(self, name: str) -> Any:
            if name not in FITTED:
                return super().__getattribute__(name)  # raises Python's own error, with a suggestion
            if "model_" in vars(self):
                raise NotFitted(f"this classifier has no {name}: it is set by {FITTED[name]}")
            raise NotFitted("this classifier is not fitted yet: call fit, or Classifier.load")

    def __repr__(self) -> str:
        given = ((name, value) for name, value in vars(self).items() if not name.endswith("_"))
        shown = (f"{name}={value!r}" for name, value in given if value is not None and value is not False)
        return f"Classifier({', '.join(shown)})"

    def fit(
        self,
        data: Data,
        *,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | Literal["auto"] | None = None,
        seed: int | None = None,
        runs: str | os.PathLike[str] | None = None,
        name: str | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Classifier:
        """Train, and keep the best weights. Ctrl-C ends training, and keeps the best weights so far.

        What looks wrong about the images, and missing weights, are Python warnings.

        Args:
            data: A folder, a CSV file, a named data set, or a `Source`.
            epochs: How often training sees each image.
            lr: Learning rate.
            batch_size: Images per step; "auto" is the largest number that fits into the memory.
            seed: Of all random numbers.
            runs: The folder in which a run folder is made. With it the test images are tested once, and a report is
                written; without it nothing is written.
            name: The name of the run folder; else it is called after the data and the architecture.
            callbacks: Functions that get the events (`imgclf/training/events.py`).

        Raises:
            DataError: Something is wrong with the data.
            ConfigError, UnknownName: A setting is not possible.
            TrainingDiverged, OutOfMemory: See `train`.

        Example:
            >>> from imgclf import Classifier
            >>> classifier = Classifier("lenet").fit("digits", epochs=1, runs="runs", name="third")
            >>> len(classifier.history_), classifier.run_.path.name
            (1, 'third')
        """
        knobs = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
        request = resolve_request(vars(self), knobs, runs, name)
        with self._anew():
            return self._take(fit(request, data, callbacks))

    def resume(
        self, run: str | os.PathLike[str], *, epochs: int | None = None, callbacks: Sequence[Callback] = ()
    ) -> Classifier:
        """Resume the training of a run where it stopped, on the same images, up to `epochs` in total.

        The run is given as its folder or as its name under `runs`.

        A run that ended before it had written its state begins again, in the same folder.
        """
        with self._anew():
            return self._take(resume(as_path("run", run), epochs, callbacks))

    def repeat(self, run: str | os.PathLike[str], *, callbacks: Sequence[Callback] = ()) -> Classifier:
        """Train again from the start as a run did, on the same images; nothing is written."""
        with self._anew():
            return self._take(repeat(as_path("run", run), callbacks))

    @contextmanager
    def _anew(self) -> Iterator[None]:
        """Forget the fit before, also if this one fails; meanwhile, the user's own network is known by its name."""
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        with using(own_network(vars(self))):
            yield

    def _take(self, learnt: FitResult) -> Classifier:
        plan = self.plan_ = learnt.start.plan.with_new_loaders()  # those of training keep pixels
        self.model_, self.model_config_, self.preprocess_ = plan.model, plan.spec, plan.preprocess
        self.config_, self.weights_, self.findings_ = plan.experiment, plan.weights, plan.audit.all_findings
        self.classes_, self.source_, self.split_, self.seen_ = plan.source.classes, plan.source, plan.split, plan.seen
        self.history_, self.probe_, self.decisions_ = learnt.history, learnt.start.probe, learnt.start.decisions
        self.predictions_ = dict(learnt.predictions)
        self.metrics_ = {part: known.evaluation for part, known in learnt.predictions.items()}
        self.manifest_, self.ood_ = learnt.manifest, learnt.ood
        self.run_, self.unreadable_, self.backend_ = learnt.run, dict(learnt.unreadable), plan.backend
        return self

    def evaluate(
        self, data: Data | None = None, *, part: str | None = None, progress: Progress | None = None
    ) -> Evaluation:
        """How good the model is: on its own test images or, with `data`, on any labeled ones, matched by class name.

        After a `fit` with a run folder, which has tested, the result is that of its test.

        Of `data`, images that the model was trained or validated on are left out, and only the test part is used where
        they are divided. `part` asks for `train`, `valid`, `test` or `all` instead. Where training saw some of the
        images that are used, as copies in the user's own train and test folders, the figures are of all, and their
        `unseen` is of those that it didn't see. A model that was loaded from a file away from its run folder still
        knows them by their content, up to 200,000 images (`seen_`). What could not be read is in `unreadable_` (path →
        reason). Values far beyond those of training, in images of more than 8 bits, are a Python warning.

        Example:
            >>> from imgclf import Classifier
            >>> Classifier.load("runs/first").evaluate().n
            270
        """
        part = part_named(part)
        run = self.run_ if data is None and part in (None, "test") and hasattr(self, "plan_") else None
        if run is not None and "test" in self.metrics_:  # `fit` has tested
            return self.metrics_["test"]
        source, samples = self.samples_of(data, part)
        predictions = self.predictions_of(source, samples, progress)
        if far := far_values(source, samples, self.preprocess_.levels):
            warn_caller(far)
        if data is None:
            part = part or "test"
            self.predictions_[part], self.metrics_[part] = predictions, predictions.evaluation
            if run is not None:
                write_predictions(run.path / PREDICTIONS, predictions)
                self.run_ = write_info(run, unreadable_later=tuple(self.unreadable_.items()))
        return predictions.evaluation

    def predictions_of(
        self, source: Source, samples: Sequence[Sample], progress: Progress | None = None
    ) -> Predictions:
        """The predictions of the model for these labeled samples of a source."""
        model, loader = self.model_, self.loader(source, samples, cache=self._cache())
        predictions = collect_predictions(
            model, loader, None, progress, self.precision_, self.temperature_, self.seen_, self.backend_
        )
        self.unreadable_ = {**self.unreadable_, **loader.unreadable}
        return predictions

    def samples_of(self, data: Data | None = None, part: str | None = None) -> tuple[Source, list[Sample]]:
        """The images that `evaluate` uses for these arguments, and the source that opens them."""
        classes, part = self.classes_, part_named(part)
        if data is None and hasattr(self, "source_"):
            source = self.source_
        else:
            audited = audit(labeled_source(data, self.run_), strict=False, allow_unreadable=1.0)
            source = spelled_as(audited.source, classes)
            self.unreadable_ = {bad.ref: bad.reason for bad in audited.unreadable}
        if data is None:  # whatever has come since is not of its data
            part = part or "test"
            matched = match_rows(self.split_.rows, source.samples)
            samples = [sample for row, sample in matched if sample is not None and part in ("all", row.split)]
        else:
            samples = choose_samples(source, getattr(self, "split_", None), self.seen_, part)
            if unknown := sorted(set(source.classes) - set(classes)):
                both = f"the model knows {first_few(classes, 10)}; the data have {first_few(source.classes, 10)}"
                own = ", or name no data to test on the run's own images" if hasattr(self, "split_") else ""
                todo = f"choose another model (--model) or images of the model's classes{own}"
                problem = f"{source.name} has classes that the model does not know ({both}): {todo}"
                raise DataError(problem, unknown)
        if not samples and part:
            others = ", ".join(PARTS)
            raise DataError(f"{source.name} has no images in its part {part!r}; choose another --part: {others}")
        if not samples:
            rows = self.split_.rows if hasattr(self, "split_") else ()
            used = {row.split for row, sample in match_rows(rows, source.samples) if sample is not None}
            roles = [role for name, role in (("train", "training"), ("valid", "validation")) if name in used]
            images = f"{' or '.join(roles) or 'training or validation'} images of this model"
            raise DataError(f"{source.name} has nothing to test on but {images}; --part all uses them anyway")
        return source, samples

    def predict_each(
        self, images: Any, *, top: int = 5, reject: float | None = None, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """One `Prediction` after the other, for a path, a folder, a PIL image, an array, a file's bytes, or a list.

        An array is uint8 of (height, width) or (height, width, channels). A PIL image is turned as its EXIF says, also
        where it was converted, copied or resized: who turns one by hand takes the tag out (`ImageOps.exif_transpose`
        does both). `top` is how many classes each prediction
        lists. An image that cannot be read gives a prediction with an `error`. With `reject`, 0.05 for example, images
        that look unlike anything in training are not `accepted`; the threshold also rejects about that share of images
        of the known classes. `ConfigError` says why a model has no such threshold.
        """
        model, source, top = self.model_, inputs_source(images), whole("top", top, 1)
        loader = self.loader(source, source.samples, cache="off", batch_size=batch_size, shard=(0, 1))
        precision, rejector = self.precision_, None
        if reject is not None:
            if self.ood_ is None:
                raise ConfigError(f"this model has no unknown-image detection: {self.manifest_.ood['missing']}")
            rejector = Rejector(self.ood_, reject)
        temperature, backend = self.temperature_, self.backend_
        return predict(
            model,
            loader,
            top=top,
            precision=precision,
            temperature=temperature,
            rejector=rejector,
            backend=backend,
        )

    def compiled(self) -> bool:
        """Whether OpenVINO computes the predictions; if so, the network is compiled now, or read from the cache."""
        device = device_of(self.model_)
        precision = pick_precision(self.precision_, device)
        return network_for(self.model_, self.preprocess_, device, precision, self.backend_) is not None

    def predict(self, images: Any, *, top: int = 5, reject: float | None = None) -> list[Prediction]:
        """The predictions of `predict_each`, all at once.

        Values far beyond those of training, in images of more than 8 bits, are a Python warning.

        Example:
            >>> from imgclf import Classifier, open_source
            >>> source = open_source("digits")
            >>> (prediction,) = Classifier.load("runs/first").predict(source.open(source.samples[0].ref), top=3)
            >>> len(prediction.top), len(prediction.probabilities)
            (3, 10)
        """
        source = inputs_source(images)
        predictions = list(self.predict_each(source, top=top, reject=reject))
        if far := far_values(source, source.samples, self.preprocess_.levels):
            warn_caller(far)
        return predictions

    def predict_proba(self, images: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), columns in the order of `classes_`; `DataError` where an image can't be read."""
        predictions = self.predict(images, top=1)
        bad = [f"{printable(p.path)}: {p.error}" for p in predictions if p.error is not None]
        if bad:
            raise DataError("no probabilities for images that cannot be read", bad)
        return np.array([[p.probabilities[name] for name in self.classes_] for p in predictions])

    def explain(self, images: Any, *, method: str = EXPLAIN_METHODS[0], label: str | None = None) -> list[Explanation]:
        """Where in each image the evidence for the predicted class, or for `label`, is; see `imgclf.explain`."""
        source = inputs_source(images)
        model, loader = self.model_, self.loader(source, source.samples, cache="ram", shard=(0, 1))
        precision, temperature = self.precision_, self.temperature_
        return explain(model, loader, method=method, label=label, precision=precision, temperature=temperature)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model file: weights, classes and preprocessing in one. A folder gets a `model.safetensors`.

        `DataError` for a path inside the training data.
        """
        model, metrics = self.model_, dict(self.manifest_.metrics)
        if hasattr(self, "source_"):
            require_apart(as_path("path", path), [self.source_.location])
        if hasattr(self, "split_"):
            metrics |= figures(self.metrics_, self.split_)
        own = None if isinstance(self.arch, str | None) else own_arch(self.arch, new_head=True)
        with using(own):
            save_model(path, model, replace(self.manifest_, metrics=metrics), self.ood_)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        arch: Builder | None = None,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        backend: str = "auto",
    ) -> Classifier:
        """A classifier from a model file or a run, ready to evaluate and predict on `device` in `precision`.

        A run is given as its folder or as its name under `runs`. Where the file lies in its run folder, the classifier
        knows the split of its training too. `arch` is the code of a network of the user's own, which no file brings
        along; `ModelFileError` where the weights don't fit it.

        Example:
            >>> from imgclf import Classifier
            >>> Classifier.load("runs/first").classes_[:3]
            ('0', '1', '2')
        """
        file = find_model(path)
        with using(None if arch is None else own_arch(arch, new_head=True)):
            model, manifest, ood = read_model(file)
        if arch is not None and not manifest.model.arch.startswith(OWN):
            raise ConfigError(f"{file} holds a {manifest.model.arch}, which is no network of your own: leave out arch")
        self = cls(arch or manifest.model.arch, weights=manifest.weights.get("asked"), size=manifest.model.size)
        self.model_ = model.to(pick_device(device), memory_format=memory_format_of(model))  # type: ignore[call-overload]
        self.precision_, self.backend_ = precision, backend
        pick_precision(precision, device_of(model))  # one that the device does not have is refused here
        pick_backend(backend, model, manifest.preprocess, device_of(model))
        self.model_config_, self.classes_, self.preprocess_ = manifest.model, manifest.classes, manifest.preprocess
        self.manifest_, self.ood_, self.seen_ = manifest, ood, unpack_contents(manifest.seen)
        self.metrics_, self.predictions_, self.unreadable_ = {}, {}, {}
        if file.name == MODEL:
            with suppress(DataError, OSError):  # the model file works without the run's other files
                run, split = open_run(file.parent), Split(read_split(file.parent / SPLIT))
                if manifest.seen == pack_contents((*split.samples("train"), *split.samples("valid"))):
                    self.run_, self.split_ = run, split
                    self.history_ = replace(read_history(run.path / HISTORY), ended=run.info.status)
        return self

    @property
    def temperature_(self) -> float:
        """The divisor of the logits: fitted on the validation images, 1 if there were too few."""
        return float(self.manifest_.calibration["temperature"])

    def _cache(self) -> str:
        """The cache of labeled images: on the disk if the training images are cached there, else none."""
        if hasattr(self, "config_"):
            used = self.config_.data.cache
        else:
            values = read_config(self.run_.path / CONFIG)[0] if self.run_ is not None else {}
            used = values.get("data", {}).get("cache", "off")
        return "disk" if used == "disk" else "off"

    def loader(self, source: Source, samples: Sequence[Sample], **options: Any) -> Loader:
        """A loader of some samples with this model's classes, pixels and, if known, the batch size of its training;
        `options` are those of `Loader`."""
        model = self.model_
        options = {"classes": self.classes_, "shard": distributed.shard(), "cache": "auto", **options}
        if hasattr(self, "config_"):
            return make_loader(self.config_, self.preprocess_, source, samples, **options)
        return Loader(source, samples, self.preprocess_, **{"device": device_of(model), **options})
