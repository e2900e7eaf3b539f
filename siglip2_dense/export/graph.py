"""What is traced of a model: images in, finished maps out, of a whole batch at once.

A model by itself reads an image at a time, in windows, and asks about sizes; the same is written here without such
questions, so that a trace may be of any size. That it is the same is checked at every export (``parity``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siglip2_dense.contracts import Box, Geometry, RawDetections, Size
from siglip2_dense.losses.detection import corners
from siglip2_dense.models.catseg import CATSeg
from siglip2_dense.models.owlvit import GREY, OWLViT
from siglip2_dense.models.windows import pair
from siglip2_dense.resample import resize_directions, resize_logits, resize_pixels
from siglip2_dense.tasks.detection import MOST


class Graph(nn.Module):
    """(B, 3, H, W) uint8 RGB -> {output: tensor}; see ``program.outputs_of`` for what they are.

    The probe itself is no module of it: parameters that train have names there that a trace cannot have. None of them
    trains from here on.
    """

    def __init__(self, probe):
        super().__init__()
        self._probe = (probe,)
        self.tower, self.projection, self.heads = probe.encoder.tower, probe.encoder.projection, probe.heads
        self.requires_grad_(False)
        self._queries = {name: _numbers(task) for name, task in probe.tasks.items() if task.target == "boxes"}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        (probe,) = self._probe
        if isinstance(probe, OWLViT):
            return _detected(probe, images, self._queries)
        return _in_views(probe, images) if isinstance(probe, CATSeg) else _whole(probe, images)


def _whole(probe, images: Tensor) -> dict[str, Tensor]:
    """Of pixel probes: the image as it is, in one pass."""
    features = probe.features(images)
    (place,) = features.geometry
    found = {}
    for name, raw in probe.raw(features).items():
        task = probe.tasks[name]
        if task.target == "depth":
            found[name] = _pixels(task.depth_of(raw).clamp(task.min_depth, task.max_depth), place)
        elif task.target == "normals":
            found[name] = _pixels(raw[:, :3], place, resize_directions)
        else:
            found[name] = _best(_pixels(raw, place), task)
    return found


def _pixels(raw: Tensor, place: Geometry, resize: Callable[[Tensor, Size], Tensor] = resize_logits) -> Tensor:
    """(B, K, h, w) -> (B, K, *image): what the image fills of the map at its padded size."""
    top, left, height, width = place.box
    return resize(raw, place.padded).narrow(-2, top, height).narrow(-1, left, width)


def _best(scores: Tensor, task) -> Tensor:
    """(B, queries, H, W) -> (B, H, W) int64: the class of the best query."""
    best = scores.argmax(1)
    return best if getattr(task, "labels", None) is None else task.labels[best]


def _in_views(probe: CATSeg, images: Tensor) -> dict[str, Tensor]:
    """Of CAT-Seg: probabilities averaged over windows of the image, at the size that its inference names, and over the
    image as a whole.
    """
    size, pixels = probe.inference.get("size"), images.float()
    seen = pixels if size is None else resize_pixels(pixels, tuple(size), antialias=False)
    resized = tuple(seen.shape[-2:])
    windows = probe.windows(resized)
    views = [seen.narrow(-2, top, height).narrow(-1, left, width) for top, left, height, width in windows]
    if probe.inference.get("overview"):
        views.append(resize_pixels(pixels, pair(probe.inference["crop"]), antialias=False))
    together = torch.cat([_at_grid(probe, view) for view in views])
    features = probe.encoder.features(together, probe.taps, None, probe.pooled, probe.aligned)
    found = {}
    for name, raw in probe.raw(features).items():
        parts = []
        for scores, view in zip(raw.unflatten(0, (len(views), images.shape[0])).unbind(0), views, strict=True):
            whole = tuple(view.shape[-2:])  # what the grid covers, whatever shape that is
            place = Geometry(whole, (0, 0, *whole), whole, whole, whole) if probe.grid else features.geometry[0]
            parts.append(_pixels(scores, place).sigmoid())
        blended = _averaged(parts[: len(windows)], windows, resized)
        for overview in parts[len(windows) :]:
            blended = (blended + resize_logits(overview, resized)) / 2
        found[name] = _best(resize_logits(blended, tuple(images.shape[-2:])), probe.tasks[name])
    return found


def _at_grid(probe: CATSeg, view: Tensor) -> Tensor:
    return resize_pixels(view, probe.encoded(view.shape[-2:]), antialias=False) if probe.grid else view


def _averaged(parts: list[Tensor], windows: list[Box], size: Size) -> Tensor:
    """(B, K, h, w) of each window -> (B, K, *size), the mean where they overlap."""
    if len(windows) == 1:
        return parts[0]
    around = [
        (left, size[1] - left - width, top, size[0] - top - height) for top, left, height, width in windows
    ]  # of a window, on its left, right, top and bottom
    total = sum(F.pad(part, space) for part, space in zip(parts, around, strict=True))
    return total / sum(F.pad(torch.ones(box[2:]), space) for box, space in zip(windows, around, strict=True))


def _numbers(task) -> list[list[int]]:
    """Of each class the queries that ask for it."""
    labels = task.labels.tolist()
    return [[query for query, of in enumerate(labels) if of == label] for label in range(len(task.classes))]


def _detected(probe: OWLViT, images: Tensor, queries: dict[str, list[list[int]]]) -> dict[str, Tensor]:
    """Of detectors: the surest boxes of all tokens and classes."""
    height, width = images.shape[-2:]
    given = torch.cat([torch.full((1,), side, dtype=torch.float64) for side in (height, width)])
    side = probe.inference.get("size")
    if side is None:
        features = probe.features(images)
        size = given
    else:
        size = (given * side / given.amax(0)).round().clamp(min=1)
        features = probe.encoder.features(_squared(images, side, size), probe.taps, None, probe.pooled, probe.aligned)
    (place,) = features.geometry
    found = {}
    for name, raw in probe.raw(features).items():
        scores = _scores_of_classes(raw, queries[name])
        values, at = scores.flatten(1).topk(min(MOST, scores.shape[1] * scores.shape[2]))
        tokens, labels = at // scores.shape[2], at % scores.shape[2]
        boxes = raw.boxes.gather(1, tokens[..., None].expand(-1, -1, 4))
        found[f"{name}_boxes"] = _onto_image(boxes, place, size, given)
        found[f"{name}_scores"], found[f"{name}_labels"] = values.sigmoid(), labels
    return found


def _scores_of_classes(raw: RawDetections, queries: list[list[int]]) -> Tensor:
    """(B, N, classes) logits, of a class that of its best query; queries: of each class their numbers."""
    tokens = raw.embeddings / (raw.embeddings.norm(dim=-1, keepdim=True) + 1e-6)
    logits = (tokens @ raw.texts[0].T + raw.shift[..., None]) * raw.scale[..., None]
    if all(len(numbers) == 1 for numbers in queries):
        return logits
    return torch.stack([logits[..., numbers].amax(-1) for numbers in queries], dim=-1)


def _onto_image(boxes: Tensor, place: Geometry, size: Tensor, given: Tensor) -> Tensor:
    """(B, n, 4) centred, in parts of the padded square -> corners in pixels of the image: ``tasks.boxes.onto_image``.

    size: (2,) height and width of the image in the square; given: as it was.
    """
    frame, offset = torch.tensor(place.padded[::-1]).repeat(2), torch.tensor([place.box[1], place.box[0], 0, 0])
    inside = ((boxes * frame - offset) / size.flip(0).float().repeat(2)).clamp(0, 1)
    return corners(inside) * given.flip(0).float().repeat(2)


def _squared(images: Tensor, side: int, size: Tensor) -> Tensor:
    """``models.owlvit.squared`` of a batch, whose size in the square is a tensor (2,): one product of its rows and one
    of its columns with matrices that have as many rows as the square.
    """
    rows, columns = (_weights(length, side, inside) for length, inside in zip(images.shape[-2:], size, strict=True))
    outside = 1 - (rows.sum(1) > 0).float()[:, None] * (columns.sum(1) > 0).float()
    return rows @ images.float() @ columns.T + GREY * outside


def _weights(length: int, side: int, inside: Tensor) -> Tensor:
    """(side, length) float32: the matrix of a bilinear resize with antialiasing from ``length`` pixels to ``inside`` of
    them, a scalar; its further rows are 0.
    """
    pixels = torch.arange(length, dtype=torch.float64) + 0.5
    places = torch.arange(side, dtype=torch.float64)[:, None]
    scale = length / inside
    distance = (pixels - (places + 0.5) * scale).abs() / scale.clamp(min=1)
    weights = (1 - distance).clamp(min=0) * (places < inside)
    return (weights / weights.sum(1, keepdim=True).clamp(min=1e-12)).float()
