"""`Classifier`: fit, evaluate, predict, save and load, composed of the public functions."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from imgclf._files import printable
from imgclf.bundle import ARCH_NAME, Manifest, load_model, save_model
from imgclf.data.audit import audit
from imgclf.data.loader import Loader
from imgclf.data.open import open_source
from imgclf.data.prepare import require_outside
from imgclf.data.source import SPLIT_NAMES, Sample, Source
from imgclf.data.split import Split, choose_samples, content_key, pack_contents, read_split, unpack_contents
from imgclf.errors import SHOWN_PROBLEMS, ConfigError, DataError, NotFitted
from imgclf.inference import evaluate, predict
from imgclf.inputs import inputs_source
from imgclf.models._arch import ARCHS, Arch
from imgclf.models.weights import WeightsUsed
from imgclf.plan import (
    Plan,
    check_experiment,
    choose_experiment,
    labelled_source,
    make_plan,
    read_data,
    reading_options,
    require_same_data,
)
from imgclf.recorder import Recorder, start_run
from imgclf.results import Evaluation, History, Prediction
from imgclf.run import (
    CHECKPOINT,
    CONFIG,
    MODEL,
    SPLIT,
    Run,
    open_run,
    read_config,
    require_free,
    run_source,
    write_config,
    write_info,
)
from imgclf.specs import Experiment, ModelSpec, Recipe, from_dict
from imgclf.training.callbacks import Callback, notify
from imgclf.training.checkpoint import load_checkpoint
from imgclf.training.device import pick_device
from imgclf.training.loop import train
from imgclf.transforms.augment import compose_to_dict

Data = str | os.PathLike[str] | Source
Builder = Callable[[ModelSpec], nn.Module]
PARTS = ("all", *SPLIT_NAMES)


class Classifier:
    """An image classifier by the contract of scikit-learn: the constructor stores, `fit` works and returns `self`.

    `arch` is the name of an architecture, or a function from a `ModelSpec` to a module; `weights` says what it starts
    from (`auto`, `pretrained`, `none`, a path, a hub name); `size` is a side or (height, width) in pixels; `augment` is
    a preset's name or an `albumentations.Compose`. `recipe` is a named experiment, or an `Experiment`, which the others
    then change; `config` changes any other field of it, as in `{"fit": "pad", "train": {"weight_decay": 0.1}}`. What is
    left out is as it suits the data.

    After `fit` or `load` there are `classes_`, `model_` and `recipe_` (the pixels); after `fit` also `history_`,
    `split_`, `source_`, `metrics_`, `weights_` (what training started from), `experiment_` (what was done, with nothing
    left open) and `run_`.
    """

    def __init__(
        self,
        arch: str | Builder | None = None,
        *,
        weights: str | None = None,
        size: int | tuple[int, int] | None = None,
        augment: Any = None,
        recipe: str | Experiment | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.arch = arch
        self.weights = weights
        self.size = size
        self.augment = augment
        self.recipe = recipe
        self.config = config

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if not name.endswith("_") and value is not None}
        return f"Classifier({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def fit(
        self,
        data: Data,
        *,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        runs: str | os.PathLike[str] | None = None,
        name: str | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Classifier:
        """Train on a folder, a CSV file, a named data set or a `Source`. Ctrl-C ends it and keeps the best weights.

        `runs` is the folder in which a run folder is made (called `name`, else after the data and the architecture);
        without it nothing is written. `callbacks` are told of every step (`imgclf/training/callbacks.py`); without any,
        bad images and missing weights are Python warnings.

        Raises `DataError` for what is wrong with the data, `UnknownName` and `ConfigError` for what is asked, and what
        `train` raises.
        """
        knobs = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
        compose, changes = changes_of(self, knobs)
        reading = choose_experiment(self.recipe, changes).data
        source = open_source(data, **reading_options(reading))
        experiment = choose_experiment(self.recipe, changes, source.default_recipe)
        check_experiment(experiment)
        if runs is not None:
            require_outside(Path(runs), source)
            require_free(Path(runs), name)
        callbacks = callbacks or (warn_of,)
        audited, split = read_data(source, experiment, callbacks)
        source = audited.source
        plan = make_plan(experiment, source, len(split.samples("train")), compose)
        notify(callbacks, "model", plan)
        self._learn_from(plan, source, split)
        named = None if isinstance(data, Source) else os.fspath(data)
        self.run_: Run | None = None
        if runs is not None:
            self.run_ = start_run(Path(runs), name, self._manifest(), plan.experiment, split, named, audited)
        return self._train(plan, callbacks)

    def resume(
        self, run: str | os.PathLike[str], *, epochs: int | None = None, callbacks: Sequence[Callback] = ()
    ) -> Classifier:
        """Go on with the training of a run after its last whole epoch, on the same images, to `epochs` in all."""
        folder = open_run(Path(run))
        values, data = read_config(folder.path / CONFIG)
        if data is None:
            raise ConfigError(f"{folder.path / CONFIG} names no data: a run on a Source of your own cannot be resumed")
        state = load_checkpoint(folder.path / CHECKPOINT)
        experiment = from_dict(Experiment, values)
        config = experiment.train if epochs is None else replace(experiment.train, epochs=epochs)
        if config.epochs is None or config.epochs <= state["epoch"]:
            raise ConfigError(f"{folder.path} has finished {state['epoch']} epochs; go on to more with --epochs N")
        experiment = replace(experiment, train=config)
        following = replace(experiment.data, split_file=str(folder.path / SPLIT))
        source = open_source(run_source(folder, data), **reading_options(experiment.data))
        audited, split = read_data(source, replace(experiment, data=following), callbacks)
        source = audited.source
        require_same_data(split, read_split(folder.path / SPLIT), str(folder.path))
        recipe = from_dict(Recipe, folder.info["recipe"])
        plan = make_plan(replace(experiment, weights="none"), source, len(split.samples("train")), recipe.compose)
        plan = replace(plan, experiment=experiment, recipe=recipe, weights=WeightsUsed(**folder.info["weights"]))
        notify(callbacks, "model", plan)
        self._learn_from(plan, source, split)
        self.run_ = folder
        write_config(folder.path / CONFIG, experiment, data)
        return self._train(plan, callbacks, state)

    def _learn_from(self, plan: Plan, source: Source, split: Split) -> None:
        self.model_, self.spec_, self.recipe_ = plan.model, plan.spec, plan.recipe
        self.classes_, self.source_, self.split_ = source.classes, source, split
        self.experiment_, self.weights_ = plan.experiment, plan.weights
        self.metrics_: dict[str, Evaluation] = {}
        self.manifest_: Manifest | None = None
        self.lost_: dict[str, str] = {}
        self.seen_ = frozenset(content_key(row) for row in split.rows if row.split in ("train", "valid"))

    def _train(self, plan: Plan, callbacks: Sequence[Callback], state: dict[str, Any] | None = None) -> Classifier:
        run = self.run_
        loader = self._loader(self.source_, self.split_.samples("train"), train=True)
        valid_samples = self.split_.samples("valid")
        valid = self._loader(self.source_, valid_samples) if valid_samples else None
        if run is not None:
            callbacks = (Recorder(run, self._manifest(), plan.experiment.keep), *callbacks)
        checkpoint = None if run is None else run.path / CHECKPOINT
        try:
            self.history_: History = train(
                plan.model,
                loader,
                valid,
                plan.experiment.train,
                callbacks=callbacks,
                checkpoint=checkpoint,
                resume=state,
            )
        except KeyboardInterrupt:  # before the first step: there is nothing to keep
            if run is not None and state is None:
                shutil.rmtree(run.path)
            raise
        except Exception as error:
            del self.model_  # this classifier has not learnt anything
            if run is not None:
                write_info(run, status="failed", error=f"{type(error).__name__}: {error}")
            raise
        if valid is not None:
            self.metrics_["valid"] = evaluate(plan.model, valid)
        self.lost_ = {**loader.lost, **(valid.lost if valid is not None else {})}
        if run is not None:
            self.save(run.model)
            self.run_ = write_info(run, status=self.history_.ended, epochs=len(self.history_))
        return self

    def evaluate(
        self,
        data: Data | None = None,
        *,
        part: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """How good the model is: on its own test images or, with `data`, on any labelled ones, matched by class name.

        Of `data`, images that the model was trained or validated on are left out, and only the test part is used where
        they are divided. `part` asks for `train`, `valid`, `test` or `all` instead. A model that was loaded from a file
        away from its run folder still knows them by their content, up to 200,000 images (`seen_`). What could not be
        read is in `lost_` (path → reason).
        """
        result = self.evaluate_samples(*self.samples_of(data, part), progress=progress)
        if data is None:
            self.metrics_[part or "test"] = result
        return result

    def evaluate_samples(
        self, source: Source, samples: Sequence[Sample], progress: Callable[[int, int], None] | None = None
    ) -> Evaluation:
        """How good the model is on just these samples of a source."""
        loader = self._loader(source, samples, keep=False)
        result = evaluate(self._fitted(), loader, progress=progress)
        self.lost_ = {**self.lost_, **loader.lost}
        return result

    def samples_of(self, data: Data | None = None, part: str | None = None) -> tuple[Source, list[Sample]]:
        """The images that `evaluate` uses for these arguments, and the source that opens them."""
        self._fitted()
        if part is not None and part not in PARTS:
            raise ConfigError(f"part is {part!r}; allowed: {', '.join(PARTS)}")
        if data is None and hasattr(self, "source_"):
            source, samples = self.source_, choose_samples(self.source_, self.split_, self.seen_, part or "test")
        else:
            audited = audit(labelled_source(data, self.run_), strict=False, allow_bad=1.0)
            source, self.lost_ = audited.source, {bad.ref: bad.reason for bad in audited.bad}
            if data is None:
                part = part or "test"
            samples = choose_samples(source, getattr(self, "split_", None), self.seen_, part)
        strangers = sorted(set(source.classes) - set(self.classes_))
        if strangers:
            known = ", ".join(map(printable, self.classes_[:10])) + (", …" if len(self.classes_) > 10 else "")
            raise DataError(f"{source.name} has classes that the model does not know; it knows {known}", strangers)
        if not samples:
            wanted = f"in its part {part!r}" if part else "to test on that the model was not trained on"
            raise DataError(f"{source.name} has no images {wanted}; choose another --part: {', '.join(PARTS)}")
        return source, samples

    def predict_each(self, images: Any, *, top: int = 5, batch_size: int = 32) -> Iterator[Prediction]:
        """One `Prediction` after the other, for a path, a folder, a PIL image, an array, or a list of these.

        An array is uint8 of (height, width) or (height, width, channels). `top` is how many classes each prediction
        lists. An image that cannot be read gives a prediction with an `error`.
        """
        source = inputs_source(images)
        loader = self._loader(source, source.samples, keep=False, batch_size=batch_size)
        return predict(self._fitted(), loader, top=top)

    def predict(self, images: Any, *, top: int = 5) -> list[Prediction]:
        """The predictions of `predict_each`, all at once."""
        return list(self.predict_each(images, top=top))

    def predict_proba(self, images: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), columns in the order of `classes_`; `DataError` where an image can't be read."""
        predictions = self.predict(images, top=1)
        bad = [f"{printable(p.path)}: {p.error}" for p in predictions if p.error is not None]
        if bad:
            raise DataError("no probabilities for images that cannot be read", bad)
        return np.array([[p.probabilities[name] for name in self.classes_] for p in predictions])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model file: weights, classes and preprocessing in one. A folder gets a `model.safetensors`."""
        save_model(path, self._fitted(), self._manifest())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "auto") -> Classifier:
        """A classifier from a model file or a run folder, ready to evaluate and predict on `device`.

        Where the file lies in its run folder, the classifier knows the split of its training too.
        """
        model, manifest = load_model(path)
        self = cls(manifest.spec.arch, weights=manifest.weights.get("asked"), size=manifest.spec.size)
        self.model_ = model.to(pick_device(device))
        self.spec_, self.classes_, self.recipe_ = manifest.spec, manifest.classes, manifest.recipe
        self.manifest_ = manifest
        self.metrics_, self.lost_, self.run_ = {}, {}, None
        self.seen_ = unpack_contents(manifest.seen)
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        if Path(path).is_dir() or Path(path).name == MODEL:
            with suppress(DataError, OSError):  # the file predicts, whatever lies beside it
                run, split = open_run(folder), Split(read_split(folder / SPLIT))
                if manifest.seen == pack_contents((*split.samples("train"), *split.samples("valid"))):
                    self.run_, self.split_ = run, split
        return self

    def _fitted(self) -> nn.Module:
        if not hasattr(self, "model_"):
            raise NotFitted("this classifier is not fitted yet: call fit, or Classifier.load")
        return self.model_

    def _loader(self, source: Source, samples: Sequence[Sample], *, train: bool = False, **options: Any) -> Loader:
        """A loader with this model's classes and pixels; the batches of training where it is known."""
        if hasattr(self, "experiment_"):
            config = self.experiment_.train
            options = {"batch_size": config.batch_size, "seed": config.seed, "workers": config.workers, **options}
        self._fitted()
        return Loader(source, samples, self.recipe_, classes=self.classes_, train=train, **options)

    def _manifest(self) -> Manifest:
        if self.manifest_ is not None:
            return self.manifest_
        digest = self.split_.digest
        return Manifest(
            self.spec_,
            self.classes_,
            self.recipe_,
            weights=asdict(self.weights_),
            metrics={part: {**_figures(result), "split": digest} for part, result in self.metrics_.items()},
            data=self.source_.name,
            seen=pack_contents((*self.split_.samples("train"), *self.split_.samples("valid"))),
        )


def _figures(result: Evaluation) -> dict[str, Any]:
    """An evaluation without the confusion matrix, whose size grows with the square of the classes."""
    return {key: value for key, value in result.to_dict().items() if key != "confusion"}


def changes_of(classifier: Classifier, knobs: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """A user's own augmentation pipeline, if any, and all that was asked for as changes of an experiment."""
    augment, size = classifier.augment, classifier.size
    compose = None if augment is None or isinstance(augment, str) else compose_to_dict(augment)
    own = {
        "arch": register_builder(classifier.arch) if callable(classifier.arch) else classifier.arch,
        "weights": classifier.weights,
        "size": (size, size) if isinstance(size, int) else size,
        "augment": augment if compose is None else None,
    }
    config = dict(classifier.config or {})
    config["train"] = {
        **config.get("train", {}),
        **{key: value for key, value in knobs.items() if value is not None},
    }
    return compose, {**config, **{key: value for key, value in own.items() if value is not None}}


def warn_of(event: str, subject: Any) -> None:
    """The callback of a `fit` without callbacks: what should not be missed, as warnings."""
    if event == "audit":
        bad = [f"{printable(file.ref)}: {file.reason}" for file in subject.bad]
        shown = "; ".join(bad[:SHOWN_PROBLEMS]) + ("; …" if len(bad) > SHOWN_PROBLEMS else "")
        if bad:
            warnings.warn(f"{len(bad)} images can't be read and are left out: {shown}", stacklevel=2)
    elif event == "model" and subject.weights.note:
        warnings.warn(subject.weights.note, stacklevel=2)


def register_builder(build: Builder) -> str:
    """The name under which a user's own network is known: its function's name, registered if it is new.

    A model file of it can be loaded wherever the function was registered before (`imgclf.arch`, or this).
    """
    name = getattr(build, "__name__", type(build).__name__)
    if not ARCH_NAME.fullmatch(name):
        raise ConfigError(f"a network of your own needs a function with a plain name, not {name!r}")
    if name not in ARCHS:
        ARCHS.add(name, Arch(name, build, size=(224, 224), channels=3, family="own", summary="a network of your own"))
    elif ARCHS.get(name).build is not build:
        raise ConfigError(f"an architecture called {name!r} is there already; give your function another name")
    return name
