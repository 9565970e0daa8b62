"""Trackers: what they are told, and that none of them can harm a run."""

import json
import os
import socket
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from imgclf import Classifier, tracker
from imgclf.cli import app
from imgclf.core.errors import ConfigError, MissingExtra, UnknownName
from imgclf.core.results import ClassResult, EpochRecord, Evaluation
from imgclf.tracking import tracker as tracking
from imgclf.tracking.backend import Backend, Pictures, Session, draw_confusion, readable_confusion
from imgclf.tracking.registry import TRACKERS, find_backend
from imgclf.tracking.tensorboard import TensorBoard
from imgclf.tracking.visdom import MAX_STEP_POINTS, Visdom, _client_class
from imgclf.training.events import EpochEnded

CONFIG = {"train": {"precision": "fp32"}}


class Recording(Backend):
    """Takes note of all calls, with the thread that they came on."""

    def __init__(self, name="recording"):
        self.name, self.calls, self.threads = name, [], set()

    def location(self, session):
        return f"in {session.name}"

    def __getattribute__(self, name):
        known = object.__getattribute__(self, name)
        if name not in ("open", "start", "baseline", "step", "epoch", "batch", "tested", "flush", "close"):
            return known

        def note(*values):
            self.threads.add(threading.current_thread().name)
            self.calls.append((name, values))
            self.happen(name)
            return known(*values)

        return note

    def happen(self, name):
        """For those who do harm."""

    def of(self, name):
        return [values for called, values in self.calls if called == name]


class Raising(Recording):
    def __init__(self, at):
        super().__init__("raising")
        self.at = at

    def happen(self, name):
        if name == self.at:
            raise SystemExit("no more")


class Sleeping(Recording):
    def happen(self, name):
        time.sleep(60)


def fit(source, *backends, epochs=3, **options):
    """A tiny training that is tracked; the classifier, and what was warned of."""
    said = []
    callback = [tracker(*backends, warn=said.append)] if backends else []
    classifier = Classifier("lenet", size=16, weights="none", config=CONFIG)
    return classifier.fit(source, epochs=epochs, batch_size=8, callbacks=callback, **options), said


def weights(classifier):
    return torch.cat([tensor.flatten().double() for tensor in classifier.model_.state_dict().values()])


@pytest.fixture
def plain(make_source):
    return weights(fit(make_source())[0])


def test_a_backend_hears_of_a_run_from_its_beginning_to_its_end(make_source, tmp_path, plain):
    backend, where = Recording(), []
    classifier = Classifier("lenet", size=16, weights="none", config=CONFIG)
    follow = tracker(backend, say=where.append)
    classifier.fit(make_source(), epochs=3, batch_size=8, callbacks=[follow], runs=tmp_path, name="first")
    names = [name for name, _ in backend.calls if name not in ("flush", "step")]
    assert names == ["open", "start", "batch", "epoch", "epoch", "epoch", "tested", "tested", "close"]
    assert backend.of("step")
    assert backend.threads == {"imgclf-recording"}
    assert where == ["recording in first"]
    ((session,),) = backend.of("open")
    assert (session.name, session.folder) == ("first", tmp_path / "first")
    wanted = {
        "data": "levels",
        "images": 36,
        "classes": 3,
        "arch": "lenet",
        "epochs": 3,
        "batch_size": 8,
        "size": "16, 16",
    }
    assert {key: session.settings[key] for key in wanted} == wanted
    assert [record for (record,) in backend.of("epoch")] == list(classifier.history_)
    ((batch,),) = backend.of("batch")
    assert {image.shape for image in batch.images} == {(16, 16, 1)}
    assert set(batch.captions) <= {"a", "b", "c"}
    assert [part for part, _, _ in backend.of("tested")] == ["valid", "test"]
    for part, result, sample in backend.of("tested"):
        assert result == classifier.metrics_[part]
        assert len(sample.images) == result.n
        assert sum(sample.correct) == round(result.accuracy * result.n)
        for caption, correct in zip(sample.captions, sample.correct, strict=True):
            predicted, true = caption.rstrip(")").split(" (")
            assert (predicted == true) == correct
    assert backend.of("close") == [("done",)]
    assert torch.equal(weights(classifier), plain)


def test_the_loss_within_an_epoch_is_the_mean_since_the_last_look(make_source, monkeypatch):
    monkeypatch.setattr(tracking, "STEP_SECONDS", 0.0)
    backend = Recording()
    classifier, _ = fit(make_source(), backend, epochs=2)
    steps = [values for values in backend.of("step") if values[0] <= 1]
    assert [number for _, number, _, _ in steps] == [1, 2, 3, 4]
    assert [epoch for epoch, *_ in steps] == [0.25, 0.5, 0.75, 1.0]
    sizes = [8, 8, 8, classifier.split_.counts() and len(classifier.split_.samples("train")) - 24]
    mean = sum(size * loss for size, (_, _, loss, _) in zip(sizes, steps, strict=True)) / sum(sizes)
    assert mean == pytest.approx(classifier.history_.epochs[0].train_loss, rel=1e-5)


def test_blended_images_are_called_by_both_classes(photos):
    backend = Recording()
    Classifier("lenet", size=16, weights="none", augment="mix", config=CONFIG).fit(
        photos, epochs=1, callbacks=[tracker(backend)]
    )
    ((batch,),) = backend.of("batch")
    assert any("%" in caption and "," in caption for caption in batch.captions)


def test_a_resumed_run_has_the_key_that_it_had(photos, tmp_path):
    first, second = Recording(), Recording()
    classifier = Classifier("lenet", size=16, weights="none", config=CONFIG)
    classifier.fit(photos, epochs=1, runs=tmp_path, callbacks=[tracker(first)])
    Classifier().resume(classifier.run_.path, epochs=2, callbacks=[tracker(second)])
    assert first.of("open")[0][0].key == second.of("open")[0][0].key
    assert [[record.epoch for record in history] for (history,) in second.of("start")] == [[1]]
    assert [record.epoch for (record,) in second.of("epoch")] == [2]


@pytest.mark.parametrize("at", ["open", "start", "batch", "epoch", "tested", "flush", "close"])
def test_a_backend_that_raises_costs_one_warning(make_source, plain, at):
    good = Recording("good")
    classifier, said = fit(make_source(), Raising(at), good)
    assert said == ["raising no longer follows this run: no more"]
    assert torch.equal(weights(classifier), plain)
    assert good.of("close") == [("done",)]


def test_backends_that_sleep_are_waited_for_together_and_not_for_long(make_source, plain, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.5)
    backends = [Sleeping("one"), Sleeping("two")]
    began = time.monotonic()
    classifier, said = fit(make_source(), *backends)
    assert time.monotonic() - began < 10
    assert said == [f"{name} no longer follows this run: it did not finish within 0 s" for name in ("one", "two")]
    assert torch.equal(weights(classifier), plain)


def test_a_backend_that_falls_behind_is_left_alone(make_source, plain, monkeypatch):
    monkeypatch.setattr(tracking, "MAX_QUEUED", 4)
    classifier, said = fit(make_source(), Sleeping("slow"), epochs=6)
    assert said == ["slow no longer follows this run: it is 4 records behind"]
    assert len(classifier.history_) == 6


def test_a_backend_that_hangs_is_not_called_again_and_one_that_failed_is(make_source, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.2)
    said, hanging, failing = [], Sleeping("hanging"), Raising("open")
    follow = tracker(hanging, failing, warn=said.append)
    for _ in range(2):
        Classifier("lenet", size=16, weights="none", config=CONFIG).fit(make_source(), epochs=1, callbacks=[follow])
    assert len(hanging.of("open")) == 1
    assert len(failing.of("open")) == 2
    assert [text.split()[0] for text in said] == ["raising", "hanging", "raising"]


def test_without_a_function_to_tell_a_fault_is_a_python_warning(make_source):
    with pytest.warns(UserWarning, match="raising no longer follows this run: no more"):
        Classifier("lenet", size=16, weights="none", config=CONFIG).fit(
            make_source(), epochs=1, callbacks=[tracker(Raising("open"))]
        )


def test_a_run_that_fails_is_closed_as_failed(make_source):
    backend = Recording()

    def trip(event):
        if isinstance(event, EpochEnded):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        Classifier("lenet", size=16, weights="none", config=CONFIG).fit(
            make_source(), epochs=2, callbacks=[trip, tracker(backend)]
        )
    assert backend.of("close") == [("failed",)]


def test_flushing_takes_at_most_its_share_of_the_time():
    class Slow(Recording):
        def flush(self):
            time.sleep(0.05)

    backend = Slow()
    worker = tracking.Worker(backend)
    for _ in range(30):
        worker.put("epoch", None)
        time.sleep(0.02)
    worker.put("close", "done")
    assert worker.wait(5)
    assert len(backend.of("epoch")) == 30
    assert len(backend.of("flush")) <= 3  # one at once, the next after fifty times as long, and one at the end


def test_names():
    assert TRACKERS.names() == ["tensorboard", "visdom", "mlflow", "wandb"]
    with pytest.raises(UnknownName, match="no tracker is called 'tensorbord'; did you mean tensorboard"):
        find_backend("tensorbord")


@pytest.mark.parametrize("name", TRACKERS.names())
def test_a_missing_package_is_an_error_before_any_work(monkeypatch, name):
    for module in ("torch.utils.tensorboard", "visdom", "mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf'pip install "imgclf\[{name}\]"'):
        find_backend(name)
    result = CliRunner().invoke(app, ["train", "nowhere", "--track", name])
    assert result.exit_code == 2
    assert f'pip install "imgclf[{name}]"' in result.stderr


# TensorBoard, read back with its own reader.


@pytest.fixture
def no_noise():
    """TensorBoard's own modules use what is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def points(events, tag):
    """Step by step: files of one second and one process are read in the order of their numbers as texts."""
    return sorted((event.step, event.value) for event in events.Scalars(tag))


def command(*args):
    result = CliRunner().invoke(app, list(map(str, args)))
    assert result.exit_code == 0, result.stderr
    return result


TINY = ("--arch", "lenet", "--size", "16", "--batch-size", "16", "--precision", "fp32")


@pytest.mark.usefixtures("no_noise")
def test_tensorboard_holds_the_run(photos, in_folder):
    pytest.importorskip("tensorboard")
    done = command("train", photos, *TINY, "--epochs", 1, "--name", "first", "--track", "tensorboard", "--json")
    (line,) = done.stdout.splitlines()
    summary = json.loads(line)
    assert "track: tensorboard runs/first/tensorboard" in done.stderr
    command("train", "--resume", "runs/first", "--epochs", 2, "--track", "tensorboard")

    folder = in_folder / "runs" / "first" / "tensorboard"
    events, train, valid, steps = (read_events(folder / part) for part in (".", "train", "valid", "steps"))
    tags = events.Tags()
    assert set(train.Tags()["scalars"]) == {"loss", "accuracy", "lr", "seconds"}
    assert set(valid.Tags()["scalars"]) == {"loss", "accuracy"}
    history = np.genfromtxt("runs/first/history.csv", delimiter=",", names=True)
    for part, tag, column in ((train, "loss", "train_loss"), (valid, "accuracy", "valid_accuracy")):
        expected = list(zip([1, 2], history[column], strict=True))
        assert points(part, tag) == [(step, pytest.approx(value, rel=1e-5)) for step, value in expected]
    assert set(steps.Tags()["scalars"]) == {"steps/train_loss", "steps/lr"}
    assert set(tags["images"]) == {
        *("training-batch", "valid-sample", "valid-confusion", "test-sample", "test-confusion"),
    }
    assert tags["graph"]
    nodes = {node.name for node in events.Graph().node}
    assert any("conv" in name.lower() for name in nodes), nodes
    (value,) = {value for _, value in points(events, "hparam/test_accuracy")[:1]}
    assert value == pytest.approx(summary["test"]["accuracy"])
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"batch_size" in content
    assert b"lenet" in content


@pytest.mark.usefixtures("no_noise")
def test_what_a_killed_run_had_noted_beyond_its_last_state_counts_no_more(tmp_path):
    pytest.importorskip("tensorboard")
    session = Session("run", tmp_path, "key", {})

    def follow(first, last):
        board = TensorBoard()
        board.prepare(session, torch.nn.Flatten(), torch.zeros(1, 1, 4, 4))
        board.open(session)
        for epoch in range(first, last + 1):
            board.step(epoch, 10 * epoch, loss=first, lr=0.1)
            board.epoch(EpochRecord(epoch, first, 0.5, first, 0.5, 0.1, 1.0, True))
        board.close("done")

    follow(1, 3)
    follow(2, 3)
    folder = tmp_path / "tensorboard"
    assert points(read_events(folder / "train"), "loss") == points(read_events(folder / "valid"), "loss")
    assert points(read_events(folder / "valid"), "loss") == [(1, 1.0), (2, 2.0), (3, 2.0)]
    assert points(read_events(folder / "steps"), "steps/train_loss") == [(10, 1.0), (20, 2.0), (30, 2.0)]


@pytest.mark.usefixtures("no_noise")
def test_tensorboard_without_a_run_folder_wants_one_of_its_own(make_source, tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(ConfigError, match=r'tracker\("tensorboard=logs"\)'):
        fit(make_source(), "tensorboard")
    _, said = fit(make_source(), f"tensorboard={tmp_path / 'logs'}", epochs=1)
    assert said == []
    assert points(read_events(tmp_path / "logs" / "levels-lenet" / "train"), "loss")


@pytest.mark.usefixtures("no_noise")
def test_a_network_that_cannot_be_traced_has_no_graph_and_that_is_said(make_source, tmp_path):
    pytest.importorskip("tensorboard")

    class Stubborn(torch.nn.Sequential):
        def forward(self, images):
            if torch.jit.is_tracing():
                raise NotImplementedError
            return super().forward(images)

    def stubborn(spec):
        return Stubborn(torch.nn.Flatten(), torch.nn.Linear(64, spec.classes))

    said = []
    follow = tracker(f"tensorboard={tmp_path}", warn=said.append)
    Classifier(stubborn, size=8, config=CONFIG).fit(make_source(), epochs=1, callbacks=[follow])
    assert said == ["tensorboard: the network can't be traced, so there is no graph of it (NotImplementedError)"]
    assert points(read_events(tmp_path / "levels-own-stubborn" / "train"), "loss")


@pytest.mark.usefixtures("no_noise")
def test_each_member_of_an_ensemble_is_a_run_of_its_own(photos, in_folder):
    pytest.importorskip("tensorboard")
    command("train", photos, *TINY, "--epochs", 1, "--ensemble", 2, "--track", "tensorboard")
    runs = sorted(path.parent.name for path in (in_folder / "runs").glob("*/tensorboard"))
    assert runs == ["photos-lenet-1", "photos-lenet-2"]
    for run in runs:
        assert len(points(read_events(in_folder / "runs" / run / "tensorboard" / "train"), "loss")) == 1


# Visdom; with a real server in test_visdom.py.


@pytest.fixture
def fake_visdom(monkeypatch):
    """A module that stands in for visdom: its client keeps what it is to send, or says what requests says."""
    sent = []

    class Client:
        def __init__(self, **options):
            self.env, self.server, self.port = options["env"], options["server"], options["port"]
            sent.append(("client", options))

        @property
        def session(self):
            import requests

            return requests.Session()

        def __getattr__(self, name):
            return lambda *values, **options: sent.append((name, values, options))

    monkeypatch.setitem(sys.modules, "visdom", SimpleNamespace(Visdom=Client, __name__="visdom"))
    monkeypatch.setitem(sys.modules, "requests", sys.modules.get("requests") or SimpleNamespace())
    for variable in ("VISDOM_SERVER", "VISDOM_PORT"):
        monkeypatch.delenv(variable, raising=False)
    return sent


@pytest.mark.parametrize(
    ("given", "server", "port", "found"),
    [
        (None, None, None, ("http://localhost", 8097, "")),
        (None, "http://here", "8001", ("http://here", 8001, "")),
        (None, "there", None, ("http://there", 8097, "")),
        ("http://host:8000", "http://here", "8001", ("http://host", 8000, "")),
        ("https://host:1/below/", None, None, ("https://host", 1, "/below")),
    ],
)
def test_where_visdom_is(fake_visdom, monkeypatch, given, server, port, found):
    for name, value in (("VISDOM_SERVER", server), ("VISDOM_PORT", port)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert Visdom(given).location(Session("run", None, "", {})) == f"{found[0]}:{found[1]}{found[2]}, environment run"


@pytest.mark.parametrize("given", ["http://host:port", "ftp://host", "http://"])
def test_a_wrong_address_is_refused(fake_visdom, given):
    with pytest.raises(ConfigError, match="expected http://host:port"):
        Visdom(given)


def evaluation(confusion, names):
    rows = tuple(ClassResult(name, 1.0, 1.0, 1.0, 1) for name in names)
    cells = tuple((*cell, int(count)) for cell, count in np.ndenumerate(confusion) if count)
    return Evaluation(4, 0.5, 0.75, None, 0.75, 0.75, rows, cells)


def test_what_visdom_draws(fake_visdom):
    backend = Visdom("http://host:1")
    backend.open(Session("run", None, "", {"arch": "<b>"}))
    backend.start(())
    assert "&lt;b&gt;" in fake_visdom[1][1][0]
    for index in range(2 * MAX_STEP_POINTS):
        backend.step(index / 100, index, float(index), 0.1)
    backend.flush()
    drawn = [options for name, _, options in fake_visdom[1:] if name == "line"]
    assert [options["win"] for options in drawn] == ["loss"]
    assert drawn[0]["opts"]["legend"] == ["train, by steps"]
    before = len(fake_visdom)
    backend.flush()
    assert len(fake_visdom) == before  # nothing is new
    result = evaluation([[3, 1], [0, 0]], ["cat", "dog"])
    backend.tested("test", result, Pictures("s", "t", (np.zeros((8, 8, 1), np.uint8),), ("cat (dog)",), (False,)))
    name, (counts,), options = fake_visdom[-1]
    assert (name, counts.tolist(), options["opts"]["rownames"]) == ("heatmap", [[3, 1], [0, 0]], ["cat", "dog"])
    assert [note["text"] for note in options["opts"]["layoutopts"]["plotly"]["annotations"]] == ["3", "1", "0", "0"]


def test_visdom_draws_the_epochs_before_a_resume_again(fake_visdom):
    backend = Visdom("http://host:1")
    backend.open(Session("run", None, "", {}))
    backend.start([EpochRecord(n, 1 / n, 0.5, 2 / n, 0.25, 0.1, 1.0, True) for n in (1, 2)])
    backend.flush()
    (loss, accuracy) = [call for call in fake_visdom[1:] if call[0] == "line"]
    assert [one[2]["opts"]["legend"] for one in (loss, accuracy)] == [["train", "valid"]] * 2
    assert loss[1][0].tolist() == [[1.0, 2.0], [0.5, 1.0]]
    assert accuracy[1][0].tolist() == [[0.5, 0.25]] * 2


def test_a_confusion_matrix_of_many_classes_has_no_counts_in_its_cells(fake_visdom):
    backend = Visdom("http://host:1")
    backend.open(Session("run", None, "", {}))
    result = evaluation(np.eye(21, dtype=int), [f"c{i}" for i in range(21)])
    backend.tested("test", result, Pictures("s", "t", (np.zeros((8, 8, 1), np.uint8),), ("c0",), (True,)))
    assert "annotations" not in fake_visdom[-1][2]["opts"]["layoutopts"]["plotly"]


def test_what_a_visdom_server_answers_is_read_and_an_error_of_it_raised(fake_visdom, monkeypatch):
    replies = [SimpleNamespace(ok=True, text="window"), SimpleNamespace(ok=False, status_code=500)]
    session = SimpleNamespace(post=lambda *_, **__: replies.pop(0))
    requests = SimpleNamespace(Session=lambda: session, Timeout=TimeoutError, RequestException=OSError)
    monkeypatch.setitem(sys.modules, "requests", requests)
    client = _client_class()(server="http://host", port=1, env="run")
    assert client._handle_post("http://host:1/events") == "window"
    with pytest.raises(ConnectionError, match="the server at http://host:1 returned status 500"):
        client._handle_post("http://host:1/events")


def test_a_long_line_is_thinned(fake_visdom):
    backend = Visdom("http://host:1")
    backend.open(Session("run", None, "", {}))
    for index in range(5 * MAX_STEP_POINTS):
        backend.step(index / 100, index, 1.0, 0.1)
    backend.flush()
    _, (_, epochs), _ = fake_visdom[-1]
    line = epochs[:, 0].tolist()
    assert MAX_STEP_POINTS / 2 <= len(line) <= MAX_STEP_POINTS
    assert line == sorted(line)


def tracked_by_visdom(source, port):
    began = time.monotonic()
    classifier, said = fit(source, f"visdom=http://127.0.0.1:{port}")
    return classifier, said, time.monotonic() - began


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_visdom_server_that_is_not_there(make_source, plain):
    pytest.importorskip("visdom")
    port = free_port()
    classifier, said, _ = tracked_by_visdom(make_source(), port)
    expected = f"no server at http://127.0.0.1:{port}; start one with `visdom`"
    assert said == [f"visdom no longer follows this run: {expected}"]
    assert torch.equal(weights(classifier), plain)


def test_a_visdom_server_that_never_answers(make_source, plain, monkeypatch):
    pytest.importorskip("visdom")
    monkeypatch.setattr("imgclf.tracking.visdom.TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        classifier, said, seconds = tracked_by_visdom(make_source(), port)
    assert said == [f"visdom no longer follows this run: the server at http://127.0.0.1:{port} does not respond"]
    assert seconds < 10
    assert torch.equal(weights(classifier), plain)


# MLflow and Weights & Biases: the real ones where they are installed.


def test_mlflow_holds_the_run(photos, in_folder, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 60.0)  # its database takes long on a busy machine
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    uri = f"sqlite:///{in_folder}/track.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = command("train", photos, *TINY, "--epochs", 1, "--name", "first", "--track", f"mlflow={uri}", "--json")
        command("train", "--resume", "runs/first", "--epochs", 2, "--track", f"mlflow={uri}")
        from mlflow import MlflowClient

        summary = json.loads(done.stdout)
        client = MlflowClient(uri)
        (run,) = client.search_runs([client.get_experiment_by_name("imgclf").experiment_id])
        assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
        assert (run.data.params["arch"], run.data.params["epochs"]) == ("lenet", "1")
        losses = client.get_metric_history(run.info.run_id, "valid_loss")
        assert sorted(metric.step for metric in losses) == [1, 2]
        tests = client.get_metric_history(run.info.run_id, "kept_test_accuracy")
        assert summary["test"]["accuracy"] in {metric.value for metric in tests}
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"training-batch.png", "test-sample.png", "test-confusion.png", "test-confusion.json"} <= files


def test_wandb_holds_the_run_offline(photos, in_folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 60.0)
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(variable, raising=False)
    done = command("train", photos, *TINY, "--epochs", 1, "--name", "first", "--track", "wandb", "--json")
    assert "track: wandb offline, project imgclf" in done.stderr
    assert "no longer follows" not in done.stderr
    assert len(done.stdout.splitlines()) == 1
    (folder,) = (in_folder / "runs" / "first" / "wandb").glob("offline-run-*")
    (log,) = folder.glob("run-*.wandb")
    content = log.read_bytes()
    for word in (b"valid_accuracy", b"lenet", b"kept_test_accuracy", b"test-sample"):
        assert word in content
    assert list((folder / "files" / "media" / "images").rglob("*.png"))


@pytest.fixture
def fake_wandb(monkeypatch):
    """A module that stands in for wandb; what it is told."""
    told = {"log": [], "init": None, "summary": {}}
    run = SimpleNamespace(
        log=told["log"].append,
        define_metric=lambda *values, **options: None,
        summary=told["summary"],
        finish=lambda exit_code: told.update(exit_code=exit_code),
    )

    def init(**options):
        told["init"] = options
        return run

    module = SimpleNamespace(init=init, Settings=dict, Image=lambda pixels, caption=None: caption)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


@pytest.mark.parametrize("mode", [None, "online"])
def test_wandb_is_offline_unless_the_user_says_otherwise(make_source, fake_wandb, monkeypatch, mode):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    _, said = fit(make_source(), "wandb=mine")
    assert said == []
    asked = fake_wandb["init"]
    assert (asked["mode"], asked["project"], asked["name"]) == (mode or "offline", "mine", "levels-lenet")
    assert asked["config"]["arch"] == "lenet"
    assert [row["epoch"] for row in fake_wandb["log"] if "valid_loss" in row] == [1, 2, 3]
    (sample,) = [row["valid-sample"] for row in fake_wandb["log"] if "valid-sample" in row]
    assert all("(" in caption for caption in sample)
    assert fake_wandb["summary"]["ended"] == "done"
    assert fake_wandb["exit_code"] == 0


@pytest.fixture
def fake_mlflow(monkeypatch):
    """Modules that stand in for mlflow; what its client is told."""
    told, runs = [], []

    class Client:
        def __init__(self, uri):
            told.append(("client", uri))

        def get_experiment_by_name(self, name):
            return None if not runs else SimpleNamespace(experiment_id="7")

        def create_experiment(self, name):
            return "7"

        def search_runs(self, experiments, filter_string, max_results):
            return [run for run in runs if f"'{run.tags['imgclf.key']}'" in filter_string]

        def create_run(self, experiment, run_name, tags):
            data = SimpleNamespace(params={})
            runs.append(SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(runs)}"), data=data, tags=tags))
            return runs[-1]

        def log_batch(self, run, metrics=(), params=()):
            runs[-1].data.params.update(params)
            told.extend(("metric", metric) for metric in metrics)

        def __getattr__(self, name):
            return lambda *values, **options: told.append((name, values, options))

    entities = SimpleNamespace(Param=lambda *values: values, Metric=lambda *values: values)
    module = SimpleNamespace(MlflowClient=Client, entities=entities, get_tracking_uri=lambda: "its own")
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return told, runs


def test_mlflow_finds_a_resumed_run_again(photos, tmp_path, fake_mlflow):
    told, runs = fake_mlflow
    classifier = Classifier("lenet", size=16, weights="none", config=CONFIG)
    classifier.fit(photos, epochs=1, runs=tmp_path, callbacks=[tracker("mlflow")])
    Classifier().resume(classifier.run_.path, epochs=2, callbacks=[tracker("mlflow=http://there")])
    assert [entry[1] for entry in told if entry[0] == "client"] == ["its own", "http://there"]
    (run,) = runs
    assert run.data.params["epochs"] == "1"  # a parameter of MLflow can't be changed
    losses = [metric for kind, *entry in told if kind == "metric" for metric in entry if metric[0] == "valid_loss"]
    assert [metric[3] for metric in losses] == [1, 2]
    assert [entry[1] for entry in told if entry[0] == "set_terminated"] == [("run0", "FINISHED")] * 2
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


# The command line.


def test_several_trackers_at_once_by_comma_and_by_repetition(photos, in_folder, monkeypatch):
    names = ("one", "two", "three")
    made = {name: Recording(name) for name in names}
    for name in names:
        monkeypatch.setitem(TRACKERS._items, name, lambda place, name=name: made[name])
    done = command("train", photos, *TINY, "--epochs", 1, "--track", "one,two", "--track", "three", "--track", "one")
    assert done.stderr.count("track: ") == 3
    for backend in made.values():
        assert [part for part, _, _ in backend.of("tested")] == ["valid", "test"]
        assert [name for name, _ in backend.calls].count("close") == 1


@pytest.mark.parametrize("asked", ["tensorbord", "", "visdom=http://host:port"])
def test_a_wrong_tracker_is_refused_before_any_work(in_folder, asked, fake_visdom):
    result = CliRunner().invoke(app, ["train", "digits", "--track", asked])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert list(in_folder.iterdir()) == []


# What is drawn.


def test_of_many_classes_the_most_confused_are_shown():
    n = 150
    counts = np.eye(n, dtype=int) * 5
    counts[149, 3] = 9
    result = evaluation(counts, [f"c{index:03d}" for index in range(n)])
    names, shown, note = readable_confusion(result)
    assert shown.shape == (100, 100)
    assert names == tuple(sorted(names))
    assert shown[names.index("c149"), names.index("c003")] == 9
    assert note == ", the 100 most confused of 150 classes"
    assert draw_confusion(result).shape[2] == 3


def test_a_confusion_matrix_is_darker_where_more_images_are():
    picture = draw_confusion(evaluation([[9, 1], [0, 10]], ["a cat", "x" * 99])).astype(int)
    blue = (picture[..., 2] == 255) & (picture[..., 0] < 40) & (picture[..., 1] < 40)
    assert blue.sum() > 1000
    assert (picture[-60:, :3] == 255).all()


def test_captions_are_drawn_in_their_colors():
    images = tuple(np.full((40, 60, 3), 128, np.uint8) for _ in range(7))
    picture = Pictures("p", "title", images, ("a (b)",) * 7, (True,) * 6 + (False,)).draw()
    red = (picture[..., 0] > 150) & (picture[..., 1] < 60)
    green = (picture[..., 1] > 100) & (picture[..., 0] < 60)
    rows = np.flatnonzero(red.any(1))
    assert green.any()
    assert rows.min() > picture.shape[0] / 2  # the seventh is in the second row
