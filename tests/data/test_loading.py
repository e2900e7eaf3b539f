from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from mmengine.runner.loops import _InfiniteDataloaderIterator

from siglip2_dense.contracts import Sample
from siglip2_dense.data import loading
from siglip2_dense.data.base import PixelDataset
from siglip2_dense.data.loading import RankSampler, StepSampler, collate


def _take(sampler, count):
    return list(islice(sampler, count))


def _crop(sample, rng):
    top, left = rng.integers(0, 24, 2)
    return Sample(image=sample.image[:, top : top + 8, left : left + 8], index=sample.index)


class _Noise(PixelDataset):
    name, classes = "noise", ("all",)

    def __init__(self, length=7, seed=0):
        self.length = length
        super().__init__("train", "/noise", [_crop], seed)

    def find(self):
        return [(f"{i}.png",) for i in range(self.length)]

    def read(self, entry):
        picture = np.arange(32 * 32).reshape(1, 32, 32) % 251  # the same everywhere, so that only windows differ
        return Sample(image=torch.from_numpy(picture.astype(np.uint8)).expand(3, -1, -1))


def test_each_epoch_holds_every_index_once_in_an_order_of_its_own():
    pairs = _take(StepSampler(7, 2, seed=0), 21)
    epochs = [[index for epoch, index in pairs if epoch == e] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [epoch for epoch, _ in pairs] == sorted(epoch for epoch, _ in pairs)


def test_the_order_is_a_function_of_the_seed():
    assert _take(StepSampler(50, 4, seed=1), 200) == _take(StepSampler(50, 4, seed=1), 200)
    assert _take(StepSampler(50, 4, seed=1), 50) != _take(StepSampler(50, 4, seed=2), 50)
    sampler = StepSampler(50, 4, seed=1)
    assert _take(sampler, 9) == _take(sampler, 9)  # asked twice, it begins again


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_ranks_draw_together_what_one_rank_draws_alone(world, batch):
    steps = 11
    alone = _take(StepSampler(13, batch * world, seed=5), steps * batch * world)
    ranks = [_take(StepSampler(13, batch, 5, rank, world), steps * batch) for rank in range(world)]
    together = [pair for s in range(steps) for rank in ranks for pair in rank[s * batch : (s + 1) * batch]]
    assert together == alone


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 3)])
@pytest.mark.parametrize("skipped", [0, 4, 7, 40])
def test_skipping_is_running(rank, world, skipped):
    running, resumed = (StepSampler(13, 4, 5, rank, world) for _ in range(2))
    resumed.skip(skipped)
    assert _take(running, skipped + 20)[skipped:] == _take(resumed, 20)


@pytest.mark.parametrize(("size", "world"), [(7, 2), (2, 3), (12, 4)])
def test_test_ranks_share_every_index_once(size, world):
    parts = [list(RankSampler(size, rank, world)) for rank in range(world)]
    assert Counter(index for part in parts for index in part) == Counter(range(size))
    assert [len(part) for part in parts] == [len(RankSampler(size, rank, world)) for rank in range(world)]


def test_a_batch_keeps_images_of_their_own_sizes():
    samples = [Sample(image=torch.zeros(3, 4, 5)), Sample(image=torch.zeros(3, 6, 2))]
    batch = collate(samples)
    assert set(batch) == {"inputs", "data_samples"} and all(s.image is None for s in batch["data_samples"])
    assert [tuple(image.shape) for image in batch["inputs"]] == [(3, 4, 5), (3, 6, 2)]


def _complete():
    maps = {"labels": torch.zeros(4, 5), "depth": torch.ones(1, 4, 5), "normals": torch.ones(3, 4, 5)}
    boxes = {"boxes": torch.zeros(1, 4), "box_names": (("red box",),), "queries": ("red box", "cup")}
    return Sample(image=torch.zeros(3, 4, 5), **maps, **boxes, intrinsics=torch.eye(3), path="a", index=3)


@pytest.mark.parametrize("targets", [("depth",), ["labels", "normals"], ("boxes",), (), None])
def test_only_wanted_targets_travel(targets):
    whole = _complete()
    (sample,) = collate([whole], targets)["data_samples"]
    kept = {name for name in loading.TARGETS if getattr(sample, name) is not None}
    assert kept == set(loading.TARGETS if targets is None else targets)
    assert all(torch.equal(getattr(sample, name), getattr(whole, name)) for name in kept)
    assert sample.box_names == ((("red box",),) if "boxes" in kept else ())
    assert sample.queries == (("red box", "cup") if "boxes" in kept else None)
    assert torch.equal(sample.intrinsics, torch.eye(3)) and (sample.path, sample.index) == ("a", 3)
    assert whole.depth is not None and whole.image is not None  # the data set may keep it


class _Complete(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, item):
        return _complete()


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_hand_on_what_is_wanted(workers):
    test = loading.test_loader(_Complete(), 1, workers, ("normals",))
    train = loading.train_loader(_Complete(), 1, workers, 0, ("normals",))
    for batch in (*test, next(iter(train))):
        (sample,) = batch["data_samples"]
        assert sample.normals is not None and sample.labels is None and sample.depth is None
    loading.stop_workers(train)


def _batches(workers, steps=5, seed=3, skipped=0):
    loader = loading.train_loader(_Noise(), batch_size=3, num_workers=workers, seed=seed)
    loader.sampler.skip(skipped)
    return [(torch.stack(b["inputs"]), [s.index for s in b["data_samples"]]) for b in islice(loader, steps)]


def _same(one, other):
    return all(torch.equal(a, b) and i == j for (a, i), (b, j) in zip(one, other, strict=True))


def test_batches_do_not_depend_on_workers_and_repeat():
    alone, two = _batches(0), _batches(2)
    assert _same(alone, two) and _same(alone, _batches(0))
    windows = {image.numpy().tobytes() for images, _ in alone for image in images}
    assert len(windows) > 10  # of 15: each index and epoch draws its own
    assert not _same(alone, _batches(0, seed=4))


def test_mmengine_resumes_where_the_run_stopped():
    steps = _batches(0, 6)
    iterator = _InfiniteDataloaderIterator(loading.train_loader(_Noise(), 3, 0, seed=3))
    iterator.skip_iter(4)
    batch = next(iterator)
    assert torch.equal(torch.stack(batch["inputs"]), steps[4][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_test_loader_gives_every_image_once_in_order(workers):
    batches = list(loading.test_loader(_Noise(), batch_size=2, num_workers=workers))
    assert [[s.index for s in batch["data_samples"]] for batch in batches] == [[0, 1], [2, 3], [4, 5], [6]]


def test_loaders_leave_the_global_random_state():
    state = torch.get_rng_state()
    _batches(0, 2)
    list(loading.test_loader(_Noise(), 2, 0))
    assert torch.equal(torch.get_rng_state(), state)


class _Threads(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        import cv2

        return Sample(image=torch.tensor([cv2.getNumThreads(), torch.get_num_threads()]))


def test_a_worker_uses_one_thread():
    (batch,) = loading.test_loader(_Threads(), 2, 1)
    assert [image.tolist() for image in batch["inputs"]] == [[1, 1]] * 2
