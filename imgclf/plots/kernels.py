"""What convolutions do to one image: the classic kernels, those of a network, and the maps of its stages.

Document D1 shows what a kernel is with two that people made: Gaussian and Sobel. A network learns its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import ConfigError
from imgclf.data.dataset import Pixels
from imgclf.evaluation.feature_maps import last_maps
from imgclf.evaluation.inference import device_of
from imgclf.models.ensemble import Ensemble
from imgclf.plots.figures import save_figure, title_of
from imgclf.runtime.compute import own_copy
from imgclf.transforms.preprocess import to_channels, to_input

CLASSIC = {  # name: the numbers, and what they are divided by
    "Gaussian, divided by 16": (((1, 2, 1), (2, 4, 2), (1, 2, 1)), 16),
    "Sobel": (((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)), 1),
}
MAX_KERNELS = 32
MAPS_A_STAGE = COLUMNS = 8


def filtered(gray: NDArray[Any], kernel: NDArray[Any]) -> NDArray[np.float64]:
    """The cross-correlation of an image (height, width) with a kernel, without padding."""
    weights, image = (torch.from_numpy(values.astype(np.float64)) for values in (kernel, gray))
    return F.conv2d(image[None, None], weights[None, None])[0, 0].numpy()


def first_convolution(model: nn.Module, pixels: Pixels, preprocess: PreprocessConfig) -> tuple[str, Tensor, Tensor]:
    """The convolution that sees the image: its name, its kernels, and the maps that it makes.

    Args:
        model: A network; of an ensemble it is the first member.
        pixels: The image, uint8 (height, width, channels), of the size that the network takes.
        preprocess: How pixels become the network's input.

    Returns:
        The name, the kernels (n, channels, height, width) and the maps (n, height, width).

    Raises:
        ConfigError: The network has no convolution.
    """
    model = own_copy(model.members[0] if isinstance(model, Ensemble) else model)
    found: list[tuple[str, Tensor, Tensor]] = []
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}

    def record(module: nn.Conv2d, inputs: object, output: Tensor) -> None:
        if not found:
            found.append((names[module], module.weight.detach().cpu(), output[0].cpu().clone()))

    for module in names:
        module.register_forward_hook(record)
    with torch.no_grad():
        model(_input(model, pixels, preprocess))
    if not found:
        raise ConfigError(f"{type(model).__name__} has no convolution, so there are no kernels to show")
    return found[0]


def stage_maps(model: nn.Module, pixels: Pixels, preprocess: PreprocessConfig) -> list[tuple[str, Tensor]]:
    """The maps of each stage in the order of the pass, with the name of the layer that made them.

    A stage is what has maps of one size; the last layer of it is shown.

    Args:
        model: A network; of an ensemble it is the first member.
        pixels: The image, uint8 (height, width, channels), of the size that the network takes.
        preprocess: How pixels become the network's input.

    Returns:
        A name and maps (n, height, width) for each stage.

    Raises:
        ConfigError: The network has no feature maps.
    """
    model = own_copy(model.members[0] if isinstance(model, Ensemble) else model)
    stages = last_maps(model, _input(model, pixels, preprocess))
    if not stages:
        raise ConfigError(f"{type(model).__name__} has no feature maps: none of its layers keeps the image's layout")
    return [(site.name, maps[0].cpu()) for site, maps in stages]


def save_kernels(pixels: Pixels, image: str, path: Path, learned: tuple[str, Tensor, Tensor] | None = None) -> None:
    """Write the classic kernels and their output and, below, learned kernels and their maps.

    Args:
        pixels: The image, uint8 (height, width, channels).
        image: Its path.
        path: The picture to write; its folder is made.
        learned: The result of `first_convolution`; each map is drawn at the same place as its kernel.
    """
    gray = (to_channels(pixels, 1) if pixels.shape[2] == 3 else pixels.mean(2, keepdims=True))[..., 0]
    shown = 0 if learned is None else min(len(learned[1]), MAX_KERNELS)
    columns = max(1, min(shown, COLUMNS))
    below = -(-shown // columns) * 6 / columns + 0.2  # inches: the picture is 12 wide, and the tiles have a half
    figure = _figure(2.8 + below if shown else 2.8)
    grid = figure.add_gridspec(2 if shown else 1, 1, height_ratios=[2.8, below] if shown else [1])
    classic = grid[0].subgridspec(1, 1 + 2 * len(CLASSIC)).subplots()
    _draw(classic[0], pixels if pixels.shape[2] == 3 else gray, f"{title_of(Path(image).name, 20)}, {_shape(gray)}")
    for index, (name, (kernel, divisor)) in enumerate(CLASSIC.items()):
        made = filtered(gray, np.array(kernel) / divisor)
        _draw(classic[1 + 2 * index], _signed_colors(np.array(kernel, dtype=np.float32)), name)
        for (row, column), value in np.ndenumerate(np.array(kernel)):
            color = "white" if abs(value) == np.abs(kernel).max() else "black"
            classic[1 + 2 * index].text(column, row, str(value), ha="center", va="center", fontsize=14, color=color)
        _draw(classic[2 + 2 * index], made, f"{name.partition(',')[0]}: {_shape(made)}")
    if learned is not None:
        name, kernels, maps = learned
        count = f"{shown} of {len(kernels)}" if shown < len(kernels) else str(shown)
        left, right = grid[1].subgridspec(1, 2).subplots()
        tiles = [_kernel_colors(kernel) for kernel in kernels[:shown].numpy()]
        _draw(left, _mosaic(tiles), f"{count} learned kernels, {_shape(kernels[0, 0].numpy())}, of layer {name}")
        tiles = [_signed_colors(made) for made in maps[:shown].numpy()]
        _draw(right, _mosaic(tiles), f"their maps, {_shape(maps[0].numpy())}: red above 0, blue below")
    save_figure(figure, path, image=image)


def save_stages(stages: Sequence[tuple[str, Tensor]], image: str, path: Path) -> None:
    """Write the maps of each stage as a row: those that vary most, each from its darkest to its brightest value.

    Args:
        stages: The result of `stage_maps`.
        image: The path of the image.
        path: The picture to write; its folder is made.
    """
    figure = _figure(0.4 + 1.65 * len(stages))
    axes = figure.subplots(len(stages), 1, squeeze=False)[:, 0]
    figure.suptitle(title_of(Path(image).name), fontsize=10)
    for axis, (name, maps) in zip(axes, stages, strict=True):
        best = maps.flatten(1).var(1).argsort(descending=True)[:MAPS_A_STAGE]
        which = "" if len(best) == len(maps) else f"; the {len(best)} that vary most"
        plural = "map" if len(maps) == 1 else "maps"
        tiles = [_gray_colors(maps[index].numpy()) for index in best.tolist()]
        _draw(axis, _mosaic(tiles), f"{name}: {len(maps):,} {plural} of {_shape(maps[0].numpy())}{which}")
    save_figure(figure, path, image=image)


def _input(model: nn.Module, pixels: Pixels, preprocess: PreprocessConfig) -> Tensor:
    return to_input(torch.from_numpy(pixels)[None], preprocess, device_of(model))


def _shape(image: NDArray[Any]) -> str:
    return f"{image.shape[0]}×{image.shape[1]}"


def _gray_colors(made: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = made.min(), made.max()
    gray: NDArray[np.float32] = ((made - low) / ((high - low) or 1))[..., None].repeat(3, axis=2)
    return gray


def _signed_colors(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """0 in white, what is above in red, what is below in blue."""
    from matplotlib import colormaps

    return colormaps["RdBu_r"](0.5 + values / (2 * (np.abs(values).max() or 1)))[..., :3]


def _kernel_colors(kernel: NDArray[np.float32]) -> NDArray[np.floating]:
    """A kernel (channels, height, width): of colors as a color, 0 in gray; others by the sign of their sum."""
    if len(kernel) == 3:
        return 0.5 + kernel.transpose(1, 2, 0) / (2 * (np.abs(kernel).max() or 1))
    return _signed_colors(kernel.sum(0))


def _mosaic(tiles: Sequence[NDArray[np.floating]]) -> NDArray[np.floating]:
    """Pictures (height, width, 3) of one size, up to eight in a row, with white between them."""
    from torchvision.utils import make_grid

    images = torch.from_numpy(np.stack(tiles)).movedim(3, 1)
    scale = -(-30 // images.shape[3])  # else a gap of one pixel would be too wide for small ones
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    canvas: Tensor = make_grid(images, COLUMNS, images.shape[3] // 10, pad_value=1.0)
    return canvas.movedim(0, 2).numpy()


def _figure(height: float):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    return Figure(figsize=(12, height), layout="constrained")


def _draw(axis, image, title: str) -> None:  # type: ignore[no-untyped-def]
    axis.imshow(image, cmap="gray", interpolation="nearest")
    axis.set_title(title, fontsize=9, parse_math=False)
    axis.axis("off")
