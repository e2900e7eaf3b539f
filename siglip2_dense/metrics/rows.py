"""The rows of a test on disk, beside its record: what every image adds to every head's scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from siglip2_dense.errors import UserError
from siglip2_dense.files import atomic, load_tensors
from siglip2_dense.metrics.depth import DepthMetric
from siglip2_dense.metrics.normals import NormalsMetric
from siglip2_dense.metrics.per_image import PerImage
from siglip2_dense.metrics.segmentation import SegmentationMetric

FORMAT = "siglip2_dense per-image rows, version 1"
KINDS = {cls.__name__: cls for cls in (SegmentationMetric, DepthMetric, NormalsMetric)}


class Rows(NamedTuple):
    """The metric of one head with its rows."""

    metric: PerImage
    classes: tuple[str, ...]  # none where the task has none


def place(record: str | Path) -> Path:
    """Where the rows of a record are: results_val.json -> per_image_val.safetensors."""
    record = Path(record)
    of_it = record.stem.removeprefix("results").strip("_")
    return record.with_name("_".join(filter(None, ("per_image", of_it))) + ".safetensors")


def write(path: str | Path, metrics: Mapping[str, PerImage], classes: Mapping[str, Sequence[str]]) -> None:
    """Atomically; metrics by the names of their heads, classes by the names of those that have any."""
    from safetensors.numpy import save_file

    tensors, heads = {}, {}
    for name, metric in metrics.items():
        tensors[f"{name}.positions"], tensors[f"{name}.rows"] = metric.rows()
        heads[name] = {
            "metric": type(metric).__name__,
            "arguments": metric.arguments,
            "classes": list(classes.get(name, ())),
        }
    with atomic(path) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "heads": json.dumps(heads)})


def read(path: str | Path) -> dict[str, Rows]:
    """The rows of each head. Raises UserError when the file is missing, truncated, or another kind of file."""
    from safetensors import safe_open

    tensors = load_tensors(path)
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} holds no rows of this version (its format is {metadata.get('format')!r}).")
    return {
        name: Rows(
            metric=KINDS[head["metric"]](**head["arguments"]).restore(
                *(tensors[f"{name}.{part}"].numpy() for part in ("positions", "rows"))
            ),
            classes=tuple(head["classes"]),
        )
        for name, head in json.loads(metadata["heads"]).items()
    }
