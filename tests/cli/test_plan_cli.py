"""The plan as a person reads it, and as JSON."""

import json
import re

import pytest

from siglip2_dense.cli import plan as verb


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", str(tmp_path / "none"))


def test_the_plan_names_what_it_assumes(capsys, tmp_path):
    verb.main(["probe_navi_depth", "--device", "h100", "--json", str(tmp_path / "plan.json")])
    shown = capsys.readouterr().out
    assert "siglip2-so400m-14-384: 428.2 M parameters, fp32" in shown and "NVIDIA H100" in shown
    assert "navi train: unknown" in shown and "extraction unknown" in shown and "60% of 67 TFLOP/s" in shown
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["seconds"]["stored"]["total"] is None and found["seconds"]["straight"]["training"] > 0


def test_another_encoder_and_a_store_are_planned_for(capsys, tmp_path):
    options = ["--encoder", "dinov2-base-14", "--features", str(tmp_path / "a" / "b"), "--images", "2024", "555"]
    verb.main(["probe_navi_depth", "--device", "a100", *options, "--cfg-options", "feature_store.views=4"])
    shown = capsys.readouterr().out
    assert "dinov2-base-14" in shown and "2,024 images (given)" in shown and "4 views of training" in shown
    assert "are free" in shown and not (tmp_path / "a").exists()
    assert re.search(r"memory +about weights \d+ MB, gradients and moments \d+ MB, activations \S+ GB", shown)
    verb.main(["probe_ade20k", "--device", "h100", "--encoder", "siglip2-base-16-256", "--cfg-options", "seeds=2"])
    shown = capsys.readouterr().out
    assert "tested once" in shown and "held out" not in shown
    verb.main(["probe_ade20k", "--device", "h100", "--cfg-options", "sweep.lr=[1e-3,1e-2]"])
    assert "2,021 images of training, tested once to choose by" in capsys.readouterr().out
