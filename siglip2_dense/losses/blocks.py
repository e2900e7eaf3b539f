"""The sum of a loss over the pixels of up-sampled scores, and its gradient, from a few of these pixels at a time.

The pixels between the centres of four neighbouring cells, a *quad*, have scores that are straight lines along its rows
and along its columns. A loss turns the scores of a block of quads into their gradient in place, and this is summed up
for each quad before the next block is begun.

A block has (Y, X, N, K) scores: Y x X pixels of each of N quads, K classes. Where these are few it has them as
(Y, X, K, N), since loops over a short last axis are slow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import IGNORE
from siglip2_dense.resample import bilinear_runs
from siglip2_dense.threads import map_in_threads

FEW = 32  # classes
CPU_BLOCK, GPU_BLOCK = 3 * 2**20, 2**28  # bytes of a block, of which each thread has one: so much stays in caches
BESIDE = 40  # bytes of a pixel beside its scores: its label, and what is computed of it
LEAST = 8  # quads of a block, however many classes there are: each block has its costs
LOWEST = -80.0  # of a score, beside the highest of its cell: much further down float32 has no exponentials


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
    loss: turns the scores of a block into their gradient up to a factor (Y, X, N); gives the block's value and that.
    relative: whether only differences between classes matter. Then the highest score of each cell is made 0; as weights
        sum to 1, the same is taken from all scores of a pixel.
    """
    axes = [_Axis(*sizes, scores) for sizes in zip(scores.shape[2:], labels.shape[1:], strict=True)]
    seen = [labels.amax(along) > IGNORE for along in (2, 1)]  # rows and columns with pixels that count
    images = {
        number: _Image(scores[number], labels[number], axes, ends, relative)
        for number, ends in enumerate(zip(*seen, strict=True))
        if ends[0].any()
    }
    high, wide = (len(axis.pixels) for axis in axes)
    size = CPU_BLOCK if scores.device.type == "cpu" else GPU_BLOCK
    most = max(size // (high * wide * (scores.shape[1] * scores.element_size() + BESIDE)), LEAST)
    blocks = [(image, quads) for image in images.values() for quads in image.blocks(most)]
    room = (high + 1) * wide * scores.shape[1] * max((len(quads) for _, quads in blocks), default=0)

    def work(of: tuple[_Image, range], buffer: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(buffer.device.type, enabled=False):  # a thread has both to itself
            block = Block(*of, buffer)
            value, factor = loss(block)
            if with_gradient:
                block.pull_back(factor)
            return value

    total = torch.zeros((), dtype=torch.float64, device=scores.device)
    for value in map_in_threads(work, blocks, lambda: scores.new_empty(room), threads):
        total += value
    if not with_gradient:
        return total, None
    gradient = torch.zeros_like(scores, memory_format=torch.contiguous_format)
    for number, image in images.items():
        gradient[number] = image.gradient()
    return total, gradient


class _Axis:
    """The n quads along one axis, of S pixels at most.

    pixels: (S, n), with ``inside`` where a quad has fewer. first: (n,) where its first one is on the way from one cell
    to the next. powers: (2, S): how much further the others are, and 1. reach: how far from 0 the scores of S pixels
    can be, in parts of the farthest of a cell: where a quad has fewer, the rest are computed too, beyond the next cell.
    """

    def __init__(self, cells: int, pixels: int, scores: Tensor):
        self.run, members, first, self.step = bilinear_runs(cells, pixels)
        self.inside = (members < pixels).to(scores.device)
        self.pixels, self.first = members.clamp(max=pixels - 1).to(scores.device), first.to(scores)
        number = torch.arange(len(members))
        self.powers = torch.stack([number * self.step, torch.ones(len(number))]).to(scores)
        inner = first[1:-1].tolist() or [0.0]  # in the outermost quads scores do not change along this axis
        self.reach = max(2 * (max(inner) + (len(number) - 1) * self.step) - 1, 1)

    def holding(self, seen: Tensor) -> slice:
        """The quads from the first to the last with such a pixel (pixels,)."""
        places = self.run[seen.nonzero()[:, 0].cpu()]
        return slice(int(places[0]), int(places[-1]) + 1)


class _Image:
    """The quads of an image that hold its counted pixels, row by row.

    lines: (2, 2, N, K), or (2, 2, K, N): the scores of the first pixel of each quad, and before them how they change
    from cell to cell, down the columns and along the rows. Blocks put the gradient of these in their place.
    """

    def __init__(self, scores: Tensor, labels: Tensor, axes: list[_Axis], seen: Sequence[Tensor], relative: bool):
        """scores: (K, h, w); labels: (H, W); seen: (H,) and (W,)."""
        few = len(scores) < FEW
        self.scores, self.labels, self.axis = scores, labels, -2 if few else -1  # that of classes
        rows, columns = quads = [axis.holding(pixels) for axis, pixels in zip(axes, seen, strict=True)]
        self.corners = slice(None), *(slice(part.start, part.stop + 1) for part in quads)
        cells = F.pad(scores, (1, 1, 1, 1), mode="replicate")[self.corners]
        if relative:
            cells = cells - cells.amax(0)
        self.lowest = cells.amin().item() * axes[0].reach * axes[1].reach

        places = (-2, -1) if few else (-3, -2)
        self.first = [
            (place, axis.first[part].view(-1, *[1] * (-place - 1)))
            for place, axis, part in zip(places, axes, quads, strict=True)
        ]
        lines = cells if few else cells.permute(1, 2, 0)
        for first in reversed(self.first):
            lines = _lines(lines, *first)
        self.lines, self.grid = lines.flatten(*places), [part.stop - part.start for part in quads]
        self.down, self.across = (axis.powers for axis in axes)
        self.along = torch.stack([self.across.T * axes[0].step, self.across.T])

        high, wide = self.grid
        self.y, self.x = axes[0].pixels[:, rows].repeat_interleave(wide, 1), axes[1].pixels[:, columns].repeat(1, high)
        self.inside = axes[0].inside[:, rows].repeat_interleave(wide, 1), axes[1].inside[:, columns].repeat(1, high)

    def blocks(self, most: int) -> list[range]:
        """The numbers of quads, so many at most, in parts of nearly one length."""
        quads = range(self.y.shape[1])
        step = -(-len(quads) // -(-len(quads) // most))
        return [quads[start : start + step] for start in range(0, len(quads), step)]

    def gradient(self) -> Tensor:
        """(K, h, w), from that of ``lines``."""
        lines = self.lines.unflatten(-3 - self.axis, self.grid)
        for first in self.first:
            lines = _lines_back(lines, *first)
        classes, height, width = self.scores.shape
        cells = lines.new_zeros(classes, height + 2, width + 2)
        cells[self.corners] = lines if self.axis == -2 else lines.permute(2, 0, 1)
        for axis in (1, 2):  # the cells beside the outermost ones were these again
            cells.select(axis, 1).add_(cells.select(axis, 0))
            cells.select(axis, -2).add_(cells.select(axis, -1))
        return cells[:, 1:-1, 1:-1]


def _lines(values: Tensor, axis: int, first: Tensor) -> Tensor:
    """(2, ...): the change from each value to the next one along an axis, and what is ``first`` of the way."""
    low, high = values.narrow(axis, 0, values.shape[axis] - 1), values.narrow(axis, 1, values.shape[axis] - 1)
    found = low.new_empty(2, *low.shape)
    torch.addcmul(low, torch.sub(high, low, out=found[0]), first, out=found[1])
    return found


def _lines_back(gradient: Tensor, axis: int, first: Tensor) -> Tensor:
    """From the gradient of what ``_lines`` gives, which is overwritten, to that of its values."""
    change, start = gradient
    change.addcmul_(start, first)
    start -= change
    beside = [0, 0] * (-axis - 1)
    values = F.pad(start, (*beside, 0, 1))
    values.narrow(axis, 1, change.shape[axis]).add_(change)
    return values


class Block:
    """Some quads of an image: room for the ``scores`` of their pixels, with the classes along ``axis``.

    labels: (Y, X, N); counted: 1 where one counts, or 0.
    """

    def __init__(self, image: _Image, quads: range, buffer: Tensor):
        part, classes = slice(quads.start, quads.stop), len(image.scores)
        self.image, self.axis, self.lowest = image, image.axis, image.lowest
        self.labels = image.labels[image.y[:, None, part], image.x[:, part]]
        down, across = image.inside
        counted = (self.labels != IGNORE) & down[:, None, part] & across[:, part]
        self.counted = counted.to(buffer.dtype)
        self._own = self.labels.clamp(0, classes - 1).unsqueeze(self.axis)

        self._lines = image.lines.narrow(-3 - self.axis, quads.start, len(quads))
        high, wide = len(image.y), len(image.x)
        memory = buffer[: (high + 1) * wide * len(quads) * classes].view(high + 1, wide, *self._lines.shape[2:])
        torch.bmm(image.along, self._lines.flatten(2), out=memory[:2].flatten(2))
        self._changes, self.scores, self._firsts = memory[0], memory[1:], memory[:2]

    def straight(self) -> Tensor:
        """Computes the scores."""
        number = torch.arange(1, len(self.scores)).to(self.scores).view(-1, 1, 1, 1)
        torch.mul(self._changes, number, out=self.scores[1:]).add_(self.scores[0])
        return self.scores

    def exponentials(self) -> Tensor:
        """Computes exp of the scores, a geometric sequence down each column: two exponentials and their products."""
        self._firsts.exp_()
        scores, ratio, done = self.scores, self._changes, 1
        while done < len(scores):
            more = min(done, len(scores) - done)
            torch.mul(scores[:more], ratio, out=scores[done : done + more])
            ratio.square_()
            done += more
        return scores

    def at_labels(self) -> Tensor:
        """(Y, X, N): what stands in ``scores`` for the class of each pixel; for some class where it has none."""
        return self.scores.gather(self.axis, self._own).squeeze(self.axis)

    def put_at_labels(self, values: Tensor) -> None:
        self.scores.scatter_(self.axis, self._own, values.unsqueeze(self.axis))

    def pull_back(self, factor: Tensor) -> None:
        """From the gradient of scores, ``scores`` times ``factor``, to that of the image's lines."""
        gradient = self.scores.mul_(factor.unsqueeze(self.axis))
        high, wide = gradient.shape[:2]
        gradient = self.image.down @ gradient.view(high, -1)
        gradient = self.image.across @ gradient.view(2, wide, -1)
        self._lines.copy_(gradient.view(self._lines.shape))
