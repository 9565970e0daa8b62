"""Random numbers that are a function of (seed, epoch, sample, number of the draw), and of nothing else.

There is no generator to carry along: whoever asks, in whatever order, from whatever thread or process, is given the
same numbers. SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) is a counter
and a mixing function, so its k-th number can be asked for directly, for a whole batch at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STREAMS = 256  # numbers that one step may draw for one image
_GAMMA = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = 2**64 - 1


def uniforms(seed: int, epoch: int, keys: NDArray[np.uint64], stream: int) -> NDArray[np.float64]:
    """One number in [0, 1) for each key (n,); other seeds, epochs and streams (all 0 or more) give others."""
    numbers: NDArray[np.float64] = _rows(seed, epoch, keys, stream, 1)[0]
    return numbers


class Draws(NamedTuple):
    """The numbers that one step may draw for a batch of samples: its streams are `STREAMS * step` and the next ones."""

    seed: int
    epoch: int
    keys: NDArray[np.uint64]
    step: int

    def __call__(self, count: int) -> NDArray[np.float64]:
        """The first `count` numbers of every sample, (count, n) in [0, 1)."""
        return _rows(self.seed, self.epoch, self.keys, STREAMS * self.step, count)


def _rows(seed: int, epoch: int, keys: NDArray[np.uint64], first: int, count: int) -> NDArray[np.float64]:
    start = _mixed(_mixed(seed) + epoch)
    counters = [(start + (first + i + 1) * _GAMMA) & _MASK for i in range(count)]
    z = keys + np.array(counters, np.uint64)[:, None]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FACTORS[0])
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_FACTORS[1])
    z ^= z >> np.uint64(31)
    numbers: NDArray[np.float64] = np.multiply(z >> np.uint64(11), 2.0**-53, dtype=np.float64)
    return numbers


def _mixed(number: int) -> int:
    """The same mixing of one number."""
    z = (number + _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _FACTORS[0]) & _MASK
    z = ((z ^ (z >> 27)) * _FACTORS[1]) & _MASK
    return z ^ (z >> 31)
