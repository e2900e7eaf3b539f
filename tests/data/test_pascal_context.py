"""PASCAL Context: label maps painted by hand, run lengths as pycocotools writes them, and both sets from archives."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from siglip2_dense.contracts import IGNORE
from siglip2_dense.data.pascal_context import IDS, PascalContext, PascalContext459, decoded
from siglip2_dense.data.prepare import prepare
from siglip2_dense.data.recipes import RECIPES
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import CLASSES
from siglip2_dense.registry import DATASETS, build

SIZE = (6, 8)
Y, X = np.mgrid[:6, :8]
WRITTEN = {  # by pycocotools 2.0.11, for masks of 6 x 8
    "0`1": np.ones(SIZE, bool),
    "`1": np.zeros(SIZE, bool),
    "01_1": (Y == 0) & (X == 0),
    "01100010O0010O0010O0010O0010O0010O0010O000": (Y + X) % 2 == 0,
    "411010O10O21O00O00O17OI0010": np.random.default_rng(0).random(SIZE) < 0.4,
}
DISC = (  # the same of a disc with the radius 100 around (150, 260) in 375 x 500
    "oRk1m0e::F:H6I8I6K4K6K4L4L4L4L4L4M2M4M2M4M2N2M4M2N2N2M4M2N2N2N2N2N2N2N2N2O0O2N2N2N2O0O2N2N2O0O2N2O0O2N2O0O2O0O2O0O2O0"
    "O2O0O2O0O2O000O2O0O2O000O2O00000O2O000O2O0000000O2O0000000O2O000000000000000000000000000000000000000000000000000000"
    "01N100000001N100000001N10001N1000001N10001N101N10001N101N101N101N101N101N101N2N101N2N101N2N2N101N2N2N2N101N2N2N2N2N"
    "2N2N2N2N3L3N2N2N3L3N2N3L3N3L3N3L4L4L4L4L4L5J5L5J7H7J8F:FaTc1"
)


@pytest.mark.parametrize("counts", WRITTEN)
def test_run_lengths_as_pycocotools_writes_them(counts):
    assert np.array_equal(decoded(SIZE, counts), WRITTEN[counts])


def test_run_lengths_of_a_large_mask():
    y, x = np.mgrid[:375, :500]
    assert np.array_equal(decoded((375, 500), DISC), (y - 150) ** 2 + (x - 260) ** 2 < 100**2)
    assert decoded((375, 500), "0\\Sg5").all()


@pytest.mark.parametrize("counts", ["", "0", "0`1`1", "0`2", "00O0`1"])
def test_run_lengths_of_another_size_are_refused(counts):
    with pytest.raises(UserError, match=r"2008_000002: a segment has -?\d+ of 6x8 pixels"):
        decoded(SIZE, counts, "2008_000002")


def test_the_59_classes_are_those_names_among_the_459(test_data):
    names = json.loads((test_data / "openvocab_classnames/pc459.json").read_text())
    assert [names[number - 1] for number in IDS] == list(CLASSES["pascal_context"])


def _jpeg() -> bytes:
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(stream := io.BytesIO(), format="JPEG")
    return stream.getvalue()


def _write_tar(path, files, mode):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _segment(image, category, counts, size=SIZE):
    return {"image_id": image, "category_id": category, "segmentation": {"size": list(size), "counts": counts}}


def _annotations():
    """One image of train, two of val and one of test; their numbers are as in the file, the name without its line."""
    images = [
        {"image_id": int(name.replace("_", "")), "file_name": f"{name}.jpg", "phase": phase, "height": 6, "width": 8}
        for name, phase in (
            ("2008_000002", "val"), ("2008_000008", "train"), ("2010_001000", "val"), ("2009_000001", "test"),
        )
    ]  # fmt: skip
    segments = [
        _segment(2008000002, 2, "0`1"),  # aeroplane, everywhere
        _segment(2010001000, 458, "01_1"),  # wood, one corner
        _segment(2008000002, 458, "01100010O0010O0010O0010O0010O0010O0010O000"),  # wood, over it
        _segment(2008000002, 1, "01_1"),  # accordion, which is none of the 59
        _segment(2008000008, 0, "0`1"),
        _segment(2009000001, 2, "0`1"),
    ]
    return {"images": images, "annos_segmentation": segments, "annos_joints": [], "info": {}}


NAMES = ["2008_000002", "2008_000008", "2010_001000"]


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A server with the four files in their published layouts, which the recipes fetch."""
    server = tmp_path / "server"
    voc = {f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg": _jpeg() for name in (*NAMES, "2007_000027")}
    _write_tar(server / "VOCtrainval_03-May-2010.tar", voc, "w")
    (server / "trainval_merged.json").write_text(json.dumps(_annotations()))
    (server / "pascalcontext_val.txt").write_text("2008_000002\n2010_001000\n")
    labels = {}
    for name in NAMES:
        values = np.full(SIZE, 431, np.uint16)
        values[0, :3] = 1, 459, 256
        savemat(stream := io.BytesIO(), {"LabelMap": values}, do_compression=True)
        labels[f"trainval/{name}.mat"] = stream.getvalue()
    names = "".join(f"{number}: name{number}\n" for number in range(1, 460))
    _write_tar(server / "trainval.tar.gz", {"labels.txt": names.encode(), **labels}, "w:gz")
    for name, counts in (("pascal_context", {"train": 1, "val": 2}), ("pascal_context_459", {"val": 2})):
        recipe = RECIPES[name]
        local = []
        for archive in recipe.archives:
            path = server / archive.url.rpartition("/")[2]
            local.append(replace(archive, url=path.as_uri(), md5=hashlib.md5(path.read_bytes()).hexdigest()))
        monkeypatch.setitem(RECIPES, name, replace(recipe, archives=tuple(local), counts=counts))
    return server


def test_59_classes_by_hand(archives, tmp_path):
    """Later segments lie over earlier ones; where the last is none of the 59, nothing counts."""
    root = tmp_path / "data/VOCdevkit/VOC2010"
    assert prepare("pascal_context", root)
    val = PascalContext("val", root)
    assert [image for image, _ in val.entries] == ["JPEGImages/2008_000002.jpg", "JPEGImages/2010_001000.jpg"]
    expected = np.where((Y + X) % 2 == 0, 58, 0)
    expected[0, 0] = IGNORE
    assert np.array_equal(val[0].labels.numpy(), expected)
    assert (val.classes[58], val.classes[0]) == ("wood", "aeroplane")
    assert val[1].labels[0, 0] == 58 and (val[1].labels.flatten()[1:] == IGNORE).all()
    assert len(PascalContext("train", root)) == 1
    mask = Image.open(root / "SegmentationClassContext/2008_000002.png")
    assert mask.mode == "P" and mask.getpalette()[:6] == [0, 0, 0, 180, 120, 120]


def test_59_classes_are_read_as_mmsegmentation_reads_them(archives, tmp_path):
    from mmseg.datasets import PascalContextDataset59

    root = tmp_path / "VOC2010"
    assert prepare("pascal_context", root)
    theirs = PascalContextDataset59(
        data_root=str(root),
        ann_file="ImageSets/SegmentationContext/val.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext"),
        pipeline=[dict(type="mmseg.LoadAnnotations", _scope_="mmseg")],
    )
    ours = PascalContext("val", root)
    assert len(theirs) == len(ours) == 2
    for index in range(2):
        labels = theirs[index]["gt_seg_map"].astype(int)
        assert np.array_equal(np.where(labels == 255, IGNORE, labels), ours[index].labels.numpy())


def test_459_classes_by_hand(archives, tmp_path):
    root = tmp_path / "data/VOCdevkit/VOC2010"
    assert prepare("pascal_context_459", root)
    val = build(DATASETS, {"type": "PascalContext459", "split": "val", "root": str(root)})
    assert len(val) == 2 and len(val.classes) == 459 and val.classes[430] == "name431"
    assert val[0].labels[0, :4].tolist() == [0, 458, 255, 430]
    own = [f"own {number}" for number in range(459)]
    assert PascalContext459("val", root, classes=own).classes == tuple(own)
    assert Image.open(root / val.entries[0][1]).mode.startswith("I;16")
    assert prepare("pascal_context", root)  # the images are there
    with pytest.raises(UserError, match="pascal_context_459 has no split 'train': "):
        PascalContext459("train", root)


def test_what_was_interrupted_is_gone_on_with(archives, tmp_path):
    root = tmp_path / "VOC2010"
    assert prepare("pascal_context", root)
    own = root / "SegmentationClassContext/2010_001000.png"
    own.write_bytes((root / "SegmentationClassContext/2008_000008.png").read_bytes())
    (root / "ImageSets/SegmentationContext/val.txt").unlink()
    (root / "SegmentationClassContext/2008_000002.png").unlink()
    assert prepare("pascal_context", root)
    assert (PascalContext("val", root)[1].labels == IGNORE).all()  # it was left alone
    assert PascalContext("val", root)[0].labels.max() == 58


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("images"), r"not the annotations of PASCAL in Detail \(KeyError"),
        (lambda content: content["annos_segmentation"][0]["segmentation"].update(size=[5, 8]), "one of its segments"),
        (lambda content: content["annos_segmentation"][0]["segmentation"].update(counts="0"), r"2: a segment has 0 of"),
    ],
)
def test_annotations_that_are_wrong_are_named(archives, tmp_path, change, message):
    root = tmp_path / "VOC2010"
    assert prepare("pascal_context_459", root)
    content = _annotations()
    change(content)
    (root / "trainval_merged.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        prepare("pascal_context", root)


def test_archives_that_are_others_are_named(archives, tmp_path, monkeypatch):
    from siglip2_dense.data.pascal_context import add_context_459

    _write_tar(tmp_path / "other.tar.gz", {"trainval/a.mat": b"MATLAB"}, "w:gz")
    with pytest.raises(UserError, match=r"trainval/a\.mat holds no label map"):
        add_context_459(tmp_path / "other.tar.gz", tmp_path)
    _write_tar(tmp_path / "empty.tar.gz", {"readme": b"-"}, "w:gz")
    with pytest.raises(UserError, match=r"has no labels\.txt; it is another archive"):
        add_context_459(tmp_path / "empty.tar.gz", tmp_path)
    root = tmp_path / "VOC2010"
    assert prepare("pascal_context_459", root)
    (root / "SegmentationClassContext459/labels.txt").write_text("1: a\n3: c\n")
    with pytest.raises(UserError, match="expected label 2, a colon and its name, found '3: c'"):
        PascalContext459("val", root)


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path):
    for cls, name in ((PascalContext, "pascal_context"), (PascalContext459, "pascal_context_459")):
        with pytest.raises(UserError, match=f"run `siglip2-dense data prepare {name} --root {tmp_path}`"):
            cls("val", tmp_path)
