"""How a published head is said in our terms; ``dinov2`` and ``tips`` say which of its tensors are which of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from siglip2_dense.contracts import EncoderFacts
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import CLASSES, classes_of

BINS = 256  # of every published depth head that has bins


@dataclass(frozen=True)
class Wishes:
    """What a checkpoint does not say of itself."""

    classes: str | None = None  # a label set or a file of names; by default the set with as many classes
    max_depth: float | None = None  # end of the range of depths, in metres
    activation: str | None = None  # of TIPS v2's depth head behind its last 3x3 convolution: "relu" or "none"
    only: str | None = None  # of several heads in one file


@dataclass(frozen=True)
class Published:
    """One head of a checkpoint, said in our terms."""

    name: str  # "segmentation", "depth" or "normals"
    what: str  # it is, for people
    head: dict  # our config
    task: dict
    tensors: dict[str, Tensor]  # all that the checkpoint holds of it, by the checkpoint's names
    named: Callable[[str], str]  # our parameter's name -> the checkpoint's
    turned: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor  # the tensor of that name in torch's layout


def module_names(templates: dict[str, str]) -> dict[str, str]:
    """Our modules -> the checkpoint's, from pairs in which {i} stands for 0 to 3."""
    return {ours.format(i=i): theirs.format(i=i) for ours, theirs in templates.items() for i in range(4)}


def check_encoder(facts: EncoderFacts, family: str, prefix: tuple[str, ...], source: str | Path) -> None:
    """Raise UserError unless the encoder is of the family and has those tokens before the image's."""
    if family not in facts.name or facts.prefix != prefix:
        raise UserError(
            f"{source} was trained on {family} with {' and '.join(prefix)} tokens, and {facts.name} is another encoder "
            f"(its tokens: {' and '.join(sorted(set(facts.prefix))) or 'none'}); give --encoder {family}-SIZE."
        )


def segmentation_task(count: int, wishes: Wishes, source: str | Path) -> dict:
    """The task of a head with that many outputs. Raises UserError when no known set, or not the given one, has them."""
    named = wishes.classes or next((name for name, names in CLASSES.items() if len(names) == count), None)
    if named is None:
        raise UserError(f"{source} has {count} classes, as no known label set; give their names, --classes FILE.")
    if len(classes_of(named)) != count:
        raise UserError(f"{source} has {count} classes, but --classes {named} names {len(classes_of(named))}.")
    return dict(type="Segmentation", classes=named)


def depth_task(count: int, epsilon: float, max_depth: float, source: str | Path) -> dict:
    """The task of a head with that many outputs. Raises UserError unless they are the published bins, or one depth."""
    if count not in (1, BINS):
        raise UserError(f"{source} has {count} depth outputs; published heads have {BINS} bins, or one depth.")
    if count == 1:
        return dict(type="Depth", min_depth=1e-3, max_depth=max_depth, bins=None)
    return dict(type="Depth", min_depth=1e-3, max_depth=max_depth, bins=count, epsilon=epsilon)
