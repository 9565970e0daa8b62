"""Named experiments, for `--recipe NAME`: those of the course documents with the documents' own settings, and the ones
that suit the embedded data sets.

The documents look at the test set after every epoch and choose by eye. Here the test set is touched once, at the end;
where a document holds out no validation images, a twelfth of its training images (5,000 of MNIST's 60,000) is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from imgclf.core.config import ExperimentConfig, TrainConfig
from imgclf.core.registry import Registry

EXPERIMENTS: Registry[ExperimentConfig] = Registry("recipe")
TEST = 0.15

EXPERIMENTS.add("probe", ExperimentConfig(train=TrainConfig(epochs=0)))


def _hold_out(valid: float) -> tuple[float, float, float]:
    """A split that holds out this part of the training images; the test part is for data without a test set."""
    return (1 - TEST) * (1 - valid), (1 - TEST) * valid, TEST


_PLAIN = TrainConfig(weight_decay=0.0, schedule="constant", label_smoothing=0.0, class_weights="none", precision="fp32")


def _sgd(lr: float, momentum: float, batch_size: int, epochs: int, **others: Any) -> TrainConfig:
    return replace(_PLAIN, optimizer="sgd", lr=lr, momentum=momentum, batch_size=batch_size, epochs=epochs, **others)


def _adam(lr: float, batch_size: int, epochs: int, **others: Any) -> TrainConfig:
    return replace(_PLAIN, optimizer="adam", lr=lr, batch_size=batch_size, epochs=epochs, **others)


_SCRATCH = ExperimentConfig(weights="none", augment="none")
_MNIST = replace(_SCRATCH, size=(28, 28), channels=1, mean=(0.0,), std=(1.0,), split=_hold_out(1 / 12))
_CIFAR = replace(_SCRATCH, size=(32, 32), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, split=_hold_out(0.1))
_NORMED_CIFAR = replace(_CIFAR, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))  # as its training images
_FOLDER = replace(_SCRATCH, size=(64, 128), channels=3, resize_mode="squash", mean=(0.0,) * 3, std=(1.0,) * 3)

_LAB_10_1 = _adam(0.001, 100, 15, seed=777, drop_last=True)
_LAB_10_5 = _sgd(0.005, 0.9, 512, 50, schedule="step", step_epochs=5, gamma=0.9)
_LAB_10_6 = _sgd(0.1, 0.9, 256, 150, schedule="step", step_epochs=10, gamma=0.5, weight_decay=5e-4)

EXPERIMENTS.add("d0", replace(_MNIST, arch="cnn_zero_to_all", train=_sgd(0.01, 0.5, 64, 9)))
EXPERIMENTS.add("d1", replace(_MNIST, arch="lenet", train=_sgd(0.001, 0.9, 128, 21)))
EXPERIMENTS.add("d3", replace(_MNIST, arch="cnn_two_layer", train=_LAB_10_1))
EXPERIMENTS.add("d3-keras", replace(_MNIST, arch="cnn_keras", keep="all", train=_adam(0.001, 100, 15)))
EXPERIMENTS.add("d4", replace(_CIFAR, arch="cnn_cifar", split=_hold_out(0.2), train=_sgd(0.01, 0.0, 20, 30)))
EXPERIMENTS.add("lab10-2", replace(_MNIST, arch="cnn_deep", train=_LAB_10_1))
EXPERIMENTS.add("lab10-4", replace(_FOLDER, arch="cnn_imagefolder", train=_adam(0.00005, 8, 7)))
EXPERIMENTS.add("lab10-5", replace(_CIFAR, arch="vgg16_cifar_lab", train=_LAB_10_5))
EXPERIMENTS.add("lab10-6", replace(_NORMED_CIFAR, arch="resnet50_cifar_lab", augment="shifts", train=_LAB_10_6))

# Nets as small as LeNet gain nothing from bf16.
_SHORT = TrainConfig(lr=0.004, weight_decay=0.01, schedule="onecycle", precision="fp32")
_MNIST_SHORT, _DIGITS_SHORT = replace(_SHORT, epochs=10, batch_size=128), replace(_SHORT, epochs=40)
_DIGITS = replace(_MNIST, mean=(0.3,), std=(0.37,), augment="light", split=None)
EXPERIMENTS.add("mnist", replace(_MNIST, arch="lenet", mean=(0.13,), std=(0.31,), train=_MNIST_SHORT))
EXPERIMENTS.add("digits", replace(_DIGITS, arch="lenet", train=_DIGITS_SHORT))

_FAST = TrainConfig(optimizer="sgd", nesterov=True, schedule="onecycle")
_TEN_EPOCHS = replace(_FAST, epochs=10, batch_size=128, lr=0.1, weight_decay=5e-4)
EXPERIMENTS.add("cifar10", replace(_NORMED_CIFAR, arch="small_resnet18", augment="shifts-flips", train=_TEN_EPOCHS))

# Batch, momentum, rate and decay of arXiv:2404.00498, turned from a summed loss (11.5 and 0.0153 per 1,024 images) to a
# mean one. Its 10 epochs count on Lookahead; without it, it takes 14.
_LARGE_BATCHES = replace(
    _FAST, epochs=14, batch_size=1000, lr=1.5, momentum=0.85, weight_decay=0.0013, label_smoothing=0.2
)
_SPEEDRUN = replace(
    _NORMED_CIFAR, arch="speednet", augment="speedrun", tta="mirror-shift", split=_hold_out(0.02), train=_LARGE_BATCHES
)
EXPERIMENTS.add("speedrun", _SPEEDRUN)

# The same for a minute on a processor: more steps, and each a twentieth of the work.
_SMALL_BATCHES = replace(_SPEEDRUN.train, batch_size=250, lr=0.5)
EXPERIMENTS.add("speedrun-small", replace(_SPEEDRUN, arch="speednet_small", tta="mirror", train=_SMALL_BATCHES))
QUICKER = {"speedrun": "speedrun-small"}  # for a processor that has only a few minutes
