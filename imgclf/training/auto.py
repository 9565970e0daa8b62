"""What training chooses by itself when the user leaves it open."""

from __future__ import annotations

from dataclasses import replace

from imgclf.specs import TrainConfig

# Learning rates by optimizer: (from pretrained weights, from scratch).
_LR = {"sgd": (0.005, 0.05), "adam": (3e-4, 1e-3), "adamw": (3e-4, 2e-3)}


def resolve_config(config: TrainConfig, *, pretrained: bool, images: int) -> TrainConfig:
    """The config with `lr`, `epochs` and `freeze_norm` set where they were left open.

    Fine-tuning takes about 100 steps, 4 to 12 epochs; training from scratch about 2,000 steps, 10 to 30 epochs. Both
    warm up, for one epoch, where the user chose the number of epochs neither.
    """
    tuned, scratch = _LR[config.optimizer]
    lr = config.lr if config.lr is not None else (tuned if pretrained else scratch)
    frozen = config.freeze_norm if config.freeze_norm is not None else pretrained
    config = replace(config, lr=lr, freeze_norm=frozen)
    if config.epochs is not None:
        return config
    steps, low, high = (100, 4, 12) if pretrained else (2000, 10, 30)
    epochs = min(max(-(-steps * config.batch_size // max(1, images)), low), high)
    return replace(config, epochs=epochs, warmup_epochs=config.warmup_epochs or 1.0)
