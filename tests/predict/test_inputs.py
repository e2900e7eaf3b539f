"""Images of every kind become RGB of 8 bits, and paths the files that they stand for."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from siglip2_dense.data.images import pixels_of
from siglip2_dense.data.reading import read_image
from siglip2_dense.errors import UserError
from siglip2_dense.predict.inputs import sources

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOURS[:, :, 0]


def test_arrays():
    assert np.array_equal(pixels_of(COLOURS), COLOURS)
    assert np.array_equal(pixels_of(np.dstack([COLOURS, GREY])), COLOURS)  # alpha goes
    assert np.array_equal(pixels_of(COLOURS.astype(np.uint16) * 257), COLOURS)
    grey = np.dstack([GREY] * 3)
    for one in (GREY, GREY[:, :, None], GREY.astype(np.uint16) * 257):
        assert np.array_equal(pixels_of(one), grey)
    turned = pixels_of(COLOURS[::-1, ::2])  # a view, with strides torch would not take
    assert turned.flags.c_contiguous and np.array_equal(turned, COLOURS[::-1, ::2])
    assert pixels_of(np.asarray(Image.fromarray(COLOURS))).flags.writeable
    values = np.array([[0, 127, 128, 129, 65534, 65535]], np.uint16)
    assert pixels_of(values)[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 6, 9, 3), np.uint8), "without a batch"),
        (np.zeros((3, 6, 9), np.uint8), r"an array of shape \(3, 6, 9\)"),
        (np.zeros((0, 9, 3), np.uint8), "an array of shape"),
        (np.zeros((6, 9, 3), np.float32), "an array of float32, whose range is not known"),
        (np.zeros((6, 9, 3), np.int64), "an array of int64"),
        (Image.fromarray(np.zeros((6, 9), np.float32)), "holds floating-point numbers"),
        (Image.fromarray(np.full((6, 9), 70_000, np.int32)), "holds numbers from 70000 to 70000"),
        (None, "not as NoneType"),
        ("none.jpg", "none.jpg: no such file"),
    ],
)
def test_what_is_no_image_is_a_sentence(image, message):
    with pytest.raises(UserError, match=message):
        pixels_of(image)


def test_files_and_pillows_images_of_every_kind(tmp_path):
    image = Image.fromarray(COLOURS)
    kinds = {
        "rgb.png": image, "alpha.png": image.convert("RGBA"), "palette.png": image.quantize(256),
        "cmyk.tif": image.convert("CMYK"), "grey.png": image.convert("L"), "both.png": image.convert("LA"),
        "bit.png": image.convert("1"), "deep.png": Image.fromarray(GREY.astype(np.uint16) * 257),
    }  # fmt: skip
    for name, one in kinds.items():
        one.save(tmp_path / name)
        expected = np.asarray(one.convert("RGB"))
        if name == "deep.png":
            expected = np.dstack([GREY] * 3)
        assert np.array_equal(pixels_of(tmp_path / name), expected), name
        assert np.array_equal(pixels_of(one), expected), name
        assert pixels_of(str(tmp_path / name)).shape == (6, 9, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed_in_files_and_images(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    found = pixels_of(tmp_path / "a.png")
    assert found.shape[:2] == ((9, 6) if orientation > 4 else (6, 9))
    with Image.open(tmp_path / "a.png") as opened:
        assert np.array_equal(pixels_of(opened), found)
    turns = {1: COLOURS, 2: COLOURS[:, ::-1], 3: COLOURS[::-1, ::-1], 4: COLOURS[::-1], 5: COLOURS.swapaxes(0, 1)}
    turns |= {6: np.rot90(COLOURS, -1), 7: COLOURS[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(COLOURS)}
    assert np.array_equal(found, turns[orientation])


def test_real_photographs_are_read_as_data_sets_read_them(real):
    files = sorted(real("images").glob("*.jpg"))
    assert len(files) == 12 and all(np.array_equal(pixels_of(file), read_image(file)) for file in files)


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_a_folder_stands_for_what_is_in_all_its_folders(tmp_path):
    touched(
        tmp_path / "in", "b.JPG", "a.png", "x/a.png", "x/y/a.b.png", "x/c.mp4", "notes.txt", ".hid.png", ".git/a.png"
    )
    touched(tmp_path / "in", "out/a_overlay.png")
    found = sources([tmp_path / "in"], tmp_path / "in/out")
    assert [one.path.relative_to(tmp_path / "in").as_posix() for one in found] == [
        "a.png", "b.JPG", "x/a.png", "x/c.mp4", "x/y/a.b.png",
    ]  # fmt: skip
    assert [one.place.as_posix() for one in found] == ["a", "b", "x/a", "x/c", "x/y/a.b"]
    assert [one.is_video for one in found] == [False, False, False, True, False]
    single = sources([str(tmp_path / "in/x/a.png"), tmp_path / "in/none.xyz"], tmp_path / "out")
    assert [one.place for one in single] == [Path("a"), Path("none")]


def test_a_photograph_and_its_video_keep_their_suffixes(tmp_path):
    touched(tmp_path, "in/x/a.jpg", "in/x/a.mov", "in/x/b.jpg", "in/a.jpg")
    found = sources([tmp_path / "in"], tmp_path / "out")
    assert [str(one.place) for one in found] == ["a", "x/a.jpg", "x/a.mov", "x/b"]
    touched(tmp_path, "in/x/a.jpg.png")  # whose name without its suffix is another's with it
    with pytest.raises(UserError, match=r"2 of the images are called 'x/a\.jpg'"):
        sources([tmp_path / "in"], tmp_path / "out")


def test_paths_that_stand_for_nothing_or_for_too_much(tmp_path):
    (tmp_path / "empty").mkdir()
    touched(tmp_path, "one/a.png", "two/a.png")
    with pytest.raises(UserError, match="holds no image and no video"):
        sources([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(UserError, match="is a file, and predictions go into a folder"):
        sources([tmp_path / "one"], tmp_path / "one/a.png")
    with pytest.raises(UserError, match=r"none of the images is there: x.png, y.png"):
        sources(["x.png", "y.png"], tmp_path / "out")
    for paths in ([tmp_path / "one", tmp_path / "two"], [tmp_path / "one/a.png"] * 2):
        with pytest.raises(UserError, match=r"2 of the images are called 'a\.png'"):
            sources(paths, tmp_path / "out")
    with pytest.raises(UserError, match="predictions would lie among the images"):
        sources([tmp_path / "one"], tmp_path / "one")
