"""A step of fine-tuning on a processor: by torch's own ways, and with each faster one on top; a table of docs/speed.md.

    python tests/benchmarks/step.py efficientnet_lite0 [--rounds 5] [--batch 32] [--size 224] [--stages 3]

The weights are random, and the statistics of batch norms are those of the images, frozen. All ways take turns; a ratio
is the median of the rounds' own ratios. The gradients are compared with torch's, and with torch's in single precision:
the distance relative to the norm, of the median weight and of the worst. Folded norms round at other places than torch
does; in bfloat16 that moves gradients as much as torch's own rounding, in fp32 hardly.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack

import torch
from torch import nn
from torch.nn import functional as F

from imgclf.core.config import ModelConfig, TrainConfig
from imgclf.models.build import build_model
from imgclf.runtime.compute import autocast, step_flops
from imgclf.training.acceleration import fast_steps
from imgclf.training.fast_backward import FastGradients
from imgclf.training.loop import set_mode
from imgclf.training.optim import make_optimizer

CPU, CLASSES = torch.device("cpu"), 10


class Steps:
    """Steps of a network on the same random images."""

    def __init__(self, arch: str, images: int, size: int, precision: torch.dtype) -> None:
        torch.manual_seed(0)
        spec = ModelConfig(arch, CLASSES, size=(size, size))
        self.model = build_model(spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images = torch.randn(images, 3, size, size).contiguous(memory_format=torch.channels_last)
        self.targets, self.precision = torch.arange(images) % CLASSES, precision
        self.flops = step_flops(self.model, self.images[:1], images)
        norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the mean of all passes, of which there is one
        with torch.no_grad():
            self.model.train()(self.images)
        self.ways = ["torch", "+ fast backward", *(["+ folded norms"] if norms else []), "+ frozen stages"]
        self.optimizer = make_optimizer(self.model, TrainConfig(optimizer="sgd", momentum=0.0), 0.0)

    def take(self, way: str, stages: int) -> float:
        """Take a step in a way; gives its seconds."""
        config = TrainConfig(freeze_norm=True, freeze_stages=stages if way == "+ frozen stages" else 0)
        with ExitStack() as stack:
            if way == "+ fast backward" and self.precision is torch.bfloat16:
                stack.enter_context(FastGradients())
            elif way not in ("torch", "+ fast backward"):
                stack.enter_context(fast_steps(self.model, self.images[:1], config, self.precision, self.flops))
            self.model.requires_grad_()
            set_mode(self.model, config, 0)
            self.optimizer.zero_grad()
            torch.manual_seed(0)
            began = time.perf_counter()
            with autocast(CPU, self.precision):
                logits = self.model(self.images)
            F.cross_entropy(logits.float(), self.targets).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            return time.perf_counter() - began

    def gradients(self) -> dict[str, torch.Tensor]:
        """Those of the last step."""
        named = self.model.named_parameters()
        return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def distance(gradients: dict[str, torch.Tensor], usual: dict[str, torch.Tensor]) -> str:
    """How far gradients are from others, relative to their norm: the median weight, and the worst."""
    off = [float((gradient - usual[name]).norm() / usual[name].norm()) for name, gradient in gradients.items()]
    return f"{statistics.median(off):10.2%} {max(off):8.2%}"


def accuracy(steps: Steps, precision: torch.dtype, stages: int) -> dict[str, str]:
    """How far the gradients of each way are from torch's, and from torch's in single precision."""
    steps.take("torch", stages)
    exact, found = steps.gradients(), {}
    steps.precision = precision
    for way in steps.ways:
        steps.take(way, stages)
        found[way] = steps.gradients()
    return {way: distance(each, found["torch"]) + distance(each, exact) for way, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    args = parser.parse_args()
    steps = Steps(args.arch, args.batch, args.size, torch.float32)
    off = accuracy(steps, torch.bfloat16 if args.precision == "bf16" else torch.float32, args.stages)
    times = [{way: steps.take(way, args.stages) for way in steps.ways} for _ in range(args.rounds)]
    print(f"{args.arch}, {args.batch} images of {args.size}, {args.precision}, {torch.get_num_threads()} threads")
    print(f"{'':18} {'s/step':>7} {'speedup':>8}    from torch's gradients   from those in fp32")
    for way in steps.ways:
        ratio = statistics.median(one["torch"] / one[way] for one in times)
        seconds = statistics.median(one[way] for one in times)
        print(f"{way:18} {seconds:7.3f} {ratio:8.2f} {off[way]}")


if __name__ == "__main__":
    main()
