"""Networks of the user's own: a module, a class or a function, in Python or as FILE.py:NAME.

Their code is known only to who names it: a model file holds `own:NAME`, and that name imports nothing. What is needed
to train any network is found out by one try: in which memory format it computes, and which layer gives the scores.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgclf.core.config import ModelConfig
from imgclf.core.errors import ConfigError, UnknownName
from imgclf.models.registry import Arch

if TYPE_CHECKING:
    from torch import nn

OWN = "own:"
SOURCE = "the network itself"  # where the weights of one that is pretrained come from
FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")
# Parameters that are filled in by their name; a lone other one gets the whole spec.
FILLED: Mapping[str, Callable[[ModelConfig], Any]] = {
    **dict.fromkeys(("classes", "num_classes", "n_classes"), lambda spec: spec.classes),
    **dict.fromkeys(("channels", "in_channels", "in_chans"), lambda spec: spec.channels),
    **dict.fromkeys(("size", "image_size", "img_size"), lambda spec: spec.size),
    "dropout": lambda spec: spec.dropout or 0.0,
    "spec": lambda spec: spec,
}

_current: ContextVar[Arch | None] = ContextVar("the user's own network", default=None)


@dataclass(frozen=True)
class OwnNetwork:
    """Builds a user's network for a spec: of a module a copy, of anything else what it gives when it is called.

    `new_head` puts a new last layer in the place of one for another number of classes.
    """

    name: str
    made: Callable[..., Any]
    new_head: bool = False

    def __call__(self, spec: ModelConfig) -> nn.Module:
        """The network, tried with two images: it gives a score for each class.

        Raises `ConfigError` where it doesn't, and what its layers raise for images that they can't take.
        """
        from imgclf.models.inspection import prepared

        return prepared(self.original(spec), spec, self.name, new_head=self.new_head)

    def original(self, spec: ModelConfig) -> nn.Module:
        """A copy of the network as the user gives it."""
        from torch import nn

        network = self.made
        if not isinstance(network, nn.Module):
            given = arguments(self.made, spec, self.name)
            try:
                network = self.made(*given.args, **given.kwargs)
            except Exception as error:
                hint = ""
                for parameter in (key for key, value in given.arguments.items() if value is spec and key != "spec"):
                    hint = f" (its {parameter} is an imgclf.ModelConfig; a parameter called classes gets their number)"
                raise ConfigError(f"{self.name} can't be created: {type(error).__name__}: {error}{hint}") from error
        if not isinstance(network, nn.Module):
            raise ConfigError(f"{self.name} returns {type(network).__name__}; expected a torch.nn.Module")
        return copy.deepcopy(network).cpu()  # a function too may give the same one again


def arguments(made: Callable[..., Any], spec: ModelConfig, name: str) -> inspect.BoundArguments:
    """What a class or a function is called with: `FILLED` by name, or the spec."""
    try:
        signature = inspect.signature(made)
    except ValueError:
        raise ConfigError(f"{name} can't be used; expected a torch.nn.Module, its class, or a function") from None
    fixed = made.keywords if isinstance(made, partial) else {}
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    free = [p for p in signature.parameters.values() if p.name not in fixed and p.kind not in kinds]
    needed = [p for p in free if p.default is inspect.Parameter.empty]
    values = {p.name: FILLED[p.name](spec) for p in free if p.name in FILLED}
    unknown = [p.name for p in needed if p.name not in FILLED]
    if len(needed) == len(unknown) == 1 and not inspect.isclass(made):
        values, unknown = {unknown[0]: spec}, []
    if unknown:
        raise ConfigError(
            f"{name} needs {', '.join(unknown)}, which imgclf can't fill in (it knows {', '.join(FILLED)}): "
            f"pass the network itself, or functools.partial({name.removeprefix(OWN)}, {unknown[0]}=…)"
        )
    if spec.dropout is not None and "dropout" not in values and spec not in values.values():
        raise ConfigError(f"{name} has no dropout: leave dropout out, or give your network a parameter called dropout")
    bound = signature.bind_partial()
    bound.arguments.update({p.name: values[p.name] for p in free if p.name in values})
    return bound


def own_arch(made: Any, *, pretrained: bool = False, new_head: bool = False) -> Arch:
    """The architecture that stands for a module, class or function; raises `ConfigError` for anything else."""
    from torch import nn

    if not callable(made):
        raise ConfigError(
            f"arch is {made!r}; expected the name of an architecture, a torch.nn.Module, its class, or a function that "
            "returns one"
        )
    name, module = name_of(made), isinstance(made, nn.Module)
    parts = made.modules() if module else ()
    channels = next((part.in_channels for part in parts if isinstance(part, nn.Conv2d)), 3)
    return Arch(
        name,
        OwnNetwork(name, made, new_head=pretrained or new_head),
        size=(224, 224),
        channels=channels,
        any_channels=not module,
        family="own",
        weights=SOURCE if pretrained else None,
        summary="a network of your own",
    )


def name_of(made: Any) -> str:
    """How a network of the user's own is called, in model files too."""
    from torch import nn

    while isinstance(made, partial):
        made = made.func
    bare = type(made).__name__ if isinstance(made, nn.Module) else getattr(made, "__name__", type(made).__name__)
    return OWN + (re.sub(r"[^A-Za-z0-9_]+", "", bare)[:100].strip("_") or "network")


@contextmanager
def using(arch: Arch | None) -> Iterator[None]:
    """Within it, and in this thread, an own network's name stands for `arch`; with None all stays as it is."""
    token = _current.set(arch or _current.get())
    try:
        yield
    finally:
        _current.reset(token)


def use(arch: Arch) -> None:
    """The same to the end of the context, as of a command."""
    _current.set(arch)


def current(name: str) -> Arch:
    """The architecture that the name of an own network stands for; `UnknownName` where the user has named no code."""
    arch = _current.get()
    if arch is None:
        raise UnknownName(
            f"{name} is a custom network, and model files contain no code: name yours, as "
            f"--arch FILE.py:{name.removeprefix(OWN)}, or Classifier.load(…, arch={name.removeprefix(OWN)}) in Python"
        )
    return arch


def is_known(name: str) -> bool:
    """Whether a name is not that of an own network, or of one whose code the user has named."""
    return not name.startswith(OWN) or _current.get() is not None


def named_network(text: str) -> Any | None:
    """What FILE.py:NAME names, whose file is run for it; None for any other text.

    Files beside it can be imported from it. Raises `ConfigError` where there is no such file or name, and for what its
    code raises, and for a file without a name.
    """
    found = FILE.fullmatch(text)
    if found is None:
        if text.endswith(".py"):
            raise ConfigError(
                f"arch is {text!r}; expected {text}:NAME, where NAME is a class, a function or a network in it"
            )
        return None
    path = Path(found["file"]).resolve()
    if not path.is_file():
        raise ConfigError(f"arch is {text!r}: file {found['file']} not found")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    plan = importlib.util.spec_from_file_location(path.stem, path)
    assert plan is not None
    assert plan.loader is not None
    module = importlib.util.module_from_spec(plan)
    sys.modules.setdefault(path.stem, module)  # where dataclasses and pickle look
    try:
        plan.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{found['file']} can't be imported: {type(error).__name__}: {error}") from error
    network = getattr(module, found["name"], None)
    if network is None:
        raise ConfigError(f"{found['file']} has no {found['name']}; name a class, a function or a network in it")
    return network
