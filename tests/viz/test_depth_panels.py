import numpy as np
import pytest
from PIL import ImageDraw

from siglip2_dense.viz import layout, panels
from siglip2_dense.viz.colours import NO_VALUE, colour_normals, colour_values
from siglip2_dense.viz.layout import BALL, BAR, GAP, LINE, SWATCH, TICK, colour_bar, normals_legend
from siglip2_dense.viz.panels import depth_panel, normals_panel

LOW, HIGH = (68, 1, 84), (253, 231, 37)  # the ends of viridis, #440154 and #fde725
DARK, LIGHT = (0, 0, 4), (252, 253, 191)  # of magma, #000004 and #fcfdbf
WALL, FLOOR = (0, 0, -1), (0, -1, 0)  # normals of surfaces that face the camera and the sky


def near(colours, expected):
    """Equal but for the rounding, which differs between versions of matplotlib."""
    return bool((np.abs(np.asarray(colours, int) - expected) <= 1).all())


def image(height=256, width=300):
    return np.full((height, width, 3), (100, 110, 120), np.uint8)


def ramp(height=256, width=300, low=1.0, high=3.0):
    return np.linspace(low, high, width)[None].repeat(height, 0)


def normals(vector, height=256, width=300):
    return np.array(vector, np.float64)[:, None, None].repeat(height, 1).repeat(width, 2)


def picture(panel, column, height=256, width=300):
    """The picture in a column of a panel that enlarges nothing."""
    left = column * (width + GAP)
    return panel[LINE : LINE + height, left : left + width]


def bar(panel, column, height=256, width=300):
    """The top row of pixels of the colour bar below it."""
    return panel[LINE + height + GAP, column * (width + GAP) :][:width]


def columns(panel, width=300):
    return (panel.shape[1] + GAP) / (width + GAP)


@pytest.fixture
def written(monkeypatch):
    """The texts drawn, in turn, each with its left end, its length and the width of its canvas."""
    texts, draw = [], ImageDraw.ImageDraw.text

    def note(self, xy, text, *args, **kwargs):
        font = args[1]
        texts.append((text, xy[0], font.getlength(text), self.im.size[0]))
        return draw(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return texts


# Colours


def test_values_have_the_colours_of_the_table_and_its_ends_beyond():
    colours = colour_values(np.array([[-9.0, 2.0, 3.0, 4.0, 99.0]]), 2, 4, "viridis")
    assert colours.shape == (1, 5, 3) and colours.dtype == np.uint8
    assert near(colours[0], [LOW, LOW, (33, 145, 140), HIGH, HIGH])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_grey(value):
    assert colour_values(np.array([[value]], np.float32), 0, 1, "magma").tolist() == [[list(NO_VALUE)]]


def test_normals_have_the_colours_of_published_pictures():
    vectors = {
        WALL: (128, 128, 255),
        FLOOR: (128, 255, 128),
        (1, 0, 0): (255, 128, 128),  # the left wall of a room
        (0, 1, 0): (128, 0, 128),  # the ceiling
        (0, 0, 0): NO_VALUE,
        (np.nan, 0, -1): NO_VALUE,
        (0, -1.92, -0.56): (128, 250, 163),  # of any length: 127.5 * 1.96 = 249.9 and 127.5 * 1.28 = 163.2
    }
    colours = colour_normals(np.array(list(vectors), np.float64).T[:, None])
    assert colours.dtype == np.uint8
    assert [tuple(colour) for colour in colours[0].tolist()] == list(vectors.values())


def test_legend_of_normals_is_the_half_of_a_ball_that_is_seen():
    ball = normals_legend()[:, :BALL].astype(int)
    middle, end = BALL // 2, BALL - 1
    assert near(ball[middle, middle], (129, 126, 255))  # half a pixel right of and below the middle
    assert ball[middle, end, 0] > 240 and ball[middle, 0, 0] < 15  # red where it faces right
    assert ball[0, middle, 1] > 240 and ball[end, middle, 1] < 15  # green where it faces up
    assert (ball[..., 2] >= 127).all()  # nothing faces away
    assert (ball[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()


# Colour bars


def test_bar_runs_over_the_scale_and_marks_stand_at_their_values(written):
    strip = colour_bar(0, 3, "viridis", " m", 301)
    assert strip.shape == (BAR + LINE, 301, 3)
    assert near(strip[0, [0, -1]], [LOW, HIGH]) and (strip[0] == strip[BAR - 1]).all()
    marks = np.flatnonzero((strip[BAR : BAR + TICK] == 0).all((0, 2)))
    assert [text for text, *_ in written] == ["0 m", "1 m", "2 m", "3 m"]
    assert marks.tolist() == [0, 100, 200, 300]


@pytest.mark.parametrize("width", [240, 300, 1000])
@pytest.mark.parametrize("low, high", [(0.95, 1.05), (0, 0.0123), (801, 39750), (1.1, 1.9), (0, 180), (3e-7, 5e-6)])
def test_labels_of_a_bar_are_few_whole_and_apart(written, low, high, width):
    colour_bar(low, high, "viridis", " mm", width)
    assert 2 <= len(written) <= 6
    end = 0
    for _, left, length, _ in written:
        assert left >= end + GAP and left + length <= width - GAP
        end = left + length


# Depth


def test_truth_and_prediction_share_the_scale_of_the_truth():
    truth = ramp()
    panel = depth_panel(image(), truth, truth + 1)
    assert columns(panel) == 4
    assert near(picture(panel, 0), (100, 110, 120))
    assert near(picture(panel, 1)[0, [0, -1]], [LOW, HIGH])
    # 1 m is half of the scale: what the truth has at its middle the prediction has at its start
    assert np.abs(picture(panel, 2)[0, 0].astype(int) - picture(panel, 1)[0, 150]).max() <= 2
    assert near(picture(panel, 2)[0, 160:], HIGH)
    assert (bar(panel, 1) == bar(panel, 2)).all() and near(bar(panel, 1)[[0, -1]], [LOW, HIGH])


def test_outliers_do_not_stretch_the_scale_nor_does_what_is_invalid():
    truth = ramp()
    spoilt = truth.copy()
    spoilt[0, :100] = 65535  # less than 1 % of the pixels
    spoilt[100:] = 0
    expected, got = picture(depth_panel(image(), truth, truth), 2), picture(depth_panel(image(), spoilt, truth), 2)
    assert np.abs(expected.astype(int) - got).max() <= 6


def test_invalid_depth_is_grey_in_truth_and_error_but_not_in_the_prediction(written):
    truth, prediction = ramp(), ramp()
    for row, value in enumerate((0, np.nan, np.inf, -1)):
        truth[row] = value
    before = truth.copy()
    panel = depth_panel(image(), truth, prediction)
    for column, rows in ((1, 4), (2, 0), (3, 4)):
        grey = (picture(panel, column) == NO_VALUE).all(-1)
        assert grey[:rows].all() and not grey[rows:].any()
    assert "no value" in [text for text, *_ in written]
    assert (panel[LINE + 256 + 2 * GAP + BAR + LINE :, GAP : GAP + SWATCH] == NO_VALUE).all(-1).sum() >= SWATCH**2
    assert np.array_equal(truth, before, equal_nan=True)


def test_a_prediction_may_be_wrong_but_not_missing():
    prediction = ramp()
    prediction[0], prediction[1], prediction[2] = np.nan, 0, -5
    panel = depth_panel(image(), ramp(), prediction)
    for column in (2, 3):
        grey = (picture(panel, column) == NO_VALUE).all(-1)
        assert grey[0].all() and not grey[1:].any()
    assert near(picture(panel, 2)[1:3], LOW)
    assert near(picture(panel, 3)[2, -1], LIGHT)


def test_error_starts_at_zero_and_has_its_own_table(written):
    prediction = ramp()
    prediction[:, 150:] -= 0.5  # its sign does not matter
    panel = depth_panel(image(), ramp(), prediction)
    assert near(picture(panel, 3)[0, [0, 299]], [DARK, LIGHT])
    assert near(bar(panel, 3)[[0, -1]], [DARK, LIGHT])
    texts = [text for text, *_ in written]
    assert texts[-4:] == ["0 m", "0.2 m", "0.4 m", "absolute error"]
    assert "no value" not in texts


def test_a_perfect_prediction_has_no_error_to_see():
    panel = depth_panel(image(), ramp(), ramp() + 1e-6)
    assert near(picture(panel, 3), DARK)
    assert near(bar(panel, 3)[-1], LIGHT)


@pytest.mark.parametrize("truth, prediction", [(ramp(), None), (None, ramp())])
def test_one_map_alone_has_no_error(written, truth, prediction):
    panel = depth_panel(image(), truth, prediction)
    texts = [text for text, *_ in written]
    assert columns(panel) == 2 and "absolute error" not in texts
    assert ("ground truth" in texts) == (truth is not None) and ("prediction" in texts) == (prediction is not None)
    assert near(picture(panel, 1)[0, [0, -1]], [LOW, HIGH])
    assert depth_panel(image(), None, None).shape == (LINE + 256, 300, 3)


def test_without_valid_truth_the_prediction_has_its_own_scale():
    panel = depth_panel(image(), np.zeros((256, 300)), ramp())
    assert (picture(panel, 1) == NO_VALUE).all() and (picture(panel, 3) == NO_VALUE).all()
    assert near(picture(panel, 2)[0, [0, -1]], [LOW, HIGH])


def test_what_is_not_above_0_is_outside_the_scale_of_a_prediction():
    prediction = ramp()
    prediction[:50] = -5
    panel = depth_panel(image(), None, prediction)
    assert near(picture(panel, 1)[:50], LOW)
    assert near(picture(panel, 1)[50, [0, 150, -1]], [LOW, (33, 145, 140), HIGH])


def test_constant_depth_lies_in_the_middle_of_its_scale(written):
    panel = depth_panel(image(), np.full((256, 300), 2, np.float32), None)
    assert near(picture(panel, 1), (33, 145, 140))
    assert {"1.9 m", "2.1 m"} <= {text for text, *_ in written}


@pytest.mark.parametrize("unit, label", [("mm", "2 mm"), ("", "2")])
def test_bars_are_in_the_given_unit(written, unit, label):
    depth_panel(image(), ramp(), None, unit)
    assert label in [text for text, *_ in written]


# Normals


def test_normals_are_shown_beside_the_input_above_a_ball():
    panel = normals_panel(image(), normals(WALL), normals(FLOOR))
    assert columns(panel) == 4
    assert (picture(panel, 1) == (128, 128, 255)).all() and (picture(panel, 2) == (128, 255, 128)).all()
    ball = normals_legend()
    assert (panel[-BALL:, : ball.shape[1]] == ball).all()


def test_angular_error_by_hand(written):
    tilted = normals(WALL)
    tilted[:, :, 200:] = np.array([0, np.sin(0.5), -np.cos(0.5)])[:, None, None]  # 0.5 radians are 28.6 degrees
    tilted[:, 0] *= 3  # the length does not matter
    panel = normals_panel(image(), normals(WALL), tilted)
    assert near(picture(panel, 3)[:, :200], DARK) and near(picture(panel, 3)[:, 200:], LIGHT)
    texts = [text for text, *_ in written]
    assert "angular error, median 0.0°" in texts
    assert "0°" in texts and "20°" in texts and "30°" not in texts
    assert near(bar(panel, 3)[[0, -1]], [DARK, LIGHT])


def test_median_is_over_pixels_with_both_normals(written):
    truth, prediction = normals(WALL), normals((0, np.sin(0.5), -np.cos(0.5)))
    truth[:, :200] = 0
    prediction[:, 255] = np.nan
    panel = normals_panel(image(), truth, prediction)
    assert "angular error, median 28.6°" in [text for text, *_ in written]
    for column, rows in ((1, [*range(200)]), (2, [255]), (3, [*range(200), 255])):
        grey = (picture(panel, column) == NO_VALUE).all(-1)
        assert np.flatnonzero(grey.all(1)).tolist() == rows == np.flatnonzero(grey.any(1)).tolist()


def test_without_normals_there_is_no_median(written):
    normals_panel(image(), normals((0, 0, 0)), normals(WALL))
    assert "angular error" in [text for text, *_ in written]


@pytest.mark.parametrize("truth, prediction", [(normals(WALL), None), (None, normals(WALL))])
def test_one_map_of_normals_has_neither_error_nor_bar(written, truth, prediction):
    panel = normals_panel(image(), truth, prediction)
    assert columns(panel) == 2 and not any("°" in text for text, *_ in written)
    assert (picture(panel, 1) == (128, 128, 255)).all()


# Any size


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 5), (300, 20), (5, 31), (20, 900), (255, 257)])
def test_panels_of_any_size_hold_whole_titles_and_labels(written, size):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, 3, *size))
    values = rng.uniform(1, 4, (2, *size)).astype(np.float16)
    for panel in (depth_panel(image(*size), *values), normals_panel(image(*size), *vectors)):
        assert panel.ndim == 3 and panel.shape[2] == 3 and panel.dtype == np.uint8
        assert panel.shape[0] >= LINE + size[0] and panel.shape[1] >= size[1]
    assert all(left >= 0 and left + length <= width for _, left, length, width in written)


def test_bars_of_narrow_pictures_have_room_for_two_labels(written):
    depth_panel(image(300, 20), ramp(300, 20, 801, 1399), None, "mm")
    assert [text for text, *_ in written] == ["input", "1000 mm", "1200 mm", "ground truth"]


def test_wide_pictures_stand_one_below_another():
    panel = depth_panel(image(100, 400), ramp(100, 400), ramp(100, 400))
    assert panel.shape[1] == 2 * 400
    below = LINE + 200 + GAP
    assert near(panel[below + LINE, [0, -1]], [LOW, HIGH])


def test_small_pictures_are_enlarged_with_hard_edges():
    panel = depth_panel(image(64, 96), np.where(ramp(64, 96) < 2, 1.0, 3.0), None)
    assert panel.shape[1] == 2 * 96 * 4 + GAP
    row = panel[LINE + 128, 96 * 4 + GAP :]
    assert near(row[: 48 * 4], LOW) and near(row[48 * 4 :], HIGH)


@pytest.mark.parametrize("place", ["ground truth", "prediction"])
def test_maps_of_another_size_are_refused(place):
    maps = {"ground truth": ramp(), "prediction": ramp()} | {place: ramp()[:, :-1]}
    with pytest.raises(ValueError, match=place):
        depth_panel(image(), *maps.values())
    maps = {"ground truth": normals(WALL), "prediction": normals(WALL)} | {place: normals(WALL).transpose(1, 2, 0)}
    with pytest.raises(ValueError, match=place):
        normals_panel(image(), *maps.values())


def test_the_panels_are_found_in_one_place():
    assert panels.grid is layout.grid and panels.save_picture is layout.save_picture
