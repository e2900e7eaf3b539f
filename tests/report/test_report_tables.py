"""What the report says: every number is a record's, every gap is worked out by hand, and no column mixes protocols."""

import json
import re

import pytest
from mmengine.config import Config
from records_made import changed, made

from siglip2_dense.encoders.catalogue import catalogue
from siglip2_dense.engine.configs import config_folder
from siglip2_dense.errors import UserError
from siglip2_dense.published import ROWS, rows_of
from siglip2_dense.report import write
from siglip2_dense.report.blocks import NONE
from siglip2_dense.report.knobs import in_words

SEGMENTATION, DEPTH, NORMALS = "probe_ade20k", "probe_nyuv2_depth", "probe_nyuv2_normals"


def reported(out, *paths):
    """The Markdown, and the sentences of what is left out."""
    markdown, _, problems = write(paths, out)
    return markdown.read_text(), problems


def table_under(markdown, heading):
    """{row: {column: cell}} of the first table below a heading, links and escapes taken off."""
    below = markdown.split(f"# {heading}", 1)[1]
    lines = re.search(r"(^\|.*\n)+", below, re.M)[0].splitlines()
    plain = [re.sub(r"\[([^\]]*)\]\(#[^)]*\)", r"\1", line) for line in lines]
    cells = [[cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in plain]
    head, _, *rows = cells
    assert len(set(head)) == len(head) and all(len(row) == len(head) for row in rows)
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_each_cell_is_the_records_number_beside_the_papers_and_their_gap(tmp_path):
    ade = made(tmp_path / "ade", SEGMENTATION, {"mIoU": 45.123, "aAcc": 80.5}, intervals={"mIoU": [44.2, 46.04]})
    clip = made(
        tmp_path / "clip", SEGMENTATION, {"mIoU": 40.0, "aAcc": 80.0}, "clip-large-14-224",
        intervals={"mIoU": [39.5, 40.5]},
    )  # fmt: skip
    depth = made(tmp_path / "depth", DEPTH, {"rmse": 0.43219}, data=("nyuv2", "test"), intervals={"rmse": [0.42, 0.44]})
    normals = made(
        tmp_path / "normals", NORMALS, {"rmse": 24.456, "recall_30": 0.61234}, "clip-large-14-224",
        data=("nyuv2_labelled", "test"), intervals={"rmse": [24.41, 24.52]},
    )  # fmt: skip
    text, problems = reported(tmp_path / "out", ade, clip, depth, normals)
    assert not problems
    rows = table_under(text, "Table 2")
    best = rows["siglip2-so400m-14-384 SigLIP 2 So/14, 384 (a)"]
    assert best["ADE20k published"] == "45.4" and best["NYUv2 depth published"] == "0.466"
    assert best["ADE20k P1 LinearHead, 40,000 steps"] == "45.12 [44.20, 46.04]"
    assert best["ADE20k gap P1"] == "-0.28 level"  # 45.4 lies in the interval
    assert best["NYUv2 depth P2 LinearHead, 38,400 steps"] == "0.4322 [0.4200, 0.4400]"
    assert best["NYUv2 depth gap P2"] == "-0.0338 better"  # less is better
    other = rows["clip-large-14-224 CLIP L/14, 224 (a)"]
    assert other["ADE20k P1 LinearHead, 40,000 steps"] == "40.00 [39.50, 40.50]"
    assert other["ADE20k gap P1"] == "+1.00 better"
    assert other["NYUv2 normals gap P3"] == "+0.16 worse" and other["NYUv2 depth gap P2"] == ""
    assert len(rows) == 6 and rows["siglip-so400m-14-224 SigLIP So/14, 224 (a)"]["ADE20k gap P1"] == ""
    assert rows["openclip-bigg-14-224 OpenCLIP G/14, 224 (a)"]["NAVI depth published"] == NONE
    assert "4 scores, 4 beside a published one: 2 better, 1 level, 1 worse" in text
    card = table_under(text, "P3: nyuv2\\_labelled test, normals")
    assert card["normals clip-large-14-224"]["recall_30"] == "0.6123"
    assert table_under(text, "P1: ade20k val, segmentation")["ade siglip2-so400m-14-384"]["aAcc"] == "80.50"


@pytest.mark.parametrize(
    ("changes", "knob", "values"),
    [
        ({"protocol__optimisation__iterations": 100}, "optimisation.iterations", ("40000", "100")),
        ({"protocol__canvas": None}, "canvas", ("512, 512", "none")),
        ({"data__fingerprint": "e" * 64}, "data.fingerprint", ("f" * 12, "e" * 12)),
        ({"protocol__heads__segmentation__optim__lr": 0.01}, "heads.segmentation.optim.lr", ("0.001", "0.01")),
    ],
)
def test_other_protocols_have_columns_of_their_own_and_the_knobs_are_named(tmp_path, changes, knob, values):
    runs = [
        made(tmp_path / "a", SEGMENTATION, {"mIoU": 45.0}),
        made(tmp_path / "b", SEGMENTATION, {"mIoU": 46.0}, **changes),
        made(tmp_path / "c", SEGMENTATION, {"mIoU": 44.0}, "siglip-so400m-14-384"),
    ]
    text, _ = reported(tmp_path / "out", *runs)
    rows = table_under(text, "Table 2")
    columns = {name.split()[1]: name for name in next(iter(rows.values())) if re.match(r"ADE20k P\d", name)}
    assert set(columns) == {"P1", "P2"}
    own = rows["siglip2-so400m-14-384 SigLIP 2 So/14, 384 (a)"]
    assert (own[columns["P1"]], own[columns["P2"]]) == ("45.00", "46.00")
    assert rows["siglip-so400m-14-384 SigLIP So/14, 384 (a)"][columns["P2"]] == ""
    assert re.search(rf"ADE20k: .*P1.*P2.* have columns of their own; they differ in {re.escape(knob)}\.", text)
    beside = text.split("side by side</summary>", 1)[1]
    assert f"| {knob} | {values[0]} | {values[1]} |" in beside.replace("\\", "")


def test_other_splits_and_parts_of_a_set_are_not_the_papers(tmp_path):
    runs = [
        made(tmp_path / "part", SEGMENTATION, {"mIoU": 60.0}, data=("ade20k", "val", 100)),
        made(tmp_path / "split", SEGMENTATION, {"mIoU": 70.0}, data=("ade20k", "train", 2000)),
        made(tmp_path / "metres", "probe_navi_depth", {"rmse": 0.05}, data=("navi", "test"),
             protocol__heads__depth__task__unit="m"),
        made(tmp_path / "own", "probe_folder", {"mIoU": 50.0}, "dinov2-base-14", data=("my_data", "val", 7)),
    ]  # fmt: skip
    text, _ = reported(tmp_path / "out", *runs)
    assert "Table 2: probes on frozen encoders: nothing measured" in text
    names = {"ade20k val": "60.00", "ade20k train": "70.00", "navi test": "0.0500", "my\\_data val": "50.00"}
    for name, value in names.items():
        (row,) = table_under(text, f"{name}\n").values()
        assert list(row.values())[1:] == [value]


def test_an_encoder_that_trained_along_is_no_frozen_one(tmp_path):
    frozen = made(tmp_path / "frozen", SEGMENTATION, {"mIoU": 45.0})
    mode = {"trains": 4, "mode": "eval"}
    tuned = made(tmp_path / "tuned", SEGMENTATION, {"mIoU": 52.0}, protocol__encoder_mode=mode)
    text, _ = reported(tmp_path / "out", tuned, frozen)
    assert "1 score, 1 beside a published one" in text and "52.00" not in str(table_under(text, "Table 2"))
    assert "52.00" in str(table_under(text, "ade20k val"))


def test_only_the_published_weights_stand_beside_the_paper(tmp_path):
    true = made(tmp_path / "true", SEGMENTATION, {"mIoU": 45.0})
    random = made(
        tmp_path / "random", SEGMENTATION, {"mIoU": 11.0}, run__command="train.py X --weights random",
        encoder__fingerprint="1" * 64,
    )  # fmt: skip
    smaller = made(tmp_path / "small", SEGMENTATION, {"mIoU": 12.0}, "clip-large-14-224", encoder__parameters=12345)
    text, _ = reported(tmp_path / "out", true, random, smaller)
    rows = table_under(text, "Table 2")
    column = "ADE20k P1 LinearHead, 40,000 steps"
    assert rows["siglip2-so400m-14-384 SigLIP 2 So/14, 384 (a)"][column] == "45.00"
    for name, value in (("siglip2-so400m-14-384, random weights", "11.00"), ("clip-large-14-224", "12.00")):
        assert rows[name][column] == value and rows[name]["ADE20k gap P1"] == ""
        assert rows[name]["ADE20k published"] == NONE


def test_seeds_are_rows_and_a_test_of_the_same_head_is_told_once(tmp_path):
    for seed, value in ((0, 45.0), (1, 45.5)):
        made(tmp_path / f"s{seed}", SEGMENTATION, {"mIoU": value}, seed=seed)
        made(tmp_path / f"s{seed}" / "results_val.json", SEGMENTATION, {"mIoU": value}, seed=seed)
    text, _ = reported(tmp_path / "out", tmp_path / "s0", tmp_path / "s1", tmp_path / "s0")
    assert text.startswith("# 2 records under 1 protocol\n")
    rows = table_under(text, "Table 2")
    column = "ADE20k P1 LinearHead, 40,000 steps"
    found = {name: row[column] for name, row in rows.items() if row[column]}
    assert found == {
        "siglip2-so400m-14-384, seed 0 SigLIP 2 So/14, 384 (a)": "45.00",
        "siglip2-so400m-14-384, seed 1 SigLIP 2 So/14, 384 (a)": "45.50",
    }


def test_what_several_sources_have_published_is_named_with_each(tmp_path):
    run = made(tmp_path / "b", SEGMENTATION, {"mIoU": 47.0}, "dinov2-base-14")
    registers = made(tmp_path / "reg", SEGMENTATION, {"mIoU": 46.0}, "dinov2-base-14-reg")
    normals = made(tmp_path / "n", NORMALS, {"rmse": 22.0}, "dinov2-base-14", data=("nyuv2_labelled", "test"))
    text, _ = reported(tmp_path / "out", run, normals, registers)
    rows = table_under(text, "Table 2")
    dinov2, probe3d = rows["dinov2-base-14 DINOv2 B/14 (b)"], rows["dinov2-base-14 DINOv2 B/14 (c)"]
    assert dinov2["ADE20k gap P1"] == "-0.30 worse" and dinov2["NYUv2 normals gap P2"] == ""
    assert dinov2["NYUv2 normals P2 DPTHead, 50,000 steps"] == "22.00"
    assert probe3d["NYUv2 normals gap P2"] == "-0.41 better" and probe3d["ADE20k P1 LinearHead, 40,000 steps"] == ""
    assert rows["dinov2-base-14-reg"]["ADE20k published"] == NONE  # other weights
    assert "- b: DINOv2, linear probes" in text and "- c: probe3d" in text


def test_names_and_boxes_have_the_papers_other_tables(tmp_path):
    folder = tmp_path / "catseg"
    large = "siglip2-large-16-384"
    for file, data, value in (("ade150", ("ade20k", "val"), 38.1), ("voc20", ("voc20", "val"), 97.25)):
        scores = {"mIoU": value - 1, "mIoU_labelled": value}
        made(folder / f"results_{file}.json", "catseg_siglip2_large", scores, large, data)
    lvis = made(
        tmp_path / "owl", "owlvit_siglip2_base", {"AP": 34.0, "APr": 33.0}, "siglip2-base-16-384", ("lvis", "val")
    )
    text, _ = reported(tmp_path / "out", folder, lvis)
    row = table_under(text, "Table 3")[f"{large} SigLIP 2 L/16 (a)"]
    assert (row["A-150 gap P1"], row["VOC-20 gap P2"]) == ("-0.70 worse", "+0.25 better")
    row = table_under(text, "Table 4")["siglip2-base-16-384 SigLIP 2 B/16 (a)"]
    assert (row["LVIS AP gap P3"], row["LVIS APr gap P3"]) == ("-0.40 worse", "+0.30 better")
    assert "Other data" not in text and "Scores\n" not in text


def test_several_heads_of_a_record_are_columns_by_name(tmp_path):
    metrics = {"depth.rmse": 0.5, "depth_linear.rmse": 0.6, "normals.rmse": 31.0}
    text, _ = reported(tmp_path / "out", made(tmp_path / "a", "probe_rgbd", metrics, data=("room", "val", 9)))
    (row,) = table_under(text, "room val").values()
    assert row == {
        "encoder": "siglip2-so400m-14-384",
        "depth, rmse P1 depth DPTHead, 2,000 steps": "0.5000",
        "depth, rmse P1 depth_linear LinearHead, 2,000 steps": "0.6000",
        "normals, rmse in degrees P1 normals DPTHead, 2,000 steps": "31.00",
    }


def test_what_cannot_be_read_is_a_sentence_and_the_rest_goes_on(tmp_path):
    good = made(tmp_path / "good", SEGMENTATION, {"mIoU": 45.0})
    bad = {
        "cut": '{"metrics": ', "list": "[1, 2]", "foreign": '{"accuracy": 3}',
        "kind": json.dumps({key: {} for key in ("metrics", "encoder", "protocol", "data", "run")}),
    }  # fmt: skip
    for name, content in bad.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(content)
    (tmp_path / "empty").mkdir()
    odd = made(tmp_path / "odd", SEGMENTATION, {"mIoU": 45.0})
    changed(odd, protocol={"heads": {"segmentation": {}}, "selection": {"grid": 3}})
    spoilt = made(tmp_path / "nan", SEGMENTATION, {"mIoU": None}, per_class=[], intervals={"mIoU": None}, history=None)
    paths = [*(tmp_path / name for name in bad), tmp_path / "empty", tmp_path / "absent", odd, good, spoilt]
    text, problems = reported(tmp_path / "out", *paths)
    assert len(problems) == 7
    for name, problem in zip((*bad, "empty", "absent", "odd"), problems, strict=True):
        assert str(tmp_path / name) in problem and problem.endswith(".") and "\n" not in problem
        assert problem[:60].replace("_", "\\_") in text
    rows = table_under(text, "Table 2")
    column = "ADE20k P1 LinearHead, 40,000 steps"
    assert sorted(row[column] for row in rows.values() if row[column]) == ["45.00", NONE]
    with pytest.raises(UserError, match=r"no record to report: .*empty has no results\*\.json"):
        write([tmp_path / "empty"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_settings_that_a_sweep_chose_may_differ_within_a_column_and_are_told(tmp_path):
    selection = {"split": "train, held out", "images": 10, "grid": {"segmentation": ["lr"]}}
    for name, encoder, lr in (("a", "siglip2-so400m-14-384", 0.001), ("b", "clip-large-14-224", 0.01)):
        made(
            tmp_path / name, SEGMENTATION, {"mIoU": 45.0}, encoder, protocol__selection=selection,
            protocol__heads__segmentation__optim__lr=lr,
        )  # fmt: skip
    text, _ = reported(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert text.startswith("# 2 records under 1 protocol\n")
    assert "| heads.segmentation.optim.lr | 0.001 | 0.01 |" in text


def test_published_values_are_those_that_the_configs_name():
    columns = {
        "pascal": "probe_pascal", "ade20k": "probe_ade20k", "nyuv2_depth": "probe_nyuv2_depth",
        "navi_depth": "probe_navi_depth", "nyuv2_normals": "probe_nyuv2_normals", "navi_normals": "probe_navi_normals",
    }  # fmt: skip
    for key, config in columns.items():
        said = (config_folder() / f"{config}.py").read_text()
        found = dict(re.findall(r"^    ((?:clip|openclip|siglip2?)-\S+) +(\d+\.\d+)", said, re.M))
        rows = {row.encoder: row.scores.get(key) for row in ROWS if row.source.startswith("SigLIP 2, Table 2")}
        assert {name: float(value) for name, value in found.items()} == {k: v for k, v in rows.items() if v is not None}
    said = (config_folder() / "owlvit_siglip2_base.py").read_text()
    boxes = re.findall(r"^    SigLIP.*? (\d\d\.\d) +(\d\d\.\d) +(\d\d\.\d) +configs/owlvit_(\w+)\.py", said, re.M)
    assert len(boxes) == 4
    for *values, config in boxes:
        encoder = Config.fromfile(config_folder() / f"owlvit_{config}.py").model.encoder.name
        (row,) = rows_of("OWLViT", encoder)
        assert list(row.scores.values()) == list(map(float, values))
    for row in ROWS:
        assert any(name == row.encoder or name.startswith(f"{row.encoder}-") for name in catalogue()), row.encoder


def test_settings_in_words():
    assert in_words([{"type": "RandomFlip", "p": 0.5}, {"type": "Pad"}]) == "RandomFlip(p=0.5) → Pad()"
    assert in_words(None) == "none" and in_words([]) == "none" and in_words(True) == "yes"
    assert in_words(list(range(150))) == "0, 1, 2, … (150)"
    assert in_words("a" * 64) == "a" * 12 and in_words(1e-6) == "1e-06"
    assert len(in_words("x y " * 100)) == 160
