"""What training promises: the same weights for the same seed, the best ones kept, and no NaN in anything it leaves."""

import math
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from imgclf.core.config import OPTIMIZERS, AugmentStep, PreprocessConfig, TrainConfig
from imgclf.core.errors import ConfigError, DataError, OutOfMemory, TrainingDiverged
from imgclf.data.dataset import ArrayReader, Sample
from imgclf.data.images import BadImage
from imgclf.data.loading.loader import Loader
from imgclf.evaluation.inference import evaluate, predict
from imgclf.training import checkpoint as checkpoint_module
from imgclf.training.checkpoint import load_checkpoint
from imgclf.training.events import (
    BatchDivided,
    CheckpointSaved,
    EpochEnded,
    ImagesUnreadable,
    StepEnded,
    StepStarted,
    TrainingEnded,
    TrainingFailed,
    TrainingRetried,
    TrainingStarted,
)
from imgclf.training.loop import train
from support.events import on, with_state

RECIPE = PreprocessConfig(size=(8, 8), channels=1)
AUGMENTED = replace(RECIPE, steps=(AugmentStep("affine", {"shift": 0.1, "rotate": 5, "scale": [0.9, 1.1]}),))
BATCH = 8


class Net(nn.Module):
    """A net with all that makes training hard to repeat. At the training passes in `bad` it gives NaN."""

    def __init__(self, classes=3, bad=(), always=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.features = nn.Sequential(
                nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2)
            )
            self.head = nn.Linear(24, classes)
        self.bad, self.always, self.passes = set(bad), always, 0

    def forward(self, images):
        self.passes += self.training
        logits = self.head(self.features(images))
        return logits * math.nan if self.training and (self.always or self.passes in self.bad) else logits


@pytest.fixture
def source(make_source):
    return make_source(n=12)


def loader_of(source, recipe=RECIPE, seed=0, samples=None, **options):
    samples = source.samples if samples is None else samples
    return Loader(source, samples, recipe, **{"classes": source.classes, "batch_size": BATCH, "seed": seed} | options)


def config_of(**options):
    plain = {"epochs": 3, "lr": 0.02, "batch_size": BATCH, "device": "cpu", "precision": "fp32", "weight_decay": 0.0}
    return TrainConfig(**plain | options)


def fit(source, model=None, *, recipe=AUGMENTED, valid="same", samples=None, callbacks=(), keep=None, **options):
    """Train a net; `valid` is "same" (the training images), None, or a loader."""
    model = Net() if model is None else model
    config = config_of(**options)
    loader = loader_of(source, recipe, config.seed, samples, train=True)
    valid = loader_of(source) if valid == "same" else valid
    return model, train(model, loader, valid, config, callbacks=callbacks, **(keep or {}))


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(left, right):
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def finite(model):
    return all(tensor.isfinite().all() for tensor in model.state_dict().values())


def figures(history):
    return [replace(record, seconds=0.0) for record in history]


def raising(error, *, at, epoch, step=0):
    """A callback that raises at an event once `epoch` epochs and `step` steps are done."""

    def stop(state):
        if state.epoch == epoch and state.step >= step:
            raise error

    return with_state(at, stop)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_tiny_set_is_learnt(source, optimizer):
    model, history = fit(
        source, epochs=12, optimizer=optimizer, schedule="onecycle", lr=0.1 if optimizer == "sgd" else 0.03
    )
    assert evaluate(model, loader_of(source)).accuracy > 0.95
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert history.ended == "done"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(source):
    first, history = fit(source, seed=3)
    torch.manual_seed(99)
    again, repeated = fit(source, seed=3)
    other, _ = fit(source, seed=4)
    assert equal(weights(first), weights(again))
    assert figures(history) == figures(repeated)
    assert not equal(weights(first), weights(other))


def test_threads_train_as_one_does_and_predict_meanwhile(source):
    expected = [fit(source, epochs=2, seed=seed) for seed in (3, 4)]
    found = list(predict(expected[0][0], loader_of(source)))
    began, nets = threading.Barrier(3), {seed: Net() for seed in (3, 4)}

    def together(seed):
        began.wait()
        if not seed:
            return [list(predict(expected[0][0], loader_of(source))) for _ in range(8)]
        return fit(source, nets[seed], epochs=2, seed=seed)

    with ThreadPoolExecutor(3) as threads:
        *trained, answers = threads.map(together, (3, 4, 0))
    for (one, history), (other, again) in zip(expected, trained, strict=True):
        assert equal(weights(one), weights(other))
        assert figures(history) == figures(again)
    assert answers == [found] * 8


def test_what_callbacks_draw_changes_no_weights(source):
    plain, _ = fit(source, epochs=2)
    torch.manual_seed(1)
    expected = torch.rand(6)
    torch.manual_seed(1)
    drawn = []
    model, _ = fit(source, epochs=2, callbacks=[lambda event: drawn.append(torch.rand(1)) if len(drawn) < 6 else 0])
    assert equal(weights(plain), weights(model))
    assert torch.equal(torch.cat(drawn), expected)


@pytest.mark.parametrize("error", [None, ValueError("full")])
def test_a_network_ends_in_evaluation_mode(source, error):
    model = Net()
    with pytest.raises(ValueError, match="full") if error else nullcontext():
        fit(source, model, epochs=1, callbacks=[raising(error, at=StepEnded, epoch=0)] if error else [])
    assert not any(module.training for module in model.modules())


def test_the_random_state_and_the_threads_of_the_program_are_left_alone(source):
    def state():
        numpy_state = np.random.get_state()[1]  # noqa: NPY002 (it is the one that others use)
        return torch.get_rng_state().tolist(), numpy_state.tolist(), random.getstate(), torch.get_num_threads()

    before = state()
    fit(source, epochs=1)
    assert state() == before


def test_a_record_says_what_happened(source):
    model, history = fit(source, epochs=2, schedule="step", step_epochs=1, gamma=0.5, label_smoothing=0.0)
    assert [record.epoch for record in history] == [1, 2]
    assert [record.lr for record in history] == [0.02, 0.01]
    for record in history:
        assert 0 <= record.train_accuracy <= 1
        assert record.seconds > 0
    evaluation = evaluate(model, loader_of(source))
    assert (history.best.valid_loss, history.best.valid_accuracy) == (evaluation.loss, evaluation.accuracy)


def test_the_weights_of_the_lowest_valid_loss_are_kept(source):
    seen = []
    note = with_state(EpochEnded, lambda state: seen.append(weights(state.model)))
    # The warm-up climbs to a rate that destroys what the first epochs learnt.
    model, history = fit(source, epochs=8, optimizer="sgd", lr=5.0, warmup_epochs=8.0, seed=1, callbacks=[note])
    losses = [record.valid_loss for record in history]
    best = losses.index(min(losses))
    assert best < len(history) - 1
    assert history.best.epoch == best + 1
    assert equal(weights(model), seen[best])
    assert not equal(weights(model), seen[-1])
    flags = [loss < min(losses[:i], default=math.inf) for i, loss in enumerate(losses)]
    assert [record.best for record in history] == flags


def test_an_epoch_that_could_not_read_the_hard_images_is_no_better_for_it(source, tmp_path):
    class Flickering(ArrayReader):
        gone = False

        def open(self, ref, at_least=None):
            if self.gone and ref in hard:
                raise BadImage("cannot be opened: input/output error", ref)
            return super().open(ref)

    reader = Flickering(source.reader.arrays)
    wrong = {s.ref: replace(s, label=source.classes[s.label == source.classes[0]]) for s in source.samples[:6]}
    hard, mixed = set(wrong), replace(source, reader=reader, samples=tuple(wrong.values()) + source.samples[6:])
    lost, told = [], on(ImagesUnreadable, lambda event: lost.append(event.reasons))
    flicker = with_state(EpochEnded, lambda state: setattr(reader, "gone", state.epoch == 1))
    options = {"epochs": 4, "lr": 0.01, "schedule": "constant", "label_smoothing": 0.0}
    file = tmp_path / "checkpoint.pt"
    valid = loader_of(mixed, cache="off")
    _, history = fit(source, valid=valid, callbacks=[flicker, told], keep={"checkpoint": file}, **options)
    losses = [record.valid_loss for record in history]
    assert losses.index(min(losses)) == 1, "on fewer images"
    assert history.best.epoch > 2
    assert lost == [dict.fromkeys(hard, "cannot be opened: input/output error")]
    content, states = load_checkpoint(file), []
    assert content["unreadable"] == lost[0]
    fewer = loader_of(mixed, samples=mixed.samples[6:])  # as if they had been gone when it was resumed
    again = with_state(TrainingStarted, lambda state: states.append(state.best_losses))
    fit(source, valid=fewer, callbacks=[again], keep={"resume": content}, **options)
    assert torch.equal(states[0], content["best_losses"][6:])


def test_the_running_mean_is_what_is_judged_and_kept(source):
    seen = []
    note = with_state(
        EpochEnded, lambda state: seen.append(({k: v.clone() for k, v in state.ema.items()}, weights(state.model)))
    )
    options = {"epochs": 4, "lr": 0.1, "schedule": "constant", "label_smoothing": 0.0}
    model, history = fit(source, ema=0.9, callbacks=[note], **options)
    mean, raw = seen[history.best.epoch - 1]
    assert equal(weights(model), mean)
    assert not equal(weights(model), raw)
    assert evaluate(model, loader_of(source)).loss == pytest.approx(history.best.valid_loss)


def test_a_mean_changes_nothing_of_what_is_learnt(source):
    learnt = []
    for ema in (0.0, 0.9):
        note = with_state(TrainingEnded, lambda state: learnt.append(state.last_good[0]))
        fit(source, epochs=4, lr=0.1, ema=ema, callbacks=[note])
    assert equal(*learnt)


def test_a_start_that_chance_alone_would_replace_is_kept(source):
    model = Net()
    fit(source, model, epochs=4, lr=0.05)
    before = weights(model)
    # What is learnt makes the loss of half of these images lower, and that of the other half higher.
    labels = {"a": "b", "b": "c", "c": "a"}
    mixed = [replace(s, label=labels[s.label]) if i % 2 else s for i, s in enumerate(source.samples)]
    options = {"epochs": 2, "lr": 1e-4, "optimizer": "sgd", "ema": 0.5, "valid": loader_of(source, samples=mixed)}
    _, history = fit(source, model, keep={"keep_start": True}, **options)
    assert history.best is None
    assert equal(weights(model), before)


def test_training_begins_with_a_softer_head_and_the_start_stays_as_it_was(source, tmp_path):
    model = Net()
    fit(source, model, epochs=4, lr=0.05)
    before, seen, path = weights(model), [], tmp_path / "state.pt"
    expected = {name: 0.1 * tensor if name.startswith("head.") else tensor for name, tensor in before.items()}
    options = {"lr": 1e-9, "optimizer": "sgd", "head_scale": 0.1, "ema": 0.5}

    def look(event):
        if isinstance(event, TrainingStarted | StepEnded):
            seen.append(weights(event.state.model))
            seen.append(event.state.ema)

    keep = {"keep_start": True, "checkpoint": path}
    _, history = fit(source, model, epochs=0, keep=keep, callbacks=[look], **options)  # a start alone is not touched
    assert equal(weights(model), before)
    resumed = fit(source, Net(), epochs=1, keep={"resume": load_checkpoint(path)}, callbacks=[look], **options)[0]
    _, history = fit(source, model, epochs=1, keep=keep, callbacks=[look], **options)
    assert history.best is None
    assert equal(weights(model), before)
    assert equal(weights(resumed), before)
    for learnt in (seen[4], seen[5], seen[-1], seen[-2]):
        for name in ("features.0.weight", "head.weight", "head.bias"):
            torch.testing.assert_close(learnt[name], expected[name], msg=name)


def test_a_loss_that_is_nan_goes_back_to_the_softer_head(source):
    model, seen = Net(bad={1}), []
    head = model.head.weight.detach().clone()
    note = with_state(TrainingRetried, lambda state: seen.append(state.model.head.weight.detach().clone()))
    fit(source, model, epochs=1, head_scale=0.1, callbacks=[note], keep={"keep_start": True})
    torch.testing.assert_close(seen, [0.1 * head])


def test_without_valid_images_the_last_weights_are_kept(source):
    seen = []
    model, history = fit(
        source, valid=None, callbacks=[with_state(EpochEnded, lambda state: seen.append(weights(state.model)))]
    )
    assert equal(weights(model), seen[-1])
    assert history.best.epoch == 3
    assert {(record.valid_loss, record.valid_accuracy) for record in history} == {(None, None)}


@pytest.mark.parametrize("bad", [{1}, {7}, {6, 11}, {7, 9}, {12, 17, 22}])
def test_a_loss_that_is_nan_goes_back_with_half_the_rate(source, bad):
    retries = []
    note = with_state(TrainingRetried, lambda state: retries.append(state.lr_scale))
    # 36 images are 5 steps; the passes of an attempt that is given up count too.
    model, history = fit(
        source, Net(bad=bad), optimizer="sgd", momentum=0.9, schedule="constant", epochs=3, callbacks=[note]
    )
    assert retries == [0.5**n for n in range(1, len(bad) + 1)]
    assert [record.epoch for record in history] == [1, 2, 3]
    assert history.epochs[-1].lr == 0.02 * 0.5 ** len(bad)
    assert all(math.isfinite(record.train_loss) and math.isfinite(record.valid_loss) for record in history)
    assert finite(model)


def test_going_back_restores_the_weights_and_the_momentum(source):
    seen = {}

    def note(event):
        if isinstance(event, EpochEnded | TrainingRetried):
            state = event.state
            momentum = [entry["momentum_buffer"].clone() for entry in state.optimizer.state.values()]
            seen.setdefault((type(event), state.epoch), []).append((weights(state.model), momentum))

    fit(source, Net(bad={8, 11}), optimizer="sgd", schedule="constant", epochs=2, callbacks=[note])
    ((good, momentum),) = seen[EpochEnded, 1]
    assert len(seen[TrainingRetried, 1]) == 2
    for restored, restored_momentum in seen[TrainingRetried, 1]:
        assert equal(good, restored)
        assert all(torch.equal(a, b) for a, b in zip(momentum, restored_momentum, strict=True))


@pytest.mark.parametrize("valid", ["same", None])
@pytest.mark.parametrize("where", ["head.weight", "features.1.running_var"])
def test_weights_that_are_nan_without_a_nan_in_the_loss(source, where, valid):
    retries = []

    def spoil(state):
        if state.epoch == 1 and state.step == state.steps_per_epoch and not retries:
            state.model.state_dict()[where].view(-1)[0] = math.nan

    note = with_state(TrainingRetried, lambda state: retries.append(state.epoch))
    model, history = fit(source, valid=valid, callbacks=[with_state(StepEnded, spoil), note])
    assert retries == [1]
    assert len(history) == 3
    assert finite(model)


def test_valid_logits_that_are_nan(source):
    class BadValid(Net):
        def forward(self, images):
            logits = super().forward(images)
            return logits * math.nan if not self.training and self.passes == 10 else logits

    model, history = fit(source, BadValid())
    assert [record.lr < 0.01 for record in history] == [False, True, True], "5 more passes, and all is well"
    assert finite(model)


def test_a_loss_that_stays_nan_ends_training(source, tmp_path):
    model, retries = Net(always=True), []
    before = weights(model)
    with pytest.raises(TrainingDiverged, match=r"epoch 1 at lr 0\.0025, also after 3 halvings: use a lower --lr"):
        fit(
            source,
            model,
            schedule="constant",
            callbacks=[with_state(TrainingRetried, lambda state: retries.append(state.retries))],
            keep={"checkpoint": tmp_path / "checkpoint.pt"},
        )
    assert retries == [1, 2, 3]
    assert equal(weights(model), before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("at", "step"), [(StepEnded, 2), (EpochEnded, 0)])
def test_ctrl_c_keeps_the_best_weights(source, at, step):
    seen = []
    note = with_state(EpochEnded, lambda state: seen.append(weights(state.model)))
    model, history = fit(
        source, epochs=9, schedule="constant", callbacks=[note, raising(KeyboardInterrupt, at=at, epoch=2, step=step)]
    )
    assert history.ended == "interrupted"
    assert len(history) == 2
    assert equal(weights(model), seen[history.best.epoch - 1])


def test_ctrl_c_in_the_first_epoch_keeps_what_was_learnt(source):
    before = weights(Net())
    model, history = fit(source, callbacks=[raising(KeyboardInterrupt, at=StepEnded, epoch=0, step=2)])
    assert history.ended == "interrupted"
    assert len(history) == 0
    assert history.best is None
    assert not equal(weights(model), before)


def test_ctrl_c_before_the_first_step_is_ctrl_c(source):
    class Impatient(Net):
        def forward(self, images):
            if self.training:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        fit(source, Impatient())


@pytest.fixture
def always(monkeypatch):
    """However little an epoch takes, the state is written after it."""
    monkeypatch.setattr(checkpoint_module, "MAX_SHARE", math.inf)


OPTIONS = {
    "sgd": {"optimizer": "sgd", "schedule": "onecycle"},
    "adamw": {"warmup_epochs": 1.0},
    "step": {"optimizer": "sgd", "schedule": "step", "step_epochs": 2, "momentum": 0.9, "clip_norm": 0.1},
    "frozen": {"optimizer": "sgd", "freeze_epochs": 2, "momentum": 0.9, "nesterov": True},
    "adam": {"optimizer": "adam", "schedule": "constant", "class_weights": "balanced"},
    "mean": {"schedule": "constant", "lr": 0.1, "ema": 0.9},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("at", "epoch", "step"), [(EpochEnded, 1, 0), (EpochEnded, 3, 0), (StepEnded, 2, 3)])
@pytest.mark.usefixtures("always")
def test_a_run_that_goes_on_ends_with_the_weights_of_one_that_never_stopped(source, tmp_path, options, at, epoch, step):
    options = OPTIONS[options]
    whole, history = fit(source, epochs=4, **options)
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(ZeroDivisionError):
        fit(
            source,
            epochs=4,
            callbacks=[raising(ZeroDivisionError, at=at, epoch=epoch, step=step)],
            keep={"checkpoint": file},
            **options,
        )
    torch.manual_seed(11)
    content = load_checkpoint(file)
    assert (content["epoch"], content["batch_index"]) == (epoch, 0)
    resumed, whole_history = fit(source, epochs=4, keep={"checkpoint": file, "resume": content}, **options)
    assert equal(weights(whole), weights(resumed))
    assert figures(history) == figures(whole_history)


def interrupt(source, file, epoch, step, **options):
    """Train until a signal comes at a step; gives the state that was written then."""
    send = with_state(
        StepEnded, lambda state: (state.epoch, state.step) == (epoch, step) and os.kill(os.getpid(), signal.SIGINT)
    )
    _, history = fit(source, callbacks=[send], keep={"checkpoint": file}, **options)
    assert history.ended == "interrupted"
    assert len(history) == epoch
    content = load_checkpoint(file)
    assert (content["epoch"], content["batch_index"]) == (epoch, step)
    return content


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 3), (2, 5)])
def test_a_run_that_goes_on_within_an_epoch_ends_as_one_that_never_stopped(source, tmp_path, options, epoch, step):
    options = OPTIONS[options]
    whole, history = fit(source, epochs=4, **options)
    content = interrupt(source, tmp_path / "checkpoint.pt", epoch, step, epochs=4, **options)
    torch.manual_seed(11)
    resumed, whole_history = fit(source, epochs=4, keep={"resume": content}, **options)
    assert equal(weights(whole), weights(resumed))
    assert figures(history) == figures(whole_history)


@pytest.mark.parametrize(("spoilt", "epoch", "step"), [(7, 1, 4), (14, 1, 2), (3, 2, 1)])
def test_going_back_and_going_on_go_together(source, tmp_path, spoilt, epoch, step):
    """The loss becomes NaN before the interruption, or after it in the same epoch."""
    options = {"epochs": 4, "schedule": "constant", "optimizer": "sgd", "momentum": 0.9}
    whole, history = fit(source, Net(bad={spoilt}), **options)
    first = Net(bad={spoilt})
    send = with_state(
        StepEnded, lambda state: (state.epoch, state.step) == (epoch, step) and os.kill(os.getpid(), signal.SIGINT)
    )
    file = tmp_path / "checkpoint.pt"
    fit(source, first, callbacks=[send], keep={"checkpoint": file}, **options)
    rest = Net(bad={spoilt - first.passes})
    _, resumed = fit(source, rest, keep={"resume": load_checkpoint(file)}, **options)
    assert history.epochs[-1].lr == 0.01
    assert equal(weights(whole), weights(rest))
    assert figures(history) == figures(resumed)


def test_the_state_is_written_within_an_epoch_too(source, tmp_path, monkeypatch):
    whole, history = fit(source, epochs=2)
    monkeypatch.setattr(checkpoint_module.CheckpointSchedule, "overdue", lambda self: True)
    file, positions = tmp_path / "checkpoint.pt", []
    note = with_state(CheckpointSaved, lambda state: positions.append((state.epoch, state.batch_index)))
    stop = raising(ZeroDivisionError, at=StepEnded, epoch=1, step=4)
    with pytest.raises(ZeroDivisionError):
        fit(source, epochs=2, callbacks=[note, stop], keep={"checkpoint": file})
    assert positions == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 0), (1, 1), (1, 2), (1, 3)]
    resumed, whole_history = fit(source, epochs=2, keep={"resume": load_checkpoint(file)})
    assert equal(weights(whole), weights(resumed))
    assert figures(history) == figures(whole_history)


def test_a_signal_in_the_valid_pass_costs_no_step(source, tmp_path, monkeypatch):
    whole, history = fit(source, epochs=2)
    file, sent = tmp_path / "checkpoint.pt", []

    class Slow(Net):
        def forward(self, images):
            if not self.training and self.passes == 5 and not sent:
                sent.append(os.kill(os.getpid(), signal.SIGTERM))
            return super().forward(images)

    earlier = signal.signal(signal.SIGTERM, lambda number, frame: sent.append("told"))
    try:
        _, broken = fit(source, Slow(), epochs=2, keep={"checkpoint": file})
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert "told" in sent
    assert (broken.ended, len(broken)) == ("interrupted", 0)
    content = load_checkpoint(file)
    assert (content["epoch"], content["batch_index"]) == (0, 5)
    resumed, whole_history = fit(source, epochs=2, keep={"resume": content})
    assert equal(weights(whole), weights(resumed))
    assert figures(history) == figures(whole_history)


def test_the_second_ctrl_c_ends_at_once(source, tmp_path):
    def hurry(state):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(source, callbacks=[with_state(StepEnded, hurry)], keep={"checkpoint": tmp_path / "checkpoint.pt"})
    assert not list(tmp_path.iterdir())


def test_no_state_with_nan_is_written(source, tmp_path):
    """An interruption after a step that spoilt the weights leaves the last whole state."""
    file = tmp_path / "checkpoint.pt"

    def spoil(state):
        if (state.epoch, state.step) == (1, 2):
            with torch.no_grad():
                next(state.model.parameters()).fill_(math.nan)
            os.kill(os.getpid(), signal.SIGINT)

    fit(source, callbacks=[with_state(StepEnded, spoil)], keep={"checkpoint": file})
    content = load_checkpoint(file)
    assert (content["epoch"], content["batch_index"]) == (1, 0)
    assert all(tensor.isfinite().all() for tensor in content["model"].values())


def test_an_optimizer_that_holds_nan_is_not_kept(source):
    retries = []

    def spoil(state):
        if state.epoch == 1 and state.step == state.steps_per_epoch and not retries:
            next(iter(state.optimizer.state.values()))["exp_avg"].fill_(math.inf)

    fit(
        source,
        callbacks=[
            with_state(StepEnded, spoil),
            with_state(TrainingRetried, lambda state: retries.append(state.epoch)),
        ],
    )
    assert retries == [1]


def test_every_failure_is_told(source):
    told = []
    with pytest.raises(TrainingDiverged):
        fit(source, Net(always=True), callbacks=[with_state(TrainingFailed, lambda state: told.append(state.retries))])
    assert told == [4]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_learns_the_same(source):
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

    eager, compiled = net(), net()
    _, history = fit(source, eager, epochs=2, compile="off")
    _, other = fit(source, compiled, epochs=2, compile="on")
    for name, tensor in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)
    assert other.epochs[-1].train_loss == pytest.approx(history.epochs[-1].train_loss, abs=1e-3)


def test_a_run_that_went_back_goes_on_with_its_lower_rate(source, tmp_path):
    file = tmp_path / "checkpoint.pt"
    fit(source, Net(bad={2}), schedule="constant", epochs=1, keep={"checkpoint": file})
    _, history = fit(source, schedule="constant", epochs=2, keep={"resume": load_checkpoint(file)})
    assert [record.lr for record in history] == [0.01, 0.01]


def test_frozen_epochs_train_the_head_alone(source):
    seen = []
    model = Net()
    before = weights(model)
    note = with_state(EpochEnded, lambda state: seen.append(weights(state.model)))
    fit(source, model, epochs=3, freeze_epochs=2, callbacks=[note], schedule="constant")
    changed = [{name for name in before if not torch.equal(before[name], now[name])} for now in seen]
    assert changed[0] == changed[1] == {"head.weight", "head.bias"}
    assert changed[2] == set(before), "and then everything, the batch statistics too"


@pytest.mark.parametrize("stages", [0, 1, 6, 11])
def test_frozen_stages_stay_as_they_are_and_the_rest_is_trained(source, stages):
    model = Net()
    before = weights(model)
    fit(source, model, freeze_stages=stages)
    changed = {
        name.rpartition(".")[0] for name, tensor in weights(model).items() if not torch.equal(before[name], tensor)
    }
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in before))
    assert changed == set(layers[-{0: 3, 1: 2, 6: 1, 11: 1}[stages] :]), "their batch statistics, too"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_stages_stay_frozen_after_epochs_of_the_head_alone(source):
    model = Net()
    before = weights(model)
    fit(source, model, epochs=2, freeze_epochs=1, freeze_stages=1)
    changed = {name for name, tensor in weights(model).items() if not torch.equal(before[name], tensor)}
    assert {name.rpartition(".")[0] for name in changed} == {"features.1", "head"}


def test_batch_statistics_can_be_kept_while_all_else_is_trained(source):
    model = Net()
    before = weights(model)
    fit(source, model, freeze_norm=True)
    unchanged = {name for name, tensor in weights(model).items() if torch.equal(before[name], tensor)}
    assert unchanged == {f"features.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_a_model_without_a_head_can_be_trained_but_not_frozen(source):
    def model():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    _, history = fit(source, model(), epochs=1)
    assert history.ended == "done"
    with pytest.raises(ConfigError, match="name its last layer `head`"):
        fit(source, model(), epochs=1, freeze_epochs=1)


def test_patience_ends_training_early(source):
    index = {label: source.classes[i - 1] for i, label in enumerate(source.classes)}
    wrong = [replace(sample, label=index[sample.label]) for sample in source.samples]
    valid = loader_of(source, samples=wrong)  # what is learnt makes it worse
    _, history = fit(source, valid=valid, epochs=30, patience=3, schedule="constant", optimizer="sgd", lr=0.2)
    assert history.ended == "stopped early"
    assert len(history) == history.best.epoch + 3
    assert len(history) < 30


@pytest.mark.parametrize(("choice", "share"), [("none", 0.8), ("balanced", 0.5)])
def test_class_weights(make_source, choice, share):
    source = make_source(n=20, classes=2)
    same = [Sample("all/00000", "a" if i < 16 else "b", sha256=str(i)) for i in range(20)]
    model, _ = fit(
        source,
        nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
        samples=same,
        recipe=RECIPE,
        valid=None,
        epochs=40,
        lr=0.1,
        optimizer="sgd",
        momentum=0.0,
        label_smoothing=0.0,
        class_weights=choice,
    )
    loader = Loader(source, same[:1], RECIPE, classes=source.classes)
    assert next(predict(model, loader)).probabilities["a"] == pytest.approx(share, abs=0.12)


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_gradients_are_clipped(source, limit):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    before = weights(model)
    stop = raising(KeyboardInterrupt, at=StepEnded, epoch=0, step=1)
    fit(source, model, optimizer="sgd", momentum=0.0, lr=1.0, schedule="constant", clip_norm=limit, callbacks=[stop])
    moved = math.sqrt(sum(float((after - before[name]).square().sum()) for name, after in weights(model).items()))
    assert moved == pytest.approx(limit, rel=1e-3) if limit else moved > 0.01


@pytest.mark.parametrize(
    ("n", "drop_last", "images"), [(17, False, 16), (18, False, 18), (18, True, 16), (16, True, 16)]
)
def test_one_last_image_alone_is_skipped(source, n, drop_last, images):
    seen = []
    fit(
        source,
        samples=source.samples[:n],
        drop_last=drop_last,
        epochs=1,
        callbacks=[
            with_state(EpochEnded, lambda state: seen.append((state.images, state.step, state.steps_per_epoch)))
        ],
    )
    assert seen == [(images, -(-images // BATCH), -(-images // BATCH))]


def test_events_come_in_order_and_the_end_has_the_best_weights(source):
    events, ends = [], []
    note = with_state(TrainingEnded, lambda state: ends.append(equal(weights(state.model), state.best)))
    fit(source, Net(bad={3}), epochs=2, callbacks=[lambda event: events.append(type(event)), note])
    steps = [StepStarted, StepEnded] * 5
    epoch = [*steps, EpochEnded]
    assert events == [TrainingStarted, *steps[:5], TrainingRetried, *epoch, *epoch, TrainingEnded]
    assert ends == [True]


@pytest.mark.parametrize(("missing", "value"), [("epochs", None), ("lr", None), ("batch_size", 0)])
def test_nothing_may_be_left_open(source, missing, value):
    with pytest.raises(ConfigError, match="epochs, lr and batch_size set"):
        fit(source, **{missing: value})


def test_too_little_memory(source):
    class Greedy(Net):
        def forward(self, images):
            if self.training:
                raise MemoryError
            return super().forward(images)

    with pytest.raises(OutOfMemory, match="cpu has too little memory to train even on"):
        fit(source, Greedy())


def test_a_batch_that_does_not_fit_is_cut_once_and_for_all(source, tmp_path):
    class Limited(Net):
        def forward(self, images):
            if self.training and len(images) > 3:
                raise torch.OutOfMemoryError("no more")
            return super().forward(images)

    told = []
    note = on(BatchDivided, told.append)
    file = tmp_path / "checkpoint.pt"
    _, history = fit(source, Limited(), callbacks=[note], keep={"checkpoint": file}, epochs=2)
    assert told == [BatchDivided(8, 2)]
    assert history.ended == "done"
    assert load_checkpoint(file)["micro_batch_size"] == 2


def test_images_that_are_all_gone_are_no_epoch_without_loss(source):
    class Gone:
        def open(self, ref, at_least=None):
            raise DataError("no such file")

    with pytest.raises(DataError, match="none of the training images can be read"):
        fit(replace(source, reader=Gone()), valid=None)


@pytest.mark.parametrize(
    ("options", "ways"),
    [
        ({"precision": "bf16"}, {"FastGradients"}),
        ({"precision": "bf16", "freeze_norm": True}, {"FastGradients", "folded_norms"}),
        ({"precision": "fp32"}, set()),
        ({"precision": "fp32", "freeze_norm": True}, {"folded_norms"}),
        ({"precision": "bf16", "freeze_norm": True, "fast_step": False}, set()),
    ],
)
@pytest.mark.parametrize("large", [True, False])
def test_large_steps_on_a_processor_are_taken_the_quickest_way(source, monkeypatch, options, ways, large):
    taken = set()
    for name in ("FastGradients", "folded_norms"):
        monkeypatch.setattr(f"imgclf.training.acceleration.{name}", lambda *_, n=name: taken.add(n) or nullcontext())
    monkeypatch.setattr("imgclf.training.acceleration.SMALL_STEP", 0 if large else 1e9)
    fit(source, epochs=1, **options)
    assert taken == (ways if large else set())


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_faster_steps_learn_the_same_and_resume_to_the_bit(source, tmp_path, monkeypatch, precision):
    monkeypatch.setattr("imgclf.training.acceleration.SMALL_STEP", 0)
    options = {"precision": precision, "freeze_norm": True, "freeze_stages": 0, "schedule": "constant"}
    file = tmp_path / "checkpoint.pt"
    model, history = fit(source, epochs=2, **options)
    plain, other = fit(source, epochs=2, fast_step=False, **options)
    assert [r.train_loss for r in history] == pytest.approx([r.train_loss for r in other], rel=0.02)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(model)[name], tensor, atol=0.02, rtol=0.05)
    fit(source, epochs=1, keep={"checkpoint": file}, **options)
    resumed, _ = fit(source, epochs=2, keep={"resume": load_checkpoint(file)}, **options)
    assert all(torch.equal(weights(model)[name], tensor) for name, tensor in weights(resumed).items())


def test_training_in_bf16(source):
    model, history = fit(source, precision="bf16", epochs=2)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert finite(model)
    assert len(history) == 2


def test_parameters_that_the_user_froze_stay_frozen(source):
    net = Net()
    frozen = next(net.parameters()).requires_grad_(False)
    before = frozen.clone()
    fit(source, net)
    assert not frozen.requires_grad
    assert (frozen == before).all()


def test_a_batch_of_one_is_refused_where_batch_statistics_need_two(source):
    with pytest.raises(ConfigError, match="at least 2 images"):
        train(Net(), loader_of(source, batch_size=1), None, config_of(batch_size=1))
    train(Net(), loader_of(source, batch_size=1), None, config_of(batch_size=1, epochs=1, freeze_norm=True))
