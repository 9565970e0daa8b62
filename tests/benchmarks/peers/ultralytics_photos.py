"""Ultralytics classify on a folder of photos: resnet18 without weights, resized crop and flip only, plots off."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ultralytics import YOLO

# Its own form of a torchvision network; `None` stands for the weights.
RESNET18 = """
nc: 10
backbone:
  - [-1, 1, TorchVision, [512, resnet18, None, True, 2]]
head:
  - [-1, 1, Classify, [nc]]
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder with train, val and test, each with a folder per class")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--smallest", type=float, default=0.08, help="the smallest part of a photo that a crop takes")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    network = Path("resnet18-cls.yaml")
    network.write_text(RESNET18)
    model = YOLO(network, task="classify")
    model.train(
        data=args.data,
        imgsz=args.size,
        epochs=args.epochs,
        batch=args.batch_size,
        workers=args.workers,
        device="cpu",
        pretrained=False,
        scale=1 - args.smallest,  # it crops (1 - scale) to 1 of a photo
        auto_augment=None,
        hsv_h=0.0,
        hsv_s=0.0,
        hsv_v=0.0,
        erasing=0.0,
        plots=False,
        project=str(Path("runs").resolve()),
    )
    tested = model.val(split="test", plots=False, project=str(Path("runs").resolve()))
    print(json.dumps({"accuracy": float(tested.top1)}))


if __name__ == "__main__":
    main()
