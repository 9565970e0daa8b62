"""Evaluation and prediction share one forward pass, and agree."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from imgclf.core.config import ModelConfig, PreprocessConfig
from imgclf.core.errors import DataError, OutOfMemory
from imgclf.data.loading.loader import Loader
from imgclf.data.sources.open import open_source
from imgclf.evaluation.inference import MIN_TUNED_IMAGES, evaluate, infer, predict
from imgclf.evaluation.ood import Rejector, fit_ood
from imgclf.models.build import build_model

RECIPE = PreprocessConfig(size=(16, 16))
CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(ModelConfig("lenet", 3, 3, (16, 16)))


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
    logits, targets, _ = infer(model, loader, CPU)
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


def test_a_model_in_training_mode_predicts_as_in_evaluation_and_stays_as_it_is(source):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(784, 3)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = infer(model, loader_of(source), CPU)[0]
    assert len(list(predict(model, loader_of(source)))) == 60
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    np.testing.assert_allclose(infer(model.eval(), loader_of(source), CPU)[0], logits, atol=1e-6)


class Norms(nn.Module):
    """A small network with what may stand in the way of others: batch norms, dropout, and a head to hook."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten())
        self.head = nn.Linear(784, 3)

    def forward(self, images):
        return self.head(self.features(images))


REJECTOR = Rejector(
    fit_ood(*(np.random.default_rng(0).normal(size=(30, n)).astype(np.float32) for n in (784, 3, 784))), 0.5
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "copies", "rejector"),
    [(True, 1, None), (False, 2, REJECTOR)],
    ids=["few", "some-reject"],
)
def test_threads_and_open_generators_do_not_disturb_each_other(source, two_threads, training, copies, rejector):
    model = Norms().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads, samples = (
        torch.get_num_threads(),
        (source.samples * copies)[: MIN_TUNED_IMAGES - 1 if copies == 1 else None],
    )

    def predicted(turn=0):
        order = samples[turn:] + samples[:turn]
        loader = Loader(source, order, RECIPE, classes=source.classes, workers=0, batch_size=16)
        for found in predict(model, loader, rejector=rejector):
            yield found
            assert torch.get_num_threads() == threads

    def figures(predictions):
        return [[*p.probabilities.values(), p.unknown_score or 0.0] for p in predictions]

    expected = [figures(predicted(turn)) for turn in range(4)]
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda turn: figures(predicted(turn)), range(4)))
    finally:
        sys.setswitchinterval(switching)
    np.testing.assert_allclose(together, expected, atol=1e-5)
    in_turn = [figures(found) for found in zip(*zip(predicted(0), predicted(1), strict=True), strict=True)]
    np.testing.assert_allclose(in_turn, expected[:2], atol=1e-5)
    left = predicted()
    next(left)
    assert [module.training for module in model.modules()] == [training] * len(list(model.modules()))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_progress_counts_images(model, source):
    told = []
    infer(model, loader_of(source, batch_size=25), CPU, lambda done, n: told.append((done, n)))
    assert told == [(25, 60), (50, 60), (60, 60)]


class Limited(nn.Module):
    """Gives logits, and runs out of memory above `limit` images."""

    def __init__(self, limit):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
        self.limit, self.sizes = limit, []

    def forward(self, images):
        self.sizes.append(len(images))
        if len(images) > self.limit:
            raise MemoryError
        return self.head(images)


def test_batches_that_do_not_fit_go_in_parts_from_then_on(source):
    model, loader = Limited(7).eval(), loader_of(source, batch_size=25)
    logits, targets, _ = infer(model, loader, CPU)
    assert model.sizes == [25, 13, 7, 7, 7, 4, 7, 7, 7, 4, 7, 3]
    whole, same, _ = infer(Limited(60), loader, CPU)
    np.testing.assert_allclose(logits, whole, atol=1e-6)
    assert (targets == same).all()
    predictions = list(predict(Limited(7), loader))
    assert [p.label for p in predictions] == [source.classes[i] for i in whole.argmax(1)]
    assert evaluate(Limited(1), loader).n == 60


def test_an_image_that_does_not_fit_alone(source):
    with pytest.raises(OutOfMemory, match="cpu has too little memory for a single image"):
        evaluate(Limited(0), loader_of(source))


def with_norms():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 3))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model.eval()


def test_half_precision_is_asked_for(source):
    model = with_norms()
    loader = loader_of(source)
    exact, half = infer(model, loader, CPU)[0], infer(model, loader, CPU, precision=torch.bfloat16)[0]
    assert half.dtype == np.float32
    assert 0 < abs(exact - half).max() < 0.1
    assert evaluate(model, loader).loss != evaluate(model, loader, precision=torch.bfloat16).loss
    assert list(predict(model, loader)) != list(predict(model, loader, precision=torch.bfloat16))


def test_an_image_and_its_mirror_image_are_averaged(model, source):
    mirrored = Loader(source, source.samples, replace(RECIPE, tta="mirror"), classes=source.classes, workers=0)
    flipped = nn.Sequential(Flip(), model)
    expected = (infer(model, loader_of(source), CPU)[0] + infer(flipped, loader_of(source), CPU)[0]) / 2
    np.testing.assert_allclose(infer(model, mirrored, CPU)[0], expected, atol=1e-5)


def test_views_moved_along_the_diagonal_count_half(model, source):
    moved = Loader(source, source.samples, replace(RECIPE, tta="mirror-shift"), classes=source.classes, workers=0)
    views = [[Flip()], []]
    center = np.mean([infer(nn.Sequential(*view, model), loader_of(source), CPU)[0] for view in views], axis=0)
    aside = np.mean(
        [infer(nn.Sequential(Move(by), *view, model), loader_of(source), CPU)[0] for view in views for by in (-1, 1)],
        axis=0,
    )
    np.testing.assert_allclose(infer(model, moved, CPU)[0], (center + aside) / 2, atol=1e-5)


class Move(nn.Module):
    """Images moved by a pixel down and right, or up and left; what comes in is the row next to the edge."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, images):
        for side in (2, 3):
            last = images.shape[side] - 1
            order = [1, *range(last)] if self.by > 0 else [*range(1, last + 1), last - 1]
            images = images.index_select(side, torch.tensor(order))
        return images


class Flip(nn.Module):
    def forward(self, images):
        return images.flip(3)


def test_logits_are_fetched_now_and_then(model, source, monkeypatch):
    found = []
    for waiting in (2**26, 100):
        monkeypatch.setattr("imgclf.evaluation.inference.MAX_WAITING_BYTES", waiting)
        found.append(infer(model, loader_of(source, batch_size=7), torch.device("cpu")))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(found[0][0]) == len(source.samples)
