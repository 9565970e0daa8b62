"""A network of your own, as PyTorch's tutorials write it: a class is enough."""

from torch import nn

from imgclf import Classifier


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.pool(self.conv1(x).relu())
        x = self.pool(self.conv2(x).relu())
        x = x.view(x.shape[0], -1)
        return self.fc2(self.fc1(x).relu())


if __name__ == "__main__":
    classifier = Classifier(Net, size=16).fit("digits", epochs=6)
    print(f"{classifier.evaluate().accuracy:.1%} of the digits")
    classifier.save("own_network.safetensors")

    again = Classifier.load("own_network.safetensors", arch=Net)
    print(f"{again.evaluate('digits').accuracy:.1%} of those that it was not trained on")
