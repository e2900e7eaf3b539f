"""The sum of a loss over the pixels of up-sampled scores, and its gradient, from a few rows of pixels at a time.

The pixels of a row between the centres of two cells, a *run*, have scores on a straight line. A loss turns a block's
scores into their gradient in place, and this is brought back to the cells before the next block is begun.

A block has (S, R, C, K) scores: S pixels of a run, R rows, C runs of a row, K classes. In memory the classes come last,
or first where they are few, since loops over a short last axis are slow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import IGNORE
from siglip2_dense.resample import bilinear_corners, bilinear_runs, bilinear_weights
from siglip2_dense.threads import map_in_threads

FEW = 32  # classes
CPU_BLOCK, GPU_BLOCK = 3 * 2**20, 2**28  # bytes of a block, of which each thread has one: so much stays in caches
BESIDE = 80  # bytes of a pixel beside its scores: its label, and what is computed of it
LEAST = 4  # rows of a block, however many classes there are: each block has its costs


def summed(
    scores: Tensor,
    labels: Tensor,
    loss: Callable[[Block], tuple[Tensor, Tensor]],
    threads: int,
    relative: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """The loss of scores (B, K, h, w), up-sampled to labels (B, H, W), as float64, and its gradient (B, K, h, w).

    Pixels that do not count cost nothing where they fill an image, or its border. Terms are always added in the same
    order, whatever the number of threads.

    scores: float32 or wider.
    loss: turns the scores of a block into their gradient up to a factor (S, R, C); gives the block's value and that.
    relative: whether only differences between classes matter. Then the highest score of each cell is made 0; as weights
        sum to 1, the same is taken from all scores of a pixel.
    """
    total = torch.zeros((), dtype=torch.float64, device=scores.device)
    gradient = torch.zeros(scores.shape, dtype=scores.dtype, device=scores.device) if with_gradient else None
    numbers = (labels.flatten(1).amax(1) > IGNORE).nonzero()[:, 0].tolist()
    images = {number: _Image(scores[number], labels[number], relative) for number in numbers}
    size = CPU_BLOCK if scores.device.type == "cpu" else GPU_BLOCK
    blocks = [(image, rows) for image in images.values() for rows in image.blocks(size)]
    largest = max((len(rows) * image.pixels.numel() * scores.shape[1] for image, rows in blocks), default=0)

    def work(of: tuple[_Image, range], buffer: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad(), torch.autocast(buffer.device.type, enabled=False):  # a thread has both to itself
            block = Block(*of, buffer)
            value, factor = loss(block)
            return value, block.pull_back(factor) if with_gradient else None

    results = map_in_threads(work, blocks, lambda: scores.new_empty(largest), threads)
    for (image, rows), (value, part) in zip(blocks, results, strict=True):
        total += value
        if with_gradient:
            image.gradient[image.cells_of(rows)] += part
    for number, image in images.items() if with_gradient else ():
        image.add_gradient_to(gradient[number])
    return total, gradient


class _Image:
    """The part of an image in which pixels count, and what its blocks have in common."""

    def __init__(self, scores: Tensor, labels: Tensor, relative: bool):
        """scores: (K, h, w); labels: (H, W)."""
        classes, height, width = scores.shape
        rows, columns = ((labels.amax(axis) > IGNORE).nonzero()[:, 0].tolist() for axis in (1, 0))
        self.rows, self.labels, self.few = range(rows[0], rows[-1] + 1), labels, classes < FEW
        self.low = bilinear_corners(height, len(labels))[0].tolist()
        self.top, self.bottom = self.low[rows[0]], min(self.low[rows[-1]] + 2, height)
        self.weights = bilinear_weights(height, len(labels)).to(scores)

        run, pixels, first, self.step = bilinear_runs(width, labels.shape[1])
        self.left, right = int(run[columns[0]]) - 1, int(run[columns[-1]])  # first and last column of cells
        runs = slice(self.left + 1, right + 1)
        self.pixels, self.first = pixels[:, runs].to(labels.device), first[runs, None].to(scores)
        number = torch.arange(len(pixels)).to(scores)
        self.powers = torch.stack([torch.ones_like(number), number * self.step])  # (2, S)

        columns = torch.arange(self.left, right + 1, device=scores.device).clamp(0, width - 1)
        cells = scores[:, self.top : self.bottom].index_select(2, columns)
        if relative:
            cells -= cells.amax(0)
        self.lowest = cells.amin().item()
        self.cells = cells.permute(1, 2, 0) if self.few else cells.permute(1, 2, 0).contiguous()  # (h', C + 1, K)
        self.gradient = torch.zeros_like(self.cells)

    def blocks(self, size: int) -> list[range]:
        """Rows of pixels that take ``size`` bytes at most, or as few as may be; of nearly one length."""
        row = self.pixels.numel() * (self.cells.shape[2] * self.cells.element_size() + BESIDE)
        count = -(-len(self.rows) // max(size // row, LEAST))
        step = -(-len(self.rows) // count)
        return [self.rows[start : start + step] for start in range(0, len(self.rows), step)]

    def cells_of(self, rows: range) -> slice:
        """The rows of ``cells`` that these rows of pixels are made of."""
        return slice(self.low[rows[0]] - self.top, min(self.low[rows[-1]] + 2, self.bottom) - self.top)

    def add_gradient_to(self, gradient: Tensor) -> None:
        """gradient: (K, h, w) of the whole image."""
        found, left, right = self.gradient, max(self.left, 0), self.left + self.gradient.shape[1]
        if self.left < 0:
            found[:, 1] += found[:, 0]
            found = found[:, 1:]
        if right > gradient.shape[2]:
            found[:, -2] += found[:, -1]
            found, right = found[:, :-1], right - 1
        gradient[:, self.top : self.bottom, left:right] = found.permute(2, 0, 1)


class Block:
    """Some rows of pixels of an image: room for their ``scores`` (S, R, C, K), their ``labels`` (S, R, C)."""

    def __init__(self, image: _Image, rows: range, buffer: Tensor):
        cells = image.cells_of(rows)
        self.image, self.lowest = image, image.lowest
        self.weights = image.weights[rows[0] : rows[-1] + 1, image.top + cells.start : image.top + cells.stop]
        self.lines = lines = self._product(self.weights, image.cells[cells])  # (R, C + 1, K)
        self.start, self.slope = lines[:, :-1], lines[:, 1:] - lines[:, :-1]

        labels = F.pad(image.labels[rows[0] : rows[-1] + 1], (0, 1), value=IGNORE)  # beyond the end of a run
        places = image.pixels[:, None] + labels.shape[1] * torch.arange(len(labels), device=labels.device)[:, None]
        self.labels = labels.flatten().index_select(0, places.flatten()).view(places.shape)
        pixels, classes = places.numel(), lines.shape[-1]
        self._memory = buffer[: pixels * classes]
        if image.few:
            self.scores = self._memory.view(classes, *places.shape).permute(1, 2, 3, 0)
        else:
            self.scores = self._memory.view(*places.shape, classes)
        of_pixel, of_class = (1, pixels) if image.few else (classes, 1)  # steps in memory
        first = torch.arange(0, pixels * of_pixel, of_pixel, device=labels.device)
        self._own = first.add_(self.labels.clamp(0, classes - 1).flatten(), alpha=of_class)

    def straight(self) -> Tensor:
        """Computes the scores."""
        place = self.image.first + self.image.powers[1].view(-1, 1, 1, 1)
        return torch.mul(self.slope, place, out=self.scores).add_(self.start)

    def exponentials(self) -> Tensor:
        """Computes exp of the scores, a geometric sequence along each run: two exponentials and their products."""
        scores = self.scores
        torch.addcmul(self.start, self.slope, self.image.first, out=scores[0]).exp_()
        ratio, done = (self.slope * self.image.step).exp_(), 1
        while done < len(scores):
            more = min(done, len(scores) - done)
            torch.mul(scores[:more], ratio, out=scores[done : done + more])
            ratio.square_()
            done += more
        return scores

    def at_labels(self) -> Tensor:
        """(S, R, C): what stands in ``scores`` for the class of each pixel; for class 0 where it has none."""
        return self._memory.index_select(0, self._own).view(self.labels.shape)

    def put_at_labels(self, values: Tensor) -> None:
        self._memory.scatter_(0, self._own, values.flatten())

    def pull_back(self, factor: Tensor) -> Tensor:
        """From the gradient of scores, ``scores`` times ``factor``, to that of ``image.cells_of(rows)``."""
        image = self.image
        gradient = self.scores.mul_(factor[..., None])
        total, right = self._product(image.powers, gradient.flatten(1, 2)).view(2, *self.slope.shape)
        right.addcmul_(total, image.first)
        lines = self.lines  # no longer needed
        torch.sub(total, right, out=lines[:, :-1])
        lines[:, -1] = 0
        lines[:, 1:] += right
        return self._product(self.weights.T, lines)

    def _product(self, matrix: Tensor, values: Tensor) -> Tensor:
        """(m, n) times the first axis of (n, a, K), in either order of memory."""
        if self.image.few:
            return (matrix @ values.permute(2, 0, 1)).permute(1, 2, 0)
        return (matrix @ values.flatten(1)).view(len(matrix), *values.shape[1:])
