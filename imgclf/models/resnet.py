"""ResNet for small images: a 3×3 stem without pooling, so that a 32×32 picture keeps its detail.

Source: He et al., Deep residual learning for image recognition, arXiv:1512.03385. The blocks and their numbers are
table 1 of the paper; the 3×3 stem is the one of its section 4.2 on CIFAR-10. The stride of a bottleneck sits on its
3×3 convolution, as in every implementation since. The last batch norm of a block starts at zero where asked, so
that the block starts as the identity (Goyal et al., arXiv:1706.02677, section 5.1).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from imgclf.core.config import ModelConfig
from imgclf.models.layers import kaiming_normal
from imgclf.models.registry import arch


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """A residual block: relu(body(x) + shortcut(x)).

    `body` is two 3×3 convolutions (basic) or 1×1, 3×3, 1×1 with four times the maps at the end (bottleneck). The
    shortcut is the input itself, or a 1×1 convolution where the stride or the number of maps changes.
    """

    def __init__(self, inputs: int, maps: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = maps * 4 if bottleneck else maps
        if bottleneck:
            norms = [_conv_norm(inputs, maps, 1), _conv_norm(maps, maps, 3, stride), _conv_norm(maps, outputs, 1)]
        else:
            norms = [_conv_norm(inputs, maps, 3, stride), _conv_norm(maps, outputs, 3)]
        self.body = nn.Sequential(norms[0])
        for norm in norms[1:]:
            self.body.extend([nn.ReLU(inplace=True), norm])
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride)."""
        return F.relu(self.body(x) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Stem, four stages of residual blocks, the mean over all positions, and a linear head.

    `maps`, `blocks` and `strides` hold one number a stage. The sides of the image can be of any size.
    """

    def __init__(
        self,
        spec: ModelConfig,
        blocks: tuple[int, ...],
        *,
        bottleneck: bool,
        maps: tuple[int, ...] = (64, 128, 256, 512),
        strides: tuple[int, ...] = (1, 2, 2, 2),
        zero_last_norm: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_norm(spec.channels, maps[0], 3), nn.ReLU(inplace=True))
        before = maps[0]
        stages = []
        for stage_maps, stage_blocks, stage_stride in zip(maps, blocks, strides, strict=True):
            stage = []
            for index in range(stage_blocks):
                stage.append(Block(before, stage_maps, stage_stride if index == 0 else 1, bottleneck))
                before = stage_maps * 4 if bottleneck else stage_maps
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(before, spec.classes)
        kaiming_normal(self)
        if zero_last_norm:
            for block in self.modules():
                if isinstance(block, Block):
                    nn.init.zeros_([*block.body.parameters()][-2])  # the weight of the last norm, before its bias

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        x = self.pool(self.stages(self.stem(x)))
        logits: Tensor = self.head(x.flatten(1))
        return logits


small_pictures = partial(arch, size=(32, 32), channels=3, family="resnet")

# depth: (blocks of each stage, whether they are bottlenecks)
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


@small_pictures("resnet50_cifar_lab", summary="D2 and lab 10-6: ResNet-50 with a quarter of the maps, halving twice")
def resnet50_cifar_lab(spec: ModelConfig) -> nn.Module:
    """The variant of lab 10-6: a stem of 16, stages of 16, 32, 64 and 128 that end in maps of 8×8."""
    return SmallResNet(
        spec, DEPTHS[50][0], bottleneck=True, maps=(16, 32, 64, 128), strides=(1, 1, 2, 2), zero_last_norm=True
    )


for _depth, (_blocks, _bottleneck) in DEPTHS.items():
    small_pictures(f"small_resnet{_depth}", summary=f"ResNet-{_depth} for 32×32 images: 3×3 stem, no pooling after it")(
        partial(SmallResNet, blocks=_blocks, bottleneck=_bottleneck)
    )
