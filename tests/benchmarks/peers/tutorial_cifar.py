"""The plain tutorial loop on CIFAR-10, after document D4: samplers, per-image transforms, the best epoch is kept.

The data are the folders of 32×32 JPEGs, train and test, with a folder per class; a fifth of train is for validation.
"""

from __future__ import annotations

import argparse
import json

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, SubsetRandomSampler
from torchvision import datasets, transforms


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(64 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, 10)
        self.dropout = nn.Dropout(0.25)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = self.pool(F.relu(self.conv3(x)))
        x = self.dropout(x.flatten(1))
        x = self.dropout(F.relu(self.fc1(x)))
        return self.fc2(x)


def train(model, loader, optimizer, criterion):
    model.train()
    total = 0.0
    for data, target in loader:
        optimizer.zero_grad()
        loss = criterion(model(data), target)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(data)
    return total / len(loader.sampler)


def test(model, loader, criterion):
    model.eval()
    total, correct = 0.0, 0
    with torch.no_grad():
        for data, target in loader:
            output = model(data)
            total += criterion(output, target).item() * len(data)
            correct += output.argmax(dim=1).eq(target).sum().item()
    return total / len(loader.sampler), correct / len(loader.sampler)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder with train and test, each with a folder per class")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    torch.manual_seed(0)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    train_set = datasets.ImageFolder(f"{args.data}/train", transform)
    test_set = datasets.ImageFolder(f"{args.data}/test", transform)
    indices = torch.randperm(len(train_set)).tolist()
    cut = len(train_set) // 5
    options = {"batch_size": args.batch_size, "num_workers": args.workers}
    train_loader = DataLoader(train_set, sampler=SubsetRandomSampler(indices[cut:]), **options)
    valid_loader = DataLoader(train_set, sampler=SubsetRandomSampler(indices[:cut]), **options)
    test_loader = DataLoader(test_set, **options)

    model = Net()
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    lowest = float("inf")
    for epoch in range(1, args.epochs + 1):
        train_loss = train(model, train_loader, optimizer, criterion)
        valid_loss, _ = test(model, valid_loader, criterion)
        print(f"epoch {epoch}: train loss {train_loss:.6f}, valid loss {valid_loss:.6f}")
        if valid_loss <= lowest:
            lowest = valid_loss
            torch.save(model.state_dict(), "model_cifar.pt")
    model.load_state_dict(torch.load("model_cifar.pt"))
    _, accuracy = test(model, test_loader, criterion)
    print(json.dumps({"accuracy": accuracy}))


if __name__ == "__main__":
    main()
