"""Differences between tests on the same images, each with its interval over drawings of these images.

Both sides of a difference are scored on the same drawn images, so what makes an image hard for all of them cancels: the
interval is far narrower than those of the scores. It says how the difference would vary with other images, and nothing
of how it would with another training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from siglip2_dense.metrics.per_image import PerImage, drawn_counts, drawn_sums, interval

BLOCK = 1000  # drawings that are made at a time
SEED = 0


def paired(sides: Sequence[Sequence[PerImage]], blocks: int) -> dict[str, dict]:
    """Per score that of the first side, and of every other its own, the difference to the first and its 95 % interval.

    sides: finished metrics of one kind, of the same images. The score of a side that has several, of heads that differ
    in their seed say, is the mean of theirs. blocks: thousands of drawings.
    """

    def scores(weigh) -> dict[str, list[np.ndarray]]:
        """Each score of each side, of the sums that ``weigh`` makes of rows."""
        found: dict[str, list[np.ndarray]] = {}
        for side in sides:
            own = [metric.scores(weigh(metric.stacked())) for metric in side]
            for name in own[0]:
                found.setdefault(name, []).append(sum(one[name] for one in own) / len(own))
        return found

    drawn: dict[str, list] = {}
    for block in range(blocks):
        counts = drawn_counts(sides[0][0].images, BLOCK, [SEED, block])  # the same for all: that is what pairs them
        for name, values in scores(partial(drawn_sums, counts=counts)).items():
            drawn.setdefault(name, []).append(values)
    result = {}
    for name, (first, *others) in scores(partial(np.sum, axis=0)).items():
        a, *b = (np.concatenate(parts) for parts in zip(*drawn[name], strict=True))
        intervals = [interval(values - a) for values in b]
        result[name] = {
            "first": float(first),
            "others": [
                {
                    "value": float(value),
                    "difference": float(value - first),
                    "interval": [low, high],
                    "excludes_0": low > 0 or high < 0,
                }
                for value, (low, high) in zip(others, intervals, strict=True)
            ],
        }
    return result
