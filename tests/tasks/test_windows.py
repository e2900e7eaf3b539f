"""Windows and the class map made of them, against mmsegmentation and against the large map built in full."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.contracts import Geometry
from siglip2_dense.models.windows import window_boxes
from siglip2_dense.tasks import windows as module
from siglip2_dense.tasks.windows import argmax_map, blend, blended_argmax


def make_windows(resized, original, crop, stride, classes=7, patch=8, multiple=None, dtype=torch.float32):
    """Random raw maps of the windows of an image, padded around the centre to ``multiple``."""
    torch.manual_seed(0)
    multiple = multiple or patch
    windows = []
    for box in window_boxes(resized, crop, stride):
        padded = tuple(-(-side // multiple) * multiple for side in box[2:])
        start = tuple((whole - side) // 2 for whole, side in zip(padded, box[2:], strict=True))
        raw = torch.randn(classes, padded[0] // patch, padded[1] // patch, dtype=dtype)
        windows.append((raw, Geometry(padded, (*start, *box[2:]), box[2:], resized, original, box)))
    return windows


def assert_best(windows):
    """The class map has the largest of the blended logits at each pixel, but for ties up to rounding."""
    logits, found = blend(windows), argmax_map(windows)
    assert found.dtype == torch.int64 and found.shape == logits.shape[1:]
    chosen = logits.gather(0, found[None])[0]
    assert (logits.amax(0) - chosen).max() <= 1e-5
    assert (found == logits.argmax(0)).float().mean() > 0.999


CASES = {
    "one window": dict(resized=(48, 64), original=(48, 64), crop=64, stride=32),
    "odd sizes": dict(resized=(61, 97), original=(61, 97), crop=40, stride=27),
    "stride that does not tile": dict(resized=(70, 70), original=(70, 70), crop=38, stride=25),
    "shorter than the crop": dict(resized=(33, 90), original=(33, 90), crop=48, stride=32),
    "larger original": dict(resized=(48, 75), original=(111, 173), crop=48, stride=31),
    "smaller original": dict(resized=(80, 99), original=(37, 45), crop=48, stride=32),
    "padded to 14": dict(resized=(64, 90), original=(60, 85), crop=64, stride=43, patch=14),
    "padded by more than a cell": dict(resized=(45, 50), original=(45, 50), crop=45, stride=30, multiple=64),
    "one class": dict(resized=(40, 50), original=(41, 52), crop=40, stride=20, classes=1),
    "bfloat16": dict(resized=(48, 75), original=(96, 150), crop=48, stride=31, dtype=torch.bfloat16),
    "half": dict(resized=(48, 75), original=(96, 150), crop=48, stride=31, dtype=torch.float16),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("buffer", [2**22, 2**12])
def test_class_map_is_the_best_of_the_blend(name, buffer, monkeypatch):
    monkeypatch.setattr(module, "CPU_BUFFER", buffer)  # all rows at once, and a few at a time
    assert_best(make_windows(**CASES[name]))


def test_518_for_512():
    """The published sizes: a crop of 512 in a canvas of 518, patch 14, an image of two windows."""
    assert_best(make_windows((512, 683), (480, 640), 512, 341, classes=5, patch=14))


def test_whole_image_and_a_single_cell():
    geometry = Geometry((16, 16), (2, 3, 11, 9), (11, 9), (11, 9), (11, 9))
    raw = torch.tensor([1.0, 3.0, 2.0]).view(3, 1, 1)
    assert (argmax_map([(raw, geometry)]) == 1).all()
    whole = Geometry((64, 64), (0, 0, 64, 64), (64, 64), (64, 64), (64, 64))
    assert_best([(torch.randn(5, 8, 8), whole)])


@pytest.mark.parametrize(("window", "cells"), [((333, 500), (13, 19)), ((37, 53), (26, 38)), ((8, 5), (20, 12))])
@pytest.mark.parametrize("finer", [1, 8])
def test_cells_that_do_not_divide_the_pixels(window, cells, finer):
    """Of an encoder that scales its windows: a window of so many pixels is covered by whole cells, or is smaller."""
    torch.manual_seed(0)
    size = window[0], 2 * window[1] - 2
    windows = []
    for left in (0, window[1] - 2):
        raw = torch.randn(5, finer * cells[0], finer * cells[1])
        windows.append((raw, Geometry(window, (0, 0, *window), window, size, size, (0, left, *window))))
    whole = [F.interpolate(raw[None], window, mode="bilinear")[0] for raw, _ in windows]
    total = F.pad(whole[0], (0, window[1] - 2)) + F.pad(whole[1], (window[1] - 2, 0))
    total[..., window[1] - 2 : window[1]] /= 2
    torch.testing.assert_close(blend(windows), total, atol=1e-5, rtol=1e-5)
    assert_best(windows)


def test_constant_logits_stay_constant():
    windows = make_windows((70, 90), (101, 77), 38, 25, classes=3)
    windows = [(torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1).expand_as(raw), place) for raw, place in windows]
    expected = torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1).expand(3, 101, 77)
    torch.testing.assert_close(blend(windows), expected)


def test_cells_outside_the_image_are_not_read():
    """What an encoder says of padding may be anything."""
    geometry = Geometry((64, 64), (40, 17, 20, 34), (20, 34), (20, 34), (20, 34))
    raw = torch.randn(4, 8, 8)
    expected = argmax_map([(raw, geometry)])
    raw[:, :4], raw[:, :, :1], raw[:, :, 7:] = float("nan"), float("nan"), float("nan")
    assert torch.equal(argmax_map([(raw, geometry)]), expected)


def test_windows_that_are_no_grid_are_refused():
    windows = make_windows((70, 90), (70, 90), 38, 25)
    for wrong in (windows[:-1], windows[::-1][1:], [windows[1], windows[0], *windows[2:]]):
        with pytest.raises(ValueError, match="grid"):
            argmax_map(wrong)


def test_the_callers_threads_and_modes_are_left_alone():
    torch.set_num_threads(2)
    windows = make_windows((48, 75), (48, 75), 48, 31)
    expected = argmax_map(windows)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(argmax_map(windows), expected)
    asking = [(raw.requires_grad_(), place) for raw, place in windows]
    assert torch.equal(argmax_map(asking), expected)
    assert torch.get_num_threads() == 2


def toy_model(pixels):
    """Raw maps (B, 4, h, w) at a third of the window's size, which depend on what the window shows."""
    weight = torch.linspace(-1, 1, 12).sin().view(4, 3, 1, 1)
    return F.adaptive_avg_pool2d(F.conv2d(pixels, weight), [max(side // 3, 1) for side in pixels.shape[2:]])


@pytest.mark.parametrize(
    ("resized", "original", "crop", "stride"),
    [
        ((64, 96), (64, 96), (48, 48), (32, 32)),
        ((61, 103), (61, 103), (40, 48), (27, 32)),
        ((70, 70), (91, 83), (38, 38), (25, 25)),
        ((33, 90), (33, 90), (48, 48), (32, 32)),
        ((32, 24), (57, 41), (48, 48), (32, 32)),
    ],
)
def test_windows_and_logits_are_those_of_mmsegmentation(resized, original, crop, stride):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mmengine import ConfigDict
        from mmseg.models.segmentors import EncoderDecoder
        from mmseg.structures import SegDataSample

    seen = []

    class Slide(EncoderDecoder):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.align_corners, self.out_channels = False, 4
            self.test_cfg = ConfigDict(mode="slide", crop_size=crop, stride=stride)

        def encode_decode(self, pixels, metas):
            seen.append(tuple(pixels.shape[2:]))
            return F.interpolate(toy_model(pixels), pixels.shape[2:], mode="bilinear", align_corners=False)

    image = torch.randn(1, 3, *resized)
    meta = dict(ori_shape=original, img_shape=resized, pad_shape=resized, padding_size=[0] * 4)
    (sample,) = Slide().predict(image, [SegDataSample(metainfo=meta)])
    windows = []
    for top, left, *size in window_boxes(resized, crop, stride):
        raw = toy_model(image[:, :, top : top + size[0], left : left + size[1]])[0]
        size = tuple(size)
        windows.append((raw, Geometry(size, (0, 0, *size), size, resized, original, (top, left, *size))))
    assert seen == [geometry.window[2:] for _, geometry in windows]
    torch.testing.assert_close(blend(windows), sample.seg_logits.data, atol=1e-6, rtol=1e-5)
    assert_best(windows)


def test_boxes_by_hand():
    assert window_boxes((512, 683), 512, 341) == [(0, 0, 512, 512), (0, 171, 512, 512)]
    assert window_boxes((5, 9), (8, 4), (3, 3)) == [(0, 0, 5, 4), (0, 3, 5, 4), (0, 5, 5, 4)]


@pytest.mark.parametrize("at_once", [2**25, 50 * 70 * 2, 1])
def test_windows_over_one_another_give_the_best_of_their_blend(at_once, monkeypatch):
    """As those of a mirrored image lie over the others."""
    monkeypatch.setattr(module, "BLENDED_AT_ONCE", at_once)
    windows = make_windows((48, 75), (50, 70), 48, 31)
    torch.manual_seed(1)
    windows += [(torch.randn_like(raw), place) for raw, place in windows]
    logits, found = blend(windows), blended_argmax(windows)
    assert found.dtype == torch.int64 and (found == logits.argmax(0)).float().mean() > 0.999
    assert (logits.amax(0) - logits.gather(0, found[None])[0]).max() <= 1e-5
