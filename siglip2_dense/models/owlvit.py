"""OWL-ViT: detection of anything that has a name or an example, on any encoder that was trained with texts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from mmengine.device import get_device
from torch import Tensor, nn

from siglip2_dense.contracts import Box, Features, RawDetections, Sample, Size
from siglip2_dense.errors import UserError
from siglip2_dense.models.texts import TextProbe
from siglip2_dense.registry import MODELS, build
from siglip2_dense.resample import resize_pixels

GREY = 128.0  # of pixels 0 to 255, beside an image that is no square: 127.5 rounded, as in PadToSquare
CLIP = 1.0  # of the gradient's norm
REMEMBERED = 100_000  # texts of a frozen tower, in training, whose vectors are kept


@MODELS.register_module()
class OWLViT(TextProbe):
    """A probe of ``OWLViTHead`` heads with tasks ``Detection``. Its predictions are ``Detections``.

    Both towers may train or stay as they are: ``encoder=dict(trainable="all")``, ``text=dict(trainable="all")``.
    Prompts of training that are too long for the text tower are cut, those of an evaluation too, with a warning; those
    that somebody asks for (``set_vocabulary``) are refused.

    Args:
        heads, encoder, text: as in ``TextProbe``, and so is whatever else is given.
        clip_norm, example_clip: as in DenseProbe. ``example_clip=1.0`` is how the published models were trained;
            without it one head has an ordinary clip by default, ``clip_norm=1.0``, which is cheaper and costs 1 to 2.3
            AP. Which it is decides what losses are divided by: with ``example_clip`` by each image's own boxes, else by
            those of all images of a step. Images of few boxes would otherwise weigh so much that an ordinary clip costs
            4 to 5 AP (OWL-ViT, Table A5).
        inference: ``dict(mode="square", size=768)``: an image is brought to that many pixels on its longer side and
            stands in the upper left corner of a grey square, in training too. Or ``dict(mode="whole")``: every image
            as it is, at its own aspect, padded to whole patches; so NaFlex encoders take them.
    """

    def __init__(
        self,
        heads: dict[str, dict],
        encoder: dict | nn.Module | None = None,
        text: dict | None = None,
        inference: dict | None = None,
        clip_norm: float | str | None = "default",
        example_clip: float | None = None,
        **probe,
    ):
        if clip_norm == "default":
            clip_norm = CLIP if example_clip is None and len(heads) == 1 else None
        self._sampled: dict[str, list[Tensor]] | None = None  # of each head the texts of the images of a training step
        self._examples: dict[str, Tensor] = {}  # of each head the vectors of examples, asked for instead of texts
        self._remembered: dict[str, Tensor] = {}
        self._frozen: tuple[nn.Module, ...] = ()  # the text tower, where it does not train, outside the module tree
        super().__init__(
            heads, encoder, text, inference=inference or dict(mode="square", size=768), clip_norm=clip_norm,
            example_clip=example_clip, **probe,
        )  # fmt: skip

    def check_heads(self) -> None:
        for name, head in self.heads.items():
            if not hasattr(head, "merges") or not hasattr(self.tasks[name], "asked"):
                raise UserError(f"heads.{name}: OWLViT has heads OWLViTHead with the task Detection; give those.")
        if self.facts.sequence_length is not None and self.inference["mode"] == "square":
            raise UserError(
                f"inference: {self.facts.name} takes images at their own aspect; give inference=dict(mode='whole')."
            )
        self._weigh(self.tasks)

    def tasks_for(self, classes: str | Sequence[str], queries: Mapping[str, Sequence[str]] | None = None) -> dict:
        return self._weigh(super().tasks_for(classes, queries))

    def _weigh(self, tasks: dict) -> dict:
        for task in tasks.values():
            task.each = self.example_clip is not None
        return tasks

    def set_vocabulary(self, classes: str | Sequence[str], queries: Mapping[str, Sequence[str]] | None = None) -> None:
        """Detect these classes from now on; see ``Detection``.

        Raises UserError for names that are none, and for those that in a sentence are too long for the text tower.
        """
        text_encoder = self.text_encoder()
        for task in self.tasks_for(classes, queries).values():
            if cut := _cut(text_encoder, task):
                raise UserError(
                    f"{cut[0]!r} is longer than the {text_encoder.plan.rules.context} tokens that the text tower of "
                    f"{text_encoder.plan.encoder} takes (and {len(cut) - 1} more prompts); say it in fewer words."
                )
        super().set_vocabulary(classes, queries)
        self._examples = {}

    @torch.no_grad()
    def set_examples(self, examples: Mapping[str, Sequence[tuple[Tensor, Sequence[float]]]]) -> None:
        """Detect what looks like these from now on, without any text.

        examples: ``{name: [(image (3, H, W), (x0, y0, x1, y1) in its pixels), …]}``; of several the vectors are
        averaged. A box is to hold an object in a picture of its surroundings: a picture cut out around an object is a
        poor example. Raises UserError for a box outside its image, and for names that are none.
        """
        self.eval()
        tasks = self.tasks_for(list(examples), None)
        vectors = {name: [] for name in tasks}
        for shown in examples.values():
            if not shown:
                raise UserError("examples: a name has none; give one image and box, at least.")
            found = [self._example(image, box) for image, box in shown]
            for name in tasks:
                vectors[name].append(torch.stack([one[name] for one in found]).mean(0))
        for name in tasks:
            rows = torch.stack(vectors[name])
            self._examples[name] = rows / (rows.norm(dim=-1, keepdim=True) + 1e-6)
        self.tasks.update(tasks)

    def _example(self, image: Tensor, box: Sequence[float]) -> dict[str, Tensor]:
        (height, width), (x0, y0, x1, y1) = image.shape[-2:], box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise UserError(
                f"the example's box {tuple(box)} is none in its image of {width}x{height} pixels (width x height); "
                "give x0,y0,x1,y1 with x0 < x1 and y0 < y1."
            )
        image = image.to(next(self.heads.parameters()).device)
        features = self.features([image])
        nothing = torch.zeros(0, self.facts.aligned_width, device=image.device)
        self._sampled = {name: [nothing] for name in self.heads}
        try:
            raw = self.raw(features)
        finally:
            self._sampled = None
        place = features.geometry[0]
        return {name: self.tasks[name].example(raw[name][0], place, box) for name in self.heads}

    def features(self, images: Sequence[Tensor] | Features, canvas: Size | None = None) -> Features:
        """As in DenseProbe; in mode "square" each image becomes one first, and its box is what it fills of that."""
        side = self.inference.get("size")
        if side is None or isinstance(images, Features):
            return super().features(images, canvas)
        pixels, sizes = zip(*(squared(image, side) for image in images), strict=True)
        found = super().features(list(pixels))
        geometry = tuple(
            replace(seen, box=(*seen.box[:2], *size), resized=given, original=given)
            for seen, size, given in zip(
                found.geometry, sizes, [tuple(image.shape[-2:]) for image in images], strict=True
            )
        )
        return replace(found, geometry=geometry)

    def forward(self, inputs, data_samples: list[Sample] | None = None, mode: str = "tensor"):
        """As in DenseProbe; of a training batch each image is asked for its sample's queries."""
        if mode != "loss":
            return super().forward(inputs, data_samples, mode)
        self._sampled = {name: self._texts_of_samples(task.asked(data_samples)) for name, task in self.tasks.items()}
        try:
            return super().forward(inputs, data_samples, mode)
        finally:
            self._sampled = None  # and with it the graph of a text tower that trains

    def _raw(self, features: Features) -> dict[str, RawDetections]:
        """Heads draw nothing. Nor is the stream set for them: of images one by one each has drop paths of its own."""
        found = {}
        for name, head in self.heads.items():
            texts = self._texts_of(name) if self._sampled is None else self._sampled[name]
            device = next(head.parameters()).device
            texts = texts.to(device) if isinstance(texts, Tensor) else [one.to(device) for one in texts]
            found[name] = head(features, texts)
        return found

    def _texts_of(self, name: str) -> Tensor:
        return self._examples[name] if name in self._examples else super()._texts_of(name)

    def _texts_of_samples(self, asked: Sequence[Sequence[str]]) -> list[Tensor]:
        """(Q, E) unit vectors of what each image is asked for, with their gradient where the text tower trains."""
        # of no name at all the tower still gets one, and a gradient of 0: all ranks wait for that of each parameter
        names = list(dict.fromkeys(chain(*asked))) or ["thing"]
        clean = next(iter(self.tasks.values())).clean_names
        if self.text is not None:
            device = get_device()
            with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
                vectors = self.text.embed(names, "name", clean)[:, 0]
        else:
            vectors = self._frozen_texts(names, clean)
        place = {name: row for row, name in enumerate(names)}
        rows = (torch.tensor([place[name] for name in one], dtype=torch.int64, device=vectors.device) for one in asked)
        return [vectors[numbers] for numbers in rows]

    def _frozen_texts(self, names: Sequence[str], clean: str) -> Tensor:
        """(K, E), each name computed once: in training there are hundreds of thousands, but the same come again."""
        if not self._frozen:  # nothing is stored: every step would write a file of a few texts
            self._frozen = (build(MODELS, {**self._settings, "cache": False}).to(get_device()),)
        if new := [name for name in names if name not in self._remembered]:
            if len(self._remembered) + len(new) > REMEMBERED:
                self._remembered, new = {}, list(names)
            with torch.autocast(get_device(), enabled=False):
                self._remembered |= dict(zip(new, self._frozen[0].encode(new, "name", clean=clean), strict=True))
        return torch.stack([self._remembered[name] for name in names])

    def _embed(self, text_encoder: nn.Module, tasks: Mapping) -> dict[str, tuple]:
        for task in tasks.values():
            if cut := _cut(text_encoder, task):
                warnings.warn(
                    f"{len(cut)} prompts are longer than the {text_encoder.plan.rules.context} tokens of the text "
                    f"tower and are cut, {cut[0]!r} for one",
                    stacklevel=2,
                )
        return super()._embed(text_encoder, tasks)

    @staticmethod
    def checked_inference(inference: dict) -> dict:
        wanted = {"whole": {"mode"}, "square": {"mode", "size"}}.get(inference.get("mode"))
        size = inference.get("size", 1)
        if wanted != set(inference) or isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(
                f"inference={dict(inference)}: give dict(mode='square', size=PIXELS) or dict(mode='whole')."
            )
        return dict(inference)

    @property
    def placement(self) -> Size | dict | None:
        return self.inference if self.inference["mode"] == "square" else super().placement

    def encoded(self, size: Size) -> Size:
        side = self.inference.get("size")
        return size if side is None else (side, side)

    def alike(self, size: Size) -> Size:
        return self.encoded(size)

    def windows(self, size: Size) -> list[Box]:
        return [(0, 0, *size)]


def squared(image: Tensor, side: int) -> tuple[Tensor, Size]:
    """(3, H, W) pixels -> (3, side, side) in floating point: the longer side as long as that, the image in the
    corner, grey beside it. And the size that it has there.
    """
    height, width = image.shape[-2:]
    size = tuple(max(round(length * side / max(height, width)), 1) for length in (height, width))
    pixels = image.float()
    if size != (height, width):
        pixels = resize_pixels(pixels, size)
    return nn.functional.pad(pixels, (0, side - size[1], 0, side - size[0]), value=GREY), size


def _cut(text_encoder: nn.Module, task) -> list[str]:
    names = [name for names in task.members for name in names]
    return text_encoder.too_long(names, task.templates, clean=task.clean_names)
