"""The state that training resumes from."""

import itertools
import math
import os
import pickle
import resource
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict

import pytest
import torch
from torch import nn

from imgclf.core.config import PreprocessConfig, TrainConfig
from imgclf.core.errors import DataError, ImgclfError, ModelFileError
from imgclf.data.loading.loader import Loader
from imgclf.training import checkpoint, loop
from imgclf.training.checkpoint import FORMAT, NEW, PREVIOUS, CheckpointSchedule, load_checkpoint
from imgclf.training.events import TrainingStarted
from imgclf.training.loop import train
from support.events import with_state

CALLS = 6  # fsync, rename and fsync of the new file; rename of the old and of the new; fsync of the folder


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))


@pytest.fixture
def always(monkeypatch):
    """However little an epoch takes, the state is written after it."""
    monkeypatch.setattr(checkpoint, "MAX_SHARE", math.inf)


@pytest.fixture
def fit(make_source, tmp_path, always):
    """Trains for some epochs with a checkpoint at `tmp_path`; gives the model and its history."""
    source = make_source()

    def run(epochs, batch_size=12, samples=source.samples, **options):
        loader = Loader(
            source,
            samples,
            PreprocessConfig(size=(8, 8), channels=1),
            classes=source.classes,
            batch_size=batch_size,
            train=True,
        )
        config = TrainConfig(epochs=epochs, lr=0.01, batch_size=batch_size, device="cpu", precision="fp32")
        model = net()
        return model, train(model, loader, None, config, checkpoint=tmp_path / "checkpoint.pt", **options)

    return run


def save(content, path, write=torch.save):
    with open(path, "wb") as file:
        write(content, file)


def test_a_state_holds_all_that_training_has_reached(fit, tmp_path):
    model, history = fit(3)
    content = load_checkpoint(tmp_path / "checkpoint.pt")
    assert (content["format"], content["epoch"], content["epochs"], content["steps_per_epoch"]) == (FORMAT, 3, 3, 3)
    assert content["history"] == [asdict(record) for record in history]
    assert all(torch.equal(content["model"][name], tensor) for name, tensor in model.state_dict().items())
    assert content["optimizer"]["state"]


def test_the_state_before_is_kept(fit, tmp_path):
    fit(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["checkpoint.pt", PREVIOUS])
    assert load_checkpoint(tmp_path / PREVIOUS)["epoch"] == 2


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 9999])
def test_a_damaged_state_gives_way_to_the_one_before(fit, tmp_path, damage):
    fit(3)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged .*: resuming from the state before it"):
        assert load_checkpoint(path)["epoch"] == 2


def test_a_bit_that_flips_in_a_state_gives_way_to_the_one_before(fit, tmp_path):
    """In the middle of the weights, where nothing but a checksum tells."""
    model, _ = fit(2)
    path = tmp_path / "checkpoint.pt"
    data, weights = bytearray(path.read_bytes()), model.state_dict()["1.weight"].numpy().tobytes()
    data[data.index(weights) + len(weights) // 2] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged \(its checksum does not match its content\)"):
        assert load_checkpoint(path)["epoch"] == 1


def test_a_state_that_was_never_written_gives_way_to_the_one_before(fit, tmp_path):
    fit(2)
    (tmp_path / "checkpoint.pt").unlink()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1


def test_two_damaged_states(fit, tmp_path):
    fit(2)
    for name in ("checkpoint.pt", PREVIOUS):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelFileError, match="no state to resume from could be read") as caught:
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert "checkpoint.pt" in str(caught.value)
    assert PREVIOUS in str(caught.value)


def test_no_state_at_all(tmp_path):
    with pytest.raises(ModelFileError, match="not found: expected the folder of a run"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_state_of_another_version(tmp_path):
    save({"format": FORMAT + 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelFileError, match="written by another version of imgclf"):
        load_checkpoint(tmp_path / "checkpoint.pt")


class Attack:
    ran = False

    def __reduce__(self):
        return setattr, (Attack, "ran", True)


@pytest.mark.parametrize("write", [torch.save, pickle.dump])
def test_reading_a_state_runs_no_code(tmp_path, write):
    save({"format": FORMAT, "model": Attack()}, tmp_path / "checkpoint.pt", write)
    with pytest.raises(ModelFileError):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not Attack.ran


@pytest.mark.parametrize("changed", ["batch size", "images"])
def test_other_data_are_refused(fit, make_source, tmp_path, changed):
    fit(1)
    options = {"batch_size": 6} if changed == "batch size" else {"samples": make_source().samples[:20]}
    with pytest.raises(DataError, match="the run had 3 steps an epoch, now there are"):
        fit(2, resume=load_checkpoint(tmp_path / "checkpoint.pt"), **options)


def test_a_finished_run_has_nothing_left_to_do(fit, tmp_path):
    first, history = fit(2)
    again, resumed = fit(2, resume=load_checkpoint(tmp_path / "checkpoint.pt"))
    assert resumed == history
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_a_state_from_another_device_leaves_the_optimizer_its_kernels(fit, tmp_path):
    fit(1)
    content, states = load_checkpoint(tmp_path / "checkpoint.pt"), []
    for group in content["optimizer"]["param_groups"]:
        group.update(foreach=True, fused=None)
    fit(2, resume=content, callbacks=[with_state(TrainingStarted, states.append)])
    groups = states[0].optimizer.param_groups
    assert {(group["foreach"], group["fused"]) for group in groups} == {(None, True)}


def test_each_process_goes_on_from_its_own_random_numbers(fit, tmp_path, monkeypatch):
    note = with_state(TrainingStarted, lambda state: found.append(state.random["cpu"]))
    fit(1)
    content, found = load_checkpoint(tmp_path / "checkpoint.pt"), []
    first, second = (torch.Generator().manual_seed(seed).get_state() for seed in (1, 2))
    content["rng"] = [{"cpu": first}, {"cpu": second}]
    for rank, processes in ((1, 2), (0, 2), (0, 1)):
        monkeypatch.setattr(checkpoint.distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(checkpoint.distributed, "world_size", lambda processes=processes: processes)
        fit(1, resume=content, callbacks=[note])
    assert [it is first for it in found] == [False, True, True]
    assert found[0] is second


def test_each_tensor_is_written_once(fit, tmp_path):
    fit(1)
    content = load_checkpoint(tmp_path / "checkpoint.pt")
    for name, tensor in content["model"].items():
        assert tensor.data_ptr() == content["best"][name].data_ptr() == content["last_good"][0][name].data_ptr()
    moments = zip(content["optimizer"]["state"].values(), content["last_good"][1]["state"].values(), strict=True)
    assert all(now[name].data_ptr() == good[name].data_ptr() for now, good in moments for name in now)


def test_what_a_killed_process_left_is_removed(fit, tmp_path):
    (tmp_path / f".{NEW}.0123.tmp").write_bytes(b"half")
    fit(1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_disk_without_the_space_is_named_before_the_first_step(fit, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        ImgclfError, match=r"[\d,]+ bytes are needed to train safely, 1,000 are free: make room"
    ) as caught:
        fit(1)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_costs_no_state(fit, tmp_path, monkeypatch):
    fit(2)
    states = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(ImgclfError, match=r"checkpoint\.pt: the state of training can't be written, which takes"):
            fit(3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == states


@pytest.mark.parametrize("k", range(1, CALLS + 2))
def test_a_failed_call_at_any_point_leaves_a_state(fit, tmp_path, monkeypatch, k):
    """The k-th call to the file system fails while a state is written over an older one."""
    fit(2)
    calls = []

    def failing(name):
        call = getattr(os, name)

        def fail(*args, **options):
            calls.append(name)
            if len(calls) == k:
                raise OSError(5, "Input/output error")
            return call(*args, **options)

        return fail

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync"):
            patch.setattr(os, name, failing(name))
        fails = pytest.raises(ImgclfError, match="Input/output error")
        with fails if k <= CALLS else nullcontext():
            fit(1)
    assert len(calls) == min(k, CALLS)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == (2 if k < CALLS else 1)


def times_of_writing(monkeypatch, seconds):
    """When a run of 1,000 seconds writes its state, if that takes so long; and when it has ended."""
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    schedule, written = CheckpointSchedule(60), []
    while now[0] < 1000:
        now[0] += 1.0
        if schedule.affordable() or schedule.overdue():
            written.append(now[0])
            with schedule.writing():
                now[0] += seconds
    return written, now[0]


def test_writing_takes_a_share_of_the_time(monkeypatch):
    written, ended = times_of_writing(monkeypatch, 0.1)
    assert len(written) * 0.1 <= 0.02 * ended
    assert len(written) > 150
    assert max(b - a for a, b in itertools.pairwise(written)) <= 61


def test_slow_writing_comes_once_in_a_while(monkeypatch):
    written, _ = times_of_writing(monkeypatch, 10)
    assert len(written) > 2
    assert [round(b - a) for a, b in itertools.pairwise(written)] == [70] * (len(written) - 1)


@pytest.mark.slow
def test_short_epochs_do_not_wait_for_the_disk(make_source, tmp_path, monkeypatch):
    source, written = make_source(), []
    save = checkpoint.save_checkpoint

    def slow(state, path, random):
        written.append(state.epoch)
        time.sleep(0.2)
        save(state, path, random)

    monkeypatch.setattr(loop, "save_checkpoint", slow)
    loader = Loader(
        source, source.samples, PreprocessConfig(size=(8, 8), channels=1), classes=source.classes, train=True
    )
    config = TrainConfig(epochs=9, lr=0.01, device="cpu", precision="fp32")
    loop.train(net(), loader, None, config, checkpoint=tmp_path / "checkpoint.pt")
    assert written == [1, 9], "the first, since nothing is known of the disk yet, and the last"
