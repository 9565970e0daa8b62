"""Resumable state: all that training needs to continue after any of its steps.

Private to imgclf and to the version that wrote it; read with `weights_only=True`, so that reading runs no code. The
order of samples and their augmentation are functions of (seed, epoch, sample) and need no state; dropout does.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from imgclf.core.errors import DataError, ImgclfError, ModelFileError, warn_caller
from imgclf.core.files import atomic_file, sync_folder
from imgclf.core.results import EpochRecord
from imgclf.runtime import distributed
from imgclf.training.state import TrainState

FORMAT = 8
PREVIOUS = "checkpoint-previous.pt"
NEW = "checkpoint-new.pt"
MAX_SHARE = 0.02  # of a run's time that goes into writing
PLAIN = ("epoch", "batch_index", "images", "micro_batch_size", "lr", "lr_scale", "retries", "best_loss")
RESTORED = (*PLAIN, "best", "last_good", "unreadable")  # just as they are


class CheckpointSchedule:
    """Says when it is time to write: as often as that takes at most 2 % of the run, and once in `every` seconds."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._began = self._last = time.perf_counter()
        self._spent = self._latest = 0.0

    def overdue(self) -> bool:
        """Whether `every` seconds have passed since the last writing."""
        return time.perf_counter() - self._last >= self._every

    def affordable(self) -> bool:
        """Whether writing once more, as slowly as the last time, stays within the share."""
        return self._spent + self._latest <= MAX_SHARE * (time.perf_counter() - self._began)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Measures the writing done within."""
        began = time.perf_counter()
        yield
        self._last = time.perf_counter()
        self._latest = self._last - began
        self._spent += self._latest


def save_checkpoint(state: TrainState, path: Path, random: Sequence[dict[str, torch.Tensor]]) -> None:
    """Write the state; the one before is kept until the new one is whole, and one writing longer.

    `random` says where the random numbers of every process stand, by its rank.
    Between epochs the weights are those of `state.last_good`, and the file holds each tensor once.
    """
    between = state.batch_index == 0
    content = {
        "format": FORMAT,
        "config": asdict(state.config),
        **{name: getattr(state, name) for name in (*RESTORED, "epochs", "steps_per_epoch")},
        "spent": state.seconds(),
        "metric_sums": state.metric_sums,
        "history": [asdict(record) for record in state.history],
        "best_losses": state.best_losses,
        "valid": list(state.valid),
        "model": state.last_good[0] if between else state.model.state_dict(),
        "optimizer": state.last_good[1] if between else state.optimizer.state_dict(),
        "ema": state.last_good[2] if between else state.ema,
        "scaler": state.scaler.state_dict(),
        "rng": list(random),
    }
    new = path.with_name(NEW)
    try:
        with atomic_file(new) as file:  # first: a full disk must not cost one of the two that are there
            torch.save(content, file)
        if path.exists():
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(new, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer hides the system's error in a RuntimeError
        raise ImgclfError(
            f"{path}: the state of training can't be written, which takes {checkpoint_bytes(state):,} bytes "
            f"({shutil.disk_usage(path.parent).free:,} are free): {getattr(error, 'strerror', None) or error}"
        ) from error


def checkpoint_bytes(state: TrainState) -> int:
    """About the size of a written state: the weights three times, their mean and the optimizer's tensors twice."""
    weights: int = sum(tensor.nbytes for tensor in state.model.state_dict().values())
    kept = 2 if state.config.optimizer != "sgd" else int(state.config.momentum > 0)
    return weights * (3 + 2 * kept + 2 * bool(state.ema))


def require_space(state: TrainState, folder: Path) -> None:
    """Raise `ImgclfError` where a folder has not the space for three written states: two are kept, one is new."""
    needed, free = 3 * checkpoint_bytes(state), shutil.disk_usage(folder).free
    if free < needed:
        raise ImgclfError(f"{folder}: {needed:,} bytes are needed to train safely, {free:,} are free: make room")


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed while writing has left beside `path`; only one process writes there."""
    for leftover in path.parent.glob(f".{NEW}.*.tmp"):
        leftover.unlink(missing_ok=True)


def has_checkpoint(path: Path) -> bool:
    """Whether a state was ever written at `path`, readable or not."""
    return path.exists() or path.with_name(PREVIOUS).exists()


def load_checkpoint(path: Path, warn: Callable[[str], None] = warn_caller) -> dict[str, Any]:
    """The newest readable state at `path` or, where that is damaged, the one before it, with a warning."""
    problems = []
    for candidate in (path, path.with_name(PREVIOUS)):
        if not candidate.is_file():
            continue
        try:
            with zipfile.ZipFile(candidate) as parts:  # torch writes checksums and does not look at them
                if parts.testzip() is not None:
                    raise ModelFileError("its checksum does not match its content")
            content: dict[str, Any] = torch.load(candidate, map_location="cpu", weights_only=True)
        except Exception as error:
            problems.append(f"{candidate} is damaged ({str(error).partition('. ')[0]})")
            continue
        if content.get("format") != FORMAT:
            raise ModelFileError(f"{candidate} was written by another version of imgclf and cannot be resumed")
        if problems:
            warn(f"{problems[0]}: resuming from the state before it")
        return content
    if problems:
        raise ModelFileError(f"no state to resume from could be read: {'; '.join(problems)}; train again")
    raise ModelFileError(f"{path} not found: expected the folder of a run that has saved its state at least once")


def restore(state: TrainState, content: dict[str, Any]) -> None:
    """Put a loaded state into a fresh one; the data must be as they were."""
    if content["steps_per_epoch"] != state.steps_per_epoch:
        raise DataError(
            f"the run had {content['steps_per_epoch']} steps an epoch, now there are {state.steps_per_epoch}: "
            "resume with the same images and batch size"
        )
    state.model.load_state_dict(content["model"])
    kernels = [{name: group.get(name) for name in ("foreach", "fused")} for group in state.optimizer.param_groups]
    state.optimizer.load_state_dict(content["optimizer"])
    for group, own in zip(state.optimizer.param_groups, kernels, strict=True):
        group.update(own)  # those that suit this device
    state.scaler.load_state_dict(content["scaler"])
    for name in RESTORED:
        setattr(state, name, content[name])
    state.metric_sums.copy_(content["metric_sums"])
    for name, tensor in state.ema.items():
        tensor.copy_(content["ema"][name])
    state.step, state.spent = state.batch_index, content["spent"]
    state.history = [EpochRecord(**record) for record in content["history"]]
    if content["best_losses"] is not None:
        losses = dict(zip(content["valid"], content["best_losses"].tolist(), strict=True))
        state.best_losses = torch.tensor([losses.get(ref, math.nan) for ref in state.valid], dtype=torch.float64)
    random = content["rng"][distributed.rank() if len(content["rng"]) == distributed.world_size() else 0]
    state.random |= {kind: random[kind] for kind in state.random if kind in random}  # of the devices used now
