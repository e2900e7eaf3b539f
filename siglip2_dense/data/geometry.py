"""From depth and a camera to surface normals.

Depth is (1, H, W) along the camera's axis, 0 where there is none. Intrinsics are a (3, 3) matrix, skewed or not, that
takes a point of the camera's frame (x right, y down, z into the scene) to its pixel times its depth; pixels' centres
are at half-integers. Normals are (3, H, W) float32 unit vectors towards the camera, so that their product with the
pixel's ray is negative, and the zero vector where there is none.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import Size
from siglip2_dense.errors import UserError

ADVICE = "write the camera as three lines, fx 0 cx, 0 fy cy, 0 0 1, in pixels and with fx and fy above 0"
BACKGROUND = 1e6  # depth of a pixel without any, in the normals of probe3d
STRIP = 8192  # pixels whose windows are gathered at a time: they stay in the cache


def read_intrinsics(path: str | Path) -> Tensor:
    """(3, 3) float32 from a text file of three lines of three numbers; lines that begin with # do not count.

    Raises UserError naming the file when it is missing or holds anything else than a camera.
    """
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines() if not line.startswith("#")]
        matrix = torch.tensor([[float(number) for number in line] for line in lines if line])
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {ADVICE}.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {ADVICE}.") from error
    except ValueError as error:  # words, bytes that are no text, lines of unequal length
        raise UserError(f"{path}: not a 3x3 matrix of numbers ({error}); {ADVICE}.") from error
    return check_intrinsics(matrix, path)


def check_intrinsics(intrinsics: Tensor, where: str | Path, size: Size | None = None) -> Tensor:
    """``intrinsics`` itself; raises UserError beginning with ``where`` when it is no camera, or none of such images.

    size: of the images (height, width), to find a camera that belongs to another: it looks inside their middle half
        (the camera of half the size looks at its corner).
    """
    if intrinsics.shape != (3, 3):
        shape = "x".join(map(str, intrinsics.shape))
        raise UserError(f"{where}: has {shape} numbers instead of 3x3; {ADVICE}.")
    if not intrinsics.isfinite().all() or intrinsics[2].tolist() != [0, 0, 1] or (intrinsics.diagonal() <= 0).any():
        raise UserError(f"{where}: {intrinsics.tolist()} is no pinhole camera; {ADVICE}.")
    if size is not None:
        height, width = size
        x, y = intrinsics[:2, 2].tolist()
        if not (width / 4 < x < width * 3 / 4 and height / 4 < y < height * 3 / 4):
            raise UserError(
                f"{where}: the camera's axis is at column {x:g}, row {y:g}, far from the middle of images of "
                f"{height}x{width} pixels (height x width); give the intrinsics of images of this size."
            )
    return intrinsics


def fitted_normals(depth: Tensor, intrinsics: Tensor, window: int = 7, jump: float = 0.05) -> Tensor:
    """The normals of planes fitted by least squares to ``window`` x ``window`` pixels around each.

    Of a plane, the inverse depth is linear in the pixel's position: 1/z = a u + b v + c is what is fitted. Pixels that
    are off the middle one's own slope, carried on, by more than the share ``jump`` of their depth are beyond an edge
    and do not count. So a surface may run away at any angle, and by default 10 cm at 2 m are an edge while the noise
    and the steps of structured light, 1 % at 4 m, are not. There is no normal where the middle has no depth, where a
    quarter of the window or less counts (a corner of the image has more), or where all that counts lies on a line.
    Raises ValueError for a window that is even or below 3.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window={window}: give an odd number of pixels, 3 or more.")
    height, width = depth.shape[-2:]
    radius = window // 2
    inverse = torch.where(depth > 0, 1 / depth.double(), 0).float()  # (1, H, W), 0 = none
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32)
    v, u = (grid.flatten() for grid in torch.meshgrid(offset, offset, indexing="ij"))
    powers = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v])  # (6, window^2)

    padded = F.pad(inverse, [radius] * 4)
    slope = torch.stack([_slope(inverse[0], axis=1), _slope(inverse[0], axis=0)])
    rows = max(STRIP // width, 1)
    counts, sums = [], []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        around = F.unfold(padded[None, :, top : bottom + 2 * radius], window)[0]  # (window^2, pixels)
        middle = inverse[0, top:bottom].reshape(1, -1)
        difference = around - middle
        off = difference - powers[1:3].T @ slope[:, top:bottom].flatten(1)
        counted = (off.abs() <= jump * torch.minimum(around, middle)).float()  # where there is no depth, only its like
        counts.append(powers @ counted)
        sums.append(powers[:3] @ (difference * counted))
    n, su, sv, suu, suv, svv = torch.cat(counts, 1).double()  # small integers, so exact
    sq, suq, svq = torch.cat(sums, 1).double()

    # n times the covariances of u, v and the inverse depth q; all exact but those of q
    uu, uv, vv = n * suu - su * su, n * suv - su * sv, n * svv - sv * sv
    uq, vq = n * suq - su * sq, n * svq - sv * sq
    spread = uu * vv - uv * uv
    found = (spread > 0) & (n > window * window / 4)
    spread, n = torch.where(found, spread, 1), torch.where(found, n, 1)
    a, b = (vv * uq - uv * vq) / spread, (uu * vq - uv * uq) / spread
    at_middle = inverse.double().flatten() + (sq - a * su - b * sv) / n
    x, y = _centres((height, width))
    c = at_middle - a * x - b * y
    return _unit(-intrinsics.double().T @ torch.stack([a, b, c]) * found).reshape(3, height, width)


def _slope(inverse: Tensor, axis: int) -> Tensor:
    """(H, W) the smaller difference, to the pixel before or after: the one that crosses no edge; 0 = neither."""
    step = inverse.diff(dim=axis)
    length = inverse.shape[axis]
    both = (inverse > 0).narrow(axis, 0, length - 1) & (inverse > 0).narrow(axis, 1, length - 1)
    step = torch.where(both, step, torch.inf)
    border = torch.full_like(inverse.narrow(axis, 0, 1), torch.inf)
    before, after = torch.cat([border, step], axis), torch.cat([step, border], axis)
    smaller = torch.where(before.abs() < after.abs(), before, after)
    return torch.where(smaller.isinf(), 0, smaller)


def neighbour_normals(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """The normals between each pixel's four neighbours: the construction of probe3d for NAVI, with the sign reversed.

    probe3d takes the mean of the cross products of the differences to the left, top, right and bottom neighbours, in
    turn; it is (right - left) x (bottom - top), whatever the pixel's own depth. Pixels without depth count as 1e6 away,
    so normals beside them are not the surface's; the frame of one pixel has none. probe3d's camera looks along the
    image's top left corner: give intrinsics with a principal point of (0, 0) for its numbers, the true one for exact
    normals. Source: probe3d, ``evals/datasets/utils.py``.
    """
    height, width = depth.shape[-2:]
    filled = torch.where(depth > 0, depth, BACKGROUND).double()
    x, y = _centres((height, width))
    rays = torch.linalg.inv(intrinsics.double()) @ torch.stack([x, y, torch.ones_like(x)])
    points = filled * rays.reshape(3, height, width)
    normals = torch.zeros(3, height, width, dtype=torch.float64)
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    normals[:, 1:-1, 1:-1] = torch.linalg.cross(down, across, dim=0)
    return _unit(normals * (depth > 0))


def _centres(size: Size) -> tuple[Tensor, Tensor]:
    """(H * W,) each: x and y of every pixel's centre."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) + 0.5 for side in size), indexing="ij")
    return x.flatten(), y.flatten()


def _unit(vectors: Tensor) -> Tensor:
    """(3, ...) -> (3, ...) float32 of length 1, or 0 where they are 0."""
    length = vectors.square().sum(0).sqrt()
    return (vectors / torch.where(length > 0, length, 1)).float()
