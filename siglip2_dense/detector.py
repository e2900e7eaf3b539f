"""A detector at work on a user's images: boxes to look at, and a COCO file of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

from siglip2_dense.contracts import Detections, Sample
from siglip2_dense.data.reading import read_image
from siglip2_dense.engine.configs import check_keys
from siglip2_dense.engine.evaluate import open_probe, read_head
from siglip2_dense.errors import UserError
from siglip2_dense.files import write_text
from siglip2_dense.predictor import check_paths, parse_prompts, readable
from siglip2_dense.viz.boxes import boxes_panel
from siglip2_dense.viz.layout import save_picture

PRINTED = 5  # detections of an image, the surest first
EXAMPLE = "like the example"  # what is found by an example is called
FILE = "detections.json"


def parse_example(image: str, box: str) -> tuple[torch.Tensor, tuple[float, ...]]:
    """An image file and "x0,y0,x1,y1" in its pixels, as ``OWLViT.set_examples`` takes them."""
    try:
        corners = tuple(float(part) for part in box.split(","))
    except ValueError:
        corners = ()
    if len(corners) != 4:
        raise UserError(f"--example {image} {box}: give the box as x0,y0,x1,y1 in pixels, such as 10,20,200,180.")
    return _pixels(read_image(image)), corners


def detect_files(
    config: Config,
    head: str | None,
    paths: Sequence[str],
    out: str | Path,
    prompts: str | None = None,
    examples: Sequence[tuple[str, str]] = (),
    threshold: float = 0.2,
) -> None:
    """For each image write ``OUT/STEM_boxes.png`` and print what was found, and for all ``OUT/detections.json``.

    prompts: names, as ``parse_prompts`` reads them. examples: pairs of an image file and a box in it, which together
    show one thing, to be looked for instead. threshold: the least probability of what is kept. An image that cannot be
    read is named and left out; the error comes at the end.
    """
    check_keys(config)
    check_paths(paths)
    if not 0 <= threshold < 1:
        raise UserError(f"--threshold {threshold}: give a probability, from 0 to below 1.")
    if bool(prompts) == bool(examples):
        raise UserError("detection: say what to look for, by names (--prompts) or by an example (--example).")
    names, queries = parse_prompts(prompts) if prompts else ([EXAMPLE], {})
    shown = [parse_example(*example) for example in examples]
    probe = open_probe(config, read_head(config, head), head)
    if not hasattr(probe, "set_examples"):
        raise UserError(f"{type(probe).__name__} finds no boxes; give the --config of an OWLViT.")
    if shown:
        probe.set_examples({EXAMPLE: shown})
    else:
        probe.set_vocabulary(names, queries)
    (task, *_) = probe.tasks.values()
    found = []
    try:
        for path, image in readable(paths):
            detections = detect(probe, image, threshold)
            found.append((path, image.shape[:2], detections))
            _write_picture(Path(out) / f"{Path(path).stem}_boxes.png", image, detections, task, path)
    finally:  # what was found is kept, whatever became of the rest
        write_text(Path(out) / FILE, json.dumps(coco_file(found, task.classes)) + "\n")
        print(f"{Path(out) / FILE}: {sum(len(one.scores) for *_, one in found)} boxes of {len(found)} images")


def detect(probe, image: np.ndarray, threshold: float = 0.0) -> Detections:
    """What the probe's first head finds in an image (H, W, 3) uint8 RGB, with a probability of ``threshold`` at least;
    on the CPU.
    """
    sample = Sample(image=_pixels(image), original_size=image.shape[:2])
    batch = {"inputs": [sample.image], "data_samples": [sample]}
    (found,) = probe.eval()(**probe.data_preprocessor(batch, False), mode="predict")
    found = next(iter(found.values())).to("cpu")
    count = int((found.scores >= threshold).sum())  # they are in order
    return Detections(found.boxes[:count], found.scores[:count], found.labels[:count])


def coco_file(found: Sequence[tuple[str, tuple[int, int], Detections]], classes: Sequence[str]) -> dict:
    """A COCO annotation file of detections, each with its score: images and categories count from 1.

    found: path, (height, width) and detections of each image. Boxes are cut at the image's edges.
    """
    images, annotations = [], []
    for number, (path, (height, width), detections) in enumerate(found, 1):
        images.append(dict(id=number, file_name=str(path), height=height, width=width))
        corners = detections.boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2))
        for (x0, y0, x1, y1), score, label in zip(
            corners.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        ):
            box = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
            annotations.append(
                dict(id=len(annotations) + 1, image_id=number, category_id=label + 1, bbox=box,
                     area=round(box[2] * box[3], 2), iscrowd=0, score=round(score, 5))
            )  # fmt: skip
    categories = [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
    return dict(images=images, annotations=annotations, categories=categories)


def _write_picture(place: Path, image: np.ndarray, detections: Detections, task, path: str) -> None:
    names = [
        f"{task.classes[label]} {score:.2f}"
        for label, score in zip(detections.labels.tolist(), detections.scores.tolist(), strict=True)
    ]
    colours = [task.palette[label] for label in detections.labels.tolist()]
    save_picture(place, boxes_panel(image, (detections.boxes.numpy(), names, colours)))
    more = f" and {len(names) - PRINTED} more" if len(names) > PRINTED else ""
    print(f"{path} -> {place}: {', '.join(names[:PRINTED]) or 'nothing'}{more}")


def _pixels(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()
