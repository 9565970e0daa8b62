"""What in an image speaks for a class: that it lies where the class is, and that the model stays as it was."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from imgclf import Classifier, Explanation, explain, save_explanation
from imgclf.core.config import EXPLAIN_METHODS, ModelConfig, PreprocessConfig
from imgclf.core.errors import ConfigError, DataError, UnknownName
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.data.loading.loader import Loader
from imgclf.evaluation.saliency import _plus_plus
from imgclf.models.build import build_model
from imgclf.models.ensemble import Ensemble
from imgclf.models.resnet import SmallResNet
from imgclf.transforms.preprocess import to_input

SIDE, SQUARE, CLASSES = 48, 16, ("columns", "rows", "squares")
RECIPE = PreprocessConfig(size=(SIDE, SIDE), resize_mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3)
CPU = torch.device("cpu")


def planted(n, seed):
    """Noise (n, side, side, 3), each with a square at a random place whose pattern is the class; its (top, left)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, SIDE, SIDE, 3)).astype(np.uint8)
    stripes = np.arange(SQUARE) // 2 % 2
    patterns = np.broadcast_arrays(stripes[None, :], stripes[:, None], stripes[:, None] ^ stripes[None, :])
    targets, places = np.arange(n) % 3, rng.integers(0, SIDE - SQUARE + 1, (n, 2))
    for image, target, (top, left) in zip(pixels, targets, places, strict=True):
        image[top : top + SQUARE, left : left + SQUARE] = 255 * patterns[target][..., None]
    return pixels, targets, places


def loader_of(pixels, recipe=RECIPE, classes=CLASSES):
    samples = tuple(Sample(f"all/{i:05d}", "") for i in range(len(pixels)))
    source = Source("planted", (), samples, ArrayReader({"all": pixels}))
    return Loader(source, samples, recipe, classes=classes, cache="ram")


def small_net(seed):
    torch.manual_seed(seed)
    return SmallResNet(ModelConfig("x", 3, 3, (SIDE, SIDE)), (1, 1), bottleneck=False, maps=(8, 16), strides=(2, 2))


@pytest.fixture(scope="module")
def trained():
    model = small_net(0)
    pixels, targets, _ = planted(600, seed=1)
    # Contiguous: on some processors oneDNN crashes in the gradient of so few maps that lie channels-last.
    images, targets = to_input(torch.from_numpy(pixels), RECIPE, CPU).contiguous(), torch.from_numpy(targets)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(6):
        for batch in torch.randperm(len(images)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), targets[batch]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def shares(model, method):
    """How much of the heat lies in the square, in held-out images that are classified correctly; and their number."""
    pixels, targets, places = planted(24, seed=2)
    found = explain(model, loader_of(pixels), method=method)
    inside = [
        e.heat[top : top + SQUARE, left : left + SQUARE].sum() / e.heat.sum()
        for e, target, (top, left) in zip(found, targets, places, strict=True)
        if e.label == CLASSES[target] and e.heat.any()
    ]
    return np.mean(inside), len(inside)


@pytest.mark.parametrize("method", EXPLAIN_METHODS)
def test_the_heat_lies_where_the_class_is_and_random_weights_destroy_it(trained, method):
    share, right = shares(trained, method)
    assert right >= 22
    assert share >= 0.6
    randomized, _ = shares(small_net(1).eval(), method)
    area = (SQUARE / SIDE) ** 2
    assert randomized < 2 * area < share / 2


@pytest.mark.parametrize("method", EXPLAIN_METHODS)
def test_the_model_is_as_it_was(trained, method):
    trained.train()
    trained.stages.eval()
    trained.head.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    modes = [module.training for module in trained.modules()]
    with torch.inference_mode():
        (found,) = explain(trained, loader_of(planted(1, seed=3)[0]), method=method)
    assert found.heat.max() == 1
    assert [module.training for module in trained.modules()] == modes
    assert not any(module._forward_hooks or module._backward_hooks for module in trained.modules())
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    assert all(parameter.grad is None for parameter in trained.parameters())
    assert [name for name, p in trained.named_parameters() if not p.requires_grad] == ["head.weight"]
    assert torch.is_grad_enabled()
    trained.head.weight.requires_grad_(True)
    trained.eval()


@pytest.mark.parametrize("method", EXPLAIN_METHODS)
def test_threads_explain_as_one_does(trained, method):
    loaders = [loader_of(planted(2, seed)[0]) for seed in range(4)]
    alone = [explain(trained, loader, method=method) for loader in loaders]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda loader: explain(trained, loader, method=method), loaders))
    for one, other in zip(chain(*alone), chain(*together), strict=True):
        assert (one.label, one.confidence) == (other.label, pytest.approx(other.confidence))
        np.testing.assert_allclose(one.heat, other.heat, atol=1e-4)


def test_what_is_said_is_what_predict_says(trained):
    pixels, *_ = planted(3, seed=4)
    found = explain(trained, loader_of(pixels))
    with torch.no_grad():
        shares = trained(to_input(torch.from_numpy(pixels), RECIPE, CPU)).softmax(1)
    assert [e.label for e in found] == [CLASSES[i] for i in shares.argmax(1)]
    np.testing.assert_allclose([e.confidence for e in found], shares.max(1).values, rtol=1e-5)
    assert all((e.pixels == image).all() for e, image in zip(found, pixels, strict=True))
    assert {e.heat.dtype for e in found} == {np.dtype(np.float32)}


def test_a_named_class_has_a_heat_of_its_own(trained):
    pixels, *_ = planted(1, seed=5)
    heats = [explain(trained, loader_of(pixels), label=name)[0] for name in CLASSES]
    assert [e.label for e in heats] == list(CLASSES)
    assert sum(e.confidence for e in heats) == pytest.approx(1)
    assert not np.allclose(heats[0].heat, heats[1].heat)


def test_an_image_is_explained_alike_whatever_stands_beside_it(trained):
    pixels, *_ = planted(10, seed=6)
    together = explain(trained, loader_of(pixels))
    alone = explain(trained, loader_of(pixels[9:]))[0]
    np.testing.assert_allclose(together[9].heat, alone.heat, atol=1e-4)


def test_a_model_that_also_sees_the_mirrored_image_is_explained_by_both(trained):
    pixels, *_ = planted(1, seed=7)
    both = replace(RECIPE, tta="mirror-shift")
    one, other = (explain(trained, loader_of(p, both), label="rows")[0].heat for p in (pixels, pixels[:, :, ::-1]))
    np.testing.assert_allclose(one, other[:, ::-1], atol=1e-4)


def test_an_ensemble_gives_the_mean_of_its_members(trained):
    pixels, *_ = planted(1, seed=8)
    alone = explain(trained, loader_of(pixels))[0].heat
    twice = explain(Ensemble([trained, trained]), loader_of(pixels))[0].heat
    np.testing.assert_allclose(twice, alone, atol=1e-4)
    mixed = explain(Ensemble([trained, small_net(1).eval()]), loader_of(pixels), label="rows")[0].heat
    assert not np.allclose(mixed, alone, atol=1e-2)


def test_where_nothing_speaks_for_a_class_there_is_no_heat(trained):
    model = small_net(0).eval()
    nn.init.constant_(model.head.weight, -1)
    (found,) = explain(model, loader_of(planted(1, seed=9)[0]))
    assert not found.heat.any()


def test_the_weights_of_gradcam_plus_plus():
    """Equation 19 for two places, by hand: alpha = g² / (2 g² + sum(A) g³)."""
    maps, slopes = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[0.5, -2.0]]]])
    assert _plus_plus(maps, slopes).item() == pytest.approx(0.25 / (0.5 + 4 * 0.125) * 0.5)
    assert _plus_plus(maps, torch.zeros(1, 1, 1, 2)).item() == 0


def test_a_network_without_places_is_explained_by_occlusion_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE * 3, 3))
    pixels, *_ = planted(1, seed=10)
    with pytest.raises(ConfigError, match="method occlusion"):
        explain(model, loader_of(pixels))
    assert explain(model, loader_of(pixels), method="occlusion")[0].heat.max() == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "gradcam+"}, r"no method is called 'gradcam\+'; did you mean gradcam"),
        ({"label": "colums"}, "no class of the model is called 'colums'; did you mean columns"),
    ],
)
def test_names_that_there_are_not(trained, wrong, message):
    with pytest.raises(UnknownName, match=message):
        explain(trained, loader_of(planted(1, seed=0)[0]), **wrong)


@pytest.mark.parametrize("arch", ["lenet", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
def test_nets_of_other_kinds(arch, method):
    size, channels = ((28, 28), 1) if arch == "lenet" else ((112, 112), 3)
    torch.manual_seed(0)
    model = build_model(ModelConfig(arch, 3, channels, size))
    recipe = PreprocessConfig(size=size, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, channels)).astype(np.uint8)
    heats = [e.heat for name in CLASSES for e in explain(model, loader_of(pixels, recipe), method=method, label=name)]
    assert {heat.shape for heat in heats} == {size}
    assert any(heat.any() for heat in heats)
    assert all(heat.min() >= 0 and heat.max() in (0, 1) for heat in heats)


def test_a_classifier_explains_files_and_names_what_it_cannot_read(photos, in_folder):
    config = {"arch": "lenet", "size": (16, 16), "train": {"epochs": 1, "device": "cpu"}, "weights": "none"}
    classifier = Classifier(config=config).fit(photos)
    (in_folder / "bad.png").write_bytes(b"no image")
    image = Image.open(photos / "red" / "00.png")
    found = classifier.explain([str(photos / "red" / "00.png"), "bad.png", image], label="red")
    assert [e.label for e in found] == ["red", None, "red"]
    assert found[1].error == "not an image of a known format"
    assert found[1].to_dict() | {"error": ""} == {
        **{"path": "bad.png", "label": None, "confidence": None},
        **{"method": "gradcam", "error": ""},
    }
    assert (found[0].heat == found[2].heat).all()
    assert found[0].confidence == pytest.approx(classifier.predict(image)[0].probabilities["red"])
    with pytest.raises(DataError, match=r"bad\.png has no explanation: not an image"):
        save_explanation(found[1], in_folder / "bad-gradcam.png")


@pytest.mark.parametrize("shape", [(24, 24, 3), (6, 50, 1), (400, 20, 3), (8, 8, 4)])
def test_the_picture_shows_the_very_pixels_of_the_model(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    heat = np.zeros(shape[:2], np.float32)
    heat[1, 2] = 1
    save_explanation(Explanation("a/$x_1$.png", "bees", 0.97, "gradcam", heat, pixels), tmp_path / "new" / "x.png")
    with Image.open(tmp_path / "new" / "x.png") as picture:
        seen = np.asarray(picture.convert("RGB"))
    scale = -(-300 // max(shape[:2]))
    height, width = shape[0] * scale, shape[1] * scale
    expected = pixels if shape[2] == 3 else pixels.mean(2, keepdims=True).repeat(3, axis=2)
    expected = expected.repeat(scale, axis=0).repeat(scale, axis=1)
    left = 8 + (max(width, 300) - width) // 2
    shown = seen[-8 - height : len(seen) - 8, left : left + width]
    assert np.abs(shown - expected).max() <= 1
    hot = seen[-8 - height :, left + max(width, 300) + 8 :][scale + scale // 2, 2 * scale + scale // 2].astype(int)
    assert hot[0] > hot[2] + 30  # red
    colors = seen[len(seen) - 8 - height - 9, 16 + max(width, 300) :].astype(int)  # what they mean stands above them
    assert np.ptp(colors[0]) <= 2
    assert colors[63][0] > colors[63][2] + 30
