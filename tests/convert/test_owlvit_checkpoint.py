"""OWL-ViT in transformers' layout, through files: the same logits and boxes there and here, in and out."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from siglip2_dense import head_file
from siglip2_dense.cli import convert_head as verb
from siglip2_dense.contracts import Sample
from siglip2_dense.convert import owlvit
from siglip2_dense.errors import UserError
from siglip2_dense.registry import MODELS, build

NAMES = ["a cat", "remote control", "dog"]
NEAR = 1e-4


def theirs(folder, patch=16, size=64, heads=4):
    """A small random model of transformers in a folder, with heads that say something."""
    from transformers import OwlViTConfig, OwlViTForObjectDetection

    config = OwlViTConfig(
        vision_config=dict(
            hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=heads, image_size=size,
            patch_size=patch,
        ),
        text_config=dict(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16
        ),
        projection_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = OwlViTForObjectDetection(config).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("class_head", "box_head", "layer_norm")):  # of the size that training gives them
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return OwlViTForObjectDetection.from_pretrained(folder).eval()


def ours(folder, tmp_path, **changes):
    """Through a head file, as a user would."""
    content, config = owlvit.convert(folder)
    head_file.save(tmp_path / "head.safetensors", content)
    config["heads"]["detection"]["task"] = dict(type="Detection", classes=NAMES, templates="name")
    model = build(MODELS, {**config, **changes}).eval()
    held = head_file.read(tmp_path / "head.safetensors")
    described = {
        "detection": head_file.describe(
            model.heads["detection"], model.tasks["detection"], config["heads"]["detection"]
        )
    }
    head_file.load_into(model, described, held, "head.safetensors")
    return model


def outputs(reference, model, pixels, **options):
    """Logits and boxes of transformers, and ours, of the same pixels."""
    mean, std = model.encoder.mean, model.encoder.std
    ids = model.text_encoder().tokenize(NAMES)
    with torch.no_grad():
        found = reference(input_ids=ids, pixel_values=((pixels.float() - mean) / std)[None], **options)
        raw = model.raw(model.features([pixels]))["detection"]
    return (found.logits[0], found.pred_boxes[0]), (raw.logits(), raw.boxes[0])


def picture(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("patch", "size"), [(16, 64), (32, 96), (14, 70)])
def test_logits_and_boxes_are_those_of_transformers(tmp_path, patch, size):
    reference = theirs(tmp_path / "hub", patch, size)
    model = ours(tmp_path / "hub", tmp_path)
    for a, b in [outputs(reference, model, picture(size, size))]:
        assert a[0].shape == ((size // patch) ** 2, 3) and a[0].std() > 0.1 and a[1].std() > 0.05
        assert (a[0] - b[0]).abs().max() < NEAR and (a[1] - b[1]).abs().max() < NEAR


@pytest.mark.parametrize("size", [(96, 64), (48, 128), (64, 128), (32, 128)])
def test_on_grids_that_are_not_square(tmp_path, size):
    """Of the last there are as many cells as in the position table, in another shape."""
    reference = theirs(tmp_path / "hub")
    model = ours(tmp_path / "hub", tmp_path, inference=dict(mode="whole"))
    a, b = outputs(reference, model, picture(*size), interpolate_pos_encoding=True)
    assert (a[0] - b[0]).abs().max() < NEAR and (a[1] - b[1]).abs().max() < NEAR


def test_scores_of_a_padded_image_in_its_pixels(tmp_path):
    reference = theirs(tmp_path / "hub")
    model = ours(tmp_path / "hub", tmp_path)
    image = picture(48, 64)
    found = model.predict([image], [Sample(original_size=(96, 128))])[0]["detection"]
    square = torch.nn.functional.pad(image.float(), (0, 0, 0, 16), value=128.0)
    (logits, boxes), _ = outputs(reference, model, square)
    best = logits.sigmoid().flatten().argmax()
    assert found.scores[0].item() == pytest.approx(logits.sigmoid().max().item(), abs=NEAR)
    x, y, w, h = (boxes[best // 3] * torch.tensor([1, 64 / 48, 1, 64 / 48])).clamp(0, 1).tolist()
    expected = [128 * (x - w / 2), 96 * (y - h / 2), 128 * (x + w / 2), 96 * (y + h / 2)]
    assert found.boxes[0].tolist() == pytest.approx(expected, abs=0.05) and found.labels[0] == best % 3


def test_an_example_asks_as_it_does_there(tmp_path):
    """Of a picture as a whole, the only box that transformers takes."""
    reference = theirs(tmp_path / "hub")
    model = ours(tmp_path / "hub", tmp_path)
    mean, std = model.encoder.mean, model.encoder.std
    for seed in range(3):
        query = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        seen, shown = (((one.float() - mean) / std)[None] for one in (picture(64, 64), query))
        model.set_examples({"it": [(query, (0, 0, 64, 64))]})
        with torch.no_grad():
            found = reference.image_guided_detection(pixel_values=seen, query_pixel_values=shown)
            raw = model.raw(model.features([picture(64, 64)]))["detection"]
        assert found.logits.shape == (1, 16, 1) and found.logits.std() > 0.1
        assert (found.logits[0] - raw.logits()).abs().max() < NEAR
        assert (found.target_pred_boxes - raw.boxes).abs().max() < NEAR


def test_there_and_back_is_the_same_file(tmp_path):
    theirs(tmp_path / "hub")
    model = ours(tmp_path / "hub", tmp_path)
    owlvit.export(model, tmp_path / "back")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("hub", "back"))
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_what_was_trained_here_is_read_by_transformers(tmp_path):
    """Both towers of CLIP, on images larger than its own: the position table goes along."""
    from transformers import OwlViTForObjectDetection

    encoder = dict(
        type="FrozenEncoder", name="clip-base-16-224", weights="random", trainable=["q", "v"],
        model_args=dict(depth=2, embed_dim=48, num_heads=4, num_classes=32, img_size=48),
    )  # fmt: skip
    text = dict(
        model_args=dict(embed_dim=32, width=32, heads=2, layers=2, context_length=16), cache=False, trainable=["q"]
    )
    heads = dict(head=dict(type="OWLViTHead"), task=dict(type="Detection", classes=NAMES, templates="name"))
    model = build(MODELS, dict(
        type="OWLViT", encoder=encoder, text=text, heads=dict(detection=heads), encoder_optim=dict(lr=1.0),
        inference=dict(mode="square", size=80),
    )).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    owlvit.export(model, tmp_path / "out")
    for size in (79, 50):  # of the second as many whole patches are in the tower's own table
        model.inference["size"] = size
        with pytest.raises(UserError, match=f"images of {size} pixels are no whole patches of 16"):
            owlvit.export(model, tmp_path / "none")
    model.inference["size"] = 80
    reference = OwlViTForObjectDetection.from_pretrained(tmp_path / "out").eval()
    assert reference.config.vision_config.image_size == 80
    a, b = outputs(reference, model, picture(80, 80))
    assert (a[0] - b[0]).abs().max() < NEAR and (a[1] - b[1]).abs().max() < NEAR


def test_towers_that_transformers_has_not_are_refused(tmp_path):
    encoder = dict(
        type="FrozenEncoder", name="siglip2-base-16-256", weights="random",
        model_args=dict(depth=1, embed_dim=48, num_heads=4),
    )  # fmt: skip
    text = dict(type="TextEncoder", name="clip-base-16-224", weights="random", cache=False)
    text["model_args"] = dict(embed_dim=48, width=32, heads=2, layers=1)
    heads = dict(head=dict(type="OWLViTHead"), task=dict(type="Detection", classes=NAMES))
    with pytest.raises(UserError, match="was not trained with"):
        build(MODELS, dict(type="OWLViT", encoder=encoder, text=text, heads=dict(detection=heads)))
    encoder = dict(type="FrozenEncoder", name="clip-base-16-224", weights="random")
    encoder["model_args"] = dict(depth=1, embed_dim=48, num_heads=4, num_classes=16)
    text = dict(model_args=dict(embed_dim=16, width=32, heads=2, layers=1), cache=False)
    model = build(MODELS, dict(type="OWLViT", encoder=encoder, text=text, heads=dict(detection=heads)))
    with pytest.raises(UserError, match="with texts as wide as their tower"):
        owlvit.export(model, tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("class_head.dense0.weight"), "is no OWL-ViT in transformers' layout"),
        (lambda t: t.pop("box_head.dense2.weight"), r"'box_head\.dense2\.weight' is missing, not \(4, 48\)"),
        (lambda t: t.update({"objectness_head.dense0.weight": torch.zeros(1)}), "is OWLv2"),
        (lambda t: t.pop("owlvit.vision_model.pre_layernorm.weight"), r"norm_pre\.weight is missing"),
        (lambda t: t.pop("owlvit.text_model.final_layer_norm.bias"), r"ln_final\.bias is missing"),
    ],
)
def test_files_that_are_none(tmp_path, change, sentence):
    theirs(tmp_path / "hub")
    path = tmp_path / "hub" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(UserError, match=sentence):
        owlvit.convert(tmp_path / "hub")
    with pytest.raises(UserError, match="has none of model"):
        owlvit.convert(tmp_path)


def test_the_verb_writes_a_head_file_and_its_config_and_a_folder_again(tmp_path, capsys):
    theirs(tmp_path / "hub")
    out = tmp_path / "owl.safetensors"
    verb.main(["owlvit", str(tmp_path / "hub"), str(out)])
    assert "owl.py" in capsys.readouterr().out and head_file.read(out).encoder.aligned_width == 32
    verb.main(["owlvit", str(out), str(tmp_path / "again"), "--config", str(tmp_path / "owl.py")])
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("hub", "again"))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["projection_dim"] == 32
