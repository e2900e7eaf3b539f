"""ADE20K with 847 classes: from miniatures of the published files, one of them copied from the published sample."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from siglip2_dense.contracts import IGNORE
from siglip2_dense.data import ade20k_full
from siglip2_dense.data.ade20k_full import IDS, ADE20KFull, classes_of_colours, shrunk
from siglip2_dense.data.prepare import prepare
from siglip2_dense.data.recipes import RECIPES
from siglip2_dense.data.verify import verify
from siglip2_dense.errors import UserError
from siglip2_dense.metrics.segmentation import SegmentationMetric
from siglip2_dense.registry import DATASETS, build

SAMPLE = {  # numbers and names in ADE_train_00016869.json, which the set's own repository publishes
    "traffic light, traffic signal, stoplight": 2836, "car, auto, automobile, machine, motorcar": 401,
    "signboard, sign": 2380, "person, individual, someone, somebody, mortal, soul": 1831, "building, edifice": 312,
    "sidewalk, pavement": 2377, "central reservation": 461, "tree": 2855, "sky": 2420, "road, route": 2131,
    "minibike, motorbike": 1563, "streetlight, street lamp": 2616, "balcony": 101, "door": 774, "mirror": 1564,
}  # fmt: skip


def _colours(numbers) -> np.ndarray:
    """(H, W, 3) as in NAME_seg.png: the number of a class in red and green, instances in blue."""
    numbers = np.asarray(numbers)
    instances = np.arange(numbers.size).reshape(numbers.shape) % 256
    return np.stack([numbers // 256 * 10, numbers % 256, instances], axis=-1).astype(np.uint8)


def _write(root, name, numbers, objects, scene="urban/street"):
    split = "validation" if "_val_" in name else "training"
    folder = root / "images/ADE" / split / scene
    (folder / name).mkdir(parents=True)
    numbers = np.asarray(numbers)
    pixels = np.random.default_rng(0).integers(0, 256, (*numbers.shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=95)
    Image.fromarray(_colours(numbers)).save(folder / f"{name}_seg.png")
    Image.fromarray(_colours(numbers)).save(folder / f"{name}_parts_1.png")
    Image.fromarray(np.zeros(numbers.shape, np.uint8)).save(folder / name / f"instance_000_{name}.png")
    found = [{"id": i, "name": label, "name_ndx": number} for i, (number, label) in enumerate(objects.items())]
    content = {"annotation": {"filename": f"{name}.jpg", "scene": scene.split("/"), "object": found}}
    (folder / f"{name}.json").write_text(json.dumps(content))


NAMES = {number: f"Name {number},  other name" for number in IDS}


@pytest.fixture
def ade(tmp_path, monkeypatch):
    """A large image, a small one on its side and one of train; names of every class, and of one that is not used."""
    root = tmp_path / "ADE20K_2021_17_01"
    half = dict(list(NAMES.items())[:400])
    large = np.full((600, 901), IDS[846])
    large[:300, :450] = IDS[300]
    _write(root, "ADE_val_00000001", large, {**half, 1: "a class of none"})
    small = np.full((9, 5), IDS[0])
    small[0, :4] = 0, 1, IDS[255], IDS[256]
    _write(root, "ADE_val_00000002", small, dict(list(NAMES.items())[400:]), scene="home_or_hotel/bedroom")
    _write(root, "ADE_train_00000001", small, {2978: "another name"})
    monkeypatch.setitem(RECIPES, "ade20k_full", replace(RECIPES["ade20k_full"], counts={"val": 2}))
    return root


def test_numbers_and_names_agree_with_the_published_sample_and_list(test_data):
    names = json.loads((test_data / "openvocab_classnames/ade847.json").read_text())
    assert len(IDS) == len(set(IDS)) == len(names) == 847
    for name, number in SAMPLE.items():
        assert names[IDS.index(number)] == name


def test_labels_by_hand(ade):
    assert prepare("ade20k_full", ade)
    val = ADE20KFull("val", ade)
    assert len(val) == 2 and len(val.classes) == 847 and val.classes[0] == "name 2978, other name"
    sample = val[1]
    assert sample.image.shape == (3, 9, 5) and sample.labels.dtype == torch.int64
    assert sample.labels[0].tolist() == [IGNORE, IGNORE, 255, 256, 0] and sample.labels[1:].unique().tolist() == [0]


def test_large_images_are_brought_to_a_short_side_of_512(ade):
    """The kernels against their definitions: bilinear at half-integer centres, the nearest by the floor of i scale."""
    assert prepare("ade20k_full", ade)
    sample = ADE20KFull("val", ade)[0]
    height, width = 512, round(901 / 600 * 512)
    assert sample.image.shape == (3, height, width)
    rows, columns = np.arange(height) * 600 // 512, np.floor(np.arange(width) * (901 / width)).astype(int)
    expected = np.full((600, 901), 846)
    expected[:300, :450] = 300
    assert np.array_equal(sample.labels.numpy(), expected[rows][:, columns])
    with Image.open(ade / "images/ADE/validation/urban/street/ADE_val_00000001.jpg") as image:
        source = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    smooth = torch.nn.functional.interpolate(source, (height, width), mode="bilinear", align_corners=False)[0]
    stored = Image.open(ade / "images_detectron2/validation/ADE_val_00000001.jpg")
    assert stored.quantization[0][0] == 8  # the first step of the table at quality 75
    assert (sample.image - smooth).abs().mean() < 20  # noise, as a JPEG of quality 75 keeps it


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 700), (512, 700)),
        ((513, 700), (512, 699)),
        ((700, 513), (699, 512)),
        ((600, 600), (512, 512)),
        ((1, 9),) * 2,
    ],
)
def test_sizes(size, expected):
    assert shrunk(size) == expected


def test_every_class_has_its_colour():
    numbers = np.arange(26 * 256).reshape(26, 256)
    found = classes_of_colours(_colours(numbers))
    assert found.dtype == np.uint16
    assert [IDS[label] for label in found[found != 65535]] == sorted(IDS)
    assert (found.ravel()[sorted(set(range(26 * 256)) - set(IDS))] == 65535).all()


def test_names_from_a_list_of_ones_own(ade, test_data, tmp_path):
    assert prepare("ade20k_full", ade)
    (ade / "annotations_detectron2/classes.txt").unlink()
    path = test_data / "openvocab_classnames/ade847.json"
    settings = dict(type="ADE20KFull", split="val", root=str(ade))
    assert build(DATASETS, {**settings, "classes": str(path)}).classes == tuple(json.loads(path.read_text()))
    with pytest.raises(UserError, match="3 names for the 847 classes of ade20k_full"):
        build(DATASETS, {**settings, "classes": ["a", "b", "c"]})


def test_what_another_preparation_has_written_is_kept(ade):
    """The files of MaskFormer's: no list of names."""
    labels = ade / "annotations_detectron2/validation/ADE_val_00000002.tif"
    labels.parent.mkdir(parents=True)
    Image.fromarray(np.full((9, 5), 7, np.uint16)).save(labels)
    image = ade / "images_detectron2/validation/ADE_val_00000002.jpg"
    image.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((9, 5, 3), np.uint8)).save(image)
    with pytest.raises(UserError, match=r"classes\.txt; run `siglip2-dense data prepare ade20k_full --root"):
        ADE20KFull("val", ade)
    assert prepare("ade20k_full", ade)
    assert ADE20KFull("val", ade)[1].labels.unique().tolist() == [7]


def test_an_interrupted_preparation_is_gone_on_with(ade, monkeypatch):
    write = ade20k_full._write_pair

    def stop(root, source):
        if source.stem.endswith("2"):
            raise KeyboardInterrupt
        write(root, source)

    monkeypatch.setattr(ade20k_full, "_write_pair", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare("ade20k_full", ade)
    monkeypatch.setattr(ade20k_full, "_write_pair", write)
    assert prepare("ade20k_full", ade) and len(ADE20KFull("val", ade)) == 2


def test_what_has_to_be_fetched_by_hand_is_said(tmp_path, capsys):
    with pytest.raises(
        UserError, match=rf"request_data; unpack it so that {tmp_path}/images/ADE/validation is a folder"
    ):
        prepare("ade20k_full", tmp_path)
    assert not verify("ade20k_full", tmp_path)
    assert f"prepare ade20k_full --root {tmp_path}`" in capsys.readouterr().out


def test_an_archive_that_is_not_whole_is_named(ade):
    (ade / "images/ADE/validation/urban/street/ADE_val_00000001.json").unlink()
    with pytest.raises(UserError, match="its files name 448 of 847 classes"):
        prepare("ade20k_full", ade)
    path = ade / "images/ADE/validation/home_or_hotel/bedroom/ADE_val_00000002.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"ADE_val_00000002\.json: does not name its objects \(KeyError"):
        prepare("ade20k_full", ade)


def test_an_image_with_one_object_and_one_with_a_broken_label_file(ade):
    path = ade / "images/ADE/validation/home_or_hotel/bedroom/ADE_val_00000002.json"
    content = json.loads(path.read_text())
    first = content["annotation"]["object"].pop()
    path.write_text(json.dumps(content))
    single = {"annotation": {"object": {"id": 0, "name": first["name"], "name_ndx": first["name_ndx"]}}}
    path.with_name("ADE_val_00000003.json").write_text(json.dumps(single))  # some writers drop the list
    assert prepare("ade20k_full", ade)
    labels = ade / "annotations_detectron2/validation/ADE_val_00000001.tif"
    Image.fromarray(np.full((512, 769), 847, np.uint16)).save(labels)
    with pytest.raises(UserError, match="holds the label 847, but ade20k_full has 847 classes, 0 to 846"):
        ADE20KFull("val", ade)[0]


def test_so_many_classes_are_scored(ade):
    assert prepare("ade20k_full", ade)
    val = ADE20KFull("val", ade)
    metric = SegmentationMetric(len(val.classes))
    for sample in (val[0], val[1]):
        metric.update(sample.labels.clamp(min=0), sample.labels, sample.index)
    assert metric.compute()["mIoU"] == 100
    assert sum(value is not None for value in metric.per_class()["IoU"]) == 5
