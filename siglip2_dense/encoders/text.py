"""The text encoder: class names in, unit vectors in the space of an image encoder's texts out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from siglip2_dense.contracts import Alignment
from siglip2_dense.encoders import text_cache
from siglip2_dense.encoders.catalogue import find
from siglip2_dense.encoders.drop_path import drop_paths
from siglip2_dense.encoders.passes import Pass, within
from siglip2_dense.encoders.prompts import NAME_CLEANING, fill, templates_of
from siglip2_dense.encoders.text_towers import Built, build, origin_of_tower, plan_of
from siglip2_dense.encoders.text_trainable import choose, depths
from siglip2_dense.encoders.tokenizers import TextTokenizer, load_tokenizer, origin_of_tokenizer
from siglip2_dense.encoders.trainable import Trainable, Trained, normalised
from siglip2_dense.errors import UserError
from siglip2_dense.registry import MODELS

BATCH = 256  # texts in a pass
CHECKPOINTED = 32  # texts in a pass that is done again going back
STORED_AT_ONCE = 4096  # texts in a file of the cache, so that a long run that is interrupted keeps what it did


@MODELS.register_module()
class TextEncoder(nn.Module):
    """The text tower that was trained together with an image encoder, frozen.

    ``encode`` remembers every text on disk, under the tower, its tokenizer and the exact text. What it knows already
    needs neither the tower nor its weights: both are loaded when the first new text comes. ``forward`` is the tower
    itself, ``embed`` the way of class names through it with their gradient; of a tower that was changed, or of which
    parts train, nothing is remembered.

    Like the image tower it is never in train mode but for its drop paths, has no gradient unless parameters of
    ``tower`` are given one, and is held outside the module tree. Where ``trainable`` says that parts of it train,
    those parameters, and only those, are in the tree, as ``trained``.

    Args:
        name: short name of an encoder that was trained with texts.
        weights: "hub", "random" or "random:SEED", or a file or folder, of the text tower or of the whole model, as
            open_clip, transformers or big_vision write it.
        tokenizer: "hub", or a ``tokenizer.json`` or its folder. CLIP's comes with open_clip.
        cache: remember embeddings under ``$XDG_CACHE_HOME/siglip2_dense/text``.
        trainable: "none", "all", or names of projections such as ``["q", "v"]``; see ``encoders/text_trainable.py``.
        drop_path: of a tower that trains, see ``encoders/drop_path.py``.
        checkpointing: in ``embed``, compute a few texts at a time again in the backward pass instead of keeping what
            the blocks did.
        model_args: other settings of the tower, in open_clip's names, such as ``dict(width=64, layers=2)``.
    """

    def __init__(
        self,
        name: str,
        weights: str = "hub",
        tokenizer: str = "hub",
        cache: bool = True,
        trainable: Trainable = "none",
        checkpointing: bool = False,
        drop_path: float = 0.0,
        model_args: dict | None = None,
    ):
        super().__init__()
        self.plan = plan_of(find(name), model_args)
        self.cache = cache
        self._sources = (str(weights), str(tokenizer))
        self._origins = (origin_of_tower(self.plan, str(weights)), origin_of_tokenizer(self.plan.rules, str(tokenizer)))
        self.register_buffer("_place", torch.empty(0), persistent=False)  # knows device and type before the tower is
        self.trainable, self.checkpointing = normalised(trainable), checkpointing
        chosen = {} if trainable == "none" else choose(self.tower, name, trainable)
        self.trained = Trained(chosen) if chosen else None
        if drop_path and not chosen:
            raise UserError(f"text: drop_path={drop_path}, but nothing of the text tower trains; leave it out.")
        self._paths = drop_paths(self.tower, drop_path, name) if drop_path else []
        self._around: tuple[Pass, ...] = ()

    @cached_property  # in __dict__: torch would register modules that are attributes
    def _built(self) -> Built:
        built = build(self.plan, self._sources[0])
        built.tower.to(self._place)
        self._version = _version(built.tower)
        if self.cache and self._origins[0]:
            text_cache.remember(self._origins[0], built.known())
        return built

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        loaded = load_tokenizer(self.plan.rules, self._sources[1])
        if self.cache:
            text_cache.remember(self._origins[1], loaded.known())
        return loaded

    def _known(self, part: str, origin: str | None) -> dict:
        """What is remembered of ``_built`` or ``_tokenizer``; it is loaded only where nothing is."""
        known = text_cache.recall(origin) if self.cache and origin and part not in vars(self) else None
        return known or getattr(self, part).known()

    @property
    def _changed(self) -> bool:
        """Whether the tower is no more what its fingerprint says: what it gives is then neither stored nor recalled."""
        return self.trains or ("_built" in vars(self) and _version(self.tower) != self._version)

    @property
    def trains(self) -> bool:
        return self.trained is not None

    @property
    def tower(self) -> nn.Module:
        """The text transformer, from ids (N, context) to vectors (N, D) of any length; loaded when first asked for."""
        return self._built.tower

    @property
    def width(self) -> int:
        """D, of an embedding."""
        return self.plan.width

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tower's weights."""
        return self._known("_built", self._origins[0])["fingerprint"]

    @property
    def scale(self) -> float | None:
        """What a cosine is multiplied by in logits; none where the weights' file does not say."""
        return self._known("_built", self._origins[0])["scale"]

    @property
    def bias(self) -> float | None:
        """What is added to logits; only SigLIP has one."""
        return self._known("_built", self._origins[0])["bias"]

    @property
    def tokenization(self) -> dict:
        """How names become ids, as plain data for records."""
        about = self.plan.rules.about(self._known("_tokenizer", self._origins[1])["fingerprint"])
        return {**about, "names": NAME_CLEANING}

    def train(self, mode: bool = True):
        """Stay in eval mode; only drop paths follow."""
        for path in self._paths:
            path.train(mode)
        return super().train(False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if "_built" in vars(self):
            changed = self._changed
            self.tower._apply(fn, recurse)
            self._version = -1 if changed else _version(self.tower)
        return self

    def too_long(
        self, class_names: Sequence[str], templates: str | Sequence[str] = "single", clean: bool | str = True
    ) -> list[str]:
        """The sentences that would be cut to fit the tower's context, which keeps the token that ends a text; the
        arguments are those of ``encode``.
        """
        texts = dict.fromkeys(fill(class_names, templates_of(templates), clean))
        most = self.plan.rules.context
        # a token has a byte at least, beside start, end and a first blank: short texts need no tokenizer
        long = [text for text in texts if len(text.encode()) + 3 > most]
        if not long:
            return []
        return [text for text, count in zip(long, self._tokenizer.counts(long), strict=True) if count > most]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> ids (N, context) int64, on the encoder's device."""
        return self._tokenizer(texts).to(self._place.device)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, context) int64 -> (N, D), of any length."""
        return within(self._around, self.tower, ids)

    def units(self, aligned: Alignment | None) -> list[nn.Module]:
        """As in FrozenEncoder; here the tower is one, for texts go through in parts, as many as a rank needs."""
        self._around = self._around or (Pass(self.tower),)
        return [*self._around]

    def _in_parts(self, ids: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            found = [checkpoint(self.tower, part, use_reentrant=False) for part in ids.split(CHECKPOINTED)]
        else:
            found = [self.tower(part) for part in ids.split(BATCH)]
        return torch.cat(found)

    def embed(
        self, class_names: Sequence[str], templates: str | Sequence[str] = "single", clean: bool | str = True
    ) -> Tensor:
        """Unit vectors (K, P, D) float32 of class names in each template, through the tower as it is now, with their
        gradient; the arguments are those of ``encode``.
        """
        texts = fill(class_names, templates_of(templates), clean)
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        ids = self.tokenize(list(distinct))
        vectors = F.normalize(within(self._around, self._in_parts, ids).float(), dim=-1)
        return vectors[[distinct[text] for text in texts]].unflatten(0, (len(class_names), -1))

    @torch.no_grad()
    def encode(
        self,
        class_names: Sequence[str],
        templates: str | Sequence[str] = "single",
        average: bool = True,
        clean: bool | str = True,
    ) -> Tensor:
        """Unit vectors (K, D) float32 of class names.

        templates: a set of ``prompts.SETS``, or sentences with ``{}`` where the name goes. Each sentence's vector is
        normalised, they are averaged per name, and that is normalised; with ``average=False`` (K, P, D) is one vector
        per sentence. clean: see ``prompts.fill``. Raises UserError for names or templates that are none.
        """
        templates = templates_of(templates)
        texts = fill(class_names, templates, clean)
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = self._embed(list(distinct)).to(self._place.device)
        vectors = vectors[[distinct[text] for text in texts]].unflatten(0, (len(class_names), len(templates)))
        return F.normalize(vectors.mean(dim=1), dim=-1) if average else vectors

    def rate_groups(self, lr: float, layer_decay: float) -> list[dict]:
        """What trains, in groups for an optimizer: ``lr`` after the last block, ``layer_decay`` times that a block."""
        parameters, groups = dict(self.trained.named_parameters()), {}
        blocks = self.plan.config.get("layers", 12)
        for name, depth in depths(parameters).items():
            groups.setdefault(blocks + 1 - depth, []).append(parameters[name])
        return [dict(params=groups[depth], lr=lr * layer_decay**depth) for depth in sorted(groups)]

    def _embed(self, texts: list[str]) -> Tensor:
        """Unit vectors (N, D) float32 of distinct texts, on the CPU; only those are computed that are not stored."""
        vectors = torch.empty(len(texts), self.width)
        stores = self.cache and self._place.dtype == torch.float32 and not self._changed
        missing = text_cache.read(self._folder(), texts, vectors) if stores else list(range(len(texts)))
        if missing and stores and not {"_built", "_tokenizer"} <= vars(self).keys():
            self._built, self._tokenizer  # noqa: B018  the hub may have others by now than those remembered
            missing = text_cache.read(self._folder(), texts, vectors)
        for first in range(0, len(missing), STORED_AT_ONCE):
            rows = missing[first : first + STORED_AT_ONCE]
            new = [texts[row] for row in rows]
            vectors[rows] = torch.cat([self._compute(new[i : i + BATCH]) for i in range(0, len(new), BATCH)])
            if stores:
                text_cache.write(self._folder(), new, vectors[rows])
        return vectors

    def _compute(self, texts: list[str]) -> Tensor:
        with torch.autocast(self._place.device.type, enabled=False):
            return F.normalize(self(self.tokenize(texts)).float(), dim=-1).cpu()

    def _folder(self):
        """Where the embeddings of this tower, with this tokenizer, are stored."""
        about = self.plan.rules.about(self._known("_tokenizer", self._origins[1])["fingerprint"])
        return text_cache.folder(dict(tower=self.fingerprint, architecture=self.plan.architecture, **about))


def _version(tower: nn.Module) -> int:
    """What grows when a parameter is changed in place."""
    return sum(parameter._version for parameter in tower.parameters())
