"""The benchmark of knobs: one at a time, from one base; and its figures are differences of scores."""

from importlib import import_module

import pytest
import torch

from siglip2_dense.benchmark import knobs, recipes
from siglip2_dense.benchmark.camvid import fewer
from siglip2_dense.benchmark.knob_settings import (
    BASE,
    LITE0,
    NORM,
    VIT,
    Encoder,
    depth_heads,
    merged,
    normals_heads,
    resized,
    segmentation_heads,
    segmentation_runs,
    segmentation_tests,
)
from siglip2_dense.benchmark.pages import PAGES
from siglip2_dense.cli.benchmark import NAMES
from siglip2_dense.compare import differing
from siglip2_dense.engine.configs import known_configs
from siglip2_dense.metrics.depth import DepthMetric
from siglip2_dense.metrics.segmentation import SegmentationMetric

TINY = Encoder("tiny", "test_vit", "none", stride=16)


@pytest.mark.parametrize("encoder", [VIT, LITE0], ids=lambda one: one.timm)
@pytest.mark.parametrize("of", [segmentation_heads, depth_heads, lambda _: normals_heads()])
def test_each_head_differs_from_the_base_in_one_setting(of, encoder):
    heads = of(encoder)
    base = heads[BASE]
    for title, parts in heads.items():
        changed = set(differing(base, parts)) - {"head.stride"}  # at which several layers are joined
        if title == "a DPT head":
            assert {place.partition(".")[0] for place in changed} == {"head"}
        else:
            assert len(changed) == (title != BASE), title
    assert len({repr(parts) for parts in heads.values()}) == len(heads)
    assert (NORM in heads) == (encoder.normed and of in (segmentation_heads, depth_heads))


def test_each_run_changes_one_thing():
    size = (224, 308)
    base = merged(resized(size), dict(seed=0))
    for title, changed in segmentation_runs(size, (336, 462), 460, ["a", "b"]).items():
        assert differing(base, merged(base, changed)), title
    places = {title: set(changed) for title, changed in segmentation_tests(size).items()}
    assert list(places.values()) == [{"model"}, {"model"}, {"val_dataloader"}]
    assert merged({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}}
    assert segmentation_runs(size, size, 10, ["a"])["void learnt and scored as a class"]["val_dataloader"] == dict(
        dataset=dict(classes=["a", "void"], ignore=255)
    )


def scored(metric, predictions, targets):
    for index, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        metric.update(prediction, target, index)
    return metric


def test_figures_are_differences_in_their_units():
    labels = torch.randint(0, 3, (8, 6, 7), generator=torch.Generator().manual_seed(0))
    wrong = labels.clone()
    wrong[:, 0] = (wrong[:, 0] + 1) % 3
    base, other = (scored(SegmentationMetric(3), one, labels) for one in (labels, wrong))
    (found,) = knobs._differences("here", "mIoU", base, {"worse": other})
    expected = other.compute()["mIoU"] - 100
    assert found["name"] == "here: worse" and found["value"] == pytest.approx(expected) and found["better"] == "higher"
    low, high = map(float, found["detail"].partition("[")[2].rstrip("]").split(","))
    assert low <= expected <= high < 0 and found["detail"].startswith(f"100.00 -> {100 + expected:.2f}, 95 %")
    depth = torch.full((5, 4, 4), 2.0)
    near, far = (scored(DepthMetric(0.1, 5.0), depth + shift, depth) for shift in (0.1, 0.3))
    (found,) = knobs._differences("there", "rmse", near, {"farther": far}, 1e3)
    assert found["value"] == pytest.approx(200, abs=1e-2) and found["better"] == "lower"  # millimetres
    assert knobs._score("there", "rmse", near, 1e3)["value"] == pytest.approx(100, abs=1e-2)
    found = knobs._rescored("there", "rmse", far, "fitted", far.compute()["rmse_aligned"], 1e3)
    assert found["detail"].startswith("300.00 -> ")


def test_heads_train_together_and_are_tested_otherwise(real, tmp_path, monkeypatch, one_thread):
    """By the verbs, here in this process, and on features that are stored once."""
    monkeypatch.setattr(knobs, "verb", lambda name, *argv: import_module(f"siglip2_dense.cli.{name}").main(list(argv)))
    data = fewer(real("camvid").parent, tmp_path / "data")
    for split in ("train", "val"):
        for label in sorted(data.glob(f"camvid/labels/{split}/*"))[6:]:
            label.unlink()
            (data / "camvid/images" / split / f"{label.stem}.jpg").unlink()
    root = dict(dataset=dict(root=str(data / "camvid")))
    common = merged(dict(train_dataloader=root, val_dataloader=root), resized((48, 64)))
    common |= dict(train_cfg=dict(max_iters=2, val_interval=2), param_scheduler=[])
    bench = knobs.bench_of(tmp_path / "bench", TINY, data, "camvid", common)
    bench.common["model"]["encoder"]["weights"] = "random"
    heads = segmentation_heads(TINY)
    base = bench.train("base", {BASE: heads[BASE]})[BASE]
    found = bench.train("heads", {title: parts for title, parts in heads.items() if title != BASE})
    assert list(found) == [title for title in heads if title != BASE]
    assert {metric.images for metric in (base, *found.values())} == {base.images} and base.images > 2
    scores = {title: metric.compute()["mIoU"] for title, metric in found.items()}
    assert len(set(scores.values())) > 5
    stores = len(list((tmp_path / "bench" / "features").iterdir()))
    tests = segmentation_tests((48, 64))
    flipped = bench.test("flip", "base", heads[BASE], tests["averaged with the mirrored image at test"])
    small = bench.test("small", "base", heads[BASE], tests["scored at the size of the input"])
    assert flipped.images == small.images == base.images
    pixels = [int(metric.stacked()[:, 2].sum()) for metric in (base, flipped, small)]
    assert pixels[0] == pixels[1] > 30 * pixels[2] > 0
    assert len(list((tmp_path / "bench" / "features").iterdir())) == stores + 2


def test_every_benchmark_has_its_place_on_a_page():
    named = [name for _, _, names in PAGES.values() for name in names]
    assert sorted(named) == sorted(NAMES) and all(
        import_module(f"siglip2_dense.benchmark.{name}").run for name in NAMES
    )


def test_recipes_stand_side_by_side_as_their_configs_say():
    heading, rule, *lines = recipes.table()
    found = {line.split(" | ")[0].strip("| `"): line for line in lines}
    assert list(found) == [name for name in known_configs() if name.startswith("protocols/")]
    assert {line.count(" | ") for line in (heading, *lines)} == {7} and rule.count("---") == 8
    line = found["protocols/dinov3_linear_ade20k"]
    for words in (
        "ADE20K train, scored on ADE20K val", "RandomCrop (size 512 x 512, cat_max_ratio 0.75)",
        "slide (crop 512, stride 341)", "LinearHead (layers last, norm True, dropout 0.1)",
        "40,000 of 16; LinearLR 0 to 1,500, CosineAnnealingLR 0 to",
    ):  # fmt: skip
        assert words in line
    assert "whole; Resize (size 448 x 448, targets False)" in found["protocols/tips_dpt_nyuv2_normals"]
