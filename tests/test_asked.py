"""What a user asked for becomes changes of an experiment."""

import pytest
from torch import nn

from imgclf.asked import changes_of, register_builder
from imgclf.errors import ConfigError

NOTHING = dict.fromkeys(("arch", "weights", "init", "size", "augment", "config"))


def test_what_is_left_out_changes_nothing():
    assert changes_of(NOTHING, {"epochs": None, "lr": None}) == (None, {"train": {}})


def test_the_knobs_of_fit_go_before_the_config():
    given = {**NOTHING, "config": {"fit": "pad", "train": {"lr": 0.1, "momentum": 0.5}}}
    _, changes = changes_of(given, {"lr": 0.2, "batch_size": "auto"})
    assert changes == {"fit": "pad", "train": {"lr": 0.2, "momentum": 0.5, "batch_size": 0}}


def test_one_side_is_a_square():
    assert changes_of({**NOTHING, "size": 64}, {})[1]["size"] == (64, 64)


def test_a_pipeline_is_stored_and_no_preset():
    albumentations = pytest.importorskip("albumentations")
    compose, changes = changes_of({**NOTHING, "augment": albumentations.Compose([albumentations.HorizontalFlip()])}, {})
    assert compose is not None
    assert "augment" not in changes


def test_a_name_stands_for_one_function():
    def a_net_of_mine(spec):
        return nn.Linear(spec.classes, 1)

    assert register_builder(a_net_of_mine) == "a_net_of_mine"
    assert register_builder(a_net_of_mine) == "a_net_of_mine"
    other = type("other", (), {"__call__": lambda self, spec: nn.Linear(1, 1)})()
    other.__name__ = "a_net_of_mine"
    with pytest.raises(ConfigError, match="another name"):
        register_builder(other)
    with pytest.raises(ConfigError, match="a plain name"):
        register_builder(lambda spec: nn.Linear(1, 1))
