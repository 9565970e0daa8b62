"""Libraries that cost seconds are loaded only where they are needed."""

import os
import subprocess
import sys

LIGHT = """
import os, sys
from imgclf.core.config import ModelConfig, PreprocessConfig
from imgclf.models.build import build_model
from imgclf.transforms.albumentations_pipeline import Augmenter

build_model(ModelConfig("lenet", 10, 1, (28, 28)))
assert not {"timm", "torchvision", "huggingface_hub", "albumentations"} & set(sys.modules), "for a network of our own"
assert "NO_ALBUMENTATIONS_UPDATE" not in os.environ

import numpy as np

flip = {"__class_fullname__": "HorizontalFlip", "p": 1.0}
compose = {"__version__": "2.0.8", "transform": {"__class_fullname__": "Compose", "p": 1.0, "transforms": [flip]}}
Augmenter(PreprocessConfig(size=(4, 4), compose=compose))(np.zeros((4, 4, 3), np.uint8), 0)
assert "albumentations" in sys.modules
assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1", "it would look for a newer version of itself"
"""


def test_a_network_and_a_pipeline_load_what_they_need():
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", LIGHT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
