"""A real lack of memory, in a process of its own whose address space is limited."""

import subprocess
import sys

import pytest

STARVED = """
import resource
import warnings
import numpy as np
import torch
from torch import nn
from imgclf import Classifier
from imgclf.data.dataset import ArrayReader, Sample, Source

warnings.simplefilter("ignore")
torch.set_num_threads(1)
sizes = []


class Wide(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 64, 1), nn.Linear(64, classes)

    def forward(self, images):
        for _ in range(4):  # 16 MB an image of 256 by 256 and pass, kept for backward
            maps = torch.sigmoid(self.conv(images))
        sizes.append(len(images))
        return self.head(maps.mean((2, 3)))


def wide(config):
    return Wide(config.channels, config.classes)


def fit(side):
    pixels = np.random.default_rng(0).integers(0, 256, (40, side, side, 1), np.uint8)
    reader = ArrayReader({"all": pixels})
    refs = [f"all/{index:05d}" for index in range(40)]
    samples = tuple(Sample(ref, "ab"[index % 2], sha256=reader.digest(ref)) for index, ref in enumerate(refs))
    train = {"batch_size": 16, "epochs": 1, "device": "cpu", "precision": "fp32", "lr": 0.01}
    classifier = Classifier(wide, size=side, augment="none", config={"train": train})
    return classifier.fit(Source("noise", ("a", "b"), samples, reader))


fit(16)  # all libraries are loaded now
whole = max(sizes)
with open("/proc/self/statm") as file:
    limit = int(file.read().split()[0]) * resource.getpagesize() + 400 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sizes.clear()
loss = fit(256).history_.epochs[-1].train_loss
print(whole, max(sizes), np.isfinite(loss))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
def test_a_batch_that_does_not_fit_is_trained_in_smaller_parts():
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, part, finite = done.stdout.split()
    assert (whole, finite) == ("16", "True")
    assert 1 <= int(part) < 16
