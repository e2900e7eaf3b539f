"""The segmentation metric: by hand, against mmsegmentation's, over ranks, and its intervals."""

import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from siglip2_dense.contracts import IGNORE
from siglip2_dense.metrics.segmentation import SegmentationMetric, class_counts, confusion


def make_images(count, classes, seed=0):
    """(prediction, labels) of unequal sizes; labels have IGNORE and the prediction is often right."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for index in range(count):
        size = (10 + 3 * index, 25 - 2 * index)
        labels = torch.randint(IGNORE, classes, size, generator=generator)
        wrong = torch.randint(0, classes, size, generator=generator)
        right = torch.rand(size, generator=generator) < 0.3 + 0.05 * index
        images.append((torch.where(right & (labels >= 0), labels, wrong), labels))
    return images


def measure(images, classes, indices=None):
    metric = SegmentationMetric(classes)
    for index, (prediction, labels) in zip(indices or range(len(images)), images, strict=True):
        metric.update(prediction, labels, index)
    return metric


def test_confusion_by_hand():
    labels, prediction = torch.tensor([[0, 1], [1, IGNORE]]), torch.tensor([[0, 1], [0, 1]])
    assert confusion(prediction, labels, 2).tolist() == [[1, 0], [1, 1]]


def test_confusion_adds_over_images():
    labels, prediction = torch.randint(IGNORE, 5, (2, 8, 8)), torch.randint(0, 5, (2, 8, 8))
    parts = sum(confusion(p, y, 5) for p, y in zip(prediction, labels, strict=True))
    assert torch.equal(parts, confusion(prediction, labels, 5))


def test_a_label_beyond_the_classes_is_an_error():
    with pytest.raises(RuntimeError):
        confusion(torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 2]), 2)


def test_scores_by_hand():
    """Class 2 is predicted only (IoU 0, no accuracy), class 3 occurs nowhere (neither)."""
    metric = SegmentationMetric(4)
    metric.update(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 0, 0, 1]]), 0)
    metric.update(torch.tensor([[1], [1]]), torch.tensor([[1], [IGNORE]]), 1)
    # class 0: 2 of 3 labelled, 2 predicted; class 1: 1 right, 2 labelled, 2 predicted
    iou, accuracy = [2 / 3, 1 / 3, 0, None], [2 / 3, 1 / 2, None, None]
    scores = metric.per_class()
    for found, expected in ((scores["IoU"], iou), (scores["Acc"], accuracy)):
        assert [value is None for value in found] == [value is None for value in expected]
        assert [v for v in found if v is not None] == pytest.approx([100 * v for v in expected if v is not None])
    scores = {"mIoU": 100 / 3, "mIoU_labelled": 50, "mAcc": 700 / 12, "aAcc": 60}
    assert metric.compute() == pytest.approx(scores)
    assert metric.images == 2


def test_an_image_counts_once_and_needs_its_position():
    images = make_images(3, 4)
    metric = measure(images, 4)
    for index in (1, -1):
        with pytest.raises(ValueError, match="position"):
            metric.update(*images[1], index)
    assert metric.images == 3 and metric.compute() == measure(images, 4).compute()


def test_nothing_to_count():
    metric = SegmentationMetric(3)
    for index in range(2):  # no image, then one without a single labelled pixel
        assert all(np.isnan(value) for value in metric.compute().values())
        assert metric.per_class() == {"IoU": [None] * 3, "Acc": [None] * 3}
        assert np.isnan(metric.intervals(samples=10)["mIoU"]).all()
        metric.update(torch.zeros(4, 5, dtype=torch.int64), torch.full((4, 5), IGNORE), index)


@pytest.mark.parametrize("present", [9, 6])
def test_same_numbers_as_mmsegmentation(present):
    """mmsegmentation marks ignored pixels with 255; with 6 of 9 classes present, 3 are absent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mmseg.evaluation.metrics import IoUMetric

    images, classes = make_images(6, present), 9
    theirs = IoUMetric(ignore_index=255, prefix="test")
    theirs.dataset_meta = {"classes": tuple(map(str, range(classes)))}
    for prediction, labels in images:
        data = dict(
            pred_sem_seg=dict(data=prediction), gt_sem_seg=dict(data=torch.where(labels == IGNORE, 255, labels))
        )
        theirs.process({}, [data])
    metric = measure(images, classes)
    expected = theirs.compute_metrics(theirs.results)
    found = metric.compute()
    assert {name: round(found[name], 2) for name in expected} == pytest.approx(expected, abs=1e-4)
    areas = [sum(area) for area in zip(*theirs.results, strict=True)]
    for name, values in theirs.total_area_to_metrics(*areas).items():
        if name != "aAcc":
            found = [np.nan if value is None else value for value in metric.per_class()[name]]
            np.testing.assert_allclose(found, 100 * values, rtol=1e-6)


@pytest.mark.parametrize("present", [9, 6])
def test_detectron2_means_over_the_labelled_classes(present):
    """Class by class. Three classes that are predicted and nowhere labelled cost nothing there."""
    images, classes = make_images(6, present), 9
    images = [(torch.where(torch.rand(labels.shape) < 0.1, 8, prediction), labels) for prediction, labels in images]
    predictions, labels = (torch.cat([pair[side].flatten() for pair in images]) for side in (0, 1))
    scores = []
    for k in labels[labels != IGNORE].unique():
        right = ((predictions == k) & (labels == k)).sum()
        of_either = ((predictions == k) & (labels != IGNORE) | (labels == k)).sum()
        scores.append(float(right / of_either))
    found = measure(images, classes).compute()
    assert found["mIoU_labelled"] == pytest.approx(100 * np.mean(scores)) and len(scores) == present
    assert (found["mIoU"] < found["mIoU_labelled"] - 1) == (present == 6)


def test_many_classes_are_counted_without_their_table():
    numbers = torch.Generator().manual_seed(0)
    labels = torch.randint(IGNORE, 5000, (37, 53), generator=numbers)
    guess = torch.randint(0, 5000, (37, 53), generator=numbers)
    prediction = torch.where(torch.rand((37, 53), generator=numbers) < 0.5, labels.clamp(min=0), guess)
    table = confusion(prediction, labels, 5000)
    expected = torch.stack([table.diagonal(), table.sum(0), table.sum(1)])
    assert torch.equal(class_counts(prediction, labels, 5000), expected)


def results(metric):
    return [metric.images, metric.compute(), metric.per_class(), metric.intervals(50)]


def work(rank, folder, shares):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    images = make_images(7, 5)
    metric = measure([images[index] for index in shares[rank]], 5, shares[rank])
    metric.sync()
    torch.save(results(metric), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "shares",
    [([0, 2, 4, 6], [1, 3, 5]), ([], [0, 1, 2, 3, 4, 5, 6])],
    ids=["unequal shares", "a rank without images"],
)
def test_two_processes_count_each_image_once(tmp_path, shares):
    mp.spawn(work, (str(tmp_path), shares), nprocs=2)
    metric = measure(make_images(7, 5), 5)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pth", weights_only=False) == results(metric)


def test_an_image_on_both_ranks_is_refused(tmp_path):
    with pytest.raises(mp.ProcessRaisedException, match="counted an image twice"):
        mp.spawn(work, (str(tmp_path), ([0, 1], [1, 2])), nprocs=2)


def test_interval_holds_the_score_and_is_the_same_each_time():
    metric = measure(make_images(8, 5), 5)
    low, high = metric.intervals()["mIoU"]
    assert low < metric.compute()["mIoU"] < high
    assert metric.intervals()["mIoU"] == [low, high] != metric.intervals(seed=1)["mIoU"]


def test_every_score_has_an_interval():
    metric = measure(make_images(8, 5), 5)
    scores, intervals = metric.compute(), metric.intervals()
    assert set(intervals) == set(scores)
    assert all(low < scores[name] < high for name, (low, high) in intervals.items())


def test_interval_of_images_by_hand():
    """Two images, all right and all wrong: a draw has both of one kind in half of the cases."""
    right, wrong = torch.zeros(4, 4, dtype=torch.int64), torch.ones(4, 4, dtype=torch.int64)
    metric = measure([(right, right), (wrong, right)], 2)
    assert metric.intervals()["mIoU"] == [0, 100]
    void = torch.full_like(right, IGNORE)  # drawn twice, it leaves nothing to count
    assert measure([(right, right), (right, void)], 2).intervals()["mIoU"] == [100, 100]
