"""Every architecture by its name: imgclf's own, then timm's, then torchvision's.

`timm:NAME` and `torchvision:NAME` force a library. Names that would read a folder or a model hub (`hf_hub:…`,
`local-dir:…`, paths) are no architectures: a name never decides what is downloaded or opened.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

from imgclf.core.config import ModelConfig
from imgclf.core.errors import ConfigError
from imgclf.core.registry import unknown_name
from imgclf.models import offline, resnet, speedrun, teaching, vgg
from imgclf.models.own import OWN, current
from imgclf.models.registry import ARCHS, IMAGENET_CLASSES, Arch

if TYPE_CHECKING:
    from timm.models import PretrainedCfg
    from torch import nn

OWN_MODULES = (teaching, vgg, resnet, speedrun, offline)  # importing them fills the registry
# Their auxiliary heads return tuples while training, and they'd warn about the default initialization.
INCEPTION_OPTIONS = {"aux_logits": False, "init_weights": True}


def find_arch(name: str) -> Arch:
    """The architecture called `name`, or the user's own network of the moment (`own:NAME`).

    A tag of timm's weights may follow, as in `resnet18.a1_in1k`.

    Raises `UnknownName` with close matches from all three collections.
    """
    if name.startswith(OWN):
        return current(name)
    return ARCHS.get(name) if name in ARCHS else _library_arch(name)


@cache
def _library_arch(name: str) -> Arch:
    library, _, bare = name.rpartition(":")
    plain = bare.partition(".")[0]
    if library in ("", "timm") and plain in _timm_names():
        import timm

        known = timm.list_models(f"{plain}.*", include_tags=True) if "." in bare else [plain]
        if bare not in known:
            raise unknown_name(f"tag of {plain}", name, known)
        return _timm_arch(name, bare)
    if library in ("", "torchvision") and bare in _torchvision_names():
        return _torchvision_arch(name, bare)
    forced = {"timm": _timm_names, "torchvision": _torchvision_names}.get(library)
    raise unknown_name(ARCHS.kind, name, [f"{library}:{known}" for known in forced()] if forced else all_names())


def all_names() -> list[str]:
    """Every name without a library in front: imgclf's own, then timm's, then torchvision's that timm lacks."""
    return list(dict.fromkeys([*ARCHS.names(), *_timm_names(), *_torchvision_names()]))


@cache
def _timm_names() -> tuple[str, ...]:
    import timm

    return tuple(timm.list_models())


@cache
def _torchvision_names() -> tuple[str, ...]:
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


def timm_config(name: str) -> PretrainedCfg:
    """What timm notes of a network: the pixels that it prefers, and where its weights are."""
    from timm.models import PretrainedCfg, get_pretrained_cfg

    return get_pretrained_cfg(name) or PretrainedCfg()


def _timm_arch(name: str, bare: str) -> Arch:
    cfg = timm_config(bare)
    channels, height, width = cfg.input_size
    return Arch(
        name,
        partial(build_timm, name=bare),
        size=(height, width),
        channels=channels,
        family="timm",
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        interpolation=cfg.interpolation,
        resize_mode={"squash": "squash", "border": "pad"}.get(cfg.crop_mode, "crop"),
        crop_pct=cfg.crop_pct,
        classes=IMAGENET_CLASSES,
        weights=cfg.hf_hub_id or (cfg.url if isinstance(cfg.url, str) and cfg.url else None),
        resizable=not cfg.fixed_input_size,
        summary=f"timm's {bare}",
    )


def build_timm(spec: ModelConfig, name: str, **options: Any) -> nn.Module:
    """timm's network `name`, shaped after `spec`; `options` go to `timm.create_model`."""
    import timm

    if timm_config(name).fixed_input_size:  # timm's own mark of networks whose layers depend on the size of the image
        options["img_size"] = spec.size
    options.setdefault("num_classes", spec.classes)
    return timm.create_model(name, in_chans=spec.channels, drop_rate=spec.dropout, **options)


def _torchvision_arch(name: str, bare: str) -> Arch:
    from torchvision.models import get_model_weights

    weights = get_model_weights(bare).DEFAULT
    pixels = weights.transforms()
    side, resized = pixels.crop_size[0], pixels.resize_size[0]
    inception = bare in ("googlenet", "inception_v3")  # their pretrained form turns ImageNet's scale into -1…1 itself
    return Arch(
        name,
        partial(build_torchvision, name=bare),
        size=(side, side),
        channels=3,
        family="torchvision",
        mean=(0.5,) * 3 if inception else tuple(pixels.mean),
        std=(0.5,) * 3 if inception else tuple(pixels.std),
        interpolation=pixels.interpolation.value,
        crop_pct=side / resized,
        classes=IMAGENET_CLASSES,
        weights=weights.url,
        resizable=not bare.startswith(("vit_", "swin_", "maxvit_")),
        summary=f"torchvision's {bare}",
    )


def build_torchvision(spec: ModelConfig, name: str) -> nn.Module:
    """torchvision's network `name`, shaped after `spec`.

    Raises `ConfigError` where the network takes square images only and `spec` is not square.
    """
    from torchvision.models import get_model

    options: dict[str, Any] = dict(INCEPTION_OPTIONS) if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit_"):
        height, width = spec.size
        if height != width:
            raise ConfigError(f"{name} takes square images only, not {height}x{width}; choose a size like {height}")
        options["image_size"] = height
    elif name.startswith("maxvit_"):
        options["input_size"] = spec.size
    if spec.dropout is not None:
        options["dropout"] = spec.dropout
    try:
        build = partial(_mnasnet, name) if name.startswith("mnasnet") else partial(get_model, name, weights=None)
        model: nn.Module = build(num_classes=spec.classes, **options)
    except TypeError as error:
        if "dropout" not in str(error):
            raise
        raise ConfigError(f"{name} has no dropout; leave dropout out") from None
    if spec.channels != 3:
        _change_first_convolution(model, spec.channels)
    return model


def _mnasnet(name: str, **options: Any) -> nn.Module:
    """torchvision's, but it also loads tensors alone: the original refuses all that lack a version beside them."""
    from torchvision.models import MNASNet

    class PlainMNASNet(MNASNet):  # type: ignore[misc]  # torchvision has no types
        def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
            super()._load_from_state_dict(state_dict, prefix, {"version": self._version, **local_metadata}, *rest)

    return PlainMNASNet(float(name.removeprefix("mnasnet").replace("_", ".")), **options)


def _change_first_convolution(model: nn.Module, channels: int) -> None:
    from torch.nn import Conv2d

    name, old = next((name, module) for name, module in model.named_modules() if isinstance(module, Conv2d))
    options = {
        key: getattr(old, key) for key in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    }
    model.set_submodule(name, Conv2d(channels, old.out_channels, bias=old.bias is not None, **options))
