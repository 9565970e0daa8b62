"""A small ResNet-like network that learns 32×32 pictures in a few passes, after the published CIFAR-10 speed records.

Source: Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU, arXiv:2404.00498, whose network goes back to Page's
ResNet-9 and tysam-code's hlb-CIFAR10. What makes it quick: a frozen first layer that whitens the pixels, convolutions
that start by handing their input on, norms that learn offsets alone, and a head with small logits.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise, starmap

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgclf.core.config import ModelConfig
from imgclf.models.registry import arch

PATCH = 2  # the side of the patches that are whitened
NOISE = 5e-4  # what is added to a variance, so that a direction in which pixels hardly differ is not blown up
CHUNK = 500  # images whose patches are in memory at once
OFFSET_SCALE = 8.0  # its square is how much faster an offset learns: 64 times
LOGIT_SCALE = 1 / 9

small_pictures = partial(arch, size=(32, 32), channels=3, family="resnet")


class Whitening(nn.Conv2d):
    """A 2×2 convolution to uncorrelated maps of variance 1, followed by the same maps with the opposite sign.

    Its filters are a buffer: they are saved with the weights, and no optimizer ever sees them. They are random until
    `init_from` is called; the bias is trained.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * channels * PATCH**2, PATCH)
        filters = self.weight.detach()
        del self.weight
        self.register_buffer("weight", filters)

    def init_from(self, pixels: Tensor) -> None:
        """Set the filters from the patches of images (n, channels, height, width) as the network is given them.

        Each filter is an eigenvector of the patches' second moments, divided by the root of its eigenvalue; the widest
        direction comes first. Double precision and a fixed sign, so that the same images give the same filters.
        """
        chunks = [pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK)]
        moments = torch.stack([_second_moments(chunk.double()) for chunk in chunks]).sum(0) / len(pixels)
        variances, directions = torch.linalg.eigh(moments)
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        filters = (directions * largest.sign() / (variances.clamp(min=0) + NOISE).sqrt()).flip(1).T
        filters = filters.reshape(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))


def _second_moments(pixels: Tensor) -> Tensor:
    """The mean of patch·patchᵀ over all patches of an image, summed over the images: (values, values)."""
    patches = F.unfold(pixels, PATCH)
    return torch.einsum("nip,njp->ij", patches, patches) / patches.shape[2]


class Offset(nn.Module):
    """Adds a learnt number to each map: what a batch norm without a scale still needs."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(maps))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, maps, height, width) to the same shape."""
        return x + (OFFSET_SCALE * self.value).to(x.dtype).view(-1, 1, 1)


class SpeedNet(nn.Module):
    """Whitening, three groups of two 3×3 convolutions, the largest value of each map, and a linear head.

    The first convolution of a group is followed by a max pooling that halves the sides. `maps` holds one number a
    group. The sides of the image can be of any size from 9 on.
    """

    def __init__(self, spec: ModelConfig, maps: tuple[int, ...] = (64, 256, 256)) -> None:
        super().__init__()
        self.whitening = Whitening(spec.channels)
        self.groups = nn.Sequential(nn.GELU(), *starmap(_group, pairwise((self.whitening.out_channels, *maps))))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(maps[-1], spec.classes, bias=False)

    def init_from(self, pixels: Tensor) -> None:
        """Set the frozen first layer from training images (n, channels, height, width), before training begins."""
        self.whitening.init_from(pixels)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        x = self.pool(self.groups(self.whitening(x)))
        logits: Tensor = self.head(x.flatten(1)) * LOGIT_SCALE
        return logits


def _group(inputs: int, maps: int) -> nn.Sequential:
    first, second = _dirac_conv(inputs, maps), _dirac_conv(maps, maps)
    return nn.Sequential(first, nn.MaxPool2d(2), *_norm(maps), second, *_norm(maps))


def _dirac_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3×3 convolution whose first maps are its input unchanged, like a residual block's; the others are random."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    return conv


def _norm(maps: int) -> tuple[nn.Module, ...]:
    return nn.BatchNorm2d(maps, affine=False), Offset(maps), nn.GELU()


@small_pictures("speednet", summary="after the CIFAR-10 speed records: frozen whitening, six 3×3 convolutions")
def speednet(spec: ModelConfig) -> nn.Module:
    """The network of the recipe `speedrun`; before training from scratch, its `init_from` is given training images."""
    return SpeedNet(spec)


@small_pictures(
    "speednet_small", summary="speednet with 16, 64 and 128 maps: a tenth of its work, for a minute on a processor"
)
def speednet_small(spec: ModelConfig) -> nn.Module:
    """The network of the recipe `speedrun-small`."""
    return SpeedNet(spec, (16, 64, 128))
