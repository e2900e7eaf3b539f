"""Depth losses by hand, against loops in numpy, and at the places where roots and logarithms break."""

import math

import numpy as np
import pytest
import torch

from siglip2_dense.losses.depth import gradient_loss, sig_loss

LOSSES = {
    "sig": sig_loss,
    "warm-up": lambda *maps: sig_loss(*maps, warm_up=True),
    "gradient": gradient_loss,
    "legacy": lambda *maps: gradient_loss(*maps, legacy=True),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def make_maps(shape=(3, 1, 7, 10), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prediction, depth = (torch.rand(shape, generator=generator, dtype=dtype) * 9 + 0.5 for _ in range(2))
    valid = torch.rand(shape, generator=generator) < 0.8
    return prediction, depth * valid, valid


def with_differences(values, shape):
    """Prediction and depth whose logarithms, after 1e-3 is added, differ by ``values``."""
    depth = torch.linspace(1, 5, math.prod(shape), dtype=torch.float64).view(shape)
    return (depth + 1e-3) * torch.tensor(values, dtype=torch.float64).view(shape).exp() - 1e-3, depth


def gradients_by_loops(prediction, depth, valid):
    """The spatial form, one pixel at a time."""
    prediction, depth, valid = (x.numpy() for x in (prediction, depth, valid))
    loss = 0.0
    for stride in (1, 2, 4, 6):
        total, count = 0.0, 0
        rows, columns = (range(0, size, stride) for size in prediction.shape[2:])
        for image in range(len(prediction)):

            def g(row, column, image=image):
                pixel = (image, 0, row, column)
                return math.log(prediction[pixel] + 1e-3) - math.log(depth[pixel] + 1e-3) if valid[pixel] else None

            for row in rows:
                for column in columns:
                    if g(row, column) is None:
                        continue
                    count += 1
                    for other in ((row + 2 * stride, column), (row, column + 2 * stride)):
                        if other[0] in rows and other[1] in columns and g(*other) is not None:
                            total += abs(g(row, column) - g(*other))
        loss += total / max(count, 1)
    return loss


def test_sig_by_hand():
    """g = 0.1, 0.3, 0.8 and a fourth pixel that does not count: mean 0.4, variance 0.13."""
    prediction, depth = with_differences([0.1, 0.3, 0.8, 5.0], (1, 1, 2, 2))
    valid = torch.tensor([[[[True, True], [True, False]]]])
    assert sig_loss(prediction, depth, valid).item() == pytest.approx(math.sqrt(0.13 + 0.15 * 0.16), rel=1e-9)
    assert sig_loss(prediction, depth, valid, warm_up=True).item() == pytest.approx(math.sqrt(0.15) * 0.4, rel=1e-9)
    assert sig_loss(depth, prediction, valid, warm_up=True).item() == pytest.approx(math.sqrt(0.15) * 0.4, rel=1e-9)


def test_sig_pools_over_the_batch():
    prediction, depth, valid = make_maps()
    g = np.log(prediction[valid].double() + 1e-3) - np.log(depth[valid].double() + 1e-3)
    expected = math.sqrt(np.var(g.numpy(), ddof=1) + 0.15 * g.mean() ** 2)
    assert sig_loss(prediction, depth, valid).item() == pytest.approx(expected, rel=1e-5)
    per_image = [sig_loss(*(x[i : i + 1] for x in (prediction, depth, valid))) for i in range(3)]
    assert abs(sum(per_image).item() / 3 - expected) > 1e-3


def test_sig_of_one_valid_pixel_is_its_mean_alone():
    prediction, depth = with_differences([0.1, 0.3, 0.8, 5.0], (1, 1, 1, 4))
    valid = torch.tensor([[[[False, True, False, False]]]])
    assert sig_loss(prediction, depth, valid).item() == pytest.approx(math.sqrt(0.15) * 0.3, rel=1e-9)


def test_gradient_by_hand():
    """3 x 3: only the stride of 1 has pairs two pixels apart, three down and three across, of nine pixels.

    1 2 4        down |1 - 0| + |2 - 2| + |4 - 9|, across |1 - 4| + |3 - 5| + |0 - 9|
    3 8 5
    0 2 9
    """
    prediction, depth = with_differences([1, 2, 4, 3, 8, 5, 0, 2, 9], (1, 1, 3, 3))
    valid = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    assert gradient_loss(prediction, depth, valid).item() == pytest.approx((6 + 14) / 9, rel=1e-9)
    valid[0, 0, 0, 0] = False  # two pairs and one pixel fewer
    assert gradient_loss(prediction, depth, valid).item() == pytest.approx((5 + 11) / 8, rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 1, 13, 25), (3, 1, 14, 7), (2, 1, 2, 1)])
def test_gradient_against_loops(shape):
    maps = make_maps(shape, torch.float64)
    assert gradient_loss(*maps).item() == pytest.approx(gradients_by_loops(*maps), rel=1e-9)


def test_gradient_sees_rows_and_columns():
    _, depth, _ = make_maps((1, 1, 16, 16), torch.float64)
    depth, valid = depth + 1, torch.ones_like(depth, dtype=torch.bool)
    ramp = torch.linspace(0, 1, 16, dtype=torch.float64).expand_as(depth)

    def loss(difference, order=slice(None)):
        return gradient_loss((depth + 1e-3) * difference[:, :, order].exp() - 1e-3, depth, valid).item()

    # pairs are 2 strides apart and 1 / 15 a pixel; a row of n columns has n - 2 of them
    across = sum((n - 2) / n * 2 * stride / 15 for stride, n in ((1, 16), (2, 8), (4, 4), (6, 3)))
    assert loss(ramp) == pytest.approx(across, rel=1e-9)
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert loss(ramp, shuffled) == pytest.approx(across, rel=1e-9)  # nothing goes down an x-ramp, in any order
    assert loss(ramp.mT) == pytest.approx(across, rel=1e-9)
    assert loss(ramp.mT, shuffled) > 1.1 * across


def test_legacy_gradient_compares_images_of_the_batch():
    for batch in (1, 2):
        assert gradient_loss(*make_maps((batch, 1, 9, 9)), legacy=True).item() == 0
    shape = (5, 1, 1, 2)  # at 1: images 0-2, 1-3, 2-4; at 2 (images 0, 2, 4): 0-4; at 4 and 6 none
    prediction, depth = with_differences([1, 0, 2, 0, 4, 0, 8, 0, 16, 3], shape)
    valid = torch.ones(shape, dtype=torch.bool)
    expected = (3 + 6 + 12 + 3) / 10 + (15 + 3) / 6
    assert gradient_loss(prediction, depth, valid, legacy=True).item() == pytest.approx(expected, rel=1e-9)


@every_loss
def test_gradients_in_double(loss):
    prediction, depth, valid = make_maps((5, 1, 6, 5), torch.float64)
    assert torch.autograd.gradcheck(lambda p: loss(p, depth, valid), prediction.requires_grad_())


@every_loss
def test_arguments_stay_and_a_perfect_prediction_costs_nothing(loss):
    prediction, depth, valid = make_maps()
    before = [x.clone() for x in (prediction, depth, valid)]
    loss(prediction.requires_grad_(), depth, valid).backward()
    assert all(torch.equal(x, y) for x, y in zip((prediction, depth, valid), before, strict=True))
    perfect = before[1].clone().requires_grad_()
    value = loss(perfect, depth, valid)
    value.backward()
    assert value == 0 and (perfect.grad == 0).all()


@every_loss
def test_without_valid_pixels_the_loss_is_0_and_still_in_the_graph(loss):
    prediction, depth, valid = make_maps()
    value = loss(prediction.requires_grad_(), depth, torch.zeros_like(valid))
    value.backward()
    assert value == 0 and (prediction.grad == 0).all()


@every_loss
def test_what_is_not_valid_does_not_matter(loss):
    prediction, depth, valid = make_maps()
    results = []
    for junk in (1.0, -1.0, -1e-3, 0.0, math.nan, math.inf):
        spoilt = torch.where(valid, prediction, junk).requires_grad_()
        value = loss(spoilt, torch.where(valid, depth, junk), valid)
        value.backward()
        assert (spoilt.grad[~valid] == 0).all() and spoilt.grad[valid].isfinite().all() and (spoilt.grad != 0).any()
        results.append((value.item(), spoilt.grad))
    assert all(value == results[0][0] and torch.equal(grad, results[0][1]) for value, grad in results)


@every_loss
def test_half_precision_is_widened(loss):
    prediction, depth, valid = make_maps()
    half = prediction.bfloat16()
    value = loss(half, depth, valid)
    assert value.dtype == torch.float32 and torch.equal(value, loss(half.float(), depth, valid))


@every_loss
def test_a_mask_of_another_shape_is_not_broadcast(loss):
    prediction, depth, valid = make_maps()
    with pytest.raises(ValueError, match="one shape"):
        loss(prediction, depth, valid[:, 0])
