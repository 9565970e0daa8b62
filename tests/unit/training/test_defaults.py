"""What training chooses by itself."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.core.config import OPTIMIZERS, TrainConfig
from imgclf.core.errors import ConfigError
from imgclf.data.audit import Sizes
from imgclf.training.defaults import resolve_config, suited_resize_mode, suited_size


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_the_user_chose_stays(pretrained, optimizer):
    config = TrainConfig(epochs=3, lr=0.123, warmup_epochs=0.25, freeze_norm=not pretrained, optimizer=optimizer)
    config = replace(config, probe=not pretrained, class_weights="balanced", layer_decay=0.5, ema=0.5, head_scale=0.3)
    config = replace(config, freeze_stages=5)
    assert resolve_config(config, pretrained=pretrained, images=100, probe=pretrained) == config


@given(st.sampled_from(OPTIMIZERS), st.booleans(), st.integers(0, 10**6), st.integers(1, 4096))
def test_nothing_is_left_open_and_nothing_else_is_changed(optimizer, pretrained, images, batch_size):
    config = TrainConfig(optimizer=optimizer, batch_size=batch_size)
    found = resolve_config(config, pretrained=pretrained, images=images)
    low, high = (4, 8) if pretrained else (10, 30)
    assert low <= found.epochs <= high
    assert found.lr > 0
    assert found.warmup_epochs == 1, "of a cosine schedule, which is the default"
    assert found.freeze_norm is pretrained
    assert found.probe is False
    opened = {
        "probe": None,
        "epochs": None,
        "lr": None,
        "freeze_norm": None,
        "freeze_stages": None,
        "warmup_epochs": None,
        "layer_decay": None,
        "ema": None,
        "head_scale": None,
    }
    assert bool(found.ema) is pretrained
    assert found.head_scale == 1
    assert replace(found, **opened, class_weights=None) == config


@pytest.mark.parametrize(
    ("options", "start", "stages"),
    [
        ({}, {"pretrained": True}, 2),
        ({}, {"pretrained": False}, 0),
        ({"optimizer": "sgd"}, {"pretrained": True}, 0),
        ({"layer_decay": 1.0}, {"pretrained": True}, 0),
        ({"layer_decay": 0.7}, {"pretrained": True}, 2),
        ({}, {"pretrained": True, "batch_norms": False}, 0),
    ],
)
def test_stages_that_layer_decay_would_hardly_move_are_frozen(options, start, stages):
    assert resolve_config(TrainConfig(**options), images=100, **start).freeze_stages == stages


def test_training_after_a_probe_begins_less_sure():
    assert resolve_config(TrainConfig(), pretrained=True, images=100, probe=True).head_scale < 1


@pytest.mark.parametrize("pretrained", [True, False])
def test_more_images_need_fewer_epochs(pretrained):
    epochs = [resolve_config(TrainConfig(), pretrained=pretrained, images=n).epochs for n in (10, 500, 3000, 10**6)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[-1]


@pytest.mark.parametrize(("valid", "epochs"), [(0, 0), (19, 0), (20, 8), (None, 8)])
def test_too_few_valid_images_leave_the_baseline_as_it_is(valid, epochs):
    few = {"pretrained": True, "images": 50, "valid": valid}
    assert resolve_config(TrainConfig(), probe=True, **few).epochs == epochs
    assert resolve_config(TrainConfig(epochs=2), probe=True, **few).epochs == 2
    assert resolve_config(TrainConfig(), **few).epochs == 8, "there is no baseline"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pretrained_weights_are_changed_more_slowly(optimizer):
    config = TrainConfig(optimizer=optimizer)
    tuned, scratch = (resolve_config(config, pretrained=p, images=100).lr for p in (True, False))
    assert tuned < scratch


def test_a_network_without_batch_norms_gets_a_lower_rate_from_pretrained_weights():
    rates = {
        (optimizer, norms): resolve_config(
            TrainConfig(optimizer=optimizer), pretrained=True, images=100, batch_norms=norms
        ).lr
        for optimizer in ("adamw", "sgd")
        for norms in (True, False)
    }
    assert rates["adamw", False] < rates["adamw", True]
    assert rates["sgd", False] == rates["sgd", True]


@pytest.mark.parametrize("epochs", [1, 2, 4, 30])
def test_a_cosine_schedule_warms_up_for_at_most_a_quarter(epochs):
    found = resolve_config(TrainConfig(epochs=epochs, schedule="cosine"), pretrained=True, images=100)
    assert found.warmup_epochs == min(1, epochs / 4)


@pytest.mark.parametrize("schedule", ["constant", "step", "onecycle"])
def test_no_other_schedule_warms_up_unasked(schedule):
    config = TrainConfig(schedule=schedule)
    assert resolve_config(config, pretrained=True, images=100).warmup_epochs == 0
    asked = replace(config, warmup_epochs=2.0)
    assert resolve_config(asked, pretrained=True, images=100).warmup_epochs == 2


def test_a_network_that_can_begins_with_a_probe():
    assert resolve_config(TrainConfig(), pretrained=True, images=100, probe=True).probe


def test_a_probe_alone_of_a_network_that_has_none_is_refused():
    with pytest.raises(ConfigError, match="0 epochs are a probe alone"):
        resolve_config(TrainConfig(epochs=0), pretrained=False, images=100)


@pytest.mark.parametrize(("counts", "kind"), [((10, 10), "none"), ((10, 49), "none"), ((10, 50), "effective")])
def test_rare_classes_weigh_more_where_classes_are_uneven(counts, kind):
    assert resolve_config(TrainConfig(), pretrained=True, images=60, counts=counts).class_weights == kind


def sizes(height, width, aspects=(1.0, 1.0)):
    return Sizes((height, width), (height, width), (height, width), aspects)


@pytest.mark.parametrize(("side", "size"), [(3, 96), (28, 128), (32, 160), (40, 192), (45, 224), (500, 224)])
def test_small_images_are_worked_on_at_a_smaller_size(side, size):
    assert suited_size((224, 224), sizes(side, 2 * side), resizable=True) == (size, size)
    assert suited_size((224, 224), sizes(side, side), resizable=False) == (224, 224)
    assert suited_size((224, 224), None, resizable=True) == (224, 224)


@pytest.mark.parametrize(
    ("aspects", "resize_mode"),
    [((1, 1), "crop"), ((0.67, 1.5), "crop"), ((0.5, 1.0), "squash"), ((1.0, 3.0), "squash")],
)
def test_images_of_which_a_crop_would_leave_little_are_squashed(aspects, resize_mode):
    assert suited_resize_mode((224, 224), sizes(100, 100, aspects)) == resize_mode
    assert suited_resize_mode((224, 224), None) == "crop"


def test_the_shape_that_the_network_sees_counts():
    assert suited_resize_mode((64, 128), sizes(64, 128, (2.0, 2.0))) == "crop"
