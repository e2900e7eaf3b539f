"""Mixtures: shares, mosaics, queries, and what is left out."""

import collections
import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from boxes_made import lvis_content, write_coco, write_image, write_json

from siglip2_dense.data.boxes.mixture import DetectionMixture
from siglip2_dense.data.boxes.names import templates
from siglip2_dense.data.loading import stop_workers, train_loader
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import canonical
from siglip2_dense.records import describe_data
from siglip2_dense.registry import DATASETS, build

THINGS = {number: f"thing_{number}" for number in range(1, 81)}


def coco(root, images=6, categories=None, boxes=None, **options):
    """A set in which image i has i boxes of the first categories, far from one another."""
    if boxes is None:
        boxes = [(i, j + 1, [6 * j, 0, 5, 15]) for i in range(1, images + 1) for j in range(min(i, 5))]
    write_coco(root, boxes, images=images, categories=categories or THINGS, **options)
    return dict(type="CocoDetection", split="train", root=root)


def mixture(*sets, **options):
    options = {"size": 48, "mosaics": (1,), **options}
    return build(DATASETS, dict(type="DetectionMixture", sets=list(sets), **options), seed=options.pop("seed", 0))


def same(a, b):
    return (
        torch.equal(a.image, b.image)
        and torch.equal(a.boxes, b.boxes)
        and (a.box_names, a.queries, a.index, a.path) == (b.box_names, b.queries, b.index, b.path)
    )


def test_everything_is_a_function_of_seed_epoch_and_index(tmp_path):
    options = dict(transforms=[dict(type="RandomFlip"), dict(type="RandomBoxCrop")], mosaics=(0.4, 0.3, 0.3))
    sets = [dict(dataset=coco(tmp_path / "a")), dict(dataset=coco(tmp_path / "b", images=3), weight=2)]
    data = mixture(*sets, **options)
    views = {(epoch, i): data[epoch, i] for epoch in range(3) for i in range(len(data))}
    again = pickle.loads(pickle.dumps(data))  # as in a worker that was spawned
    for item in reversed(views):
        assert same(views[item], again[item])
    assert same(data[4], data[0, 4]) and same(data[-1], data[len(data) - 1])
    assert sum(same(views[0, i], views[1, i]) for i in range(len(data))) == 0
    other = mixture(*sets, seed=1, **options)
    assert sum(same(views[0, i], other[0, i]) for i in range(len(data))) == 0
    sample = views[0, 0]
    assert sample.image.is_contiguous() and sample.image.shape == (3, 48, 48) and sample.original_size == (48, 48)
    with pytest.raises(IndexError):
        data[len(data)]


def test_shares_are_the_weights_and_each_image_is_as_often_the_first(tmp_path):
    sets = [
        dict(dataset=coco(tmp_path / "a", images=20, boxes=[]), weight=0.8),
        dict(dataset=coco(tmp_path / "b", images=5, boxes=[]), weight=0.2),
    ]
    data = mixture(*sets)
    assert len(data) == 25
    counts = collections.Counter(data[epoch, i].path for epoch in range(4) for i in range(25))
    assert sorted(counts.values()) == [4] * 25
    data = mixture(sets[0] | {"weight": 1}, sets[1] | {"weight": 1})
    paths = [data[epoch, i].path for epoch in range(4) for i in range(25)]
    of_a = collections.Counter(path for path in paths if "/a/" in path)
    of_b = collections.Counter(path for path in paths if "/b/" in path)
    assert abs(sum(of_a.values()) - 50) <= 4 and max(of_a.values()) - min(of_a.values()) <= 1
    assert len(of_b) == 5 and max(of_b.values()) - min(of_b.values()) <= 1


def test_mosaics_are_of_one_set_and_as_often_as_they_are_to_be(tmp_path):
    box = [[0, 0, 30, 20]]
    sets = []
    for name, number in (("a", 1), ("b", 2)):
        boxes = [(i, number, *box) for i in range(1, 9)]
        sets.append(dict(dataset=coco(tmp_path / name, images=8, boxes=boxes), prompts=False))
    data = mixture(*sets, mosaics=(0.4, 0.3, 0.3))
    counts = collections.Counter()
    for epoch in range(25):
        for i in range(16):
            sample = data[epoch, i]
            counts[len(sample.boxes)] += 1
            assert len(set(sample.box_names)) == 1  # of one set
            k = int(len(sample.boxes) ** 0.5)
            assert torch.allclose(sample.boxes[:, 2] - sample.boxes[:, 0], torch.tensor(48.0 / k))
    assert set(counts) == {1, 4, 9}
    assert np.allclose([counts[n] / 400 for n in (1, 4, 9)], [0.4, 0.3, 0.3], atol=0.08)


def test_queries_are_the_names_of_the_boxes_and_fifty_of_what_is_not_there(tmp_path):
    config = coco(tmp_path / "a", images=6, boxes=[(i, j, [0, 0, 9, 9]) for i in range(1, 7) for j in range(i, 81, 6)])
    data = mixture(dict(dataset=config, prompts=False), merge=1.1, max_queries=99)
    for epoch in range(3):
        for i in range(6):
            sample = data[epoch, i]
            positives = [name for (name,) in sample.box_names]
            assert sample.queries[: len(positives)] == tuple(positives)
            assert len(set(sample.queries)) == len(sample.queries) == len(positives) + 50
            assert set(sample.queries) <= {f"thing {number}" for number in THINGS}
    few = mixture(dict(dataset=config, prompts=False), merge=1.1, negatives=3, max_queries=15)
    assert {len(few[i].queries) for i in range(6)} == {15}
    fewer = mixture(dict(dataset=config, prompts=False), merge=1.1, max_queries=5)
    for epoch in range(4):
        sample = fewer[epoch, 0]
        assert len(sample.queries) == 5 and {name for (name,) in sample.box_names} == set(sample.queries)
        assert len(sample.boxes) == 5
    assert fewer[0, 0].queries != fewer[4, 0].queries  # which are left out is drawn


def test_what_may_be_in_an_image_is_no_negative_of_it(tmp_path):
    """Neither what lies around a crowd or was cropped away, nor what another tile holds."""
    boxes = [(1, 1, [0, 0, 9, 9], {"iscrowd": 1}), (1, 2, [0, 0, 3, 3]), (2, 3, [0, 0, 9, 9])]
    boxes += [(3, number, [0, 0, 9, 9]) for number in range(1, 7)]
    names = {number: f"thing {number}" for number in range(1, 8)}
    config = coco(tmp_path / "a", images=3, boxes=boxes, categories=names)
    crop = dict(type="Crop", top=10, left=10, height=10, width=20)
    data = mixture(dict(dataset=config, prompts=False), transforms=[crop], mosaics=(0.5, 0.5))
    singles = collections.defaultdict(set)
    for epoch in range(40):
        for i in range(3):
            sample = data[epoch, i]
            assert len(sample.boxes) == 0  # all of them are cropped away
            if len(sample.queries) > 0:
                singles[sample.path[-5]].add(frozenset(sample.queries))
    everything = {f"thing {number}" for number in range(1, 7)}  # nothing is called thing 7
    assert frozenset(everything - {"thing 1", "thing 2"}) in singles["1"]
    assert frozenset(everything - {"thing 3"}) in singles["2"] and not singles["3"]
    assert not any("thing 1" in queries or "thing 2" in queries for queries in singles["1"])


def test_what_another_tile_may_hold_is_no_negative(tmp_path):
    """Of four tiles each is cropped: what is asked for is held by none of their images."""
    names = {number: f"thing {number}" for number in range(1, 9)}
    config = coco(tmp_path / "a", 8, names, boxes=[(i, i, [0, 0, 9, 9]) for i in range(1, 9)])
    data = mixture(
        dict(dataset=config, prompts=False), mosaics=(0, 1),
        transforms=[dict(type="Crop", top=10, left=10, height=10, width=20)],
    )  # fmt: skip
    places, named = [], data.parts[0].images.view
    data.parts[0].images.view = lambda place, rng: places.append(place) or named(place, rng)
    for i in range(8):
        places.clear()
        asked = set(data[i].queries)
        assert asked == set(names.values()) - {f"thing {place + 1}" for place in places} and len(places) == 4


def lvis(root, boxes, negative, incomplete=None, images=2, names=None):
    """LVIS's train with these categories, all frequent."""
    names = names or {number: f"thing {number}" for number in range(1, 9)}
    content = lvis_content(boxes, negative, incomplete or {}, images, frequencies="f" * len(names), categories=names)
    write_json(root / "annotations/lvis_v1_train.json", content)
    for i in range(1, images + 1):
        write_image(root / f"val2017/{i:012d}.jpg")
    return dict(type="LVIS", split="train", root=root)


def test_what_one_tile_lacks_and_another_holds_is_no_negative(tmp_path):
    config = lvis(tmp_path, [(1, 1, [0, 0, 9, 9]), (2, 2, [0, 0, 9, 9])], {1: [2, 3], 2: [1, 4]})
    crop = dict(type="Crop", top=10, left=10, height=10, width=20)  # where no box is
    data = mixture(dict(dataset=config, prompts=False), mosaics=(0, 1), negatives=0, transforms=[crop])
    asked = {frozenset(data[epoch, i].queries) for epoch in range(9) for i in range(2)}
    both = frozenset({"thing 3", "thing 4"})
    assert both in asked and asked <= {both, frozenset({"thing 2", "thing 3"}), frozenset({"thing 1", "thing 4"})}


def test_what_was_looked_for_is_not_drawn_once_more(tmp_path):
    config = lvis(tmp_path, [(1, 1, [0, 0, 9, 9]), (2, 8, [0, 0, 9, 9])], {1: [2, 3, 4, 5], 2: [2, 3, 4, 5, 6, 7]})
    data = mixture(dict(dataset=config, prompts=False), negatives=6)
    for epoch in range(9):
        for i in range(2):
            assert len(data[epoch, i].queries) == 7  # its own name and six others


def test_rare_names_are_not_asked_for_where_an_image_was_looked_through_for_them(tmp_path):
    names = {1: "thing 1", 2: "gizmo", 3: "other"}
    config = lvis(tmp_path / "a", [(1, 1, [0, 0, 9, 9]), (2, 1, [0, 0, 9, 9])], {1: [2, 3], 2: [2]}, names=names)
    categories = [{"name": "gizmo", "frequency": "r", "synonyms": ["gizmo"]}]
    rare = write_json(tmp_path / "lvis.json", {"categories": categories})
    data = mixture(dict(dataset=config, prompts=False), rare=rare)
    assert {data[i].queries for i in range(2)} == {("thing 1", "other")}


def test_negatives_come_from_the_sets_by_their_weights(tmp_path):
    sets = [
        dict(dataset=coco(tmp_path / name, 4, {1: f"of {name}", 2: "here"}, boxes=boxes), prompts=False, weight=weight)
        for name, weight, boxes in (
            ("a", 9, [(i, 1, [0, 0, 9, 9]) for i in range(1, 4)]),
            ("b", 1, [(i, 1, [0, 0, 9, 9]) for i in range(1, 4)]),
        )
    ]
    data = mixture(*sets, negatives=1)
    drawn = collections.Counter()
    for epoch in range(200):
        for i in range(8):
            sample = data[epoch, i]
            drawn.update(sample.queries if len(sample.boxes) == 0 else ())
    assert drawn["of a"] / drawn.total() == pytest.approx(0.9, abs=0.06) and drawn.total() > 300


def test_lvis_asks_for_what_was_looked_for_and_not_for_what_is_incomplete(tmp_path):
    boxes = [(i, 1, [0, 0, 9, 9]) for i in range(1, 41)] + [(1, 3, [2, 2, 5, 5]), (1, 4, [4, 4, 5, 5])]
    names = {number: f"thing {number}" for number in range(1, 9)}
    content = lvis_content(boxes, {1: [2, 5]}, {1: [4, 6]}, 40, frequencies="ffffffff", categories=names)
    write_json(tmp_path / "annotations/lvis_v1_train.json", content)
    for i in range(1, 41):
        write_image(tmp_path / f"val2017/{i:012d}.jpg")
    config = dict(type="LVIS", split="train", root=tmp_path)
    data = mixture(dict(dataset=config, prompts=False), negatives=1)
    for epoch in range(5):
        sample = next(sample for i in range(40) if (sample := data[epoch, i]).path.endswith("000001.jpg"))
        assert sample.queries[:2] == ("thing 1", "thing 3") and set(sample.queries[2:]) == {"thing 2", "thing 5"}
    data = mixture(dict(dataset=config, prompts=False))
    asked = {name for i in range(40) for name in data[i].queries}
    assert asked == {"thing 1", "thing 2", "thing 3", "thing 5"}  # 4 is boxed nowhere completely, the others nowhere


def test_prompts_are_drawn_for_each_name_of_sets_that_have_them(tmp_path):
    sentences = {canonical(t.replace("{}", "thing 1")) for t in templates()}
    names = {1: "a photo", 2: "a dog", 3: "x", 4: "y", 5: "z"}
    config, bare = coco(tmp_path / "a"), coco(tmp_path / "b", categories=names)
    data = mixture(dict(dataset=config), dict(dataset=bare, prompts=False))
    seen, negatives = set(), set()
    for epoch in range(40):
        for i in range(12):
            sample = data[epoch, i]
            positives = {name for names in sample.box_names for name in names}
            assert positives <= set(sample.queries)
            if "/b/" in sample.path:
                assert positives <= set(names.values())
                negatives |= set(sample.queries) - positives
            else:
                seen |= {name for name in positives if name.split()[-1] == "1" or "thing 1 " in name}
                assert {"x", "y", "z"} <= set(sample.queries)  # what a set never puts into sentences stays bare
    assert seen <= sentences and len(seen) > 40
    assert any("photo of" in name for name in negatives)


def test_rare_names_and_their_spellings_are_not_trained_on(tmp_path, capsys):
    categories = [
        {"name": "thing_2", "frequency": "r", "synonyms": ["thing_2", "gizmo"]},
        {"name": "thing_1", "frequency": "f", "synonyms": ["thing_1"]},
    ]
    rare = write_json(tmp_path / "lvis.json", {"categories": categories})
    names = {1: "thing-1", 2: "Thing 2s", 3: "Gizmos", 4: "other"}
    boxes = [(i, number, [7 * number - 7, 0, 6, 6]) for i in (1, 2) for number in range(1, 5)]
    config = coco(tmp_path / "a", images=2, boxes=boxes, categories=names)
    data = mixture(dict(dataset=config, prompts=False), rare=rare)
    for i in (0, 1):
        sample = data[i]
        assert sample.box_names == (("thing-1",), ("other",)) and sample.queries == ("thing-1", "other")
        assert sample.boxes[:, 0].tolist() == pytest.approx([0, 21 * 48 / 30])
    note = "coco train: 2 names are rare in LVIS, with 4 of 8 boxes, and are left out: thing 2s, gizmos"
    assert data.notes == [note] and note in capsys.readouterr().out
    assert describe_data(data)["left_out"] == [note] and describe_data(data)["images"] == 2
    assert mixture(dict(dataset=config)).notes == [] and "left_out" not in describe_data(mixture(dict(dataset=config)))


def test_records_say_how_samples_are_made(tmp_path):
    """And so a run is not resumed with other negatives."""
    config = dict(dataset=coco(tmp_path / "a"))
    plain = describe_data(mixture(config))
    assert plain["mixing"]["sets"] == [{"set": "coco", "weight": 1.0, "prompts": True}]
    assert plain == json.loads(json.dumps(plain))
    for change in (dict(size=96), dict(mosaics=(1, 1)), dict(merge=0.8), dict(negatives=3), dict(max_queries=7)):
        assert describe_data(mixture(config, **change))["mixing"] != plain["mixing"]
    assert describe_data(mixture(config | {"prompts": False}))["mixing"] != plain["mixing"]


def test_names_that_nothing_is_left_of_are_named(tmp_path):
    names = {1: "thing 1", 2: "猫", 3: "!"}
    config = coco(tmp_path / "a", images=2, boxes=[(i, 2, [0, 0, 9, 9]) for i in (1, 2)], categories=names)
    data = mixture(dict(dataset=config))
    note = "coco train: 2 names have no letter from a to z, with 2 of 2 boxes, and are left out: 猫, !"
    assert data.notes == [note] and len(data[0].boxes) == 0


def test_images_to_evaluate_on_are_not_trained_on(tmp_path, capsys):
    config = coco(tmp_path / "a", images=6)
    evaluated = coco(tmp_path / "b", images=2)  # the numbers 1 and 2
    data = mixture(dict(dataset=config), exclude=[evaluated], mosaics=(0, 1))
    assert len(data) == 4 and data.parts[0].kept.tolist() == [2, 3, 4, 5]
    assert {data[epoch, i].path[-5] for epoch in range(3) for i in range(4)} == set("3456")
    own = mixture(
        dict(dataset=coco(tmp_path / "c", boxes=[(i, i, [0, 0, 9, 9]) for i in range(1, 7)]), prompts=False),
        exclude=[evaluated], mosaics=(0, 1),
    )  # fmt: skip
    seen = {name for epoch in range(9) for i in range(4) for (name,) in own[epoch, i].box_names}
    assert seen == {f"thing {number}" for number in range(3, 7)}  # in no tile
    note = "coco train: 2 of 6 images are in coco train, and are left out"
    assert data.notes == [note] and note in capsys.readouterr().out
    assert data.fingerprint() != mixture(dict(dataset=config), mosaics=(0, 1)).fingerprint()
    with pytest.raises(UserError, match="all its images are in the sets to evaluate on"):
        mixture(dict(dataset=evaluated), exclude=[config])


def test_too_many_boxes_are_thinned_out_at_random(tmp_path):
    boxes = [(1, number, [number % 10, number // 10, 3, 3]) for number in range(1, 81)]
    config = coco(tmp_path / "a", images=1, boxes=boxes)
    data = mixture(dict(dataset=config, prompts=False), max_boxes=7, merge=1.1)
    kept = [[name for (name,) in data[epoch, 0].box_names] for epoch in range(3)]
    assert all(len(names) == 7 for names in kept) and kept[0] != kept[1] != kept[2]
    assert not set(data[0].queries[7:]) & {f"thing {number}" for number in THINGS}  # all 80 are there


def test_boxes_that_overlap_are_merged_after_the_mosaic(tmp_path):
    boxes = [(1, 1, [0, 0, 20, 20]), (1, 2, [0, 0, 20, 19]), (1, 3, [0, 0, 3, 3])]
    data = mixture(dict(dataset=coco(tmp_path / "a", images=1, boxes=boxes), prompts=False))
    assert set(data[0].box_names) == {("thing 1", "thing 2"), ("thing 3",)}
    assert set(data[0].queries) == {"thing 1", "thing 2", "thing 3"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(sets=[]), "sets is empty"),
        (dict(sets=[dict(dataset={}, wieght=1)]), "not 'wieght'"),
        (dict(sets=[dict(dataset={}, weight=0)]), "a weight above 0"),
        (dict(mosaics=()), "mosaics="),
        (dict(mosaics=(0.5, -0.1)), "mosaics="),
        (dict(size=50), "size=50 is no multiple of 3"),
        (dict(size=48.0), r"size=48\.0; give a whole number from 1 on"),
        (dict(sets=[dict(dataset={}, weight="1")]), "a weight above 0"),
        (dict(merge=0), "merge=0: give an overlap above 0"),
        (dict(negatives=-1), "negatives=-1; give a whole number from 0 on"),
        (dict(max_queries=0), "max_queries=0; give a whole number from 1 on"),
        (dict(max_boxes=0.5), r"max_boxes=0\.5; give a whole number from 1 on"),
        (
            dict(sets=[dict(dataset=dict(type="GeneratedScenes", split="train", length=2))]),
            "no set of images with boxes",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(options, said, tmp_path):
    config = dict(dataset=coco(tmp_path / "a"))
    with pytest.raises(UserError, match=said):
        DetectionMixture(**{"sets": [config], "size": 48, **options})


def test_features_of_mosaics_are_not_stored(tmp_path):
    data = mixture(dict(dataset=coco(tmp_path / "a")))
    with pytest.raises(UserError, match="not stored"):
        data.files_on_disk(0)
    assert data.metainfo == {"classes": ()} and data.targets == ("boxes",) and data.name == "coco"


def test_batches_have_the_queries_and_do_not_depend_on_workers(tmp_path):
    data = mixture(dict(dataset=coco(tmp_path / "a")), mosaics=(0.5, 0.5))
    batches = []
    for workers in (0, 2):
        loader = train_loader(data, 3, workers, seed=1, targets=("boxes",))
        batches.append(list(itertools.islice(loader, 5)))
        stop_workers(loader)
    for one, other in zip(*batches, strict=True):
        assert all(map(torch.equal, one["inputs"], other["inputs"]))
        for a, b in zip(one["data_samples"], other["data_samples"], strict=True):
            assert torch.equal(a.boxes, b.boxes) and (a.box_names, a.queries) == (b.box_names, b.queries)
            assert a.image is None and {name for names in a.box_names for name in names} <= set(a.queries)
    assert sum(len(sample.queries) for batch in batches[0] for sample in batch["data_samples"]) > 40


def test_real_images_of_two_sets(real):
    roots = [real(name) for name in ("coco_tiny", "coco128")]
    sets = [dict(dataset=dict(type="CocoDetection", split="train", root=root)) for root in roots]
    exclude = [dict(type="CocoDetection", split="val", root=root) for root in roots]
    transforms = [dict(type="RandomFlip"), dict(type="RandomBoxCrop")]
    rare = real("lvis/lvis_val_100.json")
    data = mixture(*sets, size=192, mosaics=(0.4, 0.3, 0.3), transforms=transforms, exclude=exclude, rare=rare)
    assert len(data) == 125 and len(data.notes) == 6
    for i in range(0, 125, 25):
        sample = data[1, i]
        assert sample.image.shape == (3, 192, 192) and len(sample.boxes) == len(sample.box_names)
        assert (sample.boxes >= 0).all() and (sample.boxes <= 192).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        positives = {name for names in sample.box_names for name in names}
        assert positives <= set(sample.queries) and len(sample.queries) >= 50
