"""How far OpenVINO's predictions are from torch's, on real photos and for networks of several kinds.

    python tests/benchmarks/agreement.py DATA [--images 300] [--arch resnet18 …] [--json]

Each network gets a linear head that is fitted to the other photos, on its pretrained weights where they are at hand;
then these photos are predicted by both backends in both precisions.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time

import torch
from torch import nn

from imgclf import Loader, ModelConfig, PreprocessConfig, build_model, load_weights, open_source
from imgclf.evaluation.inference import infer
from imgclf.evaluation.openvino import network_for
from imgclf.training.linear_probe import fit_logistic, linear_head

ARCHS = ("resnet18", "efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto", "lenet", "vgg16_cifar_lab", "own")
SIZES = {"lenet": 28, "vgg16_cifar_lab": 32, "own": 64}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU = torch.device("cpu")


class Own(nn.Module):
    """A network as a user may write it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 32, 7, 2, 3), nn.Conv2d(32, 64, 3, 2, 1)
        self.norm, self.head = nn.GroupNorm(8, 64), nn.Linear(64 * 4, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes)."""
        maps = torch.nn.functional.silu(self.norm(self.deep(torch.relu(self.stem(images)))))
        return self.head(nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1))


def compare(name: str, data: str, n: int) -> dict[str, object]:
    """The row of one network."""
    source, side = open_source(data), SIZES.get(name, 224)
    classes, size = len(source.classes), (side, side)
    torch.manual_seed(0)
    spec = ModelConfig(name, classes, 3, size)
    model = Own(classes) if name == "own" else build_model(spec)
    weights = "own" if name == "own" else load_weights(model, spec, "auto").used
    model = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocess = PreprocessConfig(size, 3, crop_pct=0.875)
    samples = random.Random(0).sample(source.samples, len(source.samples))
    asked, fitted = (
        Loader(source, part, preprocess, classes=source.classes) for part in (samples[:n], samples[n : 2 * n])
    )
    head = linear_head(model)
    if head is not None:
        rows, targets, _ = infer(model, fitted, CPU, features=True)
        weight, bias, *_ = fit_logistic(torch.from_numpy(rows[:, classes:]), torch.from_numpy(targets), classes)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
    row: dict[str, object] = {"arch": name, "weights": weights, "images": len(asked)}
    for label, precision in PRECISIONS.items():
        network = network_for(model, preprocess, CPU, precision, "openvino")
        found = {}
        for backend in ("torch", "openvino"):
            found[backend] = torch.from_numpy(infer(model, asked, CPU, None, precision, backend)[0]).softmax(1)
        apart = (found["torch"] - found["openvino"]).abs().max()
        agree = (found["torch"].argmax(1) == found["openvino"].argmax(1)).double().mean()
        row |= {
            f"{label} converted": network is not None,
            f"{label} apart": float(apart),
            f"{label} agree": float(agree),
        }
    return row


def main() -> None:
    """Print a table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--arch", nargs="*", default=ARCHS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    for name in given.arch:
        began = time.perf_counter()
        row = compare(name, given.data, given.images)
        if given.json:
            print(json.dumps(row))
            continue
        shown = ", ".join(f"{p}: labels {row[f'{p} agree']:.2%}, apart {row[f'{p} apart']:.1e}" for p in PRECISIONS)
        print(f"{name} ({row['weights']}, {row['images']} images): {shown}", file=sys.stdout, flush=True)
        print(f"  {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
