import ast
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from siglip2_dense.contracts import IGNORE, Sample
from siglip2_dense.data.ade20k import ADE20K
from siglip2_dense.data.base import PixelDataset, data_root
from siglip2_dense.data.coco_stuff import COCOStuff
from siglip2_dense.data.folder import ImageFolder
from siglip2_dense.data.generated import GeneratedBoxes, GeneratedScenes
from siglip2_dense.data.pascal import PascalVOC
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build

DATA = Path(os.environ.get("SIGLIP2_DENSE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
SIZE = (6, 8)  # height, width


def _write_image(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _write_labels(path, values, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8), mode="P" if palette else "L")
    if palette:
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    image.save(path)


def _filled(value, size=SIZE):
    return np.full(size, value, np.uint8)


@pytest.fixture
def ade(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split, names in (("training", "ba"), ("validation", "c")):
        for name in names:
            _write_image(root / f"images/{split}/{name}.jpg")
            labels = _filled(150)
            labels[0, :3] = 0, 1, 2
            _write_labels(root / f"annotations/{split}/{name}.png", labels)
    return root


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    lists = {"train": "t2 t1", "aug": "a2 a1", "trainaug": "t1 t2 a1 a2", "val": "v1"}
    for name, members in lists.items():
        path = root / f"ImageSets/Segmentation/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(members.split()) + "\n")
    for name in ("t1", "t2", "a1", "a2", "v1"):
        _write_image(root / f"JPEGImages/{name}.jpg")
        _write_labels(root / f"SegmentationClassAug/{name}.png", _filled(7))  # SBD has no borders
    for name in ("t1", "t2", "v1"):
        labels = _filled(0)
        labels[2:4, 2:5], labels[1, :], labels[:, 1] = 20, 255, 255
        _write_labels(root / f"SegmentationClass/{name}.png", labels, palette=True)
    return root


@pytest.fixture
def coco(tmp_path):
    """The layout of the published archives; one image of train with every number that its label files may hold."""
    root = tmp_path / "coco"
    numbers = np.resize(np.array([*range(182), 255], np.uint8), (16, 12))
    for split, name in (("train", "000000000009"), ("train", "000000000025"), ("val", "000000000139")):
        _write_image(root / f"{split}2017/{name}.jpg", numbers.shape)
        _write_labels(root / f"stuffthingmaps/{split}2017/{name}.png", numbers)
    return root


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "mine"
    for name in ("one", "two"):
        _write_image(root / f"images/train/{name}.jpg")
        labels = _filled(1)
        labels[0, :3] = 0, 11, 255
        _write_labels(root / f"labels/train/{name}.png", labels)
    (root / "classes.txt").write_text("0\tsky\n1\troad\n")
    return root


def test_ade20k_labels_are_shifted_and_other_does_not_count(ade):
    train, val = ADE20K("train", ade), ADE20K("val", ade)
    assert [image for image, _ in train.entries] == ["images/training/a.jpg", "images/training/b.jpg"]
    assert len(val) == 1 and len(train.classes) == 150
    sample = train[0]
    assert sample.image.shape == (3, *SIZE) and sample.image.dtype == torch.uint8 and sample.image.is_contiguous()
    assert sample.labels.dtype == torch.int64
    assert sample.labels[0, :4].tolist() == [IGNORE, 0, 1, 149]
    assert sample.path == str(ade / "images/training/a.jpg")
    assert sample.original_size == SIZE and train[1].index == 1


def test_ade20k_agrees_with_mmsegmentation_on_every_label(tmp_path):
    from mmseg.datasets.transforms import LoadAnnotations

    values = np.stack([np.arange(151), np.arange(151)[::-1]])
    _write_image(tmp_path / "images/training/a.jpg", values.shape)
    _write_labels(tmp_path / "annotations/training/a.png", values)
    info = {"seg_map_path": str(tmp_path / "annotations/training/a.png"), "reduce_zero_label": True, "seg_fields": []}
    theirs = LoadAnnotations()(info)["gt_seg_map"].astype(int)
    theirs[theirs == 255] = IGNORE
    assert np.array_equal(ADE20K("train", tmp_path)[0].labels.numpy(), theirs)


def test_a_label_beyond_the_classes_is_named_as_the_file_has_it(ade):
    path = ade / "annotations/training/b.png"
    _write_labels(path, _filled(151))
    data = ADE20K("train", ade)
    assert data[0].labels.max() == 149
    with pytest.raises(UserError, match=rf"{path}: holds the label 151, but ade20k has 150 classes, 1 to 150; correct"):
        data[1]


def test_an_image_and_labels_of_two_sizes_are_both_named(ade):
    _write_labels(ade / "annotations/training/a.png", _filled(1, (8, 6)))
    with pytest.raises(UserError, match=r"images/training/a\.jpg is 6x8 pixels .* labels, .*a\.png, are 8x6; replace"):
        ADE20K("train", ade)[0]


def test_missing_labels_are_named_with_their_image(ade):
    (ade / "annotations/training/a.png").unlink()
    with pytest.raises(
        UserError, match=r"images/training/a\.jpg has no labels, looked for .*annotations/training/a\.png"
    ):
        ADE20K("train", ade)


def test_a_missing_root_says_where_and_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=rf"{tmp_path}/no; run `siglip2-dense data prepare ade20k --root {tmp_path}/no`"
    ):
        ADE20K("train", tmp_path / "no")
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", str(tmp_path))
    with pytest.raises(
        UserError, match=rf"looked in {tmp_path}/VOCdevkit/VOC2012; run `siglip2-dense data prepare pas"
    ):
        PascalVOC("val")


def test_an_empty_split_says_where_and_what_explains(ade):
    for path in [*ade.glob("images/validation/*"), *ade.glob("annotations/validation/*")]:
        path.unlink()
    with pytest.raises(UserError, match=r"no images of split 'val', looked in .*ADE.*siglip2-dense data verify ade20k"):
        ADE20K("val", ade)


def test_an_unknown_split_names_the_nearest(ade):
    with pytest.raises(UserError, match=r"ade20k has no split 'training': did you mean 'train'"):
        ADE20K("training", ade)


def test_the_data_root(monkeypatch):
    monkeypatch.delenv("SIGLIP2_DENSE_DATA", raising=False)
    assert data_root(None, "set") == Path("data/set")
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", "/sets")
    assert data_root(None, "set") == Path("/sets/set")
    assert data_root("/mine", "set") == Path("/mine")


def test_pascal_trains_on_its_own_masks_and_then_on_those_of_sbd(voc):
    data = PascalVOC("train", voc)
    assert [labels for _, labels in data.entries] == [
        "SegmentationClass/t1.png",
        "SegmentationClass/t2.png",
        "SegmentationClassAug/a1.png",
        "SegmentationClassAug/a2.png",
    ]
    assert PascalVOC("val", voc).entries == [("JPEGImages/v1.jpg", "SegmentationClass/v1.png")]
    assert PascalVOC("train_voc", voc).entries == data.entries[:2]


def test_pascal_borders_do_not_count_and_background_does(voc):
    own, sbd = PascalVOC("train", voc)[0], PascalVOC("train", voc)[2]
    assert sorted(own.labels.unique().tolist()) == [IGNORE, 0, 20]
    assert (own.labels[1] == IGNORE).all() and (own.labels[:, 1] == IGNORE).all()
    assert own.labels[2:4, 2:5].unique().tolist() == [20]
    assert sbd.labels.unique().tolist() == [7]


def test_voc20_counts_the_objects_alone(voc):
    data = PascalVOC("train", voc, background=False)
    assert data.name == "voc20" and data.classes[0] == "aeroplane" and len(data.classes) == 20
    assert sorted(data[0].labels.unique().tolist()) == [IGNORE, 19]
    assert (data[0].labels[2:4, 2:5] == 19).all() and int((data[0].labels == 19).sum()) == 6
    assert data[2].labels.unique().tolist() == [6]
    assert PascalVOC("train", voc)[2].labels.unique().tolist() == [7]  # one set leaves the other as it is
    path = voc / "SegmentationClass/v1.png"
    _write_labels(path, _filled(21))
    with pytest.raises(UserError, match=rf"{path}: holds the label 21, but voc20 has 20 classes, 1 to 20; correct"):
        PascalVOC("val", voc, background=False)[0]


def test_voc20_is_prepared_as_pascal(tmp_path):
    with pytest.raises(UserError, match=r"voc20 is not there or not complete, .*run `siglip2-dense data prepare pas"):
        PascalVOC("val", tmp_path / "no", background=False)


def test_coco_stuff_agrees_with_mmsegmentation_on_every_label(coco):
    table = _mmsegmentation_s_table()
    sample = COCOStuff("train", coco)[0]
    numbers = np.array(Image.open(coco / "stuffthingmaps/train2017/000000000009.png"))
    ours = {int(number): int(sample.labels[numbers == number].unique()) for number in np.unique(numbers)}
    assert sample.labels.dtype == torch.int64 and table.pop(255) == 255
    assert {number: label for number, label in ours.items() if label != IGNORE} == table
    unused = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    assert {number for number, label in ours.items() if label == IGNORE} == unused | {255}
    assert set(ours.values()) == set(range(-1, 171))


def _mmsegmentation_s_table() -> dict[int, int]:
    """What the converter that comes with mmsegmentation makes of the numbers in COCO-Stuff's files."""
    import mmseg

    path = Path(mmseg.__file__).parent / ".mim/tools/dataset_converters/coco_stuff164k.py"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "clsID_to_trID":
            return ast.literal_eval(node.value)


def test_coco_stuff_s_names_are_those_of_its_numbers(coco):
    """By hand: COCO's ids are 1 person, 90 toothbrush, 92 banner and 182 wood; the files hold one less."""
    data = COCOStuff("val", coco)
    labels = data[0].labels.flatten()
    assert [data.classes[labels[number]] for number in (0, 89, 91, 181)] == ["person", "toothbrush", "banner", "wood"]
    assert labels[182] == IGNORE  # where the file has 255


def test_coco_stuff_is_found_in_its_published_layout(coco):
    converted = "stuffthingmaps/train2017/000000000009_labelTrainIds.png"  # mmsegmentation's copies lie beside
    _write_labels(coco / converted, _filled(3))
    assert COCOStuff("train", coco).entries == [
        (f"train2017/{name}.jpg", f"stuffthingmaps/train2017/{name}.png") for name in ("000000000009", "000000000025")
    ]
    assert len(COCOStuff("val", coco)) == 1


@pytest.mark.parametrize("number", [182, 254])
def test_a_number_that_coco_stuff_does_not_have_is_named(coco, number):
    path = coco / "stuffthingmaps/val2017/000000000139.png"
    _write_labels(path, _filled(number, (16, 12)))
    with pytest.raises(UserError, match=rf"{path}: holds the label {number}, but COCO-Stuff's are 0 to 181, and 255 f"):
        COCOStuff("val", coco)[0]


def test_a_listed_image_that_is_not_there_is_named(voc):
    (voc / "JPEGImages/v1.jpg").unlink()
    with pytest.raises(UserError, match=r"JPEGImages/v1\.jpg is listed but not there; run `siglip2-dense data verify"):
        PascalVOC("val", voc)


def test_a_folder_with_several_labels_that_do_not_count(folder):
    data = ImageFolder(folder, "train", ignore=[11, 255])
    assert data.classes == ("sky", "road") and data.name == "mine"
    assert data[1].labels[0, :4].tolist() == [0, IGNORE, IGNORE, 1]


def test_a_class_list_that_is_too_short_is_named(folder):
    with pytest.raises(UserError, match=r"labels/train/one\.png: holds the label 11, but mine has 2 classes, 0 to 1;"):
        ImageFolder(folder, "train", ignore=255)[0]
    with pytest.raises(
        UserError, match=r"holds the label 1, but mine has 1 classes, 0 to 0; correct the file, the class"
    ):
        ImageFolder(folder, "train", classes=["sky"], ignore=[11, 255])[0]


def test_folders_of_other_names_and_layouts(folder):
    (folder / "images").rename(folder / "rgb")
    data = ImageFolder(folder, "train", ignore=[11, 255], images="rgb/{split}")
    assert data.files(data.entries[0]) == [folder / "rgb/train/one.jpg", folder / "labels/train/one.png"]
    with pytest.raises(UserError, match=r"looked in .*mine/images/train; put the images in images/train, PNG labels"):
        ImageFolder(folder, "train")


def test_255_is_a_class_where_there_are_so_many(tmp_path):
    """With 256 classes it is the last; what then does not count is the greatest number of 16 bits."""
    labels = np.full(SIZE, 255, np.uint16)
    labels[0, :3] = 0, 254, 65535
    _write_image(tmp_path / "images/train/a.png")
    (tmp_path / "labels/train").mkdir(parents=True)
    Image.fromarray(labels).save(tmp_path / "labels/train/a.png")
    names = [f"class {i}" for i in range(300)]
    sample = ImageFolder(tmp_path, "train", classes=names)[0]
    assert sample.labels[0, :4].tolist() == [0, 254, IGNORE, 255]
    labels[labels == 65535] = 0
    Image.fromarray(labels).save(tmp_path / "labels/train/a.png")
    assert ImageFolder(tmp_path, "train", classes=names[:255])[0].labels[0, :4].tolist() == [0, 254, 0, IGNORE]
    assert ImageFolder(tmp_path, "train", classes=names, ignore=255)[0].labels[1, 1] == IGNORE


def test_a_folder_needs_class_names(folder):
    (folder / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"looked in .*mine/classes\.txt; put"):
        ImageFolder(folder, "train")


def test_hidden_files_and_other_files_do_not_count(folder):
    for name in ("._one.jpg", "notes.txt", "Thumbs.db"):
        (folder / "images/train" / name).write_text("")
    assert len(ImageFolder(folder, "train")) == 2


def test_camvid_has_the_published_split():
    if not (DATA / "camvid").is_dir():
        pytest.skip(f"no camvid in {DATA}; set SIGLIP2_DENSE_TEST_DATA")
    sets = {split: ImageFolder(DATA / "camvid", split, ignore=11) for split in ("train", "val", "test")}
    assert {split: len(data) for split, data in sets.items()} == {"train": 367, "val": 101, "test": 233}
    assert sets["val"].classes[3] == "road" and len(sets["val"].classes) == 11
    labels = torch.stack([sets["val"][i].labels for i in range(0, 101, 5)])
    assert labels.shape[1:] == (360, 480)
    assert abs((labels == 3).float().mean() - 0.2895) < 0.02  # share of road in its README
    assert 0 < (labels == IGNORE).float().mean() < 0.04


def test_the_fingerprint_follows_names_and_sizes(folder):
    first = ImageFolder(folder, "train").fingerprint()
    assert first == ImageFolder(folder, "train").fingerprint() and len(first) == 64
    _write_image(folder / "images/train/one.jpg", (16, 16))
    second = ImageFolder(folder, "train").fingerprint()
    (folder / "images/train/two.jpg").rename(folder / "images/train/three.jpg")
    (folder / "labels/train/two.png").rename(folder / "labels/train/three.png")
    assert len({first, second, ImageFolder(folder, "train").fingerprint()}) == 3


def test_a_moved_data_set_keeps_its_fingerprint(folder):
    first = ImageFolder(folder, "train").fingerprint()
    moved = folder.rename(folder.with_name("elsewhere"))
    assert ImageFolder(moved, "train").fingerprint() == first


def test_generated_scenes_of_train_and_val_do_not_meet():
    train, val = (GeneratedScenes(split, 3, (24, 32)) for split in ("train", "val"))
    assert list(train.entries) == [0, 1, 2] and val.entries[0] == 1_000_000
    sample = val[2]
    assert sample.image.shape == (3, 24, 32) and sample.index == 2 and sample.path == "scene-1000002"
    assert torch.equal(sample.image, GeneratedScenes("val", 5, (24, 32))[2].image)
    assert train.fingerprint() != val.fingerprint() != GeneratedScenes("val", 4, (24, 32)).fingerprint()
    other = GeneratedScenes("val", 3, (24, 32), seed=1)  # a run's seed must not change what it is measured on
    assert torch.equal(other[2].image, sample.image) and other.fingerprint() == val.fingerprint()
    with pytest.raises(UserError, match="needs a length of 1 or more, got 0"):
        GeneratedScenes("train", 0)


class _Given(PixelDataset):
    """A data set of one sample, to look at what the base checks and hands on."""

    name, classes = "given", ("a", "b")

    def __init__(self, sample, transforms=(), seed=0):
        self.sample = sample
        super().__init__("train", "/given", transforms, seed)

    def find(self):
        return [("image.png", "target.png")] * 4

    def read(self, entry):
        return self.sample


def test_generated_boxes_have_the_names_and_the_annotations_of_their_scenes():
    data = GeneratedBoxes("val", 4, (96, 128))
    scene = GeneratedScenes("val", 4, (96, 128))[3]
    sample = data[3]
    assert torch.equal(sample.image, scene.image) and torch.equal(sample.boxes, scene.boxes)
    assert sample.box_names == scene.box_names and sample.labels is None and len(data.classes) == 30
    known = data.scoring
    assert (known["rule"], known["category_ids"], known["image_ids"]) == ("coco", tuple(range(30)), (0, 1, 2, 3))
    own = [box for box in known["annotations"]["annotations"] if box["image_id"] == 3]
    assert [(known["annotations"]["categories"][box["category_id"]]["name"],) for box in own] == list(sample.box_names)
    assert [[box["bbox"][0] + box["bbox"][2], box["bbox"][1]] for box in own] == sample.boxes[:, [2, 1]].tolist()
    assert data.fingerprint() != GeneratedScenes("val", 4, (96, 128)).fingerprint()


def test_what_a_transform_draws_depends_on_seed_epoch_and_index_alone():
    drawn = []

    def draw(sample, rng):
        drawn.append(rng.random())
        return sample

    sample = Sample(image=torch.zeros(3, 2, 2))
    items = [0, (0, 0), 1, (1, 0), (0, -4)]
    for item in items:
        _Given(sample, [draw])[item]
    _Given(sample, [draw], seed=1)[0]
    assert drawn[0] == drawn[1] == drawn[4]
    assert len(set(drawn)) == 4
    assert drawn[3] == np.random.default_rng([0, 1, 0]).random()


def test_an_index_beyond_the_end_ends_an_iteration():
    assert len(list(_Given(Sample(image=torch.zeros(3, 2, 2))))) == 4


@pytest.mark.parametrize("target", ["depth", "normals"])
def test_measurements_of_another_size_are_named(target):
    sample = Sample(image=torch.zeros(3, 4, 5), **{target: torch.zeros(3, 5, 4)})
    with pytest.raises(UserError, match=rf"/given/image\.png is 4x5 .* but its {target}, /given/target\.png, are 5x4"):
        _Given(sample)[0]


@pytest.mark.parametrize(("labels", "found"), [([0, 2], 2), ([-2, 1], -2)])
def test_labels_of_any_set_are_checked(labels, found):
    sample = Sample(image=torch.zeros(3, 1, 2), labels=torch.tensor([labels]))
    with pytest.raises(UserError, match=rf"target\.png: holds the label {found}, but given has 2 classes, 0 to 1"):
        _Given(sample)[0]


def test_sets_say_which_targets_they_have(ade, voc, folder):
    for data in (ADE20K("train", ade), PascalVOC("val", voc), ImageFolder(folder, "train", ignore=[11, 255])):
        assert data.targets == ("labels",) and data[0].labels is not None and data[0].depth is None
    scenes = GeneratedScenes("train", 1, (24, 32))
    assert set(scenes.targets) == {"labels", "depth", "normals"}
    assert all(getattr(scenes[0], target) is not None for target in scenes.targets)


def _measured(**values):
    return _Given(Sample(image=torch.zeros(3, 2, 3), **values))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            [1, 2, -0.5, 0, 1, 1],
            r"holds depth from -0\.5 to 2, but depth is finite and above 0, or 0 for none; correct",
        ),
        ([1, 2, float("inf"), 0, 1, 1], r"holds depth from 0 to inf, but depth is finite"),
        ([1, 2, float("nan"), 0, 1, 1], r"holds depth from nan to nan, but depth is finite"),
        ([0, 0, 0, 0, 0, 0], r"has no depth at any pixel; remove it and its image, or correct"),
    ],
)
def test_depth_that_cannot_be_is_named(values, problem):
    with pytest.raises(UserError, match=rf"^/given/target\.png: {problem}"):
        _measured(depth=torch.tensor(values).float().reshape(1, 2, 3))[0]


def test_normals_have_length_one_or_none():
    normals = torch.zeros(3, 2, 3)
    normals[2, 0], normals[0, 1, 0] = -1, 1.009
    assert torch.equal(_measured(normals=normals)[0].normals, normals)
    for length in (1.02, 0.5, float("nan"), float("inf")):
        normals[0, 1, 0] = length
        with pytest.raises(UserError, match=rf"target\.png: holds a normal of length {length:g}, but they"):
            _measured(normals=normals)[0]


def test_a_camera_is_a_pinhole():
    assert _measured(intrinsics=torch.eye(3))[0].intrinsics is not None
    with pytest.raises(UserError, match=r"/given/image\.png: its camera: has 3x4 numbers instead of 3x3"):
        _measured(intrinsics=torch.eye(3, 4))[0]
    with pytest.raises(UserError, match=r"/given/image\.png: its camera: .* is no pinhole camera"):
        _measured(intrinsics=-torch.eye(3))[0]


def test_sets_are_built_from_configs(ade):
    transforms = [{"type": "RandomCrop", "size": (4, 5)}, {"type": "RandomFlip", "p": 1.0}]
    data = build(DATASETS, {"type": "ADE20K", "split": "train", "root": str(ade), "transforms": transforms}, seed=3)
    sample = data[(2, 1)]
    assert sample.image.shape == (3, 4, 5) and sample.labels.shape == (4, 5) and sample.original_size == SIZE
    assert sample.image.is_contiguous() and sample.labels.is_contiguous()
    with pytest.raises(UserError, match=r"RandomCrop has no setting 'sise': did you mean 'size'"):
        build(DATASETS, {"type": "ADE20K", "split": "train", "transforms": [{"type": "RandomCrop", "sise": 1}]})
