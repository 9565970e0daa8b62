"""From a folder of photos to a trained image classifier: one command, or three lines of Python.

    from imgclf import Classifier

    classifier = Classifier().fit("./my_photos")
    print(classifier.evaluate().accuracy, classifier.predict("img.jpg")[0].label)

Importing this loads nothing heavy; each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgclf._version import __version__
    from imgclf.bundle import Manifest, load_model, save_model
    from imgclf.classifier import Classifier
    from imgclf.data.audit import audit
    from imgclf.data.loader import Loader
    from imgclf.data.open import open_source
    from imgclf.data.source import Sample, Source
    from imgclf.data.split import Split, make_split
    from imgclf.dryrun import DryRun, dry_run
    from imgclf.ensemble import combine, fit_ensemble
    from imgclf.errors import (
        ConfigError,
        DataError,
        ImgclfError,
        MissingExtra,
        ModelFileError,
        NotFitted,
        OutOfMemory,
        TrainingDiverged,
        UnknownName,
    )
    from imgclf.evaluation.compare import Comparison, compare_runs
    from imgclf.evaluation.curves import LearningCurve
    from imgclf.evaluation.explain import explain
    from imgclf.inference import evaluate, predict
    from imgclf.learning import learning_curve
    from imgclf.models._arch import arch
    from imgclf.models.build import build_model
    from imgclf.models.weights import load_weights
    from imgclf.pictures import save_explanation
    from imgclf.reporting import write_report
    from imgclf.results import Choice, EpochRecord, Evaluation, Explanation, History, LrCurve, Prediction, Probe
    from imgclf.specs import Experiment, ModelSpec, Recipe, Step, TrainConfig
    from imgclf.tracking import tracker
    from imgclf.training.loop import train
    from imgclf.training.lr_finder import find_lr
    from imgclf.training.probe import fit_probe
    from imgclf.tuning import Tuning, tune

_HOMES = {
    "_version": ("__version__",),
    "bundle": ("Manifest", "load_model", "save_model"),
    "classifier": ("Classifier",),
    "data.audit": ("audit",),
    "data.loader": ("Loader",),
    "data.open": ("open_source",),
    "data.source": ("Sample", "Source"),
    "data.split": ("Split", "make_split"),
    "dryrun": ("DryRun", "dry_run"),
    "ensemble": ("combine", "fit_ensemble"),
    "errors": (
        "ConfigError",
        "DataError",
        "ImgclfError",
        "MissingExtra",
        "ModelFileError",
        "NotFitted",
        "OutOfMemory",
        "TrainingDiverged",
        "UnknownName",
    ),
    "evaluation.compare": ("Comparison", "compare_runs"),
    "evaluation.curves": ("LearningCurve",),
    "evaluation.explain": ("explain",),
    "inference": ("evaluate", "predict"),
    "learning": ("learning_curve",),
    "models._arch": ("arch",),
    "models.build": ("build_model",),
    "models.weights": ("load_weights",),
    "pictures": ("save_explanation",),
    "reporting": ("write_report",),
    "results": ("Choice", "EpochRecord", "Evaluation", "Explanation", "History", "LrCurve", "Prediction", "Probe"),
    "specs": ("Experiment", "ModelSpec", "Recipe", "Step", "TrainConfig"),
    "tracking": ("tracker",),
    "training.loop": ("train",),
    "training.lr_finder": ("find_lr",),
    "training.probe": ("fit_probe",),
    "tuning": ("Tuning", "tune"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Choice",
    "Classifier",
    "Comparison",
    "ConfigError",
    "DataError",
    "DryRun",
    "EpochRecord",
    "Evaluation",
    "Experiment",
    "Explanation",
    "History",
    "ImgclfError",
    "LearningCurve",
    "Loader",
    "LrCurve",
    "Manifest",
    "MissingExtra",
    "ModelFileError",
    "ModelSpec",
    "NotFitted",
    "OutOfMemory",
    "Prediction",
    "Probe",
    "Recipe",
    "Sample",
    "Source",
    "Split",
    "Step",
    "TrainConfig",
    "TrainingDiverged",
    "Tuning",
    "UnknownName",
    "__version__",
    "arch",
    "audit",
    "build_model",
    "combine",
    "compare_runs",
    "dry_run",
    "evaluate",
    "explain",
    "find_lr",
    "fit_ensemble",
    "fit_probe",
    "learning_curve",
    "load_model",
    "load_weights",
    "make_split",
    "open_source",
    "predict",
    "save_explanation",
    "save_model",
    "tracker",
    "train",
    "tune",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'imgclf' has no attribute {name!r}")
    return getattr(import_module(f"imgclf.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
