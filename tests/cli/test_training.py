"""What `imgclf train` says of its data, of its start and of its end."""

import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from imgclf.cli._training import TrainView
from imgclf.core.config import TrainConfig
from imgclf.core.results import History, Probe
from imgclf.estimator.events import ProbeFitted
from imgclf.evaluation.metrics import evaluate_logits
from imgclf.training.events import BaselineMeasured, TrainingEnded
from support.command_line import done, run
from support.photos import color_image

TINY = ("--arch", "lenet", "--size", "16", "--epochs", "1", "--batch-size", "16", "--device", "cpu")


@pytest.fixture(autouse=True)
def _signals():
    """`train` handles SIGTERM; the tests of other files must not."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def interrupt(*_, **__):
    signal.raise_signal(signal.SIGINT)


def test_odd_data_are_described_before_training(photos, in_folder):
    """Files that are no images, one image in two classes, and a class of few images."""
    (photos / "red" / "notes.txt").write_text("no image")
    for index in range(3, 20):
        (photos / "blue" / f"{index:02d}.png").unlink()
    color_image("red", 0).save(photos / "blue" / "copy.png")
    told = " ".join(done("train", photos, *TINY, "--dry-run").stderr.split())
    assert "ignored: red/notes.txt: " in told
    assert "! identical" in told
    assert "! classes are uneven, from 4 (blue) to 20: look at the balanced accuracy" in told


def test_without_held_out_images_there_are_no_figures(photos, in_folder):
    result = done("train", photos, *TINY, "--split", "100/0/0")
    assert "probabilities not calibrated" in result.stderr
    assert "held out" not in result.stdout


def test_a_probe_that_was_not_measured_says_why(capsys):
    TrainView()(ProbeFitted(replace(PROBE, note="a class has one image")))
    assert capsys.readouterr().err == "probe: not measured: a class has one image\n"


PROBE = Probe(accuracy=0.4, error=0.05, loss=1.0, strength=1.0, images=30, seconds=1.0)


def test_a_probe_no_better_than_the_commonest_class_is_warned_about(capsys):
    view = TrainView()
    view(ProbeFitted(PROBE))
    assert "no better" not in capsys.readouterr().err
    view._guess = 0.35
    view(ProbeFitted(PROBE))
    assert "no better than to call every image the commonest class (35.0%)" in capsys.readouterr().err


def test_without_epochs_the_result_of_the_probe_is_a_sentence(capsys):
    logits = np.eye(2, dtype=np.float32)[[0, 1, 1]]
    TrainView()(BaselineMeasured(evaluate_logits(logits, np.array([0, 1, 0]), ("ant", "bee"))))
    assert capsys.readouterr().err.startswith("valid: 66.7% of 3 images, loss 0.")


def test_an_early_stop_says_how_long_no_epoch_was_better(capsys):
    state = {"best": None, "epochs": 9, "ended": "stopped early", "config": TrainConfig(patience=2)}
    TrainView()(TrainingEnded(SimpleNamespace(result=lambda: History(()), **state)))
    assert "stopped early: no better epoch for 2\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("imgclf.estimator.fit.plan_training", "interrupted; nothing is kept\n"),
        ("imgclf.estimator.fit.train", "interrupted; nothing is kept\n"),
        ("imgclf.estimator.fit.test", "interrupted; go on with: imgclf train --resume runs/cut\n"),
        ("imgclf.estimator.recorder.gather", "interrupted\n"),
    ],
)
def test_an_interrupt_says_what_is_kept(photos, in_folder, monkeypatch, stage, said):
    monkeypatch.setattr(stage, interrupt)
    result = run("train", photos, *TINY, "--name", "cut")
    assert result.exit_code == 130
    assert result.stderr.endswith(said)
