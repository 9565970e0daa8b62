"""Names that a user may type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.core.errors import UnknownName
from imgclf.core.registry import Registry, close_matches, name_meant, unknown_name


@pytest.fixture
def fruit():
    registry = Registry("fruit")
    for name in ("pear", "Apple", "banana"):
        registry.add(name, name.upper())
    return registry


def test_a_registry_holds_things_in_the_order_in_which_they_came(fruit):
    assert fruit.names() == ["pear", "Apple", "banana"]
    assert list(fruit) == ["PEAR", "APPLE", "BANANA"]
    assert len(fruit) == 3
    assert "pear" in fruit
    assert "plum" not in fruit
    assert fruit.get("pear") == "PEAR"


def test_a_name_is_given_once(fruit):
    with pytest.raises(ValueError, match="fruit 'pear' is registered twice"):
        fruit.add("pear", "another")
    assert fruit.get("pear") == "PEAR"


@pytest.mark.parametrize(("typed", "meant"), [("apple", "Apple"), ("bananna", "banana"), ("PEAR", "pear")])
def test_an_unknown_name_is_answered_with_the_one_that_was_meant(fruit, typed, meant):
    with pytest.raises(UnknownName, match=f"no fruit is called '{typed}'; did you mean {meant}"):
        fruit.get(typed)


def test_a_name_like_no_other_is_answered_with_what_there_is(fruit):
    with pytest.raises(UnknownName, match=r"available: pear, Apple, banana$"):
        fruit.get("zzz")


def test_a_long_list_of_names_is_cut():
    assert str(unknown_name("digit", "zzz", [str(n) for n in range(13)])).endswith("10, 11 and 1 more")


@given(st.lists(st.text(min_size=1, max_size=6), max_size=6), st.text(max_size=6))
def test_close_matches_are_known_names(known, name):
    found = close_matches(name, known)
    assert len(found) <= 3
    assert set(found) <= set(known)


def test_few_names_are_all_listed():
    assert str(unknown_name("class", "cats", ["ants", "bees"])).endswith("did you mean ants? (available: ants, bees)")
    assert str(unknown_name("class", "cats", [*"abcdefg", "ants"])).endswith("did you mean ants?")


TRAIN = ["DATA", "--arch", "--weights", "--size", "--batch-size", "--split", "--lr", "--ema", "--weight-decay"]
TRAIN += ["--optimizer", "--layer-decay", "--data-dir", "--runs", "--name", "--dropout"]


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("--val", TRAIN, ["--split"]),
        ("--model", TRAIN, ["--arch"]),
        ("--out", TRAIN, ["--runs"]),
        ("--valid_pct", TRAIN, ["--split"]),
        ("--conf", ["IMAGES", "--reject", "--top"], []),
        ("--output", ["IMAGES", "--out", "--model"], ["--out"]),
        ("--imgsz", TRAIN, ["--size"]),
        ("--batch", TRAIN, ["--batch-size"]),
        ("--lr0", TRAIN, ["--lr"]),
        ("--data", TRAIN, ["DATA"]),
        ("--weights", ["--model", "--out"], ["--model"]),
        ("--Batch_Size", TRAIN, ["--batch-size"]),
        ("--weight", TRAIN, ["--weights", "--weight-decay"]),
        ("--optmizer", TRAIN, ["--optimizer"]),
        ("--layer", TRAIN, ["--layer-decay"]),
        ("--no-pretrained", TRAIN, ["--weights"]),
        ("--something", TRAIN, []),
        ("learning_rate", ["lr", "weight_decay"], ["lr"]),
    ],
)
def test_an_option_of_other_tools_is_answered_with_the_one_that_is_meant(typed, known, meant):
    assert name_meant(typed, known) == meant
