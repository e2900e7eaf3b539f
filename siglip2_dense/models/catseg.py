"""CAT-Seg: a head on cosines between cells and texts, trained with some classes, for any others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from siglip2_dense.contracts import Features, Geometry, Size
from siglip2_dense.errors import UserError
from siglip2_dense.models.texts import TextProbe
from siglip2_dense.models.windows import checked_inference, pair
from siglip2_dense.registry import MODELS
from siglip2_dense.resample import resize_pixels

REFERENCE = 256  # classes of an image that the published code scores


@MODELS.register_module()
class CATSeg(TextProbe):
    """A probe of ``CATSegHead`` heads with tasks ``OpenVocabulary``: whatever classes the task has are scored, those of
    training or others (``set_vocabulary``).

    Args:
        heads, encoder, text: as in ``TextProbe``, and so is whatever else is given. ``encoder_optim`` is for both
            towers, and a text tower that trains runs at ``precision`` too.
        inference: as in DenseProbe, and with it ``size=(height, width)``: the image is first brought to that, whatever
            its shape; ``overview=True`` beside windows: also the whole image, in one window's pixels, counts, as much
            as all windows together; ``classes="reference"``: of more than 256 only the nearest 256 of a view are
            scored, as in the published code, where by default ("exact") all are.
    """

    def check_heads(self) -> None:
        for name, head in self.heads.items():
            if not hasattr(head, "most") or not hasattr(self.tasks[name], "templates"):
                raise UserError(f"heads.{name}: CATSeg has heads CATSegHead with the task OpenVocabulary; give those.")
            head.most = REFERENCE if self.inference.get("classes") == "reference" else None
        grids = {head.grid for head in self.heads.values()}
        if len(grids) > 1:
            raise UserError(f"heads: images are brought to one grid for all heads, not to {grids}.")
        (self.grid,) = grids

    def set_vocabulary(
        self,
        classes: str | Sequence[str],
        queries: Mapping[str, Sequence[str]] | None = None,
        background_threshold: float | None = None,
    ) -> None:
        """Ask for these classes from now on; see ``OpenVocabulary``. Raises UserError for names that are none."""
        super().set_vocabulary(classes, queries, background_threshold=background_threshold)

    def features(self, images: Sequence[Tensor] | Features, canvas: Size | None = None) -> Features:
        """As in DenseProbe; with a grid each canvas is brought to it as a whole."""
        if self.grid is None or isinstance(images, Features):
            return super().features(images, canvas)
        sizes = [tuple(image.shape[-2:]) for image in images]
        canvas = tuple(canvas or (max(size[axis] for size in sizes) for axis in (0, 1)))
        if any(size[axis] > canvas[axis] for size in sizes for axis in (0, 1)):
            raise UserError(
                f"an image of {max(sizes)} pixels does not fit on model.canvas={canvas}; crop it, or enlarge that."
            )
        boxes = [((canvas[0] - h) // 2, (canvas[1] - w) // 2, h, w) for h, w in sizes]
        pixels = self.encoder.mean.repeat(len(sizes), 1, *canvas)
        for place, image, (top, left, height, width) in zip(pixels, images, boxes, strict=True):
            place[:, top : top + height, left : left + width] = image
        if canvas != self.encoded(canvas):
            pixels = resize_pixels(pixels, self.encoded(canvas), antialias=False)
        found = self.encoder.features(pixels, self.taps, None, self.pooled, self.aligned)
        geometry = tuple(
            Geometry(padded=canvas, box=box, canvas=canvas, resized=size, original=size)
            for box, size in zip(boxes, sizes, strict=True)
        )
        return replace(found, geometry=geometry)

    def encoded(self, size: Size) -> Size:
        patch = self.facts.strides[-1]
        return size if self.grid is None else (self.grid[0] * patch, self.grid[1] * patch)

    def _raw(self, features: Features) -> dict[str, Tensor]:
        for name, head in self.heads.items():
            head.text = self._texts_of(name).to(features.aligned.device)
        try:
            return super()._raw(features)
        finally:
            for head in self.heads.values():
                head.text = None  # and with it the graph of a text tower that trains

    @staticmethod
    def checked_inference(inference: dict) -> dict:
        own = {key: inference[key] for key in ("size", "overview", "classes") if key in inference}
        rest = checked_inference({key: value for key, value in inference.items() if key not in own})
        size = own.get("size")
        whole = isinstance(size, Sequence) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)
        if size is not None and not whole:
            raise UserError(f"inference: size={size!r}; give (height, width) in pixels, or leave it out.")
        if not isinstance(own.get("overview", False), bool) or (own.get("overview") and rest["mode"] == "whole"):
            raise UserError(f"inference: overview={own['overview']!r}; give True or False, beside mode='slide'.")
        if own.get("classes", "exact") not in ("exact", "reference"):
            raise UserError(f"inference: classes={own['classes']!r}; give 'exact' or 'reference'.")
        return {**rest, **own}

    def views(self, image: Tensor, original: Size) -> list[tuple[Tensor, Geometry]]:
        size = self.inference.get("size")
        seen = image if size is None else resize_pixels(image.float(), tuple(size), antialias=False)
        found = super().views(seen, original)
        if self.inference.get("overview"):
            resized, crop = tuple(seen.shape[-2:]), pair(self.inference["crop"])
            whole = resize_pixels(image.float(), crop, antialias=False)
            found.append((whole, Geometry(crop, (0, 0, *crop), crop, resized, original, (0, 0, *resized))))
        return found
