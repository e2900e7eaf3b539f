"""Segmentation by a head that was trained on the names of classes, and takes others in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from siglip2_dense.contracts import IGNORE, Geometry, Sample
from siglip2_dense.errors import UserError
from siglip2_dense.losses.upsampled import upsampled_bce
from siglip2_dense.registry import TASKS
from siglip2_dense.resample import resize_logits
from siglip2_dense.tasks.canvas import cells_on_canvas, on_canvas
from siglip2_dense.tasks.queries import ZeroShotSegmentation

AT_ONCE = 16  # queries whose large maps are there at a time,
PIXELS_AT_ONCE = 2**25  # and pixels of these maps together: of large images fewer are there


@TASKS.register_module()
class OpenVocabulary(ZeroShotSegmentation):
    """Each query's probability by itself, a sigmoid; the class of the most probable query.

    Source: CAT-Seg (Cho et al. 2024), and its published code for what the paper leaves open.

    Args:
        classes, queries, synonyms: as in ZeroShotSegmentation. CAT-Seg asks for the "first" of several names, its first
            version for their "mean".
        background_threshold: a pixel whose best query has a probability below this becomes "background", which must
            then be class 0 and need not be asked for; none = no pixel does.
        templates: sentences that the names are put into, see ``TextEncoder.encode``.
        clean_names: write names without hyphens and underscores. CLIP's CAT-Seg was trained with them.
        ignored: in training, what a pixel is that is not labelled: "negative" for all classes, as in the published
            code, or "masked" and left out.
    """

    def __init__(
        self,
        classes: str | Sequence[str],
        queries: Mapping[str, Sequence[str]] | None = None,
        background_threshold: float | None = None,
        synonyms: str = "first",
        templates: str | Sequence[str] = "scene",
        clean_names: bool = True,
        ignored: str = "negative",
    ):
        super().__init__(classes, queries, background_threshold, synonyms)
        if ignored not in ("negative", "masked"):
            raise UserError(f"OpenVocabulary: ignored={ignored!r}; give 'negative' or 'masked'.")
        self.ignored, self.clean_names = ignored, clean_names
        self.templates = templates if isinstance(templates, str) else list(templates)

    @property
    def meaning(self) -> dict:
        """What a raw map stands for: a channel is a query, whichever these are."""
        return {"vocabulary": "open"}

    @property
    def scoring(self) -> dict:
        asked = {key: value for key, value in super().meaning.items() if key != "classes"}
        return {**super().scoring, **asked, "templates": self.templates}

    def loss(
        self, raw: Tensor, geometry: Sequence[Geometry], samples: Sequence[Sample], step: int | None = None
    ) -> dict[str, Tensor]:
        """raw: (B, K, h, w) of images on one canvas; the mean is over their pixels with those of the canvas around.

        Raises UserError for labels that are no class, and where a class has several queries.
        """
        if not torch.equal(self.labels, torch.arange(len(self.classes))):
            raise UserError(
                f"{self.channels} queries for {len(self.classes)} classes: to train, each class has one; leave queries "
                "out, and set synonyms='first' or 'mean'."
            )
        labels = on_canvas(samples, self.target, geometry, none=IGNORE)
        highest = labels.flatten(1).amax(1).tolist()  # a larger one would silently be a negative of all classes
        for sample, label in zip(samples, highest, strict=True):
            if label >= len(self.classes):
                raise UserError(
                    f"{sample.path}: holds the label {label}, but the vocabulary has {len(self.classes)} classes; give "
                    "all names of the data, in the order of their labels."
                )
        ((_, cells, _),) = cells_on_canvas(raw, geometry)
        return {"loss_bce": upsampled_bce(cells, labels, self.ignored)}

    def predict(self, windows: Sequence[tuple[Tensor, Geometry]]) -> Tensor:
        """The class map (H, W) of one image at its original size, from the raw maps (K, h, w) of its views."""
        raw, geometry = windows[0]
        top = torch.full(geometry.original, -torch.inf, device=raw.device)
        best = torch.zeros_like(top, dtype=torch.int64)
        at_once = max(min(AT_ONCE, PIXELS_AT_ONCE // top.numel()), 1)
        for first in range(0, len(raw), at_once):
            some = [(view[first : first + at_once], place) for view, place in windows]
            highest, number = blend_probabilities(some).max(0)
            better = highest > top  # of equal ones the first stays
            best, top = torch.where(better, number + first, best), torch.where(better, highest, top)
        labels = self.labels.to(best.device)[best]
        return labels if self.background_threshold is None else labels.where(top >= self.background_threshold, 0)


def blend_probabilities(views: Sequence[tuple[Tensor, Geometry]]) -> Tensor:
    """(K, *original) float32 probabilities of one image, from the scores (K, h, w) of each of its views.

    A view whose window is larger than its own pixels is an overview: its probabilities, at the size that it was seen
    at, are brought to the window. Windows are averaged where they overlap; overviews, if there are any, count as much
    as all windows together. Source: the sliding inference of CAT-Seg's published code.
    """
    scores, geometry = views[0]
    windows, overviews = [], []
    count = torch.zeros(geometry.resized, device=scores.device)
    total = torch.zeros(len(scores), *geometry.resized, device=scores.device)
    for scores, geometry in views:
        (top, left, height, width), place = geometry.box, geometry.window or (0, 0, *geometry.resized)
        pixels = resize_logits(scores[None], geometry.padded)[:, :, top : top + height, left : left + width].sigmoid()
        if (height, width) != place[2:]:
            overviews.append(resize_logits(pixels, place[2:])[0])
            continue
        windows.append(pixels)
        inside = (slice(place[0], place[0] + height), slice(place[1], place[1] + width))
        total[:, *inside] += pixels[0]
        count[inside] += 1
    parts = [total / count] if windows else []
    parts += [sum(overviews) / len(overviews)] if overviews else []
    return resize_logits((sum(parts) / len(parts))[None], geometry.original)[0]
