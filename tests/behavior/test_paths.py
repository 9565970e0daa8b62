"""How many calls of our own lie between what a user asks for and the work: the stack is walked where the work is."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import imgclf
from imgclf import Classifier
from imgclf.cli import app

PACKAGE = str(Path(imgclf.__file__).parent)
TINY = {"augment": "none", "train": {"device": "cpu", "precision": "fp32", "batch_size": 16}}
OPTIONS = ["--arch", "lenet", "--size", "16", "--augment", "none", "--device", "cpu", "--precision", "fp32"]


def own_frames() -> list[str]:
    """The functions of the package that are being called, the innermost first, wrappers of other packages left out."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            found.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
        frame = frame.f_back
    return found


@pytest.fixture
def steps(monkeypatch):
    """The stacks in which an optimizer took a step."""
    found, step = [], torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        found.append(own_frames())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return found


@pytest.fixture
def forwards(monkeypatch):
    """The stacks in which a network got images."""
    found, call = [], nn.Module._call_impl

    def watched(self, *args, **kwargs):
        if isinstance(self, nn.Conv2d):
            found.append(own_frames())
        return call(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", watched)
    return found


def test_from_fit_to_the_step_of_the_optimizer(photos, steps):
    Classifier("lenet", size=16, config=TINY).fit(photos, epochs=1)
    assert len(steps) >= 3
    for stack in steps:
        assert len(stack) <= 5, stack


def test_from_the_command_to_the_step_of_the_optimizer(photos, in_folder, steps):
    result = CliRunner().invoke(app, ["train", str(photos), *OPTIONS, "--epochs", "1", "--batch-size", "16"])
    assert result.exit_code == 0, result.stderr
    assert len(steps) >= 3
    for stack in steps:
        assert len(stack) <= 8, stack


def test_from_the_command_to_the_forward_pass(photos, in_folder, forwards):
    Classifier("lenet", size=16, config=TINY).fit(photos, epochs=1, runs="runs")
    forwards.clear()
    result = CliRunner().invoke(app, ["predict", str(photos / "red" / "00.png")])
    assert result.exit_code == 0, result.stderr
    asked = [stack[: stack.index("inference.predict") + 1] for stack in forwards if "inference.predict" in stack]
    assert asked  # beside those that look at the shapes of an empty network, when the model file is read
    for stack in asked:
        called = [name for name in stack if not name.endswith(".forward")]  # the network's own
        assert len(called) <= 4, called
