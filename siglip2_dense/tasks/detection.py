"""Detection by names: a box and a probability for each name of each token, learnt by matching tokens with boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from siglip2_dense.contracts import Detections, Geometry, RawDetections, Sample
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import classes_of
from siglip2_dense.losses.detection import box_losses, focal, matching_cost
from siglip2_dense.registry import TASKS
from siglip2_dense.tasks.boxes import into_frame, onto_image
from siglip2_dense.tasks.examples import query_of
from siglip2_dense.tasks.queries import queries_of
from siglip2_dense.viz.boxes import detection_panel
from siglip2_dense.viz.colours import palette

MOST = 300  # detections of an image that are kept, as COCO's and LVIS's scores of thousands of classes count them
SCORES_AT_ONCE = 2**24  # of all tokens and some classes


@TASKS.register_module()
class Detection:
    """Focal loss, L1 and GIoU on tokens matched with boxes; the 300 best of all tokens and classes in prediction.

    In training each image is asked for its sample's own queries, or, where it has none, for the names of the classes.
    Source: OWL-ViT (Minderer et al. 2022) and scenic's code for it; the losses are in ``losses/detection.py``.

    Args:
        classes: what is asked for, as in ``Segmentation``; by default the classes of the data.
        queries: ``{class: [names]}``, what a class is asked for by; it has the score of the best of them.
        templates: sentences that the names are put into; of several the logits are averaged.

    Attributes:
        each: whether losses are divided by the counts of each image, and then averaged, or by those of all images of a
            step. The model sets it: only where gradients are clipped for each image is the first of use.
        members: for each query the names it is asked for by, here always one.
        labels: (Q,) int64, the class of each query, in ascending order.
    """

    target = "boxes"
    headline = "AP"
    higher_is_better = True
    mirrored = ()
    clean_names = "canonical"
    each = False

    def __init__(
        self,
        classes: str | Sequence[str],
        queries: Mapping[str, Sequence[str]] | None = None,
        templates: str | Sequence[str] = "7-best",
    ):
        self.classes = classes_of(classes)
        self.labels, self.members = queries_of(self.classes, queries, "first")
        self.templates = templates if isinstance(templates, str) else list(templates)
        self.palette = palette(len(self.classes) + 1)[1:]

    @property
    def channels(self) -> int:
        return len(self.members)

    @property
    def meaning(self) -> dict:
        """What a head's output stands for: boxes, and scores of whatever is asked for."""
        return {"boxes": "parts of the frame", "vocabulary": "open"}

    @property
    def scoring(self) -> dict:
        """Thousands of names would fill a record: those of a data set follow from it."""
        return {"detections": MOST, "templates": self.templates, "ensemble": "mean of logits", "classes": self.channels}

    def texts(self, encode: Callable[[list[str]], Tensor]) -> Tensor:
        """(Q, E): of each query the mean of its sentences' unit vectors, which is not brought to length 1 again."""
        return encode([name for names in self.members for name in names]).mean(1)

    def asked(self, samples: Sequence[Sample]) -> list[tuple[str, ...]]:
        """What each image of a training batch is asked for."""
        return [self.classes if sample.queries is None else sample.queries for sample in samples]

    def loss(
        self, raw: RawDetections, geometry: Sequence[Geometry], samples: Sequence[Sample], step: int | None = None
    ) -> dict[str, Tensor]:
        """raw: of images that were asked for ``asked(samples)``. Raises UserError for a sample without boxes."""
        images = [raw[number] for number in range(len(samples))]
        found = [
            (one.logits(), one.boxes[0], *_targets(sample, names, place))
            for one, sample, names, place in zip(images, samples, self.asked(samples), geometry, strict=True)
        ]
        terms, counts = [], []
        for (logits, boxes, targets, wanted), (rows, columns) in zip(found, match(found), strict=True):
            of_tokens = torch.zeros_like(logits).index_copy_(0, rows, targets[columns])
            terms.append(torch.stack([focal(logits, of_tokens), *box_losses(boxes[rows], wanted[columns])]))
            counts.append(torch.stack([targets.sum(), targets.new_tensor(len(wanted))]))
        terms, counts = torch.stack(terms), torch.stack(counts)[:, [0, 1, 1]]  # both boxes' terms by the boxes
        if self.each:
            means = (terms / counts.clamp(min=1)).mean(0)
        else:
            means = terms.sum(0) / _of_a_rank(counts.sum(0)).clamp(min=1)
        return dict(zip(("loss_class", "loss_l1", "loss_giou"), means, strict=True))

    def predict(self, windows: Sequence[tuple[RawDetections, Geometry]]) -> Detections:
        """The best of one image, in its pixels at its original size, from the raw output of its one view."""
        ((raw, geometry),) = windows
        scores, tokens, labels = best_scores(raw, self.labels, len(self.classes))
        return Detections(onto_image(raw.boxes[0, tokens], geometry), scores, labels)

    def example(self, raw: RawDetections, geometry: Geometry, box: Sequence[float]) -> Tensor:
        """(E,): what to ask for to find what is in a box (x0, y0, x1, y1) in pixels of the raw output's one image."""
        corner = torch.tensor([box], dtype=torch.float32, device=raw.boxes.device)
        return query_of(raw, into_frame(corner, geometry)[0])

    def draw(self, image: np.ndarray, sample: Sample, prediction: Detections) -> np.ndarray:
        """The boxes that are there beside as many of the surest; image: (H, W, 3) uint8 at its original size."""
        truth = None
        if sample.boxes is not None:
            names = [", ".join(names) for names in sample.box_names]
            truth = (sample.boxes.cpu().numpy(), names, [self._colour(names[0]) for names in sample.box_names])
        count = len(sample.boxes) if truth else len(prediction.boxes)
        chosen = prediction.labels[:count].tolist()
        names = [
            f"{self.classes[label]} {score:.2f}"
            for label, score in zip(chosen, prediction.scores[:count].tolist(), strict=True)
        ]
        found = (prediction.boxes[:count].cpu().numpy(), names, [self.palette[label] for label in chosen])
        return detection_panel(image, truth, found)

    def _colour(self, name: str) -> tuple[int, int, int]:
        return self.palette[self.classes.index(name)] if name in self.classes else (128, 128, 128)


@torch.no_grad()
def match(images: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """For each image which tokens (K,) stand for which boxes (K,), K the smaller of their numbers, so that their costs
    have the least sum (Kuhn 1955).

    images: (logits (N, Q), boxes (N, 4), targets (M, Q), target boxes (M, 4)) as for ``matching_cost``.
    """
    costs = [matching_cost(*one) for one in images]
    on_cpu = torch.cat([cost.flatten() for cost in costs]).cpu().split([cost.numel() for cost in costs])  # one wait
    found = []
    for cost, values in zip(costs, on_cpu, strict=True):
        pairs = linear_sum_assignment(values.view(cost.shape).numpy())
        found.append(tuple(torch.from_numpy(numbers).to(cost.device) for numbers in pairs))
    return found


def best_scores(raw: RawDetections, labels: Tensor, classes: int, most: int = MOST) -> tuple[Tensor, Tensor, Tensor]:
    """The ``most`` highest probabilities of one image over all tokens and classes, descending, with the token and the
    class of each.

    labels: (Q,) the class of each query, ascending, every class once or more; of several queries the best counts. Some
    classes are scored at a time.
    """
    count = raw.boxes.shape[1]
    at_once = max(SCORES_AT_ONCE // max(count, 1), 1)
    labels = labels.to(raw.boxes.device)
    ends = torch.searchsorted(labels, torch.arange(classes + 1, device=labels.device)).tolist()
    top = raw.boxes.new_empty(0)
    places = labels.new_empty(0)
    for first in range(0, classes, at_once):
        last = min(first + at_once, classes)
        queries = slice(ends[first], ends[last])
        logits = raw.logits(0, queries)
        if logits.shape[1] > last - first:
            of_classes = logits.new_full((count, last - first), -torch.inf)
            index = (labels[queries] - first).expand_as(logits)
            logits = of_classes.scatter_reduce(1, index, logits, "amax")
        values, at = logits.flatten().topk(min(most, logits.numel()))
        tokens, columns = at // (last - first), at % (last - first)
        top, places = torch.cat([top, values]), torch.cat([places, tokens * classes + columns + first])
        top, order = top.topk(min(most, len(top)))
        places = places[order]
    return top.sigmoid(), places // classes, places % classes


def _targets(sample: Sample, asked: Sequence[str], geometry: Geometry) -> tuple[Tensor, Tensor]:
    """(M, Q), 1 where a box has the name that is asked for, and (M, 4) centred in the frame, of a sample's boxes.

    A box none of whose names is asked for is left out, but that there is one is an error where the classes are asked.
    """
    if sample.boxes is None:
        raise UserError(f"{sample.path} has no boxes, which a head is to learn; use data that has.")
    numbers = {name: number for number, name in enumerate(asked)}
    targets = torch.zeros(len(sample.boxes), len(asked))
    for row, names in zip(targets, sample.box_names, strict=True):
        row[[numbers[name] for name in names if name in numbers]] = 1
    kept = targets.any(1)
    if sample.queries is None and not kept.all():
        raise UserError(
            f"{sample.path}: a box is called {sample.box_names[kept.int().argmin()][0]!r}, which is none of the "
            "classes that are asked for; give data whose samples have queries, as DetectionMixture, or all classes."
        )
    device = sample.boxes.device
    boxes = sample.boxes[kept.to(device)]
    return targets[kept].to(device), into_frame(boxes, geometry)


def _of_a_rank(counts: Tensor) -> Tensor:
    """The mean over all ranks; gradients are averaged over them, so that a sum over all images is divided by all."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
        counts /= dist.get_world_size()
    return counts
