"""The plain tutorial loop on MNIST, after document D0 and PyTorch's own MNIST example: Dataset, ToTensor, DataLoader.

By default it trains on 55,000 images, looks at 5,000 after each epoch and tests once, as `imgclf --recipe d0` does.
`--as-document` is the document's way: 60,000 images, and all 10,000 test images after each epoch.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, random_split
from torchvision import datasets, transforms


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.fc = nn.Linear(320, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return F.log_softmax(self.fc(x.flatten(1)), dim=1)


def train(model, loader, optimizer, epoch, device):
    model.train()
    for step, (data, target) in enumerate(loader):
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"epoch {epoch}, step {step} of {len(loader)}: loss {loss.item():.6f}")


def test(model, loader, device):
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for data, target in loader:
            data, target = data.to(device), target.to(device)
            output = model(data)
            loss += F.nll_loss(output, target, reduction="sum").item()
            correct += output.argmax(dim=1).eq(target).sum().item()
    count = len(loader.dataset)
    print(f"loss {loss / count:.4f}, accuracy {correct}/{count}")
    return correct / count


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="torchvision's data folder: MNIST/raw lies in it")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--as-document", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(0)
    to_tensor = transforms.ToTensor()
    train_set = datasets.MNIST(args.data, train=True, transform=to_tensor)
    test_set = datasets.MNIST(args.data, train=False, transform=to_tensor)
    looked_at = test_set
    if not args.as_document:
        train_set, looked_at = random_split(train_set, (55_000, 5_000))
    options = {"batch_size": args.batch_size, "num_workers": args.workers}
    train_loader = DataLoader(train_set, shuffle=True, **options)
    epoch_loader, test_loader = DataLoader(looked_at, **options), DataLoader(test_set, **options)

    model = Net().to(args.device)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    accuracy, began = 0.0, time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        train(model, train_loader, optimizer, epoch, args.device)
        accuracy = test(model, epoch_loader, args.device)
    training = time.perf_counter() - began
    if not args.as_document:
        accuracy = test(model, test_loader, args.device)
    print(json.dumps({"accuracy": accuracy, "training": training}))


if __name__ == "__main__":
    main()
