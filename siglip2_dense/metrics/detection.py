"""Detection: average precision by COCO's and by LVIS's rule, and the detections as COCO's results files have them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.errors import UserError
from siglip2_dense.files import atomic
from siglip2_dense.metrics.per_image import Kept

MOST = 300  # detections of an image that count
MOST_OF_CATEGORY = {"coco": (1, 10, 100), "lvis": (MOST,)}  # of an image and a category, at which recall is read
FREQUENCIES = "rcf"  # LVIS's groups of categories: rare, common, frequent
SIZES = "sml"  # things of less than 32^2 pixels, of less than 96^2, and larger ones
IOUS, RECALLS = 10, 101  # at which precision is read: 0.50 to 0.95, and 0 to 1
AT_ONCE = 16  # categories: faster-coco-eval keeps about a kilobyte of each pair of an image and a category


class DetectionAP(Kept):
    """AP of all detections of a data set, in percent, with matching and precision by faster-coco-eval.

    Args:
        annotations: the file in COCO's format, or its content.
        rule: "coco", or "lvis": there a detection counts only where its category is known to be or not to be, and one
            that matches nothing does not count where its category is not marked completely.
        category_ids: (K,) the file's id of each class that detections have.
        image_ids: (n,) the file's id of each image of the set; no others of the file count.
    """

    def __init__(self, annotations: str | Path | Mapping, rule: str, category_ids: Sequence[int], image_ids: Sequence):
        super().__init__()
        if rule not in MOST_OF_CATEGORY:
            raise UserError(f"DetectionAP: rule={rule!r}; give 'coco' or 'lvis'.")
        self.rule = rule
        self.category_ids, self.image_ids = tuple(map(int, category_ids)), tuple(map(int, image_ids))
        self._annotations = annotations
        self._found: tuple[int, np.ndarray, np.ndarray, list] | None = None  # what ``_curves`` gave, of so many images

    def update(self, index: int, boxes: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Keep an image's best 300 detections, of equal ones the first.

        index: its position in the data set. boxes: (n, 4) x0 y0 x1 y1 in pixels of the original image; scores: (n,);
        labels: (n,) positions in ``category_ids``. Raises ValueError for a position that is negative, beyond the set,
        or was counted before, and for labels that are none.
        """
        if index >= len(self.image_ids):
            raise ValueError(f"the set has {len(self.image_ids)} images, got the position {index}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.category_ids):
            raise ValueError(f"labels are 0 to {len(self.category_ids) - 1}, got {labels.min()} to {labels.max()}")
        best = scores.float().sort(descending=True, stable=True).indices[:MOST]
        columns = [boxes[best].float(), scores[best, None].float(), labels[best, None].float()]  # exact up to 2^24
        self._keep(index, torch.cat(columns, dim=1).cpu())

    def compute(self) -> dict[str, float]:
        """AP over IoU 0.50 to 0.95, AP50, AP75, and AP of small, medium and large things; AR1, AR10 and AR100, or by
        LVIS's rule AR300 and APr, APc and APf of rare, common and frequent categories. NaN where there is nothing.
        """
        precision, recall, categories = self._curves()
        of_all = precision[..., 0, -1]
        scores = {"AP": _mean(of_all), "AP50": _mean(of_all[0]), "AP75": _mean(of_all[5])}
        scores |= {f"AP{size}": _mean(precision[..., i, -1]) for i, size in enumerate(SIZES, start=1)}
        scores |= {f"AR{most}": _mean(recall[..., 0, i]) for i, most in enumerate(MOST_OF_CATEGORY[self.rule])}
        if self.rule == "lvis":
            groups = np.array([category["frequency"] for category in categories])
            scores |= {f"AP{group}": _mean(of_all[..., groups == group]) for group in FREQUENCIES}
        return scores

    def per_class(self) -> dict[str, list[float | None]]:
        """AP and AP50 of each class, none where nothing is annotated."""
        precision = self._curves()[0][..., 0, -1]
        columns = {"AP": precision, "AP50": precision[:1]}
        means = {name: [_mean(some[:, :, k]) for k in range(some.shape[2])] for name, some in columns.items()}
        return {name: [None if math.isnan(value) else value for value in values] for name, values in means.items()}

    def intervals(self) -> dict[str, list[float]]:
        """None: precision is of the ranks of all detections together, so each drawn data set would be matched anew."""
        return {}

    def write(self, path: str | Path) -> None:
        """The detections as COCO's results files have them, atomically: image_id, category_id, bbox x y w h, score."""
        with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
            for number, result in enumerate(self._results()):
                stream.write(",\n" if number else "[")
                stream.write(json.dumps(result))
            stream.write("]\n" if self._rows and any(map(len, self._rows.values())) else "[]\n")

    def _results(self) -> Iterator[dict]:
        """In the order of the data set; numbers as short as they are the same again in float32."""
        for index in sorted(self._rows):
            rows = self._rows[index].numpy()
            boxes = rows[:, :4].copy()
            boxes[:, 2:] -= boxes[:, :2]
            for box, score, label in zip(boxes, rows[:, 4], rows[:, 5], strict=True):
                yield {
                    "image_id": self.image_ids[index],
                    "category_id": self.category_ids[int(label)],
                    "bbox": [float(str(value)) for value in box],
                    "score": float(str(score)),
                }

    def _curves(self) -> tuple[np.ndarray, np.ndarray, list[dict]]:
        """Precision (10 IoUs, 101 recalls, K, 4 areas, M) and recall (10, K, 4, M), -1 where a category has nothing
        annotated, and the categories.

        By some categories at a time, since none has to do with another, and of the images that they can be in alone: of
        LVIS's val there are 24 million pairs of an image and a category.
        """
        if self._found is not None and self._found[0] == len(self._rows):
            return self._found[1:]
        truth = _Truth(self._annotations, self.rule, self.category_ids, self.image_ids)
        detections = self._by_label()
        parts = [
            truth.curves(range(first, min(first + AT_ONCE, len(self.category_ids))), detections)
            for first in range(0, len(self.category_ids), AT_ONCE)
        ]
        precision, recall = (np.concatenate(some, axis=-3) for some in zip(*parts, strict=True))
        self._found = len(self._rows), precision, recall, truth.categories
        return self._found[1:]

    def _by_label(self) -> _Found:
        indices = sorted(self._rows)
        parts = [self._rows[index].numpy() for index in indices]
        rows = np.concatenate([np.zeros((0, 6), dtype=np.float32), *parts])
        owners = np.array([self.image_ids[index] for index in indices], dtype=np.int64)
        owners = np.repeat(owners, [len(part) for part in parts])
        order = np.argsort(rows[:, 5], kind="stable")
        rows = rows[order]
        return _Found(rows, owners[order], np.searchsorted(rows[:, 5], np.arange(len(self.category_ids) + 1)))


class _Found(NamedTuple):
    """All detections by label, and those of one in the order of the data set."""

    rows: np.ndarray  # (D, 6) float32 x0 y0 x1 y1 score label
    image_ids: np.ndarray  # (D,) int64
    starts: np.ndarray  # (K + 1,): those of label k are starts[k] to starts[k + 1] - 1


class _Truth:
    """The annotations of the images and categories that count, by category."""

    def __init__(self, source: str | Path | Mapping, rule: str, category_ids: Sequence[int], image_ids: Sequence[int]):
        content = source if isinstance(source, Mapping) else json.loads(Path(source).read_bytes())
        self.where = "the annotations" if isinstance(source, Mapping) else str(source)
        self.rule = rule
        known = {category["id"]: category for category in content["categories"]}
        if lost := [number for number in category_ids if number not in known]:
            raise UserError(f"{self.where}: has no category {lost[0]}; score by the file that the classes are from.")
        self.categories = [known[number] for number in category_ids]
        if rule == "lvis" and not all(category.get("frequency") in tuple(FREQUENCIES) for category in self.categories):
            raise UserError(
                f"{self.where}: its categories have no frequency r, c or f, so it is not LVIS's; use 'coco'."
            )
        wanted = set(image_ids)
        kept = ("id", "neg_category_ids", "not_exhaustive_category_ids")
        self.images = {
            image["id"]: {key: image[key] for key in kept if key in image}
            for image in content["images"]
            if image["id"] in wanted
        }
        if len(self.images) != len(wanted):
            raise UserError(
                f"{self.where}: lists {len(self.images)} of {len(wanted)} images; score by the set's own file."
            )
        self.of_category: dict[int, list[dict]] = {}
        boxed = (one for one in content["annotations"] if one["image_id"] in wanted and one.get("bbox"))
        for number, annotation in enumerate(boxed, start=1):  # to the library a match with number 0 is none
            own = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
            own |= {"id": number, "iscrowd": annotation.get("iscrowd", 0)}
            own["area"] = annotation.get("area", own["bbox"][2] * own["bbox"][3])
            self.of_category.setdefault(own["category_id"], []).append(own)
        self.checked: dict[int, set[int]] = {}  # of a category the images in which it is known to be or not to be
        for number, own in self.of_category.items():
            self.checked[number] = {annotation["image_id"] for annotation in own}
        for image in self.images.values():
            for number in image.get("neg_category_ids", ()):
                self.checked.setdefault(number, set()).add(image["id"])

    def curves(self, labels: range, detections: _Found) -> tuple[np.ndarray, np.ndarray]:
        """``DetectionAP._curves`` of some categories."""
        from faster_coco_eval import COCO, COCOeval_faster

        categories = [self.categories[label] for label in labels]
        ids = [category["id"] for category in categories]
        some = slice(detections.starts[labels.start], detections.starts[labels.stop])
        rows, owners = detections.rows[some].astype(np.float64).tolist(), detections.image_ids[some].tolist()
        found = []
        for number, ((x0, y0, x1, y1, score, label), image) in enumerate(zip(rows, owners, strict=True), start=1):
            category, box = self.categories[int(label)]["id"], [x0, y0, x1 - x0, y1 - y0]
            if self.rule == "coco" or image in self.checked.get(category, ()):
                own = {"id": number, "image_id": image, "category_id": category, "bbox": box, "score": score}
                found.append(own | {"area": box[2] * box[3], "iscrowd": 0})
        sides = [[dict(one) for number in ids for one in self.of_category.get(number, ())], found]
        images = [self.images[number] for number in sorted({one["image_id"] for side in sides for one in side})]
        if not images:
            shape = (IOUS, len(ids), 1 + len(SIZES), len(MOST_OF_CATEGORY[self.rule]))
            return np.full((IOUS, RECALLS, *shape[1:]), -1.0), np.full(shape, -1.0)
        truth, results = (
            COCO({"images": images, "categories": categories, "annotations": annotations}) for annotations in sides
        )
        evaluation = COCOeval_faster(truth, results, iouType="bbox", lvis_style=self.rule == "lvis")
        evaluation.params.maxDets = list(MOST_OF_CATEGORY[self.rule])
        evaluation.params.catIds = ids
        evaluation.evaluate()
        evaluation.accumulate()
        rank = np.argsort(np.argsort(ids))  # the library sorts them
        precision, recall = (np.asarray(evaluation.eval[name]) for name in ("precision", "recall"))
        return precision[:, :, rank], recall[:, rank]


def _mean(values: np.ndarray) -> float:
    """In percent, over what is not -1; NaN where nothing is left."""
    values = values[values > -1]
    return 100 * float(values.mean()) if values.size else math.nan
