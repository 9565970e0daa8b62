"""What a run folder holds after training, and that it is enough to do it again."""

import csv
import json
import os

import pytest
import torch

from imgclf.data.split import read_split
from imgclf.estimator.classifier import Classifier
from imgclf.estimator.events import DataSplit, LoaderMade
from imgclf.estimator.plan import PlanMade
from imgclf.storage.model_file import load_model
from imgclf.storage.run_folder import open_run, read_config
from imgclf.training import checkpoint
from imgclf.training.events import BatchDivided, EpochEnded, StepEnded, warn_of
from support.events import with_state

CONFIG = {"train": {"precision": "fp32", "device": "cpu"}}


def fit(photos, folder, callbacks=(), epochs=3, **config):
    classifier = Classifier("lenet", size=16, config={**CONFIG, **config})
    return classifier.fit(photos, epochs=epochs, batch_size=16, runs=folder / "runs", callbacks=callbacks)


def events(run):
    return [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]


def equal_weights(first, second):
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_folder_tells_the_whole_story(photos, in_folder):
    classifier = fit(photos, in_folder)
    run = classifier.run_
    with open(run.path / "history.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    history = list(classifier.history_)
    assert [float(row["valid_loss"]) for row in rows] == [record.valid_loss for record in history]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    told = events(run)
    assert [event["event"] for event in told] == ["start", "epoch", "epoch", "epoch", "end", "tested", "tested"]
    assert (told[0]["device"], told[0]["precision"]) == ("cpu", "float32")
    assert [event["train_loss"] for event in told if event["event"] == "epoch"] == [r.train_loss for r in history]
    assert told[-3]["ended"] == "done"
    for part, event in zip(("valid", "test"), told[-2:], strict=True):
        metrics = classifier.metrics_[part]
        assert event == {
            **{"event": "tested", "time": event["time"], "part": part},
            **{"n": metrics.n, "loss": metrics.loss, "accuracy": metrics.accuracy},
        }
    assert {sample.ref: sample.split for sample in read_split(run.path / "split.csv")} == {
        sample.ref: sample.split for sample in classifier.split_.rows
    }
    info = open_run(run.path).info
    assert (info.status, info.epochs, info.arch) == ("done", 3, "lenet")
    assert info.classes == ("blue", "green", "red")
    assert info.source == str(photos)
    assert not (run.path / "epochs").exists()


def test_the_config_of_a_run_gives_the_same_weights_again(photos, in_folder):
    first = fit(photos, in_folder, augment="standard")
    values, source = read_config(first.run_.path / "config.toml")
    again = Classifier(config=values).fit(source, runs=in_folder / "runs")
    assert again.run_.path != first.run_.path
    assert equal_weights(first.model_, again.model_)
    assert again.config_ == first.config_
    assert (again.run_.path / "config.toml").read_bytes() == (first.run_.path / "config.toml").read_bytes()
    assert (again.run_.path / "split.csv").read_bytes() == (first.run_.path / "split.csv").read_bytes()
    other = Classifier(config=values).fit(source, seed=1)
    assert not equal_weights(first.model_, other.model_)


def test_every_epoch_is_kept_on_demand(photos, in_folder):
    classifier = fit(photos, in_folder, keep="all")
    files = sorted(path.name for path in (classifier.run_.path / "epochs").iterdir())
    assert files == [f"epoch-{epoch:03d}.safetensors" for epoch in (1, 2, 3)]
    models = [load_model(classifier.run_.path / "epochs" / name)[0] for name in files]
    assert not equal_weights(models[0], models[1])
    assert equal_weights(models[classifier.history_.best.epoch - 1], classifier.model_)


def test_images_that_are_lost_while_it_runs_are_told_and_recorded(photos, in_folder):
    """A training image becomes another class's, a valid and a test image vanish: warned of, and in `run.json`."""
    gone, splits = {}, []

    def spoil(event):
        if isinstance(event, DataSplit):
            splits.append(event.split)
        elif isinstance(event, LoaderMade):
            first = {part: splits[0].samples(part)[0] for part in ("train", "valid", "test")}
            other = next(s for s in splits[0].samples("train") if s.label != first["train"].label)
            os.replace(photos / other.ref, photos / first["train"].ref)
            for part in ("valid", "test"):
                (photos / first[part].ref).unlink()
            gone.update({first["train"].ref: "has changed since it was checked", other.ref: "no such file"})
            gone.update({first[part].ref: "no such file" for part in ("valid", "test")})
        warn_of(event)

    with pytest.warns(UserWarning, match=r"images left out that can't be read: .*has changed since it was checked"):
        classifier = fit(photos, in_folder, callbacks=[spoil], epochs=1, data={"cache": "off"})
    classifier.evaluate()
    assert classifier.unreadable_ == gone
    assert dict(open_run(classifier.run_.path).info.unreadable_later) == gone
    (lost,) = [dict(event["images"]) for event in events(classifier.run_) if event["event"] == "lost"]
    assert len(lost) == 3
    assert lost.items() <= gone.items()


def test_a_resumed_run_still_names_the_images_that_were_unreadable_before(photos, in_folder):
    splits, away = [], in_folder / "away.png"

    def hide(event):
        if isinstance(event, DataSplit):
            splits.append(event.split)
        elif isinstance(event, LoaderMade):
            os.replace(photos / splits[0].samples("train")[0].ref, away)

    with pytest.warns(UserWarning, match="no such file"):
        first = fit(photos, in_folder, callbacks=[hide], epochs=1, data={"cache": "off"})
    hidden = splits[0].samples("train")[0].ref
    os.replace(away, photos / hidden)
    resumed = Classifier().resume(first.run_.path, epochs=2)
    assert resumed.unreadable_ == dict(resumed.run_.info.unreadable_later) == {hidden: "no such file"}


def test_each_step_back_is_recorded(photos, in_folder):
    spoilt = []

    def spoil(event):
        if isinstance(event, StepEnded) and not spoilt:
            spoilt.append(True)
            with torch.no_grad():
                next(event.state.model.parameters()).fill_(float("nan"))

    classifier = fit(photos, in_folder, callbacks=[spoil])
    told = events(classifier.run_)
    assert [event["event"] for event in told] == ["start", "retry", *["epoch"] * 3, "end", *["tested"] * 2]
    assert told[1]["lr_scale"] == 0.5
    assert all(value.isfinite().all() for value in classifier.model_.state_dict().values())


def test_without_a_folder_for_runs_nothing_is_written(photos, in_folder):
    classifier = Classifier("lenet", size=16, config=CONFIG).fit(photos, epochs=1)
    assert classifier.run_ is None
    assert list(in_folder.iterdir()) == []


def test_a_run_of_a_callback_that_fails_keeps_what_was_recorded(photos, in_folder):
    def fail(event):
        if isinstance(event, EpochEnded) and event.record.epoch == 2:
            raise RuntimeError("a callback of one's own")

    with pytest.raises(RuntimeError, match="of one's own"):
        fit(photos, in_folder, callbacks=[fail])
    (folder,) = (in_folder / "runs").iterdir()
    assert [event["event"] for event in events(open_run(folder))] == ["start", "epoch", "epoch"]
    assert (folder / "checkpoint.pt").is_file()


def test_a_killed_run_has_the_best_model_of_its_last_state(photos, in_folder, monkeypatch):
    """However often the state is written, the model file beside it is the best one of that moment."""
    monkeypatch.setattr(checkpoint, "MAX_SHARE", float("inf"))
    seen = []

    def look(state):
        (folder,) = (in_folder / "runs").iterdir()
        saved = load_model(folder)[0].state_dict()
        seen.append(all(torch.equal(saved[name], tensor) for name, tensor in state.best.items()))

    fit(photos, in_folder, callbacks=[with_state(EpochEnded, look)])
    assert seen == [True] * 3


def test_a_run_that_fails_leaves_its_best_model(photos, in_folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_SHARE", 0.0)
    best = []

    def fail(event):
        if isinstance(event, EpochEnded) and event.record.epoch == 2:
            best.append({name: tensor.clone() for name, tensor in event.state.best.items()})
            raise RuntimeError("a callback of one's own")

    with pytest.raises(RuntimeError, match="of one's own"):
        fit(photos, in_folder, callbacks=[fail])
    (folder,) = (in_folder / "runs").iterdir()
    saved = load_model(folder)[0].state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in best[0].items())


def test_a_batch_that_was_cut_is_recorded(photos, in_folder):
    told = []

    def starve(event):
        if isinstance(event, PlanMade):
            model = event.plan.model
            forward = model.forward

            def limited(images):
                if model.training and len(images) > 8:
                    raise MemoryError
                return forward(images)

            model.forward = limited
        elif isinstance(event, BatchDivided):
            told.append(event)

    classifier = fit(photos, in_folder, callbacks=[starve], epochs=1)
    assert told == [BatchDivided(16, 8)]
    (event,) = [event for event in events(classifier.run_) if event["event"] == "memory"]
    assert (event["planned"], event["part"]) == (16, 8)
