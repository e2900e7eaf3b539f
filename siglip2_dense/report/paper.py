"""Where a score stands in the tables of the SigLIP 2 paper, and what is published beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from siglip2_dense.data.recipes import RECIPES
from siglip2_dense.encoders.catalogue import catalogue
from siglip2_dense.published import Row, rows_of
from siglip2_dense.records import FROZEN
from siglip2_dense.report.runs import Run, Score, scores_of


@dataclass(frozen=True)
class PaperColumn:
    """One column: scores of these heads on the whole of one of these sets."""

    key: str  # of the published scores
    title: str
    data: Sequence[str]
    split: str
    metric: str
    kind: str
    frozen: bool = False  # whether the encoder must not have trained along
    task: dict = field(default_factory=dict)  # settings that the head's task has

    def has(self, score: Score) -> bool:
        """Whether a score is of what this column of the paper measures, on the same images."""
        record = score.run.record
        data, protocol = record["data"], record["protocol"]
        task = protocol["heads"][score.head].get("task") or {}
        return (
            (score.kind, score.metric) == (self.kind, self.metric)
            and data["name"] in self.data
            and data["split"] == self.split
            and data.get("images") == (whole(data["name"], self.split) or data.get("images"))
            and not (self.frozen and protocol.get("encoder_mode") != FROZEN)
            and all(task.get(key) == value for key, value in self.task.items())
        )


@dataclass(frozen=True)
class PaperTable:
    title: str
    anchor: str
    model: str  # our class
    columns: Sequence[PaperColumn]


def _segmentation(key: str, title: str, *data: str) -> PaperColumn:
    return PaperColumn(key, title, data, "val", "mIoU", "Segmentation", frozen=True)


def _open_vocabulary(key: str, title: str, data: str) -> PaperColumn:
    return PaperColumn(key, title, (data,), "val", "mIoU_labelled", "OpenVocabulary")


PROBES = PaperTable(
    "Table 2: probes on frozen encoders", "table-2", "DenseProbe", (
        _segmentation("pascal", "PASCAL", "pascal"),
        _segmentation("ade20k", "ADE20k", "ade20k"),
        PaperColumn("nyuv2_depth", "NYUv2 depth", ("nyuv2", "nyuv2_labelled"), "test", "rmse", "Depth", True),
        PaperColumn("navi_depth", "NAVI depth", ("navi",), "test", "rmse", "Depth", True, {"unit": "relative"}),
        PaperColumn("nyuv2_normals", "NYUv2 normals", ("nyuv2_labelled",), "test", "rmse", "Normals", True),
        PaperColumn("navi_normals", "NAVI normals", ("navi",), "test", "rmse", "Normals", True),
    ),
)  # fmt: skip
NAMES = PaperTable(
    "Table 3: segmentation by names, CAT-Seg", "table-3", "CATSeg", (
        _open_vocabulary("ade847", "A-847", "ade20k_full"),
        _open_vocabulary("pc459", "PC-459", "pascal_context_459"),
        _open_vocabulary("ade150", "A-150", "ade20k"),
        _open_vocabulary("pc59", "PC-59", "pascal_context"),
        _open_vocabulary("voc20", "VOC-20", "voc20"),
        _open_vocabulary("voc21", "VOC-21", "pascal"),
    ),
)  # fmt: skip
BOXES = PaperTable(
    "Table 4: detection by names, OWL-ViT", "table-4", "OWLViT", (
        PaperColumn("coco_ap", "COCO AP", ("coco",), "val", "AP", "Detection"),
        PaperColumn("lvis_ap", "LVIS AP", ("lvis",), "val", "AP", "Detection"),
        PaperColumn("lvis_apr", "LVIS APr", ("lvis",), "val", "APr", "Detection"),
    ),
)  # fmt: skip
TABLES = (PROBES, NAMES, BOXES)


def in_order(runs: Sequence[Run]) -> list[Run]:
    """As they stand in the tables; those that belong into none of them come last."""

    def place(run: Run) -> tuple[int, int]:
        scores = scores_of(run, "")
        places = (
            (i, j)
            for i, table in enumerate(TABLES)
            for j, column in enumerate(table.columns)
            if any(column.has(score) for score in scores)
        )
        return next(places, (len(TABLES), 0))

    return sorted(runs, key=place)


def whole(name: str, split: str) -> int | None:
    """Images of a published set; none where nobody has said how many."""
    recipe = RECIPES.get({"voc20": "pascal"}.get(name, name))
    return recipe.counts.get(split) if recipe else None


def published(run: Run, model: str) -> list[Row]:
    """What is published of a run's encoder in a model of that class; nothing of one that only has its name."""
    encoder, entry = run.record["encoder"], catalogue().get(run.record["encoder"]["name"])
    size = encoder.get("parameters")
    if run.weights.startswith("random") or (entry and size is not None and size != entry.parameters):
        return []
    return rows_of(model, encoder["name"])
