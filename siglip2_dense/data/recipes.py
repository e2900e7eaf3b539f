"""The data sets that the command line knows: where the published ones come from, and what they hold when whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from siglip2_dense.data.ade20k import ADE20K
from siglip2_dense.data.ade20k_full import NAMES, SOURCE, ADE20KFull, write_full
from siglip2_dense.data.base import PixelDataset, data_root
from siglip2_dense.data.boxes.coco import CocoDetection
from siglip2_dense.data.boxes.lvis import LVIS
from siglip2_dense.data.boxes.objects365 import Objects365, Objects365V1
from siglip2_dense.data.boxes.recipes import BOX_RECIPES, COCO_IMAGES
from siglip2_dense.data.boxes.visual_genome import VisualGenome
from siglip2_dense.data.coco_stuff import COCOStuff
from siglip2_dense.data.conversion import (
    NAVI_NOTE,
    VOC_LISTS,
    add_navi,
    add_sbd,
    place,
    write_normals,
    write_official_test,
)
from siglip2_dense.data.download import unpack, unpack_below
from siglip2_dense.data.folder import ImageFolder
from siglip2_dense.data.generated import GeneratedScenes
from siglip2_dense.data.navi import NAVI
from siglip2_dense.data.nyuv2 import LABELLED, LISTS, NORMALS, SPLITS, NYUv2, NYUv2GeoNet, NYUv2Labelled
from siglip2_dense.data.pascal import PascalVOC
from siglip2_dense.data.pascal_context import (
    ALL_LABELS,
    ALL_NAMES,
    ALL_VAL,
    ANNOTATIONS,
    PascalContext,
    PascalContext459,
    add_context_459,
    write_context,
)
from siglip2_dense.data.pascal_context import LISTS as CONTEXT_LISTS
from siglip2_dense.data.recipe import Archive, ByHand, Derived, Recipe
from siglip2_dense.data.rgbd import RGBDFolder
from siglip2_dense.errors import UserError, nearest

SETS: dict[str, type[PixelDataset]] = {
    "ade20k": ADE20K,
    "ade20k_full": ADE20KFull,
    "pascal": PascalVOC,
    "pascal_context": PascalContext,
    "pascal_context_459": PascalContext459,
    "coco_stuff": COCOStuff,
    "nyuv2": NYUv2,
    "nyuv2_labelled": NYUv2Labelled,
    "nyuv2_geonet": NYUv2GeoNet,
    "navi": NAVI,
    "coco": CocoDetection,
    "lvis": LVIS,
    "objects365": Objects365,
    "objects365_v1": Objects365V1,
    "visual_genome": VisualGenome,
    "folder": ImageFolder,
    "rgbd": RGBDFolder,
    "generated": GeneratedScenes,
}
OWN = {  # sets of the user's own: how they are laid out
    "folder": (
        "DIR/images/SPLIT/NAME.jpg (or .png), DIR/labels/SPLIT/NAME.png (one channel, the number of a class for each "
        "pixel) and DIR/classes.txt (the classes' names, one a line, in the order of their numbers)"
    ),
    "rgbd": (
        "DIR/images/SPLIT/NAME.jpg (or .png), DIR/depth/SPLIT/NAME.png (one channel of 16 bits, millimetres, 0 = none) "
        "and, for normals, DIR/intrinsics.txt (three lines: fx 0 cx, 0 fy cy, 0 0 1, in pixels)"
    ),
}
CONTEXT = "https://roozbehm.info/pascal-context/trainval.tar.gz"
CAT_SEG = "https://raw.githubusercontent.com/cvlab-kaist/CAT-Seg/6d3a188af95165147fe2f34a8237fa7d2633e784"
BTS = "https://raw.githubusercontent.com/cleinc/bts/5e3406b35d1497b2e55d2dd600524d1f4efacaed"


LABELLED_FILES = (
    Archive(
        url="http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat",
        size=2_972_037_809,
        md5="520609c519fba3ba5ac58c8fefcc3530",
        use=place,
        makes=LABELLED,
    ),
    Archive(f"{BTS}/utils/splits.mat", 2_626, "08e3c3aea27130ac7c01ffd739a4535f", place, SPLITS),
)

VOC_2010 = Archive(
    url="http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
    size=1_300_000_000,
    md5="da459979d0c395079b5c75ee67908abb",
    use=partial(unpack, inside="VOCdevkit/VOC2010"),
    makes="JPEGImages",
)

# Checksums of the archives: those of public loaders; VOC's and SBD's are torchvision's, COCO's are PaddleDetection's.
RECIPES = {
    "ade20k": Recipe(
        archives=(
            Archive(
                url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                size=970_000_000,
                md5="7328b3957e407ddae1d3cbf487f149ef",
                use=partial(unpack, inside="ADEChallengeData2016"),
                makes="annotations",
            ),
        ),
        counts={"train": 20_210, "val": 2_000},
    ),
    "pascal": Recipe(
        archives=(
            Archive(
                url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                size=1_999_639_040,
                md5="6cd6e144f989b92b3379bac3b3de84fd",
                use=partial(unpack, inside="VOCdevkit/VOC2012"),
                makes="JPEGImages",
            ),
            Archive(
                url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
                size=1_419_539_633,
                md5="82b4d87ceb2ed10f6038a1cba92111cb",
                use=add_sbd,
                makes=f"{VOC_LISTS}/aug.txt",
            ),
        ),
        counts={"train": 1_464 + 9_118, "val": 1_449},
    ),
    "ade20k_full": Recipe(
        by_hand=(
            ByHand(
                makes=f"{SOURCE}/validation",
                how="ADE20K_2021_17_01.zip is sent to those who register at https://ade20k.csail.mit.edu/request_data; "
                f"unpack it so that {{root}}/{SOURCE}/validation is a folder",
            ),
        ),
        derived=(Derived(write_full, NAMES, needs=f"{SOURCE}/validation"),),
        counts={"val": 2_000},
        parts={"val": "annotations_detectron2"},
    ),
    "pascal_context": Recipe(  # the counts are those of its authors' interface; papers say 4,998 and 5,105
        archives=(
            VOC_2010,
            Archive(
                url=f"https://codalabuser.blob.core.windows.net/public/{ANNOTATIONS}",
                size=None,
                md5="3c2d0c0656b7be9eb61928ffe885d8ce",
                use=place,
                makes=ANNOTATIONS,
            ),
        ),
        derived=(Derived(write_context, f"{CONTEXT_LISTS}/val.txt"),),
        counts={"train": 4_996, "val": 5_104},
        parts={"train": CONTEXT_LISTS, "val": CONTEXT_LISTS},
    ),
    "pascal_context_459": Recipe(
        archives=(
            VOC_2010,
            Archive(f"{CAT_SEG}/datasets/{ALL_VAL}", 61_247, "cec0bc6c863d2c4102d5d64ace6d41fb", place, ALL_VAL),
            Archive(CONTEXT, 30_700_000, None, add_context_459, f"{ALL_LABELS}/{ALL_NAMES}"),
        ),
        counts={"val": 5_104},
        parts={"val": ALL_LABELS},
    ),
    "coco_stuff": Recipe(
        archives=(
            *COCO_IMAGES,
            Archive(
                url="http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
                size=690_000_000,
                md5=None,
                use=partial(unpack_below, below="stuffthingmaps"),
                makes="stuffthingmaps",
            ),
        ),
        counts={"train": 118_287, "val": 5_000},
    ),
    "nyuv2": Recipe(
        archives=(
            *(
                Archive(f"{BTS}/train_test_inputs/{LISTS[split][1]}", size, md5, place, LISTS[split][1])
                for split, size, md5 in (
                    ("train", 1_855_580, "a390ad7bfd5441cc9be37f59a384b4db"),
                    ("test", 41_047, "97fc4ddef437228b1f9fc9b8054b778f"),
                )
            ),
            *LABELLED_FILES,
        ),
        derived=(Derived(write_official_test, LISTS["test"][0]),),
        by_hand=(
            ByHand(
                makes=LISTS["train"][0],
                how="the training frames, sync.zip, are linked at https://github.com/cleinc/bts (pytorch/README.md: "
                "https://drive.google.com/file/d/1AysroWpfISmm-yRFGBgFTrLy6FjQwvwP/view); unpack them so that "
                "{root}/sync/basement_0001a is a folder",
            ),
        ),
        counts={"train": 24_231, "test": 654},
        parts={split: folder for split, (folder, _) in LISTS.items()},
    ),
    "nyuv2_labelled": Recipe(
        archives=(
            *LABELLED_FILES,
            Archive(
                url="https://dl.fbaipublicfiles.com/fair_self_supervision_benchmark/nyuv2_surfacenormal_metadata.zip",
                size=841_839_365,
                md5=None,
                use=write_normals,
                makes=NORMALS,
            ),
        ),
        counts={"train": 795, "test": 654},
        parts={"train": SPLITS, "test": SPLITS},
    ),
    "nyuv2_geonet": Recipe(
        by_hand=(
            ByHand(
                makes="*.mat",
                how="the frames, data1.zip and data2.zip of 141 GB together, are linked at "
                "https://github.com/xjqi/GeoNet (Prepared training data); unpack both with "
                "`unzip -j FILE.zip '*.mat' -d {root}`",
            ),
        ),
        counts={"trainval": 30_914, "train": 29_368, "val": 1_546},
    ),
    "navi": Recipe(
        archives=(
            Archive(
                url="https://storage.googleapis.com/gresearch/navi-dataset/navi_v1.0.tar.gz",
                size=16_000_000_000,
                md5=None,
                use=add_navi,
                makes=NAVI_NOTE,
            ),
        ),
        counts={"train": None, "test": None},
        objects=34,
    ),
    **BOX_RECIPES,
}


def require_known(name: str) -> None:
    if name not in SETS:
        known = f"the known ones are {', '.join(SETS)}."
        raise UserError(f"data set {name!r} is unknown: {nearest(name, SETS, known)}")


def find_root(name: str, root: str | Path | None) -> Path:
    """The folder of a set; raises UserError where it is the user's own and not given or not laid out."""
    if name not in OWN:
        return data_root(root, SETS[name].folder)
    if root is None or not folders(Path(root) / "images"):
        what = "give --root DIR" if root is None else f"{root} has no folder images/SPLIT"
        raise UserError(f"{name}: {what}; the layout is {OWN[name]}.")
    return Path(root)


def own_targets(root: Path) -> tuple[str, ...]:
    """What an RGB-D folder has targets for: depth, and labels if they are there."""
    return ("depth", "labels") if (root / "labels").is_dir() else ("depth",)


def folders(path: Path) -> list[str]:
    return sorted(inner.name for inner in path.iterdir() if inner.is_dir()) if path.is_dir() else []
