"""The frozen encoder: RGB images in, ``Features`` out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from siglip2_dense.contracts import Alignment, Features, Geometry, Size, Tap
from siglip2_dense.encoders import naflex
from siglip2_dense.encoders.aligned import aligned_map, blocks_of
from siglip2_dense.encoders.catalogue import find
from siglip2_dense.encoders.drop_path import drop_paths
from siglip2_dense.encoders.facts import facts_of, final_norm, is_naflex, is_vit, table_prefix
from siglip2_dense.encoders.passes import Pass, within
from siglip2_dense.encoders.pixels import normalised_and_padded, traced
from siglip2_dense.encoders.trainable import Trainable, Trained, choose, layers, normalised
from siglip2_dense.encoders.weights import build_tower
from siglip2_dense.errors import UserError
from siglip2_dense.registry import MODELS
from siglip2_dense.resample import resize_positions

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SEQUENCE_LENGTH = 256
CACHED_GRIDS = 32  # position tables kept at once; a table of the largest encoder has 10 MB at 1024 px


@MODELS.register_module()
class FrozenEncoder(nn.Module):
    """Any timm model as a frozen extractor of feature maps.

    It owns all that differs between encoders (pixel statistics, padding, position tables, choice of blocks), so that
    the name is the only thing to change. It is never in train mode, has no gradient, and its tower is held outside the
    module tree: optimizers, DDP, checkpoints and mmengine's ``init_weights`` cannot see it. Where ``trainable`` says
    that parts of it train, those parameters, and only those, are in the tree, as ``trained``.

    Args:
        name: short name of the catalogue, or a timm name.
        weights: "hub", "random" or "random:SEED", or a file or folder.
        layers, norm, pooled: what ``forward`` gives; heads declare their own taps. ``layers`` is "last", "last4",
            "even4" or block numbers; ``pooled`` is "none" or "concat".
        precision: "fp32", or "bf16" / "fp16" under autocast. Features are float32 in any case.
        compile: run the tower through ``torch.compile``, which takes long for each size of image: see
            docs/performance.md. It needs a C++ compiler.
        trainable: "none", "all", a number of last blocks, or names of projections such as ``["q", "v"]``; see
            ``encoders/trainable.py``. Whatever trains, the encoder stays in eval mode, but for its drop paths.
        drop_path: of a tower that trains, see ``encoders/drop_path.py``.
        checkpointing: compute blocks again in the backward pass instead of keeping what they did.
        sequence_length: of NaFlex encoders, the most patches of an image; 256 by default.
        position_kernel: "bicubic" resamples the position table without antialiasing, which is another kernel where the
            grid grows too: CAT-Seg's published weights expect it. By default as timm does.
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
        trainable: Trainable = "none",
        checkpointing: bool = False,
        drop_path: float = 0.0,
        sequence_length: int | None = None,
        position_kernel: str | None = None,
        model_args: dict | None = None,
    ):
        super().__init__()
        if precision not in PRECISIONS:
            raise UserError(f"precision={precision!r}: give one of {', '.join(PRECISIONS)}.")
        if pooled not in ("none", "concat"):
            raise UserError(f"pooled={pooled!r}: an encoder by itself gives 'none' or 'concat'.")
        entry = find(name)
        built = build_tower(entry, str(weights), model_args)
        tower = built.tower
        self._is_vit, self._is_naflex = is_vit(tower), is_naflex(tower)
        if sequence_length is None and self._is_naflex:
            sequence_length = SEQUENCE_LENGTH
        elif sequence_length is not None and not self._is_naflex:
            raise UserError(f"sequence_length={sequence_length}: {name} is no NaFlex encoder; leave it out.")
        elif sequence_length is not None and (not isinstance(sequence_length, int) or sequence_length < 1):
            raise UserError(f"sequence_length={sequence_length!r}: give the most patches of an image, such as 256.")
        if compile and self._is_naflex:
            raise UserError(
                f"compile: {name} sees other shapes at every batch, and would compile for each; leave it out."
            )
        # in tuples: torch would register modules that are attributes
        self._held = (tower, final_norm(tower), built.projection)
        self._around: tuple[Pass, ...] = ()
        self._tables: OrderedDict[Size, nn.Parameter] = OrderedDict()
        self.precision = precision
        self.pooled = pooled
        self.facts = facts_of(entry, built, sequence_length)
        if position_kernel is not None:
            if position_kernel != "bicubic" or self.facts.native_grid is None or self._is_naflex:
                raise UserError(
                    f"position_kernel={position_kernel!r}: give 'bicubic', of an encoder whose position table is "
                    f"resampled (that of {name}: {self.facts.position_kernel}), or leave it out."
                )
            self.facts = replace(self.facts, position_kernel=position_kernel)
        self.taps = self.facts.taps(layers, norm)
        for key in ("mean", "std"):
            values = torch.tensor(getattr(self.facts, key)).view(3, 1, 1) * 255
            self.register_buffer(key, values, persistent=False)
        chosen = choose(tower, self.facts, trainable)
        if chosen and precision == "fp16":
            raise UserError("trainable: gradients of fp16 would need scaling; give precision='bf16' or 'fp32'.")
        if checkpointing and chosen:
            tower.set_grad_checkpointing(True)
        if drop_path and not chosen:
            raise UserError(f"drop_path={drop_path}, but nothing of {name} trains; leave it out.")
        self._paths = drop_paths(tower, drop_path, name) if drop_path else []
        self.trainable = normalised(trainable)
        self.trained = Trained(chosen) if chosen else None
        self._set_layout()
        self._intermediates = tower.forward_intermediates
        self.compiled = compile
        if compile:
            self._intermediates = torch.compile(tower.forward_intermediates)

    @property
    def tower(self) -> nn.Module:
        """The timm model."""
        return self._held[0]

    @property
    def _final_norm(self) -> nn.Module | None:
        return self._held[1]

    @property
    def projection(self) -> nn.Linear | None:
        """From the pooled vector to the text space, where the two differ."""
        return self._held[2]

    @property
    def trains(self) -> bool:
        return self.trained is not None

    @property
    def fixed_size(self) -> Size | None:
        """Of images, where timm's model takes no other; none where any size will do."""
        embedding = getattr(self.tower, "patch_embed", None)
        return tuple(embedding.img_size) if getattr(embedding, "strict_img_size", False) else None

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
        """Stay in eval mode: a frozen encoder has no dropout and no moving statistics. Only drop paths follow."""
        for path in self._paths:
            path.train(mode)
        return super().train(False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)  # what trains keeps its identity: it moves within the parameter
        self.tower._apply(fn, recurse)
        if self.projection is not None:
            self.projection._apply(fn, recurse)
        self._tables.clear()  # they follow the stored table's device and type
        self._set_layout()
        return self

    def _set_layout(self) -> None:
        if not self._is_vit:
            self.tower.to(memory_format=self._layout)

    @property
    def _layout(self) -> torch.memory_format:
        """How pixels, weights and so maps of a convolutional network lie in memory: on a CPU channels last, as the maps
        of transformers do, which is faster for all that were measured. Other devices were not.
        """
        last = not self._is_vit and self.mean.device.type == "cpu"
        return torch.channels_last if last else torch.contiguous_format

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) RGB 0-255, float or uint8 -> one map (B, C, h, w) per tap, as mm frameworks expect."""
        if self._is_naflex:
            raise UserError(
                f"{self.facts.name} gives maps of the images' own shapes, which a plain map cannot say: use "
                "features(), as DenseProbe does, or a fixed-resolution encoder."
            )
        features = self.features(images, pooled=self.pooled == "concat")
        maps = [features.maps[tap] for tap in self.taps]
        if self.pooled == "concat":
            vector = features.pooled[:, :, None, None]
            maps = [torch.cat([x, vector.expand(-1, -1, *x.shape[-2:])], dim=1) for x in maps]
        return tuple(maps)

    def features(
        self,
        images: Tensor | Sequence[Tensor],
        taps: Sequence[Tap] | None = None,
        canvas: Size | None = None,
        pooled: bool = False,
        aligned: Alignment | None = None,
    ) -> Features:
        """Features of a batch, in one pass for all ``taps`` (by default those of the constructor).

        images: (B, 3, H, W), or a list of (3, H, W) of any sizes, RGB 0-255, float or uint8.
        canvas: each image is centred on this many pixels, and that on the smallest multiple of the patch; by default
            the largest height and width of the batch. Padding is the mean colour. A NaFlex encoder scales each image
            to its own grid instead; the canvas is then the largest grid, and ``valid`` says which cells are real.
        pooled: also give the global vector.
        aligned: also give a map in the text space, made this way.
        """
        taps = self.taps if taps is None else tuple(sorted(set(taps)))
        before = () if aligned is None else self.blocks_for(aligned)
        pixels = packed = None
        if self._is_naflex:
            packed = naflex.pack(images, self.patch_size, self.facts.sequence_length, self.mean, self.std)
            geometry, grid = packed.geometry, packed.grid
        else:
            pixels, geometry = self._pixels(images, canvas)
            grid = tuple(side // self.patch_size for side in pixels.shape[-2:])
        dtype = PRECISIONS[self.precision]
        with (
            torch.set_grad_enabled(self.trains and torch.is_grad_enabled()),
            torch.autocast(self.mean.device.type, dtype=dtype, enabled=dtype is not None),
        ):
            blocks = sorted({*(tap.block for tap in taps), *before})
            maps, prefix, vector, in_text_space = within(
                self._around, self._pass, pixels, packed, grid, blocks, taps, pooled, aligned
            )
        return Features(
            maps=maps,
            geometry=geometry,
            prefix=prefix,
            pooled=vector,
            aligned=in_text_space,
            valid=None if packed is None else naflex.valid_cells(packed),
        )

    def _pass(self, pixels: Tensor | None, packed: naflex.Packed | None, grid: Size, blocks, taps, pooled, aligned):
        """All that is done with the tower's parameters: maps and prefix tokens by tap, global vector, map of texts."""
        if packed is not None:
            tokens, final = naflex.run(self.tower, packed, blocks, pooled)
        else:
            tokens, final = self._run(pixels, grid, blocks, pooled)
        tokens = dict(zip(blocks, tokens, strict=True))
        maps, prefix = self._maps({tap: tokens[tap.block] for tap in taps}, grid, packed)
        vector = self._pool(final, packed) if pooled else None
        if not aligned:
            return maps, prefix, vector, None
        whole = {block: self._whole(tokens[block]) for block in self.blocks_for(aligned)}
        real = None
        if packed is not None:
            real = nn.functional.pad(packed.valid, (len(self.facts.prefix), 0), value=True)
        mapped = aligned_map(self.tower, self.projection, whole, aligned, real)
        return maps, prefix, vector, self._on_grid(mapped.float(), grid, packed)

    def blocks_for(self, aligned: Alignment) -> tuple[int, ...]:
        """The blocks that maps in the text space are made of. Raises UserError where they cannot be made this way."""
        if self.facts.aligned_width is None:
            raise UserError(
                f"{self.facts.name} has no maps in a text space: it was trained without texts, or is a convolutional "
                "network, or its file has no projection; name another encoder."
            )
        return blocks_of(self.tower, aligned)

    def dense_embed(self, images: Tensor | Sequence[Tensor], mode: str = "value", **how) -> Tensor:
        """Maps (B, E, h, w) float32 in the text space, of any length; ``how`` as in ``Alignment``.

        Raises UserError for an encoder without texts.
        """
        return self.features(images, taps=(), aligned=Alignment(mode, **how)).aligned

    def keep_reached(self, taps: Sequence[Tap], pooled: bool, aligned: Alignment | None = None) -> None:
        """Of what trains keep only what these outputs depend on: DDP waits for the gradient of every parameter.

        DenseProbe calls it; in another framework's model do so before DDP.
        """
        if not self.trains:
            return
        blank = self.mean.new_zeros(1, 3, *(self.fixed_size or (self.facts.multiple,) * 2))
        with torch.enable_grad():
            seen = self.features(blank, taps, pooled=pooled, aligned=aligned)
        outputs = [*seen.maps.values(), seen.pooled if pooled else None, seen.aligned]
        total = sum(output.sum() for output in outputs if output is not None)
        if not total.requires_grad:
            raise UserError("trainable: nothing that would train lies before what the heads read; choose other blocks.")
        parameters = dict(self.trained.named_parameters())
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            if gradient is None:
                parameter.requires_grad_(False)
                del self.trained._parameters[name]

    def rate_groups(self, lr: float, layer_decay: float) -> list[dict]:
        """What trains, in groups for an optimizer: ``lr`` after the last block, ``layer_decay`` times that a block."""
        at, groups = layers(self.tower), {}
        for name, parameter in self.trained.named_parameters():
            groups.setdefault(self.num_blocks + 1 - at[name], []).append(parameter)
        return [dict(params=groups[depth], lr=lr * layer_decay**depth) for depth in sorted(groups)]

    def units(self, aligned: Alignment | None) -> list[nn.Module]:
        """What FSDP2 is to put into shards one by one, the last around all others; the tower then runs within that.

        aligned: how maps in the text space are made, which takes the last block apart. Raises UserError for a tower
        without blocks, and a compiled one.
        """
        if not self._is_vit or self.compiled:
            kind = "it is compiled" if self.compiled else "it is no transformer"
            raise UserError(f"train_cfg.sharded: {self.facts.name} is not divided, since {kind}; leave sharded out.")
        self._around = self._around or (Pass(self.tower, self.projection),)
        return [*self.tower.blocks[: None if aligned is None else -1], *self._around]

    def _pixels(self, images, canvas) -> tuple[Tensor, tuple[Geometry, ...]]:
        """Normalised and padded pixels (B, 3, H', W'), and where each image lies in them."""
        statistics = (self.facts.multiple, self.mean, self.std)
        exporting = torch.compiler.is_exporting()
        found, geometry = (
            traced(images, *statistics) if exporting else normalised_and_padded(images, canvas, *statistics)
        )
        return found.to(memory_format=self._layout), geometry

    def _run(self, pixels: Tensor, grid: Size, blocks: Sequence[int], final: bool):
        """The output of each block, without the final norm, and what the tower itself ends with, if asked for.

        Of transformers (B, N, C), or that and the prefix (B, n, C) where there is one; of convolutional networks
        (B, C, h, w).
        """
        count = len(self.facts.prefix)
        arguments = dict(indices=list(blocks), intermediates_only=not final, stop_early=not final)
        if self._is_vit:
            arguments |= dict(norm=False, output_fmt="NLC", **(dict(return_prefix_tokens=True) if count else {}))
        try:
            with self._positions_at(grid):
                result = self._intermediates(pixels, **arguments)
        except AssertionError as error:  # how timm refuses a size that a model without free sizes does not have
            height, width = pixels.shape[-2:]
            raise UserError(f"{self.facts.name} cannot take images of {height}x{width} pixels: {error}") from error
        last, outputs = result if final else (None, result)
        return outputs, last

    def _maps(self, outputs: dict[Tap, Tensor], grid: Size, packed: naflex.Packed | None):
        """Maps and prefix tokens (or none) of the taps, float32."""
        if not self._is_vit:
            return {tap: output.float() for tap, output in outputs.items()}, None
        maps, prefix, count = {}, {}, len(self.facts.prefix)
        for tap, tokens in outputs.items():
            first, tokens = (tokens[1], tokens[0]) if count else (None, tokens)
            normalise = self._final_norm if tap.norm else nn.Identity()
            maps[tap] = self._on_grid(normalise(tokens).float(), grid, packed)
            if count:
                prefix[tap] = normalise(first).float()
        return maps, prefix or None

    def _whole(self, output) -> Tensor:
        """(B, prefix + N, C), as the block gave it."""
        return torch.cat([output[1], output[0]], dim=1) if self.facts.prefix else output

    @staticmethod
    def _on_grid(tokens: Tensor, grid: Size, packed: naflex.Packed | None) -> Tensor:
        """(B, N, C) -> (B, C, h, w)."""
        if packed is not None:
            return naflex.unpack(tokens, packed)
        # channels last in memory, which convolutions like, and no copy
        return tokens.reshape(tokens.shape[0], *grid, -1).permute(0, 3, 1, 2)

    def _pool(self, final: Tensor, packed: naflex.Packed | None) -> Tensor:
        """The encoder's own global vector (B, P) float32."""
        if packed is not None:
            return naflex.pool(self.tower, final, packed).float()
        if self.facts.pooled == "class":
            tokens = final[:, 0]
            # timm has already applied its ``norm``; where that is the identity the real one stands behind the pooling
            behind = self._final_norm is not None and self._final_norm is not self.tower.norm
            return (self._final_norm(tokens) if behind else tokens).float()
        return self.tower.forward_head(final, pre_logits=True).float()

    @contextmanager
    def _positions_at(self, grid: Size) -> Iterator[None]:
        """Let the tower see its position table at this grid, resampled from the stored one, once per grid.

        timm would resample at every pass. An export must trace that: there a size may be symbolic and is no key; timm
        then has nothing to do to a table that was resampled by the other kernel. A table that trains must have its
        gradient through it, and is resampled at every pass.
        """
        tower = self.tower
        native, antialias = self.facts.native_grid, self.facts.position_kernel != "bicubic"
        exporting = torch.compiler.is_exporting()
        if native is None or (antialias if exporting else grid == native):
            yield
            return
        stored = tower.pos_embed
        if stored.requires_grad or exporting:
            table = resize_positions(stored, native, grid, table_prefix(tower), antialias)
        elif grid not in self._tables:
            table = resize_positions(stored.detach(), native, grid, table_prefix(tower), antialias)
            table = self._tables[grid] = nn.Parameter(table, requires_grad=False)
            if len(self._tables) > CACHED_GRIDS:
                self._tables.popitem(last=False)
        else:
            table = self._tables[grid]
        try:
            # past the module, which takes nothing but a parameter where there was one
            tower._parameters["pos_embed"], tower.patch_embed.grid_size = table, grid
            yield
        finally:
            tower._parameters["pos_embed"], tower.patch_embed.grid_size = stored, native
