"""Images segmented by names from the command line: known label maps, awkward images, sentences for mistakes."""

import json

import numpy as np
import pytest
from paint import COLOURS, CONFIG
from PIL import Image

from siglip2_dense import Predictor
from siglip2_dense.cli import predict as verb
from siglip2_dense.cli.common import run
from siglip2_dense.errors import UserError
from siglip2_dense.predict.prompts import ask, colours_of, parse_prompts


@pytest.fixture
def predict(tmp_path, capsys):
    """``predict(images, prompts, *options)`` -> (exit code, what was printed, errors); results are in tmp_path/out."""
    config = tmp_path / "config.py"
    config.write_text(CONFIG)

    def call(images, prompts, *options):
        paths = [str(tmp_path / name) for name in images]
        options = ["--prompts", prompts, "--config", str(config), "--out", str(tmp_path / "out"), *options]
        code = run(verb.main, [*paths, *options])
        return code, *capsys.readouterr()

    return call


def painted(*names, height=64, width=64):
    return np.concatenate([np.full((height, width, 3), COLOURS[name], np.uint8) for name in names], axis=1)


def middles(path):
    """The labels in the middle of each stripe of 64 pixels."""
    labels = np.asarray(Image.open(path))
    return labels[len(labels) // 2, 32::64].tolist()


def test_labels_overlay_and_their_meaning(predict, tmp_path):
    Image.fromarray(painted("blue", "red", "olive", "red")).save(tmp_path / "photo.png")
    code, out, _ = predict(["photo.png"], "red|olive, green, blue")
    assert code == 0 and f"{tmp_path}/photo.png -> {tmp_path}/out/photo_overlay.png: red 75%, blue 25%" in out
    labels = Image.open(tmp_path / "out/photo_labels.png")
    assert (
        labels.mode == "P" and labels.size == (256, 64) and middles(tmp_path / "out/photo_labels.png") == [2, 0, 0, 0]
    )
    about = json.loads((tmp_path / "out/photo.json").read_text())
    assert about["image"] == f"{tmp_path}/photo.png" and [about["labels"][str(i)]["name"] for i in range(3)] == [
        "red", "green", "blue",
    ]  # fmt: skip
    assert about["labels"]["1"]["share"] == 0 and about["labels"]["2"]["share"] == pytest.approx(0.25, abs=0.02)
    palette = labels.getpalette()
    for number, one in about["labels"].items():
        assert list(bytes.fromhex(one["colour"][1:])) == palette[3 * int(number) :][:3]
    overlay = np.asarray(Image.open(tmp_path / "out/photo_overlay.png"))
    assert overlay.shape[1] == 256 and overlay.shape[0] > 64  # with a legend below
    first, third = (np.array(palette[i : i + 3]) for i in (0, 6))
    assert (overlay[64:] == first).all(-1).any() and (overlay[64:] == third).all(-1).any()
    assert np.abs(overlay[32, 32] - (0.6 * third + 0.4 * 85)).max() < 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "photo.json", "photo_labels.png", "photo_overlay.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prompts", "options", "expected", "names"),
    [  # olive is as near to red as to green, and nearer to the grey that any other word stands for
        ("red, green", ["--background", "0.6"], [1, 2, 0, 0], ["background", "red", "green"]),
        ("red, green, background", [], [0, 1, 2, 2], ["red", "green", "background"]),
        ("red, background, green", ["--background", "0.9"], [1, 2, 0, 0], ["background", "red", "green"]),
    ],
)
def test_background_by_a_threshold_and_by_its_name(predict, tmp_path, prompts, options, expected, names):
    Image.fromarray(painted("red", "green", "olive", "blue")).save(tmp_path / "a.png")
    code, *_ = predict(["a.png"], prompts, *options)
    labels = json.loads((tmp_path / "out/a.json").read_text())["labels"]
    assert code == 0 and [one["name"] for one in labels.values()] == names
    assert middles(tmp_path / "out/a_labels.png") == expected
    assert (labels["0"]["colour"] == "#000000") == (names[0] == "background")


def test_images_of_every_kind(predict, tmp_path):
    """Grey, with alpha, in a palette, of one bit, on its side; and of one pixel, a line and a large one."""
    blue = Image.fromarray(painted("blue", "red", height=50, width=70))
    kinds = {
        "alpha.png": blue.convert("RGBA"), "palette.png": blue.convert("P"), "rgb.webp": blue,
        "cmyk.jpg": blue.convert("CMYK"),
        "grey.png": Image.fromarray(np.full((33, 47), 128, np.uint8)),
        "deep.png": Image.fromarray(np.full((33, 47), 128 * 257, np.uint16)), "bit.png": Image.new("1", (30, 20), 1),
        "pixel.png": Image.new("RGB", (1, 1), (0, 0, 255)), "line.png": Image.new("RGB", (700, 1), (0, 0, 255)),
        "large.png": Image.new("RGB", (2900, 2100), (0, 0, 255)),
    }  # fmt: skip
    for name, image in kinds.items():
        image.save(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    blue.save(tmp_path / "turned.jpg", exif=exif)
    code, out, err = predict([*kinds, "turned.jpg"], "red, blue, grey")
    assert code == 0, err
    found = {name: Image.open(tmp_path / f"out/{name.split('.')[0]}_labels.png") for name in (*kinds, "turned.jpg")}
    assert all(found[name].size == image.size for name, image in kinds.items())
    assert found["turned.jpg"].size == (50, 140)
    for name in ("alpha.png", "palette.png", "rgb.webp"):
        assert np.asarray(found[name])[25, [30, 110]].tolist() == [1, 0]
    assert np.asarray(found["turned.jpg"])[[30, 110], 25].tolist() == [1, 0]
    for name, label in (
        ("grey.png", 2),
        ("deep.png", 2),
        ("bit.png", 2),
        ("pixel.png", 1),
        ("line.png", 1),
        ("large.png", 1),
    ):
        assert np.unique(found[name]).tolist() == [label], name
    overlay = Image.open(tmp_path / "out/large_overlay.png")
    assert overlay.size[0] == 2048 and Image.open(tmp_path / "out/pixel_overlay.png").size[0] == 256
    assert out.count(" -> ") == len(kinds) + 1


def test_an_image_that_cannot_be_read_is_named_and_the_rest_goes_on(predict, tmp_path):
    Image.fromarray(painted("red")).save(tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(tmp_path / "floats.tif")
    images = ["broken.jpg", "floats.tif", "none.png", "good.png"]
    code, out, err = predict(images, "red, blue")
    assert code == 1 and "error: 3 of 4 images could not be read: " in err
    assert "broken.jpg is left out: " in out and "holds floating-point numbers" in out and "no such file" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good.json", "good_labels.png", "good_overlay.png"}


def test_many_names_from_a_file(predict, tmp_path):
    """Labels beyond 255 take 16 bits; names of one thing may stand between commas, as in lists of data sets."""
    names = [*(f"thing {i}" for i in range(300)), "azure, blue"]
    (tmp_path / "names.json").write_text(json.dumps(names))
    Image.fromarray(painted("blue", "grey")).save(tmp_path / "a.png")
    code, *_ = predict(["a.png"], str(tmp_path / "names.json"))
    labels = Image.open(tmp_path / "out/a_labels.png")
    assert code == 0 and labels.mode.startswith("I") and middles(tmp_path / "out/a_labels.png") == [300, 0]
    assert json.loads((tmp_path / "out/a.json").read_text())["labels"]["300"]["name"] == "azure, blue"


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (" , ", (), "no name is there; say what to look for"),
        ("red, , blue", (), "'' has an empty name"),
        ("red, blue|", (), r"'blue\|' has an empty name"),
        ("red, Red", (), "the labels 0 and 1 are both called 'Red'"),
        ("red|olive, blue, Olive", (), "'Olive' stands for both 'red' and 'Olive'; give each its own names"),
        ("red|olive, blue|olive", (), "'olive' stands for both 'red' and 'blue'"),
        ("red", ["--background", "0.5"], "'red' alone is sure everywhere"),
        ("red, blue", ["--background", "1.5"], "give a probability between 0 and 1"),
        ("red, blue", ["--head", "head.safetensors"], "head.safetensors: no such file"),
        ("red, blue", ["--encoder", "none", "--config", "probe_demo"], "DenseProbe cannot be asked for other classes"),
    ],
)
def test_what_is_asked_for_wrongly_is_a_sentence(predict, tmp_path, prompts, options, message):
    import re

    Image.fromarray(painted("red")).save(tmp_path / "a.png")
    code, _, err = predict(["a.png"], prompts, *options)
    assert code == 1 and re.search(message, err) and not (tmp_path / "out").exists()


def test_images_of_one_name_are_not_written_over_one_another(predict, tmp_path):
    for name in ("a.png", "b/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(painted("red")).save(tmp_path / name)
    code, _, err = predict(["a.png", "b/a.png"], "red, blue")
    assert code == 1 and "2 of the images are called 'a.png'; predict them" in err


def test_prompts():
    assert parse_prompts(" wicker chair,sofa | couch, floor") == (
        ["wicker chair", "sofa", "floor"], {"sofa": ["sofa", "couch"]},
    )  # fmt: skip
    assert parse_prompts("sofa|Sofa, floor")[0] == ["sofa", "floor"]
    assert parse_prompts("x" * 5000) == (["x" * 5000], {})


def test_what_models_are_asked_for():
    class Model:
        def set_vocabulary(self, *asked):
            self.asked = asked

    model, queries = Model(), {"red": ["red", "olive"]}
    ask(model, ["red", "background"], queries)
    assert model.asked == (["red", "background"], queries)
    ask(model, ["red", "background"], queries, 0.5)
    assert model.asked == (["background", "red"], queries, 0.5)
    ask(model, ["red"], queries, 0.5)
    assert model.asked == (["background", "red"], {**queries, "background": []}, 0.5)


def test_colours_are_distinct_and_black_is_background():
    colours = colours_of([f"{i}" for i in range(1000)])
    assert len(set(colours)) == 1000 and (0, 0, 0) not in colours
    assert colours_of(["background", "red"])[0] == (0, 0, 0)


def test_in_python(predict, tmp_path):
    """The same as from the command line; other names later, without loading anything again."""
    pixels = painted("blue", "red", "olive", "red")
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    assert predict(["photo.png"], "red|olive, green, blue")[0] == 0
    predictor = Predictor.open_vocabulary(tmp_path / "config.py", prompts=["red|olive", "green", "blue"])
    found = predictor(pixels).segmentation
    assert predictor.classes == found.names == ("red", "green", "blue")
    assert np.array_equal(found.ids, np.asarray(Image.open(tmp_path / "out/photo_labels.png")))
    predictor.set_prompts("red, green", background=0.6)
    found = predictor(pixels).segmentation
    assert found.names == ("background", "red", "green") and found.ids[32, 32::64].tolist() == [0, 1, 0, 1]
    assert found.colours[0] == (0, 0, 0)
    with pytest.raises(UserError, match="ZeroShot cannot be asked for examples"):
        predictor.set_examples({"a": [(pixels, (0, 0, 9, 9))]})
    with pytest.raises(UserError, match="are no names"):
        predictor.set_prompts([1, 2])
    with pytest.raises(UserError, match="is neither a file nor one of ours"):
        Predictor.open_vocabulary("zeroshot_nothing", prompts=["a"])
