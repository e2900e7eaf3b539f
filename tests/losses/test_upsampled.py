"""Losses of scores that are never built at the pixels, against those of scores that are."""

import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.contracts import IGNORE
from siglip2_dense.losses import blocks, upsampled
from siglip2_dense.losses.upsampled import upsampled_bce, upsampled_cross_entropy

CASES = {  # images, classes, cells, pixels
    "37 cells for 518 pixels": (1, 3, (37, 37), (518, 518)),
    "many classes": (2, 40, (5, 7), (80, 100)),
    "few classes, odd scales": (2, 5, (24, 31), (500, 333)),
    "847 classes": (1, 847, (3, 4), (10, 17)),
    "one class": (1, 1, (2, 3), (8, 9)),
    "as many pixels as cells": (2, 33, (8, 8), (8, 8)),
    "fewer pixels than cells": (2, 4, (16, 16), (13, 9)),
    "far fewer": (1, 3, (24, 24), (5, 1)),
    "more rows, fewer columns": (1, 6, (3, 16), (20, 5)),
    "one cell": (1, 7, (1, 1), (5, 6)),
    "one row of cells, one column of pixels": (1, 7, (1, 3), (5, 1)),
}


def case(images, classes, cells, pixels, spread=3.0, ignored=0.2):
    torch.manual_seed(0)
    scores = spread * torch.randn(images, classes, *cells)
    labels = torch.randint(classes, (images, *pixels))
    labels[torch.rand(labels.shape) < ignored] = IGNORE
    return scores.requires_grad_(), labels


def plain(scores, labels, denominator=None):
    """Value and gradient in float64."""
    scores = scores.detach().double().requires_grad_()
    large = F.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(large, labels, ignore_index=IGNORE, reduction="sum")
    value = total / ((labels != IGNORE).sum().clamp(min=1) if denominator is None else denominator)
    return value, torch.autograd.grad(value, scores)[0]


def plain_bce(scores, labels, ignored):
    scores = scores.detach().double().requires_grad_()
    large = F.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=False)
    counted = (labels != IGNORE)[:, None]
    targets = F.one_hot(labels.clamp(min=0), scores.shape[1]).permute(0, 3, 1, 2) * counted.double()
    weight = torch.ones_like(targets) if ignored == "negative" else counted.expand_as(targets).double()
    total = F.binary_cross_entropy_with_logits(large, targets, weight, reduction="sum")
    value = total / weight.sum().clamp(min=1)
    return value, torch.autograd.grad(value, scores)[0]


def assert_equal(value, scores, expected, tolerance=1e-6):
    """The value relative to the expected one, the gradient to its maximum."""
    (gradient,) = torch.autograd.grad(value, scores)
    assert gradient.dtype == scores.dtype and gradient.shape == scores.shape
    assert abs(value.item() - expected[0].item()) <= tolerance * max(expected[0].item(), 1e-3)
    assert (gradient - expected[1]).abs().max() <= tolerance * max(expected[1].abs().max().item(), 1e-9)


@pytest.mark.parametrize("name", CASES)
def test_cross_entropy(name):
    scores, labels = case(*CASES[name])
    before = labels.clone()
    assert_equal(upsampled_cross_entropy(scores, labels), scores, plain(scores, labels))
    assert torch.equal(labels, before)


@pytest.mark.parametrize("ignored", ["negative", "masked"])
@pytest.mark.parametrize("name", CASES)
def test_binary_cross_entropy(name, ignored):
    scores, labels = case(*CASES[name])
    labels[-1, : len(labels[-1]) // 2] = IGNORE  # a border of pixels without a class
    assert_equal(upsampled_bce(scores, labels, ignored), scores, plain_bce(scores, labels, ignored))


@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("lowest", [-79.0, -81.0, -165.0, -1000.0])
def test_scores_far_apart(lowest, classes):
    """On both sides of the bound below which the exponentials are no geometric sequence in float32."""
    scores, labels = case(2, classes, (6, 5), (60, 71))
    with torch.no_grad():
        scores -= scores.amax(1, keepdim=True)
        scores *= lowest / scores.min()
    assert_equal(upsampled_cross_entropy(scores, labels), scores, plain(scores, labels))
    assert_equal(upsampled_bce(scores, labels), scores, plain_bce(scores, labels, "negative"))


@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("lowest", [-20.0, -50.0, -79.0])
def test_scores_far_apart_in_quads_of_unlike_size(lowest, classes):
    """Where some quads have fewer pixels than others, what is computed beyond them must not spoil their loss."""
    scores, labels = case(2, classes, (8, 9), (11, 13), ignored=0)
    with torch.no_grad():
        scores.copy_(torch.where(torch.rand_like(scores) < 0.5, 0.0, lowest))
        scores[:, 0] = torch.where((scores == lowest).all(1), 0.0, scores[:, 0])
    assert_equal(upsampled_cross_entropy(scores, labels), scores, plain(scores, labels))


def test_what_is_beyond_smaller_quads_is_bounded(monkeypatch):
    scores, labels = case(2, 40, (8, 9), (11, 13), ignored=0)
    with torch.no_grad():
        scores.copy_(torch.where(torch.rand_like(scores) < 0.5, 0.0, -79.0))
    monkeypatch.setattr(blocks._Axis, "reach", property(lambda axis: 1, lambda axis, value: None), raising=False)
    value = upsampled_cross_entropy(scores, labels)
    (gradient,) = torch.autograd.grad(value, scores)
    assert not (value.isfinite() and gradient.isfinite().all())


def test_the_bound_is_needed(monkeypatch):
    scores, labels = case(2, 40, (6, 5), (60, 71), spread=60)
    monkeypatch.setattr(upsampled, "LOWEST", float("-inf"))
    value, expected = upsampled_cross_entropy(scores, labels), plain(scores, labels)[0]
    assert not abs(value.item() - expected.item()) < 1e-3 * expected.item()


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_large_scores(offset):
    """What is added to all scores changes no softmax, however high they are."""
    scores, labels = case(1, 20, (4, 4), (40, 40))
    with torch.no_grad():
        scores += offset
    assert_equal(upsampled_cross_entropy(scores, labels), scores, plain(scores, labels), tolerance=1e-3)


@pytest.mark.parametrize("loss", [upsampled_cross_entropy, lambda *a: upsampled_bce(*a, ignored="masked")])
def test_no_pixel_counts(loss):
    scores, labels = case(2, 5, (3, 4), (20, 30), ignored=1.1)
    value = loss(scores, labels)
    (gradient,) = torch.autograd.grad(value, scores)
    assert value == 0 and gradient.shape == scores.shape and not gradient.any()


def test_an_image_of_the_batch_without_labels():
    scores, labels = case(3, 5, (3, 4), (20, 30))
    labels[1] = IGNORE
    assert_equal(upsampled_cross_entropy(scores, labels), scores, plain(scores, labels))


@pytest.mark.parametrize("denominator", [1, 1234, torch.tensor(77)])
def test_denominators(denominator):
    scores, labels = case(2, 5, (3, 4), (20, 30))
    found = upsampled_cross_entropy(scores, labels, denominator)
    assert_equal(found, scores, plain(scores, labels, denominator))


@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("box", [(0, 0, 41, 33), (37, 20, 43, 77), (16, 50, 8, 1), (79, 96, 1, 1)])
def test_what_no_counted_pixel_reads_is_left_out(box, classes):
    """Beside the image the canvas is not computed: there may be anything."""
    scores, labels = case(2, classes, (5, 6), (80, 97))
    top, left, height, width = box
    inside = torch.zeros_like(labels, dtype=torch.bool)
    inside[:, top : top + height, left : left + width] = True
    labels[~inside] = IGNORE
    expected = plain(scores, labels)
    read = expected[1].any(1, keepdim=True).any(0, keepdim=True)
    rows, columns = read.any(3), read.any(2)  # cells of other images, or between those that are read, may be
    around = ~(rows[..., None] & columns[:, :, None])
    assert around.any()
    with torch.no_grad():
        scores.masked_fill_(around, float("nan"))
    assert_equal(upsampled_cross_entropy(scores, labels), scores, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    scores, labels = case(2, 20, (5, 4), (50, 60))
    scores = scores.detach().to(dtype).requires_grad_()
    expected, gradient = plain(scores, labels)
    for device in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=device):
            value = upsampled_cross_entropy(scores, labels)
        assert value.dtype == torch.float32
        assert abs(value.item() - expected.item()) < 1e-6 * expected.item()
    (found,) = torch.autograd.grad(value, scores)
    assert torch.equal(found, gradient.to(dtype)) or (found - gradient).abs().max() < 1e-2 * gradient.abs().max()
    assert found.dtype == dtype


@pytest.mark.parametrize("classes", [3, 33])
def test_gradients_in_float64(classes):
    torch.manual_seed(0)
    scores = torch.randn(1, classes, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(IGNORE, classes, (1, 7, 8))
    assert upsampled_cross_entropy(scores, labels).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: upsampled_cross_entropy(x, labels), scores)
    assert torch.autograd.gradcheck(lambda x: upsampled_bce(x, labels), scores)


def test_layouts_of_memory():
    scores, labels = case(2, 6, (5, 7), (40, 50))
    expected = plain(scores, labels)
    last = scores.detach().to(memory_format=torch.channels_last).requires_grad_()
    turned = labels.transpose(1, 2).contiguous().transpose(1, 2)
    assert_equal(upsampled_cross_entropy(last, turned), last, expected)


def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch):
    scores, labels = case(1, 6, (5, 7), (40, 50))
    monkeypatch.setattr(blocks.Block, "pull_back", None)
    expected = plain(scores, labels)[0].item()
    assert upsampled_cross_entropy(scores.detach(), labels).item() == pytest.approx(expected)
    with torch.no_grad():
        assert upsampled_cross_entropy(scores, labels).item() == pytest.approx(expected)
    with pytest.raises(TypeError):
        upsampled_cross_entropy(scores, labels)


def test_gradients_of_gradients_are_refused():
    scores, labels = case(1, 6, (5, 7), (40, 50))
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(upsampled_cross_entropy(scores, labels), scores, create_graph=True)


@pytest.mark.parametrize("classes", [6, 40])
def test_the_same_bits_with_any_number_of_threads(classes, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 1)  # many blocks
    scores, labels = case(3, classes, (5, 7), (80, 90))
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 2, 3):
        torch.set_num_threads(count)
        value = upsampled_cross_entropy(scores, labels)
        assert torch.get_num_threads() == count
        found.append((value, torch.autograd.grad(value, scores)[0]))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(("size", "least", "most"), [(2**18, 2**17, 2**18), (1, 8 * 128 * 160 - 1, 8 * 128 * 160)])
def test_blocks_are_small(size, least, most, monkeypatch):
    """But no smaller than some quads, here of 16 x 8 pixels with 160 bytes each."""
    sizes, original = [], blocks.Block.exponentials
    monkeypatch.setattr(blocks, "CPU_BLOCK", size)
    monkeypatch.setattr(blocks.Block, "exponentials", lambda b: sizes.append(b.scores.numel()) or original(b))
    scores, labels = case(1, 40, (10, 14), (160, 100))
    upsampled_cross_entropy(scores, labels)
    assert len(sizes) > 10 and least < 4 * max(sizes) <= most


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ((1, 3, 4, 4), [[[0, 3]]], "labels from 0 to 3 for scores of 3 classes"),
        ((1, 3, 4, 4), [[[-2, 1]]], "labels from -2 to 1 for scores of 3 classes"),
        ((2, 3, 4, 4), [[[0, 1]]], "not of the same images"),
        ((1, 3, 4), [[[0, 1]]], "not of the same images"),
    ],
)
def test_labels_that_do_not_fit(scores, labels, message):
    for loss in (upsampled_cross_entropy, upsampled_bce):
        with pytest.raises(ValueError, match=message):
            loss(torch.zeros(scores), torch.tensor(labels))


def test_words_for_ignored_pixels():
    with pytest.raises(ValueError, match="give 'negative' or 'masked'"):
        upsampled_bce(torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 4, dtype=torch.int64), "drop")


def test_scores_that_are_not_finite_give_a_loss_that_is_not():
    scores, labels = case(1, 6, (5, 7), (40, 50))
    with torch.no_grad():
        scores[0, 2, 3, 3] = float("nan")
    assert upsampled_cross_entropy(scores, labels).isnan() and upsampled_bce(scores, labels).isnan()
