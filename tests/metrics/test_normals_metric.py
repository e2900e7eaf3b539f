"""The metric of normals: by hand, against numpy, at small angles, and its two averages."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.metrics.normals import NormalsMetric, angular_error

PER_IMAGE = ("rmse", "mean", "median", "recall_11.25", "recall_22.5", "recall_30")
POOLED = tuple(f"{name}_pooled" for name in PER_IMAGE)


def at_angles(degrees):
    """(prediction, normals) (3, 1, n): directions of lengths 1, 2, 3.. at these angles from (0, 0.6, 0.8)."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    normals = torch.tensor([0, 0.6, 0.8], dtype=torch.float64)[:, None, None].expand(3, 1, len(degrees))
    aside = torch.tensor([0, 0.8, -0.6], dtype=torch.float64)[:, None, None]
    return (normals * radians.cos() + aside * radians.sin()) * torch.arange(1, len(degrees) + 1), normals


def make_images(count, seed=0):
    """(prediction, normals) of unequal sizes, predictions of any length, some pixels without a normal."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for index in range(count):
        normals = F.normalize(torch.randn(3, 7 + 2 * index, 12 - index, generator=generator), dim=0)
        noise = torch.randn(normals.shape, generator=generator) * 0.15 * (index + 1)
        holes = torch.rand(normals.shape[1:], generator=generator) < 0.1 * index
        length = torch.rand(normals.shape[1:], generator=generator) * 5 + 0.1
        images.append(((normals + noise) * length, normals.masked_fill(holes, 0)))
    return images


def measure(images):
    metric = NormalsMetric()
    for index, maps in enumerate(images):
        metric.update(*maps, index)
    return metric


def angles_by_numpy(prediction, normals):
    p, n = (x.numpy().astype(np.float64).reshape(3, -1) for x in (prediction, normals))
    p, n = p[:, (n != 0).any(0)], n[:, (n != 0).any(0)]
    cosine = (p * n).sum(0) / np.linalg.norm(p, axis=0) / np.linalg.norm(n, axis=0)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def by_numpy(angles):
    recalls = [np.mean(angles < threshold) for threshold in (11.25, 22.5, 30)]
    return [np.mean(angles**2) ** 0.5, np.mean(angles), np.median(angles), *recalls]


def test_four_pixels_by_hand():
    prediction, normals = at_angles([10.0, 20.0, 40.0, 70.0])
    normals = normals.clone()
    normals[..., 3] = 0  # not measured
    found = measure([(prediction, normals)]).compute()
    values = [math.sqrt((100 + 400 + 1600) / 3), 70 / 3, 20, 1 / 3, 2 / 3, 2 / 3]
    assert [found[name] for name in PER_IMAGE] == pytest.approx(values, rel=1e-9)
    assert [found[name] for name in POOLED] == pytest.approx(values, rel=1e-9)
    assert set(found) == {*PER_IMAGE, *POOLED}


def test_against_numpy():
    images = make_images(6)
    angles = [angles_by_numpy(*image) for image in images]
    found = measure(images).compute()
    assert [found[name] for name in PER_IMAGE] == pytest.approx(np.mean([*map(by_numpy, angles)], axis=0), rel=1e-7)
    pooled = by_numpy(np.concatenate(angles))
    median = pooled.pop(2)
    assert [found[name] for name in POOLED if name != "median_pooled"] == pytest.approx(pooled, rel=1e-7)
    assert found["median_pooled"] == pytest.approx(median, abs=0.00501)


def test_images_count_alike_and_pixels_count_alike_when_pooled():
    """One pixel at 40 degrees and three at 10. An image without any is left out."""
    prediction, normals = at_angles([40.0, 10.0, 10.0, 10.0])
    images = [(prediction[..., :1], normals[..., :1]), (prediction[..., 1:], normals[..., 1:])]
    metric = measure([*images, (prediction, torch.zeros_like(normals))])
    found = metric.compute()
    assert [found[name] for name in PER_IMAGE] == pytest.approx([25, 25, 25, 0.5, 0.5, 0.5])
    assert [found[name] for name in POOLED] == pytest.approx([math.sqrt(475), 17.5, 10, 0.75, 0.75, 0.75])
    assert metric.images == 3


def test_the_median_of_an_even_number_is_between_two():
    found = measure([at_angles([10.0, 30.0, 50.0, 20.0])]).compute()
    assert found["median"] == pytest.approx(25) and found["median_pooled"] == pytest.approx(25)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 0.01, 1.0, 89.99, 179.999, 180.0])
def test_small_and_large_angles_are_exact(angle):
    prediction, normals = at_angles([angle] * 3)
    assert angular_error(prediction[:, 0], normals[:, 0]).tolist() == pytest.approx([angle] * 3, rel=1e-6, abs=1e-12)


def test_a_perfect_prediction_is_exactly_0():
    normals = F.normalize(torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(0)), dim=0)
    found = measure([(normals, normals), (2 * normals, normals), (normals.double(), normals.double())]).compute()
    assert all(found[name] == (1 if name.startswith("recall") else 0) for name in found)


def test_thresholds_are_strict(monkeypatch):
    angles = torch.tensor([11.25, 22.5, 30.0], dtype=torch.float64)
    monkeypatch.setattr("siglip2_dense.metrics.normals.angular_error", lambda *_: angles)
    found = measure([at_angles(angles.tolist())]).compute()
    for suffix in ("", "_pooled"):
        recalls = [found[f"recall_{threshold}{suffix}"] for threshold in ("11.25", "22.5", "30")]
        assert recalls == pytest.approx([0, 1 / 3, 2 / 3])


def test_what_has_no_direction_is_at_90_degrees():
    _, normals = at_angles([0.0] * 5)
    prediction = normals.clone()
    prediction[..., 1] = 0
    prediction[0, 0, 2] = math.nan
    prediction[1, 0, 3] = math.inf
    assert angular_error(prediction[:, 0], normals[:, 0]).tolist() == pytest.approx([0, 90, 90, 90, 0], abs=1e-9)
    assert measure([(prediction, normals)]).compute()["mean"] == pytest.approx(54)


def test_shapes_and_types_of_maps():
    prediction, normals = make_images(2)[1]
    before = prediction.clone(), normals.clone()
    metric = measure([(prediction, normals)])
    assert torch.equal(prediction, before[0]) and torch.equal(normals, before[1])
    half = prediction.bfloat16()
    assert measure([(half, normals)]).compute() == measure([(half.float(), normals)]).compute() != metric.compute()
    for wrong in (normals[:, 1:], normals[None], normals[:2]):
        with pytest.raises(ValueError, match=r"\(3, H, W\)"):
            metric.update(prediction if wrong.ndim == 3 and len(wrong) == 3 else wrong, wrong, 5)


def test_an_image_counts_once_and_needs_its_position():
    images = make_images(3)
    metric = measure(images)
    for index in (1, -1):
        with pytest.raises(ValueError, match="position"):
            metric.update(*images[1], index)
    assert metric.images == 3 and metric.compute() == measure(images).compute() and metric.per_class() == {}


def test_nothing_to_count():
    metric = NormalsMetric()
    for index in range(2):  # no image, then one without a single normal
        assert all(math.isnan(value) for value in metric.compute().values()) and metric.images == index
        assert np.isnan([*metric.intervals(samples=10).values()]).all()
        metric.update(torch.ones(3, 4, 5), torch.zeros(3, 4, 5), index)


def test_intervals_hold_their_scores_and_are_the_same_each_time():
    metric = measure(make_images(8))
    found, intervals = metric.compute(), metric.intervals()
    assert set(intervals) == set(found) - {"median_pooled"}
    assert all(low < found[name] < high for name, (low, high) in intervals.items())
    assert metric.intervals() == intervals != metric.intervals(seed=1)
