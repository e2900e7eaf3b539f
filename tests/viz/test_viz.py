import numpy as np
import pytest
from PIL import Image

from siglip2_dense.contracts import IGNORE
from siglip2_dense.viz import layout
from siglip2_dense.viz.colours import colour_labels, palette
from siglip2_dense.viz.overlays import overlay_panel
from siglip2_dense.viz.panels import grid, save_picture, segmentation_panel

NAMES = ("sky", "road", "tree", "car")
COLOURS = [(0, 0, 200), (200, 0, 0), (0, 200, 0), (200, 200, 0)]


def test_palette_is_that_of_pascal_voc():
    colours = palette(256)
    assert colours[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert (colours[8], colours[15], colours[20], colours[255]) == (
        (64, 0, 0),
        (192, 128, 128),
        (0, 64, 128),
        (224, 224, 192),
    )
    assert len(set(palette(847))) == 847


def test_colours_by_hand():
    assert colour_labels(np.array([[0, 3], [IGNORE, 1]]), COLOURS).tolist() == [
        [[0, 0, 200], [200, 200, 0]],
        [[255, 255, 255], [200, 0, 0]],
    ]
    assert colour_labels(np.array([[0]], np.int64), COLOURS).dtype == np.uint8


@pytest.mark.parametrize("label", [4, 255, -2])
def test_a_class_without_a_colour_is_refused(label):
    with pytest.raises(ValueError, match="4 colours"):
        colour_labels(np.array([[0, label]]), COLOURS)


def example(value):
    return np.full((64, 96), value)


def test_panel_shows_both_maps_over_the_grey_image():
    image = np.full((64, 96, 3), (100, 110, 120), np.uint8)
    panel = segmentation_panel(image, example(1), example(2), NAMES, COLOURS)
    widths = 96 * 4  # 64 pixels high are enlarged four times
    row = panel[layout.LINE + 128]
    assert panel.shape[1] == 3 * widths + 2 * layout.GAP
    assert row[widths // 2].tolist() == [100, 110, 120]
    assert row[widths + layout.GAP + widths // 2].tolist() == [164, 44, 44]  # 0.6 of (200, 0, 0) and 0.4 of 110
    assert row[2 * (widths + layout.GAP) + widths // 2].tolist() == [44, 164, 44]


def test_panel_keeps_the_edges_of_maps_hard():
    labels = example(1)
    labels[:, 48:] = 2
    panel = segmentation_panel(np.zeros((64, 96, 3), np.uint8), labels, None, NAMES, COLOURS)
    colours = {tuple(colour) for colour in panel[layout.LINE + 128, 96 * 4 + layout.GAP :].tolist()}
    assert colours == {(120, 0, 0), (0, 120, 0)}


def swatches(panel, colours):
    """(line, x) of each colour's swatch below pictures 256 pixels high, None where it has none."""
    legend = panel[layout.LINE + 256 :]
    places = [np.argwhere((legend == np.array(colour)).all(-1)) for colour in colours]
    whole = layout.SWATCH**2  # a few pixels of text may have any grey
    return [(int(place[0, 0] // layout.LINE), int(place[0, 1])) if len(place) >= whole else None for place in places]


def test_legend_has_only_the_classes_in_the_maps():
    labels = example(1)
    labels[0, 0] = IGNORE  # as an index it would be the last class
    panel = segmentation_panel(np.zeros((64, 96, 3), np.uint8), labels, example(2), NAMES, COLOURS)
    assert [place is not None for place in swatches(panel, COLOURS)] == [False, True, True, False]


def test_legend_puts_the_largest_class_first_and_counts_the_rest():
    labels = np.repeat(np.arange(20), np.arange(1, 21) * 5)[None].repeat(64, 0)  # class 19 is the largest
    image = np.zeros((*labels.shape, 3), np.uint8)
    colours = palette(21)[1:]
    panel = segmentation_panel(image, labels, None, [f"class {i}" for i in range(20)], colours)
    places = swatches(panel, colours)
    assert places[:4] == [None] * 4
    assert places[4:] == sorted(places[4:], reverse=True)


def test_legend_goes_on_in_a_new_line_inside_the_panel():
    labels = np.arange(64)[:, None].repeat(96, 1) // 8
    panel = segmentation_panel(
        np.zeros((64, 96, 3), np.uint8), labels, None, ["a rather long name"] * 8, palette(9)[1:]
    )
    places = swatches(panel, palette(9)[1:])
    assert len({line for line, _ in places}) > 1
    assert all(x + layout.SWATCH <= panel.shape[1] for _, x in places)


def test_panel_refuses_a_map_of_another_size():
    with pytest.raises(ValueError, match="prediction"):
        segmentation_panel(np.zeros((64, 96, 3), np.uint8), example(1), example(2)[:32], NAMES, COLOURS)


def test_panel_of_a_large_image_is_not_enlarged():
    panel = segmentation_panel(np.zeros((300, 100, 3), np.uint8), None, None, NAMES, COLOURS)
    assert panel.shape[1] == 100


def test_an_overlay_has_the_classes_over_the_image_and_their_names_below():
    labels = np.zeros((300, 400), int)
    labels[:, 300:], labels[:10, :10] = 2, -1
    image = np.full((300, 400, 3), 100, np.uint8)
    panel = overlay_panel(image, labels, ["sky", "road", "car"], palette(4)[1:])
    assert panel.shape[1] == 400 and [place is None for place in swatches(panel, palette(4)[1:])] == [
        False,
        True,
        False,
    ]
    for place, colour in (((150, 100), palette(4)[1]), ((150, 350), palette(4)[3]), ((5, 5), (255,) * 3)):
        assert panel[place].tolist() == [round(0.6 * value + 0.4 * 100) for value in colour]
    large = overlay_panel(np.zeros((100, 6000, 3), np.uint8), np.zeros((100, 6000), int), ["sky"], palette(2)[1:])
    assert large.shape[1] == 2048 and 34 < large.shape[0] < 80
    with pytest.raises(ValueError, match="the map is"):
        overlay_panel(image, labels[:5], ["sky"], palette(3))


def test_grid_puts_pictures_in_rows():
    a, b, c = (np.full((2, 3, 3), value, np.uint8) for value in (1, 2, 3))
    picture = grid([a, b, c], columns=2)
    step = layout.GAP
    assert picture.shape == (4 + step, 6 + step, 3)
    assert (
        (picture[:2, :3] == 1).all() and (picture[:2, 3 + step :] == 2).all() and (picture[2 + step :, :3] == 3).all()
    )
    assert (picture[2 + step :, 3:] == 255).all()


def test_saved_picture_is_the_same_and_leaves_nothing_beside_it(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    save_picture(tmp_path / "new" / "picture.png", picture)
    assert (np.asarray(Image.open(tmp_path / "new" / "picture.png")) == picture).all()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
