"""Detection from the command line: by names and by examples, awkward images, sentences for mistakes."""

import contextlib
import errno
import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from siglip2_dense import Predictor, head_file
from siglip2_dense.cli import predict as verb
from siglip2_dense.cli.common import run
from siglip2_dense.errors import UserError
from siglip2_dense.predict.coco import write_coco
from siglip2_dense.registry import MODELS, build

MODEL = dict(
    type="OWLViT",
    encoder=dict(
        type="FrozenEncoder", name="clip-base-16-224", weights="random",
        model_args=dict(depth=2, embed_dim=48, num_heads=4, num_classes=32),
    ),
    text=dict(model_args=dict(embed_dim=32, width=32, heads=4, layers=1, context_length=16), cache=False),
    heads=dict(detection=dict(head=dict(type="OWLViTHead"), task=dict(type="Detection", templates="name"))),
    inference=dict(mode="square", size=64),
)  # fmt: skip


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head file whose scores are anything, and the config of its model."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "owl.py").write_text(f"seed = 0\nmodel = {MODEL}\n")
    parts = MODEL["heads"]["detection"]
    model = build(MODELS, {**MODEL, "heads": dict(detection={**parts, "task": {**parts["task"], "classes": ["a"]}})})
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    described = head_file.describe(model.heads["detection"], model.tasks["detection"], parts)
    content = head_file.HeadFile(
        model.trained_state(), model.facts, MODEL["encoder"], {"detection": described}, {}, {}, 0
    )
    head_file.save(folder / "head.safetensors", content)
    content.model = head_file.describe_model(dict(model=MODEL))
    head_file.save(folder / "whole.safetensors", content)
    return folder


@pytest.fixture
def predict(head, tmp_path, capsys, monkeypatch):
    """``predict(images, *options)`` -> (exit code, what was printed, errors); results are in tmp_path/out."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name, size in {"a.png": (48, 64), "b.png": (90, 31), "dot.png": (1, 1)}.items():
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)

    def call(images, *options):
        files = ["--config", str(head / "owl.py"), "--head", str(head / "head.safetensors")]
        code = run(verb.main, [*images, "--task", "detect", *files, "--out", "out", *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_by_names(predict, tmp_path):
    code, printed, errors = predict(
        ["a.png", "b.png", "dot.png"], "--prompts", "cat, remote control|remote", "--threshold", "0.3"
    )
    assert code == 0, errors
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [(one["file_name"], one["height"], one["width"]) for one in content["images"]] == [
        ("a.png", 48, 64), ("b.png", 90, 31), ("dot.png", 1, 1),
    ]  # fmt: skip
    assert [one["name"] for one in content["categories"]] == ["cat", "remote control"]
    found = content["annotations"]
    assert found and all(0.3 <= one["score"] <= 1 for one in found)
    sizes = {one["id"]: (one["width"], one["height"]) for one in content["images"]}
    for one in found:
        (x, y, w, h), (width, height) = one["bbox"], sizes[one["image_id"]]
        assert x >= 0 and y >= 0 and x + w <= width + 0.01 and y + h <= height + 0.01
    for name in ("a", "b", "dot"):
        assert Image.open(tmp_path / "out" / f"{name}_boxes.png").size[0] > 0
    assert f"{len(found)} boxes of 3 images" in printed and "a.png -> out/a_boxes.png" in printed
    with contextlib.redirect_stdout(io.StringIO()):
        from pycocotools.coco import COCO

        assert len(COCO(str(tmp_path / "out" / "detections.json")).getAnnIds()) == len(found)


def test_the_threshold_leaves_out_the_rest(predict, tmp_path):
    counts = []
    for threshold in ("0", "0.5", "0.99"):
        assert predict(["a.png"], "--prompts", "cat", "--threshold", threshold, "--overwrite")[0] == 0
        counts.append(len(json.loads((tmp_path / "out" / "detections.json").read_text())["annotations"]))
    assert counts[0] == 16 > counts[1] >= counts[2]
    code, printed, _ = predict(["a.png"], "--prompts", "cat", "--threshold", "0.999999", "--overwrite")
    assert code == 0 and "nothing" in printed


def test_by_examples(predict, tmp_path):
    options = ["--threshold", "0", "--example", "b.png", "2,3,20,60", "--example", "a.png", "5,5,30.5,30"]
    code, _, errors = predict(["a.png"], *options)
    assert code == 0, errors
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [one["name"] for one in content["categories"]] == ["like the example"]
    assert len(content["annotations"]) == 16


def test_an_image_that_cannot_be_read_is_left_out(predict, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    code, printed, errors = predict(["broken.jpg", "a.png"], "--prompts", "cat")
    assert code == 1 and "1 of 2 images could not be read" in errors and "broken.jpg is left out" in printed
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "say what to look for, by names"),
        (["--prompts", "cat", "--example", "a.png", "1,2,3,4"], "say what to look for, by names"),
        (["--prompts", " , "], "no name is there"),
        (["--prompts", "cat, Cat"], "are both called"),
        (["--prompts", "cat,,dog"], "has an empty name"),
        (["--prompts", "a very " + "very " * 20 + "long name"], "is longer than the 16 tokens"),
        (["--prompts", "cat", "--threshold", "1.5"], "threshold=1.5: give a probability"),
        (["--prompts", "cat", "--background", "0.5"], "--background is for segmentation"),
        (["--example", "a.png", "1,2,3"], "give the box as x0,y0,x1,y1"),
        (["--example", "a.png", "1,2,x,4"], "give the box as x0,y0,x1,y1"),
        (["--example", "a.png", "10,10,5,20"], "is none in its image of 64x48 pixels"),
        (["--example", "nowhere.png", "1,2,3,4"], "nowhere.png"),
    ],
)
def test_what_is_asked_for_wrongly_is_a_sentence(predict, options, sentence):
    code, _, errors = predict(["a.png"], *options)
    assert code == 1 and sentence in errors and errors.count("\n") == 1


def test_two_images_of_one_name_and_a_model_without_boxes(predict, tmp_path):
    (tmp_path / "more").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "more" / "a.png")
    code, _, errors = predict(["a.png", "more/a.png"], "--prompts", "cat")
    assert code == 1 and "2 of the images are called 'a.png'" in errors
    code = run(verb.main, ["a.png", "--prompts", "cat", "--example", "a.png", "1,2,3,4"])
    assert code == 1


def test_boxes_in_a_file_end_with_the_image(tmp_path):
    found = [
        {"label": 1, "score": 0.9, "xyxy": [-5.0, 2, 30, 90]},
        {"label": 0, "score": 0.8, "xyxy": [1, 2, 4, 6]},
    ]
    records = [
        {"image": "x.png", "size": [40, 20], "boxes": found},
        {"image": "y.png", "size": [5, 5], "boxes": []},
    ]
    assert write_coco(tmp_path / "all.json", iter(records), ["a", "b"]) == (2, 2)
    content = json.loads((tmp_path / "all.json").read_text())
    assert [one["bbox"] for one in content["annotations"]] == [[0, 2, 20, 38], [1, 2, 3, 4]]
    assert [one["category_id"] for one in content["annotations"]] == [2, 1] and len(content["images"]) == 2
    assert write_coco(tmp_path / "none.json", iter([]), ["a"]) == (0, 0)
    assert json.loads((tmp_path / "none.json").read_text())["images"] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "none.json"]


def same(boxes, others):
    return all(np.array_equal(getattr(boxes, key), getattr(others, key)) for key in ("xyxy", "scores", "labels"))


def test_in_python_by_names_and_by_examples(predict, head, tmp_path):
    """A head file that says its model is enough; names and examples change without loading anything again."""
    predictor = Predictor.open_vocabulary(head / "whole.safetensors", prompts=["cat", "remote control|remote"])
    configured = Predictor.open_vocabulary(
        head / "owl.py", "cat, remote control|remote", head=head / "head.safetensors"
    )
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    found = predictor([pixels, tmp_path / "b.png"], threshold=0)
    for one, image in zip(found, (tmp_path / "a.png", tmp_path / "b.png"), strict=True):
        assert same(one.boxes, configured(image, threshold=0).boxes) and one.segmentation is None
    boxes = found[0].boxes
    assert predictor.classes == boxes.classes == ("cat", "remote control") and set(boxes.names) == set(boxes.classes)
    surest = predictor(pixels, threshold=float(boxes.scores[3])).boxes
    assert len(surest) == 4 and np.array_equal(surest.scores, boxes.scores[:4]) and len(boxes) > 4
    other = Predictor.open_vocabulary(head / "whole.safetensors", prompts=["dog"])(pixels, threshold=0).boxes
    made_by = []
    for names in (["cat"], ["dog|puppy"], ["dog"]):
        predictor.set_prompts(names)
        made_by.append(predictor.made_by())
    assert same(predictor(pixels, threshold=0).boxes, other) and len({str(one) for one in made_by}) == 3
    example = {"mug": [(pixels, (5, 5, 30, 30)), (tmp_path / "b.png", (2, 3, 20, 60))]}
    predictor.set_examples(example)
    by_example = predictor(pixels, threshold=0).boxes
    again = Predictor.open_vocabulary(head / "whole.safetensors", examples=example)
    assert by_example.classes == ("mug",) and same(by_example, again(pixels, threshold=0).boxes)
    assert not same(by_example, other) and again.made_by() == predictor.made_by()
    predictor.set_prompts("dog")
    assert same(predictor(pixels, threshold=0).boxes, other)
    picture = np.asarray(found[0].over())
    assert picture.shape == pixels.shape and (picture != pixels).any()
    with pytest.raises(UserError, match="background is for segmentation"):
        predictor.set_prompts(["dog"], background=0.5)
    for asked in ({}, {"prompts": ["a"], "examples": example}):
        with pytest.raises(UserError, match="by names"):
            Predictor.open_vocabulary(head / "whole.safetensors", **asked)
    with pytest.raises(UserError, match="says nothing of its model"):
        Predictor.open_vocabulary(head / "head.safetensors", prompts=["cat"])
    with pytest.raises(UserError, match="is of open vocabulary"):
        Predictor(head / "head.safetensors")


def test_a_head_file_that_says_its_model_needs_no_config(predict, head, tmp_path, capsys):
    assert predict(["a.png"], "--prompts", "cat", "--threshold", "0")[0] == 0
    arguments = ["a.png", "--head", str(head / "whole.safetensors"), "--prompts", "cat", "--threshold", "0"]
    assert run(verb.main, [*arguments, "--out", "alone"]) == 0
    first, second = ((tmp_path / folder / "detections.json").read_text() for folder in ("out", "alone"))
    assert first == second
    code = run(verb.main, [*arguments, "--out", "other", "--task", "segment"])
    assert code == 1 and "the model finds boxes; give --task detect" in capsys.readouterr().err


def test_boxes_of_earlier_calls_are_in_the_file_of_all(predict, tmp_path):
    assert predict(["a.png"], "--prompts", "cat", "--threshold", "0")[0] == 0
    code, printed, _ = predict(["a.png", "b.png"], "--prompts", "cat", "--threshold", "0")
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert code == 0 and [one["file_name"] for one in content["images"]] == ["a.png", "b.png"]
    assert "2 images" in printed
    assert "1 of 2 are there already" in printed and {one["image_id"] for one in content["annotations"]} == {1, 2}


def test_boxes_of_other_names_are_not_mixed_in_when_overwriting_ends_early(predict, tmp_path, monkeypatch):
    from siglip2_dense.predict import predictor as module

    assert predict(["a.png", "b.png"], "--prompts", "cat, dog", "--threshold", "0")[0] == 0
    monkeypatch.setattr(module, "BATCH", 1)
    original, calls = os.fsync, []

    def full(stream):
        calls.append(1)
        if len(calls) == 3:  # the first file of the second image
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(stream)

    monkeypatch.setattr(os, "fsync", full)
    code, _, errors = predict(["a.png", "b.png"], "--prompts", "mug", "--threshold", "0", "--overwrite")
    assert code == 1 and "No space left on device" in errors
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [one["file_name"] for one in content["images"]] == ["a.png"]
    assert {one["category_id"] for one in content["annotations"]} == {1} and len(content["categories"]) == 1
