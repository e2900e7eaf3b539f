"""Which images are also in another set."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from boxes_made import coco_content, write_coco, write_image, write_json
from PIL import Image

from siglip2_dense.data.boxes import duplicates as module
from siglip2_dense.data.boxes.coco import CocoDetection
from siglip2_dense.data.boxes.duplicates import close, duplicates, looks


def test_cocos_numbers_tell_where_both_sets_have_them(tmp_path, monkeypatch):
    write_coco(tmp_path / "a", [], images=4)
    write_coco(tmp_path / "b", [], images=2, first=9)  # others by their looks
    monkeypatch.setattr(module, "looks_of", None)
    a, b = (CocoDetection("train", tmp_path / name) for name in "ab")
    assert duplicates(a, b).tolist() == [True, True, False, False]


def test_looks_tell_otherwise_and_are_kept(tmp_path, monkeypatch):
    content = coco_content([], images=5, size=(90, 120), name="photo {}.jpg")
    write_json(tmp_path / "a/annotations/instances_train2017.json", content)
    for i in range(1, 6):
        write_image(tmp_path / f"a/train2017/photo {i}.jpg", (90, 120), seed=i)
    write_coco(
        tmp_path / "b", [], images=2, size=(60, 80), first=3, name="{:012d}.jpg"
    )  # the fourth and fifth, smaller
    a, b = (CocoDetection("train", tmp_path / name) for name in "ab")
    assert duplicates(a, b).tolist() == [False, False, False, True, True]
    monkeypatch.setattr(module, "looks", None)
    assert duplicates(a, b).tolist() == [False, False, False, True, True]


def test_numbers_of_a_set_with_some_other_names_tell_nothing(tmp_path):
    """An image of COCO's under a name of its own would be trained on."""
    content = coco_content([], images=3)
    content["images"][2]["file_name"] = "my own.jpg"
    write_json(tmp_path / "a/annotations/instances_train2017.json", content)
    write_coco(tmp_path / "b", [], images=5)
    for image in content["images"]:
        write_image(tmp_path / "a/train2017" / image["file_name"], seed=image["id"] if image["id"] < 3 else 5)
    a, b = (CocoDetection("train", tmp_path / name) for name in "ab")
    assert a.coco_numbers.tolist() == [-1] * 3 and duplicates(a, b).tolist() == [True] * 3


def test_images_without_a_number_are_not_each_others(tmp_path, monkeypatch):
    """As those of Visual Genome that are not COCO's."""
    numbers = property(lambda self: np.array([7, -1, -1, 4]))
    monkeypatch.setattr(CocoDetection, "coco_numbers", numbers)
    write_coco(tmp_path, [], images=4)
    a, b = (CocoDetection("train", tmp_path) for _ in range(2))
    assert duplicates(a, b).tolist() == [True, False, False, True]


def test_several_processes_read_the_pictures_once(tmp_path, monkeypatch):
    write_coco(tmp_path, [], images=4)
    data, read = CocoDetection("train", tmp_path), []

    def slowly(path):
        time.sleep(0.05)
        read.append(path)
        return 7

    monkeypatch.setattr(module, "looks", slowly)
    with ThreadPoolExecutor(3) as pool:  # a lock of a file is also one between those that have opened it each
        found = list(pool.map(lambda _: module.looks_of(data).tolist(), range(3)))
    assert found == [[7] * 4] * 3 and len(read) == 4


def test_looks_hardly_change_with_size_and_compression(real, tmp_path):
    folder = real("coco_tiny/val2017")
    whole, again = [], []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            smaller = image.convert("RGB").resize((image.width * 2 // 3, image.height * 2 // 3))
        smaller.save(tmp_path / path.name, quality=60)
        whole.append(looks(path))
        again.append(looks(tmp_path / path.name))
    whole, again = np.array(whole, np.uint64), np.array(again, np.uint64)
    assert close(again, whole).mean() > 0.95
    for i in range(len(whole)):
        assert not close(whole[i : i + 1], np.delete(whole, i)).any()


def test_close_equals_comparing_all_pairs(monkeypatch):
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 100)
    rng = np.random.default_rng(0)
    b = rng.integers(0, 2**63, 300, dtype=np.uint64)
    a = rng.permutation(np.concatenate([b, rng.integers(0, 2**63, 200, dtype=np.uint64)]))
    for i in range(len(a)):
        for bit in rng.choice(64, rng.integers(0, 6), replace=False):
            a[i] ^= np.uint64(1) << np.uint64(bit)
    expected = [min((int(x) ^ int(y)).bit_count() for y in b) <= 3 for x in a]
    assert close(a, b).tolist() == expected and 0 < sum(expected) < len(a)
    assert not close(a, b[:0]).any() and close(a[:0], b).shape == (0,)
