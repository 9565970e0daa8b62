"""The convolutional networks of the teaching documents, layer by layer as the documents have them.

Each function builds one network from a `ModelConfig`. What a network is made for (28×28 gray digits, 32×32 color
pictures …) stands in the line above it; other sizes, channels and numbers of classes work as well, because the number
of values that leave the flatten layer is computed and not written down.

To read a network, read its `features` from top to bottom. `nn.Conv2d(a, b, f)` turns a maps into b with f×f filters and
`nn.MaxPool2d(2)` halves the sides; both follow (W - F + 2P)/S + 1. `imgclf models NAME` prints that for every layer.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from imgclf.core.config import ModelConfig
from imgclf.models.layers import dropout, flat_features, stack, xavier_uniform
from imgclf.models.registry import arch

digits = partial(arch, size=(28, 28), channels=1, family="teaching")  # gray, as those of MNIST


@digits("cnn_zero_to_all", summary="D0, starting CNNs: two 5×5 convolutions, one linear layer")
def cnn_zero_to_all(spec: ModelConfig) -> nn.Module:
    """Document D0: pooling comes before the ReLU; 320 values reach the only linear layer."""
    features = nn.Sequential(
        nn.Conv2d(spec.channels, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    )
    return stack(features, head=nn.Linear(flat_features(features, spec), spec.classes))


@digits("lenet", summary="D1, seminar 3: LeNet-5 with ReLU and max pooling")
def lenet(spec: ModelConfig) -> nn.Module:
    """Document D1, after LeCun et al., Gradient-based learning applied to document recognition, 1998."""
    features = nn.Sequential(
        nn.Conv2d(spec.channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return stack(
        features,
        nn.Linear(flat_features(features, spec), 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        head=nn.Linear(84, spec.classes),
    )


@digits("cnn_two_layer", summary="D3 and lab 10-1: two padded 3×3 convolutions, one Xavier linear layer")
def cnn_two_layer(spec: ModelConfig) -> nn.Module:
    """Document D3: padding 1 keeps the side, so only the pooling halves it (28 → 14 → 7)."""
    features = nn.Sequential(
        nn.Conv2d(spec.channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    head = nn.Linear(flat_features(features, spec), spec.classes)
    xavier_uniform(head)
    return stack(features, head=head)


@digits("cnn_deep", summary="lab 10-2: three padded 3×3 convolutions, 625 hidden units, dropout")
def cnn_deep(spec: ModelConfig) -> nn.Module:
    """Lab 10-2: the third pooling is padded, so that 7 becomes 4 and no row is lost."""
    features = nn.Sequential(
        nn.Conv2d(spec.channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, padding=1),
        nn.Flatten(),
    )
    hidden = nn.Linear(flat_features(features, spec), 625)
    head = nn.Linear(625, spec.classes)
    xavier_uniform(hidden, head)
    return stack(features, hidden, nn.ReLU(), dropout(spec, 0.5), head=head)


@digits("cnn_keras", summary="D3, the Keras version: three 'same' convolutions and poolings, dropout")
def cnn_keras(spec: ModelConfig) -> nn.Module:
    """Document D3 in Keras: pooling 'same' rounds up (28 → 14 → 7 → 4), and Glorot is the default initialization."""
    features = nn.Sequential(
        nn.Conv2d(spec.channels, 32, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(32, 64, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(64, 128, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
    )
    hidden = nn.Linear(flat_features(features, spec), 256)
    head = nn.Linear(256, spec.classes)
    xavier_uniform(features, hidden, head)
    return stack(features, hidden, nn.ReLU(), dropout(spec, 0.4), head=head)


@arch(
    "cnn_cifar",
    size=(32, 32),
    channels=3,
    family="teaching",
    summary="D4, CNN (7): three padded 3×3 convolutions, 500 hidden units, dropout",
)
def cnn_cifar(spec: ModelConfig) -> nn.Module:
    """Document D4: the sides go 32 → 16 → 8 → 4 while the maps go 3 → 16 → 32 → 64."""
    features = nn.Sequential(
        nn.Conv2d(spec.channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return stack(
        features,
        dropout(spec, 0.25),
        nn.Linear(flat_features(features, spec), 500),
        nn.ReLU(),
        dropout(spec, 0.25),
        head=nn.Linear(500, spec.classes),
    )


@arch(
    "cnn_imagefolder",
    size=(64, 128),
    channels=3,
    family="teaching",
    classes=2,
    summary="D2 and lab 10-4: two 5×5 convolutions on 64×128 photos, 120 hidden units",
)
def cnn_imagefolder(spec: ModelConfig) -> nn.Module:
    """Document D2: a wide picture, height 64 and width 128, leaves 16 maps of 13×29."""
    features = nn.Sequential(
        nn.Conv2d(spec.channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return stack(
        features,
        nn.Linear(flat_features(features, spec), 120),
        nn.ReLU(),
        head=nn.Linear(120, spec.classes),
    )
