"""Boxes of many images as one COCO file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from siglip2_dense.files import atomic

FILE = "detections.json"


def write_coco(
    path: str | Path, records: Iterable[dict], classes: Sequence[str], key: str = "boxes"
) -> tuple[int, int]:
    """Write a COCO annotation file of detections, each with its score, whole or not at all; returns the numbers of
    images and of boxes.

    records: of each image, as ``Result.save`` writes them, in any number: one is held at a time. key: of the boxes in
    them. Images and categories count from 1, and boxes are cut at the image's edges.
    """
    number = count = 0
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        annotations = Path(f"{temporary}.annotations")
        try:
            with open(annotations, "w", encoding="utf-8") as later:
                stream.write('{"images": [')
                for number, record in enumerate(records, 1):
                    height, width = record["size"]
                    image = dict(id=number, file_name=record["image"], height=height, width=width)
                    stream.write(", " * (number > 1) + json.dumps(image))
                    for one in record[key]:
                        count += 1
                        later.write(", " * (count > 1) + json.dumps(_annotation(count, number, one, (width, height))))
            stream.write('], "annotations": [')
            with open(annotations, encoding="utf-8") as later:
                while part := later.read(2**20):
                    stream.write(part)
        finally:
            annotations.unlink(missing_ok=True)
        categories = [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
        stream.write(f'], "categories": {json.dumps(categories)}}}\n')
    return number, count


def _annotation(number: int, image: int, one: dict, size: tuple[int, int]) -> dict:
    """size: (width, height)."""
    x0, y0, x1, y1 = np.clip(one["xyxy"], 0, [*size, *size]).tolist()
    box = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
    return dict(
        id=number, image_id=image, category_id=one["label"] + 1, bbox=box, area=round(box[2] * box[3], 2), iscrowd=0,
        score=one["score"],
    )  # fmt: skip
