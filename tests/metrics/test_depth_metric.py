"""The depth metric: by hand, against numpy, its crop and averages; both metrics of geometry over ranks."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from siglip2_dense.errors import UserError
from siglip2_dense.metrics.depth import DepthMetric
from siglip2_dense.metrics.normals import NormalsMetric

NAMES = (
    *("rmse", "abs_rel", "sq_rel", "rmse_log", "log10", "silog", "d1", "d2", "d3"),
    *("rmse_aligned", "abs_rel_aligned", "d1_aligned", "rmse_pooled"),
)


def make_images(count, seed=0):
    """(prediction, depth) of unequal sizes and numbers of valid pixels, with holes and depths out of range."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for index in range(count):
        shape = (1, 9 + 2 * index, 20 - index)
        depth = torch.rand(shape, generator=generator) * 12
        noise = torch.randn(shape, generator=generator) * 0.1 * (index + 1)
        holes = torch.rand(shape, generator=generator) < 0.1 * index
        images.append(((depth * 0.9 + 0.3) * noise.exp(), depth.masked_fill(holes, 0)))
    return images


def measure(images, metric=None, indices=None):
    metric = metric or DepthMetric(1e-3, 10)
    for index, maps in zip(indices or range(len(images)), images, strict=True):
        metric.update(*maps, index)
    return metric


def by_numpy(prediction, depth):
    """The scores of one image as their formulas have them."""
    p, y = (x.numpy().astype(np.float64).ravel() for x in (prediction, depth))
    p, y = p[(y > 1e-3) & (y < 10)], y[(y > 1e-3) & (y < 10)]
    ratio, e = np.maximum(p / y, y / p), np.log(p) - np.log(y)
    scale, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], 1), y, rcond=None)[0]
    q = scale * p + shift
    scores = {
        "rmse": np.mean((p - y) ** 2) ** 0.5,
        "abs_rel": np.mean(np.abs(p - y) / y),
        "sq_rel": np.mean((p - y) ** 2 / y),
        "rmse_log": np.mean(e**2) ** 0.5,
        "log10": np.mean(np.abs(np.log10(y) - np.log10(p))),
        "silog": 100 * (np.mean(e**2) - np.mean(e) ** 2) ** 0.5,
        **{f"d{power}": np.mean(ratio < 1.25**power) for power in (1, 2, 3)},
        "rmse_aligned": np.mean((q - y) ** 2) ** 0.5,
        "abs_rel_aligned": np.mean(np.abs(q - y) / y),
        "d1_aligned": np.mean(np.where(q > 0, np.maximum(q / y, y / q), np.inf) < 1.25),
    }
    return scores, np.sum((p - y) ** 2), len(y)


def test_three_pixels_by_hand():
    """1 for 2 (a ratio of 2), 4 for 4, 9 for 6 (1.5); none at 0 and at 10."""
    prediction, depth = torch.tensor([[1.0, 4, 9, 7, 7]]), torch.tensor([[2.0, 4, 6, 0, 10]])
    found = measure([(prediction, depth)]).compute()
    low, high = math.log(2), math.log(1.5)
    # the fit: mean 14 / 3 for 4, squares 98 / 3, products 16
    scale = 16 / (98 / 3)
    residuals = [4 + scale * (p - 14 / 3) - y for p, y in ((1, 2), (4, 4), (9, 6))]
    expected = {
        "rmse": math.sqrt(10 / 3),
        "abs_rel": (1 / 2 + 3 / 6) / 3,
        "sq_rel": (1 / 2 + 9 / 6) / 3,
        "rmse_log": math.sqrt((low**2 + high**2) / 3),
        "log10": (math.log10(2) + math.log10(1.5)) / 3,
        "silog": 100 * math.sqrt((low**2 + high**2) / 3 - ((high - low) / 3) ** 2),
        "d1": 1 / 3,
        "d2": 2 / 3,
        "d3": 2 / 3,
        "rmse_aligned": math.sqrt(sum(r * r for r in residuals) / 3),
        "abs_rel_aligned": sum(abs(r) / y for r, y in zip(residuals, (2, 4, 6), strict=True)) / 3,
        "d1_aligned": 1.0,
        "rmse_pooled": math.sqrt(10 / 3),
    }
    assert found == pytest.approx(expected, rel=1e-12) and tuple(found) == NAMES


def test_against_numpy():
    images = make_images(6)
    scores, squares, pixels = zip(*(by_numpy(*image) for image in images), strict=True)
    expected = {name: np.mean([score[name] for score in scores]) for name in scores[0]}
    expected["rmse_pooled"] = math.sqrt(sum(squares) / sum(pixels))
    assert measure(images).compute() == pytest.approx(expected, rel=1e-9)


def test_images_count_alike_and_pixels_count_alike_when_pooled():
    """One pixel off by 3, and four off by 1: 2 a image, 13 / 5 a squared pixel. An image without any is left out."""
    one, four, none = torch.tensor([[4.0, 0, 0, 0]]), torch.full((2, 2), 4.0), torch.zeros(1, 3)
    metric = measure([(one + 3, one), (four + 1, four), (none + 1, none)])
    found = metric.compute()
    assert found["rmse"] == pytest.approx(2) and found["rmse_pooled"] == pytest.approx(math.sqrt(13 / 5))
    assert found["d1"] == pytest.approx((0 + 0) / 2) and found["d2"] == pytest.approx((0 + 1) / 2)
    assert metric.images == 3


def test_the_range_is_open():
    """Depths at its ends do not count; 1e-3 is one in float32 too."""
    depth = torch.tensor([[1e-3, 2e-3, 9.99, 10.0, 0.0, -1.0]])
    wrong = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]])  # where it does not count
    assert measure([(depth + 5 * wrong, depth)]).compute()["rmse"] == 0
    assert measure([(depth + 5 * (1 - wrong), depth)]).compute()["rmse"] == pytest.approx(5)


def test_the_eigen_crop_counts_238560_pixels():
    depth = torch.full((1, 480, 640), 2.0)
    prediction = torch.full_like(depth, 7.0)
    prediction[:, 45:471, 41:601] = 2
    prediction[0, 45, 41] = prediction[0, 470, 600] = 3  # its corners
    metric = measure([(prediction, depth)], DepthMetric(1e-3, 10, "eigen"))
    assert metric.compute()["rmse"] ** 2 == pytest.approx(2 / 238_560, rel=1e-12)


def test_a_crop_of_other_maps_or_an_unknown_one_is_an_error():
    with pytest.raises(UserError, match="480x640"):
        measure(make_images(1), DepthMetric(1e-3, 10, "eigen"))
    with pytest.raises(UserError, match="did you mean 'eigen'"):
        DepthMetric(1e-3, 10, "egien")


@pytest.mark.parametrize("limits", [(0, 10), (-1, 10), (10, 10), (5, 1), (math.nan, 10)])
def test_a_range_that_is_none_is_refused(limits):
    with pytest.raises(UserError, match="0 < min_depth < max_depth"):
        DepthMetric(*limits)


def test_predictions_are_not_clamped_but_in_logarithms():
    """-1 and 20 for 4: errors of 5 and 16; the logarithm takes -1 as 1e-3, and no ratio finds it near."""
    depth = torch.full((1, 2), 4.0)
    found = measure([(torch.tensor([[-1.0, 20.0]]), depth)]).compute()
    assert found["rmse"] == pytest.approx(math.sqrt((25 + 256) / 2)) and found["d3"] == 0
    logs = math.log(1e-3 / 4) ** 2, math.log(5) ** 2
    assert found["rmse_log"] == pytest.approx(math.sqrt(sum(logs) / 2))
    assert all(map(math.isfinite, measure([(torch.zeros(1, 2), depth)]).compute().values()))
    assert math.isnan(measure([(torch.tensor([[4.0, math.nan]]), depth)]).compute()["rmse"])


def test_alignment_finds_scale_and_shift():
    _, depth = make_images(3)[2]
    found = measure([(depth * -0.2 + 30, depth)]).compute()  # an inverted prediction is aligned too
    assert found["rmse_aligned"] < 1e-5 < 20 < found["rmse"] and found["d1_aligned"] == 1 and found["d1"] < 0.1
    flat = torch.tensor([[0.1, 0.1, 0.1]]), torch.tensor([[0.1, 1.0, 4.0]])
    for maps in (flat, (flat[0][:, :1], flat[1][:, 2:])):  # constant, and a single pixel: nothing to fit
        found = measure([maps]).compute()
        assert all(found[f"{name}_aligned"] == pytest.approx(found[name]) for name in ("rmse", "abs_rel", "d1"))


def test_an_aligned_depth_below_0_is_far_from_any():
    """The line through this falls by 1.95: 3.483 for 4, 1.533 for 0.5, and -0.417 for 0.1, whose ratios are below 0."""
    found = measure([(torch.tensor([[1.0, 2, 3]]), torch.tensor([[4.0, 0.5, 0.1]]))]).compute()
    assert found["d1_aligned"] == pytest.approx(1 / 3)
    assert found["abs_rel_aligned"] == pytest.approx(((4 - 3.4833333) / 4 + 1.0333333 / 0.5 + 0.5166667 / 0.1) / 3)


def test_shapes_and_types_of_maps():
    prediction, depth = make_images(2)[1]
    before = prediction.clone(), depth.clone()
    expected = measure([(prediction, depth)]).compute()
    assert measure([(prediction[0], depth[0])]).compute() == expected
    assert torch.equal(prediction, before[0]) and torch.equal(depth, before[1])
    half = prediction.bfloat16()
    assert measure([(half, depth)]).compute() == measure([(half.float(), depth)]).compute()
    for wrong in (depth[..., 1:], depth.expand(3, -1, -1), depth[0, 0]):
        with pytest.raises(ValueError, match=r"size|\(1, H, W\)"):
            DepthMetric(1e-3, 10).update(prediction, wrong, 0)


def test_an_image_counts_once_and_needs_its_position():
    images = make_images(3)
    metric = measure(images)
    for index in (1, -1):
        with pytest.raises(ValueError, match="position"):
            metric.update(*images[1], index)
    assert metric.images == 3 and metric.compute() == measure(images).compute() and metric.per_class() == {}


def test_nothing_to_count():
    metric = DepthMetric(1e-3, 10)
    for index in range(2):  # no image, then one without a single valid pixel
        assert all(math.isnan(value) for value in metric.compute().values()) and metric.images == index
        assert np.isnan([*metric.intervals(samples=10).values()]).all()
        metric.update(torch.ones(4, 5), torch.zeros(4, 5), index)


def test_intervals_hold_their_scores_and_are_the_same_each_time():
    metric = measure(make_images(8))
    found, intervals = metric.compute(), metric.intervals()
    assert tuple(intervals) == NAMES and all(low < found[name] < high for name, (low, high) in intervals.items())
    assert metric.intervals() == intervals != metric.intervals(seed=1)


def test_intervals_by_hand():
    """Images off by 1 and 3, of one and three pixels: a draw has one kind alone in half of the cases."""
    near, far, none = torch.tensor([[4.0]]), torch.tensor([[4.0, 4, 4]]), torch.zeros(1, 1)
    intervals = measure([(near + 1, near), (far + 3, far)]).intervals()
    assert intervals["rmse"] == pytest.approx([1, 3]) and intervals["rmse_pooled"] == pytest.approx([1, 3])
    alone = measure([(near + 1, near), (none, none)]).intervals()  # drawn twice, the second leaves nothing to count
    assert alone["rmse"] == pytest.approx([1, 1]) and alone["rmse_pooled"] == pytest.approx([1, 1])


def make_normals(count):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(2, 3, 6 + index, 11, generator=generator) for index in range(count)]
    for index, (_, normals) in enumerate(images):
        normals[:, index] = 0
    return images


KINDS = {"depth": (make_images, lambda: DepthMetric(1e-3, 10)), "normals": (make_normals, NormalsMetric)}
SHARES = ([4, 0, 6, 2], [1, 5, 3]), ([], list(range(7)))  # unequal ones, and a rank without images


def results(metric):
    return [metric.images, metric.compute(), metric.intervals(50)]


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {}
    for kind, (make, metric) in KINDS.items():
        images = make(7)
        for number, shares in enumerate(SHARES):
            part = measure([images[index] for index in shares[rank]], metric(), shares[rank])
            part.sync()
            found[kind, number] = results(part)
    torch.save(found, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    expected = {kind: results(measure(make(7), metric())) for kind, (make, metric) in KINDS.items()}
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pth", weights_only=False)
        assert found == {(kind, number): expected[kind] for kind in KINDS for number in (0, 1)}
