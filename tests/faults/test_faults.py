"""What a run survives: being killed, signals, disks that fail or fill up, a second process, a clock that is set back.

The processes are real ones, forked from a server that has imported the libraries once; so are the signals.
`IMGCLF_THOROUGH=1` kills twenty times instead of twice.
"""

import csv
import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from imgclf.cli import app
from imgclf.data.split import read_split
from imgclf.estimator import recorder
from imgclf.storage.model_file import load_model
from imgclf.storage.run_folder import held, list_runs, open_run, read_config
from imgclf.storage.run_list import default_run
from imgclf.training import checkpoint
from support.failing_disk import THOROUGH, Disk
from support.photos import save_photos
from support.processes import command

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and process groups")
KILLS = 20 if THOROUGH else 2
EVERY = 1.0  # seconds between states within an epoch, the least that may be asked for
SIZE = (
    ("cnn_keras", "--batch-size", "1", "--epochs", "5") if THOROUGH else ("lenet", "--batch-size", "3", "--epochs", "2")
)
TRAIN = ("train", "digits", "--size", "16", "--checkpoint-every", f"{EVERY:g}s", "--arch", *SIZE)
TINY = ("--arch", "lenet", "--size", "16", "--epochs", "2", "--batch-size", "32", "--augment", "none")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["imgclf.cli._training", "sklearn.datasets", "filelock", "tomli_w", "cv2"])


@pytest.fixture
def start(in_folder):
    """Starts commands; none of them outlives the test."""
    started = []

    def start(*args, kill_at=0):
        (in_folder / "log").unlink(missing_ok=True)
        process = SERVER.Process(target=command, args=(args, in_folder, os.environ["IMGCLF_CACHE"], kill_at))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        kill(process)
        process.join(10)


def kill(process):
    """End the whole process group without a warning."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def ended(process, seconds=60):
    """The exit code, and what was printed; nothing of the process group is left."""
    process.join(seconds)
    assert process.exitcode is not None, "it still runs"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    said = Path("log").read_text()
    assert "Traceback" not in said
    return process.exitcode, said


def wait_for(happened, process, seconds=60):
    until = time.monotonic() + seconds
    while not happened():
        assert process.is_alive(), Path("log").read_text()
        assert time.monotonic() < until
        time.sleep(0.005)


def invoke(*args):
    """A command in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def history(folder):
    """All columns but the time."""
    with open(folder / "history.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def weights(folder):
    """The bits of every tensor in a run's model."""
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in sorted(tensors.items())}


def same_result(one, other):
    return weights(one) == weights(other) and history(one) == history(other)


def check_whole(folder):
    """Every file of a run that has its final name is whole; a run's folder that has its name has all it needs."""
    open_run(folder)
    read_config(folder / "config.toml")
    assert read_split(folder / "split.csv")
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        if (folder / name).exists():
            content = torch.load(folder / name, weights_only=True)
            assert all(tensor.isfinite().all() for tensor in content["model"].values())
    if (folder / "model.safetensors").exists():
        load_model(folder)
    if (folder / "history.csv").exists():
        assert [row["epoch"] for row in history(folder)] == [str(n + 1) for n in range(len(history(folder)))]
    if (folder / "events.jsonl").exists():
        assert all(json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines())


def began(folder):
    """When the latest process of a run took its first step, in seconds since 1970."""
    told = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    times = [datetime.fromisoformat(event["time"]) for event in told if event["event"] == "start"]
    return times[-1].timestamp()


def go_on(start, folder):
    """Resume a run, or start it where it was killed before it had its folder."""
    if (folder / "run.json").exists():
        return start("train", "--resume", str(folder), "--json")
    return start(*TRAIN, "--name", folder.name, "--json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts, and the seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    process = SERVER.Process(target=command, args=((*TRAIN, "--name", "whole"), folder, str(folder / "cache")))
    process.start()
    wait_for((folder / "log").exists, process)  # the server has imported what it needs
    began = time.monotonic()
    process.join(120)
    assert process.exitcode == 0, (folder / "log").read_text()
    check_whole(folder / "runs" / "whole")
    return folder / "runs" / "whole", time.monotonic() - began


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_been(start, whole):
    expected, seconds = whole
    folder, rng, within = Path("runs/killed"), random.Random(1), 0
    # Each kill costs the work since the last state; a life is long enough to get on, and ends at any moment.
    lives = [rng.uniform(0.1, 0.3 if THOROUGH else 0.6) * seconds for _ in range(KILLS)]
    for life in lives:
        if folder.exists() and open_run(folder).info.status == "done":  # once more from the start
            shutil.rmtree(folder)
        process = go_on(start, folder)
        process.join(life)
        if process.exitcode is not None:  # done before it could be killed
            assert same_result(folder, expected)
            continue
        kill(process)
        killed = time.time()
        process.join(10)
        if not folder.exists():
            continue
        check_whole(folder)
        state = folder / "checkpoint.pt"
        if state.exists():
            content = torch.load(state, weights_only=True)
            within += content["batch_index"] > 0
            trained = killed - max(began(folder), state.stat().st_mtime)  # and not kept
            if THOROUGH and began(folder) > killed - life and open_run(folder).info.status != "done":
                assert trained <= EVERY + 1.0  # seconds: a step, what the disk takes, and a busy machine
    assert not THOROUGH or within >= 3, "no state within an epoch was tried"
    if not folder.exists() or open_run(folder).info.status != "done":  # else it was killed while it was tested
        code, said = ended(go_on(start, folder), 120)
        assert code == 0, said
    check_whole(folder)
    assert same_result(folder, expected)
    assert open_run(folder).info.status == "done"


@pytest.mark.parametrize(
    ("name", "code", "moment"),
    [
        ("SIGTERM", 143, "events.jsonl"),  # before the first step, or in it
        ("SIGINT", 130, "checkpoint.pt"),
        ("SIGHUP", 129, "history.csv"),  # after the first epoch
    ],
)
@pytest.mark.parametrize("later", [0.0, 0.2, 0.7] if THOROUGH else [0.1])
def test_a_signal_ends_a_run_politely(start, whole, name, code, moment, later):
    folder, number = Path("runs/told"), getattr(signal, name)
    process = start(*TRAIN, "--name", "told")
    wait_for((folder / moment).exists, process)
    process.join(later)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert ended(process)[0] == code
    check_whole(folder)
    assert open_run(folder).info.status == "interrupted"
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["batch_index"]) > (0, 0)
    if THOROUGH or name == "SIGHUP":
        result, said = ended(go_on(start, folder), 120)
        assert result == 0, said
        assert same_result(folder, whole[0])


def test_a_run_is_held_by_one_process_and_a_second_ctrl_c_ends_it_at_once(start):
    folder = Path("runs/held")
    first = start(*TRAIN, "--name", "held", "--epochs", "50")  # longer than the others take to come
    wait_for((folder / "checkpoint.pt").exists, first)
    info = open_run(folder).info
    assert info.pid == first.pid
    assert info.machine["cores"] >= 1
    code, said = ended(start("train", "--resume", str(folder)))
    assert code == 2
    assert f"is in use by process {first.pid}" in said
    os.killpg(first.pid, signal.SIGINT)
    os.killpg(first.pid, signal.SIGINT)
    assert ended(first)[0] == 130
    check_whole(folder)
    events = folder / "events.jsonl"
    before = events.read_text().count('"start"')
    second = start("train", "--resume", str(folder))
    wait_for(lambda: events.read_text().count('"start"') > before, second)
    kill(second)
    second.join(10)
    with held(open_run(folder)):
        pass


def failing(code):
    def fail(path):
        raise OSError(code, os.strerror(code), path)

    return fail


@pytest.fixture
def every_state(monkeypatch):
    """The state is written after every epoch, however little that takes; training leaves signals as they were."""
    monkeypatch.setattr(checkpoint, "MAX_SHARE", float("inf"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A tiny run without a fault, with the number of calls that it made; its data lie beside it."""
    root = tmp_path_factory.mktemp("reference")
    save_photos(root / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMGCLF_CACHE", str(root / "cache"))
        patch.setattr(checkpoint, "MAX_SHARE", float("inf"))
        disk = Disk(patch, root / "runs")
        result = train_tiny(root, "whole")
    assert result.exit_code == 0, result.stderr
    return root, disk


def train_tiny(root, name):
    return invoke("train", root / "photos", *TINY, "--runs", root / "runs", "--name", name, "--cache", "ram")


def resume_tiny(root, name, monkeypatch):
    monkeypatch.undo()
    folder = root / "runs" / name
    return invoke("train", "--resume", folder) if folder.exists() else train_tiny(root, name)


def test_nothing_gets_its_name_before_it_is_on_the_disk(reference):
    """A power cut takes what was not flushed: nothing of that may have replaced what was there."""
    root, disk = reference
    assert disk.volatile == set()
    assert len(disk.flushed) >= 8
    check_whole(root / "runs" / "whole")


SHARDS = 8 if THOROUGH else 2
STEP = 1 if THOROUGH else 14  # the quick form tries each seventh call, with one error or the other


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_disk_that_fails_at_any_call_ends_the_run_cleanly(reference, every_state, shard, code):
    root, counted = reference
    first = 1 if code == errno.ENOSPC else 1 + STEP // 2
    for k in range(first, counted.calls + 1, STEP)[shard::SHARDS]:
        name = f"{code}-{k}"
        folder = root / "runs" / name
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, root / "runs", k, failing(code))
            result = train_tiny(root, name)
        assert "Traceback" not in result.stderr
        if "! the report is not written" in result.stderr:  # the run is whole, and all that comes after its last file
            assert (result.exit_code, same_result(folder, root / "runs" / "whole")) == (0, True), k
            page = folder / "report.html"  # only the last call, which is for the folder, comes after it
            assert not page.exists() or page.read_text(encoding="utf-8").rstrip().endswith("</html>"), k
            shutil.rmtree(folder)
            continue
        assert result.exit_code == 1, (k, result.output)
        assert "bug" not in result.stderr, (k, result.stderr)
        assert str(root / "runs") in result.stderr, (k, result.stderr)
        if folder.exists():
            check_whole(folder)
        again = invoke("train", "--resume", folder) if folder.exists() else train_tiny(root, name)
        assert again.exit_code == 0 or "has finished 2 epochs" in again.stderr, (k, result.stderr, again.stderr)
        assert same_result(folder, root / "runs" / "whole"), k
        assert not list((root / "runs").rglob("*.tmp")), k
        shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a disk")
@pytest.mark.parametrize("kilobytes", [64, 400, 700] if not THOROUGH else range(50, 1100, 50))
def test_a_disk_that_is_full_ends_the_run_cleanly(reference, every_state, tmp_path, kilobytes):
    root, disk = reference[0], tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", disk], capture_output=True)
    if made.returncode:
        pytest.skip(f"no disk can be mounted: {made.stderr.decode().strip()}")
    folder = disk / "runs" / "small"
    try:
        result = invoke("train", root / "photos", *TINY, "--runs", disk / "runs", "--name", "small", "--cache", "ram")
        if result.exit_code == 0:  # it was large enough
            assert kilobytes > 400
            assert same_result(folder, root / "runs" / "whole")
            return
        assert result.exit_code == 1, result.output
        assert re.search(rf"error: .*{disk}", result.stderr), result.stderr
        assert re.search(r"[\d,]+ bytes", result.stderr), result.stderr
        if folder.exists():
            check_whole(folder)
        subprocess.run(["mount", "-o", "remount,size=9m", disk], check=True)
        again = invoke("train", "--resume", folder) if folder.exists() else None
        if again is not None:
            assert again.exit_code == 0, again.stderr
            assert same_result(folder, root / "runs" / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_clock_that_is_set_back_changes_neither_times_nor_the_newest_run(reference, every_state, tmp_path):
    root, _ = reference
    now = [2e9]

    def back():
        now[0] -= 3600.0
        return now[0]

    class Datetime(recorder.datetime):
        @classmethod
        def now(cls, zone=None):
            return cls.fromtimestamp(back(), zone)

    runs = tmp_path / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", back)
        patch.setattr(recorder, "datetime", Datetime)
        for name in ("b", "a"):
            result = invoke("train", root / "photos", *TINY, "--runs", runs, "--name", name, "--cache", "ram")
            assert result.exit_code == 0, result.stderr
            os.utime(runs / name / "run.json", (now[0], now[0]))
    first, second = list_runs(runs)
    assert (first.path.name, second.path.name) == ("b", "a")
    assert first.info.created > second.info.created
    assert default_run(runs).model == second.model
    for folder in (first.path, second.path):
        assert same_result(folder, root / "runs" / "whole")
        with open(folder / "history.csv", newline="") as file:
            assert all(float(row["seconds"]) >= 0 for row in csv.DictReader(file))


@pytest.mark.skipif(not THOROUGH, reason="IMGCLF_THOROUGH is not set")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_kill_at_any_call_costs_nothing(reference, start, shard):
    """Real kills, each at one call of the system, in a process of its own."""
    root, counted = reference
    args = ("train", str(root / "photos"), *TINY, "--name", "killed", "--cache", "ram")
    folder = Path("runs/killed")
    for k in range(1, counted.calls + 1, 5)[shard::SHARDS]:
        process = start(*args, kill_at=k)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, Path("log").read_text()
        if folder.exists():
            check_whole(folder)
        if not folder.exists() or open_run(folder).info.status != "done":
            code, said = ended(start("train", "--resume", str(folder)) if folder.exists() else start(*args))
            assert code == 0, said
        assert same_result(folder, root / "runs" / "whole"), k
        shutil.rmtree("runs")
