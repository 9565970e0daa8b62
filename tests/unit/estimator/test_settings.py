"""What a user asked for becomes changes of an experiment."""

import pytest
from torch import nn

from imgclf.core.errors import ConfigError
from imgclf.estimator.settings import Request, own_network, resolve_request

NAMES = ("arch", "weights", "init", "size", "augment", "recipe", "config", "pretrained", "mean", "std")
NOTHING = dict.fromkeys(NAMES)


def test_what_is_left_out_changes_nothing():
    assert resolve_request(NOTHING, {"epochs": None, "lr": None}) == Request(changes={"train": {}})


def test_the_knobs_of_fit_go_before_the_config():
    given = {**NOTHING, "config": {"resize_mode": "pad", "train": {"lr": 0.1, "momentum": 0.5}}}
    changes = resolve_request(given, {"lr": 0.2, "batch_size": "auto"}).changes
    assert changes == {"resize_mode": "pad", "train": {"lr": 0.2, "momentum": 0.5, "batch_size": 0}}


def test_one_side_is_a_square():
    assert resolve_request({**NOTHING, "size": 64}, {}).changes["size"] == (64, 64)


def test_a_pipeline_is_stored_and_no_preset():
    albumentations = pytest.importorskip("albumentations")
    pipeline = albumentations.Compose([albumentations.HorizontalFlip()])
    request = resolve_request({**NOTHING, "augment": pipeline}, {})
    assert request.compose is not None
    assert "augment" not in request.changes


def test_a_network_of_ones_own_goes_by_its_name():
    given = {**NOTHING, "arch": nn.Linear(1, 1)}
    assert resolve_request(given, {}).changes["arch"] == "own:Linear"
    assert own_network({**NOTHING, "arch": "lenet"}) is None
    assert own_network(given).weights is None


def test_a_pretrained_network_says_which_pixels_it_knows():
    given = {**NOTHING, "arch": nn.Linear(1, 1), "pretrained": True}
    with pytest.raises(ConfigError, match="needs the mean and the std"):
        own_network({**given, "mean": (0.5,)})
    assert own_network({**given, "mean": (0.5,), "config": {"std": (0.5,)}}).weights is not None
    with pytest.raises(ConfigError, match="weights='pretrained'"):
        own_network({**given, "arch": "resnet18"})
