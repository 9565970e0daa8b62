"""The list of runs: what is told of each, filtering and sorting."""

import json

import numpy as np
import pytest

from imgclf.core.errors import ConfigError, ModelFileError, UnknownName
from imgclf.evaluation.intervals import wilson_interval
from imgclf.evaluation.predictions import Predictions, write_predictions
from imgclf.storage.run_folder import (
    INFO,
    MODEL,
    PREDICTIONS,
    RunInfo,
    create_run,
    held,
    write_info,
)
from imgclf.storage.run_list import (
    FILTERS,
    SORTS,
    RunEntry,
    default_run,
    entry_of,
    filtered,
    find_default,
    list_entries,
    ordered,
    pin_run,
    unpin,
)


def make(root, name="set-lenet", *, accuracy=0.9, n=50, seconds=12.5, model=b"weights", **info):
    """A run as the command line leaves it."""
    values = {"data": "set", "arch": "lenet", "status": "done", "recipe": "d1", **info}
    run = create_run(root, name, RunInfo(**values), exact=True)
    if model:
        run.model.write_bytes(model)
    test = {} if accuracy is None else {"test": {"accuracy": accuracy, "n": n}}
    return write_info(run, metrics={"valid": {"accuracy": 0.5, "n": 4}, **test}, seconds=seconds)


def entry(name="a", **values):
    basic = {"path": f"runs/{name}", "number": 1, "status": "done", "data": "d", "arch": "x", "recipe": None}
    return RunEntry(**{**basic, "created": None, **values})


def test_an_entry_tells_what_the_run_was_and_how_it_did(tmp_path):
    make(tmp_path, "one")
    (found,), damaged = list_entries(tmp_path)
    assert damaged == []
    assert (found.name, found.number, found.data, found.arch) == ("one", 1, "set", "lenet")
    assert (found.recipe, found.status, found.seconds, found.size) == ("d1", "done", 12.5, len(b"weights"))
    assert (found.part, found.n, found.accuracy) == ("test", 50, 0.9)
    assert found.interval == wilson_interval(45, 50)
    assert json.loads(json.dumps(found.to_dict()))["name"] == "one"


def test_without_a_test_part_the_valid_images_tell(tmp_path):
    found = entry_of(make(tmp_path, accuracy=None))
    assert (found.part, found.accuracy, found.n) == ("valid", 0.5, 4)


def test_the_answers_to_test_images_tell_where_no_command_did(tmp_path):
    answers = Predictions(np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0]), tuple("abcd"), ("",) * 4, tuple("wxyz"))
    run = create_run(tmp_path, "python", RunInfo(status="done", seconds=3.5))
    write_predictions(run.path / PREDICTIONS, answers)
    for one in (run, write_info(run, metrics={"valid": {"accuracy": 0.5, "n": 6}})):
        found = entry_of(one)
        assert (found.part, found.accuracy, found.n, found.seconds) == ("test", 0.75, 4, 3.5)
        assert found.interval == wilson_interval(3, 4)
    (run.path / PREDICTIONS).write_bytes(b"?")
    assert entry_of(run).accuracy is None


def test_what_an_older_or_shorter_run_does_not_say_is_unknown(tmp_path):
    run = create_run(tmp_path, "old", RunInfo(data="set", status="failed"))
    found = entry_of(run)
    assert (found.recipe, found.arch, found.accuracy, found.interval, found.seconds, found.size) == (None,) * 6
    assert found.status == "failed"


def test_an_ensemble_says_how_many_networks_it_joins(tmp_path):
    assert entry_of(make(tmp_path, members=("runs/a", "runs/b"))).arch == "2 × lenet"
    assert entry_of(make(tmp_path, "equal", members=("runs/a",))).arch == "lenet"


def test_what_was_counted_stays_known_when_a_resumed_run_is_killed(tmp_path):
    run = create_run(tmp_path, "killed", RunInfo(status="running", seconds_before=987.0))
    assert entry_of(run).seconds == 987
    assert entry_of(write_info(run, seconds=13.0)).seconds == 1000


def named_default(root):
    """The default as the list marks it, which is what commands take."""
    marked = [entry for entry in list_entries(root)[0] if entry.default]
    found = find_default(root)
    assert marked == ([] if found is None else [found])
    return None if found is None else (found.name, found.pinned)


def test_the_default_is_the_newest_run_that_has_ended_with_a_figure(tmp_path):
    make(tmp_path, "good")
    assert named_default(tmp_path) == ("good", False)
    make(tmp_path, "without-model", model=b"")
    for status in ("running", "testing", "interrupted", "failed"):
        make(tmp_path, status, status=status)
    make(tmp_path, "own", own_network=True)
    write_info(make(tmp_path, "untested"), metrics=None)
    assert named_default(tmp_path) == ("good", False)
    make(tmp_path, "early", status="stopped early", accuracy=None)  # its figure is that of valid
    assert named_default(tmp_path) == ("early", False)
    assert default_run(tmp_path).reason == "newest finished run"


def test_a_pinned_run_is_the_default_until_none_is_pinned(tmp_path):
    for name in ("one", "two"):
        make(tmp_path, name)
    assert pin_run(tmp_path / "one", tmp_path).pinned
    make(tmp_path, "three")
    assert named_default(tmp_path) == ("one", True)
    assert default_run(tmp_path).reason == "pinned by `imgclf use`"
    pin_run("two", tmp_path)
    assert named_default(tmp_path) == ("two", True)
    (tmp_path / "two" / MODEL).unlink()
    assert named_default(tmp_path) is None  # nothing takes its place unasked
    with pytest.raises(ModelFileError, match=r"pinned run .*two no longer has a model file: pin another"):
        default_run(tmp_path)
    unpin(tmp_path)
    unpin(tmp_path)
    assert named_default(tmp_path) == ("three", False)


def test_only_a_run_of_the_folder_that_has_a_model_is_pinned(tmp_path):
    root = tmp_path / "runs"
    with pytest.raises(ModelFileError, match="there is no finished run with an accuracy in"):
        default_run(root)
    make(root, "own", own_network=True)
    with pytest.raises(
        ModelFileError,
        match=r"finished runs are of custom networks \(use --model RUN --arch FILE\.py",
    ):
        default_run(root)
    make(root, "one", model=b"")
    with pytest.raises(ModelFileError, match="without a result"):
        pin_run("one", root)
    other = make(tmp_path / "elsewhere", "other")
    with pytest.raises(ConfigError, match=r"other is not in .*runs"):
        pin_run(other.path, root)
    with pytest.raises(UnknownName, match="did you mean one"):
        pin_run("ones", root)
    assert named_default(root) is None


@pytest.mark.parametrize("status", ["running", "testing"])
def test_a_run_that_no_process_holds_was_killed(tmp_path, status):
    run = make(tmp_path, status=status)
    with held(run):
        assert entry_of(run).status == status
    assert entry_of(run).status == "killed"


def test_what_cannot_be_read_is_named(tmp_path):
    make(tmp_path, "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / INFO).write_text("{")
    (tmp_path / "something else").mkdir()
    entries, damaged = list_entries(tmp_path)
    assert [e.name for e in entries] == ["good"]
    assert damaged == [tmp_path / "bad"]
    assert list_entries(tmp_path / "nowhere") == ([], [])


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("data=cifar10", ["a"]),
        ("data=cifar", []),  # a pattern of the whole
        ("DATA=Cifar*", ["a"]),
        ("arch=resnet*", ["a", "b"]),
        ("resnet", ["a", "b"]),
        ("res*18", ["a"]),
        ("photos", ["b"]),
        ("recipe=", ["a"]),
        ("status=failed", ["b"]),
        ("nothing like it", []),
    ],
)
def test_conditions(condition, names):
    entries = [
        entry("a", data="cifar10", arch="resnet18"),
        entry("b", data="photos", arch="resnet50", recipe="probe", status="failed"),
    ]
    assert [e.name for e in filtered(entries, condition)] == names


def test_a_key_or_an_order_that_there_is_not():
    with pytest.raises(ConfigError, match=f"'color=red'; allowed: a text, or KEY=PATTERN .*{FILTERS[0]}"):
        filtered([], "color=red")
    with pytest.raises(ConfigError, match=f"--sort is 'beauty'; allowed: {SORTS[0]}"):
        ordered([], "beauty")


def test_the_best_comes_first_and_the_unknown_last():
    entries = [entry("a"), entry("b", accuracy=0.5, seconds=9.0), entry("c", accuracy=0.75, seconds=1.0)]
    assert [e.name for e in ordered(entries, "accuracy")] == ["c", "b", "a"]
    assert [e.name for e in ordered(entries, "seconds")] == ["c", "b", "a"]
    assert [e.name for e in ordered(entries, "name")] == ["a", "b", "c"]
    for key in SORTS:
        assert sorted(e.name for e in ordered(entries, key)) == ["a", "b", "c"]
