"""The classic kernels, those that a network learned, and the maps of its stages."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from imgclf.core.config import ModelConfig, PreprocessConfig
from imgclf.core.errors import ConfigError
from imgclf.models.build import build_model
from imgclf.plots.kernels import CLASSIC, filtered, first_convolution, save_kernels, save_stages, stage_maps
from imgclf.transforms.preprocess import to_input

PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28, 1)).astype(np.uint8)
GRAY = PreprocessConfig(size=(28, 28), channels=1, mean=(0.5,), std=(0.5,))


def lenet(members=1):
    torch.manual_seed(0)
    return build_model(ModelConfig("lenet", 3, 1, (28, 28), members=members))


def test_the_classic_kernels_are_those_of_document_d1():
    (gauss, sixteen), (sobel, one) = CLASSIC.values()
    assert (gauss, sixteen) == (((1, 2, 1), (2, 4, 2), (1, 2, 1)), 16)
    assert (sobel, one) == (((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)), 1)


def test_a_kernel_is_cross_correlated_without_padding():
    edge = np.repeat([[0, 0, 0, 10, 10, 10]], 4, axis=0).astype(np.uint8)
    kernels = {name: np.array(kernel) / divisor for name, (kernel, divisor) in CLASSIC.items()}
    gauss, sobel = (filtered(edge, kernel) for kernel in kernels.values())
    assert gauss.tolist() == [[0, 2.5, 7.5, 10]] * 2
    assert sobel.tolist() == [[0, 40, 40, 0]] * 2  # brighter to the right is positive


def test_the_first_convolution_and_its_maps():
    model = lenet()
    name, kernels, maps = first_convolution(model, PIXELS, GRAY)
    assert (name, kernels.shape, maps.shape) == ("features.0", (6, 1, 5, 5), (6, 24, 24))
    image = (to_input(torch.from_numpy(PIXELS)[None], GRAY, torch.device("cpu")))[0, 0].numpy()
    expected = filtered(image, kernels[2, 0].numpy()) + model.features[0].bias[2].item()
    np.testing.assert_allclose(maps[2], expected, atol=1e-5)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_stages_of_a_network_with_their_shapes():
    stages = stage_maps(lenet(), PIXELS, GRAY)
    assert [(name, *maps.shape) for name, maps in stages] == [
        ("features.1", 6, 24, 24),
        ("features.2", 6, 12, 12),
        ("features.4", 16, 8, 8),
        ("features.5", 16, 4, 4),
    ]
    assert all(maps.min() >= 0 for _, maps in stages)


def test_of_an_ensemble_it_is_the_first_member():
    model = lenet(members=2)
    assert torch.equal(first_convolution(model, PIXELS, GRAY)[1], model.members[0].features[0].weight)
    assert len(stage_maps(model, PIXELS, GRAY)) == 4


def test_a_network_without_convolutions_has_neither():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    with pytest.raises(ConfigError, match="has no convolution"):
        first_convolution(model, PIXELS, GRAY)
    with pytest.raises(ConfigError, match="has no feature maps"):
        stage_maps(model, PIXELS, GRAY)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
def test_pictures_are_written(tmp_path, channels):
    torch.manual_seed(0)
    model = build_model(ModelConfig("lenet", 3, channels, (28, 28)))
    recipe = PreprocessConfig(size=(28, 28), channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    pixels = np.repeat(PIXELS, channels, axis=2)
    save_kernels(pixels, "$a.png", tmp_path / "new" / "kernels.png", first_convolution(model, pixels, recipe))
    save_kernels(pixels, "a.png", tmp_path / "classic.png")
    save_stages(stage_maps(model, pixels, recipe)[:2], "a.png", tmp_path / "stages.png")
    heights = {}
    for name in ("new/kernels.png", "classic.png", "stages.png"):
        with Image.open(tmp_path / name) as picture:
            heights[name] = picture.height
            assert np.asarray(picture.convert("L")).std() > 10
            assert picture.info["Source"].endswith("a.png")
    assert heights["new/kernels.png"] > heights["classic.png"]
