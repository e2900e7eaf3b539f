"""How far what was written is from the model, image by image, through the model's own prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from siglip2_dense.contracts import Geometry, Size
from siglip2_dense.export.program import Run
from siglip2_dense.tasks.boxes import onto_image
from siglip2_dense.tasks.detection import best_scores
from siglip2_dense.tasks.open_vocabulary import OpenVocabulary, blend_probabilities
from siglip2_dense.tasks.windows import blend

LIMIT = 1e-3
"""The largest difference of depths, in their unit, of components of unit vectors, of scores of classes, of detections'
probabilities, and of their boxes, in parts of the image's sides."""

Windows = Sequence[tuple[Tensor, Geometry]]


@torch.no_grad()
def differences(probe, run: Run, cases: Sequence[tuple[int, Size]]) -> dict[str, float]:
    """For each head the largest difference over batches of noise; cases: number and size of the images of each.

    Label maps are compared by what the model says of them: how much lower it scores a pixel's label than its own. One
    of another shape is infinitely far.
    """
    generator = torch.Generator().manual_seed(0)
    found = {name: [] for name in probe.tasks}
    for count, size in cases:
        images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
        given = run(images)
        for number, read in enumerate(probe.read(list(images))):
            windows = {name: [(raw, place) for raw, place, _ in cut] for name, cut in read.items()}
            for name, task in probe.tasks.items():
                if task.target == "boxes":
                    parts = [given[f"{name}_{part}"][number] for part in ("boxes", "scores", "labels")]
                    found[name].append(_of_detections(task, windows[name], *parts))
                elif task.target == "labels":
                    found[name].append(_of_labels(task, windows[name], given[name][number]))
                else:
                    found[name].append(_of_maps(task.predict(windows[name]), given[name][number]))
    return {name: float(torch.stack(values).amax()) for name, values in found.items()}  # one that is no number stays so


def _of_maps(expected: Tensor, given: Tensor) -> Tensor:
    if expected.shape != given.shape:
        return torch.tensor(torch.inf)
    return (expected - given).abs().amax()


def _of_labels(task, windows: Windows, given: Tensor) -> Tensor:
    expected = task.predict(windows)
    if expected.shape != given.shape:
        return torch.tensor(torch.inf)
    if torch.equal(expected, given):
        return torch.zeros(())
    scores = blend_probabilities(windows) if isinstance(task, OpenVocabulary) else blend(windows)
    labels = getattr(task, "labels", None)
    if labels is not None:
        of_classes = scores.new_full((len(task.classes), *scores.shape[1:]), -torch.inf)
        scores = of_classes.index_reduce(0, labels, scores, "amax")
    own, theirs = (scores.gather(0, choice[None])[0] for choice in (expected, given))
    return (own - theirs).abs().amax()


def _of_detections(task, windows: Windows, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """The surest scores are compared in their order, and each detection with the nearest of the same class among all
    that the model could give: of nearly equal ones the order is anybody's guess.
    """
    ((raw, geometry),) = windows
    count = raw.boxes.shape[1] * len(task.classes)
    known, tokens, known_labels = best_scores(raw, task.labels, len(task.classes), count)
    if len(scores) > len(known):
        return torch.tensor(torch.inf)
    height, width = geometry.original
    sides = torch.tensor([width, height, width, height])
    known_boxes = onto_image(raw.boxes[0, tokens], geometry) / sides
    apart = (boxes[:, None] / sides - known_boxes).abs().amax(-1).maximum((scores[:, None] - known).abs())
    apart = apart.masked_fill(labels[:, None] != known_labels, torch.inf).amin(1)
    return torch.cat([apart, (scores - known[: len(scores)]).abs()]).amax()
