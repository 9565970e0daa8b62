"""VGG for small images: stacks of 3×3 convolutions, with a max pooling between the stacks.

Source: Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition, arXiv:1409.1556.
The configurations A, B, D and E are table 1 of the paper. The paper's linear layers are 4,096 wide for 7×7 maps of a
224×224 photo; a 32×32 picture leaves one value a map, and 512 are plenty.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import nn

from imgclf.core.config import ModelConfig
from imgclf.models.layers import dropout, flat_features, kaiming_normal, stack
from imgclf.models.registry import arch

# Each inner tuple is one stack: the number of maps that each of its convolutions makes. A pooling follows each stack.
CONFIGURATIONS = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    19: ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
}
# Lab 10-5: three poolings only, and maps from 32 up.
LAB_16 = ((32, 32), (64, 64, 128, 128, 128), (256, 256, 256, 512, 512, 512))


small_pictures = partial(arch, size=(32, 32), channels=3, family="vgg")


@small_pictures("vgg16_cifar_lab", summary="D2 and lab 10-5: VGG-16 with three poolings and two 4,096-wide layers")
def vgg16_cifar_lab(spec: ModelConfig) -> nn.Module:
    """The variant of lab 10-5: 32×32 leaves 512 maps of 4×4."""
    return _vgg(spec, LAB_16, width=4096, batch_norm=False)


def _vgg(spec: ModelConfig, stacks: tuple[tuple[int, ...], ...], width: int, batch_norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    before = spec.channels
    for maps in stacks:
        for inputs, outputs in pairwise((before, *maps)):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.MaxPool2d(2))
        before = maps[-1]
    features = nn.Sequential(*layers, nn.Flatten())
    model = stack(
        features,
        nn.Linear(flat_features(features, spec), width),
        nn.ReLU(inplace=True),
        dropout(spec, 0.5),
        nn.Linear(width, width),
        nn.ReLU(inplace=True),
        dropout(spec, 0.5),
        head=nn.Linear(width, spec.classes),
    )
    kaiming_normal(model)
    return model


for _depth, _stacks in CONFIGURATIONS.items():
    _build = partial(_vgg, stacks=_stacks, width=512)
    small_pictures(f"small_vgg{_depth}", summary=f"VGG-{_depth} for 32×32 images")(partial(_build, batch_norm=False))
    small_pictures(f"small_vgg{_depth}_bn", summary=f"VGG-{_depth} for 32×32 images with batch norm")(
        partial(_build, batch_norm=True)
    )
