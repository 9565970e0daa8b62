"""The plan of the house: who may import whom, what importing costs, and what the package offers."""

import ast
import json
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import imgclf

ROOT = Path(imgclf.__file__).parent

# Each module imports from its own line and the lines above it, never from a line below, and nowhere in a circle.
# A module stands on the first line with a pattern for it.
LAYERS = (
    ("errors", "_version", "distributed"),
    ("_arguments", "_registry", "_files", "_tensorfile", "specs", "results", "machine", "compute", "fold"),
    (
        "training.device",
        "data.source",
        "data.decode",
        "data.images",
        "models._arch",
        "models._layers",
        "evaluation.answers",
        "evaluation.calibration",
        "evaluation.curves",
        "evaluation.intervals",
        "evaluation.metrics",
        "evaluation.unknown",
    ),
    (
        *("data.classes", "data.layout", "data.folder", "data.table", "data.tarindex", "data.shards", "data.download"),
        *("data.named", "data.open", "data.duplicates", "data.split", "data.audit", "data.pixelcache", "data.store"),
        *("data.tiers", "transforms.*", "models.*"),
    ),
    ("data.prefetch", "data.rows", "data.loader", "data.prepare", "inputs", "inference", "pictures", "drawing"),
    ("evaluation.report", "evaluation.report.*"),
    ("evaluation.maps", "evaluation.explain", "evaluation.kernels"),
    ("training.*", "bundle", "claims", "run"),
    ("runlist",),
    ("evaluation.compare", "plan", "recorder", "tracking"),
    ("choices",),
    ("start",),
    ("asked",),
    ("fitting",),
    ("classifier",),
    ("bench", "dryrun", "ensemble", "learning", "reporting", "reproduce", "tuning"),
    ("cli", "cli.*"),
    ("__main__",),
)
ROOMS = ("data", "evaluation", "models", "training", "training.trackers", "transforms")
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "albumentations",
    "cv2",
    "simplejpeg",
    "scipy",
    "sklearn",
    "matplotlib",
    "jinja2",
    "optuna",
    "tensorboard",
    "visdom",
    "mlflow",
    "wandb",
)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


class Imports(ast.NodeVisitor):
    """The modules of imgclf that a file imports anywhere, also within functions; "" is the package root."""

    def __init__(self, path):
        self.found = set()
        self.visit(ast.parse(path.read_text(encoding="utf-8")))

    def visit_If(self, node):
        test = node.test
        for statement in node.orelse if isinstance(test, ast.Name) and test.id == "TYPE_CHECKING" else [node]:
            self.generic_visit(statement)

    def visit_Import(self, node):
        self.found |= {name.name.partition(".")[2] for name in node.names if name.name.split(".")[0] == "imgclf"}

    def visit_ImportFrom(self, node):
        assert node.level == 0, f"line {node.lineno}: relative import"
        package, _, module = node.module.partition(".")
        if package == "imgclf":
            below = {f"{module}.{name.name}".lstrip(".") for name in node.names}
            self.found |= below & PATHS.keys() or {module}


IMPORTS = {name: Imports(path).found for name, path in PATHS.items()}


def layer(module):
    return next(i for i, line in enumerate(LAYERS) if any(fnmatchcase(module, pattern) for pattern in line))


MODULES = sorted(PATHS.keys() - {"", *ROOMS})


def test_every_module_has_a_layer_and_every_layer_has_modules():
    assert [name for name in MODULES if not any(fnmatchcase(name, p) for line in LAYERS for p in line)] == []
    assert [p for line in LAYERS for p in line if not any(fnmatchcase(name, p) for name in MODULES)] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_above(module):
    assert "" not in IMPORTS[module], "imports the package root"
    assert sorted(IMPORTS[module] - PATHS.keys()) == [], "no modules"
    assert [name for name in sorted(IMPORTS[module]) if layer(name) > layer(module)] == []


def test_no_import_goes_in_a_circle():
    graph = {name: found - {name} for name, found in IMPORTS.items()}
    assert set(TopologicalSorter(graph).static_order()) >= set(MODULES)


def test_the_root_and_the_rooms_import_nothing():
    assert {name: IMPORTS[name] for name in ("", *ROOMS)} == {name: set() for name in ("", *ROOMS)}


@pytest.mark.parametrize("module", MODULES)
def test_a_heavy_library_is_loaded_only_where_it_is_used(module):
    """timm, torchvision and sklearn cost seconds: imported in the function that needs them."""
    tree = ast.parse(PATHS[module].read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", alias.name).split(".")[0] for node in top for alias in node.names}
    assert names & {"timm", "torchvision", "sklearn", "matplotlib", "jinja2"} == set()


WATCHED = f"""
import json, os, sys
seen = []
def hook(event, args):
    if event == "open":
        path, mode, flags = args
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path) != os.devnull:
            seen.append(f"{{event}} {{path}}")
    elif event.startswith("socket.") or event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen"):
        seen.append(f"{{event}} {{args}}")
sys.addaudithook(hook)
try:
    STATEMENT
except SystemExit as end:
    assert not end.code, end.code
loaded = sorted(set({HEAVY}) & set(sys.modules))
sys.stderr.write(json.dumps([loaded, seen]))
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import imgclf; dir(imgclf)",
        "import imgclf.cli, imgclf.data.write",
        "from imgclf.cli import app; app(['--help'])",
        "from imgclf.cli import app; app(['train', '--help'])",
        "from imgclf.cli import app; app(['models', 'resnet'])",
        "from imgclf.cli import app; app(['runs'])",
    ],
)
def test_nothing_heavy_is_loaded_nothing_is_written_no_connection_is_opened(statement, tmp_path):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT.parent), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", WATCHED.replace("STATEMENT", statement)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == [[], []]
    assert list(tmp_path.iterdir()) == []


def declared():
    """The names that the package root offers to type checkers, with the module that each comes from."""
    tree = ast.parse(PATHS[""].read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_all_is_sorted_and_complete():
    assert imgclf.__all__ == sorted(declared())
    assert dir(imgclf) == imgclf.__all__


@pytest.mark.parametrize("name", imgclf.__all__)
def test_every_public_name_is_what_its_home_defines(name):
    assert getattr(imgclf, name) is getattr(import_module(declared()[name]), name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'classifer'"):
        imgclf.classifer  # noqa: B018
