"""The frozen encoder: RGB images in, ``Features`` out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from siglip2_dense.contracts import EncoderFacts, Features, Geometry, Size, Tap
from siglip2_dense.encoders.catalogue import find
from siglip2_dense.encoders.weights import build_tower
from siglip2_dense.errors import UserError
from siglip2_dense.registry import MODELS
from siglip2_dense.resample import resize_positions

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CACHED_GRIDS = 32  # position tables kept at once; a table of the largest encoder has 10 MB at 1024 px


@MODELS.register_module()
class FrozenEncoder(nn.Module):
    """Any timm model as a frozen extractor of feature maps.

    It owns all that differs between encoders (pixel statistics, padding, position tables, choice of blocks), so that
    the name is the only thing to change. It is never in train mode, has no gradient, and its tower is held outside the
    module tree: optimizers, DDP, checkpoints and mmengine's ``init_weights`` cannot see it.

    Args:
        name: short name of the catalogue, or a timm name.
        weights: "hub", "random" or "random:SEED", or a file or folder.
        layers, norm, pooled: what ``forward`` gives; heads declare their own taps. ``layers`` is "last", "last4",
            "even4" or block numbers; ``pooled`` is "none" or "concat".
        precision: "fp32", or "bf16" / "fp16" under autocast. Features are float32 in any case.
        compile: run the tower through ``torch.compile``.
        model_args: further arguments of the timm model, such as ``dict(depth=6)``.
    """

    def __init__(
        self,
        name: str,
        weights: str = "hub",
        layers: str | Sequence[int] = "last",
        norm: bool = True,
        pooled: str = "none",
        precision: str = "fp32",
        compile: bool = False,
        model_args: dict | None = None,
    ):
        super().__init__()
        if precision not in PRECISIONS:
            raise UserError(f"precision={precision!r}: give one of {', '.join(PRECISIONS)}.")
        if pooled not in ("none", "concat"):
            raise UserError(f"pooled={pooled!r}: an encoder by itself gives 'none' or 'concat'.")
        entry = find(name)
        tower, fingerprint = build_tower(entry, str(weights), model_args)
        self._is_vit = hasattr(tower, "blocks") and hasattr(tower, "num_prefix_tokens")
        # in a tuple: torch would register modules that are attributes
        self._held = (tower, _final_norm(tower) if self._is_vit else None)
        self._tables: OrderedDict[Size, nn.Parameter] = OrderedDict()
        self._intermediates = tower.forward_intermediates
        if compile:
            self._intermediates = torch.compile(tower.forward_intermediates)
        self.precision = precision
        self.pooled = pooled
        self.facts = _facts(entry.name, fingerprint, tower, self._is_vit, self._final_norm)
        self.taps = self.facts.taps(layers, norm)
        for key in ("mean", "std"):
            values = torch.tensor(getattr(self.facts, key)).view(3, 1, 1) * 255
            self.register_buffer(key, values, persistent=False)

    @property
    def tower(self) -> nn.Module:
        """The timm model."""
        return self._held[0]

    @property
    def _final_norm(self) -> nn.Module | None:
        return self._held[1]

    @property
    def width(self) -> int:
        return self.facts.widths[-1]

    @property
    def patch_size(self) -> int:
        return self.facts.strides[-1]

    @property
    def num_blocks(self) -> int:
        return self.facts.num_blocks

    @property
    def fingerprint(self) -> str:
        return self.facts.fingerprint

    @property
    def out_channels(self) -> list[int]:
        """Channels of each map of ``forward``."""
        extra = self.facts.pooled_width if self.pooled == "concat" else 0
        return [self.facts.widths[tap.block] + extra for tap in self.taps]

    def train(self, mode: bool = True):
        """Stay in eval mode: a frozen encoder has no dropout and no moving statistics."""
        return super().train(False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.tower._apply(fn, recurse)
        self._tables.clear()  # they follow the stored table's device and type
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) RGB 0-255, float or uint8 -> one map (B, C, h, w) per tap, as mm frameworks expect."""
        features = self.features(images, pooled=self.pooled == "concat")
        maps = [features.maps[tap] for tap in self.taps]
        if self.pooled == "concat":
            vector = features.pooled[:, :, None, None]
            maps = [torch.cat([x, vector.expand(-1, -1, *x.shape[-2:])], dim=1) for x in maps]
        return tuple(maps)

    @torch.no_grad()
    def features(
        self,
        images: Tensor | Sequence[Tensor],
        taps: Sequence[Tap] | None = None,
        canvas: Size | None = None,
        pooled: bool = False,
    ) -> Features:
        """Features of a batch, in one pass for all ``taps`` (by default those of the constructor).

        images: (B, 3, H, W), or a list of (3, H, W) of any sizes, RGB 0-255, float or uint8.
        canvas: each image is centred on this many pixels, and that on the smallest multiple of the patch; by default
            the largest height and width of the batch. Padding is the mean colour.
        pooled: also give the global vector.
        """
        taps = self.taps if taps is None else tuple(sorted(set(taps)))
        pixels, geometry = self._pixels(images, canvas)
        dtype = PRECISIONS[self.precision]
        with torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype is not None):
            maps, prefix, vector = self._run(pixels, taps, pooled)
        return Features(maps=maps, geometry=geometry, prefix=prefix, pooled=vector)

    def _pixels(self, images, canvas) -> tuple[Tensor, tuple[Geometry, ...]]:
        """Normalised and padded pixels (B, 3, H', W'), and where each image lies in them."""
        sizes = [tuple(image.shape[-2:]) for image in images]
        largest = tuple(max(size[axis] for size in sizes) for axis in (0, 1))
        canvas = largest if canvas is None else tuple(canvas)
        if largest[0] > canvas[0] or largest[1] > canvas[1]:
            raise UserError(
                f"an image of {largest[0]}x{largest[1]} pixels does not fit on the canvas {canvas}; crop the images "
                "in the transforms, or make it larger (model.canvas)."
            )
        padded = tuple(-(-side // self.facts.multiple) * self.facts.multiple for side in canvas)
        boxes = [((padded[0] - h) // 2, (padded[1] - w) // 2, h, w) for h, w in sizes]
        geometry = tuple(
            Geometry(padded=padded, box=box, canvas=canvas, resized=size, original=size)
            for box, size in zip(boxes, sizes, strict=True)
        )
        if len(set(sizes)) == 1:
            batch = images if isinstance(images, Tensor) else torch.stack(list(images))
            pixels = batch.to(self.mean.dtype).sub(self.mean).div_(self.std)
            if padded != sizes[0]:
                top, left, h, w = boxes[0]
                pixels = nn.functional.pad(pixels, (left, padded[1] - w - left, top, padded[0] - h - top))
            return pixels, geometry
        pixels = self.mean.new_zeros(len(sizes), 3, *padded)
        for place, image, (top, left, h, w) in zip(pixels, images, boxes, strict=True):
            place[:, top : top + h, left : left + w] = image.to(self.mean.dtype).sub(self.mean).div_(self.std)
        return pixels, geometry

    def _run(self, pixels: Tensor, taps: Sequence[Tap], pooled: bool):
        """Maps, prefix tokens (or none) and global vector (or none), all float32."""
        blocks = sorted({tap.block for tap in taps})
        grid = tuple(side // self.facts.strides[-1] for side in pixels.shape[-2:])
        count = len(self.facts.prefix)
        arguments = dict(indices=blocks, intermediates_only=not pooled, stop_early=not pooled)
        if self._is_vit:
            arguments |= dict(norm=False, output_fmt="NLC", **(dict(return_prefix_tokens=True) if count else {}))
        try:
            with self._positions_at(grid):
                result = self._intermediates(pixels, **arguments)
        except AssertionError as error:  # how timm refuses a size that a model without free sizes does not have
            height, width = pixels.shape[-2:]
            raise UserError(f"{self.facts.name} cannot take images of {height}x{width} pixels: {error}") from error
        final, outputs = result if pooled else (None, result)
        vector = self._pool(final) if pooled else None
        outputs = dict(zip(blocks, outputs, strict=True))
        if not self._is_vit:
            return {tap: outputs[tap.block].float() for tap in taps}, None, vector
        maps, prefix = {}, {}
        for tap in taps:
            tokens, first = outputs[tap.block] if count else (outputs[tap.block], None)
            normalise = self._final_norm if tap.norm else nn.Identity()
            tokens = normalise(tokens).float()
            # (B, h w, C) seen as (B, C, h, w): channels last in memory, which convolutions like, and no copy
            maps[tap] = tokens.reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2)
            if count:
                prefix[tap] = normalise(first).float()
        return maps, prefix or None, vector

    def _pool(self, final: Tensor) -> Tensor:
        """The encoder's own global vector (B, P) float32."""
        if self.facts.pooled == "class":
            tokens = final[:, 0]
            # timm has already applied its ``norm``; where that is the identity the real one stands behind the pooling
            return (tokens if self._final_norm is self.tower.norm else self._final_norm(tokens)).float()
        return self.tower.forward_head(final, pre_logits=True).float()

    @contextmanager
    def _positions_at(self, grid: Size) -> Iterator[None]:
        """Let the tower see its position table at this grid, resampled from the stored one, once per grid.

        timm would resample at every pass. An export must trace that: there a size may be symbolic and is no key.
        """
        tower = self.tower
        native = self.facts.native_grid
        if native is None or grid == native or torch.compiler.is_exporting():
            yield
            return
        stored = tower.pos_embed
        if grid not in self._tables:
            table = resize_positions(stored, native, grid, _table_prefix(tower))
            self._tables[grid] = nn.Parameter(table, requires_grad=False)
            if len(self._tables) > CACHED_GRIDS:
                self._tables.popitem(last=False)
        try:
            tower.pos_embed, tower.patch_embed.grid_size = self._tables[grid], grid
            yield
        finally:
            tower.pos_embed, tower.patch_embed.grid_size = stored, native


def _final_norm(tower: nn.Module) -> nn.Module | None:
    """The norm over tokens that ends the tower; it stands behind the pooling where timm's ``norm`` is the identity."""
    for name in ("norm", "fc_norm"):
        module = getattr(tower, name, None)
        if module is not None and not isinstance(module, nn.Identity):
            return module
    return None


def _table_prefix(tower: nn.Module) -> int:
    """Entries of the position table that belong to class and register tokens."""
    return 0 if getattr(tower, "no_embed_class", False) else tower.num_prefix_tokens


def _facts(name: str, fingerprint: str, tower: nn.Module, is_vit: bool, final_norm: nn.Module | None) -> EncoderFacts:
    """All that is read from the built model."""
    from timm.data import resolve_model_data_config

    statistics = resolve_model_data_config(tower)
    prefix, pooled, native, has_table = (), "mean", None, False
    if is_vit:
        classes = int(getattr(tower, "cls_token", None) is not None)
        prefix = ("class",) * classes + ("register",) * (tower.num_prefix_tokens - classes)
        has_attention_pool = getattr(tower, "attn_pool", None) is not None
        pooled = "map" if has_attention_pool else "class" if classes else "mean"
        has_table = getattr(tower, "pos_embed", None) is not None and getattr(tower, "dynamic_img_size", False)
        native = tuple(tower.patch_embed.grid_size) if has_table else None
    return EncoderFacts(
        name=name,
        fingerprint=fingerprint,
        widths=tuple(info["num_chs"] for info in tower.feature_info),
        strides=tuple(info["reduction"] for info in tower.feature_info),
        prefix=prefix,
        pooled=pooled,
        pooled_width=getattr(tower, "head_hidden_size", None) or tower.num_features,
        final_norm=final_norm is not None,
        mean=tuple(statistics["mean"]),
        std=tuple(statistics["std"]),
        native_grid=native,
        position_kernel="bicubic, antialias" if has_table else None,
        parameters=sum(p.numel() for p in tower.parameters()),
    )
