"""What a Predictor gives of an image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from siglip2_dense.errors import UserError, nearest
from siglip2_dense.files import write_text
from siglip2_dense.predict.found import Boxes, ClassMap, DepthMap, Found, NormalMap, beside
from siglip2_dense.viz.layout import grid, save_picture, titled
from siglip2_dense.viz.overlays import OPACITY


@dataclass(frozen=True)
class Result:
    """What all heads found in one image. Of several heads of a kind the first is ``segmentation``, ``depth_m`` and so
    on; ``heads`` has all.
    """

    image: np.ndarray  # (H, W, 3) uint8 RGB, upright; all maps have its size
    heads: Mapping[str, Found]  # by the heads' names
    path: str = ""  # of the file that it was read from, if it was
    made_by: Mapping = field(default_factory=dict)  # plain data: the encoder, and a digest of all that decides

    @property
    def segmentation(self) -> ClassMap | None:
        """Class numbers ``.ids`` (H, W) and their ``.names``; none without such a head."""
        return self._first(ClassMap)

    @property
    def depth_m(self) -> np.ndarray | None:
        """(H, W) float32 metres; none without such a head, or of one whose depths are in no unit."""
        depths = (one for one in self.heads.values() if isinstance(one, DepthMap) and one.unit == "m")
        return next((one.values for one in depths), None)

    @property
    def normals(self) -> np.ndarray | None:
        """(H, W, 3) float32 unit vectors in the camera's frame: x right, y down, z into the scene, so that what faces
        the camera has a negative z; none without such a head.
        """
        found = self._first(NormalMap)
        return None if found is None else found.values

    @property
    def boxes(self) -> Boxes | None:
        """``.xyxy`` in pixels, ``.scores``, ``.labels`` and ``.names``; none without such a head."""
        return self._first(Boxes)

    def _first(self, kind: type):
        return next((one for one in self.heads.values() if isinstance(one, kind)), None)

    @property
    def words(self) -> str:
        """A summary of a line."""
        if len(self.heads) == 1:
            return next(iter(self.heads.values())).words
        return "; ".join(f"{name}: {one.words}" for name, one in self.heads.items())

    def draw(self, head: str | None = None, opacity: float = OPACITY) -> Image.Image:
        """What one head, or all of them side by side, found, over the image and with a legend, at a size to look at.

        opacity: of the colours, 0 to 1. Raises UserError for a head that is not there.
        """
        _check_opacity(opacity)
        if head is not None or len(self.heads) == 1:
            return Image.fromarray(self._head(head).picture(self.image, opacity))
        pictures = [titled(name, one.picture(self.image, opacity)) for name, one in self.heads.items()]
        return Image.fromarray(grid(pictures, columns=1 if self.image.shape[1] > 2 * self.image.shape[0] else 2))

    def over(self, head: str | None = None, opacity: float = OPACITY) -> Image.Image:
        """What one head (by default the first) found, over the image at the image's own size, without a legend."""
        _check_opacity(opacity)
        return Image.fromarray(self._head(head).over(self.image, opacity))

    def _head(self, name: str | None) -> Found:
        if name is None:
            return next(iter(self.heads.values()))
        if name not in self.heads:
            raise UserError(
                f"no head is called {name!r}: {nearest(name, self.heads, 'there is ' + ', '.join(self.heads))}"
            )
        return self.heads[name]

    def save(
        self, folder: str | Path, stem: str | None = None, floats: bool = False, pictures: bool = True
    ) -> list[Path]:
        """Write STEM_labels.png (class numbers in a palette), STEM_depth.png (16 bits, millimetres), STEM_normals.png,
        a picture of each, and, last, STEM.json with what they mean and all boxes. Several heads of a kind have their
        names before it: STEM_HEAD_depth.png. Each file is whole or not there.

        stem: by default the image file's, or "image". floats: depths and normals also as NPZ. pictures: with
        STEM_overlay.png, STEM_depth_overlay.png, STEM_normals_overlay.png and STEM_boxes.png. Returns the files.
        """
        place = Path(folder) / (stem or Path(self.path).stem or "image")
        names, about = [], {}
        for name, found in self.heads.items():
            key = self.key_of(name)
            prefixed = place if key == found.kind else beside(place, name)
            written, about[key] = found.files(prefixed, floats)
            names += written
            if pictures:
                shown = {"labels": "overlay", "boxes": "boxes"}.get(found.kind, f"{found.kind}_overlay")
                path = beside(prefixed, f"{shown}.png")
                save_picture(path, found.picture(self.image))
                names.append(path.name)
        height, width = self.image.shape[:2]
        record = {"image": self.path, "size": [height, width], "made_by": dict(self.made_by), "files": names, **about}
        write_text(place.with_name(f"{place.name}.json"), json.dumps(record, indent=2) + "\n")
        return [place.with_name(name) for name in (*names, f"{place.name}.json")]

    def key_of(self, head: str) -> str:
        """What a head's files and its part of the JSON file are called: its kind, where several share it their names
        too.
        """
        return keys({name: one.kind for name, one in self.heads.items()})[head]


def keys(kinds: Mapping[str, str]) -> dict[str, str]:
    """For each head, of a kind, what its files are called."""
    times = Counter(kinds.values())
    return {name: kind if times[kind] == 1 else f"{name}_{kind}" for name, kind in kinds.items()}


def _check_opacity(opacity: float) -> None:
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity={opacity!r}: give a number from 0, where only the image is seen, to 1.")
