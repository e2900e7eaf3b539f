"""Batches from a store: the order, the content, and the thread that reads."""

import subprocess
import sys
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch
from toys import TAPS, toy_features, toy_sample

from siglip2_dense.contracts import Features
from siglip2_dense.errors import UserError
from siglip2_dense.store.loader import AHEAD, BLOCK, BlockSampler, StoredImages, StoredLoader, ahead
from siglip2_dense.store.reader import Reader


def steps(count, **arguments):
    return list(islice(BlockSampler(**{**dict(size=21, batch_size=4, seed=3), **arguments}), count))


def test_an_epoch_has_every_position_once_in_blocks():
    drawn = [item for batch in steps(21) for item in batch]  # 84 = 4 epochs
    for epoch in range(4):
        positions = [position for e, position in drawn if e == epoch]
        assert sorted(positions) == list(range(21))
        starts = [positions[k] for k in range(21) if k == 0 or positions[k] != positions[k - 1] + 1]
        assert {start % BLOCK for start in starts} == {0}
    orders = {tuple(position for e, position in drawn if e == epoch) for epoch in range(4)}
    assert len(orders) > 1 and drawn != [item for batch in steps(21, seed=4) for item in batch]


def test_a_resumed_run_and_several_ranks_draw_the_same():
    whole = steps(12)
    resumed = BlockSampler(21, 4, 3)
    resumed.skip(5 * 4)
    assert list(islice(resumed, 7)) == whole[5:]
    ranks = [steps(6, batch_size=2, rank=rank, world=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole[:6]


def loader(store, views=1, batch_size=6, targets=("labels",), taps=TAPS, pooled=True, **ranks):
    return StoredLoader(Reader(store, taps, pooled, targets, views), None, batch_size, seed=3, **ranks)


def expected(store, items, views=1, **how):
    order = store.order()
    parts = [toy_features(int(order[position]), epoch % views, **how) for epoch, position in items]
    return Features.cat(parts)


def test_batches_are_what_was_stored_of_the_epochs_view(toy_store):
    store = toy_store(views=2)
    batches = loader(store, views=2)
    for items, batch in zip(steps(11, batch_size=6), batches, strict=False):  # three epochs and a bit
        found, wanted = batch["inputs"], expected(store, items, views=2)
        assert {values.dtype for values in (*found.maps.values(), found.pooled)} == {torch.float16}
        assert all(torch.equal(found.maps[tap], wanted.maps[tap].half()) for tap in TAPS)
        assert all(torch.equal(found.prefix[tap], wanted.prefix[tap].half()) for tap in TAPS)
        assert torch.equal(found.pooled, wanted.pooled.half()) and found.geometry == wanted.geometry
        for (epoch, position), sample in zip(items, batch["data_samples"], strict=True):
            index = int(store.order()[position])
            assert sample.index == index and torch.equal(sample.labels, toy_sample(index, epoch % 2).labels)
            assert sample.depth is None  # nobody asked for it


def test_maps_are_channels_last_in_memory_as_encoders_give_them(toy_store):
    batch = next(iter(loader(toy_store())))
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in batch["inputs"].maps.values())


def test_some_of_the_taps(toy_store):
    features = next(iter(loader(toy_store(), taps=TAPS[1:], pooled=False)))["inputs"]
    assert set(features.maps) == set(features.prefix) == {TAPS[1]} and features.pooled is None


def test_ranks_see_disjoint_parts(toy_store):
    store = toy_store(images=24)
    seen = [
        [s.index for batch in islice(loader(store, batch_size=4, rank=rank, world=3), 2) for s in batch["data_samples"]]
        for rank in range(3)
    ]
    assert sorted(index for part in seen for index in part) == list(range(24))


def test_memory_of_a_batch_is_used_again_and_not_too_soon(toy_store):
    store = toy_store()
    kept, places = [], []
    for items, batch in zip(steps(3 * (AHEAD + 2), batch_size=6), loader(store), strict=False):
        time.sleep(0.01)  # the reader has all the time to overwrite what is in use
        maps = batch["inputs"].maps[TAPS[0]]
        assert torch.equal(maps, expected(store, items).maps[TAPS[0]].half())
        labels = [sample.labels for sample in batch["data_samples"]]
        for (_, position), found in zip(items, labels, strict=True):
            assert torch.equal(found, toy_sample(int(store.order()[position])).labels)
        places.append((maps.data_ptr(), labels[0].data_ptr()))
        kept.append((maps, labels))
    assert len(set(places)) == AHEAD + 2


def test_images_with_cells_of_their_own_share_a_canvas(toy_store):
    shapes = [(2, 3), (3, 2), (1, 6)]
    store = toy_store(cells=lambda index: shapes[index % 3], scaled=True)
    object.__setattr__(store.facts, "sequence_length", 6)
    try:
        for items, batch in zip(steps(4, batch_size=6), loader(store), strict=False):
            features = batch["inputs"]
            grid = features.valid.shape[1:]
            assert features.maps[TAPS[0]].shape[-2:] == grid
            for row, (_, position) in enumerate(items):
                index = int(store.order()[position])
                (h, w), alone = shapes[index % 3], toy_features(index, cells=shapes[index % 3], scaled=True)
                assert features.valid[row, :h, :w].all() and features.valid[row].sum() == h * w
                for tap in TAPS:
                    assert torch.equal(features.maps[tap][row, :, :h, :w], alone.maps[tap][0].half())
                    assert not features.maps[tap][row][:, ~features.valid[row]].any()
                place = features.geometry[row]
                assert place.box == (0, 0, 16 * h, 16 * w) and place.padded == tuple(16 * side for side in grid)
                assert place.canvas == place.padded and place.scaled
    finally:
        object.__setattr__(store.facts, "sequence_length", None)


def test_images_of_several_sizes_are_refused_for_training(toy_store):
    store = toy_store(cells=lambda index: (2, 2 + index % 2))
    with pytest.raises(UserError, match=r"several sizes \(32x32 and 32x48 pixels\).*model.canvas"):
        loader(store)


def test_evaluation_takes_every_image_once_over_all_ranks(toy_store):
    store = toy_store(windows=dict(mode="whole"), cells=lambda index: (2, 2 + index % 2))
    for rank in (0, 1):
        images = StoredImages(Reader(store, TAPS, True, ("labels", "depth")), None, rank, 2)
        found = list(images)
        assert [batch["data_samples"][0].index for batch in found] == list(range(rank, 21, 2)) == list(images.sampler)
        for batch in found:
            (features,), (sample,) = batch["inputs"], batch["data_samples"]
            wanted = toy_features(sample.index, cells=(2, 2 + sample.index % 2))
            assert torch.equal(features.maps[TAPS[1]], wanted.maps[TAPS[1]].half())
            assert torch.equal(sample.depth, toy_sample(sample.index).depth)


def test_an_error_of_the_reader_reaches_the_trainer(toy_store):
    store = toy_store()
    batches = iter(loader(store))
    next(batches)
    store.file(0, 0).write_bytes(store.file(0, 0).read_bytes()[:2000])
    with pytest.raises(UserError, match="is truncated"):
        for _ in range(20):
            next(batches)


def test_the_reader_stops_with_the_loop_and_does_not_run_away(toy_store):
    before = threading.active_count()
    made = []

    def numbers():
        for number in range(100):
            made.append(number)
            yield number

    items = ahead(numbers())
    assert next(items) == 0
    time.sleep(0.1)
    assert len(made) <= AHEAD + 2 and threading.active_count() == before + 1
    items.close()
    assert threading.active_count() == before
    assert list(ahead(iter(range(5)))) == [0, 1, 2, 3, 4]
    batches = iter(loader(toy_store()))
    next(batches)
    del batches
    assert threading.active_count() == before


def test_an_order_is_drawn_from_the_seed_and_the_epoch_alone():
    state = np.random.get_state()[1].copy()
    first = BlockSampler(100, 4, 1).order(5)
    assert np.array_equal(first, BlockSampler(100, 8, 1, 1, 4).order(5))
    assert np.array_equal(state, np.random.get_state()[1])


LEFT_RUNNING = """
import itertools, torch
from siglip2_dense.store.loader import ahead
items = ahead(torch.ones(2000, 2000).exp().sum() for _ in itertools.count())
next(items)
"""


def test_a_process_ends_whatever_is_still_read_ahead():
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", LEFT_RUNNING], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
