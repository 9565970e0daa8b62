"""`train`: the whole of training on one screen."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from imgclf.core.arguments import as_path, require
from imgclf.core.config import PreprocessConfig, TrainConfig
from imgclf.core.errors import ConfigError, DataError, TrainingDiverged
from imgclf.core.results import EpochRecord, Evaluation, History
from imgclf.data.loading.loader import Batch, Loader
from imgclf.evaluation.calibration import fit_temperature
from imgclf.evaluation.inference import infer
from imgclf.evaluation.metrics import evaluate_logits
from imgclf.models.build import head_of
from imgclf.runtime import distributed
from imgclf.runtime.compute import all_finite, enough_threads, kept_memory, memory_format_of, step_flops
from imgclf.runtime.device import pick_device, pick_precision
from imgclf.runtime.random import drawing, seeded
from imgclf.training.acceleration import compiled, should_compile, tuned
from imgclf.training.checkpoint import CheckpointSchedule, remove_leftovers, require_space, restore, save_checkpoint
from imgclf.training.cuda_graph import GraphedStep, should_capture
from imgclf.training.ema import copied, is_better, start_mean, swapped_weights, update_mean
from imgclf.training.events import (
    BaselineMeasured,
    BatchDivided,
    Callback,
    CheckpointSaved,
    EpochEnded,
    ImagesUnreadable,
    StepEnded,
    StepStarted,
    TrainingEnded,
    TrainingFailed,
    TrainingRetried,
    TrainingStarted,
    as_callbacks,
    notify,
)
from imgclf.training.fast_backward import fast_gradients
from imgclf.training.interrupt import Interrupts, graceful_interrupts
from imgclf.training.linear_probe import soften_head
from imgclf.training.optim import class_weights, lr_factor, make_optimizer, set_lr
from imgclf.training.state import TrainState, Weights
from imgclf.training.step import BufferSnapshot, learn, needs_pairs

MAX_RETRIES = 3
LOOK_EVERY = 50  # steps between looks at the loss on a device that a look makes wait


class _NotFinite(Exception):
    """The loss or a weight became NaN or infinite."""


class _Interrupted(Exception):
    """A signal asked to end; the state is that after a whole step."""


@dataclass(frozen=True)
class _Run:
    """What training works with beside its state."""

    loader: Loader
    valid: Loader | None
    callbacks: Sequence[Callback]
    checkpoint: Path | None
    thrift: CheckpointSchedule
    interrupts: Interrupts
    rewind: BufferSnapshot
    step: Callable[[TrainState, Batch, PreprocessConfig, BufferSnapshot], int]


def train(
    model: nn.Module,
    loader: Loader,
    valid: Loader | None,
    config: TrainConfig,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    resume: dict[str, Any] | None = None,
    keep_start: bool = False,
    endless: bool = False,
) -> History:
    """Train `model` in place; it ends in evaluation mode, with the weights of the epoch of lowest valid loss or, with
    `config.ema`, their running mean: of the last epoch, where `valid` is None or the schedule falls to 0 and none is
    surely better. With `keep_start` the weights as they are given count as well: others must be better on valid, by
    more than chance. With label smoothing the loss on valid is that at the temperature which suits the valid images
    best. With `endless` it goes on in the manner of the planned epochs until a callback raises.

    `config.epochs`, `config.lr` and `config.batch_size` must be set. With `checkpoint` the state is saved there within
    every `config.checkpoint_every` seconds, and when training ends; `resume` is such a state, from `load_checkpoint`.
    Ctrl-C, SIGTERM and SIGHUP end training after the step that is under way and keep what was learnt; the second one
    is a `KeyboardInterrupt` at once. A loss that is not finite takes the model back to the last good epoch with half
    the learning rate, at most three times, then raises `TrainingDiverged`. A batch that does not fit into the memory is
    cut into parts of equal gradient; `OutOfMemory` is raised where a single image does not fit. Random numbers come
    from the seed alone, also where several threads train, and torch's own generators stay where they are.
    """
    callbacks, state_file = as_callbacks(callbacks), None if checkpoint is None else as_path("checkpoint", checkpoint)
    require("config", config, TrainConfig)
    require("loader", loader, Loader)
    device = pick_device(config.device)
    with ExitStack() as stack:
        stack.enter_context(kept_memory(device))
        stack.callback(model.eval)
        state = initial_state(model, loader, config, device)
        flops = step_flops(model, _example(loader, device), config.batch_size)
        stack.enter_context(enough_threads(flops))
        stack.enter_context(tuned(device))
        whole_run = 3 * flops * state.steps_per_epoch * state.epochs  # backward is twice as much as forward
        state.epochs = sys.maxsize if endless else state.epochs
        captured = should_capture(config, model, device, state.precision, flops)
        compiles = not captured and should_compile(config.compile, device, whole_run)
        stack.enter_context(compiled(model, compiles))
        if not compiles:
            stack.enter_context(fast_gradients(device, state.precision, flops))
        interrupts = stack.enter_context(graceful_interrupts())
        state.valid = tuple(sample.ref for sample in valid.samples) if valid is not None else ()
        if resume is not None:
            restore(state, resume)
        if state_file is not None:
            remove_leftovers(state_file)
            require_space(state, state_file.parent)
        thrift, rewind = CheckpointSchedule(config.checkpoint_every), BufferSnapshot(model, device)
        step = GraphedStep(callbacks) if captured else learn
        run = _Run(loader, valid, callbacks, state_file, thrift, interrupts, rewind, step)
        notify(callbacks, TrainingStarted(state))
        try:
            if keep_start and resume is None:
                _weigh_start(state, run)
            if state.best and (state.epoch, state.position) == (0, 0):
                _leave_to_learn(state)
            _epochs(state, run)
        except (_Interrupted, KeyboardInterrupt) as error:
            _end_early(state, run, error)
        except Exception:
            notify(callbacks, TrainingFailed(state))
            raise
        if state.best:
            model.load_state_dict(state.best)
        notify(callbacks, TrainingEnded(state))
        return state.result()


def initial_state(model: nn.Module, loader: Loader, config: TrainConfig, device: torch.device) -> TrainState:
    """The state before the first step, with the model on the device; raises `ConfigError` for what can't be trained."""
    if config.epochs is None or config.lr is None or config.batch_size == 0:
        raise ConfigError("train needs a config with epochs, lr and batch_size set; `resolve_config` chooses them")
    pairs = needs_pairs(model, config)
    if pairs and config.batch_size < 2 * distributed.shard()[1]:
        raise ConfigError(
            f"batch_size is {config.batch_size}, and this network's batch norms need at least 2 images in each process "
            "(or --freeze-norm)"
        )
    if pairs and len(loader) < 2:
        raise DataError("there is one image to train on, and this network's batch norms need at least 2")
    too_few = 1 if distributed.shard()[1] == 1 else 2 * distributed.shard()[1] - 1  # two for each process
    drop_last = config.drop_last or (pairs and 0 < len(loader) % config.batch_size <= too_few)
    distributed.sync_norms(model, device)
    model.to(device, memory_format=memory_format_of(model))  # type: ignore[call-overload]
    distributed.share(model.state_dict().values())
    precision = pick_precision(config.precision, device)
    if config.minutes is not None and distributed.shard()[1] > 1:
        raise ConfigError("minutes is for one process, as each has a clock of its own; set the epochs instead")
    weights = class_weights(loader.targets, len(loader.classes), config.class_weights)
    state = TrainState(
        model=model,
        optimizer=make_optimizer(model, config, config.lr),
        scaler=torch.amp.GradScaler(device.type, enabled=precision is torch.float16),
        config=config,
        device=device,
        precision=precision,
        epochs=config.epochs,
        steps_per_epoch=min(loader.steps(drop_last), config.epoch_steps or sys.maxsize),
        drop_last=drop_last,
        pairs=pairs,
        micro_batch_size=config.batch_size,
        sums=torch.zeros(2, device=device),
        random=seeded(config.seed + distributed.shard()[0], device),  # each process leaves out other units
        class_weights=None if weights is None else weights.to(device),
    )
    state.mean = start_mean(state)
    state.good = _snapshot(state)
    return state


def _example(loader: Loader, device: torch.device) -> torch.Tensor:
    recipe = loader.recipe
    return torch.zeros(1, recipe.channels, *recipe.size, device=device)


def _weigh_start(state: TrainState, run: _Run) -> None:
    """The weights as they are given are the first to be kept: training must do better on valid."""
    if run.valid is not None:
        result, state.best_losses = _validate(state, run, run.valid)
        state.best, state.best_loss = state.good[0], result.loss
        notify(run.callbacks, BaselineMeasured(result))
    if state.epochs == 0:
        _save(state, run)


def _leave_to_learn(state: TrainState) -> None:
    """Before the first step: a head that is less sure than that of the start, which stays the one to beat.

    It is made from the start, so that a run which goes on from here is not softened a second time.
    """
    soften_head(state.model, state.best, state.config.head_scale or 1.0)
    state.mean = start_mean(state)
    state.good = _snapshot(state)


def _epochs(state: TrainState, run: _Run) -> None:
    while not _over(state):
        try:
            _epoch(state, run)
        except _NotFinite:
            _step_back(state)
            notify(run.callbacks, TrainingRetried(state))
            continue
        due = run.thrift.affordable() or run.thrift.overdue()
        if _over(state) or distributed.any_of_all([due and distributed.is_main()], state.device)[0]:
            _save(state, run)
        notify(run.callbacks, EpochEnded(state))
    state.ended = "stopped early" if _out_of_patience(state) and state.epoch < state.epochs else "done"


def _epoch(state: TrainState, run: _Run) -> None:
    """One pass over the training samples, one over the valid samples, and the record of both."""
    began = time.perf_counter()
    if state.position == 0:
        state.step = state.images = 0
        state.sums.zero_()
    set_mode(state.model, state.config, state.epoch)
    _steps(state, run)
    distributed.share([*state.model.buffers(), *state.mean.values()])  # each process has batch statistics of its own
    _require_finite(state)
    now = _snapshot(state)
    kept = now[2] or now[0]  # the mean, where there is one; both are copies that are never changed
    result, losses = (None, None) if run.valid is None else _validate(state, run, run.valid)
    state.good = now
    best = losses is None or not state.best or is_better(state, losses)
    if best:
        state.best, state.best_loss = kept, math.inf if result is None else result.loss
        state.best_losses = losses
    state.epoch += 1
    state.position = 0
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
    _note_lost(state, run)


def _note_lost(state: TrainState, run: _Run) -> None:
    """Tell of the images that couldn't be read for the first time, in whichever process."""
    own = {**run.loader.lost, **(run.valid.lost if run.valid is not None else {})}
    new = {ref: why for lost in distributed.gather(own) for ref, why in lost.items() if ref not in state.lost}
    if new:
        state.lost |= new
        run.loader.lost.update(new)
        notify(run.callbacks, ImagesUnreadable(new))


def _steps(state: TrainState, run: _Run) -> None:
    """The optimizer steps of one epoch, from where the state stands; leaves the mean loss and accuracy in it."""
    loader = run.loader
    batches = loader.epoch(state.epoch, start=state.position, drop_last=state.drop_last)
    for batch in islice(batches, state.steps_per_epoch - state.position):
        state.lr = state.lr_scale * _scheduled_lr(state)
        set_lr(state.optimizer, state.lr)
        notify(run.callbacks, StepStarted(batch))
        before = state.micro_batch_size
        with drawing(state.random, state.device):
            state.images += run.step(state, batch, loader.recipe, run.rewind)
        if state.mean:
            update_mean(state)
        if state.micro_batch_size < before:
            notify(run.callbacks, BatchDivided(state.config.batch_size, state.micro_batch_size))
        state.position += 1
        state.step = state.position
        if state.device.type == "cpu" or state.step % LOOK_EVERY == 0:
            _look(state)
        notify(run.callbacks, StepEnded(state))
        stop, save = _agreed(state, run)
        if save:
            _save(state, run)
        if stop:
            raise _Interrupted
        if state.time_used() >= 1:
            break
    if state.images == 0:
        raise DataError("none of the training images can be read", [f"{r}: {why}" for r, why in loader.lost.items()])
    _look(state)


def _agreed(state: TrainState, run: _Run) -> list[bool]:
    """Whether to stop, and whether to save: all processes do so after the same step."""
    last = state.step == state.steps_per_epoch
    if state.device.type != "cpu" and distributed.shard()[1] > 1 and state.step % LOOK_EVERY and not last:
        return [False, False]  # to ask makes the device wait
    return distributed.any_of_all([run.interrupts.count > 0, run.thrift.overdue()], state.device)


def _validate(state: TrainState, run: _Run, valid: Loader) -> tuple[Evaluation, torch.Tensor]:
    """The figures of the running mean, else of the weights themselves, and the loss on each image, float64 (n,).

    In the precision of training; a signal ends it where the epoch's steps are done. An image that can't be read has a
    loss of NaN.
    """

    def stop(done: int, n: int) -> None:
        if run.interrupts.count and distributed.shard()[1] == 1:  # else the others would wait
            raise _Interrupted

    state.model.eval()
    with swapped_weights(state.model, state.mean), drawing(state.random, state.device):
        logits, targets, positions = infer(state.model, valid, state.device, stop, state.precision)
    if not np.isfinite(logits).all():
        raise _NotFinite
    if state.config.label_smoothing:  # asks for less certain answers than the plain loss does, more so as it succeeds
        logits = logits / fit_temperature(logits, targets)
    losses = torch.full((len(valid),), math.nan, dtype=torch.float64)
    known = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(targets), reduction="none")
    losses[torch.from_numpy(positions)] = known
    return evaluate_logits(logits, targets, valid.classes), losses


def _look(state: TrainState) -> None:
    """Read the running figures from the device, and see that they are finite."""
    loss, hits = distributed.sum_over_all(state.sums.clone()).tolist()
    state.loss, state.accuracy = loss / max(1, state.images), hits / max(1, state.images)
    if not math.isfinite(state.loss):
        raise _NotFinite


def _require_finite(state: TrainState) -> None:
    """What is kept or written holds no NaN: neither the weights nor what the optimizer knows of them."""
    tensors = [*state.model.state_dict().values(), *state.mean.values()]
    tensors += [value for known in state.optimizer.state.values() for value in known.values()]
    if not all_finite(tensors, state.device):
        raise _NotFinite


def _save(state: TrainState, run: _Run) -> None:
    if state.position:  # between epochs it has been seen
        _require_finite(state)
    with run.thrift.writing():  # who writes nothing keeps the time as well, or it would be overdue for ever
        random = distributed.gather(state.random)
        if run.checkpoint is not None:
            save_checkpoint(state, run.checkpoint, random)
            notify(run.callbacks, CheckpointSaved(state))


def _end_early(state: TrainState, run: _Run, error: BaseException) -> None:
    """Keep what was learnt, exactly as it stands; raise the interrupt of who has no time or has nothing to keep."""
    if isinstance(error, _Interrupted):
        with suppress(_NotFinite):  # then the last whole state is there
            _save(state, run)
    elif run.interrupts.count > 1 or (state.step == 0 and not state.history):
        raise error
    state.ended = "interrupted"


def _over(state: TrainState) -> bool:
    return state.epoch >= state.epochs or state.time_used() >= 1 or _out_of_patience(state)


def _scheduled_lr(state: TrainState) -> float:
    """By the steps that are done or, where that is more, by the time that is used: it falls to its end in any case."""
    assert state.config.lr is not None
    step = state.epoch * state.steps_per_epoch + state.position
    step = max(step, int(state.time_used() * state.epochs * state.steps_per_epoch))
    return state.config.lr * lr_factor(state.config, step, state.steps_per_epoch, state.epochs)


def set_mode(model: nn.Module, config: TrainConfig, epoch: int) -> None:
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
    best = max((record.epoch for record in state.history if record.best), default=0)
    return state.epoch - best >= state.config.patience


def _snapshot(state: TrainState) -> tuple[Weights, dict[str, Any], Weights]:
    return copied(state.model.state_dict()), copy.deepcopy(state.optimizer.state_dict()), copied(state.mean)


def _step_back(state: TrainState) -> None:
    """Return to the last good weights with half the learning rate, or give up."""
    weights, optimizer, mean = state.good
    state.model.load_state_dict(weights)
    state.optimizer.load_state_dict(copy.deepcopy(optimizer))  # it trains on in the tensors that it is given
    for name, tensor in state.mean.items():  # in place: after a resumption `good` lies on the processor
        tensor.copy_(mean[name])
    state.position = 0
    state.retries += 1
    if state.retries > MAX_RETRIES:
        raise TrainingDiverged(
            f"the loss became NaN or infinite in epoch {state.epoch + 1} at lr {state.lr:.3g}, also after "
            f"{MAX_RETRIES} halvings: use a lower --lr (a tenth of it), --clip-norm 1, or --precision fp32"
        )
    state.lr_scale /= 2
