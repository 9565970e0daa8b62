"""Batches: the same for any number of workers and wherever pixels are kept, never a wrong image."""

import os
import threading
from dataclasses import replace

import albumentations as A
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imgclf.core.config import AugmentStep, PreprocessConfig
from imgclf.core.errors import ConfigError, DataError, ImgclfError
from imgclf.data.audit import audit
from imgclf.data.dataset import ArrayReader, Sample, Source, open_prepared
from imgclf.data.images import BadImage
from imgclf.data.loading import pixel_store, prefetch
from imgclf.data.loading.loader import UNLABELED, Loader, epoch_order
from imgclf.data.loading.pixel_store import CacheFormat
from imgclf.data.loading.rows import sample_seed
from imgclf.data.sources.open import open_source
from imgclf.transforms.albumentations_pipeline import compose_to_dict
from imgclf.transforms.preprocess import prepare
from imgclf.transforms.presets import preset_steps

SIZE = (8, 8)
AUGMENTED = PreprocessConfig(size=SIZE, steps=preset_steps("strong"))
PLAIN = PreprocessConfig(size=SIZE)
MIXED = PreprocessConfig(size=SIZE, steps=(*preset_steps("light"), AugmentStep("mixup", {"alpha": 0.4, "p": 0.5})))
PADDED = PreprocessConfig(size=SIZE, resize_mode="pad", steps=preset_steps("strong"))
COMPOSED = PreprocessConfig(
    size=SIZE, compose=compose_to_dict(A.Compose([A.RandomResizedCrop(SIZE, (0.3, 1.0)), A.HorizontalFlip()]))
)
EXACT = ("device", "ram", "disk")


def loader_of(source, recipe=AUGMENTED, **options):
    options = {"classes": source.classes, "batch_size": 7, "train": True, "seed": 3} | options
    return Loader(source, source.samples, recipe, **options)


def same(left, right):
    left, right = list(left), list(right)
    return len(left) == len(right) and all(equal(one, other) for one, other in zip(left, right, strict=True))


def equal(one, other):
    """Whether batches, or parts of them, agree bit by bit."""
    if isinstance(one, tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def by_position(batches):
    return {int(i): p for batch in batches for i, p in zip(batch.positions, batch.pixels, strict=True)}


@pytest.fixture
def smooth(tmp_path):
    """Photos without detail, as JPEG of several shapes, so that what decoders and kernels lose is little."""
    rng = np.random.default_rng(1)
    for index, (height, width) in enumerate([(150, 200), (200, 150), (160, 160), (61, 83)] * 3):
        y, x = np.mgrid[:height, :width] / max(height, width)
        waves = [np.sin(3 * (y * a + x * b) + c) for a, b, c in rng.uniform(-1, 1, (3, 3))]
        folder = tmp_path / "smooth" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (127 + 110 * np.stack(waves, 2)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.jpg", quality=95, subsampling=0)
    return audit(open_source(tmp_path / "smooth")).source


@pytest.fixture
def source(photos):
    return open_source(photos)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [AUGMENTED, MIXED, PADDED, COMPOSED])
def test_neither_workers_nor_tiers_change_a_batch(smooth, recipe):
    first = [list(loader_of(smooth, recipe, workers=0, cache="ram").epoch(epoch)) for epoch in range(2)]
    for workers, cache in ((1, "device"), (2, "ram"), (4, "disk"), (0, "disk")):
        loader = loader_of(smooth, recipe, workers=workers, cache=cache)
        assert all(same(loader.epoch(epoch), first[epoch]) for epoch in (0, 1, 0)), (workers, cache)
    alone = loader_of(smooth, recipe, workers=0, cache="off")
    again = [list(alone.epoch(epoch)) for epoch in range(2)]
    loader = loader_of(smooth, recipe, workers=3, cache="off")
    assert all(same(loader.epoch(epoch), again[epoch]) for epoch in (0, 1, 0))


@settings(max_examples=15)
@given(st.integers(0, 2**63 - 1), st.sampled_from(["none", "light", "standard", "shifts-flips"]), st.integers(0, 4))
def test_any_seed_gives_the_same_batches_from_every_tier(seed, preset, workers):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 9, 8, 3), np.uint8)
    reader = ArrayReader({"all": pixels})
    samples = tuple(Sample(f"all/{i}", "a", sha256=reader.digest(f"all/{i}")) for i in range(10))
    source = Source("s", ("a",), samples, reader)
    recipe = PreprocessConfig(size=SIZE, steps=preset_steps(preset))
    loaders = [
        loader_of(source, recipe, seed=seed, workers=w, cache=c) for w, c in zip((0, workers, 0), EXACT, strict=True)
    ]
    for epoch in (0, 1):
        first, *others = [list(loader.epoch(epoch)) for loader in loaders]
        assert all(same(other, first) for other in others)


def test_without_a_cache_the_same_is_seen_but_for_what_decoders_lose(smooth):
    recipe = PreprocessConfig(size=(64, 64), steps=preset_steps("standard"))
    kept, decoded = (loader_of(smooth, recipe, cache=cache) for cache in ("ram", "off"))
    for epoch in range(3):
        left, right = by_position(kept.epoch(epoch)), by_position(decoded.epoch(epoch))
        for i in range(len(smooth)):
            assert (left[i].int() - right[i].int()).abs().float().mean() < 3.0, i
    other = by_position(decoded.epoch(3))
    assert np.mean([(left[i].int() - other[i].int()).abs().float().mean() for i in left]) > 10


@pytest.mark.parametrize("cache", ["auto", *EXACT, "off"])
@pytest.mark.parametrize("recipe", [PLAIN, PADDED, PreprocessConfig(size=(30, 20), channels=1, crop_pct=0.8)])
def test_evaluation_pixels_are_the_same_from_every_tier(smooth, recipe, cache):
    loader = loader_of(smooth, recipe, train=False, cache=cache)
    expected = np.stack([open_prepared(smooth, s.ref, recipe) for s in smooth.samples])
    for _ in range(2):
        assert (torch.cat([batch.pixels for batch in loader.epoch()]).numpy() == expected).all()


def test_a_set_in_memory_is_stacked_once_and_never_copied_again(make_source):
    source = make_source()
    loader = loader_of(source, PreprocessConfig(size=SIZE, channels=1), train=False)
    batches = list(loader.epoch())
    memory = loader._images.memory
    assert memory.full
    before = memory._tensor.data_ptr()
    batches[0].pixels.zero_()  # a batch is the caller's own
    again = torch.cat([batch.pixels for batch in loader.epoch()]).numpy()
    assert (again == np.stack([source.open(s.ref) for s in source.samples])).all()
    assert memory._tensor.data_ptr() == before


def test_parts_of_a_set_in_memory_that_lie_in_several_arrays():
    arrays = {"x": np.full((3, 8, 8, 1), 10, np.uint8), "y": np.full((3, 8, 8, 1), 20, np.uint8)}
    arrays["x"][:, 0, 0, 0] = arrays["y"][:, 0, 0, 0] = [0, 1, 2]
    refs = ["y/2", "x/0", "x/2", "y/00000"]
    source = Source("s", ("a",), tuple(Sample(ref, "a") for ref in refs), ArrayReader(arrays))
    (batch,) = loader_of(source, PreprocessConfig(size=SIZE, channels=1), train=False).epoch()
    assert batch.pixels[:, 0, 0, 0].tolist() == [2, 0, 2, 0]
    assert batch.pixels[:, 1, 1, 0].tolist() == [20, 10, 10, 20]


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("train", [False, True])
def test_the_shares_of_all_processes_are_the_whole(source, world, train):
    whole = list(loader_of(source, PLAIN, train=train).epoch(2))
    ranks = [list(loader_of(source, PLAIN, train=train, shard=(rank, world)).epoch(2)) for rank in range(world)]
    for step, batch in enumerate(whole):
        shares = [rank[step] for rank in ranks]
        assert [int(share.positions[0]) for share in shares if len(share.positions)] == batch.positions[:world].tolist()
        assert sorted(i for share in shares for i in share.positions.tolist()) == sorted(batch.positions.tolist())
        assert all(len(share.pixels) == len(share.targets) == len(share.positions) for share in shares)
    assert {len(rank) for rank in ranks} == {len(whole)}


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("cache", ["ram", "off"])
def test_images_are_blended_with_the_same_ones_by_any_number_of_processes(smooth, world, cache):
    def blended(shard):
        rows = {}
        for batch in loader_of(smooth, MIXED, shard=shard, cache=cache).epoch(2):
            for i, position in enumerate(batch.positions.tolist()):
                assert position not in rows
                rows[position] = batch.pixels[i], batch.targets[i], batch.mix.targets[i], batch.mix.share[i]
        return rows

    alone, together = blended((0, 1)), {}
    for rank in range(world):
        share = blended((rank, world))
        assert not share.keys() & together.keys()
        together |= share
    assert alone.keys() == together.keys()
    assert all(equal(alone[i], together[i]) for i in alone)


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


@pytest.mark.parametrize("cache", [*EXACT, "off"])
@pytest.mark.parametrize(("recipe", "lost"), [(MIXED, 0), (AUGMENTED, 2), (PADDED, 0)])
def test_what_training_keeps_can_be_evaluated_without_the_files(smooth, recipe, lost, cache):
    """Prepared images are those of an evaluation to the bit, whole ones were shrunk on the way."""
    plain = next(loader_of(smooth, recipe, train=False, batch_size=100).epoch())
    loader = loader_of(smooth, recipe, cache=cache)
    list(loader.epoch())
    chosen = [7, 0, 11]
    batches = list(loader.as_evaluated(chosen).epoch())
    assert torch.equal(torch.cat([batch.targets for batch in batches]), plain.targets[chosen])
    pixels, expected = torch.cat([batch.pixels for batch in batches]), plain.pixels[chosen]
    loss = (pixels.int() - expected.int()).abs().float().mean()
    assert loss <= lost
    if cache == "ram":
        for sample in smooth.samples:
            os.remove(smooth.reader.path(sample.ref))
        again = torch.cat([batch.pixels for batch in loader.as_evaluated(chosen).epoch()])
        assert torch.equal(again, pixels)


def test_each_process_evaluates_its_share_of_what_training_keeps(smooth):
    chosen, found = [7, 0, 11, 3, 4], {}
    for rank in range(3):
        loader = loader_of(smooth, shard=(rank, 3), batch_size=4)
        list(loader.epoch())  # it has kept no more than its share
        found |= by_position(loader.as_evaluated(chosen).epoch())
    alone = by_position(loader_of(smooth).as_evaluated(chosen).epoch())
    assert found.keys() == alone.keys() == set(range(5))
    assert all(torch.equal(found[i], alone[i]) for i in alone)


def test_an_image_that_training_lost_is_left_out_of_its_evaluation_too(photos):
    source = open_source(photos)
    (photos / source.samples[3].ref).unlink()
    loader = loader_of(source)
    (batch,) = loader.as_evaluated([2, 3, 4]).epoch()
    assert batch.positions.tolist() == [0, 2]
    assert loader.unreadable == {source.samples[3].ref: "no such file"}


def test_what_comes_before_a_first_random_crop_is_the_whole_image():
    halves = np.zeros((1, 100, 100, 3), np.uint8)
    halves[:, :, 50:] = 255
    source = Source("halves", ("a",), (Sample("all/0", "a"),), ArrayReader({"all": halves}))
    crop = AugmentStep("resized_crop", {"scale": [0.04, 0.04], "ratio": [1.0, 1.0]})
    loader = loader_of(source, PreprocessConfig(size=SIZE, steps=(crop,)))
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
    assert loader.unreadable == dict.fromkeys(gone, "no such file")


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["ram", "off", "disk"])
@pytest.mark.parametrize(("recipe", "train"), [(PLAIN, False), (AUGMENTED, True)])
def test_an_image_that_another_one_took_the_place_of_is_left_out_and_named(photos, cache, recipe, train):
    """Another class's photo, of any size and time, would be learnt under the old label, or kept for ever."""
    source = audit(open_source(photos)).source
    ref, content = source.samples[3].ref, (photos / source.samples[3].ref).read_bytes()
    before = by_position(loader_of(source, recipe, train=train, cache="off" if cache == "off" else "ram").epoch())
    os.replace(photos / source.samples[50].ref, photos / ref)
    loader = loader_of(source, recipe, train=train, cache=cache)
    assert 3 not in by_position(loader.epoch())
    assert loader.unreadable[ref] == "has changed since it was checked"
    (photos / ref).write_bytes(content)
    assert torch.equal(by_position(loader.epoch())[3], before[3])


@pytest.mark.parametrize("cache", ["ram", "off", "disk"])
def test_a_batch_of_which_nothing_is_left_comes_empty(photos, cache):
    source = open_source(photos)
    for sample in source.samples[:7]:
        (photos / sample.ref).unlink()
    for recipe, train in ((PLAIN, False), (MIXED, False)):
        batches = list(loader_of(source, recipe, train=train, workers=0, cache=cache).epoch())
        assert batches[0].pixels.shape == (0, 8, 8, 3)
        assert len(batches[0].targets) == len(batches[0].positions) == 0
        assert batches[1].positions.tolist() == list(range(7, 14))


def test_an_image_that_can_be_read_again_comes_back(photos):
    source = open_source(photos)
    path = photos / source.samples[4].ref
    content = path.read_bytes()
    path.unlink()
    loader = loader_of(source, PLAIN, train=False)
    assert set(by_position(loader.epoch())) == set(range(60)) - {4}
    path.write_bytes(content)
    assert set(by_position(loader.epoch())) == set(range(60))


@pytest.mark.slow
def test_a_disk_that_hangs_ends_the_run_and_names_the_file(make_source, monkeypatch):
    awake = threading.Event()

    class Hanging(ArrayReader):
        def open(self, ref, at_least=None):
            if ref == "all/00009":
                awake.wait(30)
            return super().open(ref)

    source = make_source()
    pixels = np.zeros((36, 8, 8, 1), np.uint8)
    monkeypatch.setattr(prefetch, "PATIENCE_SECONDS", 0.2)
    loader = loader_of(
        replace(source, reader=Hanging({"all": pixels})), PreprocessConfig(size=SIZE, channels=1), workers=2
    )
    try:
        with pytest.raises(ImgclfError, match=r"still reading after 0\.2 s: all/00009\. The disk"):
            list(loader.epoch())
    finally:
        awake.set()


def test_a_reader_that_fails_otherwise_is_not_hidden(make_source):
    class Broken:
        def open(self, ref, at_least=None):
            raise ZeroDivisionError

    source = replace(make_source(), reader=Broken())
    for workers in (0, 2):
        with pytest.raises(ZeroDivisionError):
            list(loader_of(source, workers=workers).epoch())


def test_an_error_of_the_pipeline_is_no_lost_image(make_source):
    recipe = PreprocessConfig(size=SIZE, channels=1, steps=(AugmentStep("flip", {"chance": 1}),))
    loader = loader_of(make_source(), recipe, workers=2)
    with pytest.raises(ConfigError, match="step 'flip'"):
        list(loader.epoch())
    assert loader.unreadable == {}


def test_an_epoch_that_is_given_up_ends_its_threads(source):
    batches = loader_of(source, workers=3).epoch()
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("imgclf-loader")]


@given(st.integers(1, 30), st.integers(1, 12), st.booleans())
def test_steps_are_the_batches_that_come(n, batch_size, drop_last):
    pixels = np.zeros((n, 2, 2, 1), np.uint8)
    samples = tuple(Sample(f"all/{i}", "a") for i in range(n))
    source = Source("s", ("a",), samples, ArrayReader({"all": pixels}))
    loader = loader_of(source, PreprocessConfig(size=(2, 2), channels=1), batch_size=batch_size)
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
    loader = Loader(source, unknown, PreprocessConfig(size=SIZE, channels=1), classes=source.classes)
    assert {int(target) for batch in loader.epoch() for target in batch.targets} == {UNLABELED}


def test_classes_are_matched_by_name(make_source):
    source = make_source()
    loader = loader_of(source, PLAIN, classes=("c", "x", "a", "b"), train=False)
    assert loader.targets[:3] == [2, 3, 0]


def test_classes_that_the_model_does_not_know(make_source):
    source = make_source()
    with pytest.raises(DataError, match="classes that the model does not know") as caught:
        loader_of(source, classes=("a", "b"))
    assert caught.value.problems == ("c",)


def test_threads_and_the_model_share_the_cores(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(prefetch, "cores", lambda: 4)
    for intra, expected in ((1, (3, 2)), (3, (1, 2)), (4, (4, 0)), (8, (4, 0))):
        monkeypatch.setattr(torch, "get_num_threads", lambda intra=intra: intra)
        assert prefetch.share_cores(cpu) == expected
        assert prefetch.share_cores(gpu) == (4, 2)


@pytest.mark.parametrize(("intra", "most"), [(1, 3), (2, 1)])
def test_no_more_batches_are_read_ahead_than_the_cores_allow(make_source, monkeypatch, intra, most):
    read = []

    class Counting(ArrayReader):
        def open(self, ref, at_least=None):
            read.append(ref)
            return super().open(ref)

    source = replace(make_source(), reader=Counting({"all": np.zeros((36, 8, 8, 1), np.uint8)}))
    monkeypatch.setattr(prefetch, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: intra)
    batches = loader_of(source, PreprocessConfig(size=SIZE, channels=1), batch_size=4, workers=2).epoch()
    for step in range(1, 4):
        next(batches)
        assert len(read) <= 4 * (step + most - 1)
    batches.close()


@pytest.mark.parametrize(
    ("memory", "disk", "train", "expected"),
    [
        *((10**9, 0, True, "ram"), (0, 10**9, True, "disk"), (0, 1000, True, "off")),
        *((0, 10**9, False, "disk"), (0, 500, False, "off")),
    ],
)
def test_a_tier_is_chosen_by_size(smooth, monkeypatch, memory, disk, train, expected):
    monkeypatch.setattr(pixel_store, "memory_budget", lambda: memory)
    monkeypatch.setenv("IMGCLF_CACHE_BUDGET", str(disk))
    recipe = PreprocessConfig(size=(128, 128), steps=preset_steps("strong"))
    loader = loader_of(smooth, recipe, train=train) if train else loader_of(smooth, PLAIN, train=False)
    assert loader.cache_level.name == expected
    assert str(loader.cache_level).startswith(f"{expected}: 12 images, ")
    assert loader_of(smooth, recipe, cache=expected).cache_level.name == expected


def test_an_accelerator_keeps_what_it_has_room_for(make_source, monkeypatch):
    source, recipe = make_source(), PreprocessConfig(size=SIZE, channels=1)
    for free, expected in ((36 * 64 * 2, "device"), (36 * 64, "ram")):
        monkeypatch.setattr(pixel_store, "_free_memory", lambda device, free=free: free)
        assert loader_of(source, recipe, device=torch.device("meta")).cache_level.name == expected


def test_the_size_of_whole_images_is_told_by_their_headers(smooth):
    form = CacheFormat.of(PreprocessConfig(size=(100, 100), steps=preset_steps("strong")), train=True)
    kept = [form.read(smooth, sample.ref) for sample in smooth.samples]
    assert {one.shape for one in kept} == {(150, 200), (200, 150), (160, 160), (61, 83)}
    mean = np.mean([one.pixels.nbytes for one in kept])
    assert form.bytes_each(smooth, smooth.samples) == pytest.approx(mean, rel=0.02)


def test_a_tier_that_is_none(make_source):
    with pytest.raises(ConfigError, match="cache is 'gpu'; allowed: auto, device"):
        loader_of(make_source(), cache="gpu")


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.text())
def test_the_seed_of_a_sample_is_a_function_of_seed_epoch_and_sample(seed, epoch, key):
    found = sample_seed(seed, epoch, key)
    assert 0 <= found < 2**32
    assert found == sample_seed(seed, epoch, key)
    assert found != sample_seed(seed, epoch + 1, key)
    assert found != sample_seed(seed, epoch, key + "x")


@given(st.integers(0, 2**63 - 1), st.integers(0, 100), st.integers(0, 50))
def test_an_order_holds_everyone_once(seed, epoch, n):
    order = epoch_order(seed, epoch, n).tolist()
    assert sorted(order) == list(range(n))
    assert order == epoch_order(seed, epoch, n).tolist()


@pytest.mark.parametrize("cache", ["ram", "off", "disk"])
def test_lost_images_carry_the_reason_of_the_reader(make_source, cache):
    class Damaged(ArrayReader):
        def open(self, ref, at_least=None):
            raise BadImage("damaged PNG", ref)

    source = replace(make_source(), reader=Damaged({}))
    loader = loader_of(source, workers=0, cache=cache)
    assert {len(batch.targets) for batch in loader.epoch()} == {0}
    assert set(loader.unreadable.values()) == {"damaged PNG"}


def test_crops_come_once(make_source):
    recipe = PreprocessConfig(size=SIZE, channels=1, steps=preset_steps("strong")[:1] * 2)
    with pytest.raises(ConfigError, match="2 steps are 'resized_crop'"):
        list(loader_of(make_source(), recipe).epoch())
