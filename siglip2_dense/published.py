"""Scores that others have published, to stand beside ours: one place, with their sources.

Probes on frozen encoders: mIoU in percent, RMSE of depth in metres (NAVI: in parts of the object's depth), angular RMSE
of normals in degrees. Table 2 of the SigLIP 2 paper names neither the head of a column nor the size of its images; its
OpenCLIP row is a copy of the DINOv2 paper's linear probes.

Open-vocabulary segmentation, mIoU in percent over the classes that are labelled, of models trained on COCO-Stuff. Table
3 of the SigLIP 2 paper takes its two CLIP rows from the first version of CAT-Seg, digit for digit in five of six
columns; that had a Swin-B beside the encoder, and "CLIP L/16" was L/14 at 336 pixels.

Open-vocabulary detection, AP in percent on COCO 2017 val and LVIS v1 val, of OWL-ViT on towers that train along.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PAPER = "SigLIP 2"
SIGLIP2_PROBES = f"{PAPER}, Table 2 (arXiv 2502.14786)"
SIGLIP2 = f"{PAPER}, Table 3 (arXiv 2502.14786)"
SIGLIP2_BOXES = f"{PAPER}, Table 4 (arXiv 2502.14786)"
DINOV2 = "DINOv2, linear probes and lin. 1 of Tables 10 and 11 (arXiv 2304.07193)"
PROBE3D = "probe3d, Tables 2 and 3 (arXiv 2404.08636); NYUv2 by the middle 480 x 480 pixels, with a mask of its own"
CATSEG = "CAT-Seg (CVPR 2024; README of github.com/cvlab-kaist/CAT-Seg at 6d3a188)"
FIRST = "CAT-Seg, first version, with a second backbone (its README at 7b5e7a5)"
SETS = ("ade847", "pc459", "ade150", "pc59", "voc20", "voc21")
PROBES = ("pascal", "ade20k", "nyuv2_depth", "navi_depth", "nyuv2_normals", "navi_normals")
BOXES = ("coco_ap", "lvis_ap", "lvis_apr")


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


def _probes(encoder: str, printed: str, source: str, *scores: float | None) -> Row:
    given = {name: score for name, score in zip(PROBES, scores, strict=True) if score is not None}
    return Row("DenseProbe", encoder, printed, source, given)


def _boxes(encoder: str, printed: str, *scores: float) -> Row:
    return Row("OWLViT", encoder, printed, SIGLIP2_BOXES, dict(zip(BOXES, scores, strict=True)))


ROWS = (
    _probes("clip-large-14-224", "CLIP L/14, 224", SIGLIP2_PROBES, 74.5, 39.0, 0.553, 0.073, 24.3, 25.5),
    _probes("openclip-bigg-14-224", "OpenCLIP G/14, 224", SIGLIP2_PROBES, 71.4, 39.3, 0.541, None, None, None),
    _probes("siglip-so400m-14-224", "SigLIP So/14, 224", SIGLIP2_PROBES, 72.0, 37.6, 0.576, 0.083, 25.9, 26.0),
    _probes("siglip2-so400m-14-224", "SigLIP 2 So/14, 224", SIGLIP2_PROBES, 77.1, 41.8, 0.493, 0.067, 24.9, 25.4),
    _probes("siglip-so400m-14-384", "SigLIP So/14, 384", SIGLIP2_PROBES, 73.8, 40.8, 0.563, 0.069, 24.1, 25.4),
    _probes("siglip2-so400m-14-384", "SigLIP 2 So/14, 384", SIGLIP2_PROBES, 78.1, 45.4, 0.466, 0.064, 23.0, 25.0),
    _probes("dinov2-small-14", "DINOv2 S/14", DINOV2, 81.1, 44.3, 0.449, None, None, None),
    _probes("dinov2-base-14", "DINOv2 B/14", DINOV2, 82.5, 47.3, 0.399, None, None, None),
    _probes("dinov2-large-14", "DINOv2 L/14", DINOV2, 82.1, 47.7, 0.384, None, None, None),
    _probes("dinov2-giant-14", "DINOv2 g/14", DINOV2, 83.0, 49.0, 0.344, None, None, None),
    _probes("dinov2-base-14", "DINOv2 B/14", PROBE3D, None, None, None, 0.0763, 22.41, 25.27),
    _probes("dinov2-large-14", "DINOv2 L/14", PROBE3D, None, None, None, 0.0721, 21.55, 24.52),
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
    _boxes("siglip-base-16", "SigLIP B/16", 42.2, 33.0, 31.0),
    _boxes("siglip2-base-16", "SigLIP 2 B/16", 42.8, 34.4, 32.7),
    _boxes("siglip-so400m-14", "SigLIP So/14", 44.3, 39.5, 40.9),
    _boxes("siglip2-so400m-14", "SigLIP 2 So/14", 45.2, 40.5, 42.3),
)


def rows_of(model: str, encoder: str) -> list[Row]:
    """What is published of a model (the name of its class) on an encoder (its short name), at whatever resolution."""
    return [row for row in ROWS if row.model == model and re.fullmatch(re.escape(row.encoder) + r"(-\d+)?", encoder)]
