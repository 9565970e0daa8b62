"""A network of your own: a function from a `ModelSpec` to a module whose last layer is called `head`."""

from torch import nn

from imgclf import Classifier, ModelSpec


class TinyNet(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(32, classes)

    def forward(self, images):
        return self.head(self.features(images))


def tiny_net(spec: ModelSpec) -> nn.Module:
    return TinyNet(spec.channels, spec.classes)


classifier = Classifier(tiny_net, size=16).fit("digits", epochs=3)
print(f"{classifier.evaluate().accuracy:.1%} of the digits")
