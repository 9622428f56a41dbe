"""Which configurations of an augmented network are trained in a step, and which are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opa_trt.supernet.legacy import Configuration

CANDIDATES = 256  # configurations that are compared, at most; a sample where there are more


def draw_configurations(
    phases: int,
    most: int,
    draw: np.random.Generator,
    pool: Sequence[Configuration] | None = None,
) -> list[Configuration]:
    """At most ``most`` different configurations of ``pool`` (None: all), never the legacy one:
    it has nothing to learn."""
    if pool is not None:
        trained = [each for each in pool if not each.is_legacy]
        if len(trained) <= most:
            return trained
        places = np.sort(draw.choice(len(trained), most, replace=False))
        return [trained[place] for place in places]
    numbers: set[int] = set()
    while len(numbers) < min(most, 2**phases - 1):
        numbers.add(int(draw.integers(1, 2**phases)))
    return [Configuration.numbered(phases, number) for number in sorted(numbers)]


def candidate_configurations(phases: int, seed: int) -> list[Configuration]:
    """All configurations, or a sample with both ends where they are too many to compare."""
    if 2**phases <= CANDIDATES:
        return [Configuration.numbered(phases, number) for number in range(2**phases)]
    draw = np.random.default_rng([seed, 5])
    ends = [Configuration.numbered(phases, number) for number in (0, 2**phases - 1)]
    drawn = draw_configurations(phases, CANDIDATES - 2, draw)
    return [*dict.fromkeys([ends[0], *drawn, ends[1]])]
