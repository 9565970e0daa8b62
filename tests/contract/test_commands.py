"""What every command keeps to: help, wrong use, and answers for programs."""

import json

import pytest
import typer
from typer.testing import CliRunner

from imgclf.cli import app
from support.command_line import run
from support.photos import contents

GROUP = typer.main.get_command(app)
COMMANDS = {
    (name, *below): command
    for name, group in GROUP.commands.items()
    for below, command in ({(n,): c for n, c in group.commands.items()} if name == "cache" else {(): group}).items()
}
RUN, TINY = "photos-lenet-1", ("--arch", "lenet", "--size", "16", "--epochs", "1")
# What each command that answers programs is asked for.
ASKED = {
    ("train",): ("photos", *TINY),
    ("evaluate",): (),
    ("predict",): ("photos/red/00.png",),
    ("explain",): ("photos/red/00.png",),
    ("runs",): (),
    ("use",): (RUN,),
    ("compare",): (RUN, RUN),
    ("models",): ("lenet",),
    ("find-lr",): ("photos", *TINY[:4]),
    ("learning-curve",): ("photos", "--config", f"runs/{RUN}/config.toml", "--full", "--epochs", "1"),
    ("tune",): ("photos", *TINY, "--trials", "2"),
    ("benchmark",): ("photos", *TINY[:4], "--seconds", "0.1"),
    ("reproduce",): (RUN,),
    ("cache", "list"): (),
    ("cache", "clear"): (),
}
# A thing that is not there, for each command that takes one.
NOWHERE = {
    **{(name,): ("nowhere",) for name in ("train", "evaluate", "use", "report", "models", "show", "find-lr", "schema")},
    **{(name,): ("nowhere",) for name in ("learning-curve", "tune", "benchmark", "reproduce")},
    ("predict",): ("photos", "--model", "nowhere"),
    ("explain",): ("photos", "--model", "nowhere"),
    ("compare",): (RUN, "nowhere"),
    ("runs",): ("--runs", "nowhere"),
    ("prepare",): ("nowhere", "out"),
    ("cache", "clear"): ("nowhere",),
}
NAMES = {"-".join(command): command for command in COMMANDS}
commands = pytest.mark.parametrize("command", NAMES.values(), ids=NAMES)


def said(result):
    """What stands on stderr, without the frames and line breaks of a terminal."""
    return " ".join(result.stderr.replace("│", " ").split())


def options_of(command):
    names = {name for param in COMMANDS[command].params for name in (*param.opts, *param.secondary_opts)}
    return {name for name in names if name.startswith("-")}


@commands
def test_help_names_every_option(command, in_folder):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*command, "--help"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"imgclf {' '.join(command)}" in result.stdout
    assert [name for name in options_of(command) if name not in result.stdout] == []
    assert list(in_folder.iterdir()) == []


@commands
def test_an_option_that_there_is_not_is_answered_with_the_one_that_is_meant(command, in_folder):
    for name in sorted(options_of(command), key=len)[-2:]:
        result = run(*command, name[:-1] + "_")
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"No such option: {name[:-1]}_; did you mean " in said(result)
    assert run(*command, "--zzzz").exit_code == 2
    assert list(in_folder.iterdir()) == []


def test_every_command_is_asked():
    assert {command for command in COMMANDS if "--json" in options_of(command)} == set(ASKED)
    assert set(COMMANDS) - {("cache", "list")} == set(NOWHERE)


@pytest.mark.parametrize("command", NOWHERE, ids="-".join)
def test_what_is_not_there_is_wrong_use_and_changes_nothing(command, here):
    before = contents(here)
    result = run(*command, *NOWHERE[command])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nowhere" in said(result)
    assert "Traceback" not in result.stderr
    assert contents(here) == before


@pytest.mark.parametrize("command", ASKED, ids="-".join)
def test_a_program_is_answered_with_one_line_of_json(command, here, monkeypatch):
    monkeypatch.setattr("imgclf.estimator.warm_start.MEASURED", 0.05)
    result = run(*command, *ASKED[command], "--json")
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert isinstance(json.loads(line), dict | list)
