import io
import json
import tarfile
import zipfile
from dataclasses import replace
from hashlib import md5

import numpy as np
import pytest
from boxes_made import coco_content, lvis_content
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from siglip2_dense.data import conversion
from siglip2_dense.data import verify as module
from siglip2_dense.data.ade20k import ADE20K
from siglip2_dense.data.boxes.lvis import LVIS
from siglip2_dense.data.boxes.visual_genome import VisualGenome
from siglip2_dense.data.coco_stuff import COCOStuff
from siglip2_dense.data.download import unpack_files
from siglip2_dense.data.pascal import PascalVOC
from siglip2_dense.data.prepare import prepare
from siglip2_dense.data.recipes import RECIPES
from siglip2_dense.data.verify import verify
from siglip2_dense.errors import UserError

SIZE = (6, 8)


def _image(size=SIZE, turned=False) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    Image.fromarray(pixels).save(stream := io.BytesIO(), format="JPEG", exif=exif)
    return stream.getvalue()


def _labels(values, size=SIZE) -> bytes:
    Image.fromarray(np.resize(np.asarray(values, np.uint8), size)).save(stream := io.BytesIO(), format="PNG")
    return stream.getvalue()


def _mat(values) -> bytes:
    """A file of SBD: a structure of the mask, a cell array of the classes' boundaries, and the classes in it."""
    boundaries = np.empty((20, 1), object)
    boundaries[:] = [[csc_matrix(np.eye(*SIZE))] for _ in range(20)]
    classes = {"Segmentation": values, "Boundaries": boundaries, "CategoriesPresent": np.unique(values)}
    savemat(stream := io.BytesIO(), {"GTcls": classes}, do_compression=True)
    return stream.getvalue()


def _write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def _write_tar(path, files, mode):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _use(monkeypatch, name, counts, *paths):
    """Make the recipe fetch these files instead of the published ones."""
    recipe = RECIPES[name]
    archives = tuple(
        replace(archive, url=path.as_uri(), md5=md5(path.read_bytes()).hexdigest())
        for archive, path in zip(recipe.archives, paths, strict=True)
    )
    monkeypatch.setitem(RECIPES, name, replace(recipe, archives=archives, counts=counts))


ADE = {
    "images/training/a.jpg": _image(),
    "images/training/b.jpg": _image(),
    "images/validation/c.jpg": _image(),
    "annotations/training/a.png": _labels([0, 1, 150]),
    "annotations/training/b.png": _labels([3]),
    "annotations/validation/c.png": _labels([0]),
}


@pytest.fixture
def ade_zip(tmp_path, monkeypatch):
    path = tmp_path / "server/ADEChallengeData2016.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in ADE.items():
            archive.writestr(f"ADEChallengeData2016/{name}", content)
    _use(monkeypatch, "ade20k", {"train": 2, "val": 1}, path)
    return path


@pytest.fixture
def ade(tmp_path, monkeypatch):
    _write(tmp_path / "ade", ADE)
    monkeypatch.setitem(RECIPES, "ade20k", replace(RECIPES["ade20k"], counts={"train": 2, "val": 1}))
    return tmp_path / "ade"


@pytest.fixture
def pascal_archives(tmp_path, monkeypatch):
    """VOC has t1, t2 and v1; SBD has t1, v1 and, in two lists, e1 and e2."""
    lists = {"train": "t2\nt1\n", "val": "v1\n"}
    voc = {f"JPEGImages/{name}.jpg": _image() for name in ("t1", "t2", "v1", "e1", "e2", "unused")}
    voc |= {f"SegmentationClass/{name}.png": _labels([0, 255, 20]) for name in ("t1", "t2", "v1")}
    voc |= {f"ImageSets/Segmentation/{split}.txt": names.encode() for split, names in lists.items()}
    sbd = {f"cls/{name}.mat": _mat(np.full(SIZE, i, np.uint8)) for i, name in enumerate(("t1", "v1", "e1", "e2"))}
    sbd |= {"train.txt": b"e2\nt1\n", "val.txt": b"v1\ne1\n", "img/e1.jpg": b"-", "inst/e1.mat": b"-"}
    paths = tmp_path / "server/VOCtrainval.tar", tmp_path / "server/benchmark.tgz"
    _write_tar(paths[0], {f"VOCdevkit/VOC2012/{name}": content for name, content in voc.items()}, "w")
    _write_tar(paths[1], {f"benchmark_RELEASE/dataset/{name}": content for name, content in sbd.items()}, "w:gz")
    _use(monkeypatch, "pascal", {"train": 4, "val": 1}, *paths)
    return paths


@pytest.fixture
def coco_zips(tmp_path, monkeypatch):
    paths = [tmp_path / f"server/{name}.zip" for name in ("train2017", "val2017", "stuffthingmaps_trainval2017")]
    maps = {f"{split}2017/{name}.png": _labels([0, 181, 255]) for split, name in (("train", "9"), ("val", "139"))}
    contents = {"train2017/9.jpg": _image()}, {"val2017/139.jpg": _image()}, maps
    for path, files in zip(paths, contents, strict=True):
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    _use(monkeypatch, "coco_stuff", {"train": 1, "val": 1}, *paths)
    return paths


def test_the_published_archives():
    counts = {name: recipe.counts for name, recipe in RECIPES.items()}
    assert counts["ade20k"] == {"train": 20210, "val": 2000}
    assert counts["pascal"] == {"train": 10582, "val": 1449}
    assert counts["ade20k_full"] == {"val": 2000}
    assert counts["pascal_context"] == {"train": 4996, "val": 5104} and counts["pascal_context_459"] == {"val": 5104}
    assert counts["coco_stuff"] == {"train": 118287, "val": 5000}
    assert counts["nyuv2"] == {"train": 24231, "test": 654} and counts["nyuv2_labelled"] == {"train": 795, "test": 654}
    assert counts["nyuv2_geonet"] == {"trainval": 30914, "train": 29368, "val": 1546}
    assert RECIPES["navi"].objects == 34
    assert counts["coco"] == counts["coco_stuff"] and counts["lvis"] == {"train": 100170, "val": 19809}
    assert counts["objects365_v1"] == {"train": 608606, "val": 30000} and counts["visual_genome"] == {"train": 108077}
    assert counts["objects365"] == {"train": 1742289, "val": 80000}
    archives = {archive for recipe in RECIPES.values() for archive in recipe.archives}
    checksums = {archive.md5[:6] for archive in archives if archive.md5}
    assert checksums == {
        "7328b3", "6cd6e1", "82b4d8", "da4599", "3c2d0c", "cec0bc", "cced6f", "442b8d", "520609", "08e3c3", "a390ad",
        "97fc4d", "f4bbac",
    }  # fmt: skip


def test_ade20k_is_fetched_and_laid_out(ade_zip, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", str(tmp_path / "data"))
    assert prepare("ade20k")
    assert len(ADE20K("train")) == 2 and ADE20K("val")[0].labels.max() == -1
    assert f"The archives in {tmp_path}/data/downloads are no longer needed" in capsys.readouterr().out
    ade_zip.unlink()
    assert prepare("ade20k")  # nothing is fetched again


def test_another_root_may_have_any_name(ade_zip, tmp_path):
    assert prepare("ade20k", tmp_path / "elsewhere/scenes")
    assert len(ADE20K("train", tmp_path / "elsewhere/scenes")) == 2


def test_a_root_that_holds_something_else_is_left_alone(ade_zip, tmp_path):
    _write(tmp_path / "scenes", {"thesis.txt": b"-"})
    with pytest.raises(UserError, match="scenes holds other files already; move them away"):
        prepare("ade20k", tmp_path / "scenes")
    assert [path.name for path in (tmp_path / "scenes").iterdir()] == ["thesis.txt"]


def test_pascal_is_joined_from_two_archives(pascal_archives, tmp_path):
    root = tmp_path / "data/VOCdevkit/VOC2012"
    assert prepare("pascal", root)
    assert (root / "ImageSets/Segmentation/aug.txt").read_text() == "e1\ne2\n"
    mask = Image.open(root / "SegmentationClassAug/e2.png")
    assert mask.mode == "P" and np.unique(mask).tolist() == [3] and mask.getpalette()[9:12] == [128, 128, 0]
    train = PascalVOC("train", root)
    assert [labels for _, labels in train.entries][1:3] == ["SegmentationClass/t2.png", "SegmentationClassAug/e1.png"]
    assert train[2].labels.unique().tolist() == [2]


def test_coco_stuff_is_joined_from_three_archives(coco_zips, tmp_path, capsys):
    root = tmp_path / "data/coco"
    coco_zips[1].rename(tmp_path / "later.zip")
    with pytest.raises(UserError, match=r"val2017\.zip"):
        prepare("coco_stuff", root)
    (tmp_path / "later.zip").rename(coco_zips[1])
    coco_zips[0].unlink()  # what is laid out already is not fetched again
    assert prepare("coco_stuff", root)
    assert sorted(path.name for path in root.iterdir()) == ["stuffthingmaps", "train2017", "val2017"]
    assert COCOStuff("val", root)[0].labels.unique().tolist() == [-1, 0, 170]
    (root / "stuffthingmaps/train2017/9.png").unlink()
    assert not verify("coco_stuff", root)
    assert f"9.jpg has no labels, looked for {root}/stuffthingmaps/train2017/9.png; move" in capsys.readouterr().out


def _zip(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, bytes) else json.dumps(content))
    return path


BOX = [(9, 7, [1, 1, 3, 3]), (9, 3, [0, 0, 2, 2], {"iscrowd": 1})]


def _instances(number):
    """COCO's annotations of one image."""
    content = coco_content([(number, *rest) for _, *rest in BOX], images=1, size=SIZE)
    content["images"][0] |= {"id": number, "file_name": f"{number:012d}.jpg"}
    return content


@pytest.fixture
def coco_boxes(tmp_path, monkeypatch):
    images = {split: _zip(tmp_path / f"server/{split}2017.zip", {f"{split}2017/{n:012d}.jpg": _image()})
              for split, n in (("train", 9), ("val", 139))}  # fmt: skip
    known = {f"annotations/instances_{split}2017.json": _instances(n) for split, n in (("train", 9), ("val", 139))}
    known |= {"annotations/captions_val2017.json": {}}
    annotations = _zip(tmp_path / "server/annotations.zip", known)
    _use(monkeypatch, "coco", {"train": 1, "val": 1}, *images.values(), annotations)
    return images


def test_coco_and_lvis_share_their_images(coco_boxes, tmp_path, monkeypatch, capsys):
    root = tmp_path / "data/coco"
    assert prepare("coco", root)
    assert sorted(path.name for path in (root / "annotations").iterdir()) == [
        "instances_train2017.json",
        "instances_val2017.json",
    ]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "1", "1", "1", "0"] in lines and ["train", "1", "1.0", "0", "1", "1"] in lines
    assert ["train:", "1", "boxes", "around", "crowds", "are", "not", "learnt", "from"] in lines

    lvis = lvis_content([(1, 7, [1, 1, 3, 3])], {}, {}, 1, SIZE, folder="train2017")
    lvis["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/000000000009.jpg"
    files = [_zip(tmp_path / f"server/lvis_v1_{s}.json.zip", {f"lvis_v1_{s}.json": lvis}) for s in ("train", "val")]
    _use(monkeypatch, "lvis", {"train": 1, "val": 1}, *coco_boxes.values(), *files)
    for path in coco_boxes.values():
        path.unlink()  # the images are there already
    assert prepare("lvis", root) and LVIS("val", root)[0].path == f"{root}/train2017/000000000009.jpg"


@pytest.mark.parametrize("everything", [False, True])
def test_problems_of_boxes_are_named(coco_boxes, tmp_path, everything, capsys):
    root = tmp_path / "coco"
    assert prepare("coco", root)
    (root / "val2017/000000000139.jpg").unlink()
    (root / "train2017/000000000009.jpg").write_bytes(_image((6, 9)))
    assert not verify("coco", root, everything)
    told = capsys.readouterr().out
    assert f"instances_val2017.json lists {root}/val2017/000000000139.jpg, which is not there; move" in told
    assert "000000000009.jpg is 6x9 pixels (height x width) but 6x8 in" in told
    (root / "annotations/instances_train2017.json").write_text("{")
    assert not verify("coco", root)
    assert "instances_train2017.json: cut off, or not JSON" in capsys.readouterr().out


def test_visual_genome_is_joined_from_four_archives(tmp_path, monkeypatch):
    known = [{"image_id": i, "width": 8, "height": 6, "url": f"https://x/{folder}/{i}.jpg", "coco_id": None}
             for i, folder in ((1, "VG_100K"), (2, "VG_100K_2"))]  # fmt: skip
    things = [{"image_id": 1, "objects": [{"names": ["tree"], "x": 0, "y": 0, "w": 3, "h": 3}]}]
    paths = [
        _zip(tmp_path / "server/images.zip", {"VG_100K/1.jpg": _image()}),
        _zip(tmp_path / "server/images2.zip", {"VG_100K_2/2.jpg": _image()}),
        _zip(tmp_path / "server/image_data.json.zip", {"image_data.json": known}),
        _zip(tmp_path / "server/objects.json.zip", {"objects.json": things}),
    ]
    _use(monkeypatch, "visual_genome", {"train": 2}, *paths)
    assert prepare("visual_genome", tmp_path / "vg")
    assert [len(VisualGenome("train", tmp_path / "vg")[i].boxes) for i in (0, 1)] == [1, 0]


def test_objects365_has_to_be_fetched(tmp_path):
    with pytest.raises(UserError, match=r"700 GB.* so that .*annotations/zhiyuan_objv2_train\.json is a file, and run"):
        prepare("objects365", tmp_path)


def test_an_archive_without_the_file_is_another_one(tmp_path):
    path = _zip(tmp_path / "a.zip", {"b.json": {}})
    with pytest.raises(UserError, match=r"a\.zip has no file c\.json: it is another archive"):
        unpack_files(path, tmp_path, {"c.json": "."})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="damaged, or not an archive"):
        unpack_files(path, tmp_path, {"b.json": "."})
    assert not (tmp_path / "b.json").exists()


def test_an_interrupted_conversion_is_gone_on_from(pascal_archives, tmp_path, monkeypatch):
    root, write = tmp_path / "VOC2012", conversion._write_mask

    def stop(path, content):
        if path.stem == "e1":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(conversion, "_write_mask", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare("pascal", root)
    assert not (root / "ImageSets/Segmentation/aug.txt").exists()
    written = []
    monkeypatch.setattr(
        conversion, "_write_mask", lambda path, content: (written.append(path.stem), write(path, content))
    )
    assert prepare("pascal", root) and written == ["e1", "e2"]


def test_sbd_without_its_lists_is_another_archive(pascal_archives, tmp_path):
    _write_tar(tmp_path / "other.tgz", {"dataset/cls/e1.mat": _mat(np.zeros(SIZE, np.uint8))}, "w:gz")
    with pytest.raises(UserError, match=r"other\.tgz has no lists dataset/train\.txt and val\.txt"):
        conversion.add_sbd(tmp_path / "other.tgz", tmp_path)


def test_sets_that_are_not_fetched(capsys):
    assert prepare("generated") and verify("generated")
    assert "nothing to prepare" in capsys.readouterr().out
    for name, part in (("folder", r"classes\.txt"), ("rgbd", r"intrinsics\.txt")):
        with pytest.raises(UserError, match=rf"not downloaded: lay it out as DIR/.*{part}.*verify {name} --root"):
            prepare(name)
    for function in (prepare, verify):
        with pytest.raises(UserError, match=r"data set 'ade20' is unknown: did you mean 'ade20k'"):
            function("ade20")


def test_a_whole_set_is_well(ade, capsys):
    assert verify("ade20k", ade)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ade20k in {ade}" and lines[2].split() == ["train", "2", "2", "2", "0"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"images/training/d.jpg": _image()},
            "d.jpg has no labels, looked for {ade}/annotations/training/d.png; move",
        ),
        ({"annotations/training/a.png": _labels(1, (8, 6))}, "a.jpg is 6x8 pixels (height x width) but its labels, "),
        (
            {"annotations/training/b.png": _labels([151])},
            "b.png: holds the label 151, but ade20k has 150 classes, 1 to ",
        ),
        ({"annotations/training/b.png": b"<html>"}, "annotations/training/b.png: not a readable image"),
        ({"images/training/b.jpg": _image()[:-40]}, "images/training/b.jpg: truncated or not a readable image"),
        (
            {"images/validation/d.jpg": _image(), "annotations/validation/d.png": _labels([1])},
            "val: 2 images instead of 1; move {ade} away and run `siglip2-dense data prepare ade20k --root {ade}`.",
        ),
    ],
    ids=["missing labels", "wrong size", "bad value", "no image", "truncated", "wrong count"],
)
def test_each_problem_is_named(ade, change, problem, capsys):
    _write(ade, change)
    assert not verify("ade20k", ade)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert any(problem.format(ade=ade) in line for line in told)
    assert len(told) == (2 if "d.jpg" in problem else 1)  # an image without labels is one too many as well


def test_a_root_that_is_missing_is_named_once(tmp_path, capsys):
    assert not verify("pascal", tmp_path / "no")
    out = capsys.readouterr().out
    assert out.count("problem: ") == 1 and f"prepare pascal --root {tmp_path}/no`" in out


def test_a_listed_image_that_is_not_there_is_named(pascal_archives, tmp_path, capsys):
    assert prepare("pascal", tmp_path / "VOC2012")
    (tmp_path / "VOC2012/JPEGImages/e1.jpg").unlink()
    assert not verify("pascal", tmp_path / "VOC2012")
    assert "JPEGImages/e1.jpg is listed but not there; move" in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path):
    """Labels 0, 1 and 9 in equal parts; an image that is stored on its side."""
    root = tmp_path / "mine"
    files = {f"images/train/{i}.jpg": _image() for i in range(10)}
    files |= {f"labels/train/{i}.png": _labels([0, 1, 9]) for i in range(10)}
    _write(root, files | {"images/train/5.jpg": _image(SIZE[::-1], turned=True), "classes.txt": b"sky\nroad\n"})
    return root


def test_a_folder_shows_its_classes_shares(folder, capsys):
    assert verify("folder", folder, ignore=[9])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "10", "-", "10", "0"] in lines
    assert ["sky", "33.33"] in lines and ["road", "33.33"] in lines and ["not", "counted", "33.33"] in lines


def test_a_sample_is_spread_evenly_and_all_are_all(folder, monkeypatch, capsys):
    monkeypatch.setattr(module, "SAMPLE", 5)
    _write(folder, {"labels/train/1.png": _labels([7])})
    assert verify("folder", folder, ignore=[9])  # it reads 0, 2, 4, 6 and 8
    assert not verify("folder", folder, ignore=[9], everything=True)
    _write(folder, {"labels/train/1.png": _labels([0], (3, 3))})
    assert not verify("folder", folder, ignore=[9])  # sizes are compared for all
    assert "3x3" in capsys.readouterr().out


def test_many_problems_are_counted(folder, capsys):
    assert not verify("folder", folder)
    out = capsys.readouterr().out
    assert out.count("holds the label 9, but mine has 2 classes") == 5 and "… and 5 more of train" in out


def test_a_folder_needs_a_root_with_its_layout(tmp_path):
    with pytest.raises(UserError, match="folder: give --root DIR; the layout is DIR/images/SPLIT"):
        verify("folder")
    with pytest.raises(UserError, match=rf"{tmp_path} has no folder images/SPLIT; the layout"):
        verify("folder", tmp_path)
    with pytest.raises(UserError, match=r"rgbd: give --root DIR; the layout is .* 16 bits, millimetres"):
        verify("rgbd")


def test_an_option_that_a_set_does_not_have_is_named(folder, capsys):
    assert not verify("folder", folder, invalid=[9])
    assert "problem: ImageFolder has no setting 'invalid'" in capsys.readouterr().out


def _depth(values, size=SIZE) -> bytes:
    Image.fromarray(np.resize(np.asarray(values, np.uint16), size)).save(stream := io.BytesIO(), format="PNG")
    return stream.getvalue()


CAMERA = b"5 0 4\n0 5 3\n0 0 1\n"


@pytest.fixture
def rgbd(tmp_path):
    """Depth of 1, 2 and 4 m and none, in equal parts, and of 3 m alone."""
    files = {f"images/train/{name}.jpg": _image() for name in "ab"} | {"images/val/c.jpg": _image()}
    files |= {f"depth/{name}.png": _depth([0, 1000, 2000, 4000]) for name in ("train/a", "val/c")}
    _write(tmp_path / "captures", files | {"depth/train/b.png": _depth([3000]), "intrinsics.txt": CAMERA})
    return tmp_path / "captures"


def test_depth_of_one_s_own_is_summed_up(rgbd, capsys):
    assert verify("rgbd", rgbd)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "2", "-", "2", "0"] in lines
    assert ["train", "87.5", "1.000", "2.500", "4.000"] in lines  # of the medians 2 and 3
    assert ["val", "75.0", "1.000", "2.000", "4.000"] in lines
    assert ["camera,", "pixels:", "fx", "5.0,", "fy", "5.0,", "cx", "4.0,", "cy", "3.0"] in lines
    assert verify("rgbd", rgbd, scale=500.0, invalid=[4000])
    assert ["val", "50.0", "2.000", "3.000", "4.000"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_labels_beside_depth_are_summed_up_too(rgbd, capsys):
    labels = {f"labels/{name}.png": _labels([0, 1, 1, 9]) for name in ("train/a", "train/b", "val/c")}
    _write(rgbd, labels | {"classes.txt": b"sky\nroad\n"})
    assert verify("rgbd", rgbd, ignore=[9])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sky", "25.00", "25.00"] in lines and ["road", "50.00", "50.00"] in lines


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"depth/val/c.png": _depth([1, 65535])}, "c.png: holds 65535, the greatest number of 16 bits, in 24 pixels, "),
        ({"depth/val/c.png": _labels([1])}, "depth/val/c.png: holds L pixels, not depth; save"),
        ({"depth/val/c.png": _depth([0])}, "depth/val/c.png: has no depth at any pixel"),
        ({"depth/val/c.png": _depth([1], (8, 6))}, "c.jpg is 6x8 pixels (height x width) but its depth, "),
        ({"images/val/d.jpg": _image()}, "d.jpg has no depth, looked for {root}/depth/val/d.png; add the file or"),
        ({"intrinsics.txt": b"5 0 40\n0 5 3\n0 0 1"}, "intrinsics.txt: the camera's axis is at column 40"),
        ({"intrinsics.txt": b"5 0 4"}, "numbers instead of 3x3"),
    ],
    ids=["marker", "8 bits", "no depth", "size", "missing", "other camera", "no camera"],
)
@pytest.mark.parametrize("everything", [False, True])
def test_each_problem_of_depth_is_named(rgbd, change, problem, everything, capsys):
    _write(rgbd, change)
    assert not verify("rgbd", rgbd, everything)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert any(problem.format(root=rgbd) in line for line in told)


def test_all_headers_of_depth_are_looked_at(rgbd, monkeypatch, capsys):
    monkeypatch.setattr(module, "SAMPLE", 1)
    _write(rgbd, {"depth/train/b.png": _labels([1])})
    assert not verify("rgbd", rgbd)
    assert "train/b.png: holds L pixels, not depth" in capsys.readouterr().out


def test_a_marker_that_is_named_is_well(rgbd):
    _write(rgbd, {"depth/val/c.png": _depth([1, 65535])})
    assert verify("rgbd", rgbd, invalid=65535)


def test_camvid_is_well(real, monkeypatch, capsys):
    monkeypatch.setattr(module, "SAMPLE", 101)
    assert verify("folder", real("camvid"), ignore=[11])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "367", "-", "101", "0"] in lines
    val = {line[0]: float(line[-1]) for line in lines if line and line[0] in ("road", "car")}
    assert val == {"road": 28.95, "car": 1.75}  # all of val were read; from its README
