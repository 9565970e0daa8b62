"""Resumable state: all that training needs to go on after the last whole epoch.

Private to imgclf and to the version that wrote it; read with `weights_only=True`, so that reading runs no code. The
order of samples and their augmentation are functions of (seed, epoch, sample) and need no state; dropout does.
"""

from __future__ import annotations

import io
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from imgclf._files import write_atomic
from imgclf.errors import DataError, ModelFileError
from imgclf.results import EpochRecord
from imgclf.training.callbacks import TrainState

FORMAT = 1
PREVIOUS = "checkpoint-previous.pt"
NEW = "checkpoint-new.pt"


def save_checkpoint(state: TrainState, path: Path) -> None:
    """Write the state; the one before is kept until the new one is whole, and one step longer."""
    content = {
        "format": FORMAT,
        "config": asdict(state.config),
        "epoch": state.epoch,
        "epochs": state.epochs,
        "steps_per_epoch": state.steps_per_epoch,
        "lr_scale": state.lr_scale,
        "retries": state.retries,
        "history": [asdict(record) for record in state.history],
        "best": state.best,
        "best_loss": state.best_loss,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "rng": _rng_state(state.device),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    new = path.with_name(NEW)
    write_atomic(new, buffer.getvalue())  # first: a full disk must not cost one of the two that are there
    if path.exists():
        os.replace(path, path.with_name(PREVIOUS))
    os.replace(new, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The newest readable state at `path` or, where that is damaged, the one before it."""
    problems = []
    for candidate in (path, path.with_name(PREVIOUS)):
        if not candidate.is_file():
            continue
        try:
            content: dict[str, Any] = torch.load(candidate, map_location="cpu", weights_only=True)
        except Exception as error:
            problems.append(f"{candidate}: {error}")
            continue
        if content.get("format") != FORMAT:
            raise ModelFileError(f"{candidate} was written by another version of imgclf and cannot be resumed")
        return content
    if problems:
        raise ModelFileError("no state to resume from could be read: " + "; ".join(problems))
    raise ModelFileError(f"{path} is not there: expected the folder of a run that has finished at least one epoch")


def restore(state: TrainState, content: dict[str, Any]) -> None:
    """Put a loaded state into a fresh one; the data must be as they were."""
    if content["steps_per_epoch"] != state.steps_per_epoch:
        raise DataError(
            f"the run had {content['steps_per_epoch']} steps an epoch, now there are {state.steps_per_epoch}: "
            "resume with the same images and batch size"
        )
    state.model.load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.epoch = content["epoch"]
    state.lr_scale, state.retries = content["lr_scale"], content["retries"]
    state.history = [EpochRecord(**record) for record in content["history"]]
    state.best, state.best_loss = content["best"], content["best_loss"]
    torch.set_rng_state(content["rng"]["cpu"])
    if "cuda" in content["rng"] and state.device.type == "cuda":
        torch.cuda.set_rng_state(content["rng"]["cuda"], state.device)


def _rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states
