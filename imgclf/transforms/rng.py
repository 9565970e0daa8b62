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


class Draws(NamedTuple):
    """The numbers that one step may draw for a batch of samples: its streams are `STREAMS * step` and the next ones."""

    seed: int
    epoch: int
    keys: NDArray[np.uint64]
    step: int

    def __call__(self, count: int) -> NDArray[np.float64]:
        """The first `count` numbers of every sample, (count, n) in [0, 1)."""
        start, first = _mixed(_mixed(self.seed) + self.epoch), STREAMS * self.step + 1
        counters = [(start + stream * _GAMMA) & _MASK for stream in range(first, first + count)]
        z = self.keys + np.array(counters, np.uint64)[:, None]
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_FACTORS[0])
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_FACTORS[1])
        z ^= z >> np.uint64(31)
        return np.asarray((z >> np.uint64(11)) * 2.0**-53)


def _mixed(number: int) -> int:
    """The same mixing of one number."""
    z = (number + _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _FACTORS[0]) & _MASK
    z = ((z ^ (z >> 27)) * _FACTORS[1]) & _MASK
    return z ^ (z >> 31)
