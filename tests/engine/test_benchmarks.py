"""Several data sets in one process: the same numbers as one at a time, what is missing, two ranks, and the table."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from siglip2_dense.cli import test as verb
from siglip2_dense.cli.common import load_config, run
from siglip2_dense.contracts import Geometry
from siglip2_dense.engine.benchmarks import table, test_benchmarks
from siglip2_dense.engine.evaluate import test
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import CLASSES
from siglip2_dense.published import BOXES, PROBES, ROWS, SETS, rows_of
from siglip2_dense.tasks import ZeroShotSegmentation

test_benchmarks.__test__ = test.__test__ = False  # they are no tests of pytest's

CONFIG = """
seed = 0
pictures = 1
model = dict(
    type="ZeroShot",
    encoder=dict(type="FrozenEncoder", name="clip-base-16-224", weights="random", model_args=dict(depth=2)),
    text=dict(model_args=dict(layers=1, width=64)),
    classes={classes!r},
    queries={queries!r},
    templates=["a {{}}"],
    inference=dict(mode="slide", crop=64, stride=32),
)
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict({data}, transforms=[dict(type="ResizeShortSide", short=64)]),
)
benchmarks = dict(
    scenes=dict(dataset=dict(type="GeneratedScenes", split="val", length=3, size=(40, 56))),
    mine=dict(dataset=dict(type="ImageFolder", root={mine!r}, split="val"), queries=dict(road=["street", "lane"])),
    absent=dict(dataset=dict(type="ADE20K", split="val", root={absent!r})),
)
"""


@pytest.fixture
def config(tmp_path):
    """``config(classes, queries, data)`` -> path. Three images of one's own, with labels beyond 255."""
    classes = [*(f"thing {i}" for i in range(299)), "road"]
    for i in range(3):
        numbers = np.random.default_rng(i)
        for folder, pixels in (
            ("images", numbers.integers(0, 256, (48, 40, 3), dtype=np.uint8)),
            ("labels", numbers.integers(290, 300, (48, 40), dtype=np.uint16)),
        ):
            path = tmp_path / "mine" / folder / "val" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (tmp_path / "mine/classes.txt").write_text("\n".join(classes) + "\n")

    def write(classes=("background", "cat"), queries=None, data='type="GeneratedScenes", split="val", length=1'):
        path = tmp_path / "several.py"
        places = dict(mine=str(tmp_path / "mine"), absent=str(tmp_path / "no"))
        path.write_text(CONFIG.format(classes=list(classes), queries=queries, data=data, **places))
        return path

    return write


def load(path, work_dir, options=()):
    arguments = dict(encoder=None, weights=None, launcher="none", cfg_options=list(options))
    return load_config(Namespace(config=str(path), work_dir=str(work_dir), **arguments))


ALONE = {  # of each benchmark: classes, queries and data, as a config of one set has them
    "scenes": (CLASSES["generated"], None, 'type="GeneratedScenes", split="val", length=3, size=(40, 56)'),
    "mine": (
        [*(f"thing {i}" for i in range(299)), "road"],
        dict(road=["street", "lane"]),
        'type="ImageFolder", root={root!r}, split="val"',
    ),
}


def test_each_benchmark_scores_as_it_does_alone(config, tmp_path, capsys):
    records = test_benchmarks(load(config(), tmp_path / "all"), None, "scenes,mine", "tools/test.py")
    shown = capsys.readouterr().out
    for name, (classes, queries, data) in ALONE.items():
        path = config(classes, queries, data.format(root=str(tmp_path / "mine")))
        alone = test(load(path, tmp_path / name), None)
        one = json.loads((tmp_path / f"all/results_{name}.json").read_text())
        assert one == json.loads(json.dumps(records[name]))
        for key in ("metrics", "per_class", "intervals", "protocol", "encoder", "data"):
            assert one[key] == json.loads(json.dumps(alone[key])), key
        assert len(list((tmp_path / f"all/pictures_{name}").iterdir())) == 1
        assert (tmp_path / f"all/per_image_{name}.safetensors").is_file()
        assert f"{name}: mIoU_labelled {one['metrics']['mIoU_labelled']:.2f}" in shown
    lines = shown[shown.index("benchmark") :].splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["benchmark", "images", "classes"], ["scenes", "3", "6"], ["mine", "3", "300"],
    ]  # fmt: skip
    assert records["scenes"]["protocol"]["test_transforms"] == [dict(type="ResizeShortSide", short=64)]
    scoring = records["mine"]["protocol"]["heads"]["segmentation"]["scoring"]
    assert scoring["mIoU"] != scoring["mIoU_labelled"]
    found = records["mine"]["metrics"]  # random predictions: many classes that are not there
    assert found["mIoU"] < found["mIoU_labelled"]


def test_what_is_missing_is_left_out_and_the_exit_code_says_so(config, tmp_path, capsys):
    arguments = [str(config()), "--work-dir", str(tmp_path / "all"), "--benchmarks", "all"]
    assert run(verb.main, arguments) == 1
    out, err = capsys.readouterr()
    assert f"absent is left out: ade20k is not there or not complete, looked in {tmp_path}/no; run" in out
    assert err.endswith("error: 1 of 3 benchmarks are not scored: absent; why is said above.\n")
    assert {path.name for path in (tmp_path / "all").glob("*.json")} == {"results_scenes.json", "results_mine.json"}
    assert out.splitlines()[-1].split()[0] == "mine"
    arguments[-1] = "absent"
    assert run(verb.main, arguments) == 1 and "1 of 1 benchmarks are not scored" in capsys.readouterr().err
    arguments[-1] = "scenes"
    assert run(verb.main, arguments) == 0


def test_an_image_that_is_broken_ends_one_benchmark(config, tmp_path, capsys):
    path = config()
    (tmp_path / "mine/images/val/1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="1 of 2 benchmarks are not scored: mine"):
        test_benchmarks(load(path, tmp_path / "all"), None, "mine, scenes")
    assert "mine is left out: " in (shown := capsys.readouterr().out) and "images/val/1.png" in shown
    assert (tmp_path / "all/results_scenes.json").is_file() and not (tmp_path / "all/results_mine.json").exists()


@pytest.mark.parametrize(
    ("wanted", "options", "message"),
    [
        ("scene", (), "benchmark 'scene' is unknown: did you mean 'scenes'"),
        (" ,", (), "names none; give all, or some of scenes, mine, absent"),
        ("scenes", ["benchmarks.scenes.query=[1]"], "benchmarks.scenes has no part 'query': did you mean 'queries'"),
        ("mine", ["benchmarks.mine.queries.rod=[way]"], "1 of 1 benchmarks are not scored"),
    ],
)
def test_what_is_asked_for_wrongly_is_named(config, tmp_path, wanted, options, message, capsys):
    loaded = load(config(), tmp_path / "all")
    for option in options:
        key, value = option.split("=")
        loaded.merge_from_dict({key: [value.strip("[]")]})
    with pytest.raises(UserError, match=message):
        test_benchmarks(loaded, None, wanted)


def test_models_and_configs_that_have_none(config, tiny, tmp_path, capsys):
    with pytest.raises(UserError, match="the config has no benchmarks; give benchmarks = dict"):
        test_benchmarks(load(tiny(), tmp_path), None, "all")
    probe = tiny("benchmarks = dict(one=dict(dataset=dict(type='GeneratedScenes', split='val', length=1)))")
    with pytest.raises(UserError, match="DenseProbe cannot be asked for other classes than its own"):
        test_benchmarks(load(probe, tmp_path), None, "all")
    with pytest.raises(UserError, match="nothing to train; leave out the head file"):
        test_benchmarks(load(config(), tmp_path), "head.safetensors", "all")
    assert run(verb.main, [str(config()), "--benchmarks", "all", "--out", "one.json"]) == 1
    assert "--out is one record's file" in capsys.readouterr().err


def test_two_ranks_score_as_one_and_leave_out_the_same(config, tool, tmp_path):
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    options = ("--work-dir", tmp_path / "pair", "--benchmarks", "scenes,absent", "--launcher", "pytorch")
    pair = tool("test", config(), *options, launcher=two)
    assert pair.returncode != 0 and "1 of 2 benchmarks are not scored: absent" in pair.stderr
    assert pair.stdout.count("absent is left out") == 1 == pair.stdout.count("benchmark  images")
    alone = test_benchmarks(load(config(), tmp_path / "alone"), None, "scenes")["scenes"]
    found = json.loads((tmp_path / "pair/results_scenes.json").read_text())
    assert found["data"] == alone["data"] and found["metrics"] == pytest.approx(alone["metrics"])


def record(encoder, value):
    metrics = {"mIoU": value - 1, "mIoU_labelled": value}
    interval = {"mIoU_labelled": [value - 2, value + 2]}
    data, classes = {"images": 2000}, {"IoU": {"a": 1.0, "b": None}}
    return dict(metrics=metrics, intervals=interval, data=data, per_class=classes, encoder={"name": encoder})


def test_the_paper_stands_beside_ours():
    records = {name: record("siglip2-large-16-384", 30.0) for name in ("ade150", "mine")}
    lines = [line.split() for line in table(records, "CATSeg").splitlines()]
    assert lines[1] == ["ade150", "2,000", "2", "30.00", "28.00", "to", "32.00", "29.00", "38.8"]
    assert lines[2][-1] == "-" and lines[3][:5] == ["a:", "SigLIP", "2", "L/16,", "SigLIP"] and len(lines) == 4
    assert len(table({"mine": records["mine"]}, "CATSeg").splitlines()) == 2  # nothing is published of it
    assert "38.8" not in table(records, "ZeroShot") and len(table(records, "ZeroShot").splitlines()) == 3
    assert len(table({"ade150": record("clip-large-14-336", 1.0)}, "CATSeg").splitlines()) == 2 + 3


def test_published_rows_are_those_of_known_encoders():
    from siglip2_dense.encoders.catalogue import catalogue

    assert all(any(f"{name}-".startswith(f"{row.encoder}-") for name in catalogue()) for row in ROWS)
    names = {"CATSeg": SETS, "DenseProbe": PROBES, "OWLViT": BOXES}
    assert {row.model for row in ROWS} == set(names)
    assert all(tuple(row.scores) == SETS for row in ROWS if row.model == "CATSeg")
    assert all(row.scores and set(row.scores) <= set(names[row.model]) for row in ROWS)
    assert [row.scores["pc59"] for row in rows_of("CATSeg", "siglip-large-16-256")] == [61.6]
    assert rows_of("CATSeg", "siglip2-large-14-384") == rows_of("ZeroShot", "siglip2-large-16-384") == []
    first, third = rows_of("CATSeg", "openclip-bigg-14-224")
    same = [name for name in SETS if first.scores[name] == third.scores[name]]
    assert same == ["pc459", "ade150", "pc59", "voc20", "voc21"]


def test_the_background_of_voc21_by_the_published_rule(test_data):
    """The best of 59 names in the published order; those after the 20 objects are background."""
    names = json.loads((test_data / "openvocab_classnames/voc20b.json").read_text())
    benchmark = load("zeroshot_ade20k", "unused").benchmarks.voc21.to_dict()
    task = ZeroShotSegmentation("pascal", benchmark["queries"])
    assert sorted(task.queries) == sorted(names) and task.channels == 59
    scores = torch.randn(59, 30, 40, generator=torch.Generator().manual_seed(0))
    published = scores.argmax(0)
    published[published >= 20] = 20  # the background is the last class there, the first here
    ours = scores[[names.index(query) for query in task.queries]]
    place = Geometry((30, 40), (0, 0, 30, 40), (30, 40), (30, 40), (30, 40))
    assert torch.equal(task.predict([(ours, place)]), (published + 1) % 21)


def test_names_of_the_other_sets_are_those_of_the_published_lists(test_data):
    folder, benchmarks = test_data / "openvocab_classnames", load("zeroshot_ade20k", "unused").benchmarks.to_dict()
    assert set(benchmarks) == set(SETS)
    for name, classes in (("ade150", "ade20k"), ("pc59", "pascal_context"), ("voc20", "voc20")):
        queries = ZeroShotSegmentation(classes, benchmarks[name].get("queries"), synonyms="first").queries
        assert list(queries) == [entry.strip() for entry in json.loads((folder / f"{name}.json").read_text())]
