"""The paths from a command to the work: how many of our own calls a reader follows."""

import inspect
from pathlib import Path

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook
from typer.testing import CliRunner

import imgclf
from imgclf import Classifier
from imgclf.cli import app

PACKAGE = Path(imgclf.__file__).parent


def own_calls() -> list[str]:
    """The functions of the package that are running, the innermost last."""
    return [
        f"{Path(frame.filename).relative_to(PACKAGE)}:{frame.function}"
        for frame in reversed(inspect.stack(0))
        if PACKAGE in Path(frame.filename).parents
    ]


@pytest.mark.parametrize("options", [[], ["--reject", "0.5"]], ids=["plain", "reject"])
def test_predict_reaches_the_forward_pass_in_four_calls(photos, tmp_path, options):
    config = {"split": (0.4, 0.4, 0.2), "train": {"device": "cpu"}}
    Classifier("lenet", size=16, weights="none", config=config).fit(photos, epochs=1).save(tmp_path)
    stacks = []
    hook = register_module_forward_pre_hook(lambda module, inputs: stacks.append(own_calls()))
    try:
        result = CliRunner().invoke(app, ["predict", str(photos), "--model", str(tmp_path), *options])
    finally:
        hook.remove()
    assert result.exit_code == 0
    first = next(stack for stack in stacks if "evaluation/inference.py:predict" in stack)
    between = first[first.index("cli/predict.py:predict") + 1 :]
    assert len(between) <= 4, between
