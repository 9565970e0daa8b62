"""The defaults of training that depend on the data and the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from imgclf.core.config import TrainConfig
from imgclf.core.errors import ConfigError
from imgclf.data.audit import Sizes

# Learning rates by optimizer: (from pretrained weights, from scratch).
_LR = {"sgd": (0.005, 0.05), "adam": (3e-4, 1e-3), "adamw": (1e-3, 2e-3)}
_LR_WITHOUT_NORMS = 3e-4  # at most, from pretrained weights: the higher rate was measured with batch norms only
_EMA = 0.98
_HEAD_SCALE = 0.1  # a head that is sure of its training images leaves the layers below little to learn
_LAYER_DECAY = 0.8  # of pretrained weights by adam and adamw; see docs/recipe.md
_FROZEN_STAGES = 2  # whose rate is at most 0.11 of the last layers'; a third one cost half a point, see docs/recipe.md
STEPS, EPOCHS = {True: 100, False: 2000}, {True: (4, 8), False: (10, 30)}  # from pretrained weights, and from scratch
SMALLEST, MAGNIFIED = 96, 5
LEFT = 0.6  # of an image, at least, by a crop
JUDGES = 20  # valid images that it takes to tell whether fine-tuning does better than its start
UNEVEN = 5  # times as many images in the largest class as in the smallest


def resolve_config(
    config: TrainConfig,
    *,
    pretrained: bool,
    images: int,
    valid: int | None = None,
    probe: bool = False,
    batch_norms: bool = True,
    counts: Sequence[int] = (),
) -> TrainConfig:
    """The config with nothing left open, for `images` training images, of each class as many as `counts` says; `probe`
    says whether the network can begin so, `batch_norms` whether it has any, and `valid` how many images there are to
    judge it by.

    Fine-tuning takes about 100 steps, 4 to 8 epochs, and none after a probe where fewer than 20 valid images would have
    to tell whether it does any good: with ten photos it did much harm. Training from scratch takes about 2,000 steps,
    10 to 30 epochs. A cosine schedule warms up for one epoch, at most a quarter of all.
    """
    if config.probe is not None:
        probe = config.probe
    if config.epochs == 0 and not probe:
        raise ConfigError(
            "0 epochs are a probe alone, a new linear head on frozen features; that needs pretrained weights, a "
            "network whose last layer is linear, and classes that it does not know yet: choose another --arch or "
            "--recipe, or 1 epoch or more"
        )
    tuned, scratch = _LR[config.optimizer]
    tuned = tuned if batch_norms or config.optimizer == "sgd" else min(tuned, _LR_WITHOUT_NORMS)
    low, high = EPOCHS[pretrained]
    suited = min(max(-(-STEPS[pretrained] * config.batch_size // max(1, images)), low), high)
    if probe and valid is not None and valid < JUDGES:
        suited = 0
    epochs = config.epochs if config.epochs is not None else suited
    warmup = min(1.0, epochs / 4) if config.schedule == "cosine" else 0.0
    weights = "effective" if counts and max(counts) >= UNEVEN * min(counts) else "none"
    decay = config.layer_decay or (_LAYER_DECAY if pretrained and config.optimizer != "sgd" else 1.0)
    stages = _FROZEN_STAGES if pretrained and batch_norms and decay <= _LAYER_DECAY else 0
    return replace(
        config,
        probe=probe,
        epochs=epochs,
        lr=config.lr if config.lr is not None else (tuned if pretrained else scratch),
        layer_decay=decay,
        warmup_epochs=config.warmup_epochs if config.warmup_epochs is not None else warmup,
        freeze_norm=config.freeze_norm if config.freeze_norm is not None else pretrained,
        freeze_stages=config.freeze_stages if config.freeze_stages is not None else stages,
        ema=config.ema if config.ema is not None else (_EMA if pretrained else 0.0),
        head_scale=config.head_scale if config.head_scale is not None else (_HEAD_SCALE if probe else 1.0),
        class_weights=config.class_weights or weights,
    )


def suited_augment(pretrained: bool) -> str:
    """The preset of augmentation: few steps from pretrained weights learn more from images that are changed little."""
    return "light" if pretrained else "standard"


def suited_size(own: tuple[int, int], sizes: Sizes | None, *, resizable: bool) -> tuple[int, int]:
    """(height, width) to work at: the network's `own` or, where it is resizable and the images are much smaller, five
    times the median image's shorter side in steps of 32, at least 96.

    With features of EfficientNet-Lite0, images of 32 pixels are classified at 160 as well as at 224, in half the time.
    """
    if sizes is None or not resizable or own[0] != own[1]:
        return own
    side = max(SMALLEST, 32 * round(MAGNIFIED * min(sizes.median) / 32))
    return (side, side) if side < own[0] else own


def suited_resize_mode(size: tuple[int, int], sizes: Sizes | None) -> str:
    """`crop` or, where that would cut away much of more than a tenth of the images, `squash`."""
    if sizes is None:
        return "crop"
    ratios = [aspect / (size[1] / size[0]) for aspect in sizes.aspects]
    return "squash" if min(min(ratio, 1 / ratio) for ratio in ratios) < LEFT else "crop"
