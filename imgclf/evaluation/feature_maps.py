"""The feature maps of any network: which of its outputs have places, and where in the image these places lie.

Nothing is known of the network beforehand. One image goes through it, and of every module's output is asked whether
it is on a grid: maps (n, c, h, w), the same with the channels last (Swin), or tokens (n, t, d) in rows behind a class
token (ViT). What an attention makes of its queries has such a shape too, so an output counts only where the module's
input lay on a known grid; the first is the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgclf.core.errors import ConfigError

Grid = tuple[int, int]
WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
PREFIXES = (0, 1, 2, 4, 5, 8)  # class, distillation and register tokens that stand before those of the image
ASPECT = 2  # how much the sides' ratio of maps may differ from that of what they were made of


@dataclass(frozen=True)
class Site:
    """An output that lies on a grid: of the module `name`, at its call number `call`.

    `layout` is `maps` (n, c, h, w), `last` (n, h, w, c) or `tokens` (n, prefix + h * w, c). `steps` are the pixels from
    one cell to the next; `pooled` says that it is what a pooling made.
    """

    name: str
    call: int
    layout: str
    grid: Grid
    prefix: int
    steps: tuple[float, float]
    pooled: bool

    def maps(self, output: Tensor) -> Tensor:
        """The output as maps (n, c, h, w)."""
        if self.layout == "maps":
            return output
        if self.layout == "last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(len(tokens), -1, *self.grid)


def last_maps(model: nn.Module, images: Tensor) -> list[tuple[Site, Tensor]]:
    """The last output on each grid, in the order of the pass, and its maps (n, c, h, w)."""
    tracer = _Tracer(model, images)
    with torch.no_grad(), hooked(tracer.hooks):
        model(images)
    return list(tracer.last.values())


def find_last_site(model: nn.Module, image: Tensor) -> Site:
    """The last output on a grid that the logits depend on place by place, before a pooling coarsens it.

    Of a ViT's last tokens only the class token is used, so it is the norm before the last attention, the last that
    mixes them.

    Raises:
        ConfigError: There is none, as in a network of linear layers.
    """
    tracer = _Tracer(model, image)
    with torch.enable_grad(), hooked(tracer.hooks):
        pixels = image.detach().clone().requires_grad_()
        logits = model(pixels * 1).float()  # a network may write into its input
        # Not their sum: the rows of a linear head may sum to zero.
        score = (logits * torch.linspace(1, 2, logits.shape[1], device=logits.device)).sum()
        torch.autograd.grad(score, pixels)
    sites = tracer.sites
    found = [i for i, site in enumerate(sites) if not site.pooled] or range(len(sites))
    found = [i for i in found if i in tracer.used] or found
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has no feature maps: none of its layers keeps the image's layout; "
            "use the method occlusion, which needs no maps"
        )
    return sites[found[-1]]


def spread(heat: Tensor, site: Site, size: Grid) -> Tensor:
    """Values of cells as values of pixels, linear between the cells' centers.

    The grid lies in the middle of the image, since what convolutions without padding lose, they lose on both sides: the
    8×8 cells of LeNet span 15 of 28 pixels. Where a stride pads one side alone, cells look up to half a step further to
    that side than trained networks make of them.

    Args:
        heat: (n, h, w).
        site: Where these cells are in the image.
        size: (height, width) of the image.

    Returns:
        (n, height, width).
    """
    rows, columns = (
        ((2 * torch.arange(side, device=heat.device) - side + 1) / (step * max(1, cells - 1))).clamp(-1, 1)
        for side, step, cells in zip(size, site.steps, site.grid, strict=True)
    )
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    return F.grid_sample(heat[:, None], places.expand(len(heat), *places.shape), align_corners=True)[:, 0]


@contextmanager
def hooked(hooks: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within it, each of these modules has its forward hook."""
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.callback(module.register_forward_hook(hook).remove)
        yield


class _Tracer:
    """Watches one pass: the sites in their order, which of them (`used`) had a gradient at their places, and the `last`
    one of each grid with its maps."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.sites: list[Site] = []
        self.last: dict[Grid, tuple[Site, Tensor]] = {}
        self.used: set[int] = set()
        self._images = len(images)
        self.hooks = {
            module: partial(self._record, name) for name, module in model.named_modules() if module is not model
        }
        self._steps: dict[Grid, tuple[float, float]] = {(images.shape[2], images.shape[3]): (1.0, 1.0)}
        self._pooled: list[Tensor] = []
        self._calls: Counter[str] = Counter()

    def _record(self, name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        call = self._calls[name]
        self._calls[name] += 1
        given = next((part for part in inputs if isinstance(part, Tensor)), None)
        if not isinstance(output, Tensor) or given is None or len(output) != self._images:
            return  # the windows of an attention make a batch of their own
        read = (self._read_tokens if output.ndim == 3 else self._read_maps)(module, given, output)
        if read is None:
            return
        if isinstance(module, POOLINGS):
            self._pooled.append(output)
        pooled = any(output is other for other in self._pooled)  # also by a container that ends with it
        layout, grid, prefix = read
        site = Site(name, call, layout, grid, prefix, self._steps[grid], pooled)
        if output.requires_grad:
            output.register_hook(partial(self._note, len(self.sites), site))  # type: ignore[no-untyped-call]
        self.sites.append(site)
        self.last.pop(grid, None)
        self.last[grid] = site, site.maps(output).detach().clone()  # a later layer may work in place

    def _note(self, index: int, site: Site, gradient: Tensor) -> None:
        if site.maps(gradient).any():
            self.used.add(index)

    def _read_maps(self, module: nn.Module, given: Tensor, output: Tensor) -> tuple[str, Grid, int] | None:
        """The layout of an output of four axes; a grid that is new gets its steps from the module."""
        for layout, grid in _readings(output):
            if grid in self._steps:
                return layout, grid, 0
        before = next((grid for _, grid in _readings(given) if grid in self._steps), None)
        if before is None:
            return None
        for layout, grid in _readings(output):
            ratio = grid[0] * before[1] / (grid[1] * before[0])
            if grid[0] * grid[1] > 1 and 1 / ASPECT <= ratio <= ASPECT:
                self._steps[grid] = self._stepped(module, before, grid)
                return layout, grid, 0
        return None

    def _read_tokens(self, module: nn.Module, given: Tensor, output: Tensor) -> tuple[str, Grid, int] | None:
        """The grid of tokens: the latest known one of their number or, for tokens that were pooled, one of the image's
        shape. Only of what keeps the shape and is no linear layer: else queries, keys and values would count."""
        if given.shape != output.shape or isinstance(module, nn.Linear):
            return None
        tokens = output.shape[1]
        for grid in reversed(self._steps):
            if tokens - grid[0] * grid[1] in PREFIXES:
                return "tokens", grid, tokens - grid[0] * grid[1]
        image = next(iter(self._steps))
        for prefix in PREFIXES:
            height = isqrt(max(0, tokens - prefix) * image[0] // image[1])
            width = height * image[1] // image[0]
            if height * width == tokens - prefix > 1 and height < image[0]:
                self._steps[height, width] = (image[0] / height, image[1] / width)
                return "tokens", (height, width), prefix
        return None

    def _stepped(self, module: nn.Module, before: Grid, grid: Grid) -> tuple[float, float]:
        """The steps of a new grid: by the stride of what made it, else as if it were the same length."""
        strides: Sequence[float] = (before[0] / grid[0], before[1] / grid[1])
        if isinstance(module, WINDOWS):
            strides = (module.stride,) * 2 if isinstance(module.stride, int) else module.stride
        return self._steps[before][0] * strides[0], self._steps[before][1] * strides[1]


def _readings(tensor: Tensor) -> tuple[tuple[str, Grid], ...]:
    """What may be the layout and the grid; of tokens it is not asked, since they reach a convolution as maps."""
    shape = tensor.shape
    return (("maps", (shape[2], shape[3])), ("last", (shape[1], shape[2]))) if len(shape) == 4 else ()
