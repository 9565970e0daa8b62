"""`train`: the whole of training on one screen."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
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
from imgclf.runtime.compute import all_finite, enough_threads, memory_format_of, step_flops
from imgclf.runtime.device import pick_device, pick_precision
from imgclf.runtime.random import drawing, seeded
from imgclf.training.acceleration import compiled, fast_steps, should_compile, tuned
from imgclf.training.batch_size import drops_last, needs_two_images, steps_per_epoch
from imgclf.training.checkpoint import CheckpointSchedule, remove_leftovers, require_space, restore, save_checkpoint
from imgclf.training.cuda_graph import GraphedStep, should_capture
from imgclf.training.ema import copied, is_better, start_ema, swapped_weights, update_ema
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
from imgclf.training.interrupt import Interrupts, graceful_interrupts
from imgclf.training.linear_probe import soften_head
from imgclf.training.loss import class_weights
from imgclf.training.optim import DEPTHS, layers_by_depth, make_optimizer, set_lr
from imgclf.training.schedule import lr_factor
from imgclf.training.state import TrainState, Weights
from imgclf.training.step import BufferSnapshot, train_step

MAX_RETRIES = 3
LOOK_EVERY = 50  # steps between looks at the loss on a device that a look makes wait


class _NotFinite(Exception):
    """The loss or a weight became NaN or infinite."""


class _Interrupted(Exception):
    """A signal asked to end; the state is that after a whole step."""


@dataclass
class _Run:
    """The tools of a training beside its state."""

    loader: Loader
    valid: Loader | None
    callbacks: Sequence[Callback]
    checkpoint: Path | None
    schedule: CheckpointSchedule
    snapshot: BufferSnapshot
    interrupts: Interrupts = field(default_factory=Interrupts)
    step: Callable[[TrainState, Batch, PreprocessConfig, BufferSnapshot], int] = train_step


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
    """Train `model` in place; it ends in evaluation mode, with the weights that are kept.

    These are the weights of the epoch of lowest valid loss or, with `config.ema`, their running mean; of the last
    epoch, where `valid` is None or the schedule falls to 0 and none is surely better. A signal ends training after its
    step, a second one at once. A loss that is not finite takes the model back to the last good epoch with half the
    learning rate. Random numbers come from the seed alone; torch's own generators stay where they are.

    Args:
        config: with `epochs`, `lr` and `batch_size` set.
        checkpoint: the file in which the state is saved, at least every `config.checkpoint_every` seconds.
        resume: such a state, from `load_checkpoint`.
        keep_start: others must be better on valid than the weights as they are given, by more than chance.
        endless: train until a callback raises.

    Raises:
        TrainingDiverged: after three times of going back.
        OutOfMemory: where a single image does not fit.
    """
    require("config", config, TrainConfig)
    require("loader", loader, Loader)
    state_file = None if checkpoint is None else as_path("checkpoint", checkpoint)
    state = initial_state(model, loader, config, pick_device(config.device))
    state.valid = () if valid is None else tuple(sample.ref for sample in valid.samples)
    schedule, snapshot = CheckpointSchedule(config.checkpoint_every), BufferSnapshot(model, state.device)
    run = _Run(loader, valid, as_callbacks(callbacks), state_file, schedule, snapshot)
    with _prepared(state, run, resume, endless):
        if resume is None and keep_start:
            _measure_start(state, run)
        if state.best and (state.epoch, state.batch_index) == (0, 0):
            _soften_start(state)
        while not _over(state):
            began = time.perf_counter()
            try:
                for batch in _batches_left(state, loader):
                    _begin_step(state, run, batch)
                    part_size = state.micro_batch_size
                    with drawing(state.random, state.device):
                        state.images += run.step(state, batch, loader.preprocess, run.snapshot)
                    _end_step(state, run, part_size)
                    if state.time_used() >= 1:
                        break
                _end_epoch(state, run, began)
            except _NotFinite:
                _step_back(state, run)
        state.ended = "stopped early" if _out_of_patience(state) and state.epoch < state.epochs else "done"
    return state.result()


@contextmanager
def _prepared(state: TrainState, run: _Run, resume: dict[str, Any] | None, endless: bool) -> Iterator[None]:
    """Set up threads, kernels, signals and the state to resume from; in the end the model is that to keep."""
    model, device, config, preprocess = state.model, state.device, state.config, run.loader.preprocess
    with ExitStack() as stack:
        stack.callback(model.eval)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        stack.callback(lambda: [parameter.requires_grad_() for parameter in trained])
        example = torch.zeros(1, preprocess.channels, *preprocess.size, device=device)
        flops = step_flops(model, example, config.batch_size)
        stack.enter_context(enough_threads(flops))
        stack.enter_context(tuned(device))
        whole_run = 3 * flops * state.steps_per_epoch * state.epochs  # backward is twice as much as forward
        state.epochs = sys.maxsize if endless else state.epochs
        captured = should_capture(config, model, device, state.precision, flops)
        run.step = GraphedStep(run.callbacks) if captured else train_step
        compiles = not captured and should_compile(config.compile, device, whole_run)
        fast = fast_steps(model, example, config, state.precision, flops)
        stack.enter_context(compiled(model) if compiles else fast)
        run.interrupts = stack.enter_context(graceful_interrupts())
        if resume is not None:
            restore(state, resume)
            run.loader.unreadable.update(state.unreadable)
        if run.checkpoint is not None:
            remove_leftovers(run.checkpoint)
            require_space(state, run.checkpoint.parent)
        notify(run.callbacks, TrainingStarted(state))
        try:
            yield
        except (_Interrupted, KeyboardInterrupt) as error:
            _end_early(state, run, error)
        except Exception:
            notify(run.callbacks, TrainingFailed(state))
            raise
        if state.best:
            model.load_state_dict(state.best)
        notify(run.callbacks, TrainingEnded(state))


def initial_state(model: nn.Module, loader: Loader, config: TrainConfig, device: torch.device) -> TrainState:
    """The state before the first step, with the model on the device; raises `ConfigError` for what can't be trained."""
    processes = distributed.world_size()
    if config.epochs is None or config.lr is None or config.batch_size == 0:
        raise ConfigError("train needs a config with epochs, lr and batch_size set; `resolve_config` chooses them")
    if config.minutes is not None and processes > 1:
        raise ConfigError("minutes is for one process, as each has a clock of its own; set the epochs instead")
    two_images = needs_two_images(model, config)
    if two_images and config.batch_size < 2 * processes:
        raise ConfigError(
            f"batch_size is {config.batch_size}, and this network's batch norms need at least 2 images in each process "
            "(or --freeze-norm)"
        )
    if two_images and len(loader) < 2:
        raise DataError("there is one image to train on, and this network's batch norms need at least 2")
    distributed.sync_norms(model, device)
    model.to(device, memory_format=memory_format_of(model))  # type: ignore[call-overload]
    distributed.share(model.state_dict().values())
    precision = pick_precision(config.precision, device)
    weights = class_weights(loader.targets, len(loader.classes), config.class_weights)
    state = TrainState(
        model=model,
        optimizer=make_optimizer(model, config, config.lr),
        scaler=torch.amp.GradScaler(device.type, enabled=precision is torch.float16),
        config=config,
        device=device,
        precision=precision,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch(model, loader, config),
        drop_last=drops_last(model, loader, config),
        needs_two_images=two_images,
        micro_batch_size=config.batch_size,
        metric_sums=torch.zeros(2, device=device),
        random=seeded(config.seed + distributed.rank(), device),  # each process leaves out other units
        class_weights=None if weights is None else weights.to(device),
    )
    state.ema = start_ema(state)
    state.last_good = _copy_weights(state)
    return state


def _measure_start(state: TrainState, run: _Run) -> None:
    """The weights as they are given are the first to be kept: training must do better on valid."""
    if run.valid is not None:
        result, state.best_losses = _validate(state, run, run.valid, state.config.backend)
        state.best, state.best_loss = state.last_good[0], result.loss
        notify(run.callbacks, BaselineMeasured(result))
    if state.epochs == 0:
        _save(state, run)


def _soften_start(state: TrainState) -> None:
    """Before the first step: a head that is less sure than that of the start, which stays the one to beat.

    It is made from the initial weights, so that a run resumed here is not softened a second time.
    """
    soften_head(state.model, state.best, state.config.head_scale or 1.0)
    state.ema = start_ema(state)
    state.last_good = _copy_weights(state)


def _batches_left(state: TrainState, loader: Loader) -> Iterator[Batch]:
    """The batches of this epoch that no step was taken on."""
    if state.batch_index == 0:
        state.step = state.images = 0
        state.metric_sums.zero_()
    set_mode(state.model, state.config, state.epoch)
    batches = loader.epoch(state.epoch, start=state.batch_index, drop_last=state.drop_last)
    return islice(batches, state.steps_per_epoch - state.batch_index)


def _begin_step(state: TrainState, run: _Run, batch: Batch) -> None:
    """Set the learning rate: by the steps done or, where that is more, by the time used, so that it falls to its end
    in any case."""
    assert state.config.lr is not None
    total = state.epochs * state.steps_per_epoch
    done = max(state.epoch * state.steps_per_epoch + state.batch_index, int(state.time_used() * total))
    factor = lr_factor(state.config, done, state.steps_per_epoch, state.epochs)
    state.lr = state.lr_scale * (state.config.lr * factor)
    set_lr(state.optimizer, state.lr)
    notify(run.callbacks, StepStarted(batch))


def _end_step(state: TrainState, run: _Run, part_size: int) -> None:
    """Let the running mean follow, tell of the step, save and stop where it is time to.

    `part_size` is how many images at once the step was to take.
    """
    if state.ema:
        update_ema(state)
    if state.micro_batch_size < part_size:
        notify(run.callbacks, BatchDivided(state.config.batch_size, state.micro_batch_size))
    state.batch_index += 1
    state.step = state.batch_index
    if state.device.type == "cpu" or state.step % LOOK_EVERY == 0:
        _look(state)
    notify(run.callbacks, StepEnded(state))
    stop, save = _agreed(state, run)
    if save:
        _save(state, run)
    if stop:
        raise _Interrupted


def _end_epoch(state: TrainState, run: _Run, began: float) -> None:
    """Validate, keep the weights where they are the best, record the epoch, and save where it is time to."""
    if state.images == 0:
        problems = [f"{ref}: {why}" for ref, why in run.loader.unreadable.items()]
        raise DataError("none of the training images can be read", problems)
    _look(state)
    distributed.share([*state.model.buffers(), *state.ema.values()])  # each process has batch statistics of its own
    _require_finite(state)
    now = _copy_weights(state)
    result, losses = (None, None) if run.valid is None else _validate(state, run, run.valid)
    state.last_good = now
    best = losses is None or not state.best or is_better(state, losses)
    if best:
        state.best, state.best_losses = now[2] or now[0], losses  # the running mean, where there is one
        state.best_loss = math.inf if result is None else result.loss
    state.epoch += 1
    state.batch_index = 0
    loss, accuracy = (None, None) if result is None else (result.loss, result.accuracy)
    seconds = time.perf_counter() - began
    record = EpochRecord(state.epoch, state.loss, state.accuracy, loss, accuracy, state.lr, seconds, best)
    state.history.append(record)
    _note_unreadable(state, run)
    due = run.schedule.affordable() or run.schedule.overdue()
    if _over(state) or distributed.any_of_all([due and distributed.is_main()], state.device)[0]:
        _save(state, run)
    notify(run.callbacks, EpochEnded(state))


def _note_unreadable(state: TrainState, run: _Run) -> None:
    """Tell of the images that couldn't be read for the first time, in whichever process."""
    own = {**run.loader.unreadable, **(run.valid.unreadable if run.valid is not None else {})}
    new = {ref: why for found in distributed.gather(own) for ref, why in found.items() if ref not in state.unreadable}
    if new:
        state.unreadable |= new
        run.loader.unreadable.update(new)
        notify(run.callbacks, ImagesUnreadable(new))


def _agreed(state: TrainState, run: _Run) -> list[bool]:
    """Whether to stop, and whether to save: all processes do so after the same step."""
    last = state.step == state.steps_per_epoch
    if state.device.type != "cpu" and distributed.world_size() > 1 and state.step % LOOK_EVERY and not last:
        return [False, False]  # to ask makes the device wait
    return distributed.any_of_all([run.interrupts.count > 0, run.schedule.overdue()], state.device)


def _validate(state: TrainState, run: _Run, valid: Loader, backend: str = "torch") -> tuple[Evaluation, torch.Tensor]:
    """The figures of the running mean, else of the weights themselves, and the loss on each image, float64 (n,).

    In the precision of training; a signal ends it where the epoch's steps are done. An image that can't be read has a
    loss of NaN.
    """

    def stop(done: int, n: int) -> None:
        if run.interrupts.count and distributed.world_size() == 1:  # else the others would wait
            raise _Interrupted

    state.model.eval()
    with swapped_weights(state.model, state.ema), drawing(state.random, state.device):
        logits, targets, positions = infer(state.model, valid, state.device, stop, state.precision, backend)
    if not np.isfinite(logits).all():
        raise _NotFinite
    if state.config.label_smoothing:  # makes predictions less confident than the plain loss does
        logits = logits / fit_temperature(logits, targets)
    losses = torch.full((len(valid),), math.nan, dtype=torch.float64)
    known = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(targets), reduction="none")
    losses[torch.from_numpy(positions)] = known
    return evaluate_logits(logits, targets, valid.classes), losses


def _look(state: TrainState) -> None:
    """Read the running figures from the device, and see that they are finite."""
    loss, hits = distributed.sum_over_all(state.metric_sums.clone()).tolist()
    state.loss, state.accuracy = loss / max(1, state.images), hits / max(1, state.images)
    if not math.isfinite(state.loss):
        raise _NotFinite


def _require_finite(state: TrainState) -> None:
    """Raise `_NotFinite` for a NaN or infinity in the weights or the optimizer's tensors."""
    tensors = [*state.model.state_dict().values(), *state.ema.values()]
    tensors += [value for known in state.optimizer.state.values() for value in known.values()]
    if not all_finite(tensors, state.device):
        raise _NotFinite


def _save(state: TrainState, run: _Run) -> None:
    if state.batch_index:  # between epochs it has been seen
        _require_finite(state)
    with run.schedule.writing():  # processes that write nothing time it too, or it would stay overdue
        random = distributed.gather(state.random)
        if run.checkpoint is not None:
            save_checkpoint(state, run.checkpoint, random)
            notify(run.callbacks, CheckpointSaved(state))


def _end_early(state: TrainState, run: _Run, error: BaseException) -> None:
    """Save the state of an interrupted training; raise a second interrupt, or one before the first step."""
    if isinstance(error, _Interrupted):
        with suppress(_NotFinite):  # then the last whole state is there
            _save(state, run)
    elif run.interrupts.count > 1 or (state.step == 0 and not state.history):
        raise error
    state.ended = "interrupted"


def _over(state: TrainState) -> bool:
    return state.epoch >= state.epochs or state.time_used() >= 1 or _out_of_patience(state)


def set_mode(model: nn.Module, config: TrainConfig, epoch: int) -> None:
    """Train the whole model, save for frozen stages, or in the first epochs only its head; frozen layers keep their
    batch statistics."""
    frozen = epoch < config.freeze_epochs
    model.train(not frozen)
    if config.freeze_epochs:
        model.requires_grad_(not frozen)
    if frozen:
        head_of(model).train().requires_grad_(True)
    for layer, parameter, distance in layers_by_depth(model):
        if distance >= DEPTHS - (config.freeze_stages or 0):
            parameter.requires_grad_(False)
            model.get_submodule(layer).eval()
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


def _copy_weights(state: TrainState) -> tuple[Weights, dict[str, Any], Weights]:
    return copied(state.model.state_dict()), copy.deepcopy(state.optimizer.state_dict()), copied(state.ema)


def _step_back(state: TrainState, run: _Run) -> None:
    """Return to the last good weights with half the learning rate, or give up."""
    weights, optimizer, ema = state.last_good
    state.model.load_state_dict(weights)
    state.optimizer.load_state_dict(copy.deepcopy(optimizer))  # it trains on in the tensors that it is given
    for name, tensor in state.ema.items():  # in place: after a resumption `last_good` is on the CPU
        tensor.copy_(ema[name])
    state.batch_index = 0
    state.retries += 1
    if state.retries > MAX_RETRIES:
        raise TrainingDiverged(
            f"the loss became NaN or infinite in epoch {state.epoch + 1} at lr {state.lr:.3g}, also after "
            f"{MAX_RETRIES} halvings: use a lower --lr (a tenth of it), --clip-norm 1, or --precision fp32"
        )
    state.lr_scale /= 2
    notify(run.callbacks, TrainingRetried(state))
