"""What heads find in an image, as NumPy arrays: classes, depths, normals or boxes, with their pictures and files.

Each kind has ``over(image, opacity)``, the image (H, W, 3) uint8 at its own size with what was found in colours;
``picture(image, opacity)``, at a size to look at and with a legend; ``files(place, floats)``, which writes what was
found beside ``place`` and gives the files' names with what belongs in a JSON file; and ``words``, a short summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from siglip2_dense.contracts import Detections
from siglip2_dense.files import atomic
from siglip2_dense.label_sets import Colour
from siglip2_dense.viz.boxes import boxes_panel, with_boxes
from siglip2_dense.viz.colours import VALUES, colour_labels, colour_normals, colour_values, value_scale
from siglip2_dense.viz.overlays import OPACITY, depth_overlay, normals_overlay, over, overlay_panel

PRINTED = 5  # classes or boxes of an image in its summary
DEPTH_SCALE = 1000  # of the numbers in a depth PNG: millimetres, of metres
STRIP = 2**21  # pixels that are coloured at a time: of large images all would take many times their own memory

Written = tuple[list[str], object]
"""Names of files, and plain data about what is in them."""


@dataclass(frozen=True)
class ClassMap:
    """A class for each pixel."""

    kind = "labels"
    ids: np.ndarray  # (H, W) uint8, of more than 256 classes uint16; index into ``names``
    names: tuple[str, ...]
    colours: Sequence[Colour]

    @classmethod
    def of(cls, labels: Tensor, names: Sequence[str], colours: Sequence[Colour]) -> ClassMap:
        """labels: (H, W) int64."""
        ids = labels.cpu().numpy().astype(np.uint8 if len(names) <= 256 else np.uint16)
        return cls(ids, tuple(names), tuple(colours))

    @property
    def shares(self) -> np.ndarray:
        """The part of the pixels that each class has."""
        counts = sum(np.bincount(row, minlength=len(self.names)) for row in self.ids)
        return counts / self.ids.size

    @property
    def words(self) -> str:
        shares = self.shares
        most = [label for label in np.argsort(-shares, kind="stable")[:PRINTED] if shares[label]]
        return ", ".join(f"{self.names[label]} {shares[label]:.0%}" for label in most)

    def over(self, image: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
        return over(image, colour_labels(self.ids, list(self.colours)), opacity)

    def picture(self, image: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
        return overlay_panel(image, self.ids, self.names, list(self.colours), opacity)

    def files(self, place: Path, floats: bool = False) -> Written:
        """A PNG of the class numbers, in a palette or, of more than 256, of 16 bits."""
        picture = Image.fromarray(self.ids)
        if len(self.names) <= 256:
            picture.putpalette([value for colour in self.colours for value in colour])
        meaning = {
            str(label): {"name": name, "colour": f"#{bytes(colour).hex()}", "share": round(float(share), 6)}
            for label, (name, colour, share) in enumerate(zip(self.names, self.colours, self.shares, strict=True))
        }
        return [_save_png(place, "labels", picture)], meaning


@dataclass(frozen=True)
class DepthMap:
    """A depth for each pixel."""

    kind = "depth"
    values: np.ndarray  # (H, W) float32 in ``unit``
    unit: str = "m"  # or what the head was trained on, such as "relative"

    @classmethod
    def of(cls, depth: Tensor, unit: str) -> DepthMap:
        """depth: (1, H, W)."""
        return cls(depth[0].cpu().numpy(), unit)

    @property
    def words(self) -> str:
        return f"{self.values.min():.3g} to {self.values.max():.3g} {self.unit}"

    def over(self, image: np.ndarray, opacity: float = OPACITY, scale: tuple[float, float] | None = None) -> np.ndarray:
        """scale: least and greatest depth of the colours; by default those of this map, without 1 % at either end."""
        return over(image, colour_values(self.values, *(scale or self.scale), VALUES), opacity)

    @property
    def scale(self) -> tuple[float, float]:
        return value_scale([self.values])

    def picture(self, image: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
        return depth_overlay(image, self.values, self.unit, opacity)

    def files(self, place: Path, floats: bool = False) -> Written:
        """A PNG of 16 bits, in thousandths of the unit (millimetres), 65.535 m at most; floats: an NPZ beside it."""
        stored = np.empty(self.values.shape, np.uint16)
        for rows in _strips(stored.shape):
            stored[rows] = (self.values[rows] * DEPTH_SCALE).round().clip(0, 65535)
        names = [_save_png(place, "depth", Image.fromarray(stored))]
        names += [_save_npz(place, "depth", self.values)] if floats else []
        low, high = float(self.values.min()), float(self.values.max())
        return names, {"unit": self.unit, "png": f"1/{DEPTH_SCALE} {self.unit}", "least": low, "most": high}


@dataclass(frozen=True)
class NormalMap:
    """A surface normal for each pixel, in the camera's frame: x right, y down, z into the scene; what faces the camera
    has a negative z.
    """

    kind = "normals"
    values: np.ndarray  # (H, W, 3) float32 unit vectors

    @classmethod
    def of(cls, normals: Tensor) -> NormalMap:
        """normals: (3, H, W)."""
        return cls(np.ascontiguousarray(normals.cpu().permute(1, 2, 0).numpy()))

    @property
    def words(self) -> str:
        x, y, z = self.values.reshape(-1, 3).mean(0, dtype=np.float64)
        return f"mean normal {x:.2f} {y:.2f} {z:.2f}"

    @property
    def colours(self) -> np.ndarray:
        """(H, W, 3) uint8, as published pictures have them: y and z change their signs, see ``colour_normals``."""
        found = np.empty(self.values.shape, np.uint8)
        for rows in _strips(found.shape):
            found[rows] = colour_normals(self.values[rows].transpose(2, 0, 1))
        return found

    def over(self, image: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
        return over(image, self.colours, opacity)

    def picture(self, image: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
        return normals_overlay(image, self.values.transpose(2, 0, 1), opacity)

    def files(self, place: Path, floats: bool = False) -> Written:
        """A PNG of ``colours``; floats: an NPZ of the vectors (H, W, 3) beside it."""
        names = [_save_png(place, "normals", Image.fromarray(self.colours))]
        names += [_save_npz(place, "normals", self.values)] if floats else []
        return names, {"frame": "x right, y down, z into the scene", "png": "red (1 + x) / 2, green (1 - y) / 2, "
                       "blue (1 - z) / 2"}  # fmt: skip


@dataclass(frozen=True)
class Boxes:
    """Boxes, the surest first."""

    kind = "boxes"
    xyxy: np.ndarray  # (n, 4) float32, x0 y0 x1 y1 in pixels of the image
    scores: np.ndarray  # (n,) float32 probabilities
    labels: np.ndarray  # (n,) int64, index into ``classes``
    classes: tuple[str, ...]
    palette: Sequence[Colour]  # of the classes

    @classmethod
    def of(cls, found: Detections, classes: Sequence[str], palette: Sequence[Colour], threshold: float) -> Boxes:
        """Those with a probability of ``threshold`` at least."""
        kept = int((found.scores >= threshold).sum())  # they are in order
        arrays = (values[:kept].cpu().numpy() for values in (found.boxes, found.scores, found.labels))
        return cls(*arrays, tuple(classes), tuple(palette))

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Of each box."""
        return [self.classes[label] for label in self.labels]

    @property
    def words(self) -> str:
        titles = self._drawn[1]
        more = f" and {len(titles) - PRINTED} more" if len(titles) > PRINTED else ""
        return (", ".join(titles[:PRINTED]) or "nothing") + more

    @property
    def _drawn(self) -> tuple[np.ndarray, list[str], list[Colour]]:
        titles = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores, strict=True)]
        return self.xyxy, titles, [self.palette[label] for label in self.labels]

    def over(self, image: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
        return with_boxes(image, self._drawn)

    def picture(self, image: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
        return boxes_panel(image, self._drawn)

    def files(self, place: Path, floats: bool = False) -> Written:
        """None: boxes belong in the JSON file, in pixels of the image, cut at its edges by who reads them."""
        columns = (self.labels.tolist(), self.names, self.scores.tolist(), self.xyxy.tolist())
        return [], [
            {"label": label, "name": name, "score": round(score, 5), "xyxy": [round(value, 2) for value in box]}
            for label, name, score, box in zip(*columns, strict=True)
        ]


Found = ClassMap | DepthMap | NormalMap | Boxes


def _strips(shape: Sequence[int]) -> list[slice]:
    step = max(STRIP // shape[1], 1)
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def beside(place: Path, what: str) -> Path:
    """PLACE_WHAT; the place is a path without suffix, which may have dots."""
    return place.with_name(f"{place.name}_{what}")


def _save_png(place: Path, what: str, picture: Image.Image) -> str:
    path = beside(place, f"{what}.png")
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")
    return path.name


def _save_npz(place: Path, what: str, values: np.ndarray) -> str:
    path = beside(place, f"{what}.npz")
    with atomic(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **{what: values})
    return path.name
