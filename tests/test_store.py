"""Pixels that are decoded once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.data.store import Store, memory_budget
from imgclf.errors import DataError


def counting(reads, size=10):
    def read(index):
        reads.append(index)
        return np.full((1, size, 1), index, np.uint8)

    return read


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 70))
def test_what_is_kept_changes_nothing_but_how_often_is_read(wanted, budget):
    reads = []
    store = Store(counting(reads), 6, budget)
    for index in wanted:
        assert (store(index) == index).all()
    kept = [index for index in range(6) if store.holds(index)]
    assert len(kept) == min(budget // 10, len(set(wanted)))
    assert all(reads.count(index) == 1 for index in kept)
    assert all(reads.count(index) == wanted.count(index) for index in range(6) if index not in kept)


def test_without_a_budget_a_share_of_the_memory_is_taken():
    assert memory_budget() > 2**20
    reads = []
    store = Store(counting(reads), 2)
    store(0), store(0)
    assert reads == [0]


def test_an_image_that_fails_is_tried_again():
    answers = iter([DataError("gone"), np.zeros((1, 1, 1), np.uint8)])

    def read(index):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    store = Store(read, 1)
    with pytest.raises(DataError, match="gone"):
        store(0)
    assert not store.holds(0)
    assert store(0).shape == (1, 1, 1)
