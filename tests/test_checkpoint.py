"""The state that training goes on from."""

import pickle
from dataclasses import asdict

import pytest
import torch
from torch import nn

from imgclf.data.loader import Loader
from imgclf.errors import DataError, ModelFileError
from imgclf.specs import Recipe, TrainConfig
from imgclf.training.checkpoint import FORMAT, PREVIOUS, load_checkpoint
from imgclf.training.loop import train


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))


@pytest.fixture
def fit(make_source, tmp_path):
    """Trains for some epochs with a checkpoint at `tmp_path`; gives the model and its history."""
    source = make_source()

    def run(epochs, batch_size=12, samples=source.samples, **options):
        loader = Loader(
            source,
            samples,
            Recipe(size=(8, 8), channels=1),
            classes=source.classes,
            batch_size=batch_size,
            train=True,
        )
        config = TrainConfig(epochs=epochs, lr=0.01, batch_size=batch_size, device="cpu", precision="fp32")
        model = net()
        return model, train(model, loader, None, config, checkpoint=tmp_path / "checkpoint.pt", **options)

    return run


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
    assert load_checkpoint(path)["epoch"] == 2


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
    with pytest.raises(ModelFileError, match="is not there: expected the folder of a run"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_state_of_another_version(tmp_path):
    torch.save({"format": FORMAT + 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelFileError, match="written by another version of imgclf"):
        load_checkpoint(tmp_path / "checkpoint.pt")


class Attack:
    ran = False

    def __reduce__(self):
        return setattr, (Attack, "ran", True)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_reading_a_state_runs_no_code(tmp_path, write):
    write({"format": FORMAT, "model": Attack()}, tmp_path / "checkpoint.pt")
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
