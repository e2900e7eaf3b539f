"""NAVI's reader and its preparation, on miniatures in the genuine format: balls in front of a camera."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from siglip2_dense.data.conversion import add_navi
from siglip2_dense.data.navi import NAVI, relative, square_around
from siglip2_dense.data.prepare import prepare
from siglip2_dense.data.recipes import RECIPES
from siglip2_dense.data.verify import verify
from siglip2_dense.errors import UserError

SIZE = (1024, 1536)  # height, width
FOCAL = 1200.0  # of images of 3072 x 4608 pixels, so 400 of these
CENTRE, RADIUS = np.array([0.004, -0.006, 0.05]), 0.009  # metres: so near that 16 bits of inverse depth are fine


def _ball(size=SIZE, centre=CENTRE):
    """(H, W) metres of the ball seen by a camera whose axis is in the middle of the image, 0 beside it."""
    height, width = size
    focal = FOCAL * min(size) / 3072
    row, column = np.mgrid[:height, :width] + 0.5
    rays = np.stack([(column - width / 2) / focal, (row - height / 2) / focal, np.ones(size)], -1)
    a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - RADIUS**2
    root = b * b - a * c
    return np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, 0)


def _stored(metres):
    return np.where(metres > 0, 65535 * 10 / np.maximum(1000 * metres, 1e-9), 0).round().astype(np.uint16)


def _png(values) -> bytes:
    Image.fromarray(values).save(stream := io.BytesIO(), format="PNG")
    return stream.getvalue()


def _jpeg(pixels, turned=False) -> bytes:
    exif = Image.Exif()
    if turned:  # stored on its side, to be turned by 90 degrees clockwise
        pixels = np.rot90(pixels)
        exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream := io.BytesIO(), "JPEG", quality=95, exif=exif)
    return stream.getvalue()


def _pixels(size=SIZE):
    """Smooth in both directions, another colour in each corner."""
    row, column = np.mgrid[: size[0], : size[1]]
    return np.stack([255 * row / size[0], 255 * column / size[1], 0 * row + 80], -1).astype(np.uint8)


def _annotation(name, scene, size=(3072, 4608)):
    camera = {"q": [1, 0, 0, 0], "t": [0, 0, 50], "focal_length": FOCAL, "camera_model": "pixel_5"}
    return {
        "object_id": "ball",
        "camera": camera,
        "filename": f"{name}.jpg",
        "filename_original": "PXL_1",
        "image_size": list(size),
        "scene_name": scene,
        "split": "train",
        "occluded": False,
    }


def _scene(path, names, metres=None, turned=False, size=SIZE, annotated=(3072, 4608)):
    """{name below the root: content} of a scene; ``size`` is that of the upright image."""
    depth = _png(_stored(_ball(size) if metres is None else metres))
    image = _jpeg(_pixels(size), turned)
    annotations = [_annotation(name, path.rpartition("/")[2], annotated) for name in names]
    files = {f"{path}/annotations.json": json.dumps(annotations).encode()}
    for name in names:
        files[f"{path}/images/{name}.jpg"], files[f"{path}/depth/{name}.png"] = image, depth
        files[f"{path}/masks/{name}.png"] = b"-"
    return files


def _write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


SMALL = (32, 48)


def _objects():
    """Two objects with both kinds of scenes, in the two layouts, and two with one kind."""
    files = _scene("dog/multiview_01", ["002", "000"], size=SMALL) | _scene("dog/multiview_00", ["001"], size=SMALL)
    files |= _scene("cat/multiview-00-pixel_5", ["000", "001"], size=SMALL)
    files |= _scene("cat/video-00-pixel_5-MVI_1", ["000"], size=SMALL) | _scene("owl/wild_set", ["000"], size=SMALL)
    files |= _scene("cat/wild_set", ["010", "009"], size=SMALL) | _scene("dog/wild_set", ["000"], size=SMALL)
    files |= _scene("pig/multiview_00", ["000"], size=SMALL)
    return files | {"dog/3d_scan/dog.obj": b"-", "LICENSE": b"-"}


def _one(root, split="train", **settings):
    """The sample of a root with one object."""
    (sample,) = NAVI(split, root, every=1, **settings)
    return sample


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """A wide image to train on, and a high one, stored on its side, to score."""
    root = tmp_path_factory.mktemp("data") / "navi"
    high = _scene("ball/wild_set", ["000"], turned=True, size=SIZE[::-1], annotated=(4608, 3072))
    return _write(root, _scene("ball/multiview_00", ["000"]) | high)


def test_scenes_of_both_layouts_are_in_a_fixed_order(tmp_path):
    root = _write(tmp_path, _objects())
    train = NAVI("train", root, every=1)
    assert [image for image, _ in train.entries] == [
        "cat/multiview-00-pixel_5/images/000.jpg",
        "cat/multiview-00-pixel_5/images/001.jpg",
        "dog/multiview_00/images/001.jpg",
        "dog/multiview_01/images/000.jpg",
        "dog/multiview_01/images/002.jpg",
    ]
    assert train.entries[0][1] == "cat/multiview-00-pixel_5/depth/000.png" and train.objects == ("cat", "dog")
    test = NAVI("test", root, every=1)
    assert [image for image, _ in test.entries] == [
        "cat/wild_set/images/009.jpg",
        "cat/wild_set/images/010.jpg",
        "dog/wild_set/images/000.jpg",
    ]
    assert NAVI("train", root).entries == [train.entries[0], train.entries[4]]
    assert NAVI("test", root, every=2).entries == [test.entries[0], test.entries[2]]


def _analytic(sample):
    """(points on the ball's surface (P, 3), normals (3, P)) of the pixels with depth, from the sample's own camera."""
    depth = sample.depth[0].double()
    row, column = torch.nonzero(depth > 0, as_tuple=True)
    pixels = torch.stack([column + 0.5, row + 0.5, torch.ones(len(row))]).double()
    points = (torch.linalg.inv(sample.intrinsics.double()) @ pixels * depth[row, column]).T
    return points, sample.normals[:, row, column]


@pytest.mark.parametrize("split", ["train", "test"], ids=["wide", "high, turned by EXIF"])
def test_points_lie_on_the_ball_and_normals_stand_on_it(ball, split):
    sample = _one(ball, split, depth="metric", normals="true")
    points, normals = _analytic(sample)
    out = points - torch.from_numpy(CENTRE)
    assert (out.norm(dim=1) - RADIUS).abs().max() < 1e-4 and len(points) > 4_000
    cosine = (normals * (out / out.norm(dim=1, keepdim=True)).T).sum(0)
    known = normals.any(0)
    assert cosine[known].median() > 0.9995 and (cosine[known] > 0.98).float().mean() > 0.95  # else at its edge
    assert sample.original_size == sample.image.shape[1:] == sample.depth.shape[1:]


@pytest.mark.parametrize("split", ["train", "test"], ids=["wide", "high, turned by EXIF"])
def test_the_image_and_its_depth_are_cut_together(ball, split):
    """The ball is 200 pixels x / z from the middle of an image of 512 x 768; colours say where a pixel is from."""
    sample = _one(ball, split, depth="metric")
    side = sample.image.shape[1]
    assert sample.image.shape == (3, side, side)
    size = np.array([512, 768] if split == "train" else [768, 512])
    expected = 255 * (size / 2 + 200 * CENTRE[[1, 0]] / CENTRE[2]) / size
    assert sample.image[:2, side // 2, side // 2].tolist() == pytest.approx(expected.tolist(), abs=3)
    depth = sample.depth[0] > 0
    rows, columns = depth.any(1), depth.any(0)
    assert (rows[0] and rows[-1]) or (columns[0] and columns[-1])  # the square is no larger than the ball


def test_the_square_holds_all_of_the_object_and_stays_inside():
    def cut(rows, columns):
        mask = np.zeros((20, 20), bool)
        mask[slice(*rows), slice(*columns)] = True
        return [(part.start, part.stop) for part in square_around(mask)]

    assert cut((5, 10), (4, 9)) == [(5, 10), (4, 9)]  # the last row and column are in it
    assert cut((5, 7), (4, 10)) == [(3, 9), (4, 10)]
    assert cut((0, 2), (4, 14)) == [(0, 10), (4, 14)] and cut((18, 20), (4, 14)) == [(10, 20), (4, 14)]
    assert cut((3, 4), (0, 20)) == [(0, 20), (0, 20)] and cut((7, 8), (7, 8)) == [(7, 8), (7, 8)]


def _probe3d_normals(depth, focal):
    """probe3d's compute_normal, pixel by pixel: into the scene, the camera's axis in the top left corner."""
    height, width = depth.shape
    z = np.where(depth > 0, depth, 1e6)
    row, column = np.mgrid[:height, :width] + 0.5
    points = np.stack([column * z / focal, row * z / focal, z], -1)
    normals = np.zeros((3, height, width))
    for i in range(1, height - 1):
        for j in range(1, width - 1):
            if depth[i, j] > 0:
                left, top, right, bottom = (
                    points[a, b] - points[i, j] for a, b in ((i, j - 1), (i - 1, j), (i, j + 1), (i + 1, j))
                )
                pairs = ((left, top), (top, right), (right, bottom), (bottom, left))
                mean = sum(np.cross(one, other) for one, other in pairs) / 4
                normals[:, i, j] = mean / max(np.linalg.norm(mean), 1e-12)
    return normals


def test_normals_of_the_corner_are_probe3d_s_towards_the_camera(ball):
    sample = _one(ball, depth="metric", normals="corner")
    true = _one(ball, depth="metric", normals="true")
    expected = -_probe3d_normals(sample.depth[0].double().numpy(), 200.0)
    np.testing.assert_allclose(sample.normals, expected, atol=1e-3)
    cosine = (sample.normals * true.normals).sum(0)[sample.normals.any(0)]
    assert torch.rad2deg(cosine.clamp(-1, 1).acos()).mean() > 4
    assert torch.equal(sample.intrinsics, true.intrinsics)  # that of the samples is true in either case


def test_relative_depth_by_hand():
    depth = torch.tensor([[[0.0, 0.50, 0.56, 0.60]]])
    assert relative(depth, 0.48).tolist()[0][0] == pytest.approx(
        [0, 0.01 + 0.99 * 0.02 / 0.12, 0.01 + 0.99 * 0.08 / 0.12, 1]
    )
    thin = relative(torch.tensor([[[0.0, 0.300, 0.304]]]), 0.300)
    assert thin.tolist()[0][0] == pytest.approx([0, 0.01, 0.01 + 0.99 * 0.4], abs=1e-4)


def test_the_least_depth_is_the_whole_image_s_and_the_greatest_the_crop_s(tmp_path):
    """A speck nearer than the ball at the image's edge, and one farther, are outside the middle square."""
    metres = _ball()
    metres[500:504, 10:14], metres[500:504, 20:24] = 0.020, 0.500
    root = _write(tmp_path, _scene("ball/multiview_00", ["000"], metres) | _scene("ball/wild_set", ["000"]))
    plain, sample = _one(root, depth="metric").depth, _one(root).depth
    assert plain[plain > 0].min() > 0.03 and plain.max() < 0.06
    near, far = 0.020, plain.max()
    expected = torch.where(plain > 0, 0.01 + 0.99 * (plain - near) / (far - near), 0)
    torch.testing.assert_close(sample, expected, atol=1e-4, rtol=0)
    assert sample.max() == pytest.approx(1) and torch.equal(_one(root).normals, _one(root, depth="metric").normals)


def test_an_image_depends_on_its_files_and_on_its_scene_s_cameras(ball):
    files = NAVI("train", ball).files_on_disk(0)
    assert [path.relative_to(ball / "ball" / "multiview_00").as_posix() for path in files] == [
        "images/000.jpg", "depth/000.png", "annotations.json",
    ]  # fmt: skip
    assert all(path.is_file() for path in files)


def test_targets_and_kinds_are_what_was_asked_for(ball):
    assert _one(ball, targets="depth").normals is None and _one(ball, targets=("normals",)).depth is None
    kinds = [{}, {"depth": "metric"}, {"normals": "true"}, {"every": 1}]
    assert len({NAVI("train", ball, **kind).fingerprint() for kind in kinds}) == 3  # every: one image either way
    assert NAVI("train", ball, normals=True).normals == "true"  # what a command line makes of the word
    assert NAVI("train", ball, depth="metric").unit == "m" and NAVI("train", ball).unit == ""


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"depth": "inverse"}, "NAVI: depth='inverse': give relative or metric"),
        ({"normals": None}, "NAVI: normals=None: give corner or true"),
        ({"every": 0}, "NAVI: every=0; give 1 for all images"),
        ({"targets": ("labels",)}, "NAVI has no target 'labels'"),
        ({"split": "val"}, "navi has no split 'val'"),
    ],
)
def test_wrong_settings_are_sentences(ball, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        NAVI(**{"split": "train", "root": ball} | settings)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cat/wild_set/annotations.json": b"{"}, "cat/wild_set/annotations.json: not NAVI's list of images"),
        (
            {"cat/wild_set/annotations.json": b'[{"filename": "009.jpg"}]'},
            r"not NAVI's list .*\(KeyError\('camera'\)\)",
        ),
        ({"cat/wild_set/annotations.json": None}, "looked in .*cat/wild_set/annotations.json; run .* prepare navi"),
        ({"cat/wild_set/depth/009.png": None}, "images/009.jpg has no depth, looked for .*depth/009.png; add"),
        ({"cat/wild_set/images/009.jpg": None}, "cat/wild_set/images/009.jpg is listed but not there"),
        (
            {"cat/wild_set/depth/009.png": None, "cat/wild_set/depth/010.png": None, "cat/wild_set/depth": None},
            "navi is not there or not complete, looked in .*cat/wild_set/depth; run `siglip2-dense data prepare navi",
        ),
        (
            {"cat/wild_set/depth/009.png": _png(np.ones(SMALL, np.uint8))},
            "cat/wild_set/depth/009.png: holds L pixels, not depth",
        ),
        (
            {"cat/wild_set/depth/009.png": _png(np.ones((48, 32), np.uint16))},
            r"images/009.jpg is 32x48 pixels \(height x width\) but its depth, .*depth/009.png, is 48x32",
        ),
        (
            {"cat/wild_set/depth/009.png": _png(np.pad(np.uint16([[1]]), ((3, 28), (1, 46))))},
            "depth/009.png: has no depth in the square in its middle",
        ),
    ],
    ids=["json", "camera", "annotations", "depth", "image", "folder", "8 bits", "size", "empty"],
)
def test_what_is_wrong_is_named(tmp_path, change, sentence):
    _write(tmp_path, _objects())
    for name, content in change.items():
        path = tmp_path / name
        if content is None:
            path.rmdir() if path.is_dir() else path.unlink()
        else:
            path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        NAVI("test", tmp_path, every=1)[0]


# Preparation


def _tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"navi_v1.0/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_navi_is_shrunk_as_it_is_unpacked(tmp_path):
    """The same samples come from the small files, but for JPEG; those turned by EXIF are stored upright."""
    large = (2048, 3072)
    files = _scene("ball/multiview_00", ["000"], size=large) | _scene("ball/wild_set", ["000"], turned=True, size=large)
    files |= _scene("ball/video-00-x", ["000"], size=SMALL) | {"ball/3d_scan/ball.jpg": b"-"}
    whole, small = _write(tmp_path / "whole", files), tmp_path / "small"
    add_navi(_tar(tmp_path / "navi_v1.0.tar.gz", files), small)
    names = {str(path.relative_to(small)) for path in small.rglob("*.*")}
    scenes = "ball/multiview_00", "ball/wild_set"
    kinds = "images/000.jpg", "depth/000.png", "annotations.json"
    assert names == {"README.txt"} | {f"{scene}/{kind}" for scene in scenes for kind in kinds}
    for scene in scenes:
        assert Image.open(small / scene / "images/000.jpg").size == (1536, 1024)
        assert Image.open(small / scene / "depth/000.png").size == (1536, 1024)
    for split in ("train", "test"):
        one, other = (_one(root, split, depth="metric", normals="true") for root in (whole, small))
        assert torch.equal(one.depth, other.depth) and torch.equal(one.intrinsics, other.intrinsics)
        assert (one.image.float() - other.image.float()).abs().mean() < 1.5


def test_an_interrupted_conversion_is_gone_on_from(tmp_path):
    archive = _tar(tmp_path / "navi_v1.0.tar.gz", _objects())
    root = tmp_path / "navi"
    _write(root, {"dog/multiview_00/images/001.jpg": b"made before"})
    add_navi(archive, root)
    assert (root / "dog/multiview_00/images/001.jpg").read_bytes() == b"made before"
    assert Image.open(root / "cat/wild_set/images/009.jpg").size == SMALL[::-1]  # never enlarged
    with pytest.raises(UserError, match=r"other\.tar\.gz has no OBJECT/wild_set/annotations\.json"):
        add_navi(_tar(tmp_path / "other.tar.gz", {"a/b/images/c.jpg": b"-"}), tmp_path / "new")


def test_navi_is_prepared_and_verified(tmp_path, monkeypatch, capsys):
    archive = _tar(tmp_path / "server/navi_v1.0.tar.gz", _objects())
    recipe = RECIPES["navi"]
    mine = replace(recipe.archives[0], url=archive.as_uri())
    monkeypatch.setitem(RECIPES, "navi", replace(recipe, archives=(mine,), objects=2))
    root = tmp_path / "data/navi"
    assert prepare("navi", root)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "5", "-", "5", "0"] in lines and ["test", "3", "-", "3", "0"] in lines
    (_, share, low, middle, high), *_ = (line for line in lines if line[:1] == ["test"] and "." in line[1])
    assert 55 < float(share) < 80  # a coarse ball in its square
    assert float(low) == pytest.approx(0.042, abs=0.002) and 0.042 < float(middle) < float(high) < 0.05

    monkeypatch.setitem(RECIPES, "navi", replace(recipe, objects=3))
    (root / "dog/wild_set/depth/000.png").unlink()
    assert not verify("navi", root)
    out = capsys.readouterr().out
    assert f"test: 2 objects instead of 3; move {root} away and run `siglip2-dense data prepare navi --root" in out
    assert "000.jpg has no depth" in out


@pytest.mark.parametrize(("name", "score"), [("probe_navi_depth", "rmse"), ("probe_navi_normals", "recall_30")])
def test_the_config_trains_and_scores(tmp_path, name, score):
    from siglip2_dense.cli.train import main

    root, head = _write(tmp_path / "navi", _objects()), "depth" if "depth" in name else "normals"
    options = ["train_cfg.max_iters=1", "train_dataloader.batch_size=1", f"model.heads.{head}.head.width=8"]
    for loader in ("train_dataloader", "val_dataloader"):
        options += [f"{loader}.dataset.root={root}", f"{loader}.num_workers=0", f"{loader}.dataset.every=3"]
    run = tmp_path / "run"
    main([name, "--encoder", "test_vit", "--weights", "random", "--work-dir", str(run), "--cfg-options", *options])
    record = json.loads((run / "results.json").read_text())
    assert record["data"]["images"] == 1 and 0 <= record["metrics"][score] < 180
    assert len(list((run / "pictures").glob("*.png"))) == 1


def test_an_archive_of_damaged_pictures_is_named(tmp_path):
    files = _scene("ball/wild_set", ["000"], size=SMALL)
    files["ball/wild_set/images/000.jpg"] = b"no picture"
    with pytest.raises(UserError, match=r"damaged picture for .*ball/wild_set/images/000\.jpg"):
        add_navi(_tar(tmp_path / "navi_v1.0.tar.gz", files), tmp_path / "navi")


def test_an_archive_with_an_entry_for_its_own_folder(tmp_path):
    path = tmp_path / "navi.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in _scene("ball/wild_set", ["000"], size=SMALL).items():
            member = tarfile.TarInfo(f"./navi/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    add_navi(path, tmp_path / "navi")
    assert (tmp_path / "navi/ball/wild_set/depth/000.png").is_file()
