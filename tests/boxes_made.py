"""Small sets of images with boxes in the official layouts, for tests."""

import json

import numpy as np
from PIL import Image

CATEGORIES = {7: "cat", 3: "remote control", 90: "Bow_(weapon)"}  # ids neither in order nor contiguous


def write_image(path, size=(20, 30), seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)  # smooth, as photographs are
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(path, **options)


def coco_content(boxes, images=3, size=(20, 30), categories=CATEGORIES, name="{:012d}.jpg"):
    """boxes: rows of image, category id, [x, y, w, h] and further keys of the annotation."""
    annotations = []
    for number, (image, category, box, *further) in enumerate(boxes, start=101):
        own = {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": 1.0, "iscrowd": 0}
        annotations.append(own | (further[0] if further else {}))
    listed = [{"id": i, "file_name": name.format(i), "height": size[0], "width": size[1]} for i in range(1, images + 1)]
    return {
        "images": listed,
        "annotations": annotations,
        "categories": [{"id": number, "name": text} for number, text in categories.items()],
    }


def write_coco(root, boxes, split="train", images=3, size=(20, 30), first=0, **options):
    """ROOT/annotations/instances_SPLIT2017.json with images that look different; ``first`` is added to their seeds."""
    content = coco_content(boxes, images, size, **options)
    write_json(root / f"annotations/instances_{split}2017.json", content)
    for image in content["images"]:
        write_image(root / f"{split}2017" / image["file_name"], size, seed=first + image["id"])
    return content


def lvis_content(
    boxes, negative, incomplete, images=3, size=(20, 30), frequencies="frc", folder="val2017", categories=CATEGORIES
):
    """The same in LVIS v1's: no file names, no crowds, and what each image was checked for."""
    content = coco_content(boxes, images, size, categories)
    for image in content["images"]:
        number = image["id"]
        image["coco_url"] = f"http://images.cocodataset.org/{folder}/{image.pop('file_name')}"
        image["neg_category_ids"] = negative.get(number, [])
        image["not_exhaustive_category_ids"] = incomplete.get(number, [])
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    for category, frequency in zip(content["categories"], frequencies, strict=True):
        category |= {"frequency": frequency, "synonyms": [category["name"]], "image_count": 1, "instance_count": 1}
    return content


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
