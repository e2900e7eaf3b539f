import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from siglip2_dense.data.reading import read_depth, read_image, read_labels
from siglip2_dense.errors import UserError

DATA = Path(os.environ.get("SIGLIP2_DENSE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))


def _picture(size=(9, 14)):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_photographs_are_read_as_opencv_reads_them():
    paths = sorted((DATA / "images").glob("*.jpg"))
    if not paths:
        pytest.skip(f"no photographs in {DATA / 'images'}; set SIGLIP2_DENSE_TEST_DATA")
    for path in paths:
        ours, theirs = read_image(path), cv2.imread(str(path))[..., ::-1]
        assert ours.shape == theirs.shape
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 3 and difference.mean() < 0.05, path


def test_red_is_the_first_channel(tmp_path):
    Image.new("RGB", (4, 3), (255, 0, 0)).save(tmp_path / "red.png")
    image = read_image(tmp_path / "red.png")
    assert image.shape == (3, 4, 3) and image.dtype == np.uint8
    assert (image == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_in_opencv(tmp_path, orientation):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = cv2.GaussianBlur(_picture((32, 48)), (0, 0), 4)
    Image.fromarray(smooth).save(path, exif=exif, quality=95)
    ours, theirs = read_image(path), cv2.imread(str(path))[..., ::-1]
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= 3


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / "other.png"
    image = Image.fromarray(_picture()).convert(mode)
    image.save(path)
    assert np.array_equal(read_image(path), np.array(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(_picture((64, 64))).save(path)
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(UserError, match=rf"cut\.{suffix}: truncated or not a readable image .*fetch the file again"):
        read_image(path)


def test_files_that_are_no_images_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not found")
    with pytest.raises(UserError, match=r"text\.jpg: truncated or not a readable image"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(UserError, match=r"none\.jpg: no such file; check the path"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(UserError, match=r"none\.png: no such file"):
        read_labels(tmp_path / "none.png")


def test_a_16_bit_photograph_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 5), 4000, np.uint16))
    with pytest.raises(UserError, match=r"deep\.png: has more than 8 bits a pixel.*save it as an 8-bit image"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_are_the_stored_numbers(tmp_path, dtype):
    values = np.array([[0, 1, 2], [11, np.iinfo(dtype).max, 200]], dtype)
    cv2.imwrite(str(tmp_path / "labels.png"), values)
    labels = read_labels(tmp_path / "labels.png")
    assert labels.dtype == np.int32 and np.array_equal(labels, values)


def test_palette_labels_are_indices_not_colours(tmp_path):
    values = np.array([[0, 1, 2], [15, 255, 20]], np.uint8)
    image = Image.fromarray(values, mode="P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(tmp_path / "palette.png")
    assert np.array_equal(read_labels(tmp_path / "palette.png"), values)


def test_a_palette_of_two_bits_is_still_indices(tmp_path):
    values = np.array([[0, 1, 2, 3, 1]], np.uint8)
    image = Image.fromarray(values, mode="P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 7, 7, 7])
    image.save(tmp_path / "small.png", bits=2)
    assert np.array_equal(read_labels(tmp_path / "small.png"), values)


def test_coloured_labels_are_refused(tmp_path):
    Image.fromarray(_picture()).save(tmp_path / "colours.png")
    with pytest.raises(UserError, match=r"colours\.png: holds colours \(RGB\).*single channel or palette"):
        read_labels(tmp_path / "colours.png")


def test_depth_is_the_stored_number_over_the_scale(tmp_path):
    path = tmp_path / "depth.png"
    cv2.imwrite(str(path), np.array([[0, 1, 255, 256], [1000, 40950, 65534, 65535]], np.uint16))
    depth = read_depth(path)
    assert depth.dtype == np.float32 and depth.shape == (2, 4)
    assert depth.tolist() == [pytest.approx([0, 0.001, 0.255, 0.256]), pytest.approx([1, 40.95, 65.534, 65.535])]
    assert read_depth(path, scale=256)[1, 0] == 1000 / 256
    marked = read_depth(path, 1000, invalid=(65535, 256))
    assert marked.tolist() == [pytest.approx([0, 0.001, 0.255, 0]), pytest.approx([1, 40.95, 65.534, 0])]
    assert np.array_equal(read_depth(path, 1, (65535,)).astype(int), [[0, 1, 255, 256], [1000, 40950, 65534, 0]])


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "RGBA"])
def test_what_is_no_depth_is_refused(tmp_path, mode):
    Image.fromarray(_picture()).convert(mode).save(tmp_path / "grey.png")
    with pytest.raises(UserError, match=rf"grey\.png: holds {mode} pixels, not depth; save .* with 16 bits"):
        read_depth(tmp_path / "grey.png")


def test_deep_colours_are_no_depth(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 5, 3), 4000, np.uint16))
    with pytest.raises(UserError, match=r"deep\.png: holds RGB"):
        read_depth(tmp_path / "deep.png")


def test_depth_that_is_missing_or_cut_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.png: no such file"):
        read_depth(tmp_path / "none.png")
    path = tmp_path / "cut.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 9000, (64, 64)).astype(np.uint16))
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(UserError, match=r"cut\.png: truncated or not a readable image"):
        read_depth(path)
