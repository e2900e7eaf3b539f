"""Readers of boxes, on official layouts that are written here, and on real COCO."""

import json

import numpy as np
import pytest
import torch
from boxes_made import coco_content, lvis_content, write_coco, write_image, write_json
from PIL import Image

from siglip2_dense.data.boxes.coco import CocoDetection
from siglip2_dense.data.boxes.lvis import LVIS
from siglip2_dense.data.boxes.objects365 import Objects365, Objects365V1
from siglip2_dense.data.boxes.visual_genome import VisualGenome
from siglip2_dense.data.reading import read_image
from siglip2_dense.data.subset import Subset
from siglip2_dense.data.transforms import RandomFlip
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build

BOXES = [
    (3, 7, [1, 2, 3, 4]),
    (1, 3, [25, 15, 30, 30]),  # over the lower right corner
    (1, 7, [-4, -2, 10, 6]),  # over the upper left one
    (1, 90, [5, 5, 4, 4], {"iscrowd": 1}),
    (1, 90, [5, 5, 0, 4]),
    (3, 3, [31, 2, 5, 5]),
    (3, 3, []),
]


def test_boxes_are_cut_and_those_that_cannot_be_learnt_from_are_left_out(tmp_path):
    write_coco(tmp_path, BOXES)
    data = CocoDetection("train", tmp_path)
    assert data.classes == ("remote control", "cat", "Bow_(weapon)") and data.category_ids == (3, 7, 90)
    assert data.image_ids.tolist() == data.coco_numbers.tolist() == [1, 2, 3]
    first, empty, third = (data[i] for i in range(3))
    assert first.boxes.tolist() == [[25, 15, 30, 20], [0, 0, 6, 4]] and first.boxes.dtype == torch.float32
    assert first.box_names == (("remote control",), ("cat",)) and first.original_size == (20, 30) and first.index == 0
    assert empty.boxes.shape == (0, 4) and empty.box_names == ()
    assert third.boxes.tolist() == [[1, 2, 4, 6]] and third.path.endswith("train2017/000000000003.jpg")
    assert data.known.left_out == {"around crowds": 1, "without an area": 2, "outside their image": 1}
    assert data.labels_in(0) == {0, 1, 2} and data.labels_in(1) == set() and data.labels_in(2) == {0, 1}
    assert data.occurrences() == {"remote control": 1, "cat": 2, "Bow_(weapon)": 0}


def test_what_can_be_asked_is_what_is_there_and_what_is_known_not_to_be(tmp_path):
    """Of a set by itself, without a mixture: neither what lies around a crowd, nor what was cropped away."""
    write_coco(tmp_path, BOXES)
    data = CocoDetection("train", tmp_path)
    remote, cat, bow = data.classes
    assert [data[i].queries for i in range(3)] == [(remote, cat), (remote, cat, bow), (cat, bow)]
    crop = CocoDetection("train", tmp_path, transforms=[dict(type="Crop", top=10, left=20, height=10, width=10)])
    assert crop[0].box_names == ((remote,),) and crop[0].queries == (remote,) and crop[2].queries == (bow,)


def test_what_transforms_draw_depends_on_epoch_and_index(tmp_path):
    write_coco(tmp_path, BOXES)
    data = CocoDetection("train", tmp_path, transforms=[RandomFlip()])
    views = [data[epoch, 2].boxes.tolist() for epoch in range(8)]
    assert views == [data[epoch, 2].boxes.tolist() for epoch in range(8)]
    assert sorted(map(str, views))[0] != sorted(map(str, views))[-1] and [[26, 2, 29, 6]] in views


def test_another_layout_in_cocos_format(tmp_path):
    write_json(tmp_path / "labels/test.json", coco_content([(1, 7, [0, 0, 5, 5])], images=1, name="picture {}.png"))
    write_image(tmp_path / "pictures/picture 1.png")
    data = build(
        DATASETS,
        dict(type="CocoDetection", split="test", root=tmp_path, annotations="labels/{split}.json", images="pictures"),
    )
    assert data[0].boxes.tolist() == [[0, 0, 5, 5]] and data.coco_numbers.tolist() == [-1]


def test_lvis_reads_images_of_both_folders_and_what_they_were_checked_for(tmp_path):
    boxes = [(1, 7, [1, 1, 4, 4]), (1, 3, [2, 2, 8, 8]), (2, 90, [0, 0, 9, 9])]
    content = lvis_content(boxes, negative={1: [90], 2: [3, 7, 90]}, incomplete={1: [3]})
    content["images"][1]["coco_url"] = "http://images.cocodataset.org/train2017/000000000002.jpg"
    write_json(tmp_path / "annotations/lvis_v1_val.json", content)
    for name in ("val2017/000000000001", "train2017/000000000002", "val2017/000000000003"):
        write_image(tmp_path / f"{name}.jpg")
    data = LVIS("val", tmp_path)
    assert [data[i].path.split("/")[-2] for i in range(3)] == ["val2017", "train2017", "val2017"]
    assert data[0].box_names == (("cat",),) and data.labels_in(0) == {0, 1}  # "remote control" is not complete there
    assert [data.labels_absent(i) for i in range(3)] == [[2], [0, 1], []]
    remote, cat, bow = data.classes
    assert [data[i].queries for i in range(3)] == [(cat, bow), (bow, remote, cat), ()]
    assert data.rule == "lvis" and data.coco_numbers.tolist() == [1, 2, 3]
    assert data.occurrences() == {"remote control": 1, "cat": 2, "Bow_(weapon)": 3}
    assert data.scoring["image_ids"] == (1, 2, 3) and data.scoring["category_ids"] == (3, 7, 90)


def test_lvis_of_version_0_5(real, tmp_path):
    path = real("lvis/lvis_val_100.json")
    content = json.loads(path.read_text())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/lvis_v0.5_val.json").symlink_to(path)
    for image in content["images"]:
        write_image(tmp_path / "val2017" / image["coco_url"].split("/")[-1], (image["height"], image["width"]))
    data = LVIS("val", tmp_path, annotations="annotations/lvis_v0.5_{split}.json")
    assert len(data) == 100 and len(data.classes) == 1230
    left_out = sum(data.known.left_out.values())
    incomplete = {(i["id"], c) for i in content["images"] for c in i["not_exhaustive_category_ids"]}
    assert left_out == sum((a["image_id"], a["category_id"]) in incomplete for a in content["annotations"]) > 0
    assert len(data.known.labels) == 977 - left_out
    name_of = {category["id"]: category["name"] for category in content["categories"]}
    for place in (0, 50, 99):
        image = content["images"][place]
        absent = [data.classes[label] for label in data.labels_absent(place)]
        assert absent == [name_of[number] for number in image["neg_category_ids"]]
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        own = [a for a in own if (image["id"], a["category_id"]) not in incomplete]
        sample = data[place]
        assert sample.box_names == tuple((name_of[a["category_id"]],) for a in own)
        xywh = np.array([a["bbox"] for a in own]).reshape(-1, 4)
        assert np.allclose(sample.boxes, np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1), atol=0.011)


def test_objects365_of_both_versions(tmp_path):
    content = coco_content([(1, 7, [1, 2, 3, 4])], images=2, name="images/v2/patch16/objects365_v2_{:08d}.jpg")
    content["images"].append(
        content["images"][0] | {"id": 9, "file_name": "images/v1/patch6/objects365_v1_00320532.jpg"}
    )
    write_json(tmp_path / "annotations/zhiyuan_objv2_train.json", content)
    for i in (1, 2):
        write_image(tmp_path / f"train/patch16/objects365_v2_{i:08d}.jpg")
    data = Objects365("train", tmp_path)
    assert len(data) == 2 and data.image_ids.tolist() == [1, 2]  # the third is in no archive
    first = content["images"].pop()
    write_json(tmp_path / "annotations/zhiyuan_objv2_train.json", content | {"images": [first, *content["images"]]})
    shifted = Objects365("train", tmp_path)  # the first of the file is the one that is not there
    assert [shifted.labels_in(i) for i in range(2)] == [data.labels_in(i) for i in range(2)] == [{1}, set()]
    assert shifted.image_ids.tolist() == [1, 2] and shifted[0].boxes.tolist() == [[1, 2, 4, 6]]
    assert data[0].box_names == (("cat",),) and (data.coco_numbers == -1).all() and data[1].index == 1
    with pytest.raises(UserError, match="no rule is agreed"):
        _ = data.scoring
    content = coco_content([(1, 7, [1, 2, 3, 4])], images=1, name="obj365_val_{:012d}.jpg")
    write_json(tmp_path / "annotations/objects365_val.json", content)
    write_image(tmp_path / "val/obj365_val_000000000001.jpg")
    assert Objects365V1("val", tmp_path)[0].boxes.tolist() == [[1, 2, 4, 6]]


def test_visual_genome(tmp_path):
    url = "https://cs.stanford.edu/people/rak248/VG_100K{}/{}.jpg"
    known = [
        {"image_id": 5, "url": url.format("_2", 5), "width": 30, "height": 20, "coco_id": 139, "flickr_id": None},
        {"image_id": 1, "url": url.format("", 1), "width": 30, "height": 20, "coco_id": None, "flickr_id": 3},
    ]
    box = {"x": 2, "y": 3, "w": 10, "h": 40}
    things = [
        {**box, "object_id": 1, "names": ["Clock, old"], "synsets": []},
        {**box, "object_id": 2, "names": ["", "tree"]},
        {**box, "object_id": 3, "names": ["?"]},
        {**box, "object_id": 4, "names": []},
    ]
    write_json(tmp_path / "image_data.json", known)
    write_json(
        tmp_path / "objects.json",
        [{"image_id": 5, "objects": things, "image_url": "…"}, {"image_id": 1, "objects": []}],
    )
    write_image(tmp_path / "VG_100K_2/5.jpg")
    write_image(tmp_path / "VG_100K/1.jpg")
    data = VisualGenome(root=tmp_path)
    assert data.classes == ("clock old", "tree") and data.coco_numbers.tolist() == [-1, 139]
    assert [len(data[i].boxes) for i in (0, 1)] == [0, 2]
    assert data[1].boxes.tolist() == [[2, 3, 12, 20]] * 2 and data[1].box_names == (("clock old",), ("tree",))
    assert data[0].queries == () and data[1].queries == ("clock old", "tree")  # of the rest nothing is known
    (tmp_path / "image_data.json").unlink()
    with pytest.raises(UserError, match=r"image_data\.json; run `siglip2-dense data prepare visual_genome"):
        VisualGenome(root=tmp_path)


def test_an_image_that_was_turned_after_it_was_annotated_or_before(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    for size in ((20, 30), (30, 20)):  # of the pixels as they are stored, and as they are seen
        write_json(tmp_path / "annotations/instances_val2017.json", coco_content([(1, 7, [0, 0, 5, 9])], 1, size))
        path = tmp_path / "val2017/000000000001.jpg"
        write_image(path, (20, 30), exif=turned)
        image = CocoDetection("val", tmp_path)[0].image
        assert tuple(image.shape[1:]) == size
        assert np.array_equal(image.permute(1, 2, 0), read_image(path, upright=size == (30, 20)))


def _changed(tmp_path, change, boxes=BOXES, **options):
    content = write_coco(tmp_path, boxes, **options)
    change(content)
    write_json(tmp_path / "annotations/instances_train2017.json", content)
    return CocoDetection("train", tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["images"][1].update(file_name="x.jpg"), r"train2017\.json lists .*x\.jpg, which is not there"),
        (
            lambda c: c["annotations"][2].update(image_id=17),
            r"annotation 103 is of the image 17, which the file does not",
        ),
        (lambda c: c["annotations"][0].update(category_id=1), r"annotation 101 is of the category 1, .*\(1 such"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), r"the box of the annotation 102 is \[1, 2, 3\]"),
        (lambda c: c.pop("categories"), r"not in the format of its kind \(KeyError: 'categories'"),
        (lambda c: c["categories"][1].update(name=5), r"the category 3 is called 5; give it a name"),
        (lambda c: c["images"].append(c["images"][0]), r"two entries of the image 1"),
        (lambda c: c.update(images=[]), r"image \d+, which the file does not define \(7 such"),
    ],
)
def test_annotations_that_cannot_be_right_are_named(tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        _changed(tmp_path, change)


def test_files_that_are_missing_or_cut_off_are_named(tmp_path):
    with pytest.raises(UserError, match=r"instances_train2017\.json; run `siglip2-dense data prepare coco"):
        CocoDetection("train", tmp_path)
    write_coco(tmp_path, BOXES)
    path = tmp_path / "annotations/instances_train2017.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="cut off, or not JSON"):
        CocoDetection("train", tmp_path)
    write_coco(tmp_path, BOXES)
    write_image(tmp_path / "train2017/000000000001.jpg", (21, 30))
    with pytest.raises(UserError, match=r"000000000001\.jpg is 21x30 pixels .* but 20x30 in"):
        CocoDetection("train", tmp_path)[0]


def test_no_annotations_and_no_images(tmp_path):
    data = _changed(tmp_path, lambda c: c.update(annotations=[]))
    assert len(data) == 3 and data[0].boxes.shape == (0, 4) and data.known.left_out == {}
    with pytest.raises(UserError, match="has no images of split 'train'"):
        _changed(tmp_path, lambda c: c.update(annotations=[], images=[]))


def test_a_part_of_the_set_is_scored_as_that(tmp_path):
    write_coco(tmp_path, BOXES, images=6)
    config = dict(type="CocoDetection", split="train", root=tmp_path)
    part = Subset(config, "held out", 0.5)
    assert part.scoring["image_ids"] == tuple(index + 1 for index in part.indices) and len(part) == 3
    assert part.scoring["category_ids"] == (3, 7, 90)


def test_the_fingerprint_is_that_of_images_and_annotations(tmp_path):
    write_coco(tmp_path, BOXES)
    before = CocoDetection("train", tmp_path).fingerprint()
    assert CocoDetection("train", tmp_path).fingerprint() == before
    write_coco(tmp_path, BOXES[:4])
    assert CocoDetection("train", tmp_path).fingerprint() != before


@pytest.mark.parametrize(("split", "boxes", "crowds", "empty"), [("train", 196, 2, 0), ("val", 170, 2, 1)])
def test_real_coco(real, split, boxes, crowds, empty):
    data = CocoDetection(split, real("coco_tiny"))
    content = json.loads(data.annotations.read_text())
    assert len(data) == 25 and len(data.classes) == 80 and data.category_ids[-1] == 90
    counts = np.diff(data.known.starts)
    assert counts.sum() == boxes - crowds and (counts == 0).sum() == empty
    assert data.known.left_out == {"around crowds": crowds}
    name_of = {category["id"]: category["name"] for category in content["categories"]}
    for index in range(len(data)):
        own = [a for a in content["annotations"] if a["image_id"] == data.image_ids[index] and not a["iscrowd"]]
        sample = data[index]
        x, y, w, h = np.array([a["bbox"] for a in own]).reshape(-1, 4).T
        assert np.allclose(sample.boxes, np.stack([x, y, x + w, y + h], 1), atol=0.02)  # the format has two decimals
        assert [name for (name,) in sample.box_names] == [name_of[a["category_id"]] for a in own]
        height, width = sample.original_size
        assert (sample.boxes >= 0).all() and (sample.boxes <= torch.tensor([width, height] * 2)).all()


def test_derived_boxes_of_real_panoptic_images(real):
    data = CocoDetection("val", real("coco128"))
    assert len(data) == 100 and len(data.known.labels) == 712 - 5 and data[99].image.dtype == torch.uint8
