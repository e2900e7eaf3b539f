"""PASCAL Context (Mottaghi et al. 2014): every pixel of the images of VOC 2010, with 59 classes or with 459."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from siglip2_dense.data.base import LabelledImages, NamedImages
from siglip2_dense.data.download import open_tar
from siglip2_dense.errors import UserError, first_line
from siglip2_dense.files import atomic, write_text
from siglip2_dense.label_sets import CLASSES, PALETTES
from siglip2_dense.registry import DATASETS

ANNOTATIONS = "trainval_merged.json"
LISTS, LABELS = "ImageSets/SegmentationContext", "SegmentationClassContext"
ALL_LABELS, ALL_NAMES, ALL_VAL = "SegmentationClassContext459", "labels.txt", "pascalcontext_val.txt"
IDS = (  # of the 59 classes among the 459, from 1
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip


@DATASETS.register_module()
class PascalContext(LabelledImages):
    """The 59 most frequent classes; 4,996 images to train on and 5,104 to validate.

    In the files 0 is any other class, which does not count, and class k is k + 1: mmsegmentation's layout and numbers,
    SegmentationClassContext/NAME.png with ImageSets/SegmentationContext/{train,val}.txt. They are made of the segments
    of "PASCAL in Detail", trainval_merged.json. ``root`` is the folder VOCdevkit/VOC2010.
    """

    name = "pascal_context"
    licence = "photographs under the terms of Flickr; of the annotations none is stated"
    folder = "VOCdevkit/VOC2010"
    classes = CLASSES["pascal_context"]
    first_label = 1
    ignore = (0,)

    def find(self) -> list[tuple[str, str]]:
        return self.pairs("JPEGImages", LABELS, _listed(self, f"{LISTS}/{self.split}.txt"))


@DATASETS.register_module()
class PascalContext459(NamedImages):
    """All 459 classes, "unknown" among them; the 5,104 images of CAT-Seg's list pascalcontext_val.txt.

    In the files class k is k + 1, as in the published label maps; the names, too, come from their archive, where
    ``classes`` does not give others.
    """

    name = "pascal_context_459"
    folder = "VOCdevkit/VOC2010"
    splits = ("val",)
    first_label = 1
    names, count = f"{ALL_LABELS}/{ALL_NAMES}", 459

    def find(self) -> list[tuple[str, str]]:
        self.classes = self.named()
        return self.pairs("JPEGImages", ALL_LABELS, _listed(self, ALL_VAL))

    def read_names(self, path: Path) -> tuple[str, ...]:
        """Of a file with lines "label: name", labels from 1."""
        names = []
        for line in filter(str.strip, path.read_text().splitlines()):
            label, _, name = line.partition(":")
            if label.strip() != str(len(names) + 1) or not name.strip():
                raise UserError(f"{path}: expected label {len(names) + 1}, a colon and its name, found {line!r}.")
            names.append(name.strip())
        return tuple(names)


def _listed(dataset: LabelledImages, path: str) -> list[str]:
    dataset.require(path)
    return [f"{name}.jpg" for name in sorted((dataset.root / path).read_text().split())]


def write_context(root: Path) -> None:
    """The label maps of the 59 classes out of trainval_merged.json and, when all are there, the lists of their names.

    Segments are painted in the order of the file, later ones over earlier ones, as CAT-Seg's preparation does. It can
    be interrupted and called again.
    """
    path = root / ANNOTATIONS
    try:
        content = json.loads(path.read_bytes())
        images = {image["image_id"]: image for image in content["images"] if image["phase"] in PascalContext.splits}
        segments = defaultdict(list)
        for segment in content["annos_segmentation"]:
            if segment["image_id"] in images:
                segments[segment["image_id"]].append((segment["category_id"], segment["segmentation"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not the annotations of PASCAL in Detail ({first_line(error)}); remove it and run the command "
            "again."
        ) from error
    names = defaultdict(list)
    colours = [value for colour in ((0, 0, 0), *PALETTES["pascal_context"]) for value in colour]
    for number, image in tqdm(images.items(), desc=f"writing {LABELS}", disable=None):
        name = Path(image["file_name"]).stem
        names[image["phase"]].append(name)
        target = root / LABELS / f"{name}.png"
        if not target.exists():
            labels = Image.fromarray(_painted((image["height"], image["width"]), segments[number], f"{path}: {name}"))
            labels.putpalette(colours)
            with atomic(target) as temporary:
                labels.save(temporary, format="PNG")
    for split in PascalContext.splits:
        write_text(root / LISTS / f"{split}.txt", "".join(f"{name}\n" for name in sorted(names[split])))


def _painted(size: tuple[int, int], segments: list[tuple[int, dict]], where: str) -> np.ndarray:
    """(H, W) uint8: 1 to 59 where a segment of that class is the last, else 0."""
    number_of = {category: label for label, category in enumerate(IDS, start=1)}
    labels = np.zeros(size, np.uint8)
    for category, segment in segments:
        if tuple(segment["size"]) != size:
            raise UserError(f"{where} is {size[0]}x{size[1]} pixels, one of its segments is not; fetch the file again.")
        labels[decoded(size, segment["counts"], where)] = number_of.get(category, 0)
    return labels


def decoded(size: tuple[int, int], counts: str, where: str = "a mask") -> np.ndarray:
    """(H, W) bool of COCO's compressed run lengths: of pixels outside and inside in turn, column by column.

    A character less 48 holds five bits of a number, the lowest first, and 32 where more follow; the last one's 16 is
    the sign. From the third run on it is the difference to the run before the last. Raises UserError where the runs are
    not of this size.
    """
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        bits = ord(character) - 48
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise UserError(f"{where}: a segment has {sum(runs)} of {size[0]}x{size[1]} pixels; fetch the file again.")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size[::-1]).T


def add_context_459(archive: Path, root: Path) -> None:
    """The label maps of trainval.tar.gz, trainval/NAME.mat, as PNGs of 16 bits, and then the list of their names.

    It can be interrupted and called again.
    """
    from scipy.io import loadmat

    names = None
    with open_tar(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            target = root / ALL_LABELS / f"{path.stem}.png"
            if path.name == ALL_NAMES and names is None:
                names = tar.extractfile(member).read().decode()
            elif path.suffix == ".mat" and not path.name.startswith(".") and not target.exists():
                content = tar.extractfile(member).read()
                try:
                    labels = loadmat(io.BytesIO(content))["LabelMap"]
                except Exception as error:  # whatever SciPy raises for a damaged file
                    raise UserError(
                        f"{archive}: {path} holds no label map ({first_line(error)}); remove the archive and run the "
                        "command again."
                    ) from error
                with atomic(target) as temporary:
                    Image.fromarray(labels.astype(np.uint16)).save(temporary, format="PNG")
    if names is None:
        raise UserError(f"{archive} has no {ALL_NAMES}; it is another archive, fetch PASCAL Context's.")
    write_text(root / ALL_LABELS / ALL_NAMES, names)
