"""Generated scenes: rooms with solids on the floor, ray-cast so that every target is exact.

The world is in metres, x and y along the floor, z up. A ray's direction has length 1 along the camera's axis, so the
multiple of it that ends at a surface is the depth there. Arrays over pixels are (3, P) or (P,), with P = H * W.
Geometry is computed in float64, light in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from siglip2_dense.contracts import IGNORE, Sample, Size

CLASSES = ("floor", "wall", "ceiling", "box", "sphere", "cylinder")
PALETTE = [(160, 110, 60), (120, 150, 200), (235, 225, 170), (220, 60, 50), (60, 170, 80), (150, 70, 190)]
MIN_VISIBLE = 12  # a solid with fewer visible pixels is labelled but has no entry in ``boxes``
STRIP = 12288  # rays at a time: their arrays stay in the cache

COLOURS = {
    "red": (0.80, 0.13, 0.11),
    "orange": (0.93, 0.50, 0.10),
    "yellow": (0.92, 0.82, 0.16),
    "green": (0.17, 0.55, 0.21),
    "blue": (0.13, 0.27, 0.75),
    "purple": (0.47, 0.19, 0.62),
    "pink": (0.93, 0.55, 0.70),
    "brown": (0.42, 0.26, 0.14),
    "white": (0.90, 0.90, 0.87),
    "black": (0.12, 0.12, 0.13),
}
SURFACES = {  # class: its patterns, and the range of their period in metres
    "floor": (("checker", "planks", "tiles", "clouds"), (0.20, 0.50)),
    "wall": (("plain", "bricks", "stripes", "clouds"), (0.15, 0.40)),
    "ceiling": (("plain", "tiles"), (0.40, 0.70)),
    "box": (("plain", "planks", "checker", "stripes"), (0.08, 0.20)),
    "sphere": (("plain", "dots", "stripes"), (0.08, 0.20)),
    "cylinder": (("plain", "stripes", "dots", "clouds"), (0.08, 0.20)),
}


@dataclass(frozen=True)
class _Texture:
    pattern: str
    period: float  # metres
    colours: np.ndarray  # (2, 3) in 0-1: the main colour and that of joints, dots or every other cell
    table: np.ndarray  # (16, 16) random values in 0-1, repeated over the plane


@dataclass(frozen=True)
class _Solid:
    kind: str  # "box", "sphere" or "cylinder"
    half: np.ndarray  # (3,) half of its size along its own axes, metres
    centre: np.ndarray  # (3,)
    yaw: float  # radians about the vertical
    colour: str
    texture: _Texture


@dataclass(frozen=True)
class _Scene:
    room: np.ndarray  # (3,) size; one corner is the origin
    textures: tuple[_Texture, ...]  # of floor, wall and ceiling
    solids: tuple[_Solid, ...]
    eye: np.ndarray  # (3,)
    axes: np.ndarray  # (3, 3) rows: the camera's right, down and forward in the world
    focal: float  # in widths of the image
    lamp: np.ndarray  # (3,)
    tint: np.ndarray  # (3,) colour and strength of the lamp
    ambient: float


# What is in a scene


def _texture(rng: np.random.Generator, surface: str, main: np.ndarray) -> _Texture:
    patterns, periods = SURFACES[surface]
    contrast = rng.uniform(0.45, 0.8)
    second = main * contrast if main.mean() > 0.35 else 1 - (1 - main) * contrast
    return _Texture(
        str(rng.choice(patterns)),
        rng.uniform(*periods),
        np.stack([main, second]).astype(np.float32),
        rng.random((16, 16), np.float32),
    )


def _muted(rng: np.random.Generator) -> np.ndarray:
    """A paint for any face of the room: (3,) in 0-1, from grey to half saturated."""
    hue = rng.random(3)
    return rng.uniform(0.45, 0.9) * (1 - rng.uniform(0, 0.5) * (hue - hue.min()) / np.ptp(hue))


def _solid(rng: np.random.Generator, eye: np.ndarray, heading: float) -> _Solid:
    kind = str(rng.choice(CLASSES[3:]))
    if kind == "box":
        half = rng.uniform((0.15, 0.15, 0.12), (0.45, 0.45, 0.55))
    elif kind == "sphere":
        half = np.full(3, rng.uniform(0.15, 0.45))
    else:
        half = rng.uniform(0.12, 0.32) * np.array([1, 1, 0]) + np.array([0, 0, rng.uniform(0.15, 0.65)])
    distance, angle = rng.uniform(1.6, 4.5), heading + rng.uniform(-0.5, 0.5)
    centre = np.array([eye[0] + distance * np.sin(angle), eye[1] + distance * np.cos(angle), half[2]])
    colour = str(rng.choice(list(COLOURS)))
    main = np.clip(np.array(COLOURS[colour]) + rng.uniform(-0.05, 0.05, 3), 0.02, 1)
    return _Solid(kind, half, centre, rng.uniform(0, np.pi), colour, _texture(rng, kind, main))


def _fits(solid: _Solid, others: list[_Solid], room: np.ndarray) -> bool:
    """Whether it stands free of the walls and of the other solids."""
    reach = np.hypot(*solid.half[:2])
    if (solid.centre[:2] < reach).any() or (solid.centre[:2] > room[:2] - reach).any():
        return False
    gaps = [np.hypot(*(solid.centre - other.centre)[:2]) - reach - np.hypot(*other.half[:2]) for other in others]
    return min(gaps, default=1) > 0


def _camera_axes(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) rows right, down, forward; yaw from y towards x, pitch downwards, roll clockwise, all in radians."""
    forward = np.array([np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), -np.sin(pitch)])
    right = np.array([np.cos(yaw), -np.sin(yaw), 0])
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    return np.stack([cos * right + sin * down, cos * down - sin * right, forward])


def _scene(rng: np.random.Generator) -> _Scene:
    room = rng.uniform((3.5, 5.0, 2.3), (6.5, 8.0, 2.9))
    eye = rng.uniform((0.3, 0.05, 0), (0.7, 0.2, 0)) * room + np.array([0, 0, rng.uniform(0.9, 1.8)])
    yaw = rng.uniform(-0.6, 0.6)
    axes = _camera_axes(yaw, rng.uniform(0.0, 0.42), rng.normal(0, 0.04))
    solids: list[_Solid] = []
    wanted = rng.integers(2, 7)
    for _ in range(200):  # a crowded corner may have no place for the last
        solid = _solid(rng, eye, yaw)
        if _fits(solid, solids, room):
            solids.append(solid)
        if len(solids) == wanted:
            break
    return _Scene(
        room=room,
        textures=tuple(_texture(rng, surface, _muted(rng)) for surface in CLASSES[:3]),
        solids=tuple(solids),
        eye=eye,
        axes=axes,
        focal=rng.uniform(0.6, 0.95),
        lamp=rng.uniform((0.2, 0.1, 0.75), (0.8, 0.7, 0.92)) * room,
        tint=rng.uniform(0.9, 1.5) * rng.uniform(0.85, 1, 3),
        ambient=rng.uniform(0.25, 0.45),
    )


# Where rays meet surfaces


def _turn(vectors: np.ndarray, angle: float) -> np.ndarray:
    """(3, P) turned about the vertical."""
    x, y, z = vectors
    cos, sin = math.cos(angle), math.sin(angle)
    return np.stack([cos * x - sin * y, sin * x + cos * y, z])


def _inside_slab(origin: np.ndarray, rays: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last multiple of each ray, (P,), within +-half (n, 1) along all n axes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / rays
        one, other = (-half - origin) * inverse, (half - origin) * inverse
    return np.minimum(one, other).max(0), np.maximum(one, other).min(0)


def _inside_ball(origin: np.ndarray, rays: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As above, within ``radius`` (1,) of the origin: a sphere of 3 axes, an endless cylinder of 2. NaN = never."""
    a, b, c = (rays * rays).sum(0), (origin * rays).sum(0), (origin * origin).sum(0) - radius**2
    with np.errstate(invalid="ignore"):
        root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


def _enter(solid: _Solid, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """(P,) the multiple of each ray at which it enters the solid from outside, else infinity.

    origin: (3, 1) or (3, P) in the world.
    """
    centre, half = (vector[:, None].astype(rays.dtype) for vector in (solid.centre, solid.half))
    origin = origin - centre
    if solid.kind == "box":
        first, last = _inside_slab(_turn(origin, -solid.yaw), _turn(rays, -solid.yaw), half)
    elif solid.kind == "sphere":
        first, last = _inside_ball(origin, rays, half[0])
    else:
        sides = _inside_ball(origin[:2], rays[:2], half[0])
        caps = _inside_slab(origin[2:], rays[2:], half[2:])
        first, last = np.maximum(sides[0], caps[0]), np.minimum(sides[1], caps[1])
    return np.where((first < last) & (first > 0), first, np.inf)


def _surface(kind: str, half: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outward unit normals (3, P) and coordinates along the surface (2, P) in metres, in the solid's own axes."""
    x, y, z = points
    around = half[0] * np.arctan2(y, x)
    if kind == "sphere":
        return points / np.sqrt((points * points).sum(0)), np.stack([around, z])
    if kind == "cylinder":
        radius = np.hypot(x, y)
        cap = np.abs(z) / half[2] > radius / half[0]
        normals = np.where(cap, np.stack([0 * x, 0 * x, np.sign(z)]), np.stack([x / radius, y / radius, 0 * x]))
        return normals, np.where(cap, [x, y], [around, z])
    axis = np.abs(points / half[:, None]).argmax(0)
    normals = np.sign(points) * (axis == np.arange(3)[:, None])
    return normals, np.stack([np.where(axis == 0, y, x), np.where(axis == 2, y, z)])


# What surfaces look like


def _pulse(x: np.ndarray, width: np.ndarray, duty: float) -> np.ndarray:
    """Mean over [x - width / 2, x + width / 2] of the wave that is 1 in the first ``duty`` of each period, else 0.

    The mean over a pixel's footprint keeps distant patterns from turning into moire.
    """

    def integral(x):
        whole = np.floor(x)
        return whole * duty + np.minimum(x - whole, duty)

    return (integral(x + width / 2) - integral(x - width / 2)) / width


def _clouds(table: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(P,) the table, one entry per unit, blended between entries."""
    column, row = np.floor(u), np.floor(v)
    fu, fv = u - column, v - row
    i, j = row.astype(int) % 16, column.astype(int) % 16
    top = table[i, j] * (1 - fu) + table[i, j - 15] * fu  # j - 15 is j + 1 modulo 16
    bottom = table[i - 15, j] * (1 - fu) + table[i - 15, j - 15] * fu
    return top * (1 - fv) + bottom * fv


def _paint(texture: _Texture, u: np.ndarray, v: np.ndarray, width: np.ndarray) -> np.ndarray:
    """(3, P) colours in 0-1 at surface coordinates (P,); width (P,): what a pixel covers, all in metres."""
    u, v, width = u / texture.period, v / texture.period, np.maximum(width / texture.period, 1e-6)
    tone = 0.9 + 0.2 * _clouds(texture.table, 0.7 * u, 0.7 * v)
    if texture.pattern == "plain":
        second = np.zeros_like(u)
    elif texture.pattern == "clouds":
        second = 0.6 * _clouds(texture.table, 2 * u, 2 * v) + 0.4 * _clouds(texture.table, 5 * u, 5 * v)
    elif texture.pattern == "stripes":
        second = _pulse(u, width, 0.4)
    elif texture.pattern == "checker":
        a, b = _pulse(u, width, 0.5), _pulse(v, width, 0.5)
        second = a + b - 2 * a * b
    elif texture.pattern == "dots":
        distance = np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5)
        second = np.clip(0.5 + (0.3 - distance) / width, 0, 1)
    else:  # cells with joints: rows of them, each row moved along
        length = {"tiles": 1, "bricks": 1, "planks": 4}[texture.pattern]
        height = {"tiles": 1, "bricks": 0.4, "planks": 0.5}[texture.pattern]
        row = np.floor(v / height)
        shift = {"tiles": 0 * row, "bricks": row / 2, "planks": texture.table[0, row.astype(int) % 16]}[texture.pattern]
        column = u / length + shift
        joints = _pulse(v / height, width / height, 0.04 / height), _pulse(column, width / length, 0.04 / length)
        second = 1 - (1 - joints[0]) * (1 - joints[1])
        shade = texture.table[row.astype(int) % 16, np.floor(column).astype(int) % 16]
        tone = tone + 0.25 * (shade - 0.5) * np.clip(1.5 - width, 0, 1)
    main, other = texture.colours[:, :, None]
    return (main + (other - main) * second) * tone


def _light(scene: _Scene, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """(3, P) light that the surfaces give back if white: from all around, and from the lamp where it is seen."""
    to_lamp = scene.lamp[:, None].astype(points.dtype) - points
    distance = np.sqrt((to_lamp * to_lamp).sum(0))
    direct = np.maximum((normals * to_lamp).sum(0) / distance, 0) / (1 + (distance / 4) ** 2)
    for solid in scene.solids:
        direct[_enter(solid, points, to_lamp) < 1] = 0
    return scene.ambient * (0.85 + 0.15 * normals[2]) + scene.tint[:, None].astype(direct.dtype) * direct


def _develop(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Linear light (3, H, W) -> (3, H, W) uint8: a slight blur as of a lens, a camera's curve and sensor noise."""
    padded = np.pad(light, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 4 * padded[:, 1:-1] + padded[:, 2:]
    blurred = (rows[:, :, :-2] + 4 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 36
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    return (255 * np.sqrt(blurred) + 2.5 * noise).round().clip(0, 255).astype(np.uint8)


def _trace(scene: _Scene, rays: np.ndarray, pixel: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What rays (3, P) from the eye meet; pixel: the side of a pixel at depth 1.

    Returns depth (P,); part (P,), which is 0 floor, 1 wall, 2 ceiling, i + 3 solid i; normals (3, P) in the world
    towards the eye; light (3, P) that comes back.
    """
    eye, half = scene.eye[:, None], scene.room[:, None] / 2
    depth = _inside_slab(eye - half, rays, half)[1]
    part = np.zeros(len(depth), np.int64)
    for i, solid in enumerate(scene.solids):
        entry = _enter(solid, eye, rays)
        part[entry < depth] = i + 3
        depth = np.minimum(depth, entry)
    points = eye + depth * rays

    outward, coordinates = _surface("box", scene.room / 2, points - half)
    normals = -outward
    part = np.where(part == 0, 1 + outward[2].astype(int), part)  # the floor is the room's lower face
    for i, solid in enumerate(scene.solids):
        seen = np.flatnonzero(part == i + 3)
        local = _turn(points[:, seen] - solid.centre[:, None], -solid.yaw)
        outward, coordinates[:, seen] = _surface(solid.kind, solid.half, local)
        normals[:, seen] = _turn(outward, solid.yaw)

    facing = -(normals * rays).sum(0)
    footprint = pixel * depth / np.sqrt(np.maximum(facing, 0.02))  # between the pixel's two extents on a slant
    points, coordinates, footprint, normals = (
        array.astype(np.float32) for array in (points, coordinates, footprint, normals)
    )
    light = _light(scene, points, normals)
    for i, texture in enumerate([*scene.textures, *(solid.texture for solid in scene.solids)]):
        seen = np.flatnonzero(part == i)
        light[:, seen] *= _paint(texture, *coordinates[:, seen], footprint[seen]) ** 2
    return depth, part, normals, light


def render(index: int, size: Size = (192, 256), seed: int = 0, names: Sequence[str] = CLASSES) -> Sample:
    """The scene with this number: the same arrays for the same arguments, the same scene at every size.

    names: of the classes: "floor", "wall", "ceiling"; "box", "sphere", "cylinder", and any of these with a colour
    before it, "red box", which is then of no other class. What is of none of them does not count.
    Returns a Sample of image (3, H, W) uint8; labels (H, W) int64 into ``names``; depth (1, H, W) float32 metres along
    the camera's axis; normals (3, H, W) float32, x right, y down, z into the scene, pointing towards the camera (their
    product with the pixel's ray is negative); boxes (N, 4) float32 around the visible part of each solid, named like
    "red box"; intrinsics (3, 3) float32 with the principal point in the middle of the image. Every pixel has every
    target. Raises ValueError for a negative index or seed.
    """
    rng = np.random.default_rng([seed, index])
    scene = _scene(rng)
    height, width = size
    focal = scene.focal * width
    right, down, forward = scene.axes[:, :, None, None]
    across = (np.arange(width) + 0.5 - width / 2) / focal
    along = (np.arange(height)[:, None] + 0.5 - height / 2) / focal
    rays = (right * across + down * along + forward).reshape(3, -1)
    strips = [_trace(scene, rays[:, i : i + STRIP], 1 / focal) for i in range(0, height * width, STRIP)]
    depth, part, normals, light = (np.concatenate(arrays, axis=-1) for arrays in zip(*strips, strict=True))
    known = {name: label for label, name in enumerate(names)}
    of_solids = [known.get(f"{s.colour} {s.kind}", known.get(s.kind, IGNORE)) for s in scene.solids]
    kinds = np.array([*(known.get(surface, IGNORE) for surface in CLASSES[:3]), *of_solids])

    boxes, names = [], []
    for i, solid in enumerate(scene.solids):
        rows, columns = np.nonzero((part == i + 3).reshape(size))
        if len(rows) >= MIN_VISIBLE:
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            names.append((f"{solid.colour} {solid.kind}",))
    axes = scene.axes.astype(np.float32)
    in_camera = sum(axes[:, i, None] * normals[i] for i in range(3))  # a product of matrices may round pixels unequally
    return Sample(
        image=torch.from_numpy(_develop(light.reshape(3, height, width), rng)),
        labels=torch.from_numpy(kinds[part].reshape(size)),
        depth=torch.from_numpy(depth.astype(np.float32).reshape(1, height, width)),
        normals=torch.from_numpy(in_camera.reshape(3, height, width)),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        box_names=tuple(names),
        intrinsics=torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]),
        path=f"scene-{index:06d}",
        original_size=(height, width),
        index=index,
    )
