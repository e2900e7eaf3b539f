"""What an open-vocabulary detector trains on: images of several sets in mosaics, and what each is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import is_main_process
from torch.utils.data import Dataset

from siglip2_dense.contracts import Sample
from siglip2_dense.data.base import contiguous, data_root
from siglip2_dense.data.boxes.coco import BoxDataset
from siglip2_dense.data.boxes.duplicates import duplicates
from siglip2_dense.data.boxes.names import Pool, RareNames, prompt, templates
from siglip2_dense.data.boxes.settings import check_counts, check_mixture
from siglip2_dense.data.boxes.transforms import chosen, merged, mosaic
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import canonical
from siglip2_dense.registry import DATASETS, build

SHOWN = 30  # names that are left out, those with most boxes


@dataclass
class Part:
    """One of the sets, as it is mixed."""

    images: BoxDataset
    weight: float  # its share of the samples
    prompts: bool  # whether its names are put into sentences
    kept: np.ndarray  # (n,) int64, places of the images that may be trained on
    names: tuple[str, ...]  # canonical, of each of its labels; empty where nothing is to be learnt of it

    @cached_property
    def canonical(self) -> dict[str, str]:
        """The same by the set's own names."""
        return dict(zip(self.images.classes, self.names, strict=True))


@DATASETS.register_module()
class DetectionMixture(Dataset):
    """Mosaics of 1, 4 or 9 images of one set each, drawn from several sets, with what they are asked for.

    A sample is a square image, its boxes, and ``queries``: the names of its boxes, then names of what is not there.
    Those are what its images were looked through for in vain (LVIS says so) and, until there are ``negatives``, names
    drawn in proportion to how often they occur in all sets, without what its images hold or may hold by their
    annotations, before they were cropped.

    Everything that is drawn is a function of (seed, epoch, index). An epoch has as many samples as the sets have
    images; each image of a set is the first of a mosaic equally often, and the others are drawn. Source: scenic's
    OWL-ViT; of too many boxes or queries it leaves out the last ones, here they are drawn.

    Args:
        sets: of each dict(dataset=its config, weight=1, prompts=True). Weights are relative. prompts: whether its names
            are put into one of 81 sentences, drawn for each name and image, as is usual but for free text.
        size: of the square.
        transforms: of each image before it becomes a tile.
        mosaics: the probabilities of 1 x 1, 2 x 2, 3 x 3 images and so on.
        merge: overlap (intersection over union) from which two boxes become one that has the names of both.
        negatives: at least so many names of what is not there, if there are so many and max_queries leaves room.
        max_queries, max_boxes: of a sample.
        rare: annotations of LVIS, below the data root or anywhere: boxes with ``RareNames`` go, and such negatives too.
        exclude: configs of sets to evaluate on; images that are in one are not trained on.

    Attributes:
        notes: what was left out, in sentences; printed once as well.
        mixing: how samples are made of the images, as plain data for records.
    """

    targets = ("boxes",)
    classes = ()  # none are fixed
    transforms = ()  # those of its sets come before the mosaics

    def __init__(
        self,
        sets: Sequence[dict],
        size: int,
        transforms: Sequence[dict | Callable] = (),
        mosaics: Sequence[float] = (0.4, 0.3, 0.3),
        merge: float = 0.9,
        negatives: int = 50,
        max_queries: int = 99,
        max_boxes: int = 300,
        rare: str | Path | None = None,
        exclude: Sequence[dict] = (),
        seed: int = 0,
    ):
        check_counts(size=(size, 1), negatives=(negatives, 0), max_queries=(max_queries, 1), max_boxes=(max_boxes, 1))
        check_mixture(sets, size, mosaics, merge)
        self.size, self.mosaics, self.merge, self.seed = size, list(mosaics), merge, seed
        self.negatives, self.max_queries, self.max_boxes = negatives, max_queries, max_boxes
        self.notes: list[str] = []
        unseen = None if rare is None else _rare_names(data_root(None, "") / rare)
        evaluation = [_with_boxes(build(DATASETS, config)) for config in exclude]
        total = sum(one.get("weight", 1) for one in sets)
        self.parts = []
        for one in sets:
            images = _with_boxes(build(DATASETS, one["dataset"], transforms=transforms, seed=seed))
            kept, names = self._kept(images, evaluation), self._names(images, unseen)
            self.parts.append(Part(images, one.get("weight", 1) / total, one.get("prompts", True), kept, names))
        if any(part.prompts for part in self.parts):
            templates()  # read now, so that workers need not each
        self.name = " + ".join(part.images.name for part in self.parts)
        self.split = " + ".join(dict.fromkeys(part.images.split for part in self.parts))
        self.length = sum(len(part.kept) for part in self.parts)
        shares = np.cumsum([part.weight for part in self.parts])
        self._ends = np.round(shares / shares[-1] * self.length).astype(int)  # of each set's samples in an epoch
        self._pool, self._prompted = self._frequencies()
        if self.notes and is_main_process():
            print(*self.notes, sep="\n", flush=True)

    @property
    def metainfo(self) -> dict:
        return {"classes": self.classes}

    @property
    def mixing(self) -> dict:
        known = ("size", "mosaics", "merge", "negatives", "max_queries", "max_boxes")
        shares = [{"set": p.images.name, "weight": round(p.weight, 6), "prompts": p.prompts} for p in self.parts]
        return {**{key: getattr(self, key) for key in known}, "sets": shares}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        index = range(len(self))[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        part, first = self._first(epoch, index)
        k = 1 + int(rng.choice(len(self.mosaics), p=np.array(self.mosaics) / sum(self.mosaics)))
        places = [first, *part.kept[rng.integers(len(part.kept), size=k * k - 1)].tolist()]
        sample = mosaic([_named(part.images.view(place, rng), part) for place in places], self.size)
        if len(sample.boxes) > self.max_boxes:
            some = np.sort(rng.choice(len(sample.boxes), self.max_boxes, replace=False))
            sample = chosen(sample, torch.from_numpy(some))
        sample = self._asked(merged(sample, self.merge, rng), part, places, rng)
        return contiguous(replace(sample, index=index))

    def files_on_disk(self, index: int) -> list[Path]:
        raise UserError(
            f"{self.name}: a sample is a mosaic of other images in each epoch, so its features are not stored; train "
            "without a store of features, or on one set by itself."
        )

    def fingerprint(self) -> str:
        """SHA-256 over the fingerprints of the sets, their shares, the images left out and the names."""
        listing = hashlib.sha256()
        for part in self.parts:
            listing.update(f"{part.images.fingerprint()} {part.weight} {part.prompts}\n".encode())
            listing.update(part.kept.tobytes() + "\n".join(part.names).encode())
        return listing.hexdigest()

    def _kept(self, images: BoxDataset, evaluation: Sequence[BoxDataset]) -> np.ndarray:
        twice = {other: duplicates(images, other) for other in evaluation}
        for other, found in twice.items():
            self.notes.append(
                f"{images.name} {images.split}: {found.sum():,} of {len(images):,} images are in {other.name} "
                f"{other.split}, and are left out"
            )
        kept = np.flatnonzero(~np.any([np.zeros(len(images), dtype=bool), *twice.values()], axis=0))
        if not len(kept):
            raise UserError(
                f"{images.name} {images.split}: all its images are in the sets to evaluate on; take others."
            )
        return kept

    def _names(self, images: BoxDataset, unseen: RareNames | None) -> tuple[str, ...]:
        names = [canonical(name) for name in images.classes]
        unwritten = np.array([not name for name in names], dtype=bool)
        if unwritten.any():
            self.notes.append(_left_out(images, images.classes, unwritten, "have no letter from a to z"))
        if unseen is None:
            return tuple(names)
        rare = np.array([name in unseen for name in names], dtype=bool)
        self.notes.append(_left_out(images, names, rare, "are rare in LVIS"))
        return tuple("" if is_rare else name for name, is_rare in zip(names, rare, strict=True))

    def _frequencies(self) -> tuple[Pool, dict[str, float]]:
        """What negatives are drawn from, and of each name how often it is one of a set that puts it into sentences."""
        frequencies: dict[str, float] = {}
        prompted: dict[str, float] = {}
        for part in self.parts:
            counts = part.images.occurrences()
            for written, name in zip(part.images.classes, part.names, strict=True):
                if name and counts[written]:
                    often = counts[written] * part.weight / len(part.images)  # in a sample
                    frequencies[name] = frequencies.get(name, 0) + often
                    prompted[name] = prompted.get(name, 0) + often * part.prompts
        return Pool(frequencies), {name: prompted[name] / frequencies[name] for name in frequencies}

    def _first(self, epoch: int, index: int) -> tuple[Part, int]:
        """Which set a sample is of, and the place of its first image there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        begin = int(self._ends[number - 1]) if number else 0
        kept = self.parts[number].kept
        turn, place = divmod(epoch * (int(self._ends[number]) - begin) + index - begin, len(kept))
        return self.parts[number], int(kept[_order(self.seed, number, turn, len(kept))[place]])

    def _asked(self, sample: Sample, part: Part, places: Sequence[int], rng: np.random.Generator) -> Sample:
        """The sample with its queries, and with its boxes' names as they are asked for."""
        inside = {part.names[label] for place in places for label in part.images.labels_in(place)}
        positives = list(dict.fromkeys(name for names in sample.box_names for name in names))
        if len(positives) > self.max_queries:
            positives = [positives[i] for i in np.sort(rng.permutation(len(positives))[: self.max_queries])]
        room = self.max_queries - len(positives)
        absent = (part.names[label] for place in places for label in part.images.labels_absent(place))
        listed = [name for name in dict.fromkeys(absent) if name and name not in inside]
        listed = [listed[i] for i in rng.permutation(len(listed))[:room]]
        wanted = min(self.negatives, room) - len(listed)
        drawn = self._pool.draw(wanted, inside | {*listed}, rng)

        share = dict.fromkeys([*positives, *listed], float(part.prompts)) | {n: self._prompted[n] for n in drawn}
        written = {name: prompt(name, rng) if rng.random() < often else name for name, often in share.items()}
        box_names = tuple(tuple(written[name] for name in names if name in written) for names in sample.box_names)
        sample = replace(sample, box_names=box_names, queries=tuple(dict.fromkeys(written.values())))
        return chosen(sample, torch.tensor([i for i, names in enumerate(box_names) if names], dtype=torch.int64))


def _rare_names(path: Path) -> RareNames:
    if not path.is_file():
        raise UserError(
            f"DetectionMixture: {path} is not there, which says what is rare; siglip2-dense data prepare lvis, or "
            "rare=None where names that are rare in LVIS may be trained on."
        )
    return RareNames(path)


def _with_boxes(dataset: Dataset) -> BoxDataset:
    if not isinstance(dataset, BoxDataset):
        raise UserError(f"DetectionMixture: {dataset.name} is no set of images with boxes in a file; take one that is.")
    return dataset


def _left_out(images: BoxDataset, names: Sequence[str], gone: np.ndarray, why: str) -> str:
    """A sentence about those of a set's names (K,) that are gone, which is (K,) bool, those with most boxes first."""
    labels = np.flatnonzero(gone)
    counts = np.bincount(images.known.labels, minlength=len(names))[labels]
    note = (
        f"{images.name} {images.split}: {len(labels):,} names {why}, with {counts.sum():,} of "
        f"{len(images.known.labels):,} boxes, and are left out"
    )
    shown = [names[label] for label in labels[np.argsort(-counts, kind="stable")][:SHOWN]]
    more = f" and {len(labels) - len(shown):,} more" if len(labels) > len(shown) else ""
    return f"{note}: {', '.join(shown)}{more}" if shown else note


def _named(sample: Sample, part: Part) -> Sample:
    """The sample with canonical names, without the boxes of names that are not to be learnt."""
    names = tuple(tuple(part.canonical[name] for name in names) for names in sample.box_names)
    kept = torch.tensor([i for i, some in enumerate(names) if all(some)], dtype=torch.int64)
    return chosen(replace(sample, box_names=names), kept)


@lru_cache(maxsize=16)
def _order(seed: int, number: int, turn: int, size: int) -> np.ndarray:
    """(size,) the order of a set's images, the ``turn``-th time that they are gone through."""
    return np.random.default_rng([seed, number, turn, *b"mixture"]).permutation(size).astype(np.int32)
