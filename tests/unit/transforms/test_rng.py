"""Random numbers by (seed, epoch, sample, draw)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from imgclf.data.dataset import Sample
from imgclf.data.loading.loader import sample_keys
from imgclf.transforms.rng import STREAMS, Draws

MASK = 2**64 - 1
SAMPLES = [Sample(f"class/{i}.jpg", "class") for i in range(4000)]
KEYS = sample_keys(SAMPLES)
WORDS = st.integers(0, MASK)


def uniforms(seed, epoch, keys, stream):
    """One number for each key."""
    return Draws(seed, epoch, keys, 0)(stream + 1)[stream]


def splitmix64(state, count):
    """The generator as its authors give it."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        numbers.append(z ^ (z >> 31))
    return numbers


def test_the_reference_gives_the_published_numbers():
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.lists(WORDS, max_size=4), st.integers(0, 40))
def test_a_number_is_one_of_splitmix64_begun_at_the_sample_in_its_epoch(seed, epoch, keys, stream):
    start = splitmix64((splitmix64(seed, 1)[0] + epoch) & MASK, 1)[0]
    expected = [(splitmix64((key + start) & MASK, stream + 1)[stream] >> 11) / 2**53 for key in keys]
    assert uniforms(seed, epoch, np.array(keys, np.uint64), stream).tolist() == expected


@given(st.lists(WORDS, min_size=1, max_size=20), st.data())
def test_a_number_does_not_depend_on_the_others_in_the_batch(keys, data):
    keys = np.array(keys, np.uint64)
    order = np.array(data.draw(st.permutations(range(len(keys)))))
    assert (uniforms(3, 4, keys[order], 5) == uniforms(3, 4, keys, 5)[order]).all()


def test_the_draws_of_a_step_are_its_own_streams():
    numbers = Draws(1, 2, KEYS, 3)(4)
    assert numbers.shape == (4, len(KEYS))
    assert all((numbers[i] == uniforms(1, 2, KEYS, 3 * STREAMS + i)).all() for i in range(4))


@pytest.mark.parametrize(
    ("seed", "epoch", "stream"), [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (2**63 - 1, 99, 700)]
)
def test_the_numbers_are_uniform(seed, epoch, stream):
    numbers = uniforms(seed, epoch, KEYS, stream)
    assert 0 <= numbers.min() < numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 0.001


def test_another_seed_epoch_stream_or_sample_gives_unrelated_numbers():
    rows = np.stack([uniforms(s, e, KEYS, i) for s in range(3) for e in range(3) for i in range(4)])
    between = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert abs(between).max() < 5 / np.sqrt(len(KEYS))
    assert len(np.unique(rows)) == rows.size
    assert abs(np.corrcoef(rows[0, :-1], rows[0, 1:])[0, 1]) < 4 / np.sqrt(len(KEYS))


def test_neighboring_keys_give_unrelated_numbers():
    numbers = uniforms(0, 0, np.arange(4000, dtype=np.uint64), 0)
    assert stats.kstest(numbers, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / np.sqrt(len(numbers))


def test_a_key_comes_from_the_content_or_else_from_the_name():
    one, other = Sample("a.jpg", "cat", sha256="ab" * 32), Sample("b.jpg", "dog", sha256="ab" * 32)
    keys = sample_keys([one, other, Sample("a.jpg", "cat"), Sample("a.jpg", "dog"), Sample("\udcff.jpg", "cat")])
    assert keys.dtype == np.uint64
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]
    assert len(set(keys.tolist())) == 3
    assert sample_keys([]).shape == (0,)
    assert sample_keys([Sample("a.jpg", "cat")]).tolist() == [keys[2]]


def test_keys_are_the_same_on_every_machine():
    assert sample_keys([Sample("cat/1.jpg", "cat")]).tolist() == [15132351748868210994]
