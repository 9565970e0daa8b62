"""The plain torchvision loop on photos, after PyTorch's transfer-learning tutorial: resnet18, but no weights."""

from __future__ import annotations

import argparse
import json

import torch
from torch import nn, optim
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def run_epoch(model, loader, criterion, optimizer=None):
    """One pass, training where there is an optimizer; the mean loss and the accuracy."""
    model.train(optimizer is not None)
    total, correct = 0.0, 0
    with torch.set_grad_enabled(optimizer is not None):
        for inputs, labels in loader:
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            total += loss.item() * len(inputs)
            correct += (outputs.argmax(1) == labels).sum().item()
    return total / len(loader.dataset), correct / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder with train, val and test, each with a folder per class")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--smallest", type=float, default=0.08, help="the smallest part of a photo that a crop takes")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    torch.manual_seed(0)
    finish = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    changed = transforms.Compose(
        [
            transforms.RandomResizedCrop(args.size, scale=(args.smallest, 1.0)),
            transforms.RandomHorizontalFlip(),
            *finish,
        ]
    )
    plain = transforms.Compose(
        [transforms.Resize(args.size * 256 // 224), transforms.CenterCrop(args.size), *finish],
    )
    sets = {
        part: datasets.ImageFolder(f"{args.data}/{part}", changed if part == "train" else plain)
        for part in ("train", "val", "test")
    }
    loaders = {
        part: DataLoader(data, batch_size=args.batch_size, shuffle=part == "train", num_workers=args.workers)
        for part, data in sets.items()
    }
    model = models.resnet18(weights=None)
    model.fc = nn.Linear(model.fc.in_features, len(sets["train"].classes))
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    best = -1.0
    for epoch in range(args.epochs):
        loss, _ = run_epoch(model, loaders["train"], criterion, optimizer)
        valid_loss, accuracy = run_epoch(model, loaders["val"], criterion)
        print(f"epoch {epoch}: train loss {loss:.4f}, valid loss {valid_loss:.4f}, accuracy {accuracy:.4f}")
        if accuracy > best:
            best = accuracy
            torch.save(model.state_dict(), "best_model.pt")
    model.load_state_dict(torch.load("best_model.pt"))
    _, accuracy = run_epoch(model, loaders["test"], criterion)
    print(json.dumps({"accuracy": accuracy}))


if __name__ == "__main__":
    main()
