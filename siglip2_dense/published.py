"""Scores that others have published, to stand beside ours: one place, with their sources.

Open-vocabulary segmentation, mIoU in percent over the classes that are labelled, of models trained on COCO-Stuff. Table
3 of the SigLIP 2 paper takes its two CLIP rows from the first version of CAT-Seg, digit for digit in five of six
columns; that had a Swin-B beside the encoder, and "CLIP L/16" was L/14 at 336 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

SIGLIP2 = "SigLIP 2, Table 3 (arXiv 2502.14786)"
CATSEG = "CAT-Seg (CVPR 2024; README of github.com/cvlab-kaist/CAT-Seg at 6d3a188)"
FIRST = "CAT-Seg, first version, with a second backbone (its README at 7b5e7a5)"
SETS = ("ade847", "pc459", "ade150", "pc59", "voc20", "voc21")


@dataclass(frozen=True)
class Row:
    """One model's scores; those that were never published are missing."""

    model: str  # our class
    encoder: str  # how our names of the encoder begin: papers rarely say its resolution
    printed: str  # what the source calls the encoder
    source: str
    scores: dict[str, float]


def _open_vocabulary(encoder: str, printed: str, source: str, *scores: float) -> Row:
    return Row("CATSeg", encoder, printed, source, dict(zip(SETS, scores, strict=True)))


ROWS = (
    _open_vocabulary("clip-large-14-336", "CLIP L/16", SIGLIP2, 10.8, 20.4, 31.5, 62.0, 96.6, 81.8),
    _open_vocabulary("openclip-bigg-14", "OpenCLIP G/14", SIGLIP2, 13.3, 21.4, 36.2, 61.5, 97.1, 81.4),
    _open_vocabulary("siglip-large-16", "SigLIP L/16", SIGLIP2, 14.0, 23.9, 37.5, 61.6, 96.1, 81.1),
    _open_vocabulary("siglip2-large-16", "SigLIP 2 L/16", SIGLIP2, 14.3, 24.1, 38.8, 62.4, 97.0, 82.3),
    _open_vocabulary("clip-base-16", "CLIP ViT-B/16", CATSEG, 12.0, 19.0, 31.8, 57.5, 94.6, 77.3),
    _open_vocabulary("clip-large-14-336", "CLIP ViT-L/14", CATSEG, 16.0, 23.8, 37.9, 63.3, 97.0, 82.5),
    _open_vocabulary("clip-base-16", "CLIP ViT-B/16 and R101", FIRST, 8.9, 16.6, 27.2, 57.5, 93.7, 78.3),
    _open_vocabulary("clip-large-14-336", "CLIP ViT-L/14 and Swin-B", FIRST, 11.4, 20.4, 31.5, 62.0, 96.6, 81.8),
    _open_vocabulary("openclip-huge-14", "OpenCLIP ViT-H/14 and Swin-B", FIRST, 13.1, 20.1, 34.4, 61.2, 96.7, 80.2),
    _open_vocabulary("openclip-bigg-14", "OpenCLIP ViT-G/14 and Swin-B", FIRST, 14.1, 21.4, 36.2, 61.5, 97.1, 81.4),
)


def rows_of(model: str, encoder: str) -> list[Row]:
    """What is published of a model (the name of its class) on an encoder (its short name)."""
    return [row for row in ROWS if row.model == model and f"{encoder}-".startswith(f"{row.encoder}-")]
