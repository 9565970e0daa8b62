"""Named experiments, for `--recipe NAME`: those of the course documents with the documents' own settings, and the ones
that suit the embedded data sets.

The documents look at the test set after every epoch and choose by eye. Here the test set is touched once, at the end;
where a document holds out no validation images, a twelfth of its training images (5,000 of MNIST's 60,000) is.
"""

from __future__ import annotations

from imgclf._registry import Registry
from imgclf.specs import Experiment, TrainConfig

EXPERIMENTS: Registry[Experiment] = Registry("recipe")
TEST = 0.15


def _hold_out(valid: float) -> tuple[float, float, float]:
    """A split that holds out this part of what is not test; the test part serves data that come without a test set."""
    return (1 - TEST) * (1 - valid), (1 - TEST) * valid, TEST


def _mnist(arch: str, mean: float, std: float, train: TrainConfig, keep: str = "best") -> Experiment:
    return Experiment(
        arch=arch,
        weights="none",
        size=(28, 28),
        channels=1,
        mean=(mean,),
        std=(std,),
        augment="none",
        split=_hold_out(1 / 12),
        keep=keep,
        train=train,
    )


def _sgd(lr: float, momentum: float, batch_size: int, epochs: int) -> TrainConfig:
    return TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        optimizer="sgd",
        momentum=momentum,
        weight_decay=0.0,
        schedule="constant",
        label_smoothing=0.0,
        precision="fp32",
    )


def _adam(lr: float, batch_size: int, epochs: int, seed: int = 0, drop_last: bool = False) -> TrainConfig:
    return TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        optimizer="adam",
        weight_decay=0.0,
        schedule="constant",
        label_smoothing=0.0,
        precision="fp32",
        seed=seed,
        drop_last=drop_last,
    )


def _cifar_lab(
    arch: str, augment: str, mean: tuple[float, ...], std: tuple[float, ...], train: TrainConfig
) -> Experiment:
    return Experiment(
        arch=arch,
        weights="none",
        size=(32, 32),
        channels=3,
        mean=mean,
        std=std,
        augment=augment,
        split=_hold_out(0.1),
        train=train,
    )


EXPERIMENTS.add("d0", _mnist("cnn_zero_to_all", 0.0, 1.0, _sgd(0.01, 0.5, 64, 9)))
EXPERIMENTS.add("d1", _mnist("lenet", 0.0, 1.0, _sgd(0.001, 0.9, 128, 21)))
EXPERIMENTS.add("d3", _mnist("cnn_two_layer", 0.0, 1.0, _adam(0.001, 100, 15, seed=777, drop_last=True)))
EXPERIMENTS.add("lab10-2", _mnist("cnn_deep", 0.0, 1.0, _adam(0.001, 100, 15, seed=777, drop_last=True)))
EXPERIMENTS.add("d3-keras", _mnist("cnn_keras", 0.0, 1.0, _adam(0.001, 100, 15), keep="all"))
EXPERIMENTS.add(
    "d4",
    Experiment(
        arch="cnn_cifar",
        weights="none",
        size=(32, 32),
        channels=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        augment="none",
        split=_hold_out(0.2),
        train=_sgd(0.01, 0.0, 20, 30),
    ),
)
EXPERIMENTS.add(
    "lab10-4",
    Experiment(
        arch="cnn_imagefolder",
        weights="none",
        size=(64, 128),
        channels=3,
        fit="squash",
        mean=(0.0,),
        std=(1.0,),
        augment="none",
        train=_adam(0.00005, 8, 7),
    ),
)
EXPERIMENTS.add(
    "lab10-5",
    _cifar_lab(
        "vgg16_cifar_lab",
        "none",
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        TrainConfig(
            epochs=50,
            batch_size=512,
            lr=0.005,
            optimizer="sgd",
            momentum=0.9,
            weight_decay=0.0,
            schedule="step",
            step_epochs=5,
            gamma=0.9,
            label_smoothing=0.0,
            precision="fp32",
        ),
    ),
)
EXPERIMENTS.add(
    "lab10-6",
    _cifar_lab(
        "resnet50_cifar_lab",
        "shifts",
        (0.4914, 0.4822, 0.4465),  # mean and sd of the training images
        (0.2470, 0.2435, 0.2616),
        TrainConfig(
            epochs=150,
            batch_size=256,
            lr=0.1,
            optimizer="sgd",
            momentum=0.9,
            weight_decay=5e-4,
            schedule="step",
            step_epochs=10,
            gamma=0.5,
            label_smoothing=0.0,
            precision="fp32",
        ),
    ),
)

_SMALL = TrainConfig(epochs=10, batch_size=128, lr=0.004, weight_decay=0.01, schedule="onecycle", precision="fp32")
EXPERIMENTS.add("mnist", _mnist("lenet", 0.13, 0.31, _SMALL))
EXPERIMENTS.add(
    "digits",
    Experiment(
        arch="lenet",
        weights="none",
        size=(28, 28),
        channels=1,
        mean=(0.3,),
        std=(0.37,),
        augment="light",
        train=TrainConfig(
            epochs=40,
            batch_size=32,
            lr=0.004,
            weight_decay=0.01,
            schedule="onecycle",
            precision="fp32",
        ),
    ),
)
EXPERIMENTS.add(
    "cifar10",
    _cifar_lab(
        "small_resnet18",
        "shifts-flips",
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        TrainConfig(
            epochs=10,
            batch_size=128,
            lr=0.1,
            optimizer="sgd",
            nesterov=True,
            weight_decay=5e-4,
            schedule="onecycle",
        ),
    ),
)
