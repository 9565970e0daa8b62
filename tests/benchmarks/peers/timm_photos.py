"""timm on a folder of photos: what its train script puts together by default, which its wheel does not hold.

Its loader, optimizer, schedule, loss and checkpoints with the script's defaults; resized crop and flip only, resnet18
without weights. The warm-up is left out: by default it is as long as the whole of this run.
"""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, CheckpointSaver, accuracy, random_seed

CPU = torch.device("cpu")


def train_one_epoch(epoch, model, loader, optimizer, loss_fn, scheduler):
    model.train()
    losses, updates = AverageMeter(), epoch * len(loader)
    for step, (images, target) in enumerate(loader):
        loss = loss_fn(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates += 1
        if step % 50 == 0 or step == len(loader) - 1:
            losses.update(loss.item(), len(images))
            print(f"Train: {epoch} [{step}/{len(loader)}] Loss: {losses.val:.4f} ({losses.avg:.4f})")
        scheduler.step_update(num_updates=updates, metric=losses.avg)


def validate(model, loader, loss_fn):
    model.eval()
    losses, top1 = AverageMeter(), AverageMeter()
    with torch.inference_mode():
        for images, target in loader:
            output = model(images)
            losses.update(loss_fn(output, target).item(), len(images))
            top1.update(accuracy(output, target, topk=(1, 5))[0].item(), len(images))
    print(f"Test: Loss: {losses.avg:.4f} Acc@1: {top1.avg:.3f}")
    return top1.avg


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder with train, val and test, each with a folder per class")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--smallest", type=float, default=0.08, help="the smallest part of a photo that a crop takes")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    random_seed(0)
    sets = {
        part: create_dataset("", root=args.data, split=part, is_training=part == "train", batch_size=args.batch_size)
        for part in ("train", "val", "test")
    }
    model = create_model("resnet18", pretrained=False, num_classes=len(sets["train"].reader.class_to_idx))
    config = resolve_data_config({"input_size": (3, args.size, args.size)}, model=model)
    common = {"batch_size": args.batch_size, "num_workers": args.workers, "device": CPU, "mean": config["mean"]}
    common |= {"std": config["std"], "input_size": config["input_size"]}
    train_loader = create_loader(
        sets["train"],
        is_training=True,
        scale=(args.smallest, 1.0),
        color_jitter=None,
        interpolation="random",
        **common,
    )
    valid_loader, test_loader = (
        create_loader(sets[part], interpolation=config["interpolation"], crop_pct=config["crop_pct"], **common)
        for part in ("val", "test")
    )
    lr = 0.1 * args.batch_size / 256
    optimizer = create_optimizer_v2(model, opt="sgd", lr=lr, weight_decay=2e-5, momentum=0.9)
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=args.epochs, cooldown_epochs=0, updates_per_epoch=len(train_loader)
    )
    saver = CheckpointSaver(
        model=model, optimizer=optimizer, args=SimpleNamespace(model="resnet18"), checkpoint_dir=".", recovery_dir="."
    )
    for epoch in range(epochs):
        train_one_epoch(epoch, model, train_loader, optimizer, LabelSmoothingCrossEntropy(0.1), scheduler)
        top1 = validate(model, valid_loader, torch.nn.CrossEntropyLoss())
        scheduler.step(epoch + 1, top1)
        saver.save_checkpoint(epoch, metric=top1)
    print(json.dumps({"accuracy": validate(model, test_loader, torch.nn.CrossEntropyLoss()) / 100}))


if __name__ == "__main__":
    main()
