"""NYUv2's three readers, and their preparation, on miniatures in the genuine formats."""

import gzip
import json
import os
import pickle
import subprocess
import zipfile
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader

from siglip2_dense.data import nyuv2
from siglip2_dense.data.conversion import write_normals, write_official_test
from siglip2_dense.data.geometry import fitted_normals
from siglip2_dense.data.nyuv2 import NYUv2, NYUv2GeoNet, NYUv2Labelled
from siglip2_dense.data.prepare import prepare
from siglip2_dense.data.recipes import RECIPES
from siglip2_dense.data.verify import verify
from siglip2_dense.errors import UserError

SIZE = (480, 640)
HOLE = np.s_[100:140, 200:280]  # of the raw depth
UNKNOWN = np.s_[300:310, 400:420]  # of FAIR's mask
WALLS = [((0, -1, 0), 1.2), ((0, 0, -1), 4.0), ((1, 0, 0), 1.5), ((-1, 0, 0), 1.8)]  # floor, far, left, right


def _room(pitch):
    """Depth (480, 640) metres and true normals (480, 640, 3), towards the camera, of a room seen ``pitch`` downwards.

    In the toolbox's terms: the pixels' centres are 1, 2, … and the principal point is (325.58, 253.74).
    """
    row, column = np.mgrid[1:481, 1:641]
    rays = np.stack([(column - 325.582449) / 518.857901, (row - 253.736166) / 519.469611, np.ones(SIZE)], -1)
    cos, sin = np.cos(pitch), np.sin(pitch)
    turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]).T
    depth, normals = np.full(SIZE, np.inf), np.zeros((*SIZE, 3))
    for normal, distance in WALLS:
        normal = turn @ np.array(normal, float)
        facing = -(rays @ normal)
        z = np.where(facing > 0, distance / np.where(facing > 0, facing, 1), np.inf)
        normals[z < depth] = normal
        depth = np.minimum(depth, z)
    return depth.astype(np.float32), normals.astype(np.float32)


row, column = np.mgrid[:480, :640]
ROOMS = [_room(pitch) for pitch in (0.2, 0.3, 0.4)]
IMAGES = np.stack([np.stack([row // 2 + 5, column // 3 + 5, 60 * frame + row // 8], -1) for frame in range(3)])
IMAGES = IMAGES.astype(np.uint8)  # smooth, so that JPEG keeps them; no two pixels' axes can be exchanged
TRAIN_DEPTH = "sync/a_1/sync_depth_00009.png"
SCENES = ("kitchen", "home_office", "kitchen")


def _write_labelled(root):
    """Three frames as MATLAB writes them, so that HDF5 has all axes reversed; frames 1 and 3 are to train on."""
    root.mkdir(parents=True, exist_ok=True)
    filled = np.stack([depth for depth, _ in ROOMS])
    raw = filled.copy()
    raw[:, *HOLE] = 0
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = IMAGES.transpose(0, 3, 2, 1)
        file["depths"], file["rawDepths"] = filled.transpose(0, 2, 1), raw.transpose(0, 2, 1)
        references = file.create_dataset("sceneTypes", (1, 3), h5py.ref_dtype)
        for i, scene in enumerate(SCENES):
            file[f"#refs#/{i}"] = np.array([[ord(letter)] for letter in scene], np.uint16)
            references[0, i] = file[f"#refs#/{i}"].ref
    savemat(root / "splits.mat", {"trainNdxs": np.uint16([[1], [3]]), "testNdxs": np.uint16([[2]])})


def _pickled(order=(2, 0, 1), stored=lambda normals: -normals, protocol=4, **changes):
    """FAIR's pickle of the three rooms, in any order, away from the camera and of length 1.01."""
    masks = np.ones((3, *SIZE), np.float32)
    masks[:, *UNKNOWN] = 0
    content = {
        "all_normals": np.stack([1.01 * stored(ROOMS[i][1]) for i in order]).astype(np.float32),
        "all_valid_depth_masks": masks,
        "all_filenames": [f"{i + 1:06d}" for i in order],
    }
    return pickle.dumps(content | changes, protocol=protocol)


def _zipped(path, pickled):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("surfacenormal_metadata/train_SN40.json", "[]")
        archive.writestr("surfacenormal_metadata/all_normals.pklz", gzip.compress(pickled, 1))
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Read-only: the labelled file, the split and normals.npy."""
    root = tmp_path_factory.mktemp("data") / "nyu_depth_v2"
    _write_labelled(root)
    write_normals(_zipped(root.parent / "fair.zip", _pickled()), root)
    return root


@pytest.fixture
def bts(tmp_path):
    """Two listed training frames and one without depth; a test list whose last line does not end."""
    root = tmp_path / "nyu_depth_v2"
    for folder, scene, name, value in (
        ("sync", "b_1", "00002", 1500),
        ("sync", "a_1", "00009", 40950),
        ("sync", "a_1", "00010", 1),
        ("official_splits/test", "study", "00008", 2000),
        ("official_splits/test", "study", "00009", 2001),
    ):
        path = root / folder / scene
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[0]).save(path / f"rgb_{name}.jpg")
        depth = np.full(SIZE, value, np.uint16)
        depth[0, :2] = 0
        Image.fromarray(depth).save(path / f"sync_depth_{name}.png")
    (root / "nyudepthv2_train_files_with_gt.txt").write_text(
        "/b_1/rgb_00002.jpg /b_1/sync_depth_00002.png 518.8579\n"
        "/a_1/rgb_00010.jpg None 518.8579\n\n"
        "/a_1/rgb_00009.jpg /a_1/sync_depth_00009.png 518.8579\n"
    )
    (root / "nyudepthv2_test_files_with_gt.txt").write_text(
        "study/rgb_00009.jpg study/sync_depth_00009.png 518.8579\n"
        "study/rgb_00008.jpg study/sync_depth_00008.png 518.8579"
    )
    return root


# The lists of BTS


def test_frames_are_those_of_the_lists_by_name(bts):
    train, test = NYUv2("train", bts), NYUv2("test", bts)
    assert train.entries == [
        ("sync/a_1/rgb_00009.jpg", "sync/a_1/sync_depth_00009.png"),
        ("sync/b_1/rgb_00002.jpg", "sync/b_1/sync_depth_00002.png"),
    ]
    assert [Path(image).name for image, _ in test.entries] == ["rgb_00008.jpg", "rgb_00009.jpg"]
    sample = train[0]
    assert sample.depth.shape == (1, *SIZE) and sample.depth[0, 0, :3].tolist() == [0, 0, pytest.approx(40.95)]
    assert sample.normals is None and train.targets == ("depth",) and sample.original_size == SIZE


def test_the_camera_is_the_toolbox_s(bts):
    """It makes x = (column - cx) z / fx with columns from 1; ours are at half-integers."""
    row, column, z = 99, 199, 2.5
    expected = torch.tensor([(column + 1 - 325.582449) * z / 518.857901, (row + 1 - 253.736166) * z / 519.469611, z])
    camera = NYUv2("test", bts)[0].intrinsics
    torch.testing.assert_close(torch.linalg.inv(camera) @ torch.tensor([column + 0.5, row + 0.5, 1]) * z, expected)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda root: (root / TRAIN_DEPTH).unlink(), r"sync_depth_00009\.png is in nyu.*, line 4, but not there; run"),
        (lambda root: os.rename(root / "sync/b_1", root / "sync/c_1"), r"b_1/rgb_00002\.jpg is in .*, line 1, but not"),
        (
            lambda root: (root / "nyudepthv2_train_files_with_gt.txt").write_text("a.jpg\n"),
            r"_gt\.txt, line 1: 'a\.jpg' is not IMAGE DEPTH FOCAL; fetch",
        ),
        (
            lambda root: Image.fromarray(np.ones(SIZE, np.uint8)).save(root / TRAIN_DEPTH),
            r"sync_depth_00009\.png: holds L pixels, not depth; save .* 16 bits",
        ),
        (
            lambda root: Image.fromarray(IMAGES[0][:240]).save(root / "sync/a_1/rgb_00009.jpg"),
            r"rgb_00009\.jpg is 240x640 pixels, but NYUv2's frames, and its camera's, are 480x640",
        ),
        (lambda root: (root / "sync").rename(root / "sink"), r"nyuv2 is not there .*/sync; run .* prepare nyuv2"),
    ],
    ids=["depth", "scene", "line", "8 bits", "size", "folder"],
)
def test_what_is_wrong_with_a_list_s_files_is_named(bts, change, sentence):
    change(bts)
    with pytest.raises(UserError, match=sentence):
        NYUv2("train", bts)[0]


# The labelled frames


def test_labelled_frames_are_upright_and_split_from_1(labelled):
    train, test = NYUv2Labelled("train", labelled), NYUv2Labelled("test", labelled)
    assert train.entries == [0, 2] and test.entries == [1]
    sample = test[0]
    assert np.array_equal(sample.image.permute(1, 2, 0), IMAGES[1])
    assert sample.depth[0, 479, 3] == ROOMS[1][0][479, 3] and (sample.depth[0][HOLE] == 0).all()
    assert sample.path.endswith("nyu_depth_v2_labeled.mat/frame_0002") and sample.normals is None
    filled = NYUv2Labelled("test", labelled, depth="filled")
    assert np.array_equal(filled[0].depth[0], ROOMS[1][0])
    assert len({test.fingerprint(), train.fingerprint(), filled.fingerprint()}) == 3


def test_labelled_frames_depend_on_the_large_files_that_hold_them(labelled):
    mat, normals = labelled / "nyu_depth_v2_labeled.mat", labelled / "normals.npy"
    assert NYUv2Labelled("test", labelled).files_on_disk(0) == [mat]
    assert NYUv2Labelled("test", labelled, targets=("depth", "normals")).files_on_disk(0) == [mat, normals]
    assert mat.is_file() and normals.is_file()


def test_normals_point_to_the_camera_and_have_the_raw_depth_s_holes(labelled):
    for depth in ("raw", "filled"):
        sample = NYUv2Labelled("train", labelled, depth=depth, targets=["normals"])[1]
        none = np.zeros(SIZE, bool)
        none[HOLE] = none[UNKNOWN] = True
        assert sample.depth is None and np.array_equal(sample.normals.any(0), ~none)
        expected = np.where(none, 0, ROOMS[2][1].transpose(2, 0, 1))
        np.testing.assert_allclose(sample.normals, expected, atol=1e-6)


def test_stored_and_derived_normals_agree_to_the_pixel(labelled):
    """Both follow from planes seen by the toolbox's camera: a wrong principal point or axis would tilt one of them."""
    sample = NYUv2Labelled("train", labelled, targets=("depth", "normals"))[0]
    derived = fitted_normals(sample.depth, sample.intrinsics)
    cosine = (derived * sample.normals).sum(0)[sample.normals.any(0) & derived.any(0)]
    assert cosine.median() > 1 - 1e-6 and (cosine > 0.999).float().mean() > 0.97  # else at the edges of the room


def test_each_process_opens_the_file_itself(labelled):
    data = NYUv2Labelled("train", labelled, targets=("depth", "normals"))
    here = [data[i] for i in range(2)]  # opened in this process first
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork")
    sent = pickle.dumps(data)  # as to a process that is not forked
    assert len(sent) < 10_000
    for others in (loader, map(pickle.loads(sent).__getitem__, range(2))):
        for sample, other in zip(here, others, strict=True):
            assert torch.equal(sample.image, other.image) and torch.equal(sample.normals, other.normals)


def test_a_handle_of_another_process_is_not_used(labelled, monkeypatch):
    opened = []
    monkeypatch.setattr(nyuv2, "open_labelled", lambda path, own=nyuv2.open_labelled: opened.append(1) or own(path))
    data = NYUv2Labelled("train", labelled)  # opens and closes the file to count its frames
    _ = data[0], data[1]
    assert len(opened) == 2
    monkeypatch.setattr(os, "getpid", lambda: -1)
    _ = data[0], data[1]
    assert len(opened) == 3


def test_other_files_than_the_labelled_ones_are_named(labelled, tmp_path):
    for path in labelled.iterdir():
        os.link(path, tmp_path / path.name)
    for name in ("nyu_depth_v2_labeled.mat", "splits.mat", "normals.npy"):
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=rf"not complete, looked in .*{name}; run .* prepare nyuv2_labelled --root"):
            NYUv2Labelled("train", tmp_path, targets="normals")
        (tmp_path / name).write_bytes(b"<html>")
        with pytest.raises(UserError, match=rf"{name}: damaged"):
            NYUv2Labelled("train", tmp_path, targets="normals")[0]
        (tmp_path / name).unlink()
        os.link(labelled / name, tmp_path / name)
    (tmp_path / "splits.mat").unlink()
    for content, sentence in (
        ({"trainNdxs": np.uint16([[4]])}, "splits.mat: lists frame 4, but .* has 1 to 3"),
        ({"testNdxs": np.uint16([[2]])}, "splits.mat: has no 'trainNdxs'; it is another file"),
    ):
        savemat(tmp_path / "splits.mat", content)
        with pytest.raises(UserError, match=sentence):
            NYUv2Labelled("train", tmp_path)
    (tmp_path / "nyu_depth_v2_labeled.mat").unlink()
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.zeros((1, 3, 640, 480), np.uint8)
    with pytest.raises(UserError, match=r"has no 'depths'; it is another file, fetch nyu_depth_v2_labeled\.mat"):
        NYUv2Labelled("test", tmp_path)


def test_a_damaged_frame_is_named(labelled, tmp_path):
    for name in ("splits.mat", "nyu_depth_v2_labeled.mat"):
        (tmp_path / name).write_bytes((labelled / name).read_bytes())
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        del file["images"]
        file.create_dataset("images", (3, 3, 640, 480), np.uint8, chunks=(1, 3, 640, 480), compression="gzip")
        file["images"][...] = IMAGES.transpose(0, 3, 2, 1)
        place = file["images"].id.get_chunk_info(1).byte_offset
    with open(tmp_path / "nyu_depth_v2_labeled.mat", "r+b") as file:
        file.seek(place)
        file.write(b"\0" * 1000)
    with pytest.raises(UserError, match=r"nyu_depth_v2_labeled\.mat: damaged"):
        NYUv2Labelled("test", tmp_path)[0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"depth": "inpainted"}, "nyuv2_labelled has no depth 'inpainted': give raw or filled"),
        ({"targets": ("normal",)}, "has no target 'normal': did you mean 'normals'"),
        ({"targets": ()}, "targets is empty"),
        ({"split": "val"}, "has no split 'val'"),
    ],
)
def test_wrong_settings_are_sentences(labelled, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        NYUv2Labelled(**{"split": "train", "root": labelled} | settings)


# GeoNet's frames


def _write_geonet(path, **changes):
    """481 x 641 pixels, the mean taken off twice; the mask and the depth end before the edge."""
    depth, normals = ROOMS[0]
    depth = np.pad(depth, ((0, 1), (0, 1)), mode="edge")
    depth[10, 10], depth[20, 20], depth[30, 30] = 10.5, 0, np.nan
    mask = np.ones((481, 641), np.uint8)
    mask[40, 40] = 0
    normals = np.pad(normals, ((0, 1), (0, 1), (0, 0)), mode="edge")
    normals[50, 50] = np.nan
    image = np.pad(IMAGES[0], ((0, 1), (0, 1), (0, 0)), mode="edge").astype(np.float32)
    image -= 2 * np.float32([122.175, 116.169, 103.508])
    image[60, 60] = -300, 300, 0.0
    image[70, 70, 0] = 100.6 - 2 * 122.175
    content = {"img": image, "depth": depth, "norm": -normals, "mask": mask, "grid": np.zeros(3)} | changes
    savemat(path, {key: value for key, value in content.items() if value is not None})


@pytest.fixture
def geonet(tmp_path):
    root = tmp_path / "nyu_geonet"
    root.mkdir()
    _write_geonet(root / "bedroom_0001-b.mat")
    return root


def test_a_frame_of_geonet(geonet):
    sample = NYUv2GeoNet("trainval", geonet)[0]
    image = IMAGES[0].copy()
    image[60, 60] = 0, 255, 207  # beyond 0-255 it is cut off
    image[70, 70, 0] = 101  # rounded
    assert np.array_equal(sample.image.permute(1, 2, 0), image)
    depth, normals = ROOMS[0][0].copy(), ROOMS[0][1].copy()
    depth[[10, 20, 30], [10, 20, 30]] = 0  # beyond 10 m, none, not a number
    normals[[10, 20, 30, 40, 50], [10, 20, 30, 40, 50]] = 0  # there, and where the mask or the normal is none
    assert np.array_equal(sample.depth[0], depth)
    np.testing.assert_allclose(sample.normals, normals.transpose(2, 0, 1), atol=1e-6)
    assert sample.intrinsics[0, 2] == pytest.approx(325.082449)
    only = NYUv2GeoNet("trainval", geonet, targets=("normals",))[0]
    assert only.depth is None and torch.equal(only.normals, sample.normals)


def test_every_20th_of_geonet_is_held_out_without_the_broken_two(tmp_path, monkeypatch):
    for i in range(43):
        (tmp_path / f"{i:03d}.mat").touch()
    (tmp_path / "list.txt").touch()
    monkeypatch.setattr(nyuv2, "GEONET_BROKEN", (2, 19))

    def numbers(split):
        return [int(name[:3]) for (name,) in NYUv2GeoNet(split, tmp_path).entries]

    assert numbers("val") == [0, 20, 40] and numbers("trainval") == list(range(43))  # not all there: none is left out
    monkeypatch.setattr(nyuv2, "GEONET_FILES", 43)
    assert numbers("trainval") == [i for i in range(43) if i not in (2, 19)]
    assert numbers("val") == [0, 22, 42]
    assert sorted(numbers("train") + numbers("val")) == numbers("trainval")


def test_the_published_geonet_drops_two_of_its_files():
    assert nyuv2.GEONET_FILES - len(nyuv2.GEONET_BROKEN) == RECIPES["nyuv2_geonet"].counts["trainval"]
    count = range(30_914)
    assert len(count[::20]) == RECIPES["nyuv2_geonet"].counts["val"]


def test_what_is_wrong_with_a_file_of_geonet_is_named(geonet):
    path = geonet / "bedroom_0001-b.mat"
    _write_geonet(path, norm=None)
    with pytest.raises(UserError, match=r"bedroom_0001-b\.mat: has no 'norm'; it is another file"):
        NYUv2GeoNet("trainval", geonet)[0]
    _write_geonet(path, depth=np.ones((240, 320)))
    with pytest.raises(UserError, match=r"b\.mat: its 'depth' is \(240, 320\), not 480 x 640; fetch"):
        NYUv2GeoNet("trainval", geonet)[0]
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"b\.mat: damaged, or not a MATLAB file"):
        NYUv2GeoNet("trainval", geonet)[0]


# Preparation


def test_fair_s_normals_are_put_in_order(labelled):
    normals = np.load(labelled / "normals.npy", mmap_mode="r")
    assert normals.shape == (3, *SIZE, 3) and normals.dtype == np.float32
    for stored, (_, true) in zip(normals, ROOMS, strict=True):
        expected = -true  # the source's axes stay
        expected[UNKNOWN] = 0
        np.testing.assert_allclose(stored, expected, atol=1e-6)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_of_any_protocol_are_read(tmp_path, protocol):
    write_normals(_zipped(tmp_path / "fair.zip", _pickled(protocol=protocol)), tmp_path)
    assert (tmp_path / "normals.npy").stat().st_size > 3 * 480 * 640 * 12


class _Call:
    """Pickled, it asks for a function to be called."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("function", [os.system, subprocess.check_output, eval, getattr, np.load, torch.load])
@pytest.mark.parametrize("protocol", [0, 4])
def test_a_pickle_that_asks_for_more_than_arrays_is_not_run(tmp_path, function, protocol, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = _Call(function, "touch run")
    pickled = pickle.dumps({"all_normals": call, "all_filenames": []}, protocol=protocol)
    archive = _zipped(tmp_path / "fair.zip", pickled)
    with pytest.raises(UserError, match=r"fair\.zip: damaged, or not FAIR's .*it asks for .*; remove it") as caught:
        write_normals(archive, tmp_path)
    assert function.__name__ in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fair.zip"]


@pytest.mark.parametrize(
    ("pickled", "sentence"),
    [
        (lambda: _pickled()[:-100], "not FAIR's archive of NYUv2's normals"),
        (lambda: _pickled(all_normals=np.zeros((3, 4, 5, 3))), r"normals of shape \(3, 4, 5, 3\)"),
        (lambda: pickle.dumps([1]), "not FAIR's archive"),
        (lambda: _pickled(all_filenames=["000001", "000002", "000002"]), "its frames are not numbered 1 to 3"),
        (lambda: _pickled(all_filenames=["a", "b", "c"]), "its frames are not numbered 1 to 3"),
    ],
    ids=["cut off", "other shape", "a list", "twice", "names"],
)
def test_another_pickle_is_named(tmp_path, pickled, sentence):
    with pytest.raises(UserError, match=sentence):
        write_normals(_zipped(tmp_path / "fair.zip", pickled()), tmp_path)
    assert not (tmp_path / "normals.npy").exists()


def test_another_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "-")
    (tmp_path / "page.zip").write_bytes(b"<html>")
    for name in ("other.zip", "page.zip"):
        with pytest.raises(UserError, match=f"{name}: damaged, or not FAIR's archive"):
            write_normals(tmp_path / name, tmp_path)


def test_the_official_test_frames_are_those_of_bts(labelled, tmp_path):
    for name in ("nyu_depth_v2_labeled.mat", "splits.mat"):
        os.link(labelled / name, tmp_path / name)
    (tmp_path / "official_splits/test/old").mkdir(parents=True)
    write_official_test(tmp_path)
    folder = tmp_path / "official_splits/test"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "home_office/rgb_00001.jpg",  # frame 2
        "home_office/sync_depth_00001.png",
    ]
    (tmp_path / "nyudepthv2_test_files_with_gt.txt").write_text(
        "home_office/rgb_00001.jpg home_office/sync_depth_00001.png 518.8579"
    )
    sample = NYUv2("test", tmp_path)[0]
    raw = NYUv2Labelled("test", labelled)[0].depth
    assert ((raw - sample.depth) >= 0).all() and ((raw - sample.depth) < 0.001 + 1e-6).all()  # cut off, not rounded
    image = sample.image.permute(1, 2, 0).float()
    framed = IMAGES[1].astype(np.float32)
    framed[:7], framed[474:], framed[:, :7], framed[:, 632:] = 0, 0, 0, 0
    error = np.abs(image.numpy() - framed)
    assert error[:4].mean() < 4 and error[478:].mean() < 4 and error[:, :4].mean() < 4 and error[:, 636:].mean() < 4
    assert error[16:464, 16:624].mean() < 2  # JPEG blurs the edge between


def _use(monkeypatch, name, counts, **files):
    """Make a recipe fetch these files instead of the published ones."""
    archives = []
    for archive in RECIPES[name].archives:
        path = files[archive.makes.partition(".")[0]]
        checksum = archive.md5 and md5(path.read_bytes()).hexdigest()
        archives.append(replace(archive, url=path.as_uri(), md5=checksum))
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], archives=tuple(archives), counts=counts))


def test_nyuv2_is_prepared_but_for_what_is_fetched_by_hand(bts, labelled, tmp_path, monkeypatch, capsys):
    test_list = tmp_path / "nyudepthv2_test_files_with_gt.txt"
    test_list.write_text("home_office/rgb_00001.jpg home_office/sync_depth_00001.png 518.8579")
    names = "nyudepthv2_train_files_with_gt", "nyudepthv2_test_files_with_gt", "nyu_depth_v2_labeled", "splits"
    paths = (
        bts / "nyudepthv2_train_files_with_gt.txt",
        test_list,
        labelled / "nyu_depth_v2_labeled.mat",
        labelled / "splits.mat",
    )
    _use(monkeypatch, "nyuv2", {"train": 2, "test": 1}, **dict(zip(names, paths, strict=True)))
    root = tmp_path / "data/nyu_depth_v2"
    with pytest.raises(UserError) as caught:
        prepare("nyuv2", root)
    sentence = str(caught.value)
    assert "sync.zip" in sentence and "github.com/cleinc/bts" in sentence and f"{root}/sync/basement_0001a" in sentence
    assert sentence.endswith(f"run `siglip2-dense data prepare nyuv2 --root {root}`.") and len(NYUv2("test", root)) == 1
    (bts / "sync").rename(root / "sync")
    assert prepare("nyuv2", root)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "2", "2", "2", "0"] in lines and ["test", "1", "1", "1", "0"] in lines
    assert ["train", "100.0", "1.500", "21.225", "40.950"] in lines  # of the depth
    assert ["camera,", "pixels:", "fx", "518.9,", "fy", "519.5,", "cx", "325.1,", "cy", "253.2"] in lines

    (root / "sync/a_1/rgb_00009.jpg").unlink()
    Image.fromarray(np.ones(SIZE, np.uint8)).save(root / "sync/b_1/sync_depth_00002.png")
    assert not verify("nyuv2", root)
    out = capsys.readouterr().out
    assert (
        f"line 4, but not there; move {root}/sync away and run `siglip2-dense data prepare nyuv2 --root {root}`" in out
    )
    assert "sync_depth_00002.png: holds L pixels, not depth" in out


def test_the_labelled_frames_are_prepared_and_compared_with_their_depth(labelled, tmp_path, monkeypatch, capsys):
    archive = _zipped(tmp_path / "fair.zip", _pickled())
    files = dict(nyu_depth_v2_labeled=labelled / "nyu_depth_v2_labeled.mat", splits=labelled / "splits.mat")
    _use(monkeypatch, "nyuv2_labelled", {"train": 2, "test": 1}, normals=archive, **files)
    root = tmp_path / "data/nyu_depth_v2"
    assert prepare("nyuv2_labelled", root)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (train,) = (line for line in lines if line[0:1] == ["train"] and len(line) == 5 and line[2].startswith("+"))
    assert min(map(float, train[2:])) > 0.95
    assert not (root.parent / "downloads/splits.mat").exists()  # it is in the root


@pytest.mark.parametrize(
    ("stored", "axes"),
    [
        (lambda normals: normals, "xyz"),
        (lambda normals: -normals * [1, -1, 1], "y"),
        (lambda normals: -normals[..., [0, 2, 1]], "yz"),
        (lambda normals: -normals[..., [1, 0, 2]], "xy"),
    ],
    ids=["away", "y up", "y and z exchanged", "x and y exchanged"],
)
def test_other_axes_of_the_normals_are_found(labelled, tmp_path, stored, axes, monkeypatch, capsys):
    for name in ("nyu_depth_v2_labeled.mat", "splits.mat"):
        os.link(labelled / name, tmp_path / name)
    write_normals(_zipped(tmp_path / "fair.zip", _pickled(stored=stored)), tmp_path)
    monkeypatch.setitem(RECIPES, "nyuv2_labelled", replace(RECIPES["nyuv2_labelled"], counts={"test": 1}))
    assert not verify("nyuv2_labelled", tmp_path)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem")]
    assert [line.split()[2] for line in told] == list(axes)
    assert all("disagrees with the depth" in line and "NYUv2Labelled.signs" in line for line in told)


def test_geonet_is_verified_and_says_where_it_comes_from(geonet, tmp_path, monkeypatch, capsys):
    with pytest.raises(
        UserError, match=rf"data1\.zip .*github\.com/xjqi/GeoNet.*-d {tmp_path}/no`, and run .* prepare"
    ):
        prepare("nyuv2_geonet", tmp_path / "no")
    monkeypatch.setitem(RECIPES, "nyuv2_geonet", replace(RECIPES["nyuv2_geonet"], counts={"trainval": 1}))
    assert prepare("nyuv2_geonet", geonet)
    _write_geonet(geonet / "bedroom_0001-b.mat", norm=np.pad(ROOMS[0][1], ((0, 1), (0, 1), (0, 0))))
    assert not verify("nyuv2_geonet", geonet)
    assert "trainval: z of the stored normals disagrees with the depth (-1.00" in capsys.readouterr().out


# The configs, on miniatures


def _train(name, run, head, train_root, val_root):
    from siglip2_dense.cli.train import main

    options = ["train_cfg.max_iters=1", "train_dataloader.batch_size=1", "train_dataloader.num_workers=0"]
    options += ["val_dataloader.num_workers=0", f"train_dataloader.dataset.root={train_root}"]
    options += [f"val_dataloader.dataset.root={val_root}", *head]
    main([name, "--encoder", "test_vit", "--weights", "random", "--work-dir", str(run), "--cfg-options", *options])
    return json.loads((run / "results.json").read_text())


@pytest.mark.parametrize("name", ["probe_nyuv2_depth", "probe_nyuv2_depth_dpt"])
def test_the_depth_configs_train_and_score(bts, tmp_path, name):
    head = ["model.heads.depth.head.width=8"] if name.endswith("dpt") else []
    record = _train(name, tmp_path / "run", head, bts, bts)
    assert record["data"]["images"] == 2 and 2 < record["metrics"]["rmse"] < 4  # mid-range, where the depth is 2 m
    assert record["protocol"]["heads"]["depth"]["scoring"]["crop"] == "eigen"


def test_the_normals_config_trains_and_scores(labelled, geonet, tmp_path):
    record = _train("probe_nyuv2_normals", tmp_path / "run", ["model.heads.normals.head.width=8"], geonet, labelled)
    assert 0 < record["metrics"]["rmse"] < 180 and record["metrics"]["median_pooled"] > 0


def test_encoded_normals_are_named(geonet):
    _write_geonet(geonet / "bedroom_0001-b.mat", norm=127 * np.ones((481, 641, 3), np.float32))
    with pytest.raises(UserError, match=r"bedroom_0001-b\.mat: its normals have the length 220 instead of 1"):
        NYUv2GeoNet("trainval", geonet)[0]
