"""heads push, pull, list, show."""

import json

import pytest
from heads_made import content

from siglip2_dense import head_file
from siglip2_dense.cli.common import run
from siglip2_dense.cli.heads import main


@pytest.fixture
def shelf(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    head_file.save("run/head.safetensors", content())
    assert run(main, ["push", "run", "shelf/sky"]) == 0
    assert capsys.readouterr().out == "shelf/sky: README.md, head.safetensors, SHA256SUMS\n"
    return tmp_path / "shelf"


def test_pull_says_where_the_head_is(shelf, capsys):
    assert run(main, ["pull", "shelf/sky"]) == 0
    assert capsys.readouterr().out == "heads/sky/head.safetensors\n"
    assert run(main, ["pull", "shelf/none"]) == 1
    assert "shelf/none has no SHA256SUMS; a shared head is what `heads push` makes" in capsys.readouterr().err


def test_a_damaged_head_hides_no_other(shelf, capsys):
    assert run(main, ["push", "run", "shelf/cut"]) == 0
    file = shelf / "cut" / "head.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    capsys.readouterr()
    assert run(main, ["list", "shelf"]) == 0
    cut, sky, _ = capsys.readouterr().out.splitlines()
    assert cut.startswith("shelf/cut  shelf/cut/head.safetensors") and sky == "shelf/sky  siglip2-base-16-256"


def test_list_and_show_for_people_and_machines(shelf, capsys):
    assert run(main, ["list", "shelf"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "shelf/sky  siglip2-base-16-256", "  segmentation: Segmentation by LinearHead, mIoU 41.23",
    ]  # fmt: skip
    assert run(main, ["list", "shelf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["heads"]["segmentation"]["value"] == 41.234
    assert run(main, ["list", "."]) == 0 and "no shared heads" in capsys.readouterr().out
    for target in ("shelf/sky", "run/head.safetensors"):
        assert run(main, ["show", target]) == 0
        out = capsys.readouterr().out
        assert "encoder  siglip2-base-16-256, weights ffffffffffffffff, licence apache-2.0" in out
        assert "mIoU 41.23, 2 classes" in out and "trained  on ade20k train, 12 steps" in out
        assert "numbers  16 in 1 tensors" in out
    assert run(main, ["show", "shelf/sky", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["protocol"]["optimisation"]["iterations"] == 12 and said["metrics"]["aAcc"] is None
    assert run(main, ["show", "nowhere"]) == 1 and "nowhere is not there" in capsys.readouterr().err
