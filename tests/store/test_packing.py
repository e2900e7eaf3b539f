"""Targets as bytes: exact, and smaller than they were."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from siglip2_dense.contracts import IGNORE, Geometry, Sample
from siglip2_dense.store.packing import Packed, pack_known, pack_targets, unpack

PLACE = Geometry((32, 48), (1, 2, 30, 44), (30, 44), (30, 44), (60, 88), (0, 4, 30, 44), True)


def unpacked(data):
    packed = Packed.of(data)
    out = torch.full(packed.shape, 7, dtype=packed.type)  # as memory that was used before
    packed.unpack(out)
    return out


def there_and_back(sample, geometry=(PLACE,)):
    targets = {name: unpacked(data) for name, data in pack_targets(sample).items()}
    return unpack(pack_known(sample, geometry), targets)


def test_every_target_comes_back_bit_for_bit():
    labels = torch.randint(IGNORE, 150, (30, 44))
    labels[0, 0] = 40_000  # needs four bytes
    sample = Sample(
        labels=labels,
        depth=torch.rand(1, 30, 44) * 80,
        normals=torch.nn.functional.normalize(torch.randn(3, 30, 44), dim=0),
        boxes=torch.tensor([[1.5, 2.0, 30.25, 40.0]]),
        box_names=(("cup", "mug"),),
        queries=("cup", "mug", "saucer"),
        intrinsics=torch.tensor([[518.857, 0.1, 325.5], [0, 519.47, 253.7], [0, 0, 1]]),
        path="a/ü.jpg",
        original_size=(60, 88),
        index=12,
    )
    again, geometry = there_and_back(sample)
    assert geometry == (PLACE,)
    for name in ("labels", "depth", "normals", "boxes", "intrinsics"):
        value = getattr(again, name)
        assert torch.equal(value, getattr(sample, name)) and value.dtype == getattr(sample, name).dtype, name
    assert (again.path, again.original_size, again.index) == ("a/ü.jpg", (60, 88), 12)
    assert (again.box_names, again.queries) == ((("cup", "mug"),), ("cup", "mug", "saucer"))
    assert again.image is None


def test_what_a_sample_has_not_stays_away():
    sample = Sample(labels=torch.full((3, 4), IGNORE), path="b", original_size=(3, 4), index=0)
    assert set(pack_targets(sample)) == {"labels"}
    again, _ = there_and_back(sample, [PLACE])
    assert again.depth is None and again.normals is None and again.intrinsics is None
    assert torch.equal(again.labels, sample.labels)
    empty = Sample(boxes=torch.zeros(0, 4), path="c", original_size=(3, 4), index=0)
    assert there_and_back(empty)[0].boxes.shape == (0, 4) and there_and_back(empty)[0].queries is None
    assert there_and_back(replace(empty, queries=()))[0].queries == ()  # nothing to ask for, not everything


@pytest.mark.parametrize(
    ("low", "high", "bytes_each"),
    [(IGNORE, 254, 1), (IGNORE, 255, 2), (0, 255, 1), (300, 301, 1), (-200, 56, 2), (0, 70_000, 4), (-(2**40), 0, 8)],
)
def test_whole_numbers_of_any_range(low, high, bytes_each):
    values = torch.tensor([[low, high, low], [high, low, high]])
    packed = Packed.of(pack_targets(Sample(labels=values))["labels"])
    assert packed.dtype.itemsize == bytes_each and packed.type == torch.int64
    assert torch.equal(there_and_back(Sample(labels=values))[0].labels, values)


def test_what_older_files_hold_is_read():
    """Labels with a type of their own, which was not counted from the lowest."""
    values = np.array([[-1, 3, 120]], np.int8)
    assert unpacked(b"|i1 1 3\n" + zlib.compress(values.tobytes())).tolist() == values.tolist()
    values = np.array([[-1, 3], [149, 7]], np.int16)
    planes = values.reshape(-1, 1).view(np.uint8).T.tobytes()
    assert unpacked(b"<i2 2 2\n" + zlib.compress(planes)).tolist() == values.tolist()


def test_labels_take_little_room():
    labels = torch.arange(16).view(4, 4).repeat_interleave(128, 0).repeat_interleave(128, 1)
    packed = pack_targets(Sample(labels=labels))["labels"]
    assert len(packed) < labels.nbytes / 500


def test_bytes_of_measurements_are_sorted_by_weight():
    """Smooth depth shrinks by more than half, which it does not with the bytes of each value together."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    depth = (2 + rows / 64 + columns / 640)[None]
    assert len(pack_targets(Sample(depth=depth))["depth"]) < 0.8 * len(zlib.compress(depth.numpy().tobytes(), 1))
