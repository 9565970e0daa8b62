"""The model file: the weights and, in one manifest beside them, all that is needed to predict.

A safetensors file whose metadata hold exactly two texts: `imgclf`, the manifest as JSON, and `sha256`, the checksum
over the manifest and every tensor. Loading it never runs code. `docs/model-file.md` is its specification.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from imgclf.core.arguments import as_path, plain, require
from imgclf.core.config import ModelConfig, PreprocessConfig, from_dict, to_dict
from imgclf.core.errors import ImgclfError, ModelFileError
from imgclf.core.files import write_atomic
from imgclf.core.tensor_file import (
    BESIDE,
    DTYPES,
    Raw,
    Stored,
    checksum,
    pack,
    parse_json,
    read_header,
    read_tensors,
    require_fit,
)
from imgclf.core.text import printable, shorten
from imgclf.core.version import __version__
from imgclf.storage.run_folder import locate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from imgclf.evaluation.ood import OodDetector

FORMAT = 6
FILE_NAME = "model.safetensors"
ARCH_NAME = re.compile(r"((timm|torchvision|own):)?[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
RECORDED_PACKAGES = ("torch", "torchvision", "timm", "albumentations", "pillow")
UNKNOWN_TENSORS = ("center", "basis", "points", "rest", "scale", "valid")
MAX_MESSAGE = 600
GIVE = "give a model.safetensors or the folder of a run"
UNCALIBRATED = {"temperature": 1.0, "images": 0, "note": "no validation images"}
NOT_KNOWN = {"missing": "training has not finished"}


def _installed_versions() -> dict[str, str]:
    versions = {"imgclf": __version__}
    for package in RECORDED_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


@dataclass(frozen=True)
class Manifest:
    """All that a model file says about its weights; what is in it must be JSON.

    `model` rebuilds the empty network, `classes` names its outputs in their order, `preprocess` makes its pixels.
    `weights` says what training started from, `metrics` maps a split's name to its results and the split's digest,
    `data` is the name of the data set, `seen` the contents that were trained or validated on
    (`data.split.pack_contents`). `versions` are those of the packages that wrote the file, `created` the time (ISO
    8601, UTC). `calibration` holds the `temperature` that the logits are divided by, on how many `images` it was fitted
    and, as a `note`, why on none; `ood` the `shapes` of the tensors of the out-of-distribution detector, or why they
    are `missing`. A wrong field raises `ModelFileError`, which names it.
    """

    model: ModelConfig
    classes: tuple[str, ...]
    preprocess: PreprocessConfig
    weights: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    seen: str = ""
    versions: Mapping[str, str] = field(default_factory=_installed_versions)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    calibration: Mapping[str, Any] = field(default_factory=UNCALIBRATED.copy)
    ood: Mapping[str, Any] = field(default_factory=NOT_KNOWN.copy)
    format: int = FORMAT

    def __post_init__(self) -> None:
        if isinstance(self.classes, list):
            object.__setattr__(self, "classes", tuple(self.classes))
        self._require(isinstance(self.model, ModelConfig), "model", "a ModelConfig")
        self._require(isinstance(self.preprocess, PreprocessConfig), "preprocess", "a PreprocessConfig")
        self._require(type(self.format) is int and self.format == FORMAT, "format", str(FORMAT))
        names_ok = isinstance(self.classes, tuple) and all(isinstance(name, str) and name for name in self.classes)
        self._require(names_ok, "classes", "names")
        self._require(len(set(self.classes)) == len(self.classes), "classes", "unique names")
        for name in ("weights", "metrics", "versions"):
            self._require(isinstance(getattr(self, name), Mapping), name, "a table")
        versions_ok = "imgclf" in self.versions and all(isinstance(text, str) for text in self.versions.values())
        self._require(versions_ok, "versions", "a table of texts, with imgclf")
        for name in ("data", "seen", "created"):
            self._require(isinstance(getattr(self, name), str), name, "a text")
        self._require(
            _is_calibration(self.calibration), "calibration", "a table of temperature (0.01 to 100), images and note"
        )
        self._require(_is_ood(self.ood), "ood", "the shapes of tensors, or why they are missing")
        model, names, channels = self.model, len(self.classes), self.preprocess.channels
        if not ARCH_NAME.fullmatch(model.arch):
            raise ModelFileError(
                f"manifest.model.arch is {shorten(repr(model.arch))}; expected the plain name of an architecture, "
                "never a hub address, a folder or a path"
            )
        if names != model.classes:
            raise ModelFileError(f"manifest.classes has {names} names; expected {model.classes} (model.classes)")
        if channels != model.channels:
            raise ModelFileError(
                f"manifest.preprocess.channels is {channels}; expected {model.channels} (model.channels)"
            )

    def _require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise ModelFileError(f"manifest.{name} is {shorten(repr(getattr(self, name)))}; expected {expected}")


def _is_calibration(value: Any) -> bool:
    if not isinstance(value, Mapping) or value.keys() != {"temperature", "images", "note"}:
        return False
    temperature, images = value["temperature"], value["images"]
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    return number and 0.01 <= temperature <= 100 and type(images) is int and isinstance(value["note"], str)


def _is_ood(value: Any) -> bool:
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    if isinstance(value.get("missing"), str):
        return True
    shapes = value.get("shapes")
    return (isinstance(shapes, Mapping) and shapes.keys() == set(UNKNOWN_TENSORS)) and all(
        isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape) for shape in shapes.values()
    )


def save_model(
    path: str | os.PathLike[str], model: nn.Module, manifest: Manifest, ood: OodDetector | None = None
) -> None:
    """Write a model file. A crash at any moment leaves the old file or the new one.

    Equal weights and manifests give equal bytes.

    Args:
        path: The file, or a folder that gets a `model.safetensors`.
        model: The network that `manifest.model` describes.
        manifest: All that is needed to predict with it.
        ood: Detects images unlike the training data; without it the manifest says why it is missing.

    Raises:
        ModelFileError: The weights don't fit the manifest, a value is NaN or infinite, or the manifest holds values
            that are not JSON.
        ConfigError: An argument is of another kind.
    """
    require("manifest", manifest, Manifest)
    save_weights(path, model.state_dict(), manifest, ood)


def save_weights(
    path: str | os.PathLike[str], weights: Mapping[str, Tensor], manifest: Manifest, ood: OodDetector | None = None
) -> None:
    """`save_model`, for the weights of a model that are at hand without it; they must not change meanwhile."""
    from torch import from_numpy

    target = _model_path(path)
    with _naming(target, "not saved: "):
        tensors = {name: tensor.detach().cpu() for name, tensor in weights.items()}
        if ood is not None:
            arrays = ood.arrays()
            manifest = replace(manifest, ood={"shapes": {name: list(a.shape) for name, a in arrays.items()}})
            tensors |= {BESIDE + name: from_numpy(array.copy()) for name, array in arrays.items()}
        _check_finite(tensors)
        parts = pack(raw_tensors(tensors), _to_json(manifest))
        header = read_header(io.BytesIO(parts[0]))
        _check_fit(header.tensors, _parse_manifest(parse_json(header.manifest, "manifest")))
    write_atomic(target, *parts)


def raw_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Raw]:
    """Tensors on the CPU as they are written; raises `ModelFileError` for a type that a model file does not hold."""
    from torch import uint8

    stored, raw = {there: name for name, (there, _) in DTYPES.items()}, {}
    for name, tensor in tensors.items():
        if _type_name(tensor) not in stored:
            raise ModelFileError(f"the tensor {name!r} is {_type_name(tensor)}; expected one of {', '.join(stored)}")
        # Its own memory where that is in order; the view keeps it alive.
        data = tensor.resolve_neg().contiguous().reshape(-1).view(uint8).numpy().data
        raw[name] = Raw(stored[_type_name(tensor)], tuple(tensor.shape), data)
    return raw


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def weights_digest(path: str | os.PathLike[str]) -> str:
    """The sha256 (hex) of the weights in a model file, or in that of a run folder: the same for equal weights,
    whatever else the file holds."""
    with _opened(path) as stream:
        header = read_header(stream)
        own = {name: tensor for name, tensor in header.tensors.items() if not name.startswith(BESIDE)}
        return checksum(stream, replace(header, manifest="", tensors=own))


def load_model(path: str | os.PathLike[str]) -> tuple[nn.Module, Manifest]:
    """Load a model file: the network (on the CPU, in eval mode) and its manifest.

    No code in the file is run, and nothing is downloaded. Structure, checksum, manifest, architecture, and the name,
    type, shape and values of every tensor are checked, in this order.

    Args:
        path: A model file, a run folder, or the name of a run in `runs`.

    Raises:
        ModelFileError: The file does not exist, is damaged, or is of another format; the message says which.
    """
    return read_model(path)[:2]


def read_model(path: str | os.PathLike[str]) -> tuple[nn.Module, Manifest, OodDetector | None]:
    """The network and the manifest as `load_model` returns them, and the detector of unlike images, if there is one."""
    from safetensors import torch as safetensors_torch

    from imgclf.evaluation.ood import OodDetector
    from imgclf.models.backbones import find_arch
    from imgclf.models.ensemble import assemble
    from imgclf.runtime.random import unseeded_drawing

    with _opened(path) as stream:
        header = read_header(stream)
        values = parse_json(header.manifest, "manifest")
        _check_format(values)
        if checksum(stream, header) != header.sha256:
            raise ModelFileError("corrupt: the checksum does not match; copy the file again or train again")
        manifest = _parse_manifest(values)
        _check_fit(header.tensors, manifest)
        tensors = read_tensors(stream, safetensors_torch.load)
        _check_finite(tensors)
        arrays = {name: tensors.pop(BESIDE + name).numpy() for name in manifest.ood.get("shapes", {})}
        ood = OodDetector(**arrays) if arrays else None
        with unseeded_drawing():
            model = assemble(find_arch(manifest.model.arch), manifest.model)
        model.load_state_dict(tensors, strict=True)
    return model.eval(), manifest, ood


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of a model file or of a run, see `load_model`, from the header alone and without torch.

    It is checked field by field, but not against the checksum, which takes all the weights: `load_model` does that.
    """
    with _opened(path) as stream:
        return _parse_manifest(parse_json(read_header(stream).manifest, "manifest"))


def _model_path(path: str | os.PathLike[str]) -> Path:
    named = as_path("the path of a model", path)
    return named / FILE_NAME if named.is_dir() else named


@contextmanager
def _naming(path: Path, prefix: str = "") -> Iterator[None]:
    """Lets every error name the file; what the specs or the architectures refuse is a wrong model file here."""
    try:
        yield
    except ImgclfError as error:
        problem = str(error)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    else:
        return
    raise ModelFileError(f"{printable(str(path))}: {prefix}{printable(problem[:MAX_MESSAGE])}")


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A model file, or that of a run, to be read."""
    target = _model_path(locate(path))
    with _naming(target):
        try:
            regular = stat.S_ISREG(target.stat().st_mode)
        except FileNotFoundError:
            raise ModelFileError(f"no such model file; {GIVE}") from None
        if not regular:  # opening a pipe would wait for ever
            raise ModelFileError(f"is not a regular file; {GIVE}")
        with target.open("rb") as stream:
            yield stream


def _to_json(manifest: Manifest) -> str:
    try:
        return json.dumps(plain(to_dict(manifest)), sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"the manifest holds a value that is not JSON: {error}") from None


def _check_format(values: Mapping[str, Any]) -> None:
    number, versions = values.get("format"), values.get("versions")
    if type(number) is int and number != FORMAT:
        writer = versions.get("imgclf") if isinstance(versions, dict) else None
        raise ModelFileError(
            f"made by imgclf {shorten(str(writer or '(unknown version)'))} with format {shorten(str(number))}, "
            f"this version ({__version__}) reads format {FORMAT}: "
            + ("upgrade imgclf" if number > FORMAT else "train the model again")
        )


def _parse_manifest(values: Mapping[str, Any]) -> Manifest:
    _check_format(values)
    _check_keys(Manifest, values, "manifest")
    _check_keys(ModelConfig, values["model"], "manifest.model")
    _check_keys(PreprocessConfig, values["preprocess"], "manifest.preprocess")
    built = {
        "model": from_dict(ModelConfig, values["model"]),
        "preprocess": from_dict(PreprocessConfig, values["preprocess"]),
    }
    return Manifest(**{**values, **built})


def _check_keys(kind: type, values: Any, where: str) -> None:
    """No field may be missing: the default of this version need not be the one of the version that wrote the file."""
    if not isinstance(values, dict):
        raise ModelFileError(f"{where} is {shorten(repr(values))}; expected a table")
    expected = {item.name for item in fields(kind)}
    for name in sorted(expected ^ values.keys()):
        problem = "is missing" if name in expected else "is not a field of this format"
        raise ModelFileError(f"{where}.{shorten(name)} {problem}")


def _check_fit(tensors: Mapping[str, Stored], manifest: Manifest) -> None:
    """Require the tensors of the network that `manifest.model` builds, by name, type and shape.

    The network is an empty one that takes no memory, so that a small file can't make it allocate a large one (but for
    the few architectures that `empty_network` has to build).
    """
    from imgclf.models.build import empty_network

    state = empty_network(manifest.model).state_dict()
    wanted = {name: _describe(_type_name(t), tuple(t.shape)) for name, t in state.items()}
    shapes = manifest.ood.get("shapes", {})
    wanted |= {BESIDE + name: _describe("float32", tuple(shape)) for name, shape in shapes.items()}
    found = {name: _describe(DTYPES[stored.dtype][0], stored.shape) for name, stored in tensors.items()}
    network = f"{manifest.model.arch} with {manifest.model.classes} classes"
    require_fit(found, wanted, f"the weights do not fit {network}")


def _describe(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} ({', '.join(map(str, shape))})"


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    from torch import device

    from imgclf.runtime.compute import all_finite

    if all_finite([*tensors.values()], device("cpu")):
        return
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelFileError(f"the tensor {name!r} holds NaN or infinite values; train again with a lower lr")
