"""Batches: the same for any number of workers, never a wrong image."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imgclf.data.images import BadImage
from imgclf.data.loader import UNLABELLED, Loader, default_workers, epoch_order, sample_seed
from imgclf.data.open import open_source
from imgclf.data.source import ArrayReader, Sample, Source
from imgclf.errors import ConfigError, DataError
from imgclf.specs import Recipe, Step
from imgclf.transforms.pixels import prepare
from imgclf.transforms.presets import preset_steps

SIZE = (8, 8)
AUGMENTED = Recipe(size=SIZE, steps=preset_steps("strong"))
PLAIN = Recipe(size=SIZE)


def loader_of(source, recipe=AUGMENTED, **options):
    options = {"classes": source.classes, "batch_size": 7, "train": True, "seed": 3} | options
    return Loader(source, source.samples, recipe, **options)


def same(left, right):
    left, right = list(left), list(right)
    return len(left) == len(right) and all(
        torch.equal(a, b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.fixture
def source(photos):
    return open_source(photos)


@pytest.mark.parametrize("preset", ["strong", "light"])
def test_the_number_of_workers_changes_no_batch(source, preset):
    recipe = replace(AUGMENTED, steps=preset_steps(preset))
    alone = [list(loader_of(source, recipe, workers=0).epoch(epoch)) for epoch in range(2)]
    for workers in (1, 4):
        loader = loader_of(source, recipe, workers=workers)
        assert all(same(loader.epoch(epoch), alone[epoch]) for epoch in range(2))


@pytest.mark.parametrize("workers", [0, 4])
def test_what_is_kept_in_memory_changes_no_batch(source, workers):
    kept, read_again = loader_of(source, workers=workers), loader_of(source, workers=workers, keep=False)
    assert all(same(kept.epoch(epoch), read_again.epoch(epoch)) for epoch in (0, 1, 0))


def test_epochs_differ_in_order_and_in_pixels(source):
    loader = loader_of(source, workers=0)
    first, second = (list(loader.epoch(epoch)) for epoch in range(2))
    orders = [torch.cat([batch.positions for batch in epoch]).tolist() for epoch in (first, second)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(60))
    pixels = [
        {int(i): p for batch in epoch for i, p in zip(batch.positions, batch.pixels, strict=True)}
        for epoch in (first, second)
    ]
    assert sum(not torch.equal(pixels[0][i], pixels[1][i]) for i in range(60)) > 50


def test_another_seed_gives_other_batches(source):
    assert not same(loader_of(source, workers=0).epoch(), loader_of(source, workers=0, seed=4).epoch())


@pytest.mark.parametrize("workers", [0, 3])
def test_an_epoch_can_begin_anywhere(source, workers):
    whole = list(loader_of(source, workers=workers).epoch(5))
    for start in (0, 1, 4, len(whole)):
        assert same(loader_of(source, workers=workers).epoch(5, start=start), whole[start:])


def test_without_training_samples_come_in_their_order_as_evaluation_pixels(source):
    batches = list(loader_of(source, train=False, workers=2).epoch(4))
    assert torch.cat([batch.positions for batch in batches]).tolist() == list(range(60))
    pixels = torch.cat([batch.pixels for batch in batches]).numpy()
    expected = np.stack([prepare(source.open(sample.ref), PLAIN) for sample in source.samples])
    assert (pixels == expected).all()
    assert pixels.dtype == np.uint8
    labels = [source.classes[i] for batch in batches for i in batch.targets]
    assert labels == [sample.label for sample in source.samples]


def test_what_comes_before_a_first_random_crop_is_the_whole_image():
    halves = np.zeros((1, 100, 100, 3), np.uint8)
    halves[:, :, 50:] = 255
    source = Source("halves", ("a",), (Sample("all/0", "a"),), ArrayReader({"all": halves}))
    crop = Step("resized_crop", {"scale": [0.04, 0.04], "ratio": [1.0, 1.0]})
    loader = loader_of(source, Recipe(size=SIZE, steps=(crop,)))
    levels = {int(batch.pixels.float().mean()) for epoch in range(20) for batch in loader.epoch(epoch)}
    assert {0, 255} <= levels


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("train", [False, True])
def test_a_file_that_is_gone_is_left_out_and_named(photos, workers, train):
    source = open_source(photos)
    gone = [source.samples[i].ref for i in (3, 30, 59)]
    before = {
        int(i): p for b in loader_of(source, train=train).epoch() for i, p in zip(b.positions, b.pixels, strict=True)
    }
    for ref in gone:
        (photos / ref).unlink()
    loader = loader_of(source, train=train, workers=workers)
    after = {int(i): p for b in loader.epoch() for i, p in zip(b.positions, b.pixels, strict=True)}
    assert set(after) == set(range(60)) - {3, 30, 59}
    assert all(torch.equal(after[i], before[i]) for i in after)
    assert loader.lost == dict.fromkeys(gone, "no such file")


def test_a_batch_of_which_nothing_is_left_is_no_batch(photos):
    source = open_source(photos)
    for sample in source.samples[:7]:
        (photos / sample.ref).unlink()
    batches = list(loader_of(source, train=False, workers=0).epoch())
    assert batches[0].positions.tolist() == list(range(7, 14))


def test_a_reader_that_fails_otherwise_is_not_hidden(make_source):
    class Broken:
        def open(self, ref, at_least=None):
            raise ZeroDivisionError

    source = replace(make_source(), reader=Broken())
    for workers in (0, 2):
        with pytest.raises(ZeroDivisionError):
            list(loader_of(source, workers=workers).epoch())


def test_an_error_of_the_pipeline_is_no_lost_image(make_source):
    recipe = Recipe(size=SIZE, channels=1, steps=(Step("flip", {"chance": 1}),))
    loader = loader_of(make_source(), recipe, workers=2)
    with pytest.raises(ConfigError, match="step 'flip'"):
        list(loader.epoch())
    assert loader.lost == {}


def test_an_epoch_that_is_given_up_ends_its_threads(source):
    import threading

    batches = loader_of(source, workers=3).epoch()
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("imgclf-loader")]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.booleans())
def test_steps_are_the_batches_that_come(n, batch_size, drop_last):
    pixels = np.zeros((n, 2, 2, 1), np.uint8)
    samples = tuple(Sample(f"all/{i}", "a") for i in range(n))
    source = Source("s", ("a",), samples, ArrayReader({"all": pixels}))
    loader = loader_of(source, Recipe(size=(2, 2), channels=1), batch_size=batch_size)
    sizes = [len(batch.targets) for batch in loader.epoch(drop_last=drop_last)]
    assert len(sizes) == loader.steps(drop_last)
    assert len(loader) == n
    if drop_last and n >= batch_size:
        assert set(sizes) == {batch_size}
        assert sum(sizes) == n - n % batch_size
    else:
        assert sum(sizes) == n


def test_samples_without_a_label(make_source):
    source = make_source()
    unknown = [replace(sample, label="") for sample in source.samples]
    loader = Loader(source, unknown, Recipe(size=SIZE, channels=1), classes=source.classes)
    assert {int(target) for batch in loader.epoch() for target in batch.targets} == {UNLABELLED}


def test_classes_are_matched_by_name(make_source):
    source = make_source()
    loader = loader_of(source, PLAIN, classes=("c", "x", "a", "b"), train=False)
    assert loader.targets[:3] == [2, 3, 0]


def test_classes_that_the_model_does_not_know(make_source):
    source = make_source()
    with pytest.raises(DataError, match="classes that the model does not know") as caught:
        loader_of(source, classes=("a", "b"))
    assert caught.value.problems == ("c",)


def test_what_lies_in_memory_needs_no_workers(source, make_source):
    assert default_workers(make_source()) == 0
    assert 1 <= default_workers(source) <= 8


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.text())
def test_the_seed_of_a_sample_is_a_function_of_seed_epoch_and_sample(seed, epoch, key):
    found = sample_seed(seed, epoch, key)
    assert 0 <= found < 2**32
    assert found == sample_seed(seed, epoch, key)
    assert found != sample_seed(seed, epoch + 1, key)
    assert found != sample_seed(seed, epoch, key + "x")


@given(st.integers(0, 2**63 - 1), st.integers(0, 100), st.integers(0, 50))
def test_an_order_holds_everyone_once(seed, epoch, n):
    order = epoch_order(seed, epoch, n)
    assert sorted(order) == list(range(n))
    assert order == epoch_order(seed, epoch, n)


def test_lost_images_carry_the_reason_of_the_reader(make_source):
    class Damaged(ArrayReader):
        def open(self, ref, at_least=None):
            raise BadImage("damaged PNG", ref)

    source = replace(make_source(), reader=Damaged({}))
    loader = loader_of(source, workers=0)
    assert not list(islice(loader.epoch(), 1))
    assert set(loader.lost.values()) == {"damaged PNG"}
