"""A linear head on frozen features."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from imgclf.core.config import PreprocessConfig
from imgclf.core.errors import ConfigError
from imgclf.data.loading.loader import Loader
from imgclf.training.linear_probe import fit_logistic, fit_probe, linear_head

CPU = torch.device("cpu")


class Net(nn.Module):
    """The mean brightness of each quarter of the image, and a head."""

    def __init__(self, classes=3, bias=True):
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4, classes, bias)

    def forward(self, x):
        return self.head(self.pool(x))


def blobs(n=60, classes=3, d=8, spread=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    labels = torch.arange(n) % classes
    return centers[labels] + spread * torch.randn(n, d, generator=generator, dtype=torch.float64), labels


def loader_of(source):
    return Loader(source, source.samples, PreprocessConfig(size=(8, 8), channels=1), classes=source.classes)


def test_the_head_learns_and_nothing_else_changes(make_source):
    source, net = make_source(), Net()
    before = net.head
    probe = fit_probe(net, loader_of(source), CPU, torch.float32)
    assert net.head is before
    assert probe.images == len(source.samples)
    assert probe.accuracy > 0.9
    assert 0 <= probe.error < 0.1
    batch = next(iter(loader_of(source).epoch()))
    logits = net(batch.pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert (logits.argmax(1) == batch.targets).float().mean() > 0.9


def test_the_same_images_give_the_same_head(make_source):
    heads = []
    for _ in range(2):
        net = Net()
        fit_probe(net, loader_of(make_source()), CPU, torch.float32)
        heads.append(net.head.weight)
    assert torch.equal(*heads)


def test_a_network_without_a_linear_head_is_refused(make_source):
    net = Net(bias=False)
    assert linear_head(net) is None
    with pytest.raises(ConfigError, match="last layer is linear"):
        fit_probe(net, loader_of(make_source()), CPU, torch.float32)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (24, 100)])
def test_it_is_the_regression_of_a_reference(n, d):
    sklearn = pytest.importorskip("sklearn.linear_model")
    features, labels = blobs(n, d=d, spread=1.0)
    weights, bias, strength, _ = fit_logistic(features, labels, 3)
    centerd = features - features.mean(0)
    scale = centerd.square().sum(1).mean().sqrt()
    reference = sklearn.LogisticRegression(C=1 / (strength * n), tol=1e-8, max_iter=10_000)
    expected = reference.fit((centerd / scale).numpy(), labels.numpy()).predict_proba((centerd / scale).numpy())
    assert np.allclose((features @ weights.T + bias).softmax(1).numpy(), expected, atol=1e-3)


def test_the_strength_suits_the_noise():
    generator = torch.Generator().manual_seed(1)
    features, labels = blobs(90, spread=0.05)
    shuffled = labels[torch.randperm(90, generator=generator)]
    clear, noise = (fit_logistic(features, y, 3) for y in (labels, shuffled))
    assert clear[2] < noise[2]
    assert clear[3][1] == 1.0
    assert noise[3][1] < 0.6


def test_images_of_one_unit_are_held_out_together():
    """The labels of things were drawn by lot: a photo tells all about the others of its thing, and nothing more."""
    generator = torch.Generator().manual_seed(0)
    things = torch.randn(60, 30, generator=generator, dtype=torch.float64).repeat_interleave(4, 0)
    features = things + 0.1 * torch.randn(240, 30, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (60,), generator=generator).repeat_interleave(4)
    units = torch.arange(60).repeat_interleave(4)
    _, _, strength, held_out = fit_logistic(features, labels, 3, units=units)
    assert held_out.images == 240
    assert held_out.accuracy < 0.5
    assert held_out.error > 0.05, "there are 60 things, however many photos"
    _, _, weaker, leaking = fit_logistic(features, labels, 3)
    assert leaking.accuracy > 0.8
    assert weaker < strength / 100


def test_copies_and_groups_of_the_samples_are_units(make_source):
    source = make_source()
    group = tuple(replace(s, group=s.label if i % 2 else None) for i, s in enumerate(source.samples))
    copies = tuple(replace(s, pixels=s.label) for s in source.samples)
    assert fit_probe(Net(), loader_of(source.with_samples(group)), CPU, torch.float32).accuracy > 0.9
    probe = fit_probe(Net(), loader_of(source.with_samples(copies)), CPU, torch.float32)
    assert math.isnan(probe.accuracy)
    assert "no class has images of two groups" in probe.note


def test_what_the_backbone_knew_helps_with_few_images():
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(2, 200, generator=generator, dtype=torch.float64)  # the two directions that matter
    features = torch.randn(400, 200, generator=generator, dtype=torch.float64)
    labels = (features @ known.T).argmax(1)
    few, rest = slice(0, 30), slice(30, 400)

    def accuracy(prior):
        weights, bias, _, _ = fit_logistic(features[few], labels[few], 2, prior)
        return float(((features[rest] @ weights.T + bias).argmax(1) == labels[rest]).float().mean())

    assert accuracy(known) > accuracy(None) + 0.1


def test_what_the_backbone_knew_may_lie_on_a_device_without_float64(metal):
    features, labels = blobs(30)
    known = torch.ones(2, features.shape[1])
    there, here = (fit_logistic(features, labels, 3, prior)[0] for prior in (known.to(metal), known))
    assert torch.equal(there, here)


def test_rare_classes_may_weigh_more():
    features, _ = blobs(100, classes=1, spread=1.0)
    labels = (torch.arange(100) % 10 == 0).long()
    counts = torch.bincount(labels)
    for weight, share in ((None, 0.2), (counts.sum() / (2 * counts.double()), 0.2)):
        weights, bias, _, _ = fit_logistic(features, labels, 2, None, weight)
        called = ((features @ weights.T + bias).argmax(1) == 1).float().mean()
        assert called < share if weight is None else called > share


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30), st.integers(1, 40))
def test_any_counts_give_a_finite_head(labels, d):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(labels), d, generator=generator, dtype=torch.float64)
    weights, bias, _, (loss, accuracy, error, n) = fit_logistic(features, torch.tensor(labels), 5)
    assert weights.shape == (5, d)
    assert weights.isfinite().all()
    assert bias.isfinite().all()
    assert (math.isnan(loss) and math.isnan(accuracy)) if n == 0 else 0 <= accuracy <= 1
    assert math.isnan(error) if n == 0 else error == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / n), abs=1e-6)


def test_features_that_are_all_the_same_give_the_counts():
    features, labels = torch.ones(8, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    weights, bias, _, _ = fit_logistic(features, labels, 2)
    assert torch.allclose((features @ weights.T + bias).softmax(1)[0], torch.tensor([0.75, 0.25]).double(), atol=1e-3)
