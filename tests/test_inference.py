"""Evaluation and prediction go one way, and agree."""

import numpy as np
import pytest
import torch
from torch import nn

from imgclf.data.loader import Loader
from imgclf.data.open import open_source
from imgclf.errors import DataError
from imgclf.inference import evaluate, infer, predict
from imgclf.models.build import build_model
from imgclf.specs import ModelSpec, Recipe

RECIPE = Recipe(size=(16, 16))
CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(ModelSpec("lenet", 3, 3, (16, 16)))


@pytest.fixture
def source(photos):
    return open_source(photos)


def loader_of(source, **options):
    return Loader(source, source.samples, RECIPE, **{"classes": source.classes, "workers": 0} | options)


@pytest.mark.parametrize("batch_size", [1, 7, 60, 100])
def test_predictions_give_the_accuracy_of_the_evaluation(model, source, batch_size):
    loader = loader_of(source, batch_size=batch_size)
    evaluation = evaluate(model, loader)
    predictions = list(predict(model, loader))
    hits = [p.label == sample.label for p, sample in zip(predictions, source.samples, strict=True)]
    assert evaluation.n == 60
    assert evaluation.accuracy == sum(hits) / 60
    logits, targets = infer(model, loader, CPU)
    assert evaluation.accuracy == (logits.argmax(1) == targets).mean()
    whole = infer(model, loader_of(source, batch_size=60), CPU)[0]
    np.testing.assert_allclose(logits, whole, atol=1e-5)


def test_a_prediction_lists_the_likeliest_classes_first(model, source):
    loader = loader_of(source)
    for top in (1, 2, 5):
        prediction = next(predict(model, loader, top=top))
        assert [label for label, _ in prediction.top] == [
            label for label, _ in sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        ][:top]
        assert prediction.top[0] == (prediction.label, prediction.confidence)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert list(prediction.probabilities) == list(source.classes)
    assert prediction.path == source.samples[0].ref


@pytest.mark.parametrize("lost", [[0], [59], [10, 11, 12, 13], [0, 20, 40, 59]])
def test_a_lost_image_is_an_error_in_its_place(model, photos, lost):
    source = open_source(photos)
    whole = list(predict(model, loader_of(source)))
    for index in lost:
        (photos / source.samples[index].ref).write_bytes(b"no image")
    loader = loader_of(source, batch_size=4)
    predictions = list(predict(model, loader))
    assert [p.path for p in predictions] == [sample.ref for sample in source.samples]
    assert [i for i, p in enumerate(predictions) if p.error] == lost
    for index, prediction in enumerate(predictions):
        if index in lost:
            assert "not an image" in prediction.error
            assert prediction.label is prediction.confidence is None
            assert not prediction.top
            assert not prediction.probabilities
        else:
            assert prediction.confidence == pytest.approx(whole[index].confidence, abs=1e-5)
            assert prediction.label == whole[index].label
    assert evaluate(model, loader).n == 60 - len(lost)


def test_nothing_that_can_be_read_is_nothing_to_evaluate(model, photos):
    source = open_source(photos)
    for sample in source.samples:
        (photos / sample.ref).unlink()
    with pytest.raises(DataError, match="none of the images can be read") as caught:
        evaluate(model, loader_of(source))
    assert len(caught.value.problems) == 60
    assert all(p.error == "no such file" for p in predict(model, loader_of(source)))


@pytest.mark.parametrize("training", [True, False])
def test_a_model_returns_to_its_mode_and_keeps_its_statistics(source, training):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.LazyLinear(3))
    model.train(training)
    with torch.no_grad():
        model(torch.zeros(2, 3, 16, 16))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (infer(model, loader_of(source), CPU)[0] for _ in range(2))
    list(predict(model, loader_of(source)))
    assert model.training is training
    assert (first == second).all(), "dropout is off"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_fails_returns_to_its_mode(source):
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 3)).train()
    with pytest.raises(RuntimeError, match="shapes"):
        evaluate(model, loader_of(source))
    assert model.training


def test_progress_counts_images(model, source):
    told = []
    infer(model, loader_of(source, batch_size=25), CPU, lambda done, n: told.append((done, n)))
    assert told == [(25, 60), (50, 60), (60, 60)]
