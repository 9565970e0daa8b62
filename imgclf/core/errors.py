"""Every error that imgclf raises on purpose, and its warnings.

    ImgclfError             something failed while running              exit 1
    ├── DataError           images, folders, splits or labels           exit 2
    ├── UnknownName         a name that no registry holds               exit 2
    ├── ConfigError         an option or a config value                 exit 2
    ├── NotFitted           a result was asked for before `fit`         exit 2
    ├── ModelFileError      a model or weight file                      exit 2
    ├── MissingExtra        an optional package is not installed        exit 2
    ├── OutOfMemory         the device or the machine has too little    exit 3
    └── TrainingDiverged    the loss stayed NaN after all retries       exit 4

A message says what was expected, what came, and what to do next.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

SHOWN_PROBLEMS = 5


class ImgclfError(Exception):
    """The root of all errors raised on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class DataError(ImgclfError):
    """Something is wrong with the images, their folders, their labels or their split.

    `problems` holds every single problem; the message shows the first five and a count.
    """

    exit_code = 2

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        lines = [message, *(f"  - {problem}" for problem in self.problems[:SHOWN_PROBLEMS])]
        if len(self.problems) > SHOWN_PROBLEMS:
            lines.append(f"  … and {len(self.problems) - SHOWN_PROBLEMS} more")
        super().__init__("\n".join(lines))


class UnknownName(ImgclfError):
    """A name that is not registered; the message offers close matches."""

    exit_code = 2


class ConfigError(ImgclfError):
    """An option or configuration value that is not allowed."""

    exit_code = 2


class NotFitted(ImgclfError, AttributeError):
    """A trained model is needed, and there is none yet."""

    exit_code = 2


class ModelFileError(ImgclfError):
    """A model or weight file is missing, damaged, newer than this version, or does not fit."""

    exit_code = 2


class MissingExtra(ImgclfError):
    """An optional package is needed: `MissingExtra("offline", "efficientnet_lite0 weights")`."""

    exit_code = 2

    def __init__(self, extra: str, purpose: str) -> None:
        self.extra = extra
        super().__init__(f'{purpose} need the extra "{extra}": pip install "imgclf[{extra}]"')


class OutOfMemory(ImgclfError):
    """The device or the machine has too little memory."""

    exit_code = 3


class TrainingDiverged(ImgclfError):
    """The loss became NaN or infinite, also after every retry with a lower learning rate."""

    exit_code = 4


def warn_caller(text: str) -> None:
    """A Python warning about the line outside of imgclf that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "imgclf":
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)
