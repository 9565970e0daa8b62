"""From what was asked to what is done."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from imgclf.core.config import DataConfig, ExperimentConfig, TrainConfig
from imgclf.core.errors import ConfigError, DataError, UnknownName
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.estimator.decisions import describe
from imgclf.estimator.events import DataSplit, ImagesChecked, SourceOpened
from imgclf.estimator.plan import open_and_split, plan_pixels
from imgclf.estimator.settings import Request, check_experiment, choose_experiment
from imgclf.models.backbones import find_arch
from imgclf.models.registry import ARCHS
from imgclf.storage.run_source import reading_options
from imgclf.training.events import Progressed
from imgclf.training.recipes import EXPERIMENTS
from imgclf.transforms.albumentations_pipeline import compose_to_dict
from support.plans import plan_of

LENET = ExperimentConfig(arch="lenet", weights="none", size=(16, 16))


def mixed_source(channels):
    """One image in memory for each number of channels."""
    reader = ArrayReader({f"{i}": np.zeros((1, 8, 8, n), np.uint8) for i, n in enumerate(channels)})
    samples = tuple(Sample(f"{i}/0", "ab"[i % 2]) for i in range(len(channels)))
    return Source("mixed", ("a", "b"), samples, reader)


def test_without_a_wish_the_experiment_is_the_one_that_suits_the_data():
    assert choose_experiment(Request(), "digits") == EXPERIMENTS.get("digits")
    assert choose_experiment(Request()) == ExperimentConfig()


def test_an_architecture_of_ones_own_choice_gets_the_defaults_and_not_the_data_sets_recipe():
    assert choose_experiment(Request(changes={"arch": "lenet"}), "digits") == ExperimentConfig(arch="lenet")


def test_a_recipe_goes_before_what_suits_the_data_and_changes_go_before_both():
    chosen = choose_experiment(Request("d0", {"train": {"epochs": 2}, "resize_mode": "pad"}), "digits")
    base = EXPERIMENTS.get("d0")
    assert chosen == replace(base, resize_mode="pad", train=replace(base.train, epochs=2))


def test_a_change_within_training_or_data_keeps_the_rest():
    base = ExperimentConfig(train=TrainConfig(lr=0.5, epochs=3), data=DataConfig(on_unreadable="error"))
    chosen = choose_experiment(Request(base, {"train": {"epochs": 9}, "data": {"data_dir": "here"}}))
    assert chosen.train == TrainConfig(lr=0.5, epochs=9)
    assert chosen.data == DataConfig(on_unreadable="error", data_dir="here")


def test_an_unknown_recipe_or_field_is_answered_with_a_close_match():
    with pytest.raises(UnknownName, match="did you mean digits"):
        choose_experiment(Request("digit"))
    with pytest.raises(ConfigError, match="unknown option 'archs'; did you mean arch"):
        choose_experiment(Request(changes={"archs": "lenet"}))
    with pytest.raises(ConfigError, match=r"unknown option 'epoch' in .train.; did you mean epochs"):
        choose_experiment(Request(changes={"train": {"epoch": 3}}))


@pytest.mark.parametrize(("channels", "expected"), [((1, 1), 1), ((3, 3), 3), ((1, 3), 3)])
def test_the_channels_are_those_of_the_data(channels, expected):
    assert plan_pixels(LENET, mixed_source(channels)).channels == expected


@pytest.mark.slow
def test_a_pretrained_backbone_keeps_its_own_channels():
    gray = mixed_source((1, 1))
    assert plan_pixels(ExperimentConfig("resnet18"), gray).channels == 3
    assert plan_pixels(ExperimentConfig("resnet18", weights="none"), gray).channels == 1
    assert plan_pixels(ExperimentConfig("resnet18", channels=1), gray).channels == 1


@pytest.mark.slow
def test_images_are_changed_less_where_training_starts_from_weights():
    def ops(experiment, source):
        return [step.op for step in plan_of(experiment, source).preprocess.steps]

    photos = mixed_source((3, 3))
    assert ops(ExperimentConfig("efficientnet_lite0", size=(96, 96)), photos) == ["affine", "flip"]
    assert ops(ExperimentConfig("efficientnet_lite0", size=(96, 96), weights="none"), photos)[0] == "resized_crop"
    assert ops(ExperimentConfig("efficientnet_lite0", size=(96, 96), augment="strong"), photos)[0] == "resized_crop"
    assert plan_of(LENET, photos).experiment.augment == "standard"


@pytest.mark.filterwarnings("ignore:resnet18 is NOT pretrained")
def test_where_the_weights_are_missing_training_is_from_scratch_in_all():
    plan = plan_of(ExperimentConfig("resnet18", size=(32, 32)), mixed_source((3, 3)))
    assert (plan.weights.used, plan.experiment.augment, plan.preprocess.steps[0].op) == (
        "none",
        "standard",
        "resized_crop",
    )


def test_the_statistics_of_another_number_of_channels_are_the_average():
    color = plan_pixels(ExperimentConfig("resnet18"), mixed_source((3, 3)))
    gray = plan_pixels(ExperimentConfig("resnet18", channels=1), mixed_source((3, 3)))
    assert gray.mean == pytest.approx((sum(color.mean) / 3,))
    assert gray.std == pytest.approx((sum(color.std) / 3,))
    assert len(set(color.mean)) == 3


def test_what_mirroring_would_change_is_not_mirrored(make_source):
    flips = [step for step in plan_pixels(LENET, make_source()).steps if step.op == "flip"]
    assert flips
    assert not [step for step in plan_pixels(LENET, make_source(mirror=False)).steps if step.op == "flip"]


def test_a_plan_leaves_nothing_open(make_source):
    plan = plan_of(LENET, make_source())
    settled = plan.experiment
    opened = [getattr(settled, name) for name in ("size", "channels", "resize_mode", "mean", "std", "augment")]
    assert None not in [*opened, settled.train.lr, settled.train.epochs]
    assert (plan.spec.classes, plan.spec.channels, plan.spec.size) == (3, 1, (16, 16))
    assert plan.weights.used == "none"
    assert plan.model(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


def test_planning_what_was_settled_gives_the_same_plan(make_source):
    first = plan_of(LENET, make_source())
    again = plan_of(first.experiment, make_source())
    assert (again.experiment, again.preprocess, again.spec) == (first.experiment, first.preprocess, first.spec)


def weights(seed, source):
    plan = plan_of(replace(LENET, train=TrainConfig(seed=seed)), source)
    return torch.cat([p.detach().flatten() for p in plan.model.parameters()])


def test_a_network_that_nobody_names_is_settled_and_given_with_its_reason(make_source):
    plan = plan_of(replace(LENET, arch="auto", weights="auto", size=(32, 32)), make_source(channels=3))
    assert plan.experiment.arch == plan.spec.arch == "efficientnet_lite0"  # an extra that the tests need
    reasons = {choice.name: choice.reason for choice in describe(plan)}
    assert "weights on this machine (imgclf[offline])" in reasons["arch"]
    assert "arch" not in {choice.name for choice in describe(plan_of(LENET, make_source()))}


def test_how_many_images_the_classes_have_is_told_as_a_range_only_where_they_differ(make_source):
    source = make_source()
    told = [
        next(
            choice.reason
            for choice in describe(plan_of(LENET, source.with_samples(train)))
            if choice.name == "class_weights"
        )
        for train in (source.samples, source.samples[1:])
    ]
    least, most = source.classes[0], source.classes[1]
    n = source.counts()[most]
    assert told == [f"{n} images per class", f"{n - 1} ({least}) to {n} ({most}) images per class"]


def test_the_seed_gives_the_first_weights_and_nothing_else_is_drawn_from(make_source):
    before = torch.get_rng_state()
    first = weights(1, make_source())
    torch.rand(5)
    again, other = weights(1, make_source()), weights(2, make_source())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.set_rng_state(before)
    weights(1, make_source())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arch", "wish", "expected"),
    [
        ("dm_nfnet_f0", None, ("squash", 0.9)),
        ("dm_nfnet_f0", "squash", ("squash", 0.9)),
        ("dm_nfnet_f0", "crop", ("crop", 1.0)),
        ("deepseek_vit_412m", None, ("pad", 1.0)),
        ("mobilenetv3_small_100", None, ("crop", 0.875)),
        ("mobilenetv3_small_100", "squash", ("squash", 1.0)),
    ],
)
def test_images_fit_as_the_network_was_trained_or_else_are_seen_whole(make_source, arch, wish, expected):
    pixels = plan_pixels(ExperimentConfig(arch=arch, weights="none", resize_mode=wish), make_source())
    assert (pixels.resize_mode, pixels.crop_pct) == expected


@pytest.mark.parametrize(
    ("arch", "wish", "expected"),
    [("lenet", "auto", "fp32"), ("lenet", "bf16", "bf16"), ("small_vgg11", "auto", "bf16"), ("my_net", "auto", "fp32")],
)
def test_networks_of_the_documents_and_ones_own_compute_in_fp32_unless_asked(
    make_source, monkeypatch, arch, wish, expected
):
    monkeypatch.setattr("imgclf.runtime.device._has_bf16", lambda device: True)
    monkeypatch.setitem(ARCHS._items, "my_net", replace(find_arch("lenet"), name="my_net", family="own"))
    config = TrainConfig(device="cpu", precision=wish, epochs=1)
    plan = plan_of(ExperimentConfig(arch=arch, weights="none", size=(32, 32), train=config), make_source())
    assert plan.experiment.train.precision == expected


def test_a_pipeline_of_ones_own_takes_the_place_of_the_preset(make_source):
    import albumentations

    compose = compose_to_dict(albumentations.Compose([albumentations.HorizontalFlip(p=1.0)]))
    plan = plan_of(LENET, make_source(), compose=compose)
    assert plan.preprocess.compose == compose
    assert plan.preprocess.steps == ()
    assert plan.experiment.augment == "custom"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "lennet"}, "did you mean lenet"),
        ({"augment": "standart"}, "did you mean standard"),
        ({"train": TrainConfig(device="cuda:99")}, "CUDA device"),
        ({"train": TrainConfig(device="cpu", precision="fp16")}, "fp16 needs a CUDA device"),
    ],
)
def test_what_is_not_there_is_said_before_any_image_is_read(changes, message):
    check_experiment(LENET)
    with pytest.raises((ConfigError, UnknownName), match=message):
        check_experiment(replace(LENET, **changes))


@pytest.mark.filterwarnings("ignore:1 image left out")
def test_reading_tells_of_each_step(photos):
    told = []
    (photos / "red" / "00.png").write_bytes(b"no image")
    audited, split = open_and_split(Request(LENET), photos, [told.append])
    kinds = [type(event) for event in told]
    assert kinds[0] == SourceOpened
    assert kinds[-2:] == [ImagesChecked, DataSplit]
    assert set(kinds[1:-2]) == {Progressed}
    assert told[-3] == Progressed("checking images", 60, 60)
    assert "red/00.png" not in {sample.ref for sample in audited.source.samples}
    assert sorted(sample.ref for sample in split.rows) == sorted(sample.ref for sample in audited.source.samples)
    assert all(sample.sha256 for sample in split.rows)


def test_reading_follows_the_wishes_on_bad_images(photos):
    (photos / "red" / "00.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"red/00\.png"):
        open_and_split(Request(replace(LENET, data=DataConfig(on_unreadable="error"))), photos)
    assert reading_options(DataConfig(data_dir="here", max_pixels=9)) == {"data_dir": "here", "max_pixels": 9}


def test_a_processor_with_a_few_minutes_gets_the_quicker_recipe():
    on_cpu = {"device": "cpu"}
    chosen = [
        choose_experiment(Request(changes={"train": {**on_cpu, "minutes": m}}), "speedrun").arch for m in (1, 10, 11)
    ]
    assert chosen == ["speednet_small", "speednet_small", "speednet"]
    assert choose_experiment(Request(changes={"train": on_cpu}), "speedrun").arch == "speednet"
    assert choose_experiment(Request(changes={"train": {**on_cpu, "minutes": 1}}), "digits") == replace(
        EXPERIMENTS.get("digits"), train=replace(EXPERIMENTS.get("digits").train, minutes=1, epochs=None, **on_cpu)
    )
