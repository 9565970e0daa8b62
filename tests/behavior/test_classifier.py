"""`Classifier`: what a user relies on, from fit to load."""

import json
import math
import re
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from imgclf import Classifier
from imgclf.core.config import ExperimentConfig, Levels, TrainConfig
from imgclf.core.errors import ConfigError, DataError, ModelFileError, NotFitted, UnknownName
from imgclf.data.audit import audit
from imgclf.data.dataset import Sample, Source
from imgclf.data.images import read_image
from imgclf.data.loading.disk_cache import PixelCache
from imgclf.data.loading.pixel_store import CacheFormat
from imgclf.data.sources.open import open_source
from imgclf.data.split import content_key, read_split
from imgclf.estimator.events import ImagesChecked, ProbeFitted
from imgclf.estimator.plan import open_and_split, plan_training
from imgclf.estimator.settings import Request
from imgclf.models.build import head_of
from imgclf.storage.model_file import read_manifest
from imgclf.storage.run_folder import open_run
from imgclf.training.events import BaselineMeasured, EpochEnded, StepEnded, TrainingEnded, TrainingStarted
from imgclf.training.recipes import EXPERIMENTS
from support.photos import COLORS, color_image

EXACT = {"precision": "fp32", "device": "cpu"}
QUICK = {"augment": "none", "train": {**EXACT, "lr": 0.003}}


def quick(**options):
    return Classifier("lenet", size=16, config=QUICK, **options)


def flat(model):
    return torch.cat([tensor.detach().flatten().double() for tensor in model.state_dict().values()])


def image_file(folder, name, index, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{index}.{suffix}"
    color_image(name, index).save(path)
    return path


@pytest.fixture
def trained(world, monkeypatch):
    """The trained classifier, in its own working folder."""
    monkeypatch.chdir(world.root)
    return Classifier.load("runs/photos-lenet-1")


@pytest.fixture
def own(here):
    """A copy of the trained world, to be written to, as the working folder."""
    return here


def test_the_constructor_only_stores():
    augment, config = object(), {"train": {"epochs": -1}}
    classifier = Classifier("no such net", weights="w", size=(3, 4), augment=augment, recipe="r", config=config)
    assert vars(classifier) == {
        "arch": "no such net",
        "weights": "w",
        "init": None,
        "size": (3, 4),
        "augment": augment,
        "recipe": "r",
        "config": config,
        "pretrained": False,
        "mean": None,
        "std": None,
    }
    assert vars(classifier)["config"] is config


def test_fit_returns_itself_and_overfits(photos):
    classifier = quick()
    assert classifier.fit(photos, epochs=12, batch_size=16) is classifier
    assert classifier.evaluate(part="train").accuracy > 0.95
    assert classifier.classes_ == ("blue", "green", "red")
    assert len(classifier.history_) == 12
    assert classifier.history_.epochs[-1].train_loss < classifier.history_.epochs[0].train_loss


def test_the_knobs_and_the_config_are_what_is_done(photos):
    config = {"resize_mode": "pad", "train": {**EXACT, "weight_decay": 0.2, "epochs": 9}}
    classifier = Classifier("lenet", size=(16, 20), config=config).fit(photos, epochs=1, lr=0.01, batch_size=8, seed=3)
    done = classifier.config_
    assert (done.size, done.resize_mode, done.train.weight_decay) == ((16, 20), "pad", 0.2)
    assert (done.train.epochs, done.train.lr, done.train.batch_size, done.train.seed) == (1, 0.01, 8, 3)
    assert config == {"resize_mode": "pad", "train": {**EXACT, "weight_decay": 0.2, "epochs": 9}}


def test_fits_and_loads_at_once_give_what_each_gives_alone(make_source, tmp_path):
    def learn(seed):
        classifier = Classifier("cnn_deep", size=8, config=QUICK)
        classifier.fit(make_source(), epochs=1, seed=seed).save(tmp_path / f"{seed}.safetensors")
        return classifier

    def load_often():
        return [flat(Classifier.load(tmp_path / "1.safetensors").model_) for _ in range(8)]

    alone = [learn(seed) for seed in (1, 2)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(3) as threads:
        loads = threads.submit(load_often)
        together = list(threads.map(learn, (1, 2)))
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(flat(one.model_), flat(other.model_))
        assert not any(module.training for module in other.model_.modules())
        images = torch.rand(4, 1, 8, 8)
        assert torch.equal(other.model_(images), other.model_(images)), "dropout is off"
    assert all(torch.equal(found, flat(alone[0].model_)) for found in loads.result())


def test_the_same_seed_gives_the_same_weights(photos):
    first, again, other = (quick().fit(photos, epochs=2, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(flat(first.model_), flat(again.model_))
    assert not torch.equal(flat(first.model_), flat(other.model_))


def test_training_changes_no_random_number_of_the_caller(photos):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    quick().fit(photos, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # noqa: NPY002


def test_everything_that_is_an_image_is_predicted_alike(trained, tmp_path):
    path = image_file(tmp_path / "new", "red", 50)
    image, pixels = Image.open(path), read_image(path)
    expected = trained.predict(path)[0]
    assert expected.label == "red"
    assert expected.path == str(path)
    for given in (str(path), path.parent, image, pixels, [path], (p for p in [path])):
        (prediction,) = trained.predict(given)
        assert (prediction.label, prediction.top) == (expected.label, expected.top)
    mixed = trained.predict([path, image, pixels, path.parent])
    for prediction in mixed:
        assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert [prediction.path for prediction in mixed] == [str(path), "image 1", "image 2", str(path)]


def test_probabilities_are_in_the_order_of_the_classes(trained):
    images = [f"photos/{name}/00.png" for name in ("red", "blue", "green")]
    probabilities = trained.predict_proba(images)
    assert probabilities.shape == (3, 3)
    assert probabilities.sum(1) == pytest.approx(np.ones(3))
    labels = [trained.classes_[index] for index in probabilities.argmax(1)]
    assert labels == [prediction.label for prediction in trained.predict(images)] == ["red", "blue", "green"]


def test_what_stands_beside_an_image_changes_no_answer(trained):
    images = sorted(str(path) for path in (trained.run_.path / "../../photos").rglob("*.png"))
    together = trained.predict_proba(images)
    alone = np.concatenate([trained.predict_proba(image) for image in images[::7]])
    assert alone == pytest.approx(together[::7], abs=1e-5)


def test_a_bad_image_is_a_prediction_with_an_error(trained, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    first, second, third, fourth = trained.predict([bad, "photos/red/00.png", tmp_path / "gone.png", bad])
    assert [p.label for p in (first, third, fourth)] == [None] * 3
    assert [p.error is None for p in (first, second, third, fourth)] == [False, True, False, False]
    assert second.label == "red"
    with pytest.raises(DataError, match="no probabilities for images that cannot be read") as caught:
        trained.predict_proba([bad, "photos/red/00.png"])
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("given", [[], 3, [None], np.zeros((4, 4)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_image_is_refused(trained, given):
    with pytest.raises(DataError, match=r"expected|no images"):
        trained.predict(given)


def test_saved_and_loaded_gives_equal_probabilities(trained, tmp_path):
    trained.save(tmp_path / "mine.safetensors")
    trained.save(tmp_path)
    expected = trained.predict_proba("photos")
    for path in (tmp_path / "mine.safetensors", tmp_path, trained.run_.path, trained.run_.model):
        loaded = Classifier.load(path, device="cpu")
        assert np.array_equal(loaded.predict_proba("photos"), expected)
        assert loaded.classes_ == trained.classes_
        assert loaded.preprocess_ == trained.preprocess_


def test_a_loaded_classifier_is_saved_as_it_was(trained, tmp_path):
    Classifier.load(trained.run_.model).save(tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == trained.run_.model.read_bytes()


def test_the_model_file_says_how_good_the_model_is(trained):
    manifest = read_manifest(trained.run_.model)
    assert manifest.metrics["test"]["accuracy"] == trained.evaluate().accuracy
    assert manifest.metrics["test"]["split"] == trained.split_.digest
    assert manifest.weights["used"] == "none"
    assert manifest.data == "photos"


@pytest.mark.parametrize("part", ["test", "valid", "train"])
def test_predicting_the_images_of_a_part_gives_exactly_its_accuracy(trained, part):
    samples = trained.split_.samples(part)
    predictions = trained.predict([f"photos/{sample.ref}" for sample in samples])
    hits = sum(prediction.label == sample.label for prediction, sample in zip(predictions, samples, strict=True))
    for classifier in (trained, Classifier.load(trained.run_.path)):
        result = classifier.evaluate(part=part)
        assert (result.n, result.accuracy) == (len(samples), hits / len(samples))


def test_a_loaded_classifier_tests_on_the_test_images_of_its_run(trained):
    result = trained.evaluate()
    assert result.to_dict() == json.loads((trained.run_.path / "run.json").read_text())["metrics"]["test"]
    assert result.n == len(trained.split_.samples("test"))


def test_labeled_images_that_were_trained_on_are_left_out(trained, own):
    image_file(own / "photos" / "red", "red", 70)
    result = trained.evaluate("photos")
    assert result.n == len(trained.split_.samples("test")) + 1
    assert trained.evaluate("photos", part="all").n == 61
    moved = own / "elsewhere" / "red"
    moved.mkdir(parents=True)
    for sample in trained.split_.samples("train"):
        if sample.label == "red":
            shutil.copy(own / "photos" / sample.ref, moved)
    with pytest.raises(DataError, match="nothing to test on but training images of this model; --part all uses"):
        trained.evaluate(own / "elsewhere")


def test_other_images_are_matched_by_the_name_of_the_class(trained, tmp_path):
    for index in (60, 61, 62):
        image_file(tmp_path / "other" / "red", "red", index)
    image_file(tmp_path / "other" / "green", "green", 60)
    result = trained.evaluate(tmp_path / "other")
    assert (result.n, result.accuracy) == (4, 1.0)
    assert {row.name: row.support for row in result.per_class} == {"blue": 0, "green": 1, "red": 3}
    assert result.confusion == ((1, 1, 1), (2, 2, 3))


def test_a_source_with_another_order_of_classes_gives_the_same_result(trained, tmp_path):
    paths = [image_file(tmp_path, name, 60) for name in COLORS]

    class Reader:
        def open(self, ref, at_least=None):
            return read_image(tmp_path / ref)

        def digest(self, ref):
            return sha256((tmp_path / ref).read_bytes()).hexdigest()

    samples = tuple(Sample(path.name, path.name.split("-")[0]) for path in paths)
    result = trained.evaluate(Source("mine", ("red", "green", "blue"), samples, Reader()))
    assert (result.n, result.accuracy) == (3, 1.0)


def test_a_class_that_the_model_does_not_know_is_an_error(trained, tmp_path):
    image_file(tmp_path / "other" / "purple", "red", 60)
    image_file(tmp_path / "other" / "red", "red", 61)
    with pytest.raises(DataError, match="the model knows blue, green, red") as caught:
        trained.evaluate(tmp_path / "other")
    assert caught.value.problems == ("purple",)


def test_a_part_that_there_is_not_is_refused(trained):
    with pytest.raises(ConfigError, match="part is 'tests'; allowed: all, train, valid, test"):
        trained.evaluate(part="tests")
    with pytest.raises(ConfigError, match=r"part is \['test'\]; allowed"):
        trained.evaluate(part=["test"])


def test_the_usual_short_name_of_the_valid_part_works(trained):
    assert trained.evaluate(part="val") == trained.evaluate(part="valid") == trained.metrics_["valid"]


def test_results_and_runs_are_shown_in_one_line(trained):
    result = trained.evaluate()
    assert repr(result).startswith("Evaluation(n=")
    assert max(len(repr(result)), len(repr(trained.run_))) < 200


@pytest.mark.parametrize(
    "ask",
    [
        lambda classifier: classifier.predict("photos/red/00.png"),
        lambda classifier: classifier.predict_proba("photos/red/00.png"),
        lambda classifier: classifier.evaluate(),
        lambda classifier: classifier.evaluate("photos"),
        lambda classifier: classifier.save("m.safetensors"),
    ],
)
def test_nothing_is_known_before_fit(own, ask):
    with pytest.raises(NotFitted, match=r"call fit, or Classifier\.load"):
        ask(Classifier("lenet"))
    assert not (own / "m.safetensors").exists()


def test_a_classifier_from_a_run_knows_its_history_and_says_what_it_does_not_know(trained, tmp_path):
    loaded = Classifier.load(trained.run_.path)
    assert [record.valid_loss for record in loaded.history_] == [record.valid_loss for record in trained.history_]
    assert loaded.history_.ended == "done"
    trained.save(tmp_path / "alone.safetensors")
    with pytest.raises(NotFitted, match="has no history_: it is set by fit, or by loading a run"):
        print(Classifier.load(tmp_path / "alone.safetensors").history_)
    with pytest.raises(NotFitted, match="call fit"):
        print(Classifier().classes_)
    with pytest.raises(NotFitted, match="has no config_: it is set by fit only"):
        print(loaded.config_)


def test_everything_that_fit_sets_is_called_that_where_it_is_missing(photos, tmp_path):
    fitted = quick().fit(photos, epochs=1)
    fitted.save(tmp_path / "alone.safetensors")
    alone = Classifier.load(tmp_path / "alone.safetensors")
    results = [name for name in vars(fitted) if name.endswith("_") and name not in vars(Classifier)]
    for name in (*results, "temperature_"):
        with pytest.raises(NotFitted, match="call fit"):
            getattr(Classifier(), name)
        if not hasattr(alone, name):
            with pytest.raises(NotFitted, match=f"has no {name}: it is set by fit"):
                getattr(alone, name)


@pytest.mark.parametrize("name", ["clases_", "predictt", "_own", "__own__"])
def test_a_misspelled_name_is_no_result_that_fit_would_set(trained, name):
    for classifier in (trained, Classifier("lenet")):
        with pytest.raises(AttributeError, match=f"^'Classifier' object has no attribute '{name}'$") as caught:
            getattr(classifier, name)
        assert not isinstance(caught.value, NotFitted)
        assert (caught.value.name, caught.value.obj) == (name, classifier)  # with which Python suggests a name


def test_a_model_file_on_its_own_still_knows_what_it_learnt_from(trained, tmp_path):
    trained.save(tmp_path / "alone.safetensors")
    alone = Classifier.load(tmp_path / "alone.safetensors")
    with pytest.raises(NotFitted, match="name the labeled images"):
        alone.evaluate()
    assert alone.evaluate("photos") == trained.evaluate()
    assert alone.evaluate("photos", part="all").n == 60


def test_strange_files_beside_a_model_file_are_not_believed(own):
    (own / "elsewhere").mkdir()
    shutil.copy("runs/photos-lenet-1/model.safetensors", "elsewhere")
    for name, text in (("split.csv", "a,b\n1,2\n"), ("run.json", '{"hello": 1}')):
        (own / "elsewhere" / name).write_text(text)
        assert Classifier.load("elsewhere/model.safetensors").predict("photos/red/00.png")[0].error is None
    rows = (own / "runs/photos-lenet-1/split.csv").read_text().replace(",train,", ",test,", 1)
    (own / "elsewhere" / "split.csv").write_text(rows)
    shutil.copy("runs/photos-lenet-1/run.json", "elsewhere")
    assert not hasattr(Classifier.load("elsewhere"), "split_")


def test_a_run_works_from_another_working_folder(own, tmp_path, monkeypatch):
    info = json.loads((own / "runs/photos-lenet-1/run.json").read_text())
    monkeypatch.chdir(tmp_path)
    assert Classifier.load(own / "runs/photos-lenet-1").evaluate().n == 9
    assert Path(info["location"]).is_absolute()


def test_evaluation_names_what_it_cannot_read(own):
    for index in range(10):
        (own / "photos" / "red" / f"{index:02d}.png").write_bytes(b"no image")
    loaded = Classifier.load("runs/photos-lenet-1")
    assert loaded.evaluate("photos", part="all").n == 50
    assert sorted(loaded.unreadable_)[0] == "red/00.png"
    assert len(loaded.unreadable_) == 10


def test_a_failed_fit_leaves_no_model_and_the_best_epoch_on_the_disk(photos, in_folder):
    def stumble(event):
        if isinstance(event, StepEnded) and event.state.epoch == 1:
            raise RuntimeError("no more")

    classifier = quick()
    with pytest.raises(RuntimeError, match="no more"):
        classifier.fit(photos, epochs=3, runs="runs", callbacks=[stumble])
    with pytest.raises(NotFitted):
        classifier.predict(photos)
    assert Classifier.load("runs/photos-lenet-1").predict(photos / "red" / "00.png")[0].label in COLORS


def test_training_that_never_began_leaves_no_run(photos, in_folder):
    def interrupt(event):
        if isinstance(event, TrainingStarted):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick().fit(photos, epochs=1, runs="runs", callbacks=[interrupt])
    assert list((in_folder / "runs").iterdir()) == []


def test_what_should_not_be_missed_is_a_warning_in_python_whatever_the_callbacks(photos, tmp_path):
    (photos / "red" / "bad.png").write_bytes(b"no image")
    shutil.copy(photos / "red" / "00.png", photos / "blue" / "copy.png")
    (tmp_path / "mine.csv").write_text("path,label,split\nred/01.png,red,test\nred/02.png,blue,test\n")
    classifier = Classifier("lenet", size=16, config={**QUICK, "data": {"split_file": str(tmp_path / "mine.csv")}})
    events = []
    with warnings.catch_warnings(record=True, action="always") as caught:
        classifier.fit(photos, epochs=1, callbacks=[events.append])
    assert ImagesChecked in map(type, events)
    assert tuple(str(warning.message) for warning in caught) == classifier.findings_
    assert [finding.partition(":")[0] for finding in classifier.findings_] == [
        "1 image left out that can't be read",
        "identical images with different labels",
        "1 file relabeled, in the same split",
    ]
    assert {Path(warning.filename).name for warning in caught} == {"test_classifier.py"}
    (photos / "red" / "bad.png").unlink()
    (photos / "blue" / "copy.png").unlink()
    with pytest.warns(UserWarning, match="resnet18 is NOT pretrained"):
        Classifier("resnet18", size=32).fit(photos, epochs=1, callbacks=[lambda event: None])


def test_unknown_names_are_answered_with_close_ones(photos):
    with pytest.raises(UnknownName, match="did you mean lenet"):
        Classifier("lennet").fit(photos)
    with pytest.raises(UnknownName, match="did you mean"):
        Classifier("lenet", recipe="digit").fit(photos)
    with pytest.raises(DataError, match="did you mean digits"):
        Classifier("lenet").fit("digit")
    with pytest.raises(ModelFileError, match="not found: expected a model file, a run"):
        Classifier.load(photos / "nothing.safetensors")


def my_network(spec):
    head = nn.Linear(spec.channels * spec.size[0] * spec.size[1], spec.classes)
    return nn.Sequential(nn.Flatten(), head)


def test_a_network_of_ones_own(photos, tmp_path):
    classifier = Classifier(my_network, size=8, config=QUICK).fit(photos, epochs=2, runs=tmp_path / "runs")
    assert classifier.model_config_.arch == "own:my_network"
    loaded = Classifier.load(classifier.run_.path, arch=my_network)
    assert np.array_equal(loaded.predict_proba(photos), classifier.predict_proba(photos))
    resumed = Classifier(lambda spec: my_network(spec)).resume(classifier.run_.path, epochs=3)
    assert len(resumed.history_) == 3


def test_a_pipeline_of_ones_own_is_stored_in_the_model_file(photos, tmp_path):
    import albumentations

    compose = albumentations.Compose([albumentations.HorizontalFlip(p=1.0), albumentations.Resize(16, 16)])
    classifier = quick(augment=compose).fit(photos, epochs=1)
    plain = quick().fit(photos, epochs=1)
    assert not torch.equal(flat(classifier.model_), flat(plain.model_))
    classifier.save(tmp_path / "m.safetensors")
    stored = Classifier.load(tmp_path / "m.safetensors").preprocess_.compose
    names = [step["__class_fullname__"] for step in stored["transform"]["transforms"]]
    assert [name.rpartition(".")[2] for name in names] == ["HorizontalFlip", "Resize"]
    assert classifier.preprocess_.steps == ()


def test_a_recipe_by_name_or_as_a_value(photos):
    by_name = Classifier(recipe="lab10-4", size=(16, 32)).fit(photos, epochs=1)
    by_value = Classifier(recipe=EXPERIMENTS.get("lab10-4"), size=(16, 32)).fit(photos, epochs=1)
    assert by_name.model_config_.arch == "cnn_imagefolder"
    assert by_name.config_ == by_value.config_
    own = ExperimentConfig("lenet", "none", train=TrainConfig(epochs=1, **EXACT))
    assert Classifier(recipe=own, size=16).fit(photos).config_.train.optimizer == "adamw"


def test_a_source_of_ones_own(make_source):
    source = make_source(n=20)
    classifier = quick().fit(source, epochs=16, batch_size=16)
    assert classifier.evaluate().accuracy > 0.8
    assert classifier.evaluate(source, part="train").accuracy > 0.9
    assert classifier.model_config_.channels == 1
    (prediction,) = classifier.predict(source.open("all/00000"))
    assert prediction.label == "a"


def test_data_that_bring_their_own_test_images_keep_them(make_source):
    source = make_source(n=20)
    placed = [replace(s, split="test" if i % 5 == 0 else "train") for i, s in enumerate(source.samples)]
    classifier = quick().fit(source.with_samples(placed), epochs=1)
    assert {s.ref for s in classifier.split_.samples("test")} == {s.ref for s in placed if s.split == "test"}
    assert classifier.evaluate(source.with_samples(placed)).n == 12


def interrupt_after(epoch):
    def callback(event):
        if isinstance(event, EpochEnded) and event.record.epoch == epoch:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("own_pipeline", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_weights(photos, in_folder, own_pipeline):
    import albumentations

    def training():
        """With every source of randomness: order, augmentation, dropout."""
        augment = albumentations.Compose([albumentations.HorizontalFlip()]) if own_pipeline else "standard"
        config = {"dropout": 0.3, "train": {**EXACT, "schedule": "onecycle", "optimizer": "sgd"}}
        return Classifier("cnn_keras", size=12, augment=augment, config=config)

    options = {"epochs": 4, "batch_size": 16, "runs": "runs"}
    whole = training().fit(photos, **options)
    cut = training().fit(photos, callbacks=[interrupt_after(2)], **options)
    assert cut.history_.ended == "interrupted"
    assert len(cut.history_) == 2
    assert Classifier.load(cut.run_.path).classes_ == cut.classes_
    resumed = Classifier().resume(cut.run_.path)
    assert resumed.run_.path == cut.run_.path
    assert [r.train_loss for r in resumed.history_] == [r.train_loss for r in whole.history_]
    assert torch.equal(flat(resumed.model_), flat(whole.model_))
    assert resumed.run_.info.status == "done"


def test_a_finished_run_goes_on_for_more_epochs(own):
    resumed = Classifier().resume("runs/photos-lenet-1", epochs=14)
    assert [record.epoch for record in resumed.history_] == list(range(1, 15))
    assert Classifier.load("runs/photos-lenet-1").evaluate() == resumed.evaluate()


def test_a_damaged_state_is_warned_of(own):
    (own / "runs" / "photos-lenet-1" / "checkpoint.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged .* the state before it") as caught:
        Classifier().resume("runs/photos-lenet-1", epochs=13)
    assert caught[0].filename == __file__


def test_an_interruption_in_the_first_step_leaves_nothing_to_keep(photos):
    def callback(event):
        if isinstance(event, TrainingStarted):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick().fit(photos, callbacks=[callback])


@pytest.mark.filterwarnings("ignore:exact copies", "ignore:1 file relabeled")
def test_a_run_does_not_go_on_with_other_images(own):
    (own / "photos" / "red" / "00.png").write_bytes((own / "photos" / "red" / "01.png").read_bytes())
    with pytest.raises(DataError, match="photos has changed since then: restore these images") as caught:
        Classifier().resume("runs/photos-lenet-1", epochs=50)
    assert caught.value.problems == ("red/00.png: changed",)


def test_a_run_goes_by_its_split_whatever_has_come_since(own):
    before = Classifier.load("runs/photos-lenet-1").evaluate()
    rows = read_split("runs/photos-lenet-1/split.csv")
    for index in range(3):
        color_image("red", 90 + index).save(own / "photos" / "red" / f"0-new-{index}.png")
    (own / "photos" / "pink").mkdir()
    color_image("red", 99).save(own / "photos" / "pink" / "one.png")
    for split in ("test", "train"):
        moved = own / "photos" / next(row.ref for row in rows if row.split == split)
        moved.rename(moved.with_name("zz.png" if split == "test" else "zy.png"))
    loaded, resumed = Classifier.load("runs/photos-lenet-1"), Classifier().resume("runs/photos-lenet-1", epochs=13)
    assert loaded.evaluate() == before
    assert loaded.evaluate(part="all").n == resumed.evaluate(part="all").n == len(rows)
    assert resumed.classes_ == loaded.classes_ == ("blue", "green", "red")
    assert resumed.split_.digest == loaded.split_.digest
    assert resumed.split_.notes[0].startswith("4 files new and left out: pink/one.png, red/0-new-0")
    assert resumed.split_.notes[1].startswith("2 files renamed: ")
    with pytest.raises(DataError, match="name no data to test on the run's own images"):
        loaded.evaluate("photos")


def test_only_a_network_of_ones_own_is_loaded_with_its_code(own):
    with pytest.raises(ConfigError, match=r"lenet.*leave out arch"):
        Classifier.load("runs/photos-lenet-1", arch=lambda classes: torch.nn.Linear(1, classes))


def test_a_second_fit_leaves_nothing_of_the_first(make_source):
    classifier = quick().fit(make_source())
    classifier.old_ = "of the first"
    with pytest.raises(DataError):
        classifier.fit("nowhere")
    assert not [name for name in vars(classifier) if name.endswith("_")]


def test_a_run_that_has_ended_asks_for_more_epochs(own):
    with pytest.raises(ConfigError, match=r"has finished \d+ epochs; train more with --epochs"):
        Classifier().resume("runs/photos-lenet-1")


def test_a_run_that_fails_says_so(photos, in_folder):
    def stumble(event):
        if isinstance(event, StepEnded):
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        quick().fit(photos, epochs=1, runs="runs", callbacks=[stumble])
    assert open_run(Path("runs/photos-lenet-1")).info.status == "failed"


def test_no_run_folder_is_made_inside_the_data(photos, monkeypatch):
    monkeypatch.chdir(photos)
    with pytest.raises(DataError, match="data folder, which is never written to"):
        quick().fit(".", epochs=1, runs="runs")
    assert not (photos / "runs").exists()


def test_a_run_on_a_source_of_ones_own_cannot_be_resumed(make_source, in_folder):
    run = quick().fit(make_source(), epochs=1, runs="runs").run_
    with pytest.raises(ConfigError, match=r"can.t be trained again"):
        Classifier().resume(run.path)


def test_a_run_whose_images_are_gone_says_where_they_were(photos, in_folder):
    run = quick().fit(photos, epochs=1, runs="runs").run_
    photos.rename(photos.with_name("elsewhere"))
    gone = rf"its images were in {re.escape(str(photos))}, which no longer exists"
    with pytest.raises(DataError, match=gone):
        Classifier().resume(run.path, epochs=2)
    with pytest.raises(DataError, match=gone):
        Classifier.load(run.path).evaluate()


def test_what_is_no_run_cannot_be_resumed(own):
    with pytest.raises(DataError, match="is not a run folder"):
        Classifier().resume("photos")
    for path in (own / "runs/photos-lenet-1").glob("checkpoint*"):
        path.unlink()
    with pytest.raises(ModelFileError, match="checkpoint"):
        Classifier().resume("runs/photos-lenet-1")


def state_of(folder):
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, None if path.is_dir() else path.read_bytes())
        for path in [folder, *folder.rglob("*")]
    }


def test_the_data_folder_is_never_touched(photos, in_folder):
    (photos / "red" / "bad.png").write_bytes(b"no image")
    (photos / ".DS_Store").write_bytes(b"")
    before = state_of(photos)
    with pytest.warns(UserWarning, match=r"red/bad\.png"):
        classifier = quick().fit(photos, epochs=1, runs="runs")
    classifier.evaluate()
    classifier.evaluate(photos)
    classifier.predict(photos)
    assert classifier.run_.info.unreadable == (("red/bad.png", "not an image of a known format"),)
    with pytest.warns(UserWarning, match=r"red/bad\.png"):
        Classifier().resume(classifier.run_.path, epochs=2)
    assert state_of(photos) == before


def probing(**train):
    """A small network that begins with a probe, whatever its weights are."""
    return Classifier("lenet", size=16, augment="none", config={"train": {"probe": True, **train}})


def test_a_probe_alone_is_a_classifier(photos, tmp_path):
    events = []
    classifier = probing(epochs=0).fit(photos, runs=tmp_path / "runs", callbacks=[events.append])
    assert len(classifier.history_) == 0
    assert classifier.probe_.images == len(classifier.split_.samples("train"))
    assert classifier.evaluate(part="train").accuracy > 0.9
    of_training = (ProbeFitted, TrainingStarted, BaselineMeasured, EpochEnded, TrainingEnded)
    assert [type(event) for event in events if isinstance(event, of_training)] == [*of_training[:3], TrainingEnded]
    assert Classifier.load(classifier.run_.path).evaluate().to_dict() == classifier.evaluate().to_dict()


def test_training_goes_on_from_a_probe_alone(photos, tmp_path):
    probe = probing(epochs=0).fit(photos, runs=tmp_path / "runs")
    whole = probing(epochs=2, seed=0).fit(photos)
    resumed = Classifier().resume(probe.run_.path, epochs=2)
    assert len(resumed.history_) == 2
    assert torch.equal(flat(resumed.model_), flat(whole.model_))


def test_training_that_does_worse_than_the_probe_is_not_kept(photos):
    probe = probing(epochs=0).fit(photos)
    worse = probing(epochs=1, lr=10.0, optimizer="sgd", momentum=0.0).fit(photos)
    assert not any(record.best for record in worse.history_)
    assert torch.equal(flat(worse.model_), flat(probe.model_))
    assert worse.metrics_["valid"].loss == probe.metrics_["valid"].loss


def test_a_run_with_a_probe_is_repeated_to_the_bit(photos, tmp_path):
    first = probing(epochs=1).fit(photos, runs=tmp_path / "runs")
    assert torch.equal(flat(Classifier().repeat(first.run_.path).model_), flat(first.model_))


def test_a_probe_needs_weights_to_stand_on(photos):
    with pytest.raises(ConfigError, match="0 epochs are a probe alone"):
        Classifier("lenet", size=16, recipe="probe").fit(photos)


def only_run(root):
    return next(path.parent for path in (root / "runs").glob("*/model.safetensors"))


def test_a_class_is_added_to_a_trained_model(own, tmp_path):
    run = only_run(own)
    photos, before = tmp_path / "more", Classifier.load(run)
    shutil.copytree(own / "photos", photos)
    (photos / "white").mkdir()
    for index in range(12):
        Image.new("RGB", (32, 24), (255, 255, 240 + index)).save(photos / "white" / f"{index}.png")
    with pytest.warns(UserWarning, match="adds white"):
        classifier = Classifier(init=run, config={"train": {**EXACT, "probe": False}}).fit(photos, epochs=1, lr=1e-9)
    assert (classifier.model_config_.arch, classifier.preprocess_.size) == ("lenet", (16, 16))
    assert classifier.classes_ == (*before.classes_, "white")
    assert "keeps 3 classes, adds white" in classifier.weights_.note
    known = {row.sha256: row.split for row in before.split_.rows}
    assert all(row.split == known.get(row.sha256, row.split) for row in classifier.split_.rows)
    row, old = classifier.classes_.index("red"), before.classes_.index("red")
    torch.testing.assert_close(head_of(classifier.model_).weight[row], head_of(before.model_).weight[old])
    with pytest.warns(UserWarning, match="adds white"):
        baseline = Classifier(init=run, config={"train": EXACT}).fit(photos, epochs=0)
    assert baseline.probe_.images == len(baseline.split_.samples("train"))
    assert math.isnan(baseline.probe_.accuracy), "it would be measured on what the network was trained on"
    assert baseline.probe_.note == "the network was trained on some of these images"
    assert {row.name: row.recall for row in baseline.evaluate().per_class} == dict.fromkeys(classifier.classes_, 1.0)


@pytest.mark.parametrize("start", ["weights", "init"])
def test_images_that_the_start_has_seen_are_named_where_they_are_judged_by(own, start):
    run, source = only_run(own), open_source(own / "photos")
    known = {content_key(row): row.split for row in Classifier.load(run).split_.rows}
    turned = {"train": "test", "valid": "train", "test": "train"}
    audited = audit(source).source
    divided = audited.with_samples(replace(s, split=turned[known[content_key(s)]]) for s in audited.samples)
    given = {"weights": str(run), **({"init": str(run)} if start == "init" else {})}
    with pytest.warns(UserWarning, match="figures will look better than they are"):
        (finding,) = open_and_split(Request(changes={"arch": "lenet", **given}), divided)[1].findings
    count = sum(split == "train" for split in known.values())
    assert f"was trained or validated on {count} images to validate or test on" in finding
    if start == "init":
        assert open_and_split(Request(changes={"arch": "lenet", **given}), source)[1].findings == ()


def test_what_is_gone_on_from_decides_the_network(own):
    with pytest.raises(ConfigError, match="leave out one of --arch and --init"):
        Classifier("cnn_cifar", init=only_run(own)).fit(own / "photos")


@pytest.mark.parametrize(("cache", "share"), [("disk", 1), ("ram", 0)])
def test_the_pixels_of_the_test_part_are_kept_where_those_of_training_are(photos, in_folder, cache, share):
    config = {"train": EXACT, "data": {"cache": cache}}
    classifier = Classifier("lenet", size=16, config=config).fit(photos, epochs=1, runs="runs")
    digests = [sample.sha256 for sample in classifier.samples_of()[1]]
    for way in (classifier, Classifier.load(classifier.run_.path)):
        first = way.evaluate()
        assert PixelCache(CacheFormat.of(classifier.preprocess_, train=False).settings()).holds(digests) == share * len(
            digests
        )
        assert way.evaluate() == first


def test_a_warning_is_about_the_line_of_the_user(photos):
    (photos / "red" / "bad.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"red/bad\.png") as caught:
        quick().fit(photos, epochs=1)
    assert caught[0].filename == __file__


def test_training_that_does_worse_than_the_model_it_goes_on_from_is_not_kept(own):
    run = only_run(own)
    photos, before = own / "photos", Classifier.load(run)
    classifier = Classifier(init=run, config={"train": {**EXACT, "optimizer": "sgd"}}).fit(photos, epochs=1, lr=50)
    assert torch.equal(flat(classifier.model_), flat(before.model_))


def test_a_model_file_away_from_its_run_keeps_what_it_learnt_from_in_train(own, tmp_path):
    run = only_run(own)
    file = shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors")
    learnt = {row.sha256 for row in Classifier.load(run).split_.rows if row.split != "test"}
    classifier = Classifier(init=file, config={"train": EXACT}).fit(own / "photos", epochs=1)
    assert {row.sha256 for row in classifier.split_.samples("train")} >= learnt


def test_what_is_no_model_cannot_be_gone_on_from(photos, tmp_path):
    with pytest.raises(ModelFileError, match="no such model file"):
        Classifier(init=tmp_path / "nothing").fit(photos)


def test_a_run_goes_on_without_the_model_that_it_began_from(own):
    first = only_run(own)
    file = shutil.copy(first / "model.safetensors", own / "start.safetensors")
    second = Classifier(init=file, config={"train": EXACT}).fit(own / "photos", epochs=1, runs=own / "runs")
    Path(file).unlink()
    assert len(Classifier().resume(second.run_.path, epochs=2).history_) == 2


@pytest.mark.filterwarnings("ignore:(train|valid) and test share", "ignore:test/b/other.bmp is the only BMP")
def test_all_images_of_the_test_folder_are_tested_and_those_that_training_saw_are_counted(tmp_path, in_folder):
    for number, (split, label) in enumerate((s, c) for s in ("train", "valid", "test") for c in "ab"):
        for i in range(4):
            path = tmp_path / "data" / split / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng([number, i]).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    data = tmp_path / "data"
    shutil.copy(data / "train" / "a" / "0.png", data / "test" / "a" / "0.png")
    Image.open(data / "train" / "b" / "1.png").save(data / "test" / "b" / "other.bmp")
    shutil.copy(data / "valid" / "b" / "2.png", data / "test" / "b" / "2.png")
    classifier = quick().fit(data, epochs=1, runs="runs", name="leaky")
    expected = {f"test/a/{i}.png" for i in range(4)} | {f"test/b/{i}.png" for i in range(4)} | {"test/b/other.bmp"}
    for model in (classifier, Classifier.load("runs/leaky")):
        result = model.evaluate()
        assert (result.n, result.seen, result.unseen.n) == (9, 3, 6)
        assert set(model.predictions_["test"].refs) == expected
        assert len(model.predictions_["test"].refs) == 9
    with pytest.raises(DataError, match="lies inside the data"):
        classifier.save(data / "train")
    classifier.save("saved.safetensors")
    figures = read_manifest("saved.safetensors").metrics["test"]
    assert (figures["seen"], figures["unseen"]["n"], "confusion" in figures["unseen"]) == (3, 6, False)
    shutil.rmtree(data / "test")
    shutil.copytree(data / "valid", data / "test")
    result = quick().fit(data, epochs=1).evaluate()
    assert (result.n, result.seen, result.unseen) == (8, 8, None)


@pytest.mark.filterwarnings("ignore:identical images with different labels")
def test_the_range_of_images_of_more_than_8_bits_is_found_in_training_and_kept_in_the_model_file(tmp_path):
    """10 of the 16 bits of a file are used; the test images, which training does not see, are the brightest."""
    rng = np.random.default_rng(0)
    for split, brightest in (("train", 900), ("valid", 900), ("test", 1200)):
        for label, low in (("dim", 0), ("lit", 512)):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(4):
                values = rng.integers(low, low + brightest - 512, (16, 16)).astype(np.uint16)
                Image.fromarray(values).save(tmp_path / "data" / split / label / f"{number}.png")
    classifier = quick().fit(tmp_path / "data", epochs=1)
    classifier.save(tmp_path)
    loaded = Classifier.load(tmp_path)
    assert classifier.preprocess_.levels == loaded.preprocess_.levels == (Levels("integer", 0, 1023),)
    said = {choice.name: choice for choice in classifier.decisions_}["levels"]
    assert (said.value, said.reason) == (
        "0 to 1023",
        "become 0 to 255; 8 of 8 training images have more than 8 bits",
    )
    file = tmp_path / "data" / "test" / "lit" / "0.png"
    scaled = np.rint(np.asarray(Image.open(file)).clip(0, 1023) * (255 / 1023)).astype(np.uint8)
    expected = classifier.predict_proba(scaled)
    color = tmp_path / "color.tif"
    cv2.imwrite(str(color), np.asarray(Image.open(file))[..., None].repeat(3, 2))
    for model in (classifier, loaded):
        for image in (file, color, Image.open(file), Image.fromarray(scaled)):
            assert np.array_equal(model.predict_proba(image), expected)
    assert np.array_equal(loaded.explain(file)[0].pixels, scaled[..., None])
    for label in ("dim", "lit"):
        (tmp_path / "far" / label).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "far" / label / f"{label}.png"), rng.integers(0, 60000, (16, 16, 3), np.uint16))
    far = r"^2 images hold values of \d+ to 59\d\d\d, but training saw 0 to 1023: predictions may be wrong$"
    with pytest.warns(UserWarning, match=far):
        classifier.predict([tmp_path / "far", file])
    with pytest.warns(UserWarning, match=far):
        classifier.evaluate(tmp_path / "far", part="all")
    loaded.preprocess_ = replace(loaded.preprocess_, levels=())  # as of a model that saw 8 bits only
    with pytest.warns(UserWarning, match="^1 image holds values of .*, but training saw 0 to 255: "):
        loaded.predict([color, Image.fromarray(scaled)])
    loaded = Classifier.load(tmp_path)
    for label in ("dim", "lit"):  # a model that goes on, with images of 12 bits, keeps its range
        Image.fromarray(np.full((16, 16), 4000, np.uint16)).save(tmp_path / "data" / "train" / label / "bright.png")
    requests = [Request(changes=changes) for changes in ({"init": str(tmp_path)}, {"arch": "lenet"})]
    plans = [plan_training(request, tmp_path / "data") for request in requests]
    assert [plan.preprocess.levels for plan in plans] == [loaded.preprocess_.levels, (Levels("integer", 0, 4095),)]
