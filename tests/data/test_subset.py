"""The two parts of a set: whole images, none in both, transformed as in the whole."""

from itertools import groupby

import numpy as np
import pytest
import torch

from siglip2_dense.data.generated import GeneratedScenes
from siglip2_dense.data.subset import held_out
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build

FLIP = [dict(type="RandomFlip"), dict(type="RandomCrop", size=(16, 24))]


def part(name, holdout=0.3, length=10, seed=0, transforms=(), **more):
    whole = dict(type="GeneratedScenes", split="train", length=length, size=(24, 32))
    settings = dict(type="Subset", dataset=whole, part=name, holdout=holdout, transforms=list(transforms), **more)
    return build(DATASETS, settings, seed=seed)


def test_parts_divide_the_whole_by_the_seed():
    kept, held = part("kept"), part("held out")
    assert len(held) == 3 and sorted(kept.indices + held.indices) == list(range(10))
    assert kept.indices == sorted(kept.indices) == part("kept").indices
    assert len({tuple(part("held out", seed=seed).indices) for seed in range(6)}) > 3
    assert (kept.split, held.split) == ("train, kept", "train, held out")
    assert kept.name == "generated" and kept.classes and kept.targets == held.targets and kept.metainfo["classes"]


@pytest.mark.parametrize(("size", "fraction", "runs"), [(367, 0.1, 6), (24_231, 0.1, 49), (10, 0.3, 2), (10, 0.9, 2)])
def test_images_are_held_out_in_runs_of_neighbours(size, fraction, runs):
    whole = set()
    for seed in range(20):
        held = held_out(size, fraction, seed)
        lengths = [len(list(run)) for inside, run in groupby(held.tolist()) if inside]
        assert len(held) == size and sum(lengths) == round(size * fraction)
        assert len(lengths) == runs and max(lengths) - min(lengths) <= 1
        whole |= set(np.flatnonzero(held).tolist())
    assert {0, size - 1} <= whole or size > 100  # the ends can be held out too


def test_an_image_is_what_it_is_in_the_whole_set_in_every_epoch():
    kept = part("kept", seed=3, transforms=FLIP)
    whole = GeneratedScenes("train", 10, (24, 32), 3, FLIP)
    for epoch in (0, 1):
        for index, place in enumerate(kept.indices):
            own, its = kept[epoch, index], whole[epoch, place]
            assert torch.equal(own.image, its.image) and torch.equal(own.labels, its.labels)
            assert own.index == index and own.path == its.path
    assert torch.equal(kept[-1].image, kept[0, len(kept) - 1].image)
    with pytest.raises(IndexError):
        kept[len(kept)]


def test_its_files_are_those_of_the_whole_set(monkeypatch):
    held = part("held out")
    monkeypatch.setattr(held.whole, "files_on_disk", lambda index: [index])
    assert [held.files_on_disk(index) for index in range(3)] == [[index] for index in held.indices]


def test_fingerprints_say_which_part_of_what():
    found = [part("kept"), part("held out"), part("kept", seed=1), part("kept", 0.4), part("kept", length=11)]
    assert len({one.fingerprint() for one in found}) == 5
    assert part("kept").fingerprint() == found[0].fingerprint()


@pytest.mark.parametrize(("holdout", "length", "held"), [(0.01, 10, 1), (0.99, 10, 9), (0.5, 2, 1), (0.1, 25, 2)])
def test_neither_part_is_empty(holdout, length, held):
    assert len(part("held out", holdout, length)) == held and len(part("kept", holdout, length)) == length - held


def test_what_cannot_be_held_out_is_said():
    for holdout in (0, 1, -0.5, 2, "0.1", True, None):
        with pytest.raises(UserError, match=r"holdout=.*: give the fraction"):
            part("kept", holdout)
    with pytest.raises(UserError, match="has one image of split train"):
        part("kept", length=1)
    with pytest.raises(UserError, match="part='rest'"):
        part("rest")
