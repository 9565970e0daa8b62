"""`Classifier`: fit, evaluate, predict, save and load, composed of the public functions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imgclf import distributed
from imgclf._files import printable
from imgclf.asked import Builder, changes_of, warn_of
from imgclf.bundle import Manifest, load_model, save_model
from imgclf.data.audit import audit
from imgclf.data.loader import Loader
from imgclf.data.open import open_source
from imgclf.data.prepare import require_outside
from imgclf.data.source import SPLIT_NAMES, Sample, Source
from imgclf.data.split import Split, choose_samples, content_key, pack_contents, read_split, unpack_contents
from imgclf.errors import ConfigError, DataError, NotFitted
from imgclf.inference import device_of, evaluate, predict
from imgclf.inputs import inputs_source
from imgclf.plan import (
    Plan,
    check_experiment,
    choose_experiment,
    labelled_source,
    make_plan,
    plan_as,
    read_data,
    read_experiment,
    reading_options,
)
from imgclf.recorder import Recorder, start_run
from imgclf.results import Evaluation, History, Prediction
from imgclf.run import (
    CHECKPOINT,
    CONFIG,
    MODEL,
    SPLIT,
    Run,
    held,
    open_run,
    require_free,
    write_config,
    write_info,
)
from imgclf.specs import Experiment, to_dict
from imgclf.start import begin, knows_classes
from imgclf.tracking import tested
from imgclf.training.callbacks import Callback, notify
from imgclf.training.checkpoint import has_checkpoint, load_checkpoint
from imgclf.training.device import pick_device, pick_precision
from imgclf.training.loop import train

Data = str | os.PathLike[str] | Source
Loaders = tuple[Loader, Loader | None]
PARTS = ("all", *SPLIT_NAMES)


class Classifier:
    """An image classifier by the contract of scikit-learn: the constructor stores, `fit` works and returns `self`.

    `arch` is the name of an architecture, or a function from a `ModelSpec` to a module; `weights` says what it starts
    from (`auto`, `pretrained`, `none`, a path, a hub name), `init` a run folder or model file to go on from, with its
    network, pixels and classes; `size` is a side or (height, width) in pixels; `augment` is a preset's name or an
    `albumentations.Compose`. `recipe` is a named experiment, or an `Experiment`, which the others
    then change; `config` changes any other field of it, as in `{"fit": "pad", "train": {"weight_decay": 0.1}}`. What is
    left out is as it suits the data.

    After `fit` or `load` there are `classes_`, `model_` and `recipe_` (the pixels); after `fit` also `history_`,
    `split_`, `source_`, `metrics_`, `weights_` (what training started from), `experiment_` (what was done, with nothing
    left open) and `run_`.
    """

    precision_ = "fp32"  # of evaluation and prediction
    run_: Run | None = None

    def __init__(
        self,
        arch: str | Builder | None = None,
        *,
        weights: str | None = None,
        init: str | os.PathLike[str] | None = None,
        size: int | tuple[int, int] | None = None,
        augment: Any = None,
        recipe: str | Experiment | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.arch = arch
        self.weights = weights
        self.init = init
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
        batch_size: int | Literal["auto"] | None = None,
        seed: int | None = None,
        runs: str | os.PathLike[str] | None = None,
        name: str | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Classifier:
        """Train on a folder, a CSV file, a named data set or a `Source`. Ctrl-C ends it and keeps the best weights.

        `runs` is the folder in which a run folder is made (called `name`, else after the data and the architecture);
        without it nothing is written. `batch_size` "auto" is the largest that fits. `callbacks` are told of every step
        (`imgclf/training/callbacks.py`); without any, bad images and missing weights are Python warnings.

        Raises `DataError` for what is wrong with the data, `UnknownName` and `ConfigError` for what is asked, and what
        `train` raises.
        """
        knobs = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
        distributed.join()
        compose, changes = changes_of(vars(self), knobs)
        reading = choose_experiment(self.recipe, changes).data
        source = open_source(data, **reading_options(reading))
        experiment = choose_experiment(self.recipe, changes, source.default_recipe)
        check_experiment(experiment)
        if runs is not None and distributed.is_main():
            require_outside(Path(runs), source)
            require_free(Path(runs), name)
        callbacks = (callbacks or (warn_of,)) if distributed.is_main() else ()
        audited, split = read_data(source, experiment, callbacks)
        train, valid = split.samples("train"), len(split.samples("valid"))
        plan = make_plan(experiment, audited.source, train, compose, audited.sizes, valid)
        loaders = self._learn_from(plan, audited.source, split, callbacks)
        named = None if isinstance(data, Source) else os.fspath(data)
        if runs is not None and distributed.is_main():
            self.run_ = start_run(Path(runs), name, self._manifest(), self.experiment_, split, named, audited)
            with held(self.run_):
                return self._train(loaders, callbacks)
        return self._train(loaders, callbacks)

    def resume(
        self, run: str | os.PathLike[str], *, epochs: int | None = None, callbacks: Sequence[Callback] = ()
    ) -> Classifier:
        """Go on with the training of a run where it stopped, on the same images, to `epochs` in all.

        A run that ended before it had written its state begins again, in the same folder.
        """
        distributed.join()
        folder = open_run(Path(run))
        with held(folder) if distributed.is_main() else nullcontext():
            experiment, data = read_experiment(folder)
            fresh = folder.info["status"] in ("running", "failed") and not has_checkpoint(folder.path / CHECKPOINT)
            state = None if fresh else load_checkpoint(folder.path / CHECKPOINT)
            reached = 0 if state is None else state["epoch"]
            planned = experiment.train.epochs
            config = experiment.train if epochs is None else replace(experiment.train, epochs=epochs)
            ended = folder.info["status"] == "done"  # else it was killed before its result was written
            if config.epochs is None or config.epochs < reached + ended:
                raise ConfigError(f"{folder.path} has finished {reached} epochs; go on to more with --epochs N")
            experiment = replace(experiment, train=config)
            callbacks = callbacks if distributed.is_main() else ()
            planning = plan_as(folder, experiment, data, callbacks, weights=fresh)
            loaders = self._learn_from(*planning, callbacks)
            if distributed.is_main():
                extended = folder.info.get("extended", [])
                if config.epochs != planned:
                    write_config(folder.path / CONFIG, experiment, data)
                    extended = [*extended, planned]
                self.run_ = write_info(folder, status="running", pid=os.getpid(), extended=extended)
            return self._train(loaders, callbacks, state)

    def repeat(self, run: str | os.PathLike[str], *, callbacks: Sequence[Callback] = ()) -> Classifier:
        """Train again from the start as a run did, on the same images; nothing is written."""
        distributed.join()
        folder = open_run(Path(run))
        experiment, data = read_experiment(folder)
        callbacks = callbacks if distributed.is_main() else ()
        planning = plan_as(folder, experiment, data, callbacks, weights=True)
        return self._train(self._learn_from(*planning, callbacks), callbacks)

    def _learn_from(self, plan: Plan, source: Source, split: Split, callbacks: Sequence[Callback]) -> Loaders:
        """Take over what was planned; the loaders of training and of validation, if there are images for it."""
        self.plan_, self.model_, self.spec_, self.recipe_ = plan, plan.model, plan.spec, plan.recipe
        self.classes_, self.source_, self.split_ = source.classes, source, split
        self.experiment_, self.weights_ = plan.experiment, plan.weights
        self.run_ = None
        self.metrics_: dict[str, Evaluation] = {}
        self.manifest_: Manifest | None = None
        self.lost_: dict[str, str] = {}
        self.seen_ = frozenset(content_key(row) for row in split.rows if row.split in ("train", "valid"))
        notify(callbacks, "model", plan)
        cache = plan.experiment.data.cache
        loader = self._loader(source, split.samples("train"), train=True, cache=cache)
        held_out = split.samples("valid")
        valid = self._loader(source, held_out, cache=cache) if held_out else None
        self.experiment_ = replace(plan.experiment, data=replace(plan.experiment.data, cache=loader.tier.name))
        self.plan_ = replace(plan, experiment=self.experiment_)
        notify(callbacks, "loader", loader)
        return loader, valid

    def _train(
        self, loaders: Loaders, callbacks: Sequence[Callback], state: dict[str, Any] | None = None
    ) -> Classifier:
        loader, valid = loaders if state is not None else (self._begin(*loaders, callbacks), loaders[1])
        run = self.run_
        if run is not None:
            callbacks = (Recorder(run, self._manifest(), self.experiment_.keep), *callbacks)
        notify(callbacks, "ready", (run, self.plan_))
        try:
            self.history_: History = train(
                self.model_,
                loader,
                valid,
                self.experiment_.train,
                callbacks=callbacks,
                checkpoint=None if run is None else run.path / CHECKPOINT,
                resume=state,
                keep_start=knows_classes(self.plan_),
            )
        except KeyboardInterrupt:  # before the first step: there is nothing to keep
            if run is not None and state is None and not (run.path / CHECKPOINT).exists():
                shutil.rmtree(run.path)
            raise
        except Exception as error:
            del self.model_  # this classifier has not learnt anything
            if run is not None:
                with suppress(OSError):  # the first error is the one to tell
                    write_info(run, status="failed", error=f"{type(error).__name__}: {error}")
            raise
        if valid is not None and self.history_.ended != "interrupted":  # who interrupts does not want to wait
            result = self.metrics_["valid"] = evaluate(self.model_, valid)
            notify(callbacks, "tested", tested(self.plan_, self.source_, self.split_, "valid", result))
        self.lost_ = {**loader.lost, **(valid.lost if valid is not None else {})}
        if run is not None:
            self.save(run.model)
            self.run_ = write_info(run, status=self.history_.ended, epochs=len(self.history_))
        notify(callbacks, "fitted", self.history_.ended)
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
        loader = self._loader(source, samples, cache="off")
        result = evaluate(self._fitted(), loader, progress=progress, precision=self._precision())
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
        loader = self._loader(source, source.samples, cache="off", batch_size=batch_size, shard=(0, 1))
        return predict(self._fitted(), loader, top=top, precision=self._precision())

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
    def load(cls, path: str | os.PathLike[str], *, device: str = "auto", precision: str = "fp32") -> Classifier:
        """A classifier from a model file or a run folder, ready to evaluate and predict on `device` in `precision`.

        Where the file lies in its run folder, the classifier knows the split of its training too.
        """
        model, manifest = load_model(path)
        self = cls(manifest.spec.arch, weights=manifest.weights.get("asked"), size=manifest.spec.size)
        self.model_, self.precision_ = model.to(pick_device(device)), precision
        self._precision()  # one that the device does not have is refused here
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

    def _begin(self, loader: Loader, valid: Loader | None, callbacks: Sequence[Callback]) -> Loader:
        """Everything between the plan and the first step; the loader to train with."""
        run = self.run_
        if run is not None:
            callbacks = (Recorder(run, self._manifest()), *callbacks)
        start = begin(self.plan_, self.split_, (loader, valid), partial(self._loader, self.source_), callbacks)
        self.plan_, self.experiment_ = start.plan, start.plan.experiment
        self.probe_, self.choices_ = start.probe, start.choices
        if start.plan.recipe != self.recipe_:
            self.recipe_ = start.plan.recipe
            loader = self._loader(self.source_, loader.samples, train=True, cache=self.experiment_.data.cache)
        if run is not None:
            write_config(run.path / CONFIG, self.experiment_, run.info["source"])
            self.run_ = write_info(run, recipe=to_dict(self.recipe_), choices=list(map(asdict, start.choices)))
        notify(callbacks, "choices", start.choices)
        return loader

    def _fitted(self) -> nn.Module:
        if not hasattr(self, "model_"):
            raise NotFitted("this classifier is not fitted yet: call fit, or Classifier.load")
        return self.model_

    def _loader(self, source: Source, samples: Sequence[Sample], *, train: bool = False, **options: Any) -> Loader:
        """A loader with this model's classes and pixels; the batches of training where it is known."""
        own: dict[str, Any] = {"device": device_of(self._fitted()), "shard": distributed.shard()}
        if hasattr(self, "experiment_"):
            config = self.experiment_.train
            own |= {"batch_size": config.batch_size, "seed": config.seed, "workers": config.workers}
            own |= {"engine": config.engine, "device": pick_device(config.device)}
        options = {**own, **options}
        return Loader(source, samples, self.recipe_, classes=self.classes_, train=train, **options)

    def _precision(self) -> torch.dtype:
        """What evaluation and prediction compute in."""
        return pick_precision(self.precision_, device_of(self._fitted()))

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
