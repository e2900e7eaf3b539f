"""The predictor: images in, what heads find in them out, as the test of their protocol would predict it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device

from siglip2_dense.contracts import Sample
from siglip2_dense.data.images import ImageLike, pixels_of
from siglip2_dense.data.transforms import resized
from siglip2_dense.errors import UserError
from siglip2_dense.files import digest
from siglip2_dense.predict.found import Boxes, ClassMap, DepthMap, Found, NormalMap
from siglip2_dense.predict.heads import View, open_heads, open_names
from siglip2_dense.predict.prompts import Example, ask, colours_of, parse_prompts, show
from siglip2_dense.predict.result import Result
from siglip2_dense.tasks.queries import ZeroShotSegmentation

MAX_PIXELS = 2**21  # of an image that goes through the encoder as a whole: 1448 x 1448
BATCH, BATCH_PIXELS = 8, 2**22  # images and pixels that are worked on together
THRESHOLD = 0.2


class Predictor:
    """Trained heads on one encoder, at work on any image.

    ``Predictor("head.safetensors")("photo.jpg").segmentation``. Images are resized, cut into windows and averaged as in
    the test of each head's protocol, and maps have the size of the image. What the protocol cuts off the border of its
    data set's images stays. Heads that see an image in the same way share the encoder's pass.

    Args:
        heads: a head file, or several of one encoder.
        encoder_weights: "hub", "random", or a file or folder; by default where the head file says, or else the hub.
            Their fingerprint must be that of the head file.
        device: "cpu", "cuda", "cuda:1"; by default a GPU where there is one.
        max_pixels: where a protocol gives the encoder whole images, larger ones are first scaled down to that many
            pixels: a transformer's time grows with the square of them.

    Attributes:
        heads: the heads by name; tasks: what they are for, by the same names.
        classes: the names of the first head's classes that has any.
    """

    def __init__(
        self,
        heads: str | Path | Sequence[str | Path],
        encoder_weights: str | Path | None = None,
        device: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        paths = [heads] if isinstance(heads, (str, Path)) else list(heads)
        self._begin(open_heads(paths, encoder_weights), paths, device, max_pixels)

    @classmethod
    def open_vocabulary(
        cls,
        source: str | Path | Config,
        prompts: str | Sequence[str] | None = None,
        examples: Mapping[str, Sequence[Example]] | None = None,
        head: str | Path | None = None,
        background: float | None = None,
        encoder_weights: str | Path | None = None,
        device: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Predictor:
        """Of ZeroShot, CATSeg or OWLViT: predicts what has a name, or, of OWLViT, looks like an example.

        source: a config, its path or its name, or the head file of a trained model. head: the head file of a config
        whose model is trained. prompts, background: see ``set_prompts``; examples: see ``set_examples``.
        """
        if (prompts is None) == (examples is None):
            raise UserError("open vocabulary: say what to look for, by names (prompts) or by examples.")
        asked = None if prompts is None else parse_prompts(prompts)  # what is wrong is said before the model is loaded
        new = cls.__new__(cls)
        files = [head] if head is not None else [source] if str(source).endswith(".safetensors") else []
        new._begin([open_names(source, head, encoder_weights)], files, device, max_pixels)
        if asked is None:
            new.set_examples(examples)
        else:
            new._ask(*asked, background)
        return new

    def _begin(self, views: Sequence[View], files: Sequence, device: str | None, max_pixels: int) -> None:
        if not isinstance(max_pixels, int) or max_pixels < 1:
            raise UserError(f"max_pixels={max_pixels!r}: give a number of pixels from 1 on, such as {MAX_PIXELS}.")
        self.max_pixels = max_pixels
        self.device = device or get_device()
        self._views = [(view, view.built()) for view in views]
        for view in views:
            view.probe.to(self.device).eval()
        self._files = [digest(path) for path in files]
        self._shown: dict[str, Sequence] = {}

    @property
    def heads(self) -> dict[str, torch.nn.Module]:
        return {name: head for view, _ in self._views for name, head in view.probe.heads.items()}

    @property
    def tasks(self) -> dict[str, Any]:
        return {name: task for view, _ in self._views for name, task in view.probe.tasks.items()}

    @property
    def classes(self) -> tuple[str, ...]:
        return next((tuple(task.classes) for task in self.tasks.values() if hasattr(task, "classes")), ())

    def set_prompts(self, prompts: str | Sequence[str], background: float | None = None) -> None:
        """Look for these names from now on: ["wicker chair", "sofa|couch"], with strokes between several names of one
        thing; or a text with commas between them, or a file of names.

        background: of a segmentation, pixels whose best name has a probability below this are "background". Raises
        UserError for heads with classes of their own, and for names that are none.
        """
        self._ask(*parse_prompts(prompts), background)

    def _ask(self, classes: list[str], queries: dict[str, list[str]], background: float | None) -> None:
        if background is not None and self._finds_boxes:
            raise UserError("background is for segmentation; threshold says how sure a box is to be.")
        ask(self._names("set_vocabulary"), classes, queries, background)
        self._shown = {}

    def set_examples(self, examples: Mapping[str, Sequence[Example]]) -> None:
        """Look for what looks like these from now on: ``{"mug": [("shelf.jpg", (120, 80, 210, 190))]}``, of each name
        one or several images, each with a box in it. Raises UserError for models that take names only.
        """
        show(self._names("set_examples"), examples)
        self._shown = {name: [(_key(image), tuple(box)) for image, box in shown] for name, shown in examples.items()}

    @property
    def _finds_boxes(self) -> bool:
        return any(task.target == "boxes" for task in self.tasks.values())

    def _names(self, method: str):
        probe = self._views[0][0].probe
        if not hasattr(probe, method):
            what = "names" if method == "set_vocabulary" else "examples"
            raise UserError(f"{type(probe).__name__} cannot be asked for {what}; take a model of open vocabulary.")
        return probe

    def __call__(self, images: ImageLike | Sequence[ImageLike], threshold: float = THRESHOLD) -> Result | list[Result]:
        """What all heads find in an image; of a list, a list.

        images: a path, Pillow's image, or an array (H, W), (H, W, 3) RGB or (H, W, 4), uint8 or uint16; or a list of
        these, of any sizes. threshold: the least probability of a box. Raises UserError for what is no image.
        """
        if isinstance(images, (list, tuple)):
            return list(self.stream(images, threshold))
        return next(self.stream([images], threshold))

    def stream(self, images: Iterable[ImageLike], threshold: float = THRESHOLD) -> Iterator[Result]:
        """The results of images one after another, in batches of a few; so any number of them fits."""
        made_by = self.made_by(threshold)
        batch: list[tuple[str, np.ndarray]] = []
        for image in images:
            pixels = pixels_of(image)
            if batch and (len(batch) == BATCH or sum(p.size for _, p in batch) + pixels.size > 3 * BATCH_PIXELS):
                yield from self._predict(batch, threshold, made_by)
                batch = []
            batch.append((str(image) if isinstance(image, (str, Path)) else "", pixels))
        if batch:
            yield from self._predict(batch, threshold, made_by)

    @torch.no_grad()
    def _predict(self, batch: Sequence[tuple[str, np.ndarray]], threshold: float, made_by: dict) -> Iterator[Result]:
        found: list[dict[str, Found]] = [{} for _ in batch]
        for view, transforms in self._views:
            samples = [self._sample(pixels, view.probe, transforms) for _, pixels in batch]
            data = {"inputs": [sample.image for sample in samples], "data_samples": samples}
            predictions = view.probe(**view.probe.data_preprocessor(data, False), mode="predict")
            for own, prediction in zip(found, predictions, strict=True):
                own |= {name: _found(view.probe.tasks[name], one, threshold) for name, one in prediction.items()}
        order = list(self.tasks)
        for (path, pixels), own in zip(batch, found, strict=True):
            yield Result(pixels, {name: own[name] for name in order}, path, made_by)

    def _sample(self, pixels: np.ndarray, probe, transforms: Sequence) -> Sample:
        """An image as a test gives it to the probe."""
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        sample, numbers = Sample(image=image, original_size=pixels.shape[:2]), np.random.default_rng(0)
        for transform in transforms:
            sample = transform(sample, numbers)
        size = tuple(sample.image.shape[1:])
        scaled_anyway = probe.facts.sequence_length is not None
        if probe.inference["mode"] == "whole" and not scaled_anyway and prod(probe.encoded(size)) > self.max_pixels:
            smaller = sqrt(self.max_pixels / prod(size))
            sample = resized(sample, tuple(max(int(side * smaller), 1) for side in size), targets=False)
        sample.image = sample.image.contiguous()
        return sample

    def made_by(self, threshold: float = THRESHOLD) -> dict:
        """What predictions come from, as plain data: the encoder, and a digest of all else that decides them.

        Raises UserError for a threshold that is no probability.
        """
        if not 0 <= threshold < 1:
            raise UserError(f"threshold={threshold}: give a probability, from 0 to below 1.")
        facts = self._views[0][0].probe.facts
        parts = [*self._files, *(view.digest() for view, _ in self._views), self.max_pixels, self._shown]
        if self._finds_boxes:
            parts.append(threshold)
        settings = hashlib.sha256(repr(parts).encode()).hexdigest()
        return {"encoder": facts.name, "fingerprint": facts.fingerprint, "settings": settings[:16]}


def _found(task, prediction, threshold: float) -> Found:
    if task.target == "labels":
        named = isinstance(task, ZeroShotSegmentation)
        return ClassMap.of(prediction, task.classes, colours_of(task.classes) if named else task.palette)
    if task.target == "depth":
        return DepthMap.of(prediction, task.unit)
    if task.target == "normals":
        return NormalMap.of(prediction)
    return Boxes.of(prediction, task.classes, task.palette, threshold)


def _key(image: ImageLike) -> str:
    """What tells an example's image from others."""
    return hashlib.sha256(pixels_of(image).tobytes()).hexdigest()[:16]
