"""fastai on a folder of photos, with the transforms of its Imagenette script and one-cycle: resnet18, no weights."""

from __future__ import annotations

import argparse
import json

from fastai.callback.schedule import fit_one_cycle  # noqa: F401 - adds the method to Learner
from fastai.vision.all import (
    FlipItem,
    ImageDataLoaders,
    Normalize,
    RandomResizedCrop,
    accuracy,
    get_image_files,
    imagenet_stats,
    resnet18,
    set_seed,
    vision_learner,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder with train, val and test, each with a folder per class")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--smallest", type=float, default=0.08, help="the smallest part of a photo that a crop takes")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    set_seed(0)
    loaders = ImageDataLoaders.from_folder(
        args.data,
        train="train",
        valid="val",
        item_tfms=[RandomResizedCrop(args.size, min_scale=args.smallest), FlipItem(0.5)],
        batch_tfms=Normalize.from_stats(*imagenet_stats),
        bs=args.batch_size,
        num_workers=args.workers,
    )
    learner = vision_learner(loaders, resnet18, pretrained=False, metrics=accuracy)
    with learner.no_bar():
        learner.fit_one_cycle(args.epochs, 1e-3)
        photos = sorted(get_image_files(f"{args.data}/test"))
        _, tested = learner.validate(dl=loaders.test_dl(photos, with_labels=True))
    print(json.dumps({"accuracy": float(tested)}))


if __name__ == "__main__":
    main()
