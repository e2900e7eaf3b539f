"""Cross-entropy by hand."""

import math

import pytest
import torch

from siglip2_dense.contracts import IGNORE
from siglip2_dense.losses.segmentation import cross_entropy


def test_by_hand():
    """Two counted pixels, one ignored: scores (0, log 3) for labels 1 and 0."""
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    labels = torch.tensor([[[1, 0, IGNORE]]])
    total = -math.log(3 / 4) - math.log(1 / 4)
    assert cross_entropy(logits, labels).item() == pytest.approx(total / 2)
    assert cross_entropy(logits, labels, denominator=10).item() == pytest.approx(total / 10)


def test_gradient_and_ignored_pixels():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(IGNORE, 3, (2, 4, 5))
    before = labels.clone()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels), logits)
    cross_entropy(logits, labels).backward()
    ignored = (labels == IGNORE)[:, None].expand_as(logits)
    assert logits.grad[ignored].abs().sum() == 0 and logits.grad[~ignored].abs().min() > 0
    assert torch.equal(labels, before)
    empty = cross_entropy(logits, torch.full_like(labels, IGNORE))
    assert empty == 0
