"""Counts, shares and sizes in words, and text that is safe to print."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.core.text import (
    byte_size,
    duration,
    first_few,
    natural,
    one_line,
    percent,
    percent_range,
    plural,
    printable,
    shorten,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (plural(1, "image"), "1 image"),
        (plural(1797, "image"), "1,797 images"),
        (plural(2, "class"), "2 classes"),
        (percent(0.98123), "98.1%"),
        (percent(0.5, 0), "50%"),
        (percent_range(0.8888, 0.9331), "88.9–93.3%"),
        (first_few(["a", "b\n"]), "a, b\\n"),
        (first_few("abcdefg"), "a, b, c, d, e and 2 more"),
        (byte_size(0), "0 bytes"),
        (byte_size(999), "999 bytes"),
        (byte_size(62_000_000), "62 MB"),
        (byte_size(1_234_000_000), "1.23 GB"),
        (byte_size(5_000_000_000_000), "5,000 GB"),
        (shorten("abcdef", 6), "abcdef"),
        (shorten("abcdefg", 6), "abcde…"),
        (printable("a\nb\x1b[31m\udcff\u202e"), "a\\nb\\x1b[31m\\udcff\\u202e"),
        (printable("größe 사진"), "größe 사진"),
        (one_line(ValueError("two\nlines")), "two lines"),
        (one_line(ValueError()), "ValueError"),
        *[(duration(seconds), text) for seconds, text in ((89, "89 s"), (90, "2 min"), (5400, "1.5 h"))],
    ],
)
def test_text_for_people(text, expected):
    assert text == expected


def test_names_are_sorted_as_people_count():
    assert sorted(["IMG_10", "IMG_2", "IMG_02"], key=natural) == ["IMG_02", "IMG_2", "IMG_10"]


@given(st.text(max_size=40))
def test_printable_text_is_one_printable_line(text):
    assert printable(text).isprintable()
