"""What a run of OWL-ViT will cost: both towers, the head, the matching, and the memory of each device.

As in ``plan.py`` nothing is built with values, and times are operations and bytes over what a device is assumed to
reach. What processes send each other, and drop paths, are not in them.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
from mmengine.config import Config
from scipy.optimize import linear_sum_assignment

from siglip2_dense.encoders.facts import padded
from siglip2_dense.encoders.prompts import templates_of
from siglip2_dense.encoders.text import CHECKPOINTED
from siglip2_dense.engine.configs import check_keys, check_trains
from siglip2_dense.engine.devices import ADAM, ARGMAX, LOSS, Device
from siglip2_dense.engine.flops import bare_encoder
from siglip2_dense.engine.plan_data import LOOKED_AT, images_of
from siglip2_dense.engine.tower_cost import FLOAT, Tower, head_passes, image_tower, text_tower
from siglip2_dense.errors import UserError
from siglip2_dense.models.zeroshot import text_settings
from siglip2_dense.registry import DATASETS, MODELS, build, check_arguments

# Of an image where no data are there to look at: Objects365 has 16 boxes in one (Shao et al. 2019), a mosaic of OWL-ViT
# 4.3 images on average; and at least 50 names of what is not there
QUERIES, BOXES = 70, 70
KINDS = {"coco": 80, "lvis": 1203}  # what an evaluation asks for, where the annotations are not there
EACH = 24  # bytes that clipping an image's gradient moves for each parameter: its norm, scaling it, adding it to a sum
SHARDED_OVER = (2, 8)  # devices, as examples
MATCHINGS = 5  # that are timed


class Asked(NamedTuple):
    """Of images of training, on one process."""

    queries: float  # of an image
    texts: float  # different ones that go through the text tower in a step
    boxes: float  # of an image
    known: bool  # whether the data were looked at


def plan(config: Config, device: Device, images: tuple[int, int] | None = None) -> dict:
    """The costs as plain data; the arguments are those of ``plan.plan``.

    Raises UserError for towers of which parts train, several heads, and images that are brought to no common size.
    """
    check_keys(config)
    check_trains(config)
    model = check_model(config)
    encoder = bare_encoder(model["encoder"])
    side = model.get("inference", dict(size=768))["size"]
    size, each = padded(encoder.facts, (side, side)), model.get("example_clip") is not None
    precisions = model["encoder"].get("precision", "fp32"), model.get("precision", "fp32")
    for precision in precisions:
        if precision not in device.operations:
            known = " or ".join(device.operations)
            raise UserError(f"precision={precision!r} has no rate on {device.name}; give {known}.")
    image = image_tower(encoder, model["encoder"], size, 4 if precisions[0] == "fp32" else 2)
    text = text_tower(text_settings(model["encoder"], model.get("text") or {}), 4 if precisions[1] == "fp32" else 2)
    asked = asked_of(config, each)
    ((name, parts),) = model["heads"].items()
    head = build(MODELS, parts["head"], facts=encoder.facts, channels=1)
    cost = head_passes(head, encoder, size, round(asked.queries), image, text)
    tokens, own = cost.outputs[0].shape[1], sum(p.numel() for p in head.parameters())

    reached = {kind: rate * device.reached[kind] for kind, rate in device.operations.items()}
    of_image, of_head = (reached[precision] for precision in precisions)
    moved, exponentials = device.memory * device.reached_otherwise, device.exponentials * device.reached_otherwise
    batch, trained = config.train_dataloader.batch_size, image.trained + text.trained + own
    step = {
        "image_tower": batch * image.training / of_image,
        "text_tower": asked.texts * text.training / of_head if text.trained else 0.0,  # else each name once, in all
        "head": batch * ((cost.forward + cost.backward) / of_head + LOSS * tokens * asked.queries / exponentials),
        "matching": batch * _seconds_of_matching(tokens, max(round(asked.boxes), 1)),
        "optimizer": (ADAM + EACH * batch * each) * trained / moved,
        "beside": device.step * (batch if each else 1),
    }

    val = images_of(config.val_dataloader.dataset.to_dict(), config.seed, images and images[1])
    task = parts.get("task", {})
    classes = len(task.get("classes") or val.classes) or KINDS.get(val.name)
    evaluations = -(-config.train_cfg.max_iters // config.train_cfg.val_interval)
    tested = None
    if classes is not None and val.count is not None:
        scores = 2 * tokens * encoder.facts.aligned_width * classes / of_head + ARGMAX * tokens * classes / exponentials
        once = image.forward / of_image + cost.forward / of_head + scores + device.step
        texts = classes * len(templates_of(task.get("templates", "7-best")))
        vocabulary = texts * text.forward / reached["fp32"]  # which an evaluation has in float32
        tested = evaluations * val.count * once + (evaluations if text.trained else 1) * vocabulary
    training = config.train_cfg.max_iters * sum(step.values())

    texts = (asked.queries if each else asked.texts) if text.trained else 0
    texts = min(texts, CHECKPOINTED) if (model.get("text") or {}).get("checkpointing") else texts
    activations = (1 if each else batch) * (image.kept + cost.kept) + texts * text.kept
    return {
        "encoder": {"name": encoder.facts.name, "pixels": size, "precision": precisions[0], **image._asdict()},
        "text": {"precision": precisions[1], **text._asdict()},
        "head": {"name": name, "parameters": own, "tokens": tokens, "forward": cost.forward,
                 "training": cost.forward + cost.backward},
        "asked": asked._asdict(),
        "data": {"name": val.name, "split": val.split, "images": val.count, "classes": classes},
        "schedule": {"steps": config.train_cfg.max_iters, "images_per_process": batch, "evaluations": evaluations},
        "clip": "each image's gradient" if each else "all images' gradient",
        "bytes": memory_of(image, text, own, activations, each),
        "device": asdict(device),
        "seconds_of_step": step,
        "seconds": {"training": training, "evaluation": tested, "total": None if tested is None else training + tested},
        "images_per_second": batch / sum(step.values()),
    }  # fmt: skip


def check_model(config: Config) -> dict:
    """The config of the model as plain data. Raises UserError for one that the plan does not know."""
    model = config.model.to_dict()
    check_arguments(MODELS, model)
    if "size" not in model.get("inference", dict(size=768)) or len(model["heads"]) > 1:
        raise UserError("the plan of OWL-ViT is of one head on squares, inference=dict(mode='square', size=PIXELS).")
    if config.train_cfg.get("sharded") and model.get("example_clip") is not None:
        raise UserError("train_cfg.sharded goes with the ordinary clip; give model.example_clip=None.")
    return model


def memory_of(image: Tower, text: Tower, head: int, activations: float, each: bool) -> dict[str, float]:
    """Bytes on a device, about. each: whether images are clipped by themselves, with a sum of their gradients.

    DDP averages a copy of the gradients. In shards, what is whole at a time, with its gradient, is the text tower, or
    two blocks of the image tower and what is around its blocks. Towers that stay as they are, are whole, and so are all
    weights in an evaluation.
    """
    weights, trained = image.parameters + text.parameters + head, image.trained + text.trained + head
    found = {
        "weights": FLOAT * weights,
        "gradients": FLOAT * trained * (2 if each else 1),
        "moments": 2 * FLOAT * trained,
        "activations": activations,
    }
    alone = sum(found.values())
    found |= {"one_process": alone, "ddp": alone + (0 if each else FLOAT * trained)}
    if each or not (image.trained or text.trained):
        return found
    divided = head + sum(tower.parameters for tower in (image, text) if tower.trained)
    whole = max(tower.around + 2 * tower.block for tower in (image, text) if tower.trained)
    for devices in SHARDED_OVER:
        shards = (divided + 3 * trained) / devices
        training = FLOAT * (shards + weights - divided + 2 * whole) + activations
        found[f"sharded_over_{devices}"] = max(training, FLOAT * (weights + 3 * trained / devices))
    return found


def asked_of(config: Config, each: bool) -> Asked:
    """What images of training are asked for: of some of them, or as assumed where they are not there.

    each: whether images go through one by one, and with them their texts.
    """
    batch, loading = config.train_dataloader.batch_size, config.train_dataloader.dataset.to_dict()
    check_arguments(DATASETS, loading)
    data = None
    with suppress(UserError):
        data = build(DATASETS, loading, seed=config.seed)
    if data is None:
        return Asked(QUERIES, batch * QUERIES, BOXES, False)
    samples = [data[(0, index)] for index in range(min(len(data), max(batch, LOOKED_AT)))]
    names = [set(sample.queries or data.classes) for sample in samples]
    queries = sum(map(len, names)) / len(names)
    texts = batch * queries if each else len(set().union(*names[:batch]))
    return Asked(queries, texts, sum(len(sample.boxes) for sample in samples) / len(samples), True)


def _seconds_of_matching(tokens: int, boxes: int) -> float:
    """Of an image, on this machine's processor: it is done on one wherever the rest is. Costs are drawn."""
    cost, found = np.random.default_rng(0).random((tokens, boxes), np.float32), []
    for _ in range(MATCHINGS):
        start = perf_counter()
        linear_sum_assignment(cost)
        found.append(perf_counter() - start)
    return median(found)
