"""The documents tell the truth: every command and option is there, and what they show runs as it stands."""

import re
import runpy
import shlex
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from imgclf.cli import app
from imgclf.estimator import plan
from imgclf.models import weights
from support import option_tables

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FENCE = re.compile(r"^(?P<mark><!-- not run: .+? -->\n+)?```(?P<kind>console|python)\n(?P<text>.*?)^```$", re.M | re.S)
DEFAULT = re.compile(r"\[default: (.+?)\]")
CLASSES = {"cat": (200, 120, 40), "dog": (60, 160, 80), "owl": (60, 80, 200)}

COMMAND = typer.main.get_command(app)


def section(command):
    """What docs/cli.md says of one command."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n## imgclf {command}\n" if command else "\n## Before the command\n")
    assert found, f"docs/cli.md has no section on {command}"
    return rest.partition("\n## ")[0]


def row(text, option):
    """The row of a table that names an option in its first cell."""
    found = [line for line in text.splitlines() if line.startswith("|") and f"`{option}`" in line.split("|")[1]]
    assert len(found) == 1, f"{option} has {len(found)} rows"
    return found[0]


def _params(command):
    """The parameters of a command, and of those below it."""
    return [*command.params, *(p for below in getattr(command, "commands", {}).values() for p in below.params)]


OPTIONS = [
    (name, param)
    for name, command in [("", COMMAND), *COMMAND.commands.items()]
    for param in (command.params if not name else _params(command))
    if param.param_type_name == "option" and "--help" not in param.opts
]


@pytest.mark.parametrize(("command", "param"), OPTIONS, ids=[f"{name} {param.name}" for name, param in OPTIONS])
def test_every_option_is_documented_with_its_default(command, param):
    rows = {row(section(command), option) for option in [*param.opts, *param.secondary_opts]}
    assert len(rows) == 1
    written = DEFAULT.search((param.help or "").replace("\\", ""))
    default = written[1] if written else str(param.default) if param.show_default and param.default else ""
    found = rows.pop()
    if "as for [`imgclf train`]" in found:
        found = row(section("train"), param.opts[0])
    assert default in found.split("|")[-2]


@pytest.mark.parametrize("name", COMMAND.commands)
def test_every_command_is_in_the_table_of_commands(name):
    assert f"| [`imgclf {name}`](#imgclf-{name}) |" in (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_tables_of_training_options_are_those_of_the_command_line():
    """`python tests/support/option_tables.py` writes them."""
    assert option_tables.PAGE.read_text(encoding="utf-8") == option_tables.page()


def test_no_option_is_documented_that_there_is_not():
    for name, command in COMMAND.commands.items():
        known = {option for param in _params(command) for option in [*param.opts, *param.secondary_opts]}
        cells = [line.split("|")[1] for line in section(name).splitlines() if line.startswith("|")]
        assert set(re.findall(r"`(--?[a-z-]+)`", " ".join(cells))) <= known


@pytest.fixture(scope="module", autouse=True)
def _signals():
    """`train` handles SIGTERM; the tests of other files must not."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The folder in which the documents are read: photos, single images, and an earlier run called `chairs`."""
    root = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)

    def save(color, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.array(color) + rng.integers(-30, 30, (32, 40, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)

    for name, color in CLASSES.items():
        for index in range(5):
            save(color, root / "my_photos" / name / f"{index}.jpg")
        save(color, root / "a_folder" / f"{name}.png")
    shutil.copy(ROOT / "examples" / "own_network.py", root)
    save(CLASSES["cat"], root / "img.jpg")
    save(CLASSES["dog"], root / "other.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMGCLF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(root)
        command("imgclf train ./my_photos --arch lenet --size 16 --epochs 1 --name chairs")
    return root


@pytest.fixture
def one_epoch(monkeypatch):
    """Where the number of epochs is left open it is one, where the size is, it is small, and steps are measured for a
    moment: what is chosen for so few images takes minutes."""
    resolve = plan.resolve_config
    monkeypatch.setattr(plan, "suited_size", lambda own, sizes, resizable: (64, 64) if resizable else own)

    def quick(config, **options):
        return resolve(replace(config, epochs=config.epochs or 1), **options)

    monkeypatch.setattr(plan, "resolve_config", quick)
    monkeypatch.setattr("imgclf.estimator.warm_start.MEASURED", 0.1)


@pytest.fixture
def reader(template, tmp_path, monkeypatch):
    """A copy of that folder, as the working folder."""
    root = shutil.copytree(template, tmp_path / "reader")
    monkeypatch.chdir(root)
    return root


def command(line):
    """Run one line of a console, in this process, which has the libraries loaded."""
    program, *args = shlex.split(line, comments=True)
    assert program == "imgclf", line
    args, file = (args[:-2], args[-1]) if ">" in args else (args, None)
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, f"{line}\n{result.stderr}"
    if file is not None:
        Path(file).write_text(result.stdout, encoding="utf-8")


def blocks(page):
    """The kind and the text of each block of a page that is to be run, in order."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [(match["kind"], match["text"]) for match in found if not match["mark"]]


@pytest.mark.filterwarnings("ignore:resnet18 is NOT pretrained")  # there is no network here
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_what_a_page_shows_runs(page, reader, one_epoch):
    run_page(page)


@pytest.mark.filterwarnings("ignore:resnet18 is NOT pretrained")
@pytest.mark.parametrize(
    ("name", "device"), [("cli.md", "standin"), ("training.md", "standin"), ("README.md", "metal")]
)
def test_what_a_page_shows_runs_where_there_is_a_gpu(name, device, reader, one_epoch, request, monkeypatch):
    request.getfixturevalue(device)
    monkeypatch.setattr(weights, "have_offline_weights", lambda: False)  # its many layers take the stand-in a minute
    run_page(next(page for page in PAGES if page.name == name))


def run_page(page):
    names = {}
    for kind, text in blocks(page):
        if kind == "python":
            exec(compile(text, page.name, "exec"), names)
        elif text.startswith("imgclf "):
            for line in filter(None, text.splitlines()):
                command(line)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(example, reader, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    if example.stem == "own_network":
        assert all(float(share) > 95 for share in re.findall(r"([\d.]+)%", capsys.readouterr().out))


def test_links_between_the_pages_lead_somewhere():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
