"""Segmentation without training: an encoder that was trained with texts, and the names of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

import torch
import torch.nn.functional as F
from mmengine.device import get_device
from torch import Tensor, nn

from siglip2_dense.contracts import Alignment, EncoderFacts, Features
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.models.probe import DenseProbe
from siglip2_dense.registry import MODELS, TASKS, build

HEAD = "segmentation"


@MODELS.register_module()
class TextSimilarity(nn.Module):
    """Each cell's cosine with texts, times ``scale``: a head without parameters.

    Attributes:
        text: (K, E) unit vectors of the queries, to be set before use.
    """

    taps = ()
    pooled = "none"

    def __init__(self, facts: EncoderFacts, channels: int, scale: float):
        super().__init__()
        if facts.aligned_width is None:
            raise UserError(f"{facts.name} has no text space (or its file no projection); name an encoder that has.")
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or scale <= 0:
            raise UserError(f"scale={scale!r}: give a number above 0; cosines are multiplied by it.")
        self.scale = scale
        self.register_buffer("text", torch.zeros(channels, facts.aligned_width), persistent=False)

    def forward(self, features: Features) -> Tensor:
        """-> (B, K, h, w) float32, at most ``scale``."""
        cells = F.normalize(features.aligned.float(), dim=1)
        return self.scale * torch.einsum("behw,ke->bkhw", cells, self.text)


@MODELS.register_module()
class ZeroShot(DenseProbe):
    """A probe whose one head compares maps in the text space with the texts of the classes.

    Args:
        encoder: config of an encoder that was trained with texts.
        classes, queries, background_threshold, synonyms: see ``ZeroShotSegmentation``.
        text: config of the text encoder. What it does not say is the encoder's own: the text tower that was trained
            with it, with weights from where its weights are.
        templates: sentences that the queries are put into, see ``TextEncoder.encode``.
        scale: of the cosines. It decides how sure a softmax over the queries is, and so what a ``background_threshold``
            means; without one it changes nothing.
        alignment: how the maps are made, ``dict(mode=..., residual=..., mlp=...)``, see ``encoders/aligned.py``.
        inference: as in DenseProbe.

    Attributes:
        texts: the text encoder's config, fingerprint and tokenization: in a record they belong to the encoder, so that
            those of several encoders can stand side by side.
    """

    def __init__(
        self,
        encoder: dict | nn.Module,
        classes: str | Sequence[str],
        queries: Mapping[str, Sequence[str]] | None = None,
        background_threshold: float | None = None,
        text: dict | None = None,
        templates: str | Sequence[str] = "80",
        scale: float = 50.0,
        alignment: dict | None = None,
        inference: dict | None = None,
        synonyms: str = "each",
    ):
        if isinstance(encoder, dict) and encoder.get("trainable", "none") != "none":
            raise UserError("ZeroShot: nothing trains here; leave model.encoder.trainable out.")
        self.templates = templates if isinstance(templates, str) else list(templates)
        self.synonyms = synonyms
        vocabulary = dict(classes=classes, queries=queries, background_threshold=background_threshold)
        parts = dict(head=dict(type="TextSimilarity", scale=scale), task=self._task(**vocabulary))
        super().__init__({HEAD: parts}, encoder, inference=inference)
        self.aligned = _alignment(alignment or {})
        self.encoder.blocks_for(self.aligned)  # what cannot be made is said before the texts, which take long
        self._settings = text_settings(encoder, text or {})
        self.set_vocabulary(**vocabulary)

    def _task(self, **vocabulary) -> dict:
        return dict(type="ZeroShotSegmentation", synonyms=self.synonyms, **vocabulary)

    def set_vocabulary(
        self,
        classes: str | Sequence[str],
        queries: Mapping[str, Sequence[str]] | None = None,
        background_threshold: float | None = None,
    ) -> None:
        """Predict these classes from now on. The text tower is loaded where a text is not remembered, and let go."""
        task = build(TASKS, self._task(classes=classes, queries=queries, background_threshold=background_threshold))
        if background_threshold is not None and task.channels == 1:
            raise UserError(
                f"background_threshold={background_threshold}: {task.queries[0]!r} alone is sure everywhere; ask for "
                "other names too, or for the background."
            )
        text_encoder = build(MODELS, self._settings).to(get_device())
        if text_encoder.width != self.facts.aligned_width:
            raise UserError(
                f"the texts of {self._settings.get('name')} have {text_encoder.width} dimensions, the maps of "
                f"{self.facts.name} {self.facts.aligned_width}; take the text encoder it was trained with."
            )
        text = task.texts(lambda names: text_encoder.encode(names, self.templates))
        self.heads[HEAD].text = text.to(self.heads[HEAD].text)  # its device and type
        self.tasks[HEAD] = task
        known = dict(fingerprint=text_encoder.fingerprint, tokenization=text_encoder.tokenization)
        self.texts = {**self._settings, **known}

    def raw(self, features: Features) -> dict[str, Tensor]:
        """{HEAD: scale times cosine (B, K, h, w)}."""
        return {name: head(features) for name, head in self.heads.items()}

    def describe(self) -> dict:
        """All that decides a prediction beside the encoders and the inference, as plain data for records."""
        return {
            "templates": self.templates,
            "alignment": asdict(self.aligned),
            "scale": self.heads[HEAD].scale,
            **self.tasks[HEAD].meaning,
        }


def _alignment(settings: dict) -> Alignment:
    known = [field.name for field in fields(Alignment)]
    for key in settings:
        if key not in known:
            raise UserError(f"alignment has no setting {key!r}: {nearest(key, known, ', '.join(known))}")
    return Alignment(**settings)


def text_settings(encoder: dict | nn.Module, text: dict) -> dict:
    """Config of a text encoder, by default of the one that belongs to the image encoder."""
    own = {}
    if not isinstance(text, Mapping):
        raise UserError(f"text={text!r}: give settings of the text encoder, dict(weights=..., tokenizer=...).")
    if isinstance(encoder, dict) and text.get("name", encoder["name"]) != encoder["name"]:
        raise UserError(
            f"text: the tower of {text['name']} was not trained with {encoder['name']}, so that their cosines mean "
            "nothing; leave the name out."
        )
    if isinstance(encoder, dict):
        own = dict(type="TextEncoder", name=encoder["name"], weights=encoder.get("weights", "hub"))
    elif "type" not in text:
        raise UserError("of an encoder given ready-made the texts are not known; give text=dict(type=...).")
    return {**own, **text}
