"""The loss of segmentation, exact and sampled, on padded canvases; ``test_canvas.py`` has images of their own size."""

import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.contracts import IGNORE, Geometry, Sample
from siglip2_dense.errors import UserError
from siglip2_dense.tasks import Segmentation

NAMES = [f"class {k}" for k in range(7)]
BOXES = [(3, 5, 40, 50), (11, 0, 26, 61)]  # of the images on a canvas of 48 x 64 pixels


def batch(scaled=False):
    torch.manual_seed(0)
    raw = torch.randn(2, 7, 3, 4, requires_grad=True)
    if scaled:
        places = [((0, 0, 48, 64), (40, 50)), ((0, 0, 32, 48), (26, 61))]
        geometry = [Geometry((48, 64), box, (48, 64), size, size, scaled=True) for box, size in places]
    else:
        geometry = [Geometry((48, 64), box, (46, 61), box[2:], box[2:]) for box in BOXES]
    labels = [torch.randint(IGNORE, 7, place.resized) for place in geometry]
    return raw, geometry, [Sample(labels=label, index=number) for number, label in enumerate(labels)]


@pytest.mark.parametrize(("average", "count"), [("valid", None), ("all", 2 * 46 * 61)])
def test_exact_on_the_padded_canvas(average, count):
    raw, geometry, samples = batch()
    labels = torch.full((2, 48, 64), IGNORE)
    for canvas, sample, (top, left, height, width) in zip(labels, samples, BOXES, strict=True):
        canvas[top : top + height, left : left + width] = sample.labels
    large = F.interpolate(raw.double(), size=(48, 64), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(large, labels, ignore_index=IGNORE, reduction="sum")
    expected = expected / (count or (labels != IGNORE).sum())
    found = Segmentation(NAMES, average).loss(raw, geometry, samples, step=3)
    assert list(found) == ["loss_ce"] and found["loss_ce"].item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(value, raw)[0] for value in (found["loss_ce"], expected)]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-6 * gradients[1].abs().max()


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("scaled", [False, True])
def test_sampled_is_right_on_average_and_exact_with_enough_samples(scaled, average):
    raw, geometry, samples = batch(scaled)
    exact = Segmentation(NAMES, average).loss(raw, geometry, samples)["loss_ce"]
    task = Segmentation(NAMES, average, loss="sampled", samples=4000)
    assert task.loss(raw, geometry, samples)["loss_ce"].item() == pytest.approx(exact.item(), rel=1e-5)
    task = Segmentation(NAMES, average, loss="sampled", samples=100)
    with torch.no_grad():
        found = torch.stack([task.loss(raw, geometry, samples, step)["loss_ce"] for step in range(200)])
    assert 0 < found.std() < 0.1 * exact
    assert abs(found.mean() - exact) < 4 * found.std() / 200**0.5


@pytest.mark.parametrize("scaled", [False, True])
def test_the_draw_is_a_function_of_the_step_and_of_the_image(scaled):
    raw, geometry, samples = batch(scaled)
    task = Segmentation(NAMES, loss="sampled", samples=20)

    def loss(step):
        return task.loss(raw, geometry, samples, step)["loss_ce"].item()

    torch.manual_seed(1)
    first = loss(5)
    torch.manual_seed(2)
    assert loss(5) == first != loss(6)
    samples[1].index = 9
    assert loss(5) != first
    samples[1].index = -1  # of an image that is in no data set
    assert loss(None) == loss(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(loss="fast"), "loss='fast'; give 'exact' or 'sampled'"),
        (dict(samples=0), "samples=0; give the number of pixels, 1 or more"),
        (dict(samples=True), "samples=True"),
        (dict(samples=10.0), "samples=10.0"),
        (dict(average="mean"), "average='mean'; give 'valid' or 'all'"),
    ],
)
def test_options(options, message):
    with pytest.raises(UserError, match=message):
        Segmentation(NAMES, **options)


@pytest.mark.parametrize("options", [dict(), dict(average="all"), dict(loss="sampled", samples=30)], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_heads_together_have_the_losses_that_they_have_alone(scaled, options):
    raw, geometry, samples = batch(scaled)
    twice_as_fine = F.interpolate(raw.detach(), scale_factor=2)
    raws = [raw, twice_as_fine, 3 * raw]
    tasks = [Segmentation(NAMES, **options) for _ in raws]
    assert len({task.kin for task in tasks}) == 1
    found = tasks[0].together(raws, geometry, samples, 5)
    for task, own, terms in zip(tasks, raws, found, strict=True):
        assert terms == task.loss(own, geometry, samples, 5)


def test_tasks_are_kin_when_they_count_the_same_pixels():
    options = [dict(), dict(average="all"), dict(loss="sampled"), dict(loss="sampled", samples=9)]
    assert len({Segmentation(NAMES, **each).kin for each in options}) == 4
    assert Segmentation(NAMES, samples=9).kin == Segmentation(NAMES).kin  # which the exact loss does not read
