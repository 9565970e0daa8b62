"""What training chooses by itself."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.errors import ConfigError
from imgclf.specs import OPTIMIZERS, TrainConfig
from imgclf.training.auto import resolve_config


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_the_user_chose_stays(pretrained, optimizer):
    config = TrainConfig(epochs=3, lr=0.123, warmup_epochs=0.25, freeze_norm=not pretrained, optimizer=optimizer)
    config = replace(config, probe=not pretrained)
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
    assert replace(found, probe=None, epochs=None, lr=None, freeze_norm=None, warmup_epochs=None) == config


@pytest.mark.parametrize("pretrained", [True, False])
def test_more_images_need_fewer_epochs(pretrained):
    epochs = [resolve_config(TrainConfig(), pretrained=pretrained, images=n).epochs for n in (10, 500, 3000, 10**6)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[-1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pretrained_weights_are_changed_more_slowly(optimizer):
    config = TrainConfig(optimizer=optimizer)
    tuned, scratch = (resolve_config(config, pretrained=p, images=100).lr for p in (True, False))
    assert tuned < scratch


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
    with pytest.raises(ConfigError, match="needs published weights"):
        resolve_config(TrainConfig(epochs=0), pretrained=False, images=100)
