"""CAT-Seg's head: scores of any classes, from how near each cell of an image is to their texts.

Everything but the attention between classes is done for each class apart, and that needs only sums over them. So the
classes go through in parts, and what is kept of each meanwhile is one volume, 0.28 MiB at 24 x 24 cells. The order of
the classes and the size of the parts do not matter. Source: Cho et al. 2024 (CAT-Seg, CVPR), and its published code for
what the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from siglip2_dense.contracts import Alignment, EncoderFacts, Features, Size, Tap
from siglip2_dense.errors import UserError
from siglip2_dense.heads.catseg.classes import ClassPart
from siglip2_dense.heads.catseg.cost import costs, nearest_classes, widened
from siglip2_dense.heads.catseg.decoder import Decoder, Guidance
from siglip2_dense.heads.catseg.spatial import SpatialPart
from siglip2_dense.registry import MODELS
from siglip2_dense.resample import resize_logits

WIDTH = 128
MAPS_AT_ONCE = {"cpu": 16, "cuda": 128}  # maps of one class and image that a part has,
VOLUMES_AT_ONCE = 4096  # and those whose volumes are there at a time in evaluation, or of one image if it has more
LEFT_OUT = -100.0  # their score
SCALE = 10.0  # of cosines in scores, where it begins: SigLIP's


class AggregatorLayer(nn.Module):
    """Attention between cells, then between classes."""

    def __init__(self, pool: int):
        super().__init__()
        self.spatial = SpatialPart(WIDTH)
        self.classes = ClassPart(WIDTH, pool)


@MODELS.register_module()
class CATSegHead(nn.Module):
    """A volume of cosines between cells and texts, aggregated and refined to four times the grid.

    It reads maps in the text space, and two blocks of the encoder, a third and two thirds of its depth, as guidance.

    Args:
        facts: of the encoder; it must have been trained with texts.
        channels: of the task; the head itself takes any number of classes.
        prompts: P, how many each class has.
        grid: cells that every image is brought to before the encoder, by the model, or (height, width) of them; none to
            take images as they are. The published models have 24: 384 pixels for patches of 16, 336 for those of 14.
        residual: what the last block of encoders without attention pooling adds to its values: the "class" token's
            input, as the published models, or each token's "own", as CAT-Seg's first version.
        blocks: layers of the aggregator.
        pool: see ``ClassPart``.
        checkpointing: in training, compute the parts again in the backward pass instead of keeping what they did.
        direct: add the cosines themselves, times a factor that is learned, to the scores. CAT-Seg does not; it begins
            with towers that have met already. Those that begin at random hardly meet through all its layers.

    Attributes:
        text: (T, P, E) unit vectors, set before use.
        most: how many classes of an image are scored, those nearest to it; the others get -100. None for all.
    """

    pooled = "none"
    free = ("checkpointing",)  # settings under which the same tensors are of the same use
    text: Tensor | None = None
    most: int | None = None

    def __init__(
        self,
        facts: EncoderFacts,
        channels: int,
        prompts: int = 1,
        grid: int | Size | None = 24,
        residual: str = "class",
        blocks: int = 2,
        pool: int = 2,
        checkpointing: bool = False,
        direct: bool = False,
    ):
        super().__init__()
        _check(facts, prompts, grid, residual, blocks, pool)
        self.facts = facts
        self.grid = (grid, grid) if isinstance(grid, int) else grid and tuple(grid)
        self.checkpointing = checkpointing
        self.aligned = alignment_of(facts, residual)
        self.guides = guides_of(facts)
        self.taps = tuple(sorted(set(self.guides)))
        self.prompts = prompts
        self.embed = nn.Conv2d(prompts, WIDTH, 7, padding=3)
        self.appearance = nn.Conv2d(facts.aligned_width, WIDTH, 3, padding=1)
        self.words = nn.Linear(facts.aligned_width, WIDTH)
        width1, width2 = (facts.widths[tap.block] for tap in self.guides)
        self.guide1, self.guide2 = Guidance(width1, 256, 32, factor=2), Guidance(width2, 128, 16, factor=4)
        self.layers = nn.ModuleList(AggregatorLayer(pool) for _ in range(blocks))
        self.decoder = Decoder(WIDTH)
        self.scale = nn.Parameter(torch.tensor(SCALE)) if direct else None

    def forward(self, features: Features) -> Tensor:
        """-> (B, T, 4h, 4w) float32."""
        text = self.text
        if text is None:
            raise UserError("CATSegHead has no texts to compare with; it is a head of the model CATSeg, not of others.")
        if text.shape[1] != self.prompts:
            raise UserError(
                f"each class has {text.shape[1]} prompts, the head was built for {self.prompts}; give its setting "
                "prompts, or other templates."
            )
        if torch.compiler.is_exporting():  # of a batch of any size
            return self._scores(features, text)
        if self.most is not None and len(text) > self.most and not self.training:
            return self._scores_of_nearest(features, text)
        images = len(features) if self.training else max(VOLUMES_AT_ONCE // len(text), 1)
        starts = range(0, len(features), images)
        return torch.cat([self._scores(features[start : start + images], text) for start in starts])

    def _scores_of_nearest(self, features: Features, text: Tensor) -> Tensor:
        size = tuple(4 * side for side in features.aligned.shape[-2:])
        raw = widened(features.aligned).new_full((len(features), len(text), *size), LEFT_OUT)
        nearest = nearest_classes(features.aligned, text, self.most, self._at_once(len(features)))
        for number, classes in enumerate(nearest):
            raw[number, classes] = self._scores(features[number : number + 1], text[classes])[0]
        return raw

    def _at_once(self, images: int) -> int:
        """Classes of a part."""
        maps = MAPS_AT_ONCE["cpu" if self.embed.weight.device.type == "cpu" else "cuda"]
        return max(maps // images, 1)

    def _scores(self, features: Features, text: Tensor) -> Tensor:
        cells = widened(features.aligned)  # stored ones have 16 bits
        appearance = F.relu(self.appearance(cells)).permute(0, 2, 3, 1)
        words = F.relu(self.words(F.normalize(text.mean(1), dim=-1)))
        guidance = tuple(
            guide(widened(features.maps[tap]))
            for guide, tap in zip((self.guide1, self.guide2), self.guides, strict=True)
        )
        size = self._at_once(len(features))
        parts = list(zip(text.split(size), words.split(size), strict=True))
        volumes, sums = [self._run(self._embedded, cells, own) for own, _ in parts], None
        for number, layer in enumerate(self.layers):
            before = self.layers[number - 1].classes if number else None
            total = layer.classes.fill(len(text))
            for i, (_, own) in enumerate(parts):
                volumes[i], added = self._run(_through, before, layer, volumes[i], own, sums, appearance)
                total = total + added
            sums = total

        def decoded(x: Tensor, text: Tensor, words: Tensor) -> Tensor:
            scores = self.decoder(self.layers[-1].classes(x, words, sums), guidance)
            if self.scale is None:
                return scores
            return scores + self.scale * resize_logits(costs(cells, text).mean(2), scores.shape[-2:])

        return torch.cat([self._run(decoded, x, *own) for x, own in zip(volumes, parts, strict=True)], dim=1)

    def _embedded(self, cells: Tensor, text: Tensor) -> Tensor:
        """(B, t, h, w, C)"""
        found = costs(cells, text)
        return self.embed(found.flatten(0, 1)).unflatten(0, found.shape[:2]).permute(0, 1, 3, 4, 2)

    def _run(self, function, *arguments):
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)


def _through(before: ClassPart | None, layer: AggregatorLayer, x: Tensor, words: Tensor, sums, appearance: Tensor):
    """A part's volume after the attention between classes of the layer before and between cells of this one; what it
    adds to this one's sums.
    """
    x = x if before is None else before(x, words, sums)
    x = layer.spatial(x, appearance)
    return x, layer.classes.sums(x, words)


def alignment_of(facts: EncoderFacts, residual: str) -> Alignment:
    """How the encoder's maps in the text space are made: of the values of its attention pooling, or of its last block
    with a residual and the MLP. One without a class token can only add each token's own.
    """
    if facts.pooled == "map":
        return Alignment("value")
    return Alignment("value", residual if "class" in facts.prefix else "own", mlp=True)


def guides_of(facts: EncoderFacts) -> tuple[Tap, Tap]:
    """The ends of the first and second third of the encoder, without the final norm: blocks 3 and 7 of 12, 7 and 15 of
    24, 8 and 17 of 27.
    """
    ends = (max(round(part * facts.num_blocks / 3) - 1, 0) for part in (1, 2))
    return tuple(Tap(block, False) for block in ends)


def _check(facts: EncoderFacts, prompts, grid, residual, blocks, pool) -> None:
    if facts.sequence_length is not None:
        raise UserError(
            f"CATSegHead: {facts.name} sees images at shapes of their own, which its windows do not; take a "
            "fixed-resolution encoder."
        )
    if facts.aligned_width is None:
        raise UserError(f"{facts.name} has no text space (or its file no projection); name an encoder that has.")
    if residual not in ("class", "own"):
        raise UserError(f"CATSegHead: residual={residual!r}; give 'class' or 'own'.")
    for name, value in (("prompts", prompts), ("blocks", blocks), ("pool", pool)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"CATSegHead: {name}={value!r}; give a whole number from 1 on.")
    sides = (grid, grid) if isinstance(grid, int) else grid
    whole = isinstance(sides, Sequence) and len(sides) == 2 and all(isinstance(s, int) and s > 0 for s in sides)
    if isinstance(grid, bool) or not (grid is None or whole):
        raise UserError(f"CATSegHead: grid={grid!r}; give cells a side, (height, width) of them, or None.")
