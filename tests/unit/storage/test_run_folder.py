"""The run folder: its name, its number, its files, and which model is used."""

import csv
import errno
import json
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.core.config import (
    OPTIMIZERS,
    RESIZE_MODES,
    SCHEDULES,
    DataConfig,
    ExperimentConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from imgclf.core.errors import ConfigError, DataError, ImgclfError, ModelFileError, UnknownName
from imgclf.core.results import EpochRecord
from imgclf.storage.run_folder import (
    INFO,
    RunInfo,
    append_event,
    config_source,
    create_run,
    find_config,
    find_model,
    find_run,
    list_runs,
    locate,
    open_run,
    read_config,
    read_start,
    require_free,
    run_source,
    stem_of,
    write_config,
    write_history,
    write_info,
)


def finished(root, name="set-lenet"):
    run = create_run(root, name, RunInfo())
    run.model.write_bytes(b"weights")
    return run


def test_runs_of_one_name_are_numbered(tmp_path):
    runs = [create_run(tmp_path / "runs", "set-lenet", RunInfo(data="set")) for _ in range(3)]
    assert [run.path.name for run in runs] == ["set-lenet-1", "set-lenet-2", "set-lenet-3"]
    assert [run.info.number for run in runs] == [1, 2, 3]
    assert open_run(runs[1].path) == runs[1]
    assert runs[1].info.data == "set"


def test_a_free_number_is_taken_but_the_order_goes_on(tmp_path):
    first, second = (create_run(tmp_path, "set", RunInfo()) for _ in range(2))
    (first.path / INFO).unlink()
    first.path.rmdir()
    again = create_run(tmp_path, "set", RunInfo())
    assert again.path == first.path
    assert again.info.number > second.info.number


def test_runs_made_at_once_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: create_run(tmp_path / "runs", "set", RunInfo()), range(16)))
    assert len({run.path for run in runs}) == 16


@pytest.mark.parametrize(("exact", "left"), [(False, "set-2"), (True, None)])
def test_a_name_that_another_process_is_faster_to_take_stays_its_own(tmp_path, monkeypatch, exact, left):
    rename = Path.rename

    def slow(path, target):
        monkeypatch.setattr(Path, "rename", rename)
        target.mkdir()
        (target / "theirs").touch()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", slow)
    if exact:
        with pytest.raises(ConfigError, match="set already exists; choose another --name"):
            create_run(tmp_path, "set", RunInfo(), exact=True)
    else:
        assert create_run(tmp_path, "set", RunInfo()).path == tmp_path / left
    assert sorted(path.name for path in tmp_path.iterdir()) == (["set"] if exact else ["set-1", left])


def test_a_disk_that_does_not_rename_is_named(tmp_path, monkeypatch):
    def fail(path, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ImgclfError, match=r"can't create a run folder in .*: Input/output error"):
        create_run(tmp_path, "set", RunInfo())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "folder"),
    [("my photos", "my-photos-1"), ("../up/there", "up-there-1"), ("a\nb\x1b[1m", "a-b-1m-1"), ("日本", "run-1")],
)
def test_a_name_made_from_the_data_is_a_plain_folder_name(tmp_path, name, folder):
    assert create_run(tmp_path, name, RunInfo()).path == tmp_path / folder


def test_a_name_of_ones_own_is_taken_as_it_is_and_only_once(tmp_path):
    assert create_run(tmp_path, "mine", RunInfo(), exact=True).path == tmp_path / "mine"
    with pytest.raises(ConfigError, match="mine already exists; choose another --name"):
        create_run(tmp_path, "mine", RunInfo(), exact=True)


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "/abs"])
def test_a_name_that_is_no_folder_name_is_refused_before_anything_is_made(tmp_path, name):
    with pytest.raises(ConfigError, match="allowed: the name of a folder"):
        create_run(tmp_path / "runs", name, RunInfo(), exact=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_runs_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match=r"can't hold runs: .*runs: Not a directory"):
        create_run(tmp_path / "runs", "set", RunInfo())


def test_runs_below_a_file_are_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for name in (None, "set"):
        with pytest.raises(ConfigError, match=r"can't hold runs: .*file: Not a directory"):
            require_free(tmp_path / "file" / "runs", name)


def test_facts_are_added_to_a_run(tmp_path):
    run = create_run(tmp_path, "set", RunInfo(status="running"))
    changed = write_info(run, status="done", epochs=3)
    assert changed.info == RunInfo(number=1, status="done", epochs=3)
    assert open_run(run.path) == changed
    assert run.info.status == "running"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"no": "number"}', '{"number": null}', '{"number": "first"}'])
def test_a_damaged_run_is_named_and_does_not_hide_the_others(tmp_path, content):
    good, bad = (create_run(tmp_path, "set", RunInfo()) for _ in range(2))
    (bad.path / INFO).write_text(content)
    with pytest.raises(DataError, match=r"run\.json cannot be read"):
        open_run(bad.path)
    assert list_runs(tmp_path) == [good]


def test_a_folder_that_is_no_run_is_said_so(tmp_path):
    with pytest.raises(DataError, match=r"is not a run folder: it has no run\.json"):
        open_run(tmp_path)
    assert list_runs(tmp_path / "nowhere") == []


def test_runs_are_ordered_by_number_and_not_by_the_times_of_files(tmp_path):
    runs = [create_run(tmp_path, name, RunInfo()) for name in ("zebra", "ant", "bee")]
    os.utime(runs[0].path / INFO, (2e9, 2e9))
    assert list_runs(tmp_path) == runs


def test_a_model_is_a_file_or_a_run_folder(tmp_path):
    run, other = finished(tmp_path, "a"), finished(tmp_path, "b")
    assert find_model(run.path, root=tmp_path) == run.model
    assert find_model(str(run.model), root=tmp_path) == run.model
    assert other.model != run.model


def test_a_model_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ModelFileError, match="not found: expected a model file, a run folder"):
        find_model(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match="is a run without a result yet"):
        find_model(create_run(tmp_path, "unfinished", RunInfo()).path)


fractions = st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.2, 0.0), (1.0, 0.0, 0.0)])
experiments = st.builds(
    ExperimentConfig,
    arch=st.text("abc_:.", min_size=1),
    dropout=st.none() | st.floats(0, 0.9),
    size=st.none() | st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    mean=st.none() | st.tuples(st.floats(0, 1)),
    resize_mode=st.none() | st.sampled_from(RESIZE_MODES),
    split=fractions,
    data=st.builds(
        DataConfig, data_dir=st.none() | st.text("/ä[b]\n'\"\\", min_size=1), allow_unreadable=st.floats(0, 1)
    ),
    train=st.builds(
        TrainConfig,
        epochs=st.none() | st.integers(1, 1000),
        lr=st.none() | st.floats(1e-9, 10),
        optimizer=st.sampled_from(OPTIMIZERS),
        schedule=st.sampled_from(SCHEDULES),
        seed=st.integers(0, 2**63 - 1),
    ),
)


@given(experiment=experiments, source=st.none() | st.text(min_size=1))
def test_a_config_comes_back_as_it_was(tmp_path_factory, experiment, source):
    path = tmp_path_factory.mktemp("config") / "config.toml"
    write_config(path, experiment, source)
    values, named = read_config(path)
    assert from_dict(ExperimentConfig, values) == experiment
    assert named == source


def test_what_is_left_open_is_left_out_of_a_config(tmp_path):
    write_config(tmp_path / "config.toml", ExperimentConfig(), "photos")
    values, _ = read_config(tmp_path / "config.toml")
    assert "size" not in values
    assert "lr" not in values["train"]
    assert to_dict(from_dict(ExperimentConfig, values)) == to_dict(ExperimentConfig())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arch = ", "is not TOML"),
        ("[train]\nepoch = 3\n", "unknown option 'epoch' in .train.; did you mean epochs"),
        ("[train]\nepochs = -1\n", "TrainConfig.epochs is -1; allowed: a whole number, 0"),
        ("train = 3\n", "TrainConfig is 3"),
        ("split = [0.5, 0.1, 0.1]\n", "three fractions that sum to 1"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(tmp_path, text, message):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "config.toml")


def test_a_config_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml cannot be read: No such file"):
        read_config(tmp_path / "nothing.toml")


def test_the_history_is_a_table_with_empty_cells_for_what_there_was_not(tmp_path):
    epochs = [EpochRecord(1, 0.5, 0.8, None, None, 0.1, 2.0, True), EpochRecord(2, 0.4, 0.9, 0.6, 0.7, 0.1, 2.0, False)]
    write_history(tmp_path / "history.csv", epochs)
    with open(tmp_path / "history.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["valid_loss"] for row in rows] == ["", "0.6"]
    assert [(row["epoch"], row["train_loss"], row["best"]) for row in rows] == [
        ("1", "0.5", "True"),
        ("2", "0.4", "False"),
    ]


def test_each_event_is_one_line_of_ascii(tmp_path):
    path = tmp_path / "events.jsonl"
    append_event(path, "note", text="ä\n\x1b[1m")
    append_event(path, "end", epoch=2)
    lines = path.read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"event": "note", "text": "ä\n\x1b[1m"},
        {"event": "end", "epoch": 2},
    ]


def test_a_run_has_its_name_only_when_it_is_whole(tmp_path):
    def fail(folder):
        assert list_runs(tmp_path) == []
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ImgclfError, match=r"can't create a run folder in .*: No space left on device"):
        create_run(tmp_path, "set", RunInfo(), fill=fail)
    assert list(tmp_path.iterdir()) == []
    run = create_run(tmp_path, "set", RunInfo(), fill=lambda folder: (folder / "more").write_text("here"))
    assert (run.path / "more").read_text() == "here"
    assert [path.name for path in tmp_path.iterdir()] == ["set-1"]


def test_what_a_killed_process_left_of_a_run_is_no_run(tmp_path):
    run = create_run(tmp_path, "set", RunInfo())
    draft = tmp_path / ".set.0123.tmp"
    draft.mkdir()
    (draft / INFO).write_bytes((run.path / INFO).read_bytes())
    assert list_runs(tmp_path) == [run]


def test_an_event_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "events.jsonl"
    append_event(path, "start")
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"events\.jsonl"):
            append_event(path, "epoch", loss=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before


def test_the_start_is_read_from_the_events(tmp_path):
    path = tmp_path / "events.jsonl"
    assert read_start(path) is None
    append_event(path, "start", device="cpu")
    assert read_start(path) is None
    append_event(path, "baseline", loss=0.5, accuracy=0.75)
    assert read_start(path) == (0.5, 0.75)
    path.write_text("{", encoding="ascii")
    with pytest.raises(DataError, match="cannot be read"):
        read_start(path)


def test_a_model_is_found_by_the_name_of_its_run(tmp_path):
    run = create_run(tmp_path / "runs", "photos", RunInfo(created="now"), exact=True)
    run.model.write_bytes(b"")
    assert find_model("photos", tmp_path / "runs") == run.model


def test_a_wrong_key_is_named_with_its_file(tmp_path):
    (tmp_path / "mine.toml").write_text("sizes = 3\n")
    with pytest.raises(ConfigError, match=r"mine\.toml: .*unknown option 'sizes'; did you mean size"):
        read_config(tmp_path / "mine.toml")


@pytest.fixture
def chairs(in_folder):
    """A run called like a folder of images that lies beside the runs."""
    (in_folder / "chairs" / "gray").mkdir(parents=True)
    run = create_run(in_folder / "runs", "chairs", RunInfo(), exact=True)
    run.model.write_bytes(b"weights")
    return run


def test_a_folder_of_images_does_not_hide_the_run_of_its_name(chairs):
    for named in ("chairs", "runs/chairs", "runs/chairs/model.safetensors"):
        assert find_run(named).path.samefile(chairs.path), named
        assert find_model(named).samefile(chairs.model), named
    assert str(locate("other")) == "other"
    with pytest.raises(UnknownName, match="no run is called 'chair'; did you mean chairs"):
        find_run("chair")
    with pytest.raises(ModelFileError, match=r"chair not found: .*; did you mean chairs"):
        find_model("chair")


def test_what_is_a_run_or_a_file_goes_before_a_run_of_its_name(chairs, in_folder):
    (in_folder / "chairs" / INFO).write_text('{"number": 7}')
    assert find_run("chairs").info.number == 7
    (in_folder / "other.pt").write_bytes(b"")
    assert str(locate("other.pt")) == "other.pt"
    with pytest.raises(DataError, match="is not a run folder"):
        find_run("other.pt")


def test_the_images_of_a_run_are_where_they_were_whatever_is_called_so_here(in_folder, monkeypatch):
    for folder in ("one/data", "two/data"):
        (in_folder / folder).mkdir(parents=True)
    run = create_run(in_folder / "one" / "runs", "mine", RunInfo(location=str(in_folder / "one" / "data")))
    monkeypatch.chdir(in_folder / "one")
    assert run_source(run, "data") == "data"  # as it was typed, where that is the same
    monkeypatch.chdir(in_folder / "two")
    assert run_source(run, "data") == str(in_folder / "one" / "data")
    (in_folder / "one").rename(in_folder / "moved")  # together with the runs
    monkeypatch.chdir(in_folder / "moved")
    assert run_source(run, "data") == "data"
    with pytest.raises(DataError, match="which no longer exists: restore them"):
        run_source(run, "nothing")


def test_tar_shards_by_a_pattern_and_a_url_have_a_place_too(in_folder, monkeypatch):
    (in_folder / "tars").mkdir()
    pattern = str(in_folder / "tars" / "set-{000..010}.tar")
    for location in (pattern, "s3://bucket/{0..9}.tar"):
        run = create_run(in_folder / "runs", "mine", RunInfo(location=location))
        assert run_source(run, "set-{000..010}.tar") == location


def test_the_config_of_a_run_works_from_any_folder(in_folder, monkeypatch):
    home, away = in_folder / "home", in_folder / "away"
    for folder in (home / "photos", home / "runs", home / "sets", away):
        folder.mkdir(parents=True)
    for file in ("runs/old.csv", "own.pt"):
        (home / file).write_text("")
    monkeypatch.chdir(home)
    info = RunInfo(folder=str(home), location=str(home / "photos"))
    data = DataConfig(split_file="runs/old.csv", data_dir="sets")
    run = create_run(home / "runs", "mine", info, exact=True)
    write_config(run.path / "config.toml", ExperimentConfig(weights="own.pt", init="gone", data=data), "photos")
    assert find_config("mine")["weights"] == "own.pt"  # here nothing needs to change
    monkeypatch.chdir(away)
    for named in (run.path / "config.toml", run.path):
        found = find_config(named)
        assert (found["weights"], found["init"]) == (str(home / "own.pt"), "gone")
        assert found["data"]["split_file"] == str(home / "runs" / "old.csv")
        assert found["data"]["data_dir"] == str(home / "sets")
        assert config_source(named) == str(home / "photos")
    assert config_source("mine", home / "runs") == str(home / "photos")
    (away / "own.toml").write_text('source = "photos"\nweights = "own.pt"\n')
    assert (config_source("own.toml"), find_config("own.toml")) == ("photos", {"weights": "own.pt"})


def test_a_name_that_no_folder_can_have_is_refused_and_one_from_the_data_is_cut(tmp_path):
    with pytest.raises(ConfigError, match="a run's name has 256 bytes; allowed: 255"):
        require_free(tmp_path, "ü" * 128)
    require_free(tmp_path, "ü" * 127)
    name = create_run(tmp_path, stem_of("x" * 250, "resnet18"), RunInfo()).path.name
    assert name == f"{'x' * 100}-resnet18-1"
