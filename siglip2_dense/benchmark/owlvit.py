"""What OWL-ViT takes: an image's detection beside transformers' on the same weights, and a step of training.

Weights are random, shapes those of CLIP B/16 (against transformers) and of SigLIP 2 B/16 and So400m/14 at their
resolutions of detection. Both sides of the comparison begin with the same pixels of 8 bits and the same ids, and run
both towers. With --quick it is smaller images, fewer names, the first blocks of the towers, and SigLIP's smaller
vocabulary.

At 768 pixels both sides spend half of the time in matrix products and three tenths in attention, in the same kernels,
so that the ratio is near 1 and moves by some hundredths from run to run.
"""

from __future__ import annotations

import tempfile
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from siglip2_dense.benchmark.measure import (
    figure,
    interleave,
    milliseconds,
    numbers_of_own_process,
    peak_increase,
    ratio,
)
from siglip2_dense.contracts import Sample
from siglip2_dense.engine.optimizers import JointOptimWrapper, optimizers_of
from siglip2_dense.registry import MODELS, build

NAMES = [f"thing number {number}" for number in range(100)]  # the queries of an image in training, about
BOXES = 10  # of an image
IMAGES = 2  # of a step


class Shape(NamedTuple):
    encoder: str
    size: int  # pixels a side
    names: int
    blocks: int | None = None  # of both towers; none = all


SHAPES = {
    "CLIP B/16 @768": Shape("clip-base-16-224", 768, 20),
    "SigLIP 2 B/16 @768": Shape("siglip2-base-16-384", 768, 20),
    "SigLIP 2 So400m/14 @840": Shape("siglip2-so400m-14-384", 840, 20),
    "CLIP B/16 @320, 4 blocks": Shape("clip-base-16-224", 320, 8, 4),
    "SigLIP B/16 @320, 2 blocks": Shape("siglip-base-16-384", 320, 8, 2),
}
VOCABULARIES = {  # by the beginning of an encoder's name: what begins them, and how many entries they have
    "siglip2": (("<pad>", "<eos>", "<bos>", "<unk>"), 256_000),
    "siglip": (("<pad>", "</s>", "<unk>"), 32_000),
}


def run(quick: bool) -> list[dict]:
    """Figures: the ratio to transformers; seconds and MiB of an image and of a step, by how gradients are clipped."""
    like = "CLIP B/16 @320, 4 blocks" if quick else "CLIP B/16 @768"
    figures = [against_transformers(like, rounds=5 if quick else 3)]
    for shape in ["SigLIP B/16 @320, 2 blocks"] if quick else ["SigLIP 2 B/16 @768", "SigLIP 2 So400m/14 @840"]:
        for what in ("an image", "a step, clipped together", "a step, clipped by image"):
            if not quick and "So400m" in shape and what != "an image" and not torch.cuda.is_available():
                continue  # a minute an image on two cores
            seconds, peak = numbers_of_own_process("owlvit", f"measure({shape!r}, {what!r})")
            detail = (
                f"{SHAPES[shape].names} names, {'1 image' if what == 'an image' else f'{IMAGES} images'}, {_type()}"
            )
            figures.append(figure(f"seconds, {what}, {shape}", seconds, detail=detail))
            held = "weights and pixels" + ", with the optimizers' state" * (what != "an image")
            figures.append(figure(f"peak MiB, {what}, {shape}", peak, detail=f"above {held}; {detail}"))
    return figures


def _type() -> str:
    return "bf16" if torch.cuda.is_available() else "fp32"


def against_transformers(name: str, rounds: int) -> dict:
    """The time of our forward pass in parts of transformers', on the same weights. Raises ValueError where they do not
    give the same boxes and scores.
    """
    from transformers import OwlViTForObjectDetection

    from siglip2_dense.convert.owlvit import export

    shape, device = SHAPES[name], "cuda" if torch.cuda.is_available() else "cpu"
    model = detector(shape).to(device)
    with tempfile.TemporaryDirectory() as folder:
        export(model, folder)
        theirs = OwlViTForObjectDetection.from_pretrained(Path(folder)).eval().to(device)
    pixels = torch.randint(0, 256, (3, shape.size, shape.size), dtype=torch.uint8, device=device)
    texts = model.text_encoder().to(device)
    ids = texts.tokenize(NAMES[: shape.names])
    tower = texts.tower
    (head,) = model.heads.values()

    @torch.inference_mode()
    def ours():
        raw = head(model.features([pixels]), torch.nn.functional.normalize(tower(ids), dim=-1))
        found = raw.logits(), raw.boxes[0]
        _wait()
        return found

    @torch.inference_mode()
    def transformers():
        normalised = ((pixels.float() - model.encoder.mean) / model.encoder.std)[None]
        found = theirs(input_ids=ids, pixel_values=normalised)
        _wait()
        return found.logits[0], found.pred_boxes[0]

    for a, b in zip(ours(), transformers(), strict=True):
        if (a - b).abs().max() > 1e-3:
            raise ValueError(f"{name}: the two sides differ by {(a - b).abs().max():.2g}")
    seconds = interleave({"ours": ours, "transformers": transformers}, rounds)
    detail = f"{name}, {shape.names} names, both towers, fp32; {milliseconds(seconds)}"
    return figure("forward, time over transformers'", ratio(seconds, "ours", "transformers"), 1.0, detail=detail)


def measure(name: str, what: str) -> tuple[float, float]:
    """Seconds of an image or of a step, the second one, and MiB of the peak of the first above weights and pixels."""
    shape, device = SHAPES[name], "cuda" if torch.cuda.is_available() else "cpu"
    training = what != "an image"
    clip = dict(example_clip=1.0) if what.endswith("by image") else dict(clip_norm=1.0)
    model = detector(shape, training, **(clip if training else {})).to(device)
    count = IMAGES if training else 1
    images = [torch.randint(0, 256, (3, shape.size, shape.size), dtype=torch.uint8) for _ in range(count)]
    asked = tuple(NAMES[: shape.names])
    corner = torch.rand(BOXES, 2) * shape.size / 2
    boxes = torch.cat([corner, corner + shape.size / 4], dim=1)
    one = Sample(
        boxes=boxes, box_names=tuple((asked[i % len(asked)],) for i in range(BOXES)), queries=asked,
        original_size=(shape.size, shape.size),
    )  # fmt: skip
    batch = {"inputs": images, "data_samples": [one] * count}
    joint = JointOptimWrapper(**optimizers_of(model)) if training else None
    if training:
        joint.clip_norm = model.clip_norm
    model.train(training)

    def call():
        if training:
            model.train_step(batch, joint)
        else:
            model(**model.data_preprocessor(batch, False), mode="predict")
        _wait()

    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        call()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = peak_increase(call)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start, peak / 2**20


def detector(shape: Shape, trains: bool = False, **more):
    """An OWLViT of this shape at random; its towers, where they train, with blocks computed again going back."""
    clip = shape.encoder.startswith("clip")
    half = dict(precision="bf16") if torch.cuda.is_available() and not clip else {}
    towers = dict(trainable="all", checkpointing=True) if trains else {}
    image = dict(depth=shape.blocks) if shape.blocks else {}
    text = dict(layers=shape.blocks) if shape.blocks else {}
    if clip:
        image, text = image | dict(img_size=shape.size), text | dict(context_length=16)
    head = dict(
        head=dict(type="OWLViTHead"), task=dict(type="Detection", classes=NAMES[: shape.names], templates="name"),
        optim=dict(type="Adam", lr=1e-5),
    )  # fmt: skip
    words = {} if clip else dict(tokenizer=letters(shape.encoder.partition("-")[0]))
    return build(MODELS, dict(
        type="OWLViT",
        encoder=dict(type="FrozenEncoder", name=shape.encoder, weights="random", model_args=image, **half, **towers),
        text=dict(model_args=text, cache=False, **words, **towers),
        heads=dict(detection=head),
        inference=dict(mode="square", size=shape.size),
        **(dict(encoder_optim={}, text_optim=dict(lr_mult=0.04)) if trains else {}), **half, **more,
    ))  # fmt: skip


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def letters(family: str) -> str:
    """A tokenizer with as large a vocabulary as a family's, in a file, that has a token for each letter."""
    from tokenizers import Tokenizer, models

    first, rows = VOCABULARIES[family]
    known = [*first, *(chr(code) for code in range(32, 127))]
    known += [f"word {number}" for number in range(rows - len(known))]
    vocabulary = {token: number for number, token in enumerate(known)}
    path = Path(_folder().name) / f"{family}.json"
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(path))
    return str(path)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
