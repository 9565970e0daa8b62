"""What a caller may pass: numbers and paths of any kind; all else is refused by its name, before any work."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

import imgclf
from imgclf import (
    AugmentStep,
    Classifier,
    ExperimentConfig,
    Explanation,
    ImgclfError,
    Loader,
    ModelConfig,
    PreprocessConfig,
    TrainConfig,
)
from imgclf.core.arguments import plain

SEVEN = (np.int8(7), np.uint64(7), np.array(7), torch.tensor(7))
TINY = PreprocessConfig(size=(8, 8), channels=1)


def loader(source, **options):
    return Loader(source, source.samples, TINY, classes=source.classes, **options)


@pytest.fixture
def network():
    return imgclf.build_model(ModelConfig("lenet", 3, 1, (16, 16)))


@pytest.mark.parametrize("seven", SEVEN)
def test_numbers_of_other_libraries_become_those_of_python(seven):
    assert plain({"a": [seven, (seven,)], "b": seven}) == {"a": [7, (7,)], "b": 7}
    assert type(plain(seven)) is int
    assert (plain(np.float64(0.5)), type(plain(np.float64(0.5)))) == (0.5, float)
    assert plain(np.eye(2)) == ((1.0, 0.0), (0.0, 1.0))
    assert (plain(np.bool_(True)), plain(Path("a") / "b"), plain(None)) == (True, "a/b", None)


def test_specs_take_them_and_are_equal_to_those_of_python():
    config = TrainConfig(epochs=np.int64(3), lr=np.float64(0.5), seed=np.uint8(1), device=torch.device("cpu"))
    assert config == TrainConfig(epochs=3, lr=0.5, seed=1, device="cpu")
    assert [type(value) for value in (config.epochs, config.lr, config.device)] == [int, float, str]
    recipe = PreprocessConfig(
        size=np.array([8, 9]), std=(np.float64(0.5),), steps=(AugmentStep("flip", {"p": np.float64(0.5)}),)
    )
    assert recipe == PreprocessConfig(size=(8, 9), std=(0.5,), steps=(AugmentStep("flip", {"p": 0.5}),))
    assert ModelConfig("lenet", np.int64(3), size=(np.int32(28),) * 2) == ModelConfig("lenet", 3, size=(28, 28))
    experiment = ExperimentConfig(weights=Path("x.pt"), split=np.array([0.5, 0.25, 0.25]))
    assert experiment == ExperimentConfig(weights="x.pt", split=(0.5, 0.25, 0.25))


def test_a_classifier_takes_them_from_fit_to_predict(photos, tmp_path):
    config = {"train": {"weight_decay": np.float32(0.01), "workers": np.int64(0)}, "split": np.array([0.5, 0.25, 0.25])}
    classifier = Classifier("lenet", size=np.int64(16), config=config)
    classifier.fit(
        photos, epochs=np.int64(1), batch_size=np.int64(16), seed=np.uint8(3), lr=np.float32(0.01), runs=tmp_path
    )
    assert classifier.config_.train.seed == 3
    assert classifier.preprocess_.size == (16, 16)
    image = photos / "red" / "00.png"
    assert len(classifier.predict(image, top=np.int64(2))[0].top) == 2
    data = image.read_bytes()
    for content in (data, bytearray(data), [memoryview(data)]):
        assert np.array_equal(classifier.predict_proba(content), classifier.predict_proba(image))
    assert classifier.predict([b"no image"])[0].error == "not an image of a known format"
    imgclf.save_explanation(classifier.explain(data)[0], str(tmp_path / "why.png"))
    assert (tmp_path / "why.png").exists()
    for wrong in (0, -1, 1.5, "3", True, None):
        with pytest.raises(ImgclfError, match=r"top is .*; allowed: a whole number, 1 or more"):
            classifier.predict(image, top=wrong)
    assert imgclf.combine(one for one in [classifier]).classes_ == classifier.classes_


def test_a_device_and_a_precision_may_be_given_by_their_names(make_source, network):
    evaluated = [
        imgclf.evaluate(network, loader16(make_source, device), device, precision=precision)
        for device in ("cpu", torch.device("cpu"), None)
        for precision in ("fp32", torch.float32)
    ]
    assert all(one == evaluated[0] for one in evaluated)
    assert len(list(imgclf.predict(network, loader16(make_source, "cpu"), device="cpu", precision="fp32"))) == 6
    probe = imgclf.fit_probe(network, loader16(make_source, "cpu"), "cpu", "fp32")
    assert probe.images == 6


def loader16(make_source, device):
    source = make_source(n=2)
    return Loader(source, source.samples, replace(TINY, size=(16, 16)), classes=source.classes, device=device)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "the images are int; expected a path, a PIL image, the bytes of an image file or a uint8 array"),
        (BytesIO(b"x"), "the images are BytesIO"),
        ({"path": "a.png"}, "the images are dict"),
        (torch.zeros(3, 8, 8), "the images are Tensor"),
        ([3], "image 0 is int"),
        ([["a.png"]], "image 0 is list"),
    ],
)
def test_what_is_no_image_is_refused_and_not_taken_apart(images, message):
    with pytest.raises(ImgclfError, match=message):
        imgclf.data.sources.inputs.inputs_source(images)


def test_the_columns_of_a_table_are_no_file_names():
    class Table:
        """As a DataFrame is: iterated over, it gives the names of its columns."""

        def __iter__(self):
            return iter(["path", "label"])

        def __array__(self):
            return np.array([["a.png", "cat"]])

    with pytest.raises(ImgclfError, match="the images are Table"):
        imgclf.data.sources.inputs.inputs_source(Table())


WRONG = {
    "a number of images": (lambda s, n: loader(s, batch_size=0), "batch_size is 0; allowed: a whole number, 1 or more"),
    "a share of an image": (lambda s, n: loader(s, batch_size=2.5), "batch_size is 2.5"),
    "a seed": (lambda s, n: loader(s, seed=-1), "seed is -1; allowed: a whole number, 0 or more"),
    "threads": (lambda s, n: loader(s, workers=-1), "workers is -1"),
    "a device": (lambda s, n: loader(s, device=0), "device is 0; allowed: auto, cpu"),
    "a precision": (
        lambda s, n: imgclf.evaluate(n, loader(s), precision="fp8"),
        "precision is 'fp8'; allowed: auto, fp32",
    ),
    "no recipe": (
        lambda s, n: Loader(s, s.samples, None, classes=s.classes),
        "preprocess is NoneType; expected PreprocessConfig",
    ),
    "two fractions": (
        lambda s, n: imgclf.make_split(s, (0.8, 0.2)),
        r"fractions are \(0.8, 0.2\); allowed: .train, valid",
    ),
    "text": (lambda s, n: imgclf.make_split(s, "80/10/10"), "fractions are '80/10/10'; allowed: .train, valid"),
    "a path to split": (lambda s, n: imgclf.make_split("photos"), "source is str; expected Source"),
    "a part": (lambda s, n: imgclf.make_split(s).samples("val"), "split is 'val'; allowed: train, valid, test"),
    "a path to audit": (lambda s, n: imgclf.audit(Path("photos")), "source is .*Path; expected Source"),
    "no threads": (lambda s, n: imgclf.audit(s, workers=0), "workers is 0"),
    "data": (lambda s, n: imgclf.open_source(["a", "b"]), "the data are list; expected a folder, a CSV file"),
    "no pixels": (lambda s, n: imgclf.open_source("digits", max_pixels=0), "max_pixels is 0"),
    "a spec": (lambda s, n: imgclf.build_model("lenet"), "spec is str; expected ModelConfig"),
    "a config": (lambda s, n: imgclf.train(n, loader(s), None, {"epochs": 1}), "config is dict; expected TrainConfig"),
    "a state": (
        lambda s, n: imgclf.train(n, loader(s), None, TrainConfig(epochs=1, lr=0.1), checkpoint=3),
        "checkpoint is int; allowed: a path, as text or a Path",
    ),
    "callbacks": (lambda s, n: Classifier().fit(s, callbacks=print), "callbacks is .*; allowed: a list of functions"),
    "a recipe": (lambda s, n: Classifier(recipe=Path("x")).fit(s), "recipe is .*Path; allowed: the name of a recipe"),
    "a list as config": (lambda s, n: Classifier(config=[1]).fit(s), "config is list; allowed: a dict"),
    "a run": (lambda s, n: Classifier().resume(3), "run is int; allowed: a path"),
    "a model": (lambda s, n: imgclf.load_model(None), "is NoneType; allowed: a path"),
    "an explanation": (lambda s, n: imgclf.save_explanation([], "x.png"), "the explanation is list"),
    "a picture": (
        lambda s, n: imgclf.save_explanation(Explanation("a", None, None, "gradcam"), "x.txt"),
        "path is 'x.txt'; expected a name that ends in .png",
    ),
    "a classifier": (lambda s, n: imgclf.combine(["runs/a"]), "a classifier to combine is str; expected Classifier"),
    "an unfitted one": (lambda s, n: imgclf.combine([Classifier()]), "not all of these classifiers are fitted"),
    "members": (lambda s, n: imgclf.fit_ensemble(s, "2"), "members is '2'"),
    "a tracker": (lambda s, n: imgclf.tracker(3), "a tracker is int; expected Backend"),
    "trials": (lambda s, n: imgclf.tune("digits", trials=0), "trials is 0; allowed: a whole number, 1 or more"),
    "minutes": (lambda s, n: imgclf.tune("digits", minutes="5m"), "minutes is '5m'; allowed: a number above 0"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_of_another_kind_is_refused_by_its_name(what, make_source, network, in_folder):
    call, message = WRONG[what]
    with pytest.raises(ImgclfError, match=message):
        call(make_source(n=2), network)
    assert list(in_folder.iterdir()) == []
