"""The depth task: bins to metres, losses on the canvas, predictions at the original size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.contracts import Geometry, Sample
from siglip2_dense.errors import UserError
from siglip2_dense.losses.depth import gradient_loss, sig_loss
from siglip2_dense.models.probe import turned_back
from siglip2_dense.tasks import Depth
from siglip2_dense.tasks.depth import expected_depth


def whole(height, width):
    size = (height, width)
    return Geometry(size, (0, 0, *size), size, size, size)


def literally(scores, low, high, epsilon):
    """The formula as it is written, in float64."""
    weights = scores.double().relu() + epsilon
    weights = weights / weights.sum(1, keepdim=True)
    centres = torch.linspace(low, high, scores.shape[1], dtype=torch.float64)
    return (weights * centres[None, :, None, None]).sum(1, keepdim=True)


@pytest.mark.parametrize("epsilon", [0.1, 0.001])
@pytest.mark.parametrize(("bins", "low", "high"), [(256, 1e-3, 10.0), (256, 1e-3, 80.0), (2, 0.5, 1.0)])
def test_expected_depth_is_the_formula(epsilon, bins, low, high):
    torch.manual_seed(0)
    scores = 5 * torch.randn(3, bins, 5, 7)
    found = expected_depth(scores, low, high, epsilon)
    assert found.shape == (3, 1, 5, 7) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), literally(scores, low, high, epsilon), rtol=2e-6, atol=1e-6)


def test_expected_depth_by_hand():
    """Three bins at 1, 2, 3: scores 0.9, -5, 0.4 and epsilon 0.1 weigh 1, 0.1 and 0.5."""
    scores = torch.tensor([0.9, -5.0, 0.4]).view(1, 3, 1, 1)
    assert expected_depth(scores, 1.0, 3.0, 0.1).item() == pytest.approx((1 + 0.2 + 1.5) / 1.6)


def test_without_scores_the_depth_is_mid_range_and_the_ends_can_be_reached():
    nothing = torch.full((1, 256, 1, 1), -1.0)
    assert expected_depth(nothing, 1e-3, 10.0, 0.1).item() == pytest.approx(5.0005, abs=1e-3)
    lone = nothing.clone()
    lone[:, 0] = 1000.0
    assert expected_depth(lone, 1e-3, 10.0, 0.1).item() == pytest.approx(0.126, abs=0.001)
    lone[:, 0] = 10.0
    assert expected_depth(lone, 1e-3, 10.0, 0.001).item() == pytest.approx(0.126, abs=0.001)


def test_expected_depth_is_the_same_under_autocast_and_has_the_right_gradient():
    scores = torch.randn(2, 16, 3, 4)
    expected = expected_depth(scores, 1.0, 5.0, 0.1)
    task = Depth(1.0, 5.0, bins=16, epsilon=0.1)
    torch.testing.assert_close(task.depth_of(scores.bfloat16()), expected, rtol=0, atol=0.02)
    one, other = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    expected_depth(one, 1.0, 5.0, 0.1).square().sum().backward()
    literally(other, 1.0, 5.0, 0.1).square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_a_head_that_says_the_depth_itself():
    task = Depth(0.5, 10.0, bins=None)
    assert task.channels == 1
    raw = torch.tensor([-1.0, 0.0, 2.0, 50.0]).view(1, 2, 2)
    assert task.predict([(raw, whole(2, 2))]).flatten().tolist() == [0.5, 0.5, 2.5, 10.0]


def test_loss_is_taken_where_the_image_lies_and_was_measured():
    torch.manual_seed(1)
    task = Depth(0.1, 4.0, bins=8, sig=10.0, gradient=0.5)
    raw = torch.randn(2, 8, 4, 6)
    places = [
        Geometry((32, 48), (3, 5, 20, 30), (32, 48), (20, 30), (20, 30)),
        Geometry((32, 48), (0, 0, 32, 48), (32, 48), (32, 48), (32, 48)),
    ]
    samples = [Sample(depth=torch.rand(1, *place.box[2:]) * (torch.rand(1, *place.box[2:]) > 0.3)) for place in places]
    losses = task.loss(raw, places, samples)
    depth = torch.zeros(2, 1, 32, 48)
    depth[0, :, 3:23, 5:35], depth[1] = samples[0].depth, samples[1].depth
    prediction = F.interpolate(literally(raw, 0.1, 4.0, 0.1).float(), (32, 48), mode="bilinear")
    torch.testing.assert_close(losses["loss_sig"], 10 * sig_loss(prediction, depth, depth > 0))
    torch.testing.assert_close(losses["loss_gradient"], 0.5 * gradient_loss(prediction, depth, depth > 0))
    raw[0, :, :, 5:] = 7.0  # beyond what the image's interpolation reads
    again = task.loss(raw, places[:1] + places[1:], samples)
    assert again.keys() == losses.keys()


def test_warm_up_is_a_matter_of_the_step():
    task = Depth(0.1, 4.0, bins=8, warm_up=10)
    raw, samples = torch.randn(1, 8, 4, 4), [Sample(depth=torch.rand(1, 16, 16) + 0.5)]
    at = {step: task.loss(raw, [whole(16, 16)], samples, step)["loss_sig"].item() for step in (0, 9, 10, None)}
    assert at[0] == at[9] != at[10] == at[None]


def test_prediction_at_the_original_size_from_overlapping_windows_and_their_mirror_images():
    task = Depth(0.1, 4.0, bins=8)
    size = (16, 24)
    windows = []
    for left in (0, 8):
        place = Geometry((16, 16), (0, 0, 16, 16), (16, 16), size, (33, 47), (0, left, 16, 16))
        raw = torch.randn(8, 4, 4)
        windows += [(raw, place), (turned_back(raw.flip(-1), task.mirrored), place)]
    found = task.predict(windows)
    assert found.shape == (1, 33, 47)
    torch.testing.assert_close(found, task.predict(windows[::2]))
    constant = [(torch.ones(8, 4, 4), place) for _, place in windows]
    torch.testing.assert_close(task.predict(constant), torch.full((1, 33, 47), 2.05))


def test_a_perfect_prediction_scores_zero():
    task = Depth(0.1, 4.0)
    metric = task.metric()
    depth = torch.rand(1, 30, 40) + 0.5
    metric.update(depth.clone(), depth, 0)
    found = metric.compute()
    assert found["rmse"] == found["abs_rel"] == 0 and found["d1"] == 1 and task.headline in found


def test_draw_shows_four_pictures_side_by_side():
    image = np.zeros((40, 50, 3), np.uint8)
    picture = Depth().draw(image, Sample(depth=torch.rand(1, 40, 50)), torch.rand(1, 40, 50))
    assert picture.dtype == np.uint8 and picture.shape[1] > 4 * 50


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(min_depth=2.0, max_depth=1.0), "0 < min_depth < max_depth"),
        (dict(min_depth=0.0), "0 < min_depth < max_depth"),
        (dict(min_depth="a"), "0 < min_depth < max_depth"),
        (dict(bins=1), "2 or more"),
        (dict(bins=2.5), "2 or more"),
        (dict(epsilon=0.0), "more than 0"),
        (dict(crop="egien"), "eigen"),
    ],
)
def test_settings_that_make_no_sense(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        Depth(**arguments)


def test_samples_without_depth_or_of_another_size_are_named():
    task = Depth(bins=8)
    raw, place = torch.randn(1, 8, 4, 4), whole(16, 16)
    with pytest.raises(UserError, match=r"a\.png has no depth"):
        task.loss(raw, [place], [Sample(path="a.png")])
    with pytest.raises(UserError, match=r"a\.png: depth of \(8, 8\) pixels"):
        task.loss(raw, [place], [Sample(path="a.png", depth=torch.ones(1, 8, 8))])
