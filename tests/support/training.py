"""States of training, as the loop makes them before its first step."""

import torch
from torch import nn

from imgclf.core.config import TrainConfig
from imgclf.training.optim import make_optimizer
from imgclf.training.state import TrainState


def state_of_training(model, class_weights=None, *, batch_size, **options):
    plain = {"epochs": 1, "lr": 0.1, "batch_size": batch_size, "device": "cpu", "precision": "fp32", "optimizer": "sgd"}
    config = TrainConfig(**{**plain, "label_smoothing": 0.1, **options})
    return TrainState(
        model=model.train(),
        optimizer=make_optimizer(model, config, config.lr),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        config=config,
        device=torch.device("cpu"),
        precision=torch.float32,
        epochs=1,
        steps_per_epoch=1,
        drop_last=False,
        needs_two_images=any(isinstance(part, nn.BatchNorm2d) for part in model.modules()),
        micro_batch_size=batch_size,
        metric_sums=torch.zeros(2),
        class_weights=class_weights,
    )
