"""What holds on every device: each test runs on the processor, a stand-in for a GPU, and a GPU where there is one."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from imgclf import Classifier
from imgclf.core.config import EXPLAIN_METHODS, OPTIMIZERS, PreprocessConfig, TrainConfig
from imgclf.data.loading.loader import Loader
from imgclf.evaluation.inference import predict
from imgclf.training.checkpoint import load_checkpoint
from imgclf.training.events import BatchDivided, CaptureFailed, EpochEnded, StepEnded, TrainingRetried
from imgclf.training.loop import train
from imgclf.transforms.presets import PRESETS, preset_steps
from support import standin_device
from support.events import on, with_state

RECIPE = PreprocessConfig(size=(8, 8), channels=1)
BATCH = 8
CLOSE = {"cpu": {"atol": 0, "rtol": 0}, "cuda": {"atol": 1e-3, "rtol": 1e-2}}  # a GPU adds up in any order


@pytest.fixture(params=["cpu", "standin", "metal", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    return request.param if request.param in CLOSE else request.getfixturevalue(request.param)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 3)
        )


def fit(source, device, callbacks=(), keep=None, recipe=RECIPE, **options):
    plain = {"epochs": 3, "lr": 0.01, "batch_size": BATCH, "precision": "fp32", "optimizer": "sgd"}
    config = TrainConfig(**plain | {"device": device} | options)
    model = net()
    loaders = [loader_of(source, device, recipe, train=part) for part in (True, False)]
    return model, train(model, *loaders, config, callbacks=callbacks, **(keep or {}))


def loader_of(source, device, recipe=RECIPE, batch=BATCH, train=False):
    where = torch.device(device)
    return Loader(source, source.samples, recipe, classes=source.classes, batch_size=batch, train=train, device=where)


def assert_close(model, other, device):
    mine, others = model.state_dict(), other.state_dict()
    for name in mine:
        torch.testing.assert_close(mine[name], others[name], **CLOSE.get(device, CLOSE["cuda"]), msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_tiny_set_is_learnt_without_a_warning(make_source, device, optimizer, precision):
    source, events = make_source(), []
    lr = 0.05 if optimizer == "sgd" else 0.01
    model, history = fit(
        source, device, [on(CaptureFailed, events.append)], epochs=12, lr=lr, optimizer=optimizer, precision=precision
    )
    assert history.epochs[-1].valid_accuracy > 0.95
    assert next(model.parameters()).device.type == device
    assert events == []


def test_what_training_keeps_on_the_device_can_be_evaluated(make_source, device):
    source, chosen = make_source(), [5, 2, 11]
    plain = next(loader_of(source, device, batch=100).epoch()).pixels[chosen]
    trained = loader_of(source, device, train=True)
    list(trained.epoch())
    (batch,) = trained.as_evaluated(chosen).epoch()
    assert torch.equal(batch.pixels, plain)


def test_probabilities_are_those_of_the_processor(make_source, device):
    source = make_source()
    model, _ = fit(source, device)

    def answers(where):
        return list(predict(model.to(where), loader_of(source, where), device=torch.device(where)))

    here, there = answers(device), answers("cpu")
    assert len(here) == len(source.samples)
    for mine, other in zip(here, there, strict=True):
        assert mine.probabilities == pytest.approx(other.probabilities, abs=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_goes_on_where_it_stopped(make_source, device, tmp_path, optimizer):
    source, path = make_source(), tmp_path / "last.pt"
    whole, _ = fit(source, device, optimizer=optimizer)

    def stop(event):
        if isinstance(event, EpochEnded) and event.record.epoch == 2:
            raise KeyboardInterrupt

    fit(source, device, [stop], {"checkpoint": path}, optimizer=optimizer)
    resumed, history = fit(source, device, keep={"resume": load_checkpoint(path)}, optimizer=optimizer)
    assert history.ended == "done"
    assert_close(resumed, whole, device)


def test_a_loss_that_is_nan_goes_back(make_source, device):
    source, events = make_source(), []

    def spoil(state):
        if state.epoch == 1 and state.step == 2 and not events:
            with torch.no_grad():
                next(state.model.parameters()).fill_(torch.nan)

    model, _ = fit(
        source, device, [with_state(StepEnded, spoil), on(TrainingRetried, events.append)], optimizer="adamw", ema=0.9
    )
    assert len(events) == 1
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_training_goes_on_from_a_run(photos, device, tmp_path):
    """Its answers are asked for before the first step."""
    config = {"size": (16, 16), "train": {"device": device, "batch_size": 16}}
    run = Classifier("lenet", config=config).fit(photos, epochs=1, runs=tmp_path).run_.path
    classifier = Classifier(init=run, config={"train": config["train"]}).fit(photos, epochs=1)
    assert {choice.name for choice in classifier.decisions_} >= {"mirror"}
    assert len(classifier.predict([photos / "red" / "00.png"])) == 1
    assert next(classifier.model_.parameters()).device.type == device


@contextmanager
def only(size):
    """So many bytes of the device's memory."""
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# On a GPU the first layer of half a batch takes 4.2 GB, and of a quarter 2.1.
@pytest.mark.parametrize(
    ("device", "side", "batch", "memory", "choice"),
    [
        ("standin", 32, 64, 2.5e6, "off"),
        ("standin", 32, 64, 2.5e6, "on"),
        pytest.param("cuda", 256, 512, 4e9, "off", marks=pytest.mark.cuda),
    ],
    indirect=["device"],
)
def test_a_batch_that_the_memory_of_the_device_cannot_hold_is_cut(make_source, device, side, batch, memory, choice):
    source, events = make_source(n=batch * 2 // 5), []
    wide = replace(RECIPE, size=(side, side))
    model = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3))
    config = TrainConfig(epochs=1, lr=0.01, batch_size=batch, device="cuda", precision="fp32", compile=choice)
    loader, valid = (loader_of(source, device, wide, batch, train=part) for part in (True, False))
    with only(memory):
        history = train(model, loader, valid, config, callbacks=[on(BatchDivided, events.append)])
    assert events
    assert np.isfinite([history.epochs[0].train_loss, history.epochs[0].valid_loss]).all()


@pytest.mark.parametrize("method", EXPLAIN_METHODS)
def test_all_that_is_done_with_a_model_is_cut_to_the_memory(photos, standin, method):
    """32 images take more than there is in the first layer, and one does not."""
    config = {"size": (16, 16), "train": {"device": standin, "batch_size": 32, "probe": True}}
    with only(100_000):
        classifier = Classifier("lenet", config=config).fit(photos, epochs=2)
        assert classifier.evaluate().n == 9
        found = classifier.explain([photos / "red" / f"{i:02d}.png" for i in range(12)], method=method)
    assert [one.error for one in found] == [None] * 12


def test_a_set_that_no_longer_fits_on_the_device_stays_in_memory(make_source, standin):
    loader = loader_of(make_source(n=40), standin, train=True)
    assert loader.cache_level.name == "device"
    with only(5_000):  # all pixels take 7,680
        batches = list(loader.epoch(0))
    assert [batch.pixels.device.type for batch in batches] == [standin] * 15


def test_augmentation_is_cut_to_the_memory(make_source, standin):
    recipe = replace(RECIPE, steps=preset_steps("strong"))
    batches = []
    for memory in (1e9, 12_000):  # 40 images take 10,240 as float32, and more than one such tensor at once
        loader = loader_of(make_source(n=20), standin, recipe, 40, train=True)
        with only(memory):
            batches += [batch.pixels.cpu() for batch in loader.epoch(0)]
    assert torch.equal(batches[0], batches[2])
    assert torch.equal(batches[1], batches[3])


def waits_of(source, device, recipe=RECIPE, **options):
    standin_device.waits.clear()
    fit(source, device, recipe=recipe, epochs=1, **options)
    return list(standin_device.waits)


@pytest.mark.parametrize("options", [{"compile": "off"}, {"compile": "on"}, {"precision": "bf16", "ema": 0.9}])
def test_no_step_waits_for_the_device(make_source, standin, options):
    few, more = (waits_of(make_source(n), standin, **options) for n in (16, 64))
    assert few == more
    assert 1 < len(few) < 8  # the loss, the weights, the answers for valid


@pytest.mark.parametrize("name", PRESETS.names())
def test_no_augmentation_waits_for_the_device(make_source, standin, name):
    recipe = replace(RECIPE, steps=preset_steps(name))
    assert waits_of(make_source(), standin, recipe) == waits_of(make_source(), standin)
