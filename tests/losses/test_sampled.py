"""The loss of some pixels: right on average, a function of its seeds, and quieter than pixels drawn anywhere."""

import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.contracts import IGNORE
from siglip2_dense.losses.sampled import Corners, DrawnPixels, draw_pixels, sampled_cross_entropy
from siglip2_dense.losses.upsampled import upsampled_cross_entropy
from siglip2_dense.resample import resize_logits


def case(size=(40, 60), dtype=torch.float32):
    """Two images, of which the second has few labels."""
    torch.manual_seed(0)
    scores = torch.randn(2, 6, 5, 7, dtype=dtype, requires_grad=True)
    labels = torch.randint(6, (2, 10, 15)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : size[0], : size[1]]
    labels[0, :7] = IGNORE
    labels[1, 3:] = IGNORE
    return scores, labels.contiguous()


def both(value, scores):
    return torch.cat([value[None], torch.autograd.grad(value, scores)[0].flatten()])


@pytest.mark.parametrize("denominator", [None, 1000])
def test_the_mean_over_draws_is_the_exact_loss(denominator):
    scores, labels = case()
    exact = both(upsampled_cross_entropy(scores, labels, denominator), scores)
    draws = 200
    found = torch.stack(
        [both(sampled_cross_entropy(scores, labels, 50, [(s, 0), (s, 1)], denominator), scores) for s in range(draws)]
    )
    error = found.std(0) / draws**0.5
    assert error[0] < 0.015 * exact[0]
    assert ((found.mean(0) - exact).abs() < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("count", [5000, 2400, 1980])
def test_exact_where_there_are_no_more_labels(count):
    scores, labels = case()
    assert (labels != IGNORE).sum((1, 2)).tolist() == [1980, 180]
    found = both(sampled_cross_entropy(scores, labels, count, [3, 4]), scores)
    torch.testing.assert_close(found, both(upsampled_cross_entropy(scores, labels), scores), rtol=1e-5, atol=1e-6)


def test_no_label_at_all():
    scores, labels = case()
    found = both(sampled_cross_entropy(scores, torch.full_like(labels, IGNORE), 50, [0, 1]), scores)
    assert not found.any()


def test_a_draw_is_a_function_of_its_seed():
    _, labels = case()
    first, _ = draw_pixels(labels, 50, [(7, 0), (7, 1)])
    again, _ = draw_pixels(labels.flip(0), 50, [(7, 1), (7, 0)])
    assert torch.equal(first, again.flip(0))  # wherever the image is in its batch
    other, _ = draw_pixels(labels, 50, [(8, 0), (7, 1)])
    assert not torch.equal(first[0], other[0]) and torch.equal(first[1], other[1])


@pytest.mark.parametrize("count", [1, 7, 50, 179, 180, 181, 1000])
def test_each_labelled_pixel_is_as_likely(count):
    _, labels = case()
    pixels, weights = draw_pixels(labels, count, [1, 2])
    for own, label, number in zip(pixels, labels.flatten(1), weights, strict=True):
        assert (label[own[number > 0]] != IGNORE).all() and number.sum() == (label != IGNORE).sum()
        assert len(own[number > 0].unique()) == min(count, int((label != IGNORE).sum()))
    drawn = torch.zeros(labels[1].numel())
    for seed in range(300):
        pixels, weights = draw_pixels(labels[1:], count, [seed])
        drawn.index_add_(0, pixels[0], weights[0].float())
    expected = 300.0 * (labels[1] != IGNORE).flatten()
    spread = (300 * max(180 / count - 1, 0)) ** 0.5  # of the sum of 300 times 180 / count or 0
    assert ((drawn - expected).abs() <= 6 * spread + 1e-6).all() and not drawn[expected == 0].any()


def test_quieter_than_pixels_drawn_anywhere():
    torch.manual_seed(0)
    scores = torch.randn(1, 6, 4, 4)
    labels = torch.randint(6, (1, 4, 4)).repeat_interleave(32, 1).repeat_interleave(32, 2)
    errors = F.cross_entropy(resize_logits(scores, (128, 128)), labels, reduction="none").flatten()
    anywhere = torch.stack([errors[torch.randperm(len(errors))[:512]].mean() for _ in range(100)])
    found = torch.stack([sampled_cross_entropy(scores, labels, 512, [seed]) for seed in range(100)])
    assert found.std() < 0.6 * anywhere.std()


@pytest.mark.parametrize(
    ("cells", "size"), [((5, 7), (40, 60)), ((5, 7), (33, 9)), ((1, 1), (4, 5)), ((8, 8), (8, 8)), ((9, 9), (4, 30))]
)
def test_scores_at_pixels_and_their_gradient(cells, size):
    scores = torch.randn(3, 4, *cells, requires_grad=True)
    pixels = torch.stack([torch.randperm(size[0] * size[1])[:10] for _ in range(3)])
    expected = resize_logits(scores, size).flatten(2).transpose(1, 2)
    expected = expected.gather(1, pixels[..., None].expand(-1, -1, 4)).flatten(0, 1)
    corners = Corners(pixels, size, cells)
    found = corners.values(scores.detach().permute(0, 2, 3, 1).flatten(0, 2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradient = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, scores, gradient)
    torch.testing.assert_close(corners.pull_back(gradient), wanted.permute(0, 2, 3, 1).flatten(0, 2))


def test_heads_of_several_grids_look_at_the_same_pixels():
    scores, labels = case()
    drawn = DrawnPixels(labels, 50, [3, 4])
    for own in (scores, scores[:, :, ::2], scores):
        assert torch.equal(drawn.cross_entropy(own, 7), sampled_cross_entropy(own, labels, 50, [3, 4], 7))


def test_scores_far_apart():
    """Across a cell the best class falls by more than exponentials of float32 can tell."""
    labels = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    scores = torch.tensor([[300.0, -300], [-300, 300], [-300, -400]]).view(1, 3, 1, 2).requires_grad_()
    expected = F.cross_entropy(resize_logits(scores, (1, 6)), labels)
    torch.testing.assert_close(both(sampled_cross_entropy(scores, labels, 6, [0]), scores), both(expected, scores))


def test_gradients_in_float64_and_half_precision():
    scores, labels = case(dtype=torch.float64)
    small = scores[:, :3, :2, :3].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sampled_cross_entropy(x, labels.clamp(max=2), 20, [0, 1]), small)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(sampled_cross_entropy(small, labels.clamp(max=2), 20, [0, 1]), small, create_graph=True)
    half = scores.detach().bfloat16().requires_grad_()
    value = sampled_cross_entropy(half, labels, 20, [0, 1])
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(sampled_cross_entropy(half.double(), labels, 20, [0, 1]).item(), rel=1e-6)
    assert torch.autograd.grad(value, half)[0].dtype == torch.bfloat16
