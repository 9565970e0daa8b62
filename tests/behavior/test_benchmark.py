"""The stages of training are measured, and the bottleneck is named with what to change."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from imgclf.runtime.device import cores, machine
from imgclf.studies.benchmark import STAGES, benchmark, half_pixels, size_text
from imgclf.training.events import Progressed
from support.events import on

CONFIG = {"arch": "lenet", "size": (16, 16), "weights": "none", "train": {"batch_size": 8, "device": "cpu"}}


def test_every_stage_of_a_folder_is_measured(photos):
    before = sorted(photos.rglob("*"))
    told = []
    result = benchmark(photos, config=CONFIG, seconds=0.05, callbacks=[on(Progressed, told.append)])
    assert [stage.name for stage in result.stages] == list(STAGES)
    assert [event.task for event in told if "measuring" in event.task] == [f"measuring {name}" for name in STAGES]
    assert all(stage.images_per_second > 0 for stage in result.stages)
    assert result.bottleneck in {"reading", "decoding", "augmenting", "step"}
    assert result.advice
    whole = result.stages[-1].images_per_second
    assert result.facts["epoch_seconds"] == pytest.approx(result.facts["images"] / whole)
    assert json.loads(json.dumps(result.to_dict()))["facts"]["cache"] == "ram"
    assert sorted(photos.rglob("*")) == before


def test_a_set_in_memory_is_neither_read_nor_decoded(make_source, in_folder):
    result = benchmark(make_source(), config={**CONFIG, "arch": "cnn_zero_to_all"}, seconds=0.05)
    assert [stage.name for stage in result.stages] == ["augmenting", "feeding", "step", "whole"]
    assert list(Path().iterdir()) == []


def test_slow_files_are_the_bottleneck_where_nothing_is_cached(make_source):
    source = make_source()

    class Slow:
        def __getattr__(self, name):
            return getattr(source.reader, name)

        def open(self, ref, at_least=None):
            time.sleep(0.01)
            return source.reader.open(ref, at_least)

    slow = replace(source, reader=Slow())
    result = benchmark(slow, config={**CONFIG, "data": {"cache": "off"}}, seconds=0.05)
    assert result.bottleneck == "decoding"
    assert "--cache ram" in result.advice[0]


@pytest.mark.parametrize(
    ("bottleneck", "advice"),
    [
        ("reading", ("copy the images to a faster disk, or keep them decoded: --cache disk",)),
        ("augmenting", ("use fewer or simpler augmentations: --augment light",)),
        ("step", ("smaller images: --size 48 takes about half the time", "a smaller network")),
    ],
)
def test_each_bottleneck_has_its_advice(make_source, monkeypatch, bottleneck, advice):
    monkeypatch.setattr("imgclf.studies.benchmark._bottleneck", lambda *_: bottleneck)
    config = {**CONFIG, "size": (64, 64), "train": {**CONFIG["train"], "precision": "bf16"}}
    given = benchmark(make_source(), config=config, seconds=0.01).advice
    assert all(any(text.startswith(part) for text in given) for part in advice)
    assert not any("half precision" in text for text in given)


def test_the_machine_is_described(monkeypatch):
    facts = machine()
    assert facts["cores"] == cores() >= 1
    assert facts["processes"] == 1
    assert json.loads(json.dumps(facts)) == facts
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert cores() == 1


@pytest.mark.parametrize("side", [64, 100, 223, 224, 256, 384, 1024])
def test_smaller_images_have_about_half_the_pixels_and_can_be_halved(side):
    assert 0.4 <= (half_pixels(side) / side) ** 2 <= 0.6
    assert half_pixels(side) % 8 == 0


def test_a_size_is_named_as_it_is_typed():
    assert (size_text(160, 160), size_text(96, 160)) == ("160", "96x160")
