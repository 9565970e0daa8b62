"""Evaluation of a folder of photos the plain way: torchvision's resnet18 in eager fp32, NCHW, ImageFolder, 2 workers.

The weights, size and normalization are those of an imgclf model file, so that both programs compute the same thing.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from safetensors import safe_open
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms
from torchvision.transforms import InterpolationMode


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder per class")
    parser.add_argument("model", help="the model file of `imgclf train --arch resnet18`")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    with safe_open(args.model, "pt") as file:
        recipe = json.loads(file.metadata()["imgclf"])["preprocess"]
        names = [name for name in file.keys() if ":" not in name]  # noqa: SIM118 - not a dictionary
        weights = {name: file.get_tensor(name) for name in names}  # without what only imgclf's own answers need
    height, width = recipe["size"]
    transform = transforms.Compose(
        [
            transforms.Resize(int(height / recipe["crop_pct"]), InterpolationMode(recipe["interpolation"])),
            transforms.CenterCrop((height, width)),
            transforms.ToTensor(),
            transforms.Normalize(recipe["mean"], recipe["std"]),
        ]
    )
    photos = datasets.ImageFolder(args.data, transform)
    model = models.resnet18(num_classes=len(photos.classes))
    model.load_state_dict(weights)
    model.eval()
    correct, began = 0, time.perf_counter()
    with torch.no_grad():
        for inputs, labels in DataLoader(photos, batch_size=args.batch_size, num_workers=args.workers):
            correct += (model(inputs).argmax(1) == labels).sum().item()
    print(json.dumps({"accuracy": correct / len(photos), "evaluating": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
