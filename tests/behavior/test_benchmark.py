"""What bounds training is measured, named, and answered with what to change."""

import json
from pathlib import Path

import pytest

from imgclf.runtime.device import cores, machine
from imgclf.studies.benchmark import _bound, _size, _smaller, benchmark

CHANGES = {"arch": "lenet", "size": (16, 16), "weights": "none", "train": {"batch_size": 8, "device": "cpu"}}


def test_every_stage_of_a_folder_is_measured(photos):
    before = sorted(photos.rglob("*"))
    stages = []
    result = benchmark(photos, CHANGES, seconds=0.05, progress=stages.append)
    assert [stage.name for stage in result.stages] == stages
    assert stages == ["reading", "decoding", "augmenting", "feeding", "step", "whole"]
    assert all(stage.images_per_second > 0 for stage in result.stages)
    assert result.bound in {"step", "augmenting", "decoding", "reading"}
    assert result.advice
    whole = result.stages[-1].images_per_second
    assert result.facts["epoch_seconds"] == pytest.approx(result.facts["images"] / whole)
    assert json.loads(json.dumps(result.to_dict()))["facts"]["cache"] == "ram"
    assert sorted(photos.rglob("*")) == before


def test_a_set_in_memory_is_neither_read_nor_decoded(make_source, in_folder):
    result = benchmark(make_source(), {**CHANGES, "size": (16, 16), "arch": "cnn_zero_to_all"}, seconds=0.05)
    assert [stage.name for stage in result.stages] == ["augmenting", "feeding", "step", "whole"]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("rates", "tier", "bound"),
    [
        ({"step": 10, "feeding": 100, "augmenting": 200}, "ram", "step"),
        ({"step": 300, "feeding": 100, "augmenting": 200, "decoding": 90}, "ram", "augmenting"),
        ({"step": 300, "feeding": 100, "augmenting": 200, "decoding": 90, "reading": 500}, "off", "decoding"),
        ({"step": 300, "feeding": 100, "augmenting": 200, "decoding": 90, "reading": 50}, "off", "reading"),
    ],
)
def test_the_slowest_of_what_still_happens_bounds(rates, tier, bound):
    assert _bound(rates, tier) == bound


def test_the_machine_is_described(monkeypatch):
    facts = machine()
    assert facts["cores"] == cores() >= 1
    assert facts["processes"] == 1
    assert json.loads(json.dumps(facts)) == facts
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert cores() == 1


@pytest.mark.parametrize("side", [*range(64, 300), 384, 512, 1024])
def test_smaller_images_have_about_half_the_pixels_and_can_be_halved(side):
    assert 0.4 <= (_smaller(side) / side) ** 2 <= 0.6
    assert _smaller(side) % 8 == 0


def test_a_size_is_named_as_it_is_typed():
    assert (_size(160, 160), _size(96, 160)) == ("160", "96x160")
