"""What training chooses by itself when the user leaves it open."""

from __future__ import annotations

from dataclasses import replace

from imgclf.errors import ConfigError
from imgclf.specs import TrainConfig

# Learning rates by optimizer: (from pretrained weights, from scratch).
_LR = {"sgd": (0.005, 0.05), "adam": (1e-4, 1e-3), "adamw": (1e-4, 2e-3)}


def resolve_config(config: TrainConfig, *, pretrained: bool, images: int, probe: bool = False) -> TrainConfig:
    """The config with nothing left open, for `images` training images; `probe` says whether the network can begin so.

    Fine-tuning takes about 100 steps, 4 to 8 epochs; training from scratch about 2,000 steps, 10 to 30 epochs. A
    cosine schedule warms up for one epoch, at most a quarter of all.
    """
    if config.probe is not None:
        probe = config.probe
    if config.epochs == 0 and not probe:
        raise ConfigError(
            "a probe alone needs published weights and a network with a linear head: choose another --arch or --recipe"
        )
    tuned, scratch = _LR[config.optimizer]
    steps, low, high = (100, 4, 8) if pretrained else (2000, 10, 30)
    suited = min(max(-(-steps * config.batch_size // max(1, images)), low), high)
    epochs = config.epochs if config.epochs is not None else suited
    warmup = min(1.0, epochs / 4) if config.schedule == "cosine" else 0.0
    return replace(
        config,
        probe=probe,
        epochs=epochs,
        lr=config.lr if config.lr is not None else (tuned if pretrained else scratch),
        warmup_epochs=config.warmup_epochs if config.warmup_epochs is not None else warmup,
        freeze_norm=config.freeze_norm if config.freeze_norm is not None else pretrained,
    )
