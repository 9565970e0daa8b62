"""The names of classes."""

import unicodedata

import pytest

from imgclf.core.errors import DataError
from imgclf.data.classes import in_one_form, look_alikes, spelled_as
from imgclf.data.dataset import ArrayReader, Sample, Source

COMPOSED, APART = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def test_the_form_of_training_stands_for_all():
    samples = [Sample("1", COMPOSED, split="test"), Sample("2", APART, split="train"), Sample("3", "b", split="train")]
    found, notes = in_one_form(samples)
    assert [sample.label for sample in found] == [APART, APART, "b"]
    assert len(notes) == 1
    assert in_one_form(found) == (found, [])


def test_a_source_takes_the_spelling_of_a_model():
    source = Source("s", (APART, "b"), (Sample("1", APART), Sample("2", "b"), Sample("3", "")), ArrayReader({}))
    spelled = spelled_as(source, ("b", COMPOSED, "c"))
    assert spelled.classes == (COMPOSED, "b")
    assert [sample.label for sample in spelled.samples] == [COMPOSED, "b", ""]
    assert spelled_as(source, ("b", APART)) is source


def test_a_source_names_a_class_once_in_whatever_form():
    with pytest.raises(DataError, match="duplicate class names"):
        Source("mine", (COMPOSED, APART), (), ArrayReader({}))


@pytest.mark.parametrize("other", ["Cat", "cat ", "ca\N{ZERO WIDTH SPACE}t", "c\N{SOFT HYPHEN}at", "ｃat", "\ufeffcat"])
def test_names_that_a_reader_takes_for_one_are_named(other):
    (finding,) = look_alikes(("dog", other, "cat"))
    assert repr(other) in finding
    assert "'cat'" in finding


def test_names_that_differ_are_not():
    assert look_alikes(("cat", "cats", "c at", "kat", "1", "2", "Ａ", "b")) == []
