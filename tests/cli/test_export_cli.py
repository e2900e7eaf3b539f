"""``export`` on the command line: sentences for mistakes; what it writes is tested in tests/export."""

import pytest

from siglip2_dense import head_file
from siglip2_dense.cli import export as verb
from siglip2_dense.cli.common import run
from siglip2_dense.registry import MODELS, build

ENCODER = dict(type="FrozenEncoder", name="test_vit", weights="random", model_args=dict(depth=1))
HEAD = dict(head=dict(type="LinearHead"), task=dict(type="Depth", bins=8))


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Head files: of depth, the same again, one on another encoder, one with an encoder of its own, and CAT-Seg's."""
    folder = tmp_path_factory.mktemp("heads")
    for name, encoder, head in (
        ("depth", ENCODER, "depth"), ("again", ENCODER, "depth"),
        ("elsewhere", {**ENCODER, "weights": "random:1"}, "b"),
        ("trained", {**ENCODER, "trainable": "all"}, "c"), ("names", ENCODER, "d"),
    ):  # fmt: skip
        more = {"encoder_optim": {}} if "trainable" in encoder else {}
        probe = build(MODELS, dict(type="DenseProbe", encoder=encoder, heads={head: HEAD}, **more))
        described = {head: head_file.describe(probe.heads[head], probe.tasks[head], HEAD)}
        if name == "names":
            described[head] |= {"task": {"type": "OpenVocabulary"}, "meaning": {"vocabulary": "open"}}
        content = head_file.HeadFile(probe.trained_state(), probe.facts, encoder, described, {}, {}, 0)
        head_file.save(folder / f"{name}.safetensors", content)
    return folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "model.pt2"], "say what to export"),
        (["depth", "--out", "model.bin"], "ends in .onnx, or in .pt2"),
        (
            ["depth", "--prompts", "cat", "--out", "model.pt2"],
            "depth.safetensors has classes of its own; use it without",
        ),
        (["depth", "--encoder", "x", "--out", "model.pt2"], "--encoder is for models that take any names"),
        (["depth", "--size", "0", "32", "--out", "model.pt2"], "give a height and a width"),
        (["depth", "elsewhere", "--out", "model.pt2"], "only heads of one encoder share its pass"),
        (["depth", "trained", "--out", "model.pt2"], "changed its encoder in training"),
        (["names", "--out", "model.pt2"], "is of open vocabulary: say what to look for"),
        (["names", "--prompts", "cat", "--out", "model.pt2"], "says nothing of its model"),
        (["names", "--config", "catseg_demo", "--out", "model.pt2"], "--config: say what to look for"),
        (["depth", "again", "--config", "catseg_demo", "--prompts", "a", "--out", "model.pt2"], "has one head file"),
        (["--config", "probe_ade20k", "--prompts", "a", "--out", "model.pt2"], "cannot be asked for other classes"),
        (["none", "--out", "model.pt2"], "no such file"),
    ],
)
def test_mistakes_end_in_a_sentence(heads, arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [path.stem for path in heads.iterdir()] + ["none"]
    arguments = [
        str(heads / f"{one}.safetensors") if one in names and i < 2 else one for i, one in enumerate(arguments)
    ]
    assert run(verb.main, arguments) == 1
    errors = capsys.readouterr().err
    assert sentence in errors and errors.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_the_encoder_may_have_other_weights_and_is_then_refused(heads, tmp_path, capsys):
    head = str(heads / "depth.safetensors")
    assert run(verb.main, [head, "--weights", "random:1", "--out", str(tmp_path / "model.pt2")]) == 1
    assert "was trained on test_vit with weights" in capsys.readouterr().err
