"""Weights in the checkpoint files of others: torch's, timm's, torchvision's, Lightning's. No code in a file is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgclf.core.errors import ModelFileError
from imgclf.core.text import printable, shorten

# Where training scripts keep the weights, the running mean of them first, as timm's own reader has it.
WRAPPINGS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model_state", "model", "net", "weights")
NO_WRAPPINGS = ("optim", "sched", "scaler")  # in the names of what stands beside them
COUNTERS = ("n_averaged",)  # beside the weights of torch's averaged models
WEIGHTS_ALONE = "save its weights alone: torch.save(model.state_dict(), FILE)"


class _Inert:
    """Stands for an object of a class that is not loaded: it takes whatever the file has for it, and does nothing."""

    named = ""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:  # what the file has for a NumPy dtype, as of a best accuracy, is a tuple
        pass


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a file that `torch.save` wrote: a state dict, or one in a training script's checkpoint.

    Raises `ModelFileError` for anything else, which is called by its name.
    """
    found: Any = _opened(path)
    named = repr(str(path))
    while isinstance(found, Mapping) and not _is_state(found):
        known = [key for key in WRAPPINGS if isinstance(found.get(key), Mapping | _Inert) and found[key]]
        others = [key for key in found if not any(word in str(key) for word in NO_WRAPPINGS)]
        states = [key for key in others if isinstance(found[key], Mapping) and _is_state(found[key])]
        key = known[0] if known else states[0] if len(states) == 1 else None
        if key is None:
            keys = ", ".join(shorten(printable(str(key))) for key in list(found)[:6])
            raise ModelFileError(f"{named} holds no weights: expected names and tensors, found {keys or 'nothing'}")
        found = found[key]
    if isinstance(found, _Inert):
        kind = "fastai export" if found.named.startswith("fastai.") else "whole pickled object"
        raise ModelFileError(f"{named} holds a {kind} ({found.named}), whose code is not run: {WEIGHTS_ALONE}")
    if not isinstance(found, Mapping):
        raise ModelFileError(f"{named} holds a {type(found).__name__}, not names and tensors: {WEIGHTS_ALONE}")
    return {name: tensor for name, tensor in found.items() if name not in COUNTERS}


def _opened(path: Path) -> Any:
    """What is in a file, with inert objects in the place of all whose class torch does not deem safe."""
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of an old or a damaged file, which torch then names
        unsafe = []
    stubs: list[Any] = [(type("Inert", (_Inert,), {"named": name}), name) for name in unsafe]
    try:
        with torch.serialization.safe_globals(stubs):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file ends in any of a dozen errors of pickle, zipfile and torch
        raise ModelFileError(f"{str(path)!r} can't be read as weights: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What torch says, without its advice to load the file with all its code."""
    text = " ".join(str(error).split())
    if "TorchScript" in text:
        return f"it is a TorchScript program; {WEIGHTS_ALONE}"
    if "weights_only" in text or "Weights only" in text:
        return f"it holds more than weights, and no code in it is run; {WEIGHTS_ALONE}"
    return f"{text[:200] or type(error).__name__}; copy it again, or save it again"


def _is_state(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(t, Tensor) and isinstance(name, str) for name, t in found.items())


def without_prefix(state: Mapping[str, Tensor], own: Iterable[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the names of a network, `own`, and the names of those that belong to something else.

    Wrappers put a word in front of every name: `module.`, `model.`, `_orig_mod.`, or what a Lightning module calls its
    network. The one that makes most names fit is taken away; what has another one is no part of the network.
    """
    own, fits = set(own), Counter[str]()
    for name in state:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in own:
                fits[".".join([*parts[:depth], ""]).lstrip(".")] += 1
    prefix = max(fits, key=lambda prefix: (fits[prefix], -len(prefix)), default="")
    if not prefix or fits[prefix] <= len(own) / 2:
        return dict(state), []
    kept = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return kept, [name for name in state if not name.startswith(prefix)]
