"""Segmentation by names alone: a score for each name that is asked for, several of which may stand for one class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import Geometry, Sample
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.metrics.segmentation import SegmentationMetric
from siglip2_dense.registry import TASKS
from siglip2_dense.tasks.segmentation import Segmentation
from siglip2_dense.tasks.windows import blend

BACKGROUND = "background"
SYNONYMS: dict[str, Callable[[tuple[str, ...]], list[tuple[str, ...]]]] = {  # from names of a class to queries' members
    "each": lambda names: [(name,) for name in names],
    "first": lambda names: [names[:1]],
    "mean": lambda names: [names],
}
QUERIES_AT_ONCE = 16  # large maps that are there at a time where probabilities are needed
PIXELS_AT_ONCE = 2**25  # of these maps together: of large images fewer are there


@TASKS.register_module()
class ZeroShotSegmentation(Segmentation):
    """The class of the best query; nothing is learnt. A raw map has a channel for each query, scale times cosine.

    Source: SCLIP (Wang et al. 2024), whose class scores are the maxima over their queries after a softmax over all.

    Args:
        classes: as in Segmentation.
        queries: ``{class: [names]}``, what a class is asked for by. One that is not named here is asked for by its own
            name. Of equal queries the first class wins. The background needs none where there is a threshold.
        background_threshold: a pixel whose best query has a probability below this, under a softmax over all queries,
            becomes "background", which must then be class 0; none = no pixel does.
        synonyms: what becomes of a class's own name where it has several between commas, "building, edifice": "each"
            is a query, "first" is the only one, or one query stands for all by the "mean" of their vectors.

    Attributes:
        members: for each query the names whose vectors it is made of, nearly always one.
        labels: (K,) int64, the class of each query.
    """

    def __init__(
        self,
        classes: str | Sequence[str],
        queries: Mapping[str, Sequence[str]] | None = None,
        background_threshold: float | None = None,
        synonyms: str = "each",
    ):
        super().__init__(classes)
        needless = (BACKGROUND,) if background_threshold is not None else ()
        self.labels, self.members = queries_of(self.classes, queries, synonyms, needless)
        self.synonyms = synonyms
        self.background_threshold = background_threshold
        if background_threshold is not None:
            self._check_threshold()

    @property
    def queries(self) -> tuple[str, ...]:
        """What is asked for, in words."""
        return tuple(", ".join(names) for names in self.members)

    def texts(self, encode: Callable[[list[str]], Tensor]) -> Tensor:
        """(K, ..., E) unit vectors of the queries; encode: N names to theirs, (N, ..., E)."""
        vectors = encode([name for names in self.members for name in names])
        if len(vectors) == len(self.members):
            return vectors
        of_queries = vectors.split([len(names) for names in self.members])
        return F.normalize(torch.stack([some.mean(0) for some in of_queries]), dim=-1)

    def _check_threshold(self) -> None:
        threshold = self.background_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold < 1:
            raise UserError(f"background_threshold={threshold!r}: give a probability between 0 and 1, or None.")
        if self.classes[0] != BACKGROUND:
            raise UserError(
                f"background_threshold={threshold}: unsure pixels would become {self.classes[0]!r}, for class 0 is not "
                f"{BACKGROUND!r}; give None, or classes that begin with it."
            )

    @property
    def channels(self) -> int:
        return len(self.members)

    @property
    def kin(self) -> ZeroShotSegmentation:
        """None but itself: what it learns, if anything, is not what Segmentation does."""
        return self

    @property
    def meaning(self) -> dict:
        """What a raw map stands for, and what becomes of it."""
        asked = {name: [] for name in self.classes}
        for label, query in zip(self.labels.tolist(), self.queries, strict=True):
            asked[self.classes[label]].append(query)
        return {
            "classes": list(self.classes),
            "queries": asked,
            "synonyms": self.synonyms,
            "background_threshold": self.background_threshold,
        }

    def loss(
        self, raw: Tensor, geometry: Sequence[Geometry], samples: Sequence[Sample], step: int | None = None
    ) -> dict[str, Tensor]:
        raise UserError("ZeroShotSegmentation has nothing to learn; take the task Segmentation to train a head.")

    def predict(self, windows: Sequence[tuple[Tensor, Geometry]]) -> Tensor:
        """The class map (H, W) of one image at its original size, from the raw maps (K, h, w) of its windows."""
        if self.background_threshold is None:
            best = super().predict(windows)
            return self.labels.to(best.device)[best]
        best, probability = best_query(windows)
        return self.labels.to(best.device)[best].where(probability >= self.background_threshold, 0)

    def metric(self) -> SegmentationMetric:
        return SegmentationMetric(len(self.classes))


def queries_of(
    classes: Sequence[str], queries: Mapping[str, Sequence[str]] | None, synonyms: str, needless: Sequence[str] = ()
) -> tuple[Tensor, tuple[tuple[str, ...], ...]]:
    """The class of each query (K,) int64, and of each query the names whose vectors it is made of.

    queries, synonyms: as in ``ZeroShotSegmentation``; needless: classes that nothing need ask for. Raises UserError for
    queries of no class or without names, and where nothing is asked for.
    """
    if synonyms not in SYNONYMS:
        raise UserError(f"synonyms={synonyms!r}: {nearest(str(synonyms), SYNONYMS, ', '.join(SYNONYMS))}")
    given = dict(queries or {})
    for name, asked in given.items():
        if name not in classes:
            raise UserError(f"queries: {name!r} is none of the classes: {nearest(name, classes)}")
        if isinstance(asked, str) or not all(isinstance(query, str) and query for query in asked):
            raise UserError(f"queries: {name!r} is to be asked for by {asked!r}; give a list of names.")
        if not asked and name not in needless:
            raise UserError(f"queries: {name!r} is to be asked for by nothing; give a list of names.")
    found = [
        (label, members)
        for label, name in enumerate(classes)
        for members in ([(query,) for query in given[name]] if name in given else SYNONYMS[synonyms](parts_of(name)))
    ]
    if not found:
        raise UserError("queries: there is no name to ask for; give one class besides the background, at least.")
    labels, members = zip(*found, strict=True)
    return torch.tensor(labels), members


def parts_of(name: str) -> tuple[str, ...]:
    """A name's parts between commas."""
    return tuple(part.strip() for part in name.split(",") if part.strip()) or (name,)


def best_query(windows: Sequence[tuple[Tensor, Geometry]]) -> tuple[Tensor, Tensor]:
    """(H, W) int64 the query with the highest score at each pixel of one image at its original size, and (H, W) float32
    its probability under a softmax over all queries.

    windows: as for ``blend``, which is asked for a few queries at a time: of thousands the map would not fit.
    """
    raw, geometry = windows[0]
    top = torch.full(geometry.original, -torch.inf, device=raw.device)
    best, mass = torch.zeros_like(top, dtype=torch.int64), torch.zeros_like(top)
    at_once = max(1, min(QUERIES_AT_ONCE, PIXELS_AT_ONCE // top.numel()))
    for first in range(0, len(raw), at_once):
        scores = blend([(some[first : first + at_once], place) for some, place in windows])
        highest, number = scores.max(0)
        best = torch.where(highest > top, number + first, best)
        before, top = top, torch.maximum(top, highest)
        mass = mass * (before - top).exp() + (scores - top).exp().sum(0)  # of all queries so far, relative to the best
    return best, 1 / mass
