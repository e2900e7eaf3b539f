"""Records compared on the same images: by hand, by brute force, and refused where they are of different tests."""

import json

import numpy as np
import pytest
import torch

from siglip2_dense import compare as comparing
from siglip2_dense import head_file
from siglip2_dense.cli import compare as verb
from siglip2_dense.cli import test as test_verb
from siglip2_dense.cli import train as train_verb
from siglip2_dense.compare import compare
from siglip2_dense.errors import UserError
from siglip2_dense.metrics import paired, rows
from siglip2_dense.metrics.depth import DepthMetric
from siglip2_dense.metrics.normals import NormalsMetric
from siglip2_dense.metrics.per_image import drawn_counts
from siglip2_dense.metrics.segmentation import SegmentationMetric

CLASSES = ("wall", "floor", "lamp")


@pytest.fixture(autouse=True)
def few_drawings(monkeypatch):
    monkeypatch.setattr(paired, "BLOCK", 200)


def images(count=12, seed=0):
    """(count, 5, 6) labels of three classes, some ignored."""
    return torch.randint(-1, 3, (count, 5, 6), generator=torch.Generator().manual_seed(seed))


def guesses(labels, right, seed):
    """Labels that are right so often, else by chance."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(labels.shape, generator=generator) < right
    return torch.where(keep & (labels >= 0), labels, torch.randint(0, 3, labels.shape, generator=generator))


def segmented(right, seed, order=None, count=12):
    metric, labels = SegmentationMetric(3), images(count)
    predictions = guesses(labels, right, seed)
    for index in order or range(count):
        metric.update(predictions[index], labels[index], index)
    return {"segmentation": metric}


def measured(errors):
    """Depths of one pixel with these errors."""
    metric = DepthMetric(0.1, 10.0)
    for index, error in enumerate(errors):
        y = torch.tensor([[2.0 + index / 10]], dtype=torch.float64)
        metric.update(y + error, y, index)
    return {"depth": metric}


def write(path, metrics, encoder="siglip2-base-16-256", classes=None, **changes):
    """A record with its rows; changes: settings by their places, as in ``protocol__lr=1``."""
    scores = {name: metric.compute() for name, metric in metrics.items()}
    if len(scores) == 1:
        flat = next(iter(scores.values()))
    else:
        flat = {f"{name}.{key}": value for name, found in scores.items() for key, value in found.items()}
    record = {
        "metrics": flat,
        "encoder": {"name": encoder, "fingerprint": encoder, "taps": [11], "pooled": "none", "precision": "fp32"},
        "protocol": {"heads": {"a": {"optim": {"lr": 1e-3}}}, "canvas": [512, 512]},
        "data": {"name": "ade20k", "split": "val", "images": next(iter(metrics.values())).images, "fingerprint": "f"},
        "run": {"seed": 0},
    }
    for key, value in changes.items():
        *place, last = key.split("__")
        node = record
        for part in place:
            node = node[part]
        node[last] = value
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record))
    rows.write(rows.place(path), metrics, dict.fromkeys(metrics, CLASSES if classes is None else classes))
    return path


@pytest.fixture
def pair(tmp_path):
    return (
        write(tmp_path / "a" / "results.json", segmented(0.4, seed=1)),
        write(tmp_path / "b" / "results.json", segmented(0.7, seed=2), "dinov2-base-14"),
    )


def test_a_paired_interval_is_that_of_brute_force(pair, monkeypatch):
    """Every drawn data set is put together image by image and scored anew."""
    monkeypatch.setattr(comparing, "BLOCKS", 1)
    found = compare(pair)["metrics"]["mIoU"]
    labels = images()
    sides = guesses(labels, 0.4, 1), guesses(labels, 0.7, 2)

    def miou(prediction, truth):
        truth, prediction = truth.flatten(), prediction.flatten()[truth.flatten() >= 0]
        truth = truth[truth >= 0]
        ious = [((p := prediction == k) & (t := truth == k)).sum() / (p | t).sum() for k in range(3)]
        return 100 * float(torch.stack(ious).double().mean())

    differences = []
    for count in drawn_counts(12, 200, [paired.SEED, 0]).astype(int):
        picked = [image for image, times in enumerate(count) for _ in range(times)]
        a, b = (miou(side[picked], labels[picked]) for side in sides)
        differences.append(b - a)
    (other,) = found["others"]
    assert found["first"] == pytest.approx(miou(sides[0], labels), rel=1e-6)
    assert other["difference"] == pytest.approx(miou(sides[1], labels) - miou(sides[0], labels), rel=1e-5)
    assert other["interval"] == pytest.approx(np.percentile(differences, [2.5, 97.5]).tolist(), rel=1e-5)
    assert len(set(differences)) > 100 and other["excludes_0"]


def test_a_known_shift_lies_in_its_interval_and_pairing_makes_that_narrow(tmp_path):
    errors, noise = np.random.default_rng(0).gamma(2.0, 0.2, (2, 40))
    a = write(tmp_path / "a.json", measured(errors), classes=())
    b = write(tmp_path / "b.json", measured(errors + 0.1 + (noise - noise.mean()) / 10), "other", classes=())
    found = compare([a, b], ["rmse"])
    assert list(found["metrics"]) == ["rmse"]
    (other,) = found["metrics"]["rmse"]["others"]
    low, high = other["interval"]
    assert other["difference"] == pytest.approx(0.1) and low < 0.1 < high and other["excludes_0"]
    alone = measured(errors)["depth"].intervals()["rmse"]
    assert high - low < 0.2 * (alone[1] - alone[0])


def test_equal_tests_differ_by_exactly_nothing_whatever_the_order_of_images(tmp_path, capsys):
    a = write(tmp_path / "a" / "results.json", segmented(0.5, seed=1))
    b = write(tmp_path / "b" / "results.json", segmented(0.5, seed=1, order=list(reversed(range(12)))))
    verb.main([str(a.parent), str(b), "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["differ"] == [{}] and list(found["metrics"]) == ["mIoU", "mIoU_labelled", "mAcc", "aAcc"]
    for scores in found["metrics"].values():
        assert scores["others"] == [
            {"value": scores["first"], "difference": 0, "interval": [0, 0], "excludes_0": False}
        ]
    shown = capsys.readouterr().out
    assert "B differs from A in nothing that was set" in shown and "same 12 images of ade20k, val" in shown


def test_small_errors_of_depth_that_are_equal_differ_by_exactly_nothing(tmp_path):
    errors = np.random.default_rng(0).gamma(2.0, 0.2, 37)
    paths = [write(tmp_path / name, measured(errors), classes=()) for name in ("a.json", "b.json")]
    found = compare(paths)["metrics"]
    assert all(scores["others"][0]["interval"] == [0, 0] for scores in found.values()) and "rmse_pooled" in found


def test_several_records_stand_against_the_first(pair, tmp_path, capsys):
    third = write(tmp_path / "c" / "results_val.json", segmented(0.7, seed=3), "clip-base-16-224")
    verb.main([*map(str, pair), str(third), "--metric", "mIoU"])
    lines = capsys.readouterr().out.splitlines()
    assert "    encoder.name: siglip2-base-16-256 | clip-base-16-224" in lines
    rows_of_table = [line.split() for line in lines if line.startswith("mIoU")]
    assert [row[1] for row in rows_of_table] == ["B", "C"] and rows_of_table[0][2] == rows_of_table[1][2]
    assert float(rows_of_table[1][4]) == pytest.approx(
        float(rows_of_table[1][3]) - float(rows_of_table[1][2]), abs=0.02
    )


def test_heads_are_paired_by_name_or_as_the_only_ones(tmp_path):
    both = {**segmented(0.4, 1), **measured(np.linspace(0.1, 0.3, 12))}
    more = {**measured(np.linspace(0.2, 0.3, 12)), **segmented(0.6, 2)}
    found = compare([write(tmp_path / "a.json", both), write(tmp_path / "b.json", more)], ["mIoU", "depth.rmse"])
    assert set(found["metrics"]) == {"segmentation.mIoU", "depth.rmse"}
    assert found["metrics"]["depth.rmse"]["others"][0]["difference"] == pytest.approx(0.05)
    named = write(tmp_path / "c.json", {"lr_1e-2": segmented(0.4, 1)["segmentation"]})
    alone = write(tmp_path / "d.json", segmented(0.4, 1))
    assert compare([alone, named])["metrics"]["mIoU"]["others"][0]["difference"] == 0
    with pytest.raises(UserError, match=r"no head in common: segmentation, depth; lr_1e-2"):
        compare([tmp_path / "a.json", named])


def test_a_score_may_have_a_point_in_its_name(tmp_path):
    metric = NormalsMetric()
    metric.update(torch.ones(3, 2, 2), torch.eye(3)[2].view(3, 1, 1).expand(3, 2, 2), 0)
    heads = {"normals": metric, "again": metric}
    found = compare([write(tmp_path / name, heads, classes=()) for name in ("a.json", "b.json")], ["recall_11.25"])
    assert set(found["metrics"]) == {"normals.recall_11.25", "again.recall_11.25"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data__fingerprint": "g"}, r"data.fingerprint was 'f' in the first and is 'g' now; test both on the same"),
        ({"data__split": "test"}, r"data.split was 'val'"),
        ({"data__images": 11}, r"data.images was 12"),
        ({"protocol__canvas": None}, r"protocol.canvas was \[512, 512\] in the first and is None now; .*--settings"),
    ],
)
def test_records_of_other_tests_are_refused(pair, tmp_path, change, sentence):
    other = write(tmp_path / "c.json", segmented(0.4, 1), **change)
    with pytest.raises(UserError, match=sentence):
        compare([pair[0], other])


def chosen(grid, lr, images=37, **head):
    """Changes of a record: a sweep chose these settings."""
    return {
        "protocol__selection": {"split": "train, held out", "images": images, "holdout": 0.1, "grid": {"a": grid}},
        "protocol__heads": {"a": {"head": {"type": "LinearHead", **head}, "optim": {"type": "AdamW", "lr": lr}}},
        "protocol__peak_learning_rate": {"a": lr},
    }


def test_encoders_each_at_their_own_best_of_one_grid(tmp_path):
    grid = {"lr": [1e-3, 1e-2], "layers": ["last", "last4"]}
    first = write(tmp_path / "a.json", segmented(0.4, 1), **chosen(grid, 1e-3, layers="last"))

    def against(changes):
        return compare([first, write(tmp_path / "b.json", segmented(0.7, 2), "dinov2-base-14", **changes)])

    (differ,) = against(chosen(grid, 1e-2, layers="last4"))["differ"]
    assert {key: differ[key] for key in differ if key.startswith("protocol")} == {
        "protocol.heads.a.head.layers": ("last", "last4"),
        "protocol.heads.a.optim.lr": (1e-3, 1e-2),
        "protocol.peak_learning_rate.a": (1e-3, 1e-2),
    }
    for changes, sentence in {
        "another grid": (
            chosen({**grid, "lr": [1e-2]}, 1e-2, layers="last4"),
            r"selection.grid.a.lr was \[0.001, 0.01",
        ),
        "other images": (chosen(grid, 1e-2, 36, layers="last4"), r"selection.images was 37 in the first and is 36"),
        "not swept": (chosen(grid, 1e-2, layers="last4", norm=False), r"heads.a.head.norm is set only now"),
        "no sweep": ({}, r"protocol.selection is set only in the first; bring both"),
    }.values():
        with pytest.raises(UserError, match=sentence):
            against(changes)
    heads = {"head": [{"type": "LinearHead"}, {"type": "DPTHead"}]}
    first = write(tmp_path / "a.json", segmented(0.4, 1), **chosen(heads, 1e-3))
    (differ,) = against(chosen(heads, 1e-3, channels=64))["differ"]
    assert differ["protocol.heads.a.head.channels"] == (None, 64)
    with pytest.raises(UserError, match=r"heads.a.optim.lr was 0.001"):
        against(chosen(heads, 1e-2))


def test_settings_are_compared_on_one_encoder_and_named(pair, tmp_path):
    setting = {"protocol__heads": {"a": {"optim": {"lr": 1e-2}}}, "encoder__taps": [2, 11], "run__seed": 1}
    other = write(tmp_path / "c.json", segmented(0.6, 2), **setting)
    (differ,) = compare([pair[0], other], settings=True)["differ"]
    assert differ == {"encoder.taps": ([11], [2, 11]), "protocol.heads.a.optim.lr": (1e-3, 1e-2), "seed": (0, 1)}
    with pytest.raises(UserError, match=r"encoder.fingerprint was .*compared on one encoder"):
        compare([pair[0], write(tmp_path / "d.json", segmented(0.6, 2), "dinov2-base-14", **setting)], settings=True)


def test_knobs_of_any_two_records_are_listed_by_flat_names(tmp_path, capsys):
    """Also of other data and protocols, where no scores are set side by side, and of records without rows."""
    resize, crop = {"type": "Resize", "size": [224, 308]}, {"type": "RandomCrop", "size": [224, 224]}
    a = write(tmp_path / "a.json", segmented(0.4, 1), protocol__train_transforms=[resize, crop])
    changes = dict(
        protocol__canvas=[224, 224], protocol__heads={"a": {"optim": {"lr": 1e-2}}}, data__split="test",
        encoder__taps=[2, 11], protocol__train_transforms=[resize, {**crop, "size": [112, 112]}],
    )  # fmt: skip
    b = write(tmp_path / "b.json", segmented(0.6, 2), protocol__views=4, **changes)
    rows.place(b).unlink()
    c = write(tmp_path / "c.json", segmented(0.6, 2), protocol__train_transforms=[resize])
    with pytest.raises(UserError, match=r"data.split was 'val' .*or see all knobs with --knobs"):
        compare([a, write(tmp_path / "d.json", segmented(0.6, 2), **changes)])
    verb.main([str(a), str(b), str(c), "--knobs", "--json", str(tmp_path / "found.json")])
    first, second = json.loads((tmp_path / "found.json").read_text())["differ"]
    assert first == {
        "data.split": ["val", "test"],
        "encoder.taps": [[11], [2, 11]],
        "protocol.canvas": [[512, 512], [224, 224]],
        "protocol.heads.a.optim.lr": [1e-3, 1e-2],
        "protocol.train_transforms.1.size": [[224, 224], [112, 112]],
        "protocol.views": [None, 4],
    }
    assert second == {"protocol.train_transforms": [[resize, crop], [resize]]}
    shown = capsys.readouterr().out
    assert "    protocol.train_transforms.1.size: [224, 224] | [112, 112]\n" in shown and "mIoU" not in shown
    assert comparing.differing_knobs(*(json.loads(path.read_text()) for path in (a, a))) == {}
    with pytest.raises(UserError, match="1 records to compare"):
        comparing.compare_knobs([a])


def test_heads_scored_in_two_ways_or_on_other_images_are_refused(tmp_path):
    a = write(tmp_path / "a.json", segmented(0.4, 1))
    with pytest.raises(UserError, match=r"heads.segmentation.classes.2 was 'lamp' in the first and is 'door' now"):
        compare([a, write(tmp_path / "b.json", segmented(0.4, 1), classes=("wall", "floor", "door"))])
    short, long = (measured([0.1, 0.2]) for _ in range(2))
    short["depth"].arguments = {**short["depth"].arguments, "max_depth": 5.0}
    with pytest.raises(UserError, match=r"heads.depth.max_depth was 5.0 in the first and is 10.0 now; score both"):
        compare([write(tmp_path / "s.json", short, classes=()), write(tmp_path / "l.json", long, classes=())])
    eleven = write(tmp_path / "c.json", segmented(0.4, 1, order=range(11)), data__images=12)
    with pytest.raises(UserError, match="only one of them has rows of image 11"):
        compare([a, eleven])


def test_a_record_without_its_own_rows_is_refused(pair, tmp_path):
    with pytest.raises(UserError, match="2 to 26"):
        compare(pair[:1])
    stale = json.loads(pair[1].read_text())
    stale["metrics"]["mIoU"] += 0.1
    pair[1].write_text(json.dumps(stale))
    with pytest.raises(UserError, match=r"per_image.safetensors gives mIoU .* are of two tests; run siglip2-dense"):
        compare(pair)
    rows.place(pair[1]).unlink()
    with pytest.raises(
        UserError, match=r"has no rows of its images, looked for .*per_image.safetensors; run siglip2-dense"
    ):
        compare(pair)
    with pytest.raises(UserError, match="is not there"):
        compare([pair[0], tmp_path / "nothing.json"])
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="no record"):
        compare([pair[0], tmp_path / "list.json"])
    (tmp_path / "cut.json").write_text('{"metrics": ')
    with pytest.raises(UserError, match="cannot be read as a record"):
        compare([pair[0], tmp_path / "cut.json"])


def test_an_unknown_metric_has_a_hint(pair):
    with pytest.raises(UserError, match=r"--metric miou: did you mean 'mIoU'"):
        compare(pair, ["miou"])


def test_a_head_of_another_seed_is_told_in_files_records_and_comparisons(tiny, tmp_path, capsys):
    parts = "model['heads']['segmentation'].update({})\ntrain_cfg['max_iters'] = 2\npictures = 0"
    for name, seed in (("a", ""), ("b", "seed=7")):
        train_verb.main([str(tiny(parts.format(seed), f"{name}.py")), "--work-dir", str(tmp_path / name)])
    files = [head_file.read(tmp_path / name / "head.safetensors") for name in "ab"]
    assert [content.heads["segmentation"]["seed"] for content in files] == [0, 7]
    verb.main([str(tmp_path / "a"), str(tmp_path / "b")])  # two runs under one protocol
    told = capsys.readouterr().out
    assert "B differs from A in:\n    head_seeds.segmentation: 0 | 7\n" in told
    # the head's, not the test's
    again = tmp_path / "again.json"
    head = str(tmp_path / "b" / "head.safetensors")
    test_verb.main([str(tiny()), head, "--out", str(again), "--work-dir", str(tmp_path / "t")])
    assert json.loads(again.read_text())["run"]["head_seeds"] == {"segmentation": 7}
    with pytest.raises(UserError, match=r"head_seeds.segmentation was 7 in the saved run and is 0 now"):
        train_verb.main([str(tmp_path / "a.py"), "--work-dir", str(tmp_path / "b"), "--resume"])


def test_sweeps_of_two_encoders_are_compared_by_what_each_has_chosen(tiny, tmp_path, monkeypatch):
    lines = "train_cfg['max_iters'] = 2\npictures = 0\nsweep = dict(lr=[1e-3, 1e-2], layers=['last', [1]], holdout=0.4)"
    for number, name in enumerate(("test_vit", "test_vit3")):
        monkeypatch.setattr("siglip2_dense.engine.sweep.choose", lambda heads, *_, number=number: [heads[-number]])
        arguments = ["--encoder", name, "--weights", "random", "--work-dir", str(tmp_path / name)]
        train_verb.main([str(tiny(lines)), *arguments])
    (differ,) = compare([tmp_path / "test_vit", tmp_path / "test_vit3"])["differ"]
    assert {key: value for key, value in differ.items() if key.startswith("protocol")} == {
        "protocol.heads.segmentation.head.layers": ("last", [1]),
        "protocol.heads.segmentation.optim.lr": (1e-3, 1e-2),
        "protocol.peak_learning_rate.segmentation": (1e-3, 1e-2),
    }


def test_runs_and_tests_leave_the_rows_that_they_are_compared_by(tiny, tmp_path, capsys):
    config, runs = str(tiny()), [tmp_path / "a", tmp_path / "b"]
    for run, name in zip(runs, ("test_vit", "test_vit3"), strict=True):
        options = ["--encoder", name, "--weights", "random", "--cfg-options", "train_cfg.max_iters=2", "pictures=0"]
        train_verb.main([config, "--work-dir", str(run), *options])
    again = tmp_path / "again.json"
    head = str(runs[0] / "head.safetensors")
    test_verb.main([config, head, "--out", str(again), "--work-dir", str(tmp_path / "t")])
    first, same, other = (str(path) for path in (runs[0], again, runs[1]))
    verb.main([first, same, other])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("mIoU ")]
    assert [line[1] for line in lines] == ["B", "C"] and float(lines[0][4]) == 0 != float(lines[1][4])
