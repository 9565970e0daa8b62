"""What looks unlike anything in training: the score, the threshold, and how well both work."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from imgclf import Classifier, combine, fit_ensemble
from imgclf.core.config import ModelConfig, PreprocessConfig
from imgclf.core.errors import ConfigError
from imgclf.data.loading.loader import Loader
from imgclf.data.sources.open import open_source
from imgclf.estimator.calibrate import features_of
from imgclf.evaluation.inference import predictions_with_features
from imgclf.evaluation.ood import MAX_BASIS_VALUES, OodDetector, choose_evenly, fit_ood
from imgclf.models.build import build_model
from imgclf.models.features import feature_layers, with_features
from imgclf.storage.model_file import UNKNOWN_TENSORS, read_manifest
from imgclf.training.events import EpochEnded, Progressed
from imgclf.transforms.presets import preset_steps
from support.command_line import run

CPU = {"train": {"device": "cpu", "precision": "fp32"}}
STRANGERS = ("8", "9")


def blobs(n, seed, d=40, k=3):
    """Features around k directions, and logits that follow them."""
    random = np.random.default_rng(seed)
    middles = 5 * np.random.default_rng(99).normal(size=(k, d))
    features = middles[random.integers(0, k, n)] + random.normal(size=(n, d))
    return (features @ middles.T / 20).astype(np.float32), features.astype(np.float32)


@pytest.fixture(scope="module")
def unknown():
    return fit_ood(blobs(300, 0)[1], *blobs(500, 1))


def auroc(inside, outside):
    return float((np.asarray(outside)[:, None] > np.asarray(inside)[None]).mean())


def test_what_is_elsewhere_scores_higher(unknown):
    inside = unknown.scores(*blobs(2000, 2))
    features = 20 * np.random.default_rng(3).normal(size=(500, 40)).astype(np.float32)
    outside = unknown.scores(np.zeros((500, 3), np.float32), features)
    assert auroc(inside, outside) > 0.999
    assert abs(np.median(inside)) < 1


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5])
def test_the_threshold_refuses_that_share_of_other_images_of_the_kind(unknown, share):
    refused = (unknown.scores(*blobs(5000, 4)) > unknown.threshold(share)).mean()
    assert refused == pytest.approx(share, abs=0.01 + share / 4)


@given(n=st.integers(1, 60), share=st.floats(0.001, 0.999))
def test_the_threshold_is_the_conformal_quantile(unknown, n, share):
    few = replace(unknown, valid=np.arange(n, dtype=np.float32))
    if share * (n + 1) < 1 - 1e-6:
        with pytest.raises(ConfigError, match=rf"\(this model has {n}\); the smallest possible value is") as caught:
            few.threshold(share)
        (least,) = re.findall(r"possible value is ([\d.e-]+)$", str(caught.value))
        few.threshold(float(least))
    elif abs(share * (n + 1) - round(share * (n + 1))) > 1e-6:  # a next image ranks anywhere among n + 1
        above = n + 1 - (few.threshold(share) + 1)
        assert above / (n + 1) <= share < (above + 1) / (n + 1)


@pytest.mark.parametrize("share", [0.0, 1.0, 1, -0.1, 5.0, float("nan"), "0.05", True, [0.05]])
def test_a_share_that_is_none_is_refused(unknown, share):
    with pytest.raises(ConfigError, match=r"allowed: a share between 0 and 1"):
        unknown.threshold(share)


def test_certainty_excuses_nothing(unknown):
    logits, features = blobs(50, 5)
    assert np.allclose(unknown.scores(logits + 100, features), unknown.scores(logits + 200, features))
    assert (unknown.scores(logits - 100, features) > unknown.scores(logits, features)).all()


def test_it_is_small_and_the_same_again(unknown):
    again = fit_ood(blobs(300, 0)[1], *blobs(500, 1))
    assert all(np.array_equal(again.arrays()[name], array) for name, array in unknown.arrays().items())
    assert {array.dtype for array in unknown.arrays().values()} == {np.dtype(np.float32)}
    wide = np.random.default_rng(0).normal(size=(100, 30_000)).astype(np.float32)
    large = fit_ood(wide, np.zeros((20, 3), np.float32), wide[:20])
    assert large.basis.size <= MAX_BASIS_VALUES
    with pytest.raises(ConfigError, match="takes up to 500,000"):
        fit_ood(np.zeros((2, 500_001), np.float32), np.zeros((20, 3), np.float32), np.zeros((20, 1), np.float32))


def test_few_or_equal_images_break_nothing():
    logits, features = blobs(20, 1)
    alone = fit_ood(features[:1], logits, features)
    assert np.isfinite(alone.scores(logits, features)).all()
    flat = fit_ood(features[:1].repeat(9, 0), logits[:1].repeat(20, 0), features[:1].repeat(20, 0))
    assert np.isfinite(flat.scores(logits, features)).all()
    with pytest.raises(ConfigError, match="needs 20 validation images, has 19"):
        fit_ood(features, logits[:19], features[:19])


def test_images_are_chosen_evenly():
    targets = np.array([0] * 50 + [1] * 3 + [2] * 50)
    chosen = choose_evenly(targets, 23)
    assert np.bincount(targets[chosen]).tolist() == [10, 3, 10]
    assert (np.diff(chosen) > 0).all()
    assert choose_evenly(targets, 1000).tolist() == list(range(103))


@pytest.mark.parametrize(
    ("arch", "size", "width"),
    [("lenet", 28, 84), ("torchvision:squeezenet1_1", 64, 512), ("deit_tiny_distilled_patch16_224", 32, 192)],
)
@pytest.mark.parametrize("members", [1, 2])
def test_features_are_what_the_head_gets(arch, size, width, members):
    model = build_model(ModelConfig(arch, 3, 3, (size, size), members=members)).eval()
    images = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        rows = with_features(model)(images)
        plain = model(images)
    assert rows.shape == (2, 3 + members * width)
    assert torch.equal(rows[:, :3], plain)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_head_without_a_layer_is_refused():
    class Odd(nn.Module):
        def get_classifier(self):
            return nn.Identity()

    with pytest.raises(ConfigError, match="without a linear layer"):
        feature_layers(Odd())


# With a trained network


def digits_of(names, reader=None):
    source = open_source("digits")
    return replace(
        source,
        name="some digits",
        classes=tuple(name for name in source.classes if name in names),
        samples=tuple(sample for sample in source.samples if sample.label in names),
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A network that knows eight of the ten digits, with its run."""
    root = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMGCLF_CACHE", str(root / "cache"))
        known = digits_of([name for name in open_source("digits").classes if name not in STRANGERS])
        classifier = Classifier("lenet", weights="none", config={**CPU, "split": (0.4, 0.3, 0.3)})
        classifier.fit(known, epochs=15, runs=root / "runs")
        classifier.evaluate()
        classifier.save(classifier.run_.model)
    return classifier


def scores_of(classifier, images, reject=0.05):
    found = classifier.predict(images, reject=reject)
    return np.array([each.unknown_score for each in found]), np.mean([not each.accepted for each in found])


def test_digits_that_were_left_out_and_images_of_nothing_are_unknown(digits):
    source = digits.source_
    inside, refused = scores_of(digits, [source.open(sample.ref) for sample in digits.split_.samples("test")])
    assert len(inside) > 400
    assert refused == pytest.approx(0.05, abs=0.03)  # three standard errors of 400 images there and here
    others = digits_of(STRANGERS)
    left_out, refused = scores_of(digits, [others.open(sample.ref) for sample in others.samples])
    assert auroc(inside, left_out) > 0.9
    assert refused > 0.5
    random = np.random.default_rng(0)
    noise = list(random.integers(0, 256, (50, 8, 8, 1), dtype=np.uint8))
    flat = [np.full((8, 8, 1), level, np.uint8) for level in range(0, 256, 5)]
    for images, least in ((noise, 0.75), (flat, 0.95)):
        scores, refused = scores_of(digits, images)
        assert auroc(inside, scores) > 0.95
        assert refused > least


def test_saved_and_loaded_gives_equal_scores(digits, tmp_path):
    images = [digits.source_.open(sample.ref) for sample in digits.split_.samples("test")[:70]]
    digits.save(tmp_path / "model.safetensors")
    loaded = Classifier.load(tmp_path / "model.safetensors", device="cpu")
    assert np.array_equal(scores_of(loaded, images)[0], scores_of(digits, images)[0])
    assert loaded.temperature_ == digits.temperature_ != 1.0
    assert np.array_equal(loaded.predict_proba(images), digits.predict_proba(images))
    assert set(read_manifest(tmp_path / "model.safetensors").ood["shapes"]) == set(UNKNOWN_TENSORS)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_the_names_in_the_file_are_those_of_the_value():
    assert tuple(item.name for item in fields(OodDetector)) == UNKNOWN_TENSORS


def test_nothing_is_judged_where_nothing_was_asked(digits):
    image = digits.source_.open(digits.split_.samples("test")[0].ref)
    (plain,), (judged,) = digits.predict(image), digits.predict(image, reject=0.05)
    assert (plain.unknown_score, plain.accepted) == (None, None)
    assert judged.probabilities == pytest.approx(plain.probabilities)


def test_training_images_keep_their_features_in_the_pixels_and_the_precision_of_training(photos):
    source = open_source(photos)
    recipe = PreprocessConfig(size=(16, 16), steps=preset_steps("standard"))
    torch.manual_seed(0)
    model = build_model(ModelConfig("lenet", 3, 3, (16, 16))).eval()
    train, plain = (
        Loader(source, source.samples, recipe, classes=source.classes, train=train, cache="ram")
        for train in (True, False)
    )
    found = features_of(model, train, precision=torch.bfloat16)
    expected = predictions_with_features(model, plain)[1]
    assert not np.array_equal(found, expected)
    alike = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert alike.min() > 0.99


@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_fit_looks_again_at_what_training_has_kept(photos, monkeypatch, precision, expected):
    asked = []

    def watched(model, loader, progress, precision, backend):
        asked.append((loader.cache_level.name, loader.preprocess.steps != (), precision))
        return features_of(model, loader, progress, torch.float32, backend)

    monkeypatch.setattr("imgclf.estimator.calibrate.features_of", watched)
    config = {"train": {"device": "cpu", "precision": precision}, "split": (0.4, 0.4, 0.2)}
    Classifier("lenet", size=16, weights="none", augment="standard", config=config).fit(photos, epochs=1)
    assert asked == [("ram", True, expected)]


def test_a_lost_image_has_no_score(digits, tmp_path):
    good = digits.source_.open(digits.split_.samples("test")[0].ref)
    first, second = digits.predict([tmp_path / "gone.png", good], reject=0.05)
    assert (first.error is None, first.unknown_score, first.accepted) == (False, None, None)
    assert second.unknown_score is not None


def test_too_few_validation_images_are_an_error_that_says_so(photos):
    few = Classifier("lenet", size=16, weights="none", config=CPU).fit(photos, epochs=1)
    assert few.temperature_ == 1.0
    assert few.manifest_.calibration["note"] == "needs 20 validation images, has 9"
    with pytest.raises(ConfigError, match="needs 20 validation images, has 9"):
        few.predict(photos, reject=0.05)


def test_an_interrupted_training_fits_no_temperature_and_no_detector(photos):
    def interrupt(event):
        if isinstance(event, EpochEnded):
            raise KeyboardInterrupt

    config = {**CPU, "split": (0.4, 0.4, 0.2)}
    cut = Classifier("lenet", size=16, weights="none", config=config).fit(photos, epochs=2, callbacks=[interrupt])
    assert (cut.temperature_, cut.predictions_) == (1.0, {})
    with pytest.raises(ConfigError, match="training was interrupted"):
        cut.predict(photos, reject=0.05)


class Headless(nn.Module):
    """Its scores come from no layer that features could be taken before."""

    def __init__(self, spec):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(spec.channels * spec.size[0] * spec.size[1], spec.classes) / 9)

    def forward(self, images):
        return images.flatten(1) @ self.weights


def test_a_network_without_a_known_head_says_what_to_do(photos):
    config = {**CPU, "split": (0.4, 0.4, 0.2)}
    own = Classifier(Headless, size=8, config=config).fit(photos, epochs=1)
    assert own.temperature_ != 1.0
    with pytest.raises(ConfigError, match="name its last layer `head`"):
        own.predict(photos, reject=0.05)


def test_a_probe_looks_at_its_training_images_once(photos):
    told = []
    config = {"split": (0.4, 0.4, 0.2), "augment": "none", "train": {**CPU["train"], "probe": True}}
    for epochs, looks in ((0, 0), (1, 1)):
        told.clear()
        classifier = Classifier("lenet", size=16, config=config)
        classifier.fit(photos, epochs=epochs, lr=0.01, callbacks=[told.append])
        assert any(isinstance(event, Progressed) and "unknown" in event.task for event in told) == (
            looks and any(record.best for record in classifier.history_)
        )
        assert classifier.ood_ is not None
        assert len(classifier.ood_.points) == 24


def test_an_ensemble_is_calibrated_and_knows_unlike_images(photos, tmp_path):
    config = {"arch": "lenet", "size": (16, 16), "weights": "none", "split": (0.4, 0.4, 0.2)}
    config["train"] = {"epochs": 2, "device": "cpu"}
    two = fit_ensemble(str(photos), 2, config=config, runs=tmp_path / "runs")
    assert two.ood_.center.shape == (2 * 84,)
    assert two.temperature_ != 1.0
    noise = list(np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8))
    assert scores_of(two, noise)[1] > 0.9
    assert np.array_equal(scores_of(Classifier.load(two.run_.path), noise)[0], scores_of(two, noise)[0])
    members = [Classifier.load(path) for path in two.run_.info.members]
    with pytest.raises(ConfigError, match="without their validation images"):
        combine(members).predict(noise, reject=0.05)


# On the command line


@pytest.fixture
def images(digits, tmp_path):
    """A known digit, a flat image, and a file that is no image."""
    from PIL import Image

    first = digits.split_.samples("test")[0].ref
    Image.fromarray(digits.source_.open(first)[..., 0]).save(tmp_path / "a-digit.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "flat.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    return tmp_path


def test_predict_calls_an_image_unknown(digits, images):
    names, model = ("a-digit.png", "flat.png", "bad.png"), ("--model", digits.run_.path)
    paths = [images / name for name in names]
    result = run("predict", *paths, *model, "--reject", "0.05", "--json")
    digit, flat, bad = map(json.loads, result.stdout.splitlines())
    assert (digit["accepted"], flat["accepted"], bad["accepted"]) == (True, False, None)
    assert flat["unknown_score"] > 3 > digit["unknown_score"]
    assert bad["unknown_score"] is None
    above = f"(unknown above a score of {digits.ood_.threshold(0.05):.2f})"
    assert result.stderr.count(f"1 of 2 images unknown: unlike the training images {above}") == 1
    table = run("predict", *paths[:2], *model, "--reject", "0.05").stdout.splitlines()
    assert table[0].split() == ["image", "class", "confidence", "runners-up", "unknown", "score"]
    assert "unknown" in table[2]
    run("predict", *paths, *model, "--reject", "0.05", "--csv", images / "out.csv", "--top", "2")
    header, *lines = (images / "out.csv").read_text().splitlines()
    assert header == "path,label,confidence,label2,confidence2,unknown_score,accepted,error"
    assert [line.split(",")[-2] for line in lines[:2]] == ["true", "false"]
    assert all(line.count(",") == header.count(",") for line in lines)


@pytest.mark.parametrize("share", ["0", "1", "-1", "5", "nan", "0.0001"])
def test_predict_refuses_a_share_that_is_none(digits, images, share):
    result = run("predict", images / "flat.png", "--model", digits.run_.path, "--reject", share)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "reject" in result.stderr


def test_predicting_imports_no_more_than_it_needs(digits, images):
    code = (
        "import sys; from imgclf import Classifier; Classifier.load(sys.argv[1]).predict(sys.argv[2], reject=0.05);"
        "heavy = {'sklearn', 'scipy', 'matplotlib', 'albumentations', 'torch._dynamo'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", code, str(digits.run_.path), str(images / "flat.png")]
    assert subprocess.run(command, check=False).returncode == 0
