"""tools/features.py: extract, verify, info, prune."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siglip2_dense.cli import train
from siglip2_dense.cli.common import run
from siglip2_dense.cli.features import main
from siglip2_dense.encoders import FrozenEncoder
from siglip2_dense.engine import extract

TOOL = Path(__file__).resolve().parents[2] / "tools/features.py"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def call(capsys):
    """``call(*arguments)`` -> exit code, standard output, standard error."""

    def made(*arguments):
        code = run(main, [*map(str, arguments)])
        return code, *capsys.readouterr()

    return made


@pytest.fixture
def stored(tiny, tmp_path, call):
    """The folder of what a config trains and validates on."""
    config = tiny("train_dataloader['num_workers'] = 0\nfeature_store = dict(views=2)")
    code, out, err = call("extract", config, "--features", tmp_path / "features")
    assert code == 0, err
    return tmp_path / "features", config, out


def test_help_comes_at_once():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, TOOL, "extract", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 1 and "--part" in done.stdout


def test_what_is_extracted_is_shown_and_found_again(stored, call):
    folder, config, out = stored
    lines = out.splitlines()
    assert lines[0].startswith("features of 10 images of generated train: about ") and "free)" in lines[0]
    assert lines[1].startswith("features of 7 images of generated val: about ")
    head, *rows = ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[2:])
    table = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["store"].partition("-")[0] for row in table] == ["train", "val"]
    train, val = table
    assert train["encoder"] == "test_vit" and train["taps"] == "1 2 4 5" and train["type"] == "fp16"
    assert (train["images"], train["views"], train["for"], train["complete"]) == ("5", "2", "training", "yes")
    assert (val["images"], val["views"], val["for"]) == ("7", "1", "evaluation, slide 48 32")
    code, shown, _ = call("info", folder)
    assert code == 0 and shown.splitlines() == lines[2:]
    again = call("extract", config, "--features", folder)
    assert again[0] == 0 and again[1].splitlines() == lines[2:]  # nothing was missing


def test_a_sweep_finds_all_that_it_reads(tiny, tmp_path, call, monkeypatch):
    lines = "sweep = dict(layers=['last', 'even4'], pooled=['none', 'concat'], holdout=0.4)\nseeds = 2\npictures = 0\n"
    config = tiny(lines + "train_dataloader['num_workers'] = 0\nvis_backends = []\nfeature_store = dict(views=2)")
    code, out, err = call("extract", config, "--features", tmp_path / "features")
    assert code == 0, err
    assert [line.partition("-")[0] for line in out.splitlines()[-3:]] == ["train", "train_held_out", "val"]
    monkeypatch.setattr(FrozenEncoder, "features", None)
    train.main([str(config), "--features", str(tmp_path / "features"), "--work-dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "sweep.json").is_file() and len(list((tmp_path / "features").iterdir())) == 3


def test_a_part_of_a_set_is_extracted_as_it_is_trained_from(tiny, tmp_path, call, monkeypatch):
    config = tiny(
        "train_dataloader['num_workers'] = 0\nvis_backends = []\npictures = 0\n"
        "whole = train_dataloader['dataset']\n"
        "train_dataloader['dataset'] = dict(\n"
        "    type='Subset', part='kept', holdout=0.4, transforms=whole.pop('transforms'), dataset=whole)\n"
        "del whole"
    )
    assert call("extract", config, "--features", tmp_path / "features")[0] == 0
    monkeypatch.setattr(FrozenEncoder, "features", None)
    train.main([str(config), "--features", str(tmp_path / "features"), "--work-dir", str(tmp_path / "run")])
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_damage_is_found_named_and_mended(stored, call):
    folder, config, _ = stored
    assert call("verify", folder)[:2] == (0, f"{folder}: all files are as they were written\n")
    (cut, *_), (changed,) = (sorted(folder.glob(f"{split}-*/*.safetensors")) for split in ("train", "val"))
    content = cut.read_bytes()
    cut.write_bytes(content[:-1])
    turned = bytearray(changed.read_bytes())
    turned[-1] ^= 1
    changed.write_bytes(turned)
    code, out, err = call("verify", folder)
    assert code == 1
    assert f"{cut}: truncated: {len(content) - 1} of {len(content)} bytes" in out
    assert f"{changed}: changed since it was written" in out
    assert "2 files of" in err and "extracts them again" in err
    assert "missing" in call("info", folder)[1]
    assert call("extract", config, "--features", folder)[0] == 0
    assert cut.read_bytes() == content and call("verify", folder)[0] == 0


def test_an_array_of_jobs(tiny, tmp_path, call, monkeypatch):
    monkeypatch.setattr(extract, "SHARD_BYTES", 1)
    config = tiny("train_dataloader['dataset']['length'] = 9\ntrain_dataloader['num_workers'] = 0")
    first = call("extract", config, "--features", tmp_path / "f", "--part", "1/2")
    assert first[0] == 0 and "1 of 2 files missing" in first[1]
    assert re.search(r"^extracting train: [18] images? in 00:0\d, \S+ images/s$", first[2], re.MULTILINE)
    code, out, _ = call("verify", tmp_path / "f")
    assert code == 0 and "1 are still missing" in out
    second = call("extract", config, "--features", tmp_path / "f", "--part", "2/2")
    assert second[0] == 0 and "missing" not in second[1]
    for part in ("3", "0/2", "3/2", "a/b"):
        code, _, err = call("extract", config, "--features", tmp_path / "f", "--part", part)
        assert code == 1 and f"--part {part}: write I/N" in err
    code, _, err = call("extract", config, "--features", tmp_path / "f", "--part", "1/2", "--launcher", "slurm")
    assert code == 1 and "share the work already" in err


def test_only_what_is_named_is_removed(stored, call):
    folder, _, _ = stored
    train, val = sorted(path.name for path in folder.iterdir())
    code, _, err = call("prune", folder, "train")
    assert code == 1 and f"no store 'train'; it has {train}, {val}." in err
    code, out, _ = call("prune", folder, val)
    assert code == 0 and out.startswith(f"removed {folder / val}, ") and sorted(folder.iterdir()) == [folder / train]


def test_a_store_that_cannot_be_read_is_shown_and_removed(stored, call):
    folder, config, _ = stored
    train, val = sorted(path.name for path in folder.iterdir())
    (folder / train / "manifest.json").write_text("{")
    code, out, _ = call("info", folder)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["store", train, val]
    assert "cannot be read" in out.splitlines()[1]
    code, out, err = call("verify", folder)
    assert code == 1 and f"siglip2-dense features prune {folder} {train}" in out and "1 of the stores" in err
    assert call("prune", folder, train)[0] == 0 and call("extract", config, "--features", folder)[0] == 0
    assert call("verify", folder)[0] == 0


def test_stores_of_two_seeds_are_told_apart_with_the_day_of_their_last_use(stored, call):
    folder, config, _ = stored
    old = next(folder.glob("train-*"))
    os.utime(old / "manifest.json", (10**9, 10**9))
    assert call("extract", config, "--features", folder, "--cfg-options", "seed=1")[0] == 0
    lines = {line.split()[0]: line for line in call("info", folder)[1].splitlines()}
    new = next(path.name for path in folder.glob("train-*") if path != old)
    assert lines[old.name].endswith("seed=0") and "2001-09-09" in lines[old.name]
    today = time.strftime("%Y-%m-%d")
    assert lines[new].endswith("seed=1") and today in lines[new] and "last used" in lines["store"]
    assert call("extract", config, "--features", folder)[0] == 0
    assert today in next(line for line in call("info", folder)[1].splitlines() if line.startswith(old.name))


def test_folders_without_features(tmp_path, tiny, call):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text(json.dumps({}))
    for verb in ("info", "verify"):
        code, _, err = call(verb, tmp_path / "other")
        assert code == 1 and "holds no stored features" in err
    code, _, err = call("extract", tiny())
    assert code == 1 and "give --features DIR" in err
