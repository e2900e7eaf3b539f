import numpy as np
import pytest

from siglip2_dense.contracts import Geometry
from siglip2_dense.viz.colours import NO_VALUE
from siglip2_dense.viz.layout import GAP, LINE
from siglip2_dense.viz.pca import pca_colours, pca_panel

GREY = NO_VALUE[0]


def random_map(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_one_channel_that_varies_is_red_and_the_rest_grey():
    features = np.full((5, 1, 101), 7.0)
    features[2, 0] = np.arange(101)  # 1 % of the cells at either end is below 1 and above 99
    colours = pca_colours(features)
    expected = (255 * (np.arange(101) - 1) / 98).clip(0, 255).round()
    assert colours.shape == (1, 101, 3) and colours.dtype == np.uint8
    assert colours[0, :, 0].tolist() == expected.tolist()
    assert (colours[..., 1:] == GREY).all()


def test_components_are_in_the_order_of_their_variance_and_each_fills_its_scale():
    waves = np.stack([np.sin(2 * np.pi * k * np.arange(64) / 64) for k in (1, 2, 3, 4)])  # orthogonal, mean 0
    features = np.stack([0.5 * waves[3], 3 * waves[1], 9 * waves[0], 1 * waves[2]]).reshape(4, 8, 8)
    colours = pca_colours(features)
    for channel, wave in enumerate(waves[:3]):
        found = colours[..., channel].ravel()
        assert np.corrcoef(found, wave)[0, 1] > 0.999 and (found.min(), found.max()) == (0, 255)


def test_a_few_cells_that_stand_out_do_not_take_the_scale():
    features = np.zeros((3, 20, 20))
    features[0] = np.arange(400).reshape(20, 20)
    features[0, 0, 0] = features[0, 19, 19] = 1e6  # two of 400
    red = pca_colours(features)[..., 0]
    assert red[0, 0] == 255 and abs(int(red[10, 0]) - 128) <= 2


@pytest.mark.parametrize("value", [0.0, -3.3, 1e8])
@pytest.mark.parametrize("channels", [6, 60])
def test_a_constant_map_is_grey(value, channels):
    features = np.full((channels, 4, 5), value, np.float32) * np.arange(1, channels + 1)[:, None, None]
    assert (pca_colours(features.astype(np.float32)) == GREY).all()


def test_more_channels_of_the_same_leave_two_components_grey():
    features = np.arange(60, dtype=np.float32)[:, None, None] * random_map(1, 4, 5) + 7
    colours = pca_colours(features)
    assert np.ptp(colours[..., 0]) == 255 and (colours[..., 1:] == GREY).all()


@pytest.mark.parametrize("shape", [(7, 9, 6), (40, 5, 4)], ids=["fewer channels", "fewer cells"])
def test_colours_are_those_of_another_way_to_the_components(shape):
    features = random_map(*shape)
    cells = features.reshape(len(features), -1).T.astype(np.float64)
    centred = cells - cells.mean(0)
    components = np.linalg.svd(centred, full_matrices=False)[2][:3]
    for channel, weights in enumerate(components):
        weights = weights * np.sign(weights[np.abs(weights).argmax()])
        values = centred @ weights
        low, high = np.percentile(values, (1, 99))
        expected = (255 * (values - low) / (high - low)).clip(0, 255).reshape(shape[1:])
        assert np.abs(pca_colours(features)[..., channel] - expected).max() <= 0.5 + 1e-6


def test_the_sign_does_not_depend_on_the_order_of_the_cells():
    features = random_map(5, 6, 7)
    colours = pca_colours(features)
    assert (pca_colours(features[:, ::-1, ::-1]) == colours[::-1, ::-1]).all()
    assert (pca_colours(features.astype(np.float64)) == colours).all()
    # the largest weight is positive: what adds to one channel makes its component grow
    features = np.zeros((2, 1, 3))
    features[1] = 1, 2, 3
    assert pca_colours(features)[0, :, 0].tolist() == [0, 128, 255]
    assert pca_colours(-features)[0, :, 0].tolist() == [255, 128, 0]


def test_fewer_than_three_channels_and_cells():
    assert pca_colours(random_map(2, 3, 4))[..., 2].tolist() == [[GREY] * 4] * 3
    assert (pca_colours(random_map(8, 1, 1)) == GREY).all()


def test_values_that_are_not_finite_are_refused():
    features = random_map(4, 3, 3)
    features[0, 1, 1] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        pca_colours(features)


def test_the_panel_shows_each_map_where_the_image_is():
    image = np.full((20, 28, 3), 50, np.uint8)
    geometry = Geometry(padded=(32, 32), box=(6, 2, 20, 28), canvas=(20, 28), resized=(20, 28), original=(20, 28))
    fine, coarse = random_map(4, 4, 4), random_map(4, 2, 2)  # cells of 8 and of 16 pixels
    maps = {"a": fine, "b": coarse, "c": fine}
    panel = pca_panel(image, maps, geometry)
    assert panel.shape == (2 * (20 + LINE) + GAP, 3 * 28 + 2 * GAP, 3)
    assert (panel[LINE : LINE + 20, :28] == image).all()
    for place, (features, cell) in enumerate([(fine, 8), (coarse, 16)], start=1):
        left = place * (28 + GAP)
        rows, columns = (np.arange(20) + 6) // cell, (np.arange(28) + 2) // cell
        expected = pca_colours(features)[rows][:, columns]
        assert (panel[LINE : LINE + 20, left : left + 28] == expected).all()
    assert (panel[-20:, :28] == panel[LINE : LINE + 20, 28 + GAP : 2 * 28 + GAP]).all()
