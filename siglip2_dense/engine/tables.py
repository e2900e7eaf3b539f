"""The rows of the SigLIP 2 paper's tables: which configs make one, and what an encoder needs for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from siglip2_dense.errors import UserError

COCO = (
    "test_dataloader.dataset.type=CocoDetection",
    "test_dataloader.dataset.split=val",
    "test_dataloader.batch_size=4",
)


@dataclass(frozen=True)
class HeadTest:
    """A test of a trained head beside the evaluation that ends its training."""

    name: str  # of its record, results_NAME.json
    options: tuple[str, ...] = ()  # of the config
    benchmarks: bool = False  # all of the config's, each with a record of its own


@dataclass(frozen=True)
class Column:
    """One or several columns of a table: a run of a config, and what it is tested on."""

    config: str
    tests: tuple[HeadTest, ...] = ()
    processes: int = 1  # that the config's images a step are for
    own_data: bool = False  # in a folder of the user's, which has to be named


@dataclass(frozen=True)
class Table:
    what: str
    columns: tuple[Column, ...]
    text: bool = False  # the encoder must have been trained with texts
    exclusive: bool = False  # each column is for encoders of one kind, and a row is one of them
    encoder: str | None = None  # where none is named


TABLES = {
    "table2": Table(
        "frozen probes: segmentation, depth and normals",
        tuple(
            Column(f"probe_{name}")
            for name in ("pascal", "ade20k", "nyuv2_depth", "navi_depth", "nyuv2_normals", "navi_normals")
        ),
    ),
    "table3": Table(
        "open-vocabulary segmentation: CAT-Seg on six sets",
        tuple(
            Column(f"catseg_{name}", (HeadTest("benchmarks", benchmarks=True),))
            for name in ("siglip2_large", "siglip_large", "clip_base", "clip_large", "openclip_bigg")
        ),
        text=True,
        exclusive=True,
    ),
    "table4": Table(
        "open-vocabulary detection: OWL-ViT on LVIS and COCO",
        tuple(
            Column(f"owlvit_{name}", (HeadTest("coco", COCO),), processes=8)
            for name in ("siglip2_base", "siglip_base", "siglip2_so400m", "siglip_so400m")
        ),
        text=True,
        exclusive=True,
    ),
    "mini": Table(
        "no table of the paper: the same steps in minutes on a CPU, on generated scenes, with --data also on CamVid "
        "and on frames of a kitchen",
        (
            Column("probe_demo"),
            Column("mini_camvid", (HeadTest("test"),), own_data=True),
            Column("mini_kitchen", own_data=True),
        ),
        encoder="efficientnet-lite0",
    ),
}


def row_of(name: str, encoder: str | None, encoders: dict[str, str], data: bool) -> tuple[str, list[Column]]:
    """The encoder of a row, and its columns.

    encoders: that each config names, by the config's name. data: whether a folder of data is named.
    Raises UserError for an encoder that lacks what the table asks for, or that none of the table's configs is for.
    """
    from siglip2_dense.encoders.catalogue import find  # brings torch, which a list of tables does not need

    table = TABLES[name]
    encoder = encoder or table.encoder
    if encoder is None:
        raise UserError(f"{name} needs --encoder NAME; siglip2-dense encoders list shows which there are.")
    if not find(encoder).text and table.text:
        raise UserError(
            f"{name} is of encoders that were trained with texts, and {encoder} has no text tower; give one that "
            "siglip2-dense encoders list --text shows."
        )
    if table.exclusive:
        return encoder, [_nearest(name, encoder, table.columns, encoders)]
    return encoder, [column for column in table.columns if data or not column.own_data]


def _nearest(name: str, encoder: str, columns: Sequence[Column], encoders: dict[str, str]) -> Column:
    """The column whose config is for this encoder, or for one of its family and size."""
    kind = _kind(encoder)
    for column in sorted(columns, key=lambda one: encoders[one.config] != encoder):
        if _kind(encoders[column.config]) == kind:
            return column
    known = ", ".join(encoders[column.config] for column in columns)
    raise UserError(
        f"{name} has no settings for {encoder}: its configs are for {known}, and others of their families and sizes; "
        "give one of these, or train a config on yours by siglip2-dense train CONFIG --encoder."
    )


def _kind(encoder: str) -> tuple[str, str]:
    """Family and size: catalogue names begin with them."""
    family, size, *_ = encoder.split("-")
    return family, size
