"""What a Predictor gives: pictures to look at, and files that say the same."""

import json

import numpy as np
import pytest
from PIL import Image

from siglip2_dense.data.reading import read_depth, read_labels
from siglip2_dense.errors import UserError
from siglip2_dense.predict import found as module
from siglip2_dense.predict.found import Boxes, ClassMap, DepthMap, NormalMap
from siglip2_dense.predict.result import Result
from siglip2_dense.viz.colours import colour_normals, palette

HEIGHT, WIDTH = 40, 300
IMAGE = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)


def everything():
    random = np.random.default_rng(0)
    ids = random.integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)
    depth = random.uniform(0.5, 70, (HEIGHT, WIDTH)).astype(np.float32)
    normals = random.normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    boxes = Boxes(
        np.array([[10, 5, 200, 30.5], [-3, 0, 20, 44]], np.float32), np.array([0.9, 0.4], np.float32), np.array([1, 0]),
        ("cat", "dog"), palette(3)[1:],
    )  # fmt: skip
    classes = ClassMap(ids, ("sky", "road", "car"), palette(4)[1:])
    return {"segmentation": classes, "depth": DepthMap(depth), "normals": NormalMap(normals), "boxes": boxes}


def test_fields():
    found = everything()
    result = Result(IMAGE, found, "a/photo.jpg")
    assert result.segmentation is found["segmentation"] and result.depth_m is found["depth"].values
    assert result.normals is found["normals"].values and result.boxes.names == ["dog", "cat"]
    nothing = Result(IMAGE, {"relative": DepthMap(found["depth"].values, "relative")})
    assert (nothing.segmentation, nothing.depth_m, nothing.normals, nothing.boxes) == (None,) * 4
    shares = np.bincount(found["segmentation"].ids.ravel()) / IMAGE[..., 0].size
    assert np.allclose(found["segmentation"].shares, shares)
    assert found["boxes"].words == "dog 0.90, cat 0.40" and found["boxes"].kind == "boxes"


@pytest.mark.parametrize("strip", [2**21, 700])
def test_files_say_what_was_found(tmp_path, monkeypatch, strip):
    monkeypatch.setattr(module, "STRIP", strip)  # all rows at once, and two at a time
    found = everything()
    files = Result(IMAGE, found, "a/photo.v2.jpg", {"encoder": "x"}).save(tmp_path / "out", floats=True)
    stem = tmp_path / "out" / "photo.v2"
    assert {path.name for path in files} == {path.name for path in (tmp_path / "out").iterdir()} == {
        f"photo.v2{end}" for end in (
            ".json", "_labels.png", "_overlay.png", "_depth.png", "_depth.npz", "_depth_overlay.png", "_normals.png",
            "_normals.npz", "_normals_overlay.png", "_boxes.png",
        )
    }  # fmt: skip
    assert np.array_equal(read_labels(f"{stem}_labels.png"), found["segmentation"].ids)
    expected = np.minimum(found["depth"].values, 65.535)
    assert np.allclose(read_depth(f"{stem}_depth.png"), expected, atol=0.0006) and (expected == 65.535).any()
    with np.load(f"{stem}_depth.npz") as depth, np.load(f"{stem}_normals.npz") as normals:
        assert np.array_equal(depth["depth"], found["depth"].values)
        assert np.array_equal(normals["normals"], found["normals"].values)
    coloured = np.asarray(Image.open(f"{stem}_normals.png"))
    assert np.array_equal(coloured, colour_normals(found["normals"].values.transpose(2, 0, 1)))
    about = json.loads((tmp_path / "out/photo.v2.json").read_text())
    assert (
        about["size"] == [HEIGHT, WIDTH] and about["image"] == "a/photo.v2.jpg" and about["made_by"] == {"encoder": "x"}
    )
    assert {"photo.v2.json", *about["files"]} == {path.name for path in files}
    assert [one["name"] for one in about["labels"].values()] == ["sky", "road", "car"]
    assert about["boxes"][0] == {"label": 1, "name": "dog", "score": 0.9, "xyxy": [10, 5, 200, 30.5]}
    assert about["depth"]["unit"] == "m" and about["depth"]["png"] == "1/1000 m"
    assert about["normals"]["frame"].startswith("x right, y down")


def test_several_heads_of_a_kind_have_files_of_their_own(tmp_path):
    depth = everything()["depth"]
    result = Result(IMAGE, {"near": depth, "far": DepthMap(depth.values * 2)})
    names = {path.name for path in result.save(tmp_path, pictures=False)}
    assert names == {"image_near_depth.png", "image_far_depth.png", "image.json"}
    assert set(json.loads((tmp_path / "image.json").read_text())) > {"near_depth", "far_depth"}
    assert result.depth_m is depth.values


def test_many_classes_take_16_bits(tmp_path):
    ids = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16) % 1000
    many = ClassMap(ids, tuple(map(str, range(1000))), palette(1000))
    Result(IMAGE, {"s": many}).save(tmp_path, "x")
    assert np.array_equal(read_labels(tmp_path / "x_labels.png"), ids)


def test_pictures_at_the_images_own_size_and_with_legends():
    found = everything()
    result = Result(IMAGE, found)
    for name, one in found.items():
        for opacity in (0.0, 0.6, 1.0):
            own = np.asarray(result.over(name, opacity))
            assert own.shape == IMAGE.shape and own.dtype == np.uint8
            if name != "boxes":
                assert (own == 100).all() == (opacity == 0)
        drawn = result.draw(name)
        assert drawn.mode == "RGB" and drawn.size[0] >= WIDTH and drawn.size[1] >= HEIGHT, name
        assert one.words
    labels = found["segmentation"]
    assert np.array_equal(np.asarray(result.over("segmentation", 1.0)), np.array(labels.colours)[labels.ids])
    assert result.over().tobytes() == result.over("segmentation").tobytes()
    whole = result.draw()
    assert whole.size[1] > 4 * HEIGHT and whole.size[0] >= WIDTH
    with pytest.raises(UserError, match="no head is called 'segmentatoin': did you mean 'segmentation'"):
        result.draw("segmentatoin")
    with pytest.raises(UserError, match="opacity=2"):
        result.draw(opacity=2)


def test_pictures_of_tiny_and_of_large_images():
    for size in ((1, 1), (1, 700), (2500, 3)):
        image = np.zeros((*size, 3), np.uint8)
        depth = DepthMap(np.ones(size, np.float32))
        normals = NormalMap(np.tile(np.float32([0, 0, -1]), (*size, 1)))
        result = Result(image, {"depth": depth, "normals": normals, "s": ClassMap(image[..., 0], ("a",), [(9, 9, 9)])})
        for name in result.heads:
            assert max(result.draw(name).size) < 2500, (size, name)
            assert np.asarray(result.over(name)).shape == image.shape
