"""Losses of normals by hand, as a density on the sphere, and where acos breaks."""

import math

import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.losses.normals import angular_loss, uncertain_angular_loss


def plain(direction, _, normals, valid):
    return angular_loss(direction, normals, valid)


every_loss = pytest.mark.parametrize("loss", [plain, uncertain_angular_loss], ids=["angular", "uncertain"])


def make_maps(dtype=torch.float32, shape=(2, 5, 3)):
    generator = torch.Generator().manual_seed(0)
    batch, *size = shape
    direction, normals = (torch.randn(batch, 3, *size, generator=generator, dtype=dtype) for _ in range(2))
    uncertainty = torch.randn(batch, 1, *size, generator=generator, dtype=dtype)
    valid = torch.rand(shape, generator=generator) < 0.7
    return direction * 2, uncertainty, F.normalize(normals, dim=1) * valid[:, None], valid


def at_angles(degrees):
    """Directions of lengths 1, 2, 3.. at these angles from the normal (0, 0, 1), in a row of pixels."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    direction = torch.stack([radians.sin(), torch.zeros_like(radians), radians.cos()])
    normals = torch.tensor([0.0, 0, 1], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 1, len(degrees))
    return (direction * torch.arange(1, len(degrees) + 1)).view(1, 3, 1, -1), normals


def test_angles_by_hand():
    direction, normals = at_angles([30.0, 90.0, 120.0, 45.0])
    valid = torch.tensor([[[True, True, True, False]]])
    assert angular_loss(direction, normals, valid).item() == pytest.approx(math.radians(80), rel=1e-9)
    turned = angular_loss(direction, -normals, valid).item()
    assert turned == pytest.approx(math.radians((150 + 90 + 60) / 3), rel=1e-9)


def test_uncertain_by_hand():
    """Raw 0.5 gives k = 1.51; raw -1 gives exp(-1) - 1 + 1.01."""
    direction, normals = at_angles([30.0, 90.0])
    uncertainty = torch.tensor([0.5, -1.0], dtype=torch.float64).view(1, 1, 1, 2)
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    expected = [
        math.log(1 + math.exp(-k * math.pi)) - math.log(k * k + 1) + k * angle
        for k, angle in ((1.51, math.pi / 6), (math.exp(-1) + 0.01, math.pi / 2))
    ]
    found = uncertain_angular_loss(direction, uncertainty, normals, valid).item()
    assert found == pytest.approx(sum(expected) / 2, rel=1e-9)


@pytest.mark.parametrize("raw", [-3.0, 0.0, 2.0])
def test_uncertain_is_a_density_on_the_sphere(raw):
    """exp(-loss) / 2 pi integrates to 1; a ring of the sphere has 2 pi sin(angle)."""
    steps, total = 400, 0.0
    uncertainty, valid = torch.full((1, 1, 1, 1), raw), torch.ones(1, 1, 1, dtype=torch.bool)
    for step in range(steps):
        angle = (step + 0.5) * math.pi / steps
        loss = uncertain_angular_loss(*at_angles([math.degrees(angle)])[:1], uncertainty, at_angles([0])[1], valid)
        total += math.exp(-loss) * math.sin(angle) * math.pi / steps
    assert total == pytest.approx(1, abs=2e-3)


def test_the_length_of_a_direction_does_not_matter():
    direction, _, normals, valid = make_maps()
    loss = angular_loss(direction, normals, valid).item()
    for scale in (1e-4, 1e4):
        assert angular_loss(direction * scale, normals, valid).item() == pytest.approx(loss, rel=1e-5)


@every_loss
def test_gradients_in_double(loss):
    direction, uncertainty, normals, valid = make_maps(torch.float64)
    inputs = direction.requires_grad_(), uncertainty.requires_grad_()
    assert torch.autograd.gradcheck(lambda d, u: loss(d, u, normals, valid) + 0 * u.sum(), inputs)


@every_loss
def test_gradient_is_finite_at_perfect_opposite_and_zero_directions(loss):
    for unit in (torch.tensor([0.0, 0, 1]), F.normalize(torch.tensor([0.3, -0.5, 0.8]), dim=0)):
        normals = unit.view(1, 3, 1, 1).expand(1, 3, 1, 3)
        direction = (normals * torch.tensor([2.0, -2.0, 0.0])).requires_grad_()
        uncertainty, valid = torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 3, dtype=torch.bool)
        loss(direction, uncertainty, normals, valid).backward()
        assert (direction.grad[..., :2] == 0).all()
        zero = direction.grad[..., 2].flatten()
        assert 0 < zero.norm() <= 2 and F.cosine_similarity(-zero, unit, dim=0) > 0.999
        angles = [
            angular_loss(direction, normals, torch.tensor([[[pixel == i for i in range(3)]]])) for pixel in range(3)
        ]
        margin = math.acos(1 - 1e-4)
        assert [angle.item() for angle in angles] == pytest.approx([margin, math.pi - margin, math.pi / 2], rel=1e-3)


@every_loss
def test_without_valid_pixels_the_loss_is_0_and_still_in_the_graph(loss):
    direction, uncertainty, normals, valid = make_maps()
    value = loss(direction.requires_grad_(), uncertainty, normals, torch.zeros_like(valid))
    value.backward()
    assert value == 0 and (direction.grad == 0).all()


@every_loss
def test_what_is_not_valid_does_not_matter_and_arguments_stay(loss):
    direction, uncertainty, normals, valid = make_maps()
    results = []
    for junk in (1.0, 0.0, -1e30, math.nan, math.inf):
        spoilt = [torch.where(valid[:, None], x, junk) for x in (direction, uncertainty, normals)]
        before = [x.clone() for x in spoilt]
        value = loss(spoilt[0].requires_grad_(), spoilt[1].requires_grad_(), spoilt[2], valid)
        value.backward()
        assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(spoilt, before, strict=True))
        here = valid[:, None].expand_as(direction)
        assert (spoilt[0].grad[~here] == 0).all() and (spoilt[0].grad[here] != 0).all()
        assert spoilt[1].grad is None or (spoilt[1].grad[~valid[:, None]] == 0).all()
        results.append((value.item(), spoilt[0].grad))
    assert all(value == results[0][0] and torch.equal(grad, results[0][1]) for value, grad in results)


@every_loss
def test_half_precision_is_widened(loss):
    direction, uncertainty, normals, valid = make_maps()
    direction, uncertainty = direction.bfloat16(), uncertainty.bfloat16()
    value = loss(direction, uncertainty, normals, valid)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(direction.float(), uncertainty.float(), normals, valid))


def test_maps_that_do_not_fit_are_not_broadcast():
    direction, uncertainty, normals, valid = make_maps()
    for wrong in ((direction, normals, valid[:, None]), (direction, normals[:, :1], valid)):
        with pytest.raises(ValueError, match="do not fit"):
            angular_loss(*wrong)
    with pytest.raises(ValueError, match="do not fit"):
        uncertain_angular_loss(direction, uncertainty[:1], normals, valid)
