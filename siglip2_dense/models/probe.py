"""The pixel probe: one frozen encoder, any number of named heads, one pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from siglip2_dense.contracts import Alignment, Box, EncoderFacts, Features, Geometry, Sample, Size
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.models.windows import checked_inference, window_boxes
from siglip2_dense.registry import MODELS, TASKS, build

WINDOWS_PER_PASS = 16
PARTS = ("head", "task", "optim", "seed")
ENCODER, TEXT = "encoder", "text"  # the names of towers' tensors and optimizers beside those of the heads


class ToDevice(BaseDataPreprocessor):
    """Moves a batch to the model's device; pixels are the encoder's business."""

    def forward(self, data: dict, training: bool = False) -> dict:
        samples = [sample.to(self.device, non_blocking=True) for sample in data["data_samples"]]
        inputs = data["inputs"]
        if isinstance(inputs, Features):
            inputs = inputs.to(self.device, non_blocking=True)
        else:
            inputs = [image.to(self.device, non_blocking=True) for image in inputs]
        return {"inputs": inputs, "data_samples": samples}


@MODELS.register_module()
class DenseProbe(BaseModel):
    """Heads on one encoder, each with its task; they share the encoder's pass.

    Args:
        heads: ``{name: dict(head=..., task=..., optim=...)}``. A head is built after the encoder and gets its facts, so
            the encoder's name is all that changes in a swap. A head of mmsegmentation is written as itself,
            ``dict(type='mmseg.FCNHead', _scope_='mmseg', ...)``, with ``layers`` and ``norm`` as for ours. What a head
            begins with is a function of its settings and of ``seed=...`` beside them (by default, of where torch's own
            stream stands before the probe is built), whatever the encoder and the other heads are.
        encoder: config of the encoder; none when features come from elsewhere, then ``facts`` say whose they are.
        inference: ``dict(mode='whole')``, or ``dict(mode='slide', crop=512, stride=341)``: windows over the image,
            predictions averaged where they overlap. ``flip=True`` beside either averages them with those of the
            mirrored image.
        canvas: in training images are laid on this many pixels; by default the largest height and width of the batch.
        precision: "fp32", or "bf16": the heads run under autocast; what they give is float32 in any case.
        encoder_optim: where the encoder trains too, how: ``dict(lr_mult=0.1)``, the settings of the first head's
            optimizer with so much of its learning rate; ``layer_decay`` makes that smaller by a factor per block, and
            any setting of an optimizer, ``clip_norm`` included, stands for the head's.
        clip_norm: bounds the norm of the gradient of all that trains together, beside what each optimizer clips.
        example_clip: bounds that norm for each image by itself, before the gradients of a step's images are averaged;
            they then go through one by one. It stands alone: no other clip follows.
        text: for models of class names, a text encoder of which parts train along.
        text_optim: how that trains, as ``encoder_optim``, which it has where this is not given.

    Attributes:
        step: of the training under way, for losses that begin otherwise than they go on; the engine sets it.
        seeds: of the heads that were given one.
        draws: for each head the seed of what it draws in a step, dropout say, as if it were alone; the engine sets it.
        aligned: how the maps in the text space are made that a model wants beside its heads' taps, or none.
        places: of each image that was predicted last, by head, the grid (h, w) of the finest map that the head reads
            and the geometry of each window, those seen in a mirror turned back.
    """

    step: int | None = None
    draws: Mapping[str, int] | None = None
    aligned: Alignment | None = None
    places: Sequence[Mapping[str, list[tuple[Size, Geometry]]]] = ()
    checked_inference = staticmethod(checked_inference)

    def __init__(
        self,
        heads: dict[str, dict],
        encoder: dict | nn.Module | None = None,
        facts: EncoderFacts | None = None,
        inference: dict | None = None,
        canvas: Size | None = None,
        precision: str = "fp32",
        encoder_optim: dict | None = None,
        clip_norm: float | None = None,
        text: nn.Module | None = None,
        text_optim: dict | None = None,
        example_clip: float | None = None,
    ):
        super().__init__(data_preprocessor=ToDevice())
        if precision not in ("fp32", "bf16"):
            raise UserError(f"DenseProbe: precision={precision!r}; give 'fp32' or 'bf16'.")
        self.precision = precision
        if (encoder is None) == (facts is None):
            raise UserError("DenseProbe: give an encoder, or the facts of the one whose features it will get.")
        with torch.random.fork_rng(devices=[]):  # some towers are first drawn, then loaded
            self.encoder = build(MODELS, encoder) if isinstance(encoder, dict) else encoder
        self.facts: EncoderFacts = facts or self.encoder.facts
        self.canvas = canvas
        self.inference = self.checked_inference(inference or dict(mode="whole"))
        if not heads:
            raise UserError("DenseProbe: give at least one head, heads=dict(NAME=dict(head=..., task=..., optim=...)).")
        self.optim: dict[str, dict] = {}
        self.tasks: dict[str, Any] = {}
        self.seeds: dict[str, int] = {}
        self.heads = nn.ModuleDict()
        stream = torch.get_rng_state()
        for name, parts in heads.items():
            if name in (ENCODER, TEXT):
                raise UserError(f"heads.{name}: a head cannot have the {name}'s name; call it something else.")
            for key in parts:
                if key not in PARTS:
                    raise UserError(f"heads.{name} has no part {key!r}: {nearest(key, PARTS)}")
            for key in ("head", "task"):
                if key not in parts:
                    raise UserError(
                        f"heads.{name} has no {key!r}: give dict(head=dict(type=...), task=dict(type=...))."
                    )
            self.tasks[name] = build(TASKS, parts["task"])
            torch.set_rng_state(stream)
            if (seed := parts.get("seed")) is not None:
                if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
                    raise UserError(f"heads.{name}: seed={seed!r}; give a whole number from 0 on.")
                torch.default_generator.manual_seed(seed)
                self.seeds[name] = seed
            self.heads[name] = _build_head(parts["head"], self.facts, self.tasks[name].channels)
            self.optim[name] = dict(parts.get("optim", {}))
        self.taps = tuple(sorted({tap for head in self.heads.values() for tap in head.taps}))
        self.pooled = any(head.pooled != "none" for head in self.heads.values())
        self.aligned = self._common_alignment()
        if self.trains_encoder:
            self.encoder.keep_reached(self.taps, self.pooled, self.aligned)
        self.text = text
        self.encoder_optim, self.text_optim = encoder_optim, text_optim
        self.clip_norm, self.example_clip = clip_norm, example_clip
        self._check_optim()

    @property
    def trains_encoder(self) -> bool:
        return self.encoder is not None and self.encoder.trains

    @property
    def placement(self) -> Size | dict | None:
        """How images of a training batch come to one size: on this canvas, or as a model has it; none = they do not."""
        return self.canvas

    @property
    def towers(self) -> dict[str, nn.Module]:
        """What trains beside the heads, by the name that its tensors and its optimizer have beside theirs."""
        held = {ENCODER: self.encoder, TEXT: self.text}
        return {name: tower for name, tower in held.items() if tower is not None and tower.trains}

    @property
    def trainable(self) -> str | int | list[str]:
        """What trains of the encoder, as its config says it."""
        return "none" if self.encoder is None else self.encoder.trainable

    def trained_state(self) -> dict[str, Tensor]:
        """All that training changes: the heads by their names, and what trains of towers as "encoder.…"."""
        state = dict(self.heads.state_dict())
        for name, tower in self.towers.items():
            state |= {f"{name}.{key}": tensor for key, tensor in tower.trained.state_dict().items()}
        return state

    def load_trained(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``trained_state``, whole."""
        rest = dict(state)
        for name, tower in self.towers.items():
            own = [key for key in rest if key.startswith(f"{name}.")]
            tower.trained.load_state_dict({key.removeprefix(f"{name}."): rest.pop(key) for key in own})
        self.heads.load_state_dict(rest)

    def _common_alignment(self) -> Alignment | None:
        """How the heads that read maps in the text space want them made. Raises UserError where they differ."""
        wanted = {head.aligned for head in self.heads.values() if getattr(head, "aligned", None) is not None}
        if len(wanted) > 1:
            raise UserError(f"heads: the maps in the text space are made in one way for all heads, not in {wanted}.")
        return next(iter(wanted), None)

    def optim_of(self, tower: str) -> dict | None:
        """How a tower trains: its optimizer's settings where they are others than the first head's."""
        return self.text_optim if tower == TEXT and self.text_optim is not None else self.encoder_optim

    def _check_optim(self) -> None:
        for key in ("clip_norm", "example_clip"):
            clip = getattr(self, key)
            if clip is not None and (isinstance(clip, bool) or not isinstance(clip, (int, float)) or clip <= 0):
                raise UserError(f"model.{key}={clip!r}: give a number above 0.")
        for name, tower in self.towers.items():
            if self.optim_of(name) is None:
                raise UserError(
                    f"{name}: trainable={tower.trainable!r}: say how the {name} trains, "
                    "model.encoder_optim=dict(lr_mult=0.1)."
                )
        used = [self.optim_of(name) for name in self.towers]
        if self.encoder_optim is not None and not any(one is self.encoder_optim for one in used):
            raise UserError("encoder_optim is given, but nothing of the encoder trains; set model.encoder.trainable.")
        if self.text_optim is not None and TEXT not in self.towers:
            raise UserError("text_optim is given, but nothing of the text encoder trains; set model.text.trainable.")
        for where, settings in (("encoder_optim", self.encoder_optim), ("text_optim", self.text_optim)):
            for key, most in (("lr_mult", float("inf")), ("layer_decay", 1)) if settings else ():
                value = settings.get(key, 1.0)
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
                    raise UserError(f"{where}: {key}={value!r}; give a number above 0{', at most 1' * (most == 1)}.")
        if self.example_clip is not None:
            self._check_example_clip()

    def _check_example_clip(self) -> None:
        """Raise UserError for what would clip again, and for norms that one image at a time would change."""
        if len(self.heads) > 1:
            raise UserError(
                f"example_clip={self.example_clip}: one norm over {len(self.heads)} heads would tie each to the "
                "others; train one head, or give each its own optim=dict(clip_norm=...)."
            )
        clipping = {"model.clip_norm": self.clip_norm}
        clipping |= {f"heads.{name}.optim.clip_norm": one.get("clip_norm") for name, one in self.optim.items()}
        for where, settings in (("encoder_optim", self.encoder_optim), ("text_optim", self.text_optim)):
            clipping[f"model.{where}.clip_norm"] = (settings or {}).get("clip_norm")
        if given := [where for where, value in clipping.items() if value is not None]:
            raise UserError(f"example_clip={self.example_clip}: leave out {given[0]}, which would clip a second time.")
        for name, head in self.heads.items():
            if any(isinstance(module, nn.modules.batchnorm._NormBase) for module in head.modules()):
                raise UserError(
                    f"example_clip: heads.{name} has a batch norm, which one image at a time would change; give the "
                    "head batch_norm=False, or clip_norm instead."
                )

    def train_step(self, data: dict, optim_wrapper) -> dict[str, Tensor]:
        """As mmengine's; with ``example_clip`` the optimizers take the images one by one."""
        if self.example_clip is None:
            return super().train_step(data, optim_wrapper)
        return optim_wrapper.step_by_examples(self, data, self.example_clip)

    def features(self, images: Sequence[Tensor] | Features, canvas: Size | None = None) -> Features:
        """Features for the union of the heads' taps, in one pass."""
        if isinstance(images, Features):
            return images
        return self.encoder.features(images, self.taps, canvas, self.pooled, self.aligned)

    def forward(self, inputs, data_samples: list[Sample] | None = None, mode: str = "tensor"):
        """inputs: a list of images (3, H, W), or Features.

        mode "loss": {"HEAD.loss_…": tensor}; "predict": a list of {HEAD: map at original size}, one per image;
        "tensor": {HEAD: raw map (B, K, h, w)}.
        """
        if mode == "predict":
            return self.predict(inputs, data_samples)
        features = self.features(inputs, self.canvas)
        raw = self.raw(features)
        if mode == "tensor":
            return raw
        found = {}
        for names in _by_kin(self.tasks):
            task, given = self.tasks[names[0]], (features.geometry, data_samples, self.step)
            if len(names) > 1:
                terms = task.together([raw[name] for name in names], *given)
            else:
                terms = [task.loss(raw[names[0]], *given)]
            found.update(zip(names, terms, strict=True))
        return {f"{name}.{key}": value for name in self.tasks for key, value in found[name].items()}

    def raw(self, features: Features) -> dict[str, Tensor]:
        """{HEAD: raw map (B, K, h, w)}."""
        device = next(iter(features.maps.values())).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            return self._raw(features)

    def _raw(self, features: Features) -> dict[str, Tensor]:
        found = {}
        for names in _by_kin(self.heads):
            if self.draws is not None and self.training:
                seed_devices(self.draws[names[0]])  # heads of one kin draw nothing
            heads = [self.heads[name] for name in names]
            raw = heads[0].together(heads, features) if len(heads) > 1 else [heads[0](features)]
            found.update(zip(names, raw, strict=True))
        return {name: found[name] for name in self.heads}

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], samples: Sequence[Sample] | None = None) -> list[dict[str, Tensor]]:
        """A prediction per head for each image, at the size the image was read at.

        In place of an image may stand the Features of its windows, as ``predict_stored`` takes them.
        """
        if isinstance(images, Features):
            raise UserError("DenseProbe predicts from images; from Features it gives raw maps, mode='tensor'.")
        if images and isinstance(images[0], Features):
            return self._predictions([self._stored_windows(features) for features in images])
        return self._predictions(self.read(images, samples))

    @torch.no_grad()
    def read(
        self, images: Sequence[Tensor], samples: Sequence[Sample] | None = None
    ) -> list[dict[str, list[tuple[Tensor, Geometry, Size]]]]:
        """What predictions of images are made of: per head the raw map, the geometry and the grid of each window."""
        found = [{name: [] for name in self.heads} for _ in images]
        for numbers, mirrored, features in self.window_features(images, samples):
            for number, maps in zip(numbers, self._read(features, mirrored), strict=True):
                for name, window in maps.items():
                    found[number][name].append(window)
        return found

    @torch.no_grad()
    def predict_stored(self, features: Features) -> dict[str, Tensor]:
        """A prediction per head for one image, at the size it was read at, from the features of its windows.

        Their geometry says where each lies; behind them stand those of their mirror images where the inference has
        ``flip``.
        """
        return self._predictions([self._stored_windows(features)])[0]

    def _predictions(self, found: Sequence[Mapping[str, list[tuple[Tensor, Geometry, Size]]]]) -> list[dict]:
        """Of each image by head, from the raw map, the geometry and the grid of each of its windows."""
        self.places = [
            {name: [(grid, place) for _, place, grid in windows] for name, windows in image.items()} for image in found
        ]
        return [
            {name: self.tasks[name].predict([window[:2] for window in windows]) for name, windows in image.items()}
            for image in found
        ]

    def _stored_windows(self, features: Features) -> dict[str, list[tuple[Tensor, Geometry, Size]]]:
        count = len(features) // (2 if self.inference.get("flip") else 1)
        found = {name: [] for name in self.heads}
        for first, last, mirrored in ((0, count, False), (count, len(features), True)):
            for start in range(first, last, WINDOWS_PER_PASS):
                for maps in self._read(features[start : min(start + WINDOWS_PER_PASS, last)], mirrored):
                    for name, window in maps.items():
                        found[name].append(window)
        return found

    def window_features(
        self, images: Sequence[Tensor], samples: Sequence[Sample] | None = None
    ) -> Iterator[tuple[list[int], bool, Features]]:
        """The features of all windows of some images, pass after pass: the number of the image that each row is of,
        whether the rows are seen in a mirror, and the features, whose geometry says where each lies.

        Windows of one size, of whatever image, go through the encoder together, then their mirror images where the
        inference has ``flip``.
        """
        by_size = defaultdict(list)
        for number, image in enumerate(images):
            original = samples[number].original_size if samples else tuple(image.shape[-2:])
            for pixels, place in self.views(image, original):
                by_size[self.alike(tuple(pixels.shape[-2:]))].append((number, pixels, place))
        for group in by_size.values():
            for start in range(0, len(group), WINDOWS_PER_PASS):
                numbers, cuts, places = zip(*group[start : start + WINDOWS_PER_PASS], strict=True)
                for mirrored in (False, True) if self.inference.get("flip") else (False,):
                    features = self.features([cut.flip(-1) for cut in cuts] if mirrored else cuts)
                    geometry = tuple(
                        replace(seen, resized=place.resized, original=place.original, window=place.window)
                        for seen, place in zip(features.geometry, places, strict=True)
                    )
                    yield list(numbers), mirrored, replace(features, geometry=geometry)

    def _read(self, features: Features, mirrored: bool) -> list[dict[str, tuple[Tensor, Geometry, Size]]]:
        """{HEAD: (raw map, geometry, grid)} of each window, of those seen in a mirror turned back."""
        raw = self.raw(features)
        grids = {name: _finest(head, features) for name, head in self.heads.items()}
        found = []
        for i, seen in enumerate(features.geometry):
            size, maps = seen.window[2:], {name: values[i] for name, values in raw.items()}
            if seen.scaled:  # windows of one size have the same cells and fill the grid
                seen = replace(seen, padded=size, box=(0, 0, *size), scaled=False)
            top, left, height, width = seen.box
            if mirrored:  # an odd padding is not the same on both sides
                left = seen.padded[1] - left - width
                maps = {name: turned_back(values, self.tasks[name].mirrored) for name, values in maps.items()}
            seen = replace(seen, box=(top, left, height, width))
            found.append({name: (values, seen, grids[name]) for name, values in maps.items()})
        return found

    def views(self, image: Tensor, original: Size) -> list[tuple[Tensor, Geometry]]:
        """What a prediction for an image (3, H, W), read at the size ``original``, is made of: pixels, each with the
        place of its window.
        """
        size = tuple(image.shape[-2:])
        whole = Geometry(size, (0, 0, *size), size, size, original)
        return [(_cut(image, window), replace(whole, window=window)) for window in self.windows(size)]

    def encoded(self, size: Size) -> Size:
        """The size at which the encoder gets images or views of this size."""
        return size

    def alike(self, size: Size) -> Size:
        """What views of this size must have in common with others to share a pass."""
        return size

    def windows(self, size: Size) -> list[Box]:
        """The windows of an image of this size, as the inference wants them."""
        if self.inference["mode"] == "whole":
            return [(0, 0, *size)]
        return window_boxes(size, self.inference["crop"], self.inference["stride"])


def seed_devices(seed: int) -> None:
    """``torch.manual_seed`` for the devices in use; it would format and keep a traceback for each that is not."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def _by_kin(parts: Mapping[str, object]) -> Iterable[list[str]]:
    """The names of heads, or of tasks, that are computed together: those that say they are of one kin."""
    kin: dict[object, list[str]] = defaultdict(list)
    for name, part in parts.items():
        kin[getattr(part, "kin", name)].append(name)
    return kin.values()


def _finest(head: nn.Module, features: Features) -> Size:
    """The grid of the finest map that a head reads."""
    maps = [features.maps[tap] for tap in head.taps] or [features.aligned]
    return tuple(max((values.shape[-2:] for values in maps), key=lambda size: size[0] * size[1]))


def _cut(image: Tensor, window: Box) -> Tensor:
    top, left, height, width = window
    return image[:, top : top + height, left : left + width]


def turned_back(raw: Tensor, mirrored: Sequence[int]) -> Tensor:
    """The raw map (K, h, w) of an image seen in a mirror, as one of the image itself.

    mirrored: the channels that change their sign with it.
    """
    sign = raw.new_ones(len(raw), 1, 1)
    sign[list(mirrored)] = -1
    return raw.flip(-1) * sign


def _build_head(config: dict, facts: EncoderFacts, channels: int) -> nn.Module:
    if config.get("type", "").startswith("mmseg."):
        config = dict(config)
        taken = {key: config.pop(key) for key in ("layers", "norm") if key in config}
        config = dict(type="MMSegHead", head=config, **taken)
    return build(MODELS, config, facts=facts, channels=channels)
