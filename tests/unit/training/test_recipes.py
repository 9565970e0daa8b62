"""The named recipes: the course documents' own settings, each of which runs."""

import pytest

from imgclf.core.config import ExperimentConfig, from_dict, to_dict
from imgclf.models.backbones import find_arch
from imgclf.training.defaults import resolve_config
from imgclf.training.recipes import EXPERIMENTS
from support.plans import plan_of

# What the documents say: architecture; optimizer, lr, momentum; batch, epochs; size; one of mean and std; and what is
# special to one of them.
DOCUMENTS = {
    "d0": ("cnn_zero_to_all", ("sgd", 0.01, 0.5), (64, 9), (28, 28), (0.0, 1.0), {}),
    "d1": ("lenet", ("sgd", 0.001, 0.9), (128, 21), (28, 28), (0.0, 1.0), {}),
    "d3": ("cnn_two_layer", ("adam", 0.001, 0.9), (100, 15), (28, 28), (0.0, 1.0), {"drop_last": True, "seed": 777}),
    "lab10-2": ("cnn_deep", ("adam", 0.001, 0.9), (100, 15), (28, 28), (0.0, 1.0), {"drop_last": True, "seed": 777}),
    "d3-keras": ("cnn_keras", ("adam", 0.001, 0.9), (100, 15), (28, 28), (0.0, 1.0), {}),
    "d4": ("cnn_cifar", ("sgd", 0.01, 0.0), (20, 30), (32, 32), (0.5, 0.5), {}),
    "lab10-4": ("cnn_imagefolder", ("adam", 0.00005, 0.9), (8, 7), (64, 128), (0.0, 1.0), {}),
    "lab10-5": (
        "vgg16_cifar_lab",
        ("sgd", 0.005, 0.9),
        (512, 50),
        (32, 32),
        (0.5, 0.5),
        {"schedule": "step", "step_epochs": 5, "gamma": 0.9},
    ),
    "lab10-6": (
        "resnet50_cifar_lab",
        ("sgd", 0.1, 0.9),
        (256, 150),
        (32, 32),
        (0.4914, 0.2470),
        {"schedule": "step", "step_epochs": 10, "gamma": 0.5, "weight_decay": 5e-4},
    ),
}
# What none of the documents does, except where it says so above.
PLAIN = {
    "schedule": "constant",
    "weight_decay": 0.0,
    "nesterov": False,
    "warmup_epochs": 0.0,
    "label_smoothing": 0.0,
    "clip_norm": 0.0,
    "freeze_epochs": 0,
    "patience": 0,
    "class_weights": "none",
    "drop_last": False,
    "precision": "fp32",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_recipe_of_a_document_has_its_settings(name):
    arch, (optimizer, lr, momentum), (batch_size, epochs), size, (mean, std), special = DOCUMENTS[name]
    experiment = EXPERIMENTS.get(name)
    assert (experiment.arch, experiment.weights, experiment.size) == (arch, "none", size)
    assert (experiment.mean[0], experiment.std[0]) == (mean, std)
    config = to_dict(resolve_config(experiment.train, pretrained=False, images=50_000))
    expected = {"optimizer": optimizer, "lr": lr, "batch_size": batch_size, "epochs": epochs} | PLAIN | special
    assert {key: config[key] for key in expected} == expected
    assert config["momentum"] == momentum
    assert experiment.channels == (1 if size == (28, 28) else 3)
    assert find_arch(arch).size == size


def test_only_lab10_6_augments_and_only_the_keras_version_keeps_every_epoch():
    recipes = {name: EXPERIMENTS.get(name) for name in DOCUMENTS}
    assert {name: r.augment for name, r in recipes.items() if r.augment != "none"} == {"lab10-6": "shifts"}
    assert [name for name, r in recipes.items() if r.keep == "all"] == ["d3-keras"]


@pytest.mark.parametrize(
    ("name", "valid"), [("d0", 1 / 12), ("d1", 1 / 12), ("d4", 0.2), ("lab10-6", 0.1), ("speedrun", 0.02)]
)
def test_what_is_not_test_is_parted_into_train_and_valid(name, valid):
    train_part, valid_part, test_part = EXPERIMENTS.get(name).split
    assert valid_part / (train_part + valid_part) == pytest.approx(valid)
    assert test_part == pytest.approx(0.15)


def test_the_speed_recipe_has_the_rates_of_its_paper():
    experiment = EXPERIMENTS.get("speedrun")
    config = experiment.train
    kilosteps = 1024 * (1 + 1 / (1 - config.momentum))  # the paper's rates are for this many images and a summed loss
    assert config.lr == pytest.approx(11.5 / kilosteps * config.batch_size, rel=0.03)
    assert config.lr * config.weight_decay == pytest.approx(0.0153 / kilosteps * config.batch_size, rel=0.03)
    assert (config.optimizer, config.momentum, config.nesterov) == ("sgd", 0.85, True)
    assert (config.schedule, config.label_smoothing, config.precision) == ("onecycle", 0.2, "auto")
    assert (experiment.arch, experiment.weights, experiment.size) == ("speednet", "none", (32, 32))
    views = {name: EXPERIMENTS.get(name).tta for name in EXPERIMENTS.names() if EXPERIMENTS.get(name).tta != "none"}
    assert views == {"speedrun": "mirror-shift", "speedrun-small": "mirror"}


def test_the_speed_recipe_shifts_and_flips_by_turns(make_source):
    source = make_source(n=2, classes=2)
    recipe = plan_of(EXPERIMENTS.get("speedrun"), source).preprocess
    assert [(step.op, dict(step.params)) for step in recipe.steps] == [
        ("random_crop", {"padding": 2, "border": "reflect"}),
        ("alternating_flip", {}),
    ]
    assert recipe.tta == "mirror-shift"


@pytest.mark.parametrize("name", EXPERIMENTS.names())
def test_every_recipe_goes_to_a_file_and_back(name):
    experiment = EXPERIMENTS.get(name)
    assert from_dict(ExperimentConfig, to_dict(experiment)) == experiment
    assert experiment.train.epochs is not None
    assert experiment.train.lr is not None or experiment.train.epochs == 0
