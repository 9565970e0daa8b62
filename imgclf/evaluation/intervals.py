"""How far figures of few images can be relied on."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share, `hits` of `n`, by its score (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    It stays within 0…1 and has about the `confidence` that it says also for few images and shares near 0 or 1.
    """
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"{hits} of {n} is no share")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = hits / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
