"""Which names mean a split, and which only sound like one."""

import pytest

from imgclf.data.sources.split_names import named_like_splits, split_meant


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Training TRAIN_SET trainset train-data training_images img_train Train Data train_split"),
        ("valid", "val valid Validation dev validation_set val_images"),
        ("test", "test Testing test_set testset test-imgs"),
        (None, "train2017 test1 seg_train contest tests trainer unlabeled data set trained devil interval"),
    ],
)
def test_a_name_means_a_split_alone_or_with_a_word_for_data(split, names):
    assert {name: split_meant(name) for name in names.split()} == {
        name: {"Data": None, "data": None, "set": None}.get(name, split) for name in names.split()
    }


@pytest.mark.parametrize(
    "names",
    [
        ["train2017", "val2017"],
        ["seg_pred", "seg_test", "seg_train"],
        ["train", "test1"],
        ["train", "unlabeled"],
        ["train", "unlabelled"],
        ["SceneTrain", "SceneVal"],
    ],
)
def test_names_that_differ_in_the_split_alone_are_like_splits(names):
    assert named_like_splits([*names, "bus", "bullet train", "test tube"]) == names


def test_names_of_one_split_are_names():
    assert named_like_splits(["train", "bullet_train", "test_tube", "train station", "train_test"]) == []
