"""Losses and costs of detection against numbers by hand, against torchvision's, and against finite differences."""

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from siglip2_dense.losses import detection as losses

INIT = math.log(0.01 / 0.99)  # of a score before training


def some_boxes(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, 4, generator=generator, dtype=dtype) * 0.4 + torch.tensor([0.2, 0.2, 0.05, 0.05])


def test_corners_and_centres_by_hand():
    box = torch.tensor([[0.5, 0.4, 0.2, 0.6]])
    assert losses.corners(box)[0].tolist() == pytest.approx([0.4, 0.1, 0.6, 0.7])
    assert losses.centred(losses.corners(box))[0].tolist() == pytest.approx(box[0].tolist())


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, 1 / 7 - 2 / 9),
        ([0, 0, 2, 2], [0, 0, 2, 2], 1, 1),
        ([0, 0, 1, 1], [2, 0, 3, 1], 0, -1 / 3),
        ([0, 0, 4, 4], [1, 1, 2, 2], 1 / 16, 1 / 16),
        ([1, 1, 1, 1], [0, 0, 2, 2], 0, 0),  # of no area
    ],
)
def test_overlaps_by_hand(a, b, iou, giou):
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    assert losses.iou(a, b)[0].item() == pytest.approx(iou, abs=1e-5)
    assert losses.giou(a, b).item() == pytest.approx(giou, abs=1e-5)


def test_overlaps_are_torchvisions():
    a, b = losses.corners(some_boxes(7)), losses.corners(some_boxes(5, seed=1))
    found = losses.giou(a[:, None], b[None])
    assert (found - generalized_box_iou(a, b)).abs().max() < 1e-3  # 1e-6 in the denominators, and areas of 0.003
    large = losses.giou(1000 * a[:, None], 1000 * b[None])
    assert (large - generalized_box_iou(1000 * a, 1000 * b)).abs().max() < 1e-7


def test_what_scores_cost_before_training():
    positive, negative = losses.focal_parts(torch.tensor([INIT], dtype=torch.float64))
    assert positive.item() == pytest.approx(0.3 * 0.99**2 * -math.log(0.01)) == pytest.approx(1.354, abs=1e-3)
    assert negative.item() == pytest.approx(0.7 * 0.01**2 * -math.log(0.99)) == pytest.approx(7.0e-7, abs=1e-8)


def test_focal_loss_is_torchvisions():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(9, 5, generator=generator, dtype=torch.float64)
    targets = (torch.rand(9, 5, generator=generator) < 0.3).double()
    expected = sigmoid_focal_loss(logits, targets, alpha=0.3, gamma=2, reduction="sum")
    assert losses.focal(logits, targets).item() == pytest.approx(expected.item(), rel=1e-9)


def test_focal_loss_is_finite_where_scores_are_sure():
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    value = losses.focal(logits, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    value.backward()
    assert value.item() == pytest.approx(0.3 * 200 + 0.7 * 200) and logits.grad.isfinite().all()


def test_box_losses_by_hand():
    """A shift by 0.1 to the right counts twice in L1 between corners; of a box twice as wide each edge moves."""
    wanted = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]], dtype=torch.float64)
    boxes = torch.tensor([[0.6, 0.5, 0.2, 0.2], [0.5, 0.5, 0.4, 0.2]], dtype=torch.float64)
    l1, giou = losses.box_losses(boxes, wanted)
    assert l1.item() == pytest.approx(0.2 + 0.2)
    assert giou.item() == pytest.approx((1 - 1 / 3) + (1 - 1 / 2), abs=1e-4)
    a, b = losses.corners(some_boxes(6)), losses.corners(some_boxes(6, seed=1))
    _, found = losses.box_losses(100 * some_boxes(6), 100 * some_boxes(6, seed=1))
    assert found.item() == pytest.approx(generalized_box_iou_loss(100 * a, 100 * b, reduction="sum").item(), rel=1e-5)


def test_matching_cost_by_hand():
    logits = torch.tensor([[INIT, 0.0], [0.0, INIT]], dtype=torch.float64)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    wanted = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]], dtype=torch.float64)
    sure = 0.3 * 0.99**2 * -math.log(0.01) - 0.7 * 0.01**2 * -math.log(0.99)
    half = (0.3 - 0.7) * 0.25 * math.log(2)
    # the second box has both names, whose costs are added; a shift by 0.1 counts once here
    expected = [[sure - 1, sure + half - 1], [half + 0.1 - 1 / 3, half + sure + 0.1 - 1 / 3]]
    found = losses.matching_cost(logits, boxes, targets, wanted)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-4)


def test_what_is_not_finite_costs_most():
    boxes, wanted = some_boxes(3), some_boxes(2, seed=1)
    boxes[1] = torch.nan
    found = losses.matching_cost(torch.zeros(3, 1).double(), boxes, torch.ones(2, 1).double(), wanted)
    assert found.isfinite().all() and (found[1] > found[[0, 2]].max()).all()
    nothing = losses.matching_cost(
        torch.full((1, 1), torch.nan), wanted[:1].float(), torch.ones(1, 1), wanted[:1].float()
    )
    assert (nothing == 10).all()


def test_nothing_there():
    empty = torch.zeros(0, 4, requires_grad=True)
    l1, giou = losses.box_losses(empty, torch.zeros(0, 4))
    (l1 + giou + losses.focal(torch.zeros(3, 0), torch.zeros(3, 0))).backward()
    assert l1 == giou == 0 and empty.grad.shape == (0, 4)
    assert losses.matching_cost(torch.zeros(3, 0), torch.rand(3, 4), torch.zeros(0, 0), torch.zeros(0, 4)).shape == (
        3,
        0,
    )


def test_gradients():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(4, 3, generator=generator) < 0.4).double()
    assert torch.autograd.gradcheck(lambda x: losses.focal(x, targets), logits)
    boxes, wanted = some_boxes(5).requires_grad_(), some_boxes(5, seed=1)
    assert torch.autograd.gradcheck(lambda x: losses.box_losses(x, wanted), boxes)
    apart = torch.tensor([[0.1, 0.1, 0.05, 0.05]], dtype=torch.float64, requires_grad=True)  # GIoU still pulls
    assert torch.autograd.gradcheck(lambda x: losses.box_losses(x, wanted[:1] + 0.4), apart)
