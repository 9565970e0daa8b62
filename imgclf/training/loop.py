"""`train`: the whole of training on one screen."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from imgclf.data.loader import Loader
from imgclf.errors import ConfigError, DataError, OutOfMemory, TrainingDiverged
from imgclf.evaluation.metrics import evaluate_logits
from imgclf.inference import infer
from imgclf.models.build import head_of
from imgclf.results import EpochRecord, Evaluation, History
from imgclf.specs import TrainConfig
from imgclf.training.callbacks import Callback, TrainState, notify
from imgclf.training.checkpoint import restore, save_checkpoint
from imgclf.training.device import autocast, enough_threads, pick_device, pick_precision, step_flops
from imgclf.training.optim import class_weights, lr_factor, make_optimizer, set_lr
from imgclf.transforms.pixels import to_input

MAX_RETRIES = 3
LOOK_EVERY = 50  # steps between looks at the loss on a device that a look makes wait


class _NotFinite(Exception):
    """The loss became NaN or infinite."""


def train(
    model: nn.Module,
    loader: Loader,
    valid: Loader | None,
    config: TrainConfig,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
    resume: dict[str, Any] | None = None,
) -> History:
    """Train `model` in place; it ends with the weights of the epoch of lowest valid loss (of the last epoch, where
    `valid` is None).

    `config.epochs` and `config.lr` must be set. Ctrl-C ends training and keeps what was learnt. With `checkpoint` the
    state is saved there after every epoch; `resume` is such a state, from `load_checkpoint`. A loss that is not finite
    takes the model back to the last good epoch with half the learning rate, at most three times, then raises
    `TrainingDiverged`. Raises `OutOfMemory` where the device has too little.
    """
    device = pick_device(config.device)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.manual_seed(config.seed)
        state = _begin(model, loader, config, device)
        stack.enter_context(enough_threads(step_flops(model, _example(loader, device), config.batch_size)))
        if resume is not None:
            restore(state, resume)
        notify(callbacks, "start", state)
        try:
            _epochs(state, loader, valid, callbacks, checkpoint)
        except KeyboardInterrupt:
            if state.step == 0 and not state.history:
                raise  # nothing was learnt
            state.ended = "interrupted"
        except (RuntimeError, MemoryError) as error:
            if not _ran_out_of_memory(error):
                raise
            advice = f"batches of {config.batch_size} do not fit; use a smaller --batch-size or --size"
            raise OutOfMemory(f"{device} has too little memory: {advice}") from error
        if state.best:
            model.load_state_dict(state.best)
        notify(callbacks, "end", state)
        return state.result()


def _begin(model: nn.Module, loader: Loader, config: TrainConfig, device: torch.device) -> TrainState:
    if config.epochs is None or config.lr is None:
        raise ConfigError("train needs a config with epochs and lr set; `resolve_config` chooses them")
    pairs = not config.freeze_norm and any(isinstance(m, _BatchNorm) for m in model.modules())
    if pairs and config.batch_size == 1:
        raise ConfigError("batch_size is 1, and this network's batch norms need at least 2 images (or --freeze-norm)")
    drop_last = config.drop_last or (pairs and len(loader) % config.batch_size == 1)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainState(
        model=model,
        optimizer=make_optimizer(model, config, config.lr),
        config=config,
        device=device,
        precision=pick_precision(config.precision, device),
        epochs=config.epochs,
        steps_per_epoch=loader.steps(drop_last),
        drop_last=drop_last,
        pairs=pairs,
    )


def _example(loader: Loader, device: torch.device) -> torch.Tensor:
    recipe = loader.recipe
    return torch.zeros(1, recipe.channels, *recipe.size, device=device)


def _epochs(
    state: TrainState, loader: Loader, valid: Loader | None, callbacks: Sequence[Callback], checkpoint: Path | None
) -> None:
    good = _snapshot(state)
    while state.epoch < state.epochs and not _out_of_patience(state):
        try:
            _epoch(state, loader, valid, callbacks)
        except _NotFinite:
            _step_back(state, good)
            notify(callbacks, "retry", state)
            continue
        good = _snapshot(state)
        if checkpoint is not None:
            save_checkpoint(state, checkpoint)
        notify(callbacks, "epoch", state)
    state.ended = "done" if state.epoch == state.epochs else "stopped early"


def _epoch(state: TrainState, loader: Loader, valid: Loader | None, callbacks: Sequence[Callback]) -> None:
    """One pass over the training samples, one over the valid samples, and the record of both."""
    began = time.perf_counter()
    _set_mode(state.model, state.config, state.epoch)
    _steps(state, loader, callbacks)
    if not all(tensor.isfinite().all() for tensor in state.model.state_dict().values()):
        raise _NotFinite
    result = None if valid is None else _validate(state, valid)
    best = result is None or not state.best or result.loss < state.best_loss
    if best:
        state.best = _copy(state.model.state_dict())
        state.best_loss = math.inf if result is None else result.loss
    state.epoch += 1
    record = EpochRecord(
        epoch=state.epoch,
        train_loss=state.loss,
        train_accuracy=state.accuracy,
        valid_loss=None if result is None else result.loss,
        valid_accuracy=None if result is None else result.accuracy,
        lr=state.lr,
        seconds=time.perf_counter() - began,
        best=best,
    )
    state.history.append(record)


def _steps(state: TrainState, loader: Loader, callbacks: Sequence[Callback]) -> None:
    """The optimizer steps of one epoch; leaves the mean loss and accuracy of training in the state."""
    config, device = state.config, state.device
    scaler = torch.amp.GradScaler(device.type, enabled=state.precision is torch.float16)
    weight = None
    if config.class_weights == "balanced":
        weight = class_weights(loader.targets, len(loader.classes)).to(device)
    loss_sum, hits = torch.zeros((), device=device), torch.zeros((), device=device)
    state.step = state.images = 0
    for batch in loader.epoch(state.epoch, drop_last=state.drop_last):
        if state.pairs and len(batch.targets) == 1:  # the others of its batch could not be read
            continue
        state.lr = state.lr_scale * _scheduled_lr(state)
        set_lr(state.optimizer, state.lr)
        targets = batch.targets.to(device, non_blocking=True)
        with autocast(device, state.precision):
            logits = state.model(to_input(batch.pixels, loader.recipe, device))
        loss = F.cross_entropy(logits.float(), targets, weight, label_smoothing=config.label_smoothing)
        state.optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if config.clip_norm:
            scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
        scaler.step(state.optimizer)
        scaler.update()
        loss_sum += loss.detach() * len(targets)
        hits += (logits.argmax(1) == targets).sum()
        state.step += 1
        state.images += len(targets)
        if device.type == "cpu" or state.step % LOOK_EVERY == 0:
            _look(state, loss_sum, hits)
        notify(callbacks, "step", state)
    if state.step == 0:
        raise DataError("none of the training images can be read", [f"{r}: {why}" for r, why in loader.lost.items()])
    _look(state, loss_sum, hits)


def _validate(state: TrainState, valid: Loader) -> Evaluation:
    logits, targets = infer(state.model, valid, state.device)
    if not np.isfinite(logits).all():
        raise _NotFinite
    return evaluate_logits(logits, targets, valid.classes)


def _look(state: TrainState, loss_sum: torch.Tensor, hits: torch.Tensor) -> None:
    """Read the running figures from the device, and see that they are finite."""
    state.loss, state.accuracy = float(loss_sum) / max(1, state.images), float(hits) / max(1, state.images)
    if not math.isfinite(state.loss):
        raise _NotFinite


def _scheduled_lr(state: TrainState) -> float:
    assert state.config.lr is not None
    step = state.epoch * state.steps_per_epoch + state.step
    return state.config.lr * lr_factor(state.config, step, state.steps_per_epoch, state.epochs)


def _set_mode(model: nn.Module, config: TrainConfig, epoch: int) -> None:
    """Train the whole model or, in the first epochs, only its head; what is frozen keeps its batch statistics."""
    frozen = epoch < config.freeze_epochs
    model.train(not frozen)
    if config.freeze_epochs:
        model.requires_grad_(not frozen)
    if frozen:
        head_of(model).train().requires_grad_(True)
    if config.freeze_norm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _out_of_patience(state: TrainState) -> bool:
    """Whether `patience` epochs have passed since the best one."""
    if not state.config.patience or not state.history:
        return False
    best = max(record.epoch for record in state.history if record.best)
    return state.epoch - best >= state.config.patience


def _ran_out_of_memory(error: Exception) -> bool:
    """Whether this is a lack of memory; the allocator for the processor says so in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _snapshot(state: TrainState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    is_best = bool(state.history) and state.history[-1].best  # then one copy serves both, as neither is ever changed
    weights = state.best if is_best else _copy(state.model.state_dict())
    return weights, copy.deepcopy(state.optimizer.state_dict())


def _step_back(state: TrainState, good: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> None:
    """Return to the last good weights with half the learning rate, or give up."""
    state.model.load_state_dict(good[0])
    state.optimizer.load_state_dict(copy.deepcopy(good[1]))  # it trains on in the tensors that it is given
    state.retries += 1
    if state.retries > MAX_RETRIES:
        raise TrainingDiverged(
            f"the loss became NaN or infinite in epoch {state.epoch + 1} at lr {state.lr:.3g}, also after "
            f"{MAX_RETRIES} halvings: use a lower --lr (a tenth of it), --clip-norm 1, or --precision fp32"
        )
    state.lr_scale /= 2
