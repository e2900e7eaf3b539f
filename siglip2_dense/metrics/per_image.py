"""What the metrics share: one row of numbers an image, and scores that are functions of the sum of the rows."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


class Kept:
    """What a metric keeps of each image, under the image's position in its data set: so that no image counts twice."""

    def __init__(self):
        self._rows: dict[int, Tensor] = {}

    def sync(self) -> None:
        """Bring the rows of all ranks to every rank; nothing to do with one process."""
        if not _several_ranks():
            return
        parts: list = [None] * dist.get_world_size()
        dist.all_gather_object(parts, {index: row.cpu() for index, row in self._rows.items()})
        merged = {index: row for part in parts for index, row in part.items()}
        if len(merged) != sum(map(len, parts)):
            raise ValueError("the ranks have counted an image twice")
        self._rows = merged

    @property
    def images(self) -> int:
        """Number of images counted."""
        return len(self._rows)

    def _keep(self, index: int, row: Tensor) -> None:
        """Raises ValueError for a negative position, or one that was counted before."""
        if index < 0 or index in self._rows:
            raise ValueError(f"an image counts once, under its position in its data set; got {index}")
        self._rows[index] = row


class PerImage(Kept):
    """Rows of one shape, kept under each image's position in its data set.

    A subclass keeps a row in ``update`` and says in ``scores`` what a sum of rows is worth. Sums add over images, ranks
    and drawings, so the score of the set, that of several ranks and its interval have one formula; and since rows lie
    under positions, no image counts twice.

    arguments: those that a subclass was built with, so that one like it can be built for rows that come from a file.
    """

    def __init__(self, *shape: int, **arguments):
        super().__init__()
        self._shape = shape
        self.arguments = arguments

    def scores(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """{name: (...)} of sums of rows (..., *shape) float64; NaN where there is nothing to score."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """The scores of the set."""
        return self.of_rows()

    def of_rows(self) -> dict[str, float]:
        """The scores of the set as far as rows give them."""
        return {name: float(value) for name, value in self.scores(self.stacked().sum(0)).items()}

    def per_class(self) -> dict[str, list[float | None]]:
        """Scores of each class, of a task that has classes."""
        return {}

    def intervals(self, samples: int = 1000, seed: int = 0) -> dict[str, list[float]]:
        """95 % of each score over data sets of the same number of images, drawn from these with replacement."""
        return {name: interval(values) for name, values in self.scores(self._draw(samples, seed)).items()}

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """What is kept: positions (n,) int64, ascending, and the row of each, (n, *shape) in the type it is kept in."""
        positions = sorted(self._rows)
        rows = [self._rows[index].cpu().numpy() for index in positions]
        return np.array(positions, dtype=np.int64), np.array(rows).reshape(-1, *self._shape)

    def restore(self, positions: np.ndarray, rows: np.ndarray) -> PerImage:
        """This metric, with what ``rows`` has given."""
        self._rows = dict(zip(positions.tolist(), torch.from_numpy(rows), strict=True))
        return self

    def stacked(self) -> np.ndarray:
        """(n, *shape) float64, in the order of the data set, so that sums do not depend on ranks."""
        return self.rows()[1].astype(np.float64)

    def _draw(self, samples: int, seed: int) -> np.ndarray:
        """(samples, *shape): the sums of the rows over drawn data sets."""
        rows = self.stacked()
        return drawn_sums(rows, drawn_counts(len(rows), samples, seed))


def drawn_counts(n: int, samples: int, seed: int | list[int]) -> np.ndarray:
    """(samples, n) float64: how often each of n images is in each of the drawn data sets of n images."""
    if not n:
        return np.zeros((samples, 0))
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples).astype(np.float64)


def drawn_sums(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(samples, *shape): the sums of rows (n, *shape) float64 over drawn data sets."""
    return (counts @ rows.reshape(len(rows), math.prod(rows.shape[1:]))).reshape(-1, *rows.shape[1:])


def sum_over_ranks(total: Tensor | None, *shape: int) -> Tensor | None:
    """The int64 counts of all ranks together; a rank that has counted nothing gives none."""
    if not _several_ranks():
        return total
    if total is None:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.zeros(shape, dtype=torch.int64, device=device)
    dist.all_reduce(total)
    return total


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized()


def interval(values: np.ndarray) -> list[float]:
    """95 % of the values (samples,)."""
    values = values[~np.isnan(values)]  # a draw may hold nothing to score
    return np.percentile(values, [2.5, 97.5]).tolist() if len(values) else [float("nan")] * 2
