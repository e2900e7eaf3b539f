"""Plots are looked at; what can be tested is that everything given is in them."""

import numpy as np
import pytest

from siglip2_dense.viz.curves import curves

LINES = {"a": [(1e-3, 1.0, 0.1), (1e-2, 3.0, None)], "b": [(1e-2, 2.0, 0.5), (1e-3, 4.0, 0.5)]}


def colours(picture):
    return {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}


def test_every_line_is_drawn_and_panels_stand_side_by_side():
    one = curves({"task": LINES}, "learning rate", ["mIoU"])
    two = curves({"task": LINES, "other": LINES}, "learning rate", ["mIoU", "rmse"])
    assert one.dtype == np.uint8 and one.ndim == 3 and one.shape[2] == 3
    assert two.shape[0] == one.shape[0] and two.shape[1] == 2 * one.shape[1]
    blue, orange = (31, 119, 180), (255, 127, 14)
    assert {blue, orange} <= colours(one)
    assert orange not in colours(curves({"task": {"a": LINES["a"]}}, "learning rate", ["mIoU"]))


def test_a_point_that_is_no_number_is_left_out():
    spoilt = {"a": [*LINES["a"], (1e-1, float("nan"), None)], "b": [(1e-1, float("inf"), None)]}
    expected = curves({"task": {"a": LINES["a"], "b": []}}, "learning rate", ["mIoU"])
    assert np.array_equal(curves({"task": spoilt}, "learning rate", ["mIoU"]), expected)


@pytest.mark.parametrize("count", [1, 40])
def test_a_legend_has_room(count):
    lines = {f"layers=last{number},pooled=concat": LINES["a"] for number in range(count)}
    picture = curves({"task": lines}, "learning rate", ["mIoU"])
    edge = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3), picture[:, -2:].reshape(-1, 3)])
    assert (edge == 255).all()  # nothing runs off the paper
