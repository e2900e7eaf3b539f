"""Rows of images: kept, drawn, and on disk as they were."""

import numpy as np
import pytest
import torch

from siglip2_dense.errors import UserError
from siglip2_dense.metrics import rows
from siglip2_dense.metrics.depth import DepthMetric
from siglip2_dense.metrics.normals import NormalsMetric
from siglip2_dense.metrics.per_image import drawn_counts, drawn_sums
from siglip2_dense.metrics.segmentation import SegmentationMetric


def segmentation(order=(0, 1, 2)):
    metric, generator = SegmentationMetric(3), torch.Generator().manual_seed(0)
    images = [torch.randint(-1, 3, (2, 6, 5), generator=generator).clamp(min=i - 1) for i in range(3)]
    for index in order:
        metric.update(images[index][0].clamp(min=0), images[index][1], index)
    return metric


def depth():
    metric, generator = DepthMetric(0.1, 5.0), torch.Generator().manual_seed(0)
    for index in (4, 1):
        metric.update(*(torch.rand(2, 1, 4, 4, generator=generator) + 0.5), index)
    return metric


def normals():
    metric, generator = NormalsMetric(), torch.Generator().manual_seed(0)
    metric.update(*torch.randn(2, 3, 4, 4, generator=generator), 0)
    return metric


def test_rows_are_in_the_order_of_the_data_set_whatever_that_of_counting():
    positions, values = segmentation().rows()
    again = segmentation(order=(2, 0, 1)).rows()
    assert positions.tolist() == again[0].tolist() == [0, 1, 2]
    assert np.array_equal(values, again[1]) and values.dtype == np.int32 and not np.array_equal(values[0], values[1])


def test_drawn_sums_are_those_of_the_images_that_were_drawn():
    values = np.random.default_rng(0).normal(size=(5, 2, 3))
    counts = drawn_counts(5, 20, seed=1)
    assert (counts.sum(1) == 5).all() and counts.max() > 1
    for count, found in zip(counts, drawn_sums(values, counts), strict=True):
        picked = [image for image, times in enumerate(count.astype(int)) for _ in range(times)]
        assert np.allclose(found, sum(values[image] for image in picked))


@pytest.mark.parametrize("make", [segmentation, depth, normals])
def test_rows_on_disk_give_the_scores_of_the_metric(make, tmp_path):
    metric = make()
    rows.write(tmp_path / "rows.safetensors", {"a.b": metric}, {"a.b": ("x", "y", "z")})
    ((name, found),) = rows.read(tmp_path / "rows.safetensors").items()
    assert name == "a.b" and found.classes == ("x", "y", "z") and not list(tmp_path.glob(".*"))
    assert type(found.metric) is type(metric) and found.metric.arguments == metric.arguments
    assert found.metric.rows()[0].tolist() == metric.rows()[0].tolist()
    expected, scores = metric.compute(), found.metric.of_rows()
    assert scores.keys() == expected.keys() - {"median_pooled"}
    assert all(expected[key] == value for key, value in scores.items())


def test_each_record_has_a_place_of_its_own_for_its_rows():
    places = {
        record: rows.place(f"dir/{record}").as_posix() for record in ("results.json", "results_val.json", "a.json")
    }
    assert places["results.json"] == "dir/per_image.safetensors"
    assert places["results_val.json"] == "dir/per_image_val.safetensors"
    assert places["a.json"] == "dir/per_image_a.safetensors"


def test_another_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no rows of this version"):
        rows.read(tmp_path / "other.safetensors")
    rows.write(tmp_path / "cut.safetensors", {"a": depth()}, {})
    content = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-8])
    with pytest.raises(UserError, match="truncated"):
        rows.read(tmp_path / "cut.safetensors")
