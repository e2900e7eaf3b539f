"""Where the published sets of boxes come from, and COCO's images, which other sets have as well."""

from __future__ import annotations

from functools import partial

from siglip2_dense.data.download import unpack_below, unpack_files
from siglip2_dense.data.recipe import Archive, ByHand, Recipe

COCO = "http://images.cocodataset.org"
LVIS_FILES = "https://dl.fbaipublicfiles.com/LVIS"
VG_IMAGES = "https://cs.stanford.edu/people/rak248/VG_100K_2"
VG_FILES = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"
OBJECTS365 = "https://www.objects365.org/download.html gives its archives to those who agree to its terms"

COCO_IMAGES = tuple(
    Archive(f"{COCO}/zips/{folder}.zip", size, md5, partial(unpack_below, below=folder, inside=folder), folder)
    for folder, size, md5 in (
        ("train2017", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
        ("val2017", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
    )
)

BOX_RECIPES = {
    "coco": Recipe(
        archives=(
            *COCO_IMAGES,
            Archive(
                url=f"{COCO}/annotations/annotations_trainval2017.zip",
                size=252_907_541,
                md5="f4bbac642086de4f52a3fdda2de5fa2c",
                use=partial(
                    unpack_files,
                    files={f"annotations/instances_{split}2017.json": "annotations" for split in ("train", "val")},
                ),
                makes="annotations/instances_val2017.json",
            ),
        ),
        counts={"train": 118_287, "val": 5_000},
        parts={"train": "train2017", "val": "val2017"},
    ),
    "lvis": Recipe(
        archives=(
            *COCO_IMAGES,
            *(
                Archive(
                    url=f"{LVIS_FILES}/lvis_v1_{split}.json.zip",
                    size=size,
                    md5=None,
                    use=partial(unpack_files, files={f"lvis_v1_{split}.json": "annotations"}),
                    makes=f"annotations/lvis_v1_{split}.json",
                )
                for split, size in (("train", 350_000_000), ("val", 64_000_000))
            ),
        ),
        counts={"train": 100_170, "val": 19_809},
        parts={"train": "train2017", "val": "val2017"},
    ),
    "objects365": Recipe(
        by_hand=tuple(
            ByHand(
                makes=makes,
                how=f"{OBJECTS365}, 700 GB in all; unpack those of version 2 so that {{root}}/{example} is a file",
            )
            for makes, example in (
                ("annotations/zhiyuan_objv2_train.json", "annotations/zhiyuan_objv2_train.json"),
                ("annotations/zhiyuan_objv2_val.json", "annotations/zhiyuan_objv2_val.json"),
                ("train/patch0", "train/patch0/objects365_v1_00000000.jpg"),
                ("val/patch0", "val/patch0/objects365_v1_00000016.jpg"),
            )
        ),
        counts={"train": 1_742_289, "val": 80_000},
        parts={"train": "train", "val": "val"},
    ),
    "objects365_v1": Recipe(
        by_hand=tuple(
            ByHand(
                makes=makes,
                how=f"{OBJECTS365}; unpack those of version 1 so that {{root}}/{example} is a file",
            )
            for makes, example in (
                ("annotations/objects365_train.json", "annotations/objects365_train.json"),
                ("annotations/objects365_val.json", "annotations/objects365_val.json"),
                ("train", "train/obj365_train_000000000001.jpg"),
                ("val", "val/obj365_val_000000000001.jpg"),
            )
        ),
        counts={"train": 608_606, "val": 30_000},
        parts={"train": "train", "val": "val"},
    ),
    "visual_genome": Recipe(
        archives=(
            *(
                Archive(
                    f"{VG_IMAGES}/{name}.zip", size, None, partial(unpack_below, below=folder, inside=folder), folder
                )
                for name, folder, size in (
                    ("images", "VG_100K", 9_730_000_000),
                    ("images2", "VG_100K_2", 5_470_000_000),
                )
            ),
            *(
                Archive(f"{VG_FILES}/{name}.zip", size, None, partial(unpack_files, files={name: "."}), name)
                for name, size in (("image_data.json", 1_780_854), ("objects.json", 100_000_000))
            ),
        ),
        counts={"train": 108_077},
        parts={"train": "VG_100K"},
    ),
}
