"""Guesses against a set of images small enough to count by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from siglip2_dense.benchmark.guesses import CELLS, class_counts, constant_loss, guesses
from siglip2_dense.contracts import IGNORE


class Images(list):
    """Label maps as a data set of three classes."""

    classes = ("a", "b", "c")

    def __getitem__(self, index):
        return SimpleNamespace(labels=super().__getitem__(index))


def halves(left, right, size=(CELLS, 2 * CELLS)):
    labels = torch.full(size, left)
    labels[:, size[1] // 2 :] = right
    return labels


@pytest.fixture
def train():
    """Left always b, right c or nothing; over all, b is half as often again as c."""
    return Images([halves(1, 2), halves(1, 2), halves(1, IGNORE, (3 * CELLS, CELLS))])


def test_counts_are_by_place_and_leave_out_what_does_not_count(train):
    counts = class_counts(train)
    assert counts[:, : CELLS // 2].sum((0, 1)).tolist() == [0, 3 * CELLS**2 / 2, 0]
    assert counts[:, CELLS // 2 :].sum((0, 1)).tolist() == [0, 0, CELLS**2]


def test_what_guesses_score(train):
    test = Images([halves(1, 2, (10, 20)), halves(2, 2, (10, 10))])  # b 100 pixels, c 200
    found = {name: metric.compute() for name, metric in guesses(class_counts(train), test).items()}
    assert found["everywhere"]["aAcc"] == pytest.approx(100 / 3)
    assert found["everywhere"]["mIoU_labelled"] == pytest.approx(100 * (1 / 3 + 0) / 2)
    assert found["at its place"]["aAcc"] == pytest.approx(100 * 250 / 300)
    assert found["at its place"]["mIoU_labelled"] == pytest.approx(100 * (100 / 150 + 150 / 200) / 2)
    assert found["drawn"]["aAcc"] == pytest.approx(100 / 3, abs=9)  # 300 draws: three standard deviations


def test_where_training_has_nothing_the_guess_is_that_for_everywhere(train):
    train.pop(0), train.pop(0)
    found = guesses(class_counts(train), Images([halves(1, 1, (5, 7))]))
    assert found["at its place"].compute()["aAcc"] == 100


def test_the_best_constant_is_the_frequencies(train):
    def loss(p):
        targets = torch.cat([labels[labels != IGNORE].flatten() for labels in list.__iter__(train)])
        hot = torch.nn.functional.one_hot(targets, 3).double()
        p = torch.tensor(p, dtype=torch.float64).expand(hot.shape)
        return torch.nn.functional.binary_cross_entropy(p, hot).item()

    train.pop()  # of one size, so that a pixel counts as much as a place
    best = constant_loss(class_counts(train))
    assert best == pytest.approx(loss([0.0, 0.5, 0.5])) == pytest.approx(2 * math.log(2) / 3)
    assert best < min(loss([0.0, 0.45, 0.5]), loss([0.01, 0.5, 0.5]), loss([0.0, 0.5, 0.6]))
