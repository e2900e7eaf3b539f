"""Segmentation without training: label maps known by hand, windows, and whole models with random weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from siglip2_dense.contracts import Alignment, EncoderFacts, Features, Geometry, Sample
from siglip2_dense.errors import UserError
from siglip2_dense.models import ZeroShot
from siglip2_dense.registry import MODELS, build

COLOURS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0), "olive": (1.0, 1.0, 0)}


@MODELS.register_module()
class ColourTexts(nn.Module):
    """Texts whose vectors are known: colours by name."""

    fingerprint, tokenization = "colours", {"names": "none"}

    def __init__(self, name="colours", weights="hub", width=3):
        super().__init__()
        self.width = width

    def encode(self, class_names, templates="single", average=True):
        known = [F.pad(torch.tensor(COLOURS.get(name, (0.1, 0.1, 0.1))), (0, self.width - 3)) for name in class_names]
        return F.normalize(torch.stack(known), dim=-1)


class ColourEncoder(nn.Module):
    """An encoder whose maps in the text space are the mean colours of patches of 8 pixels."""

    precision, trains, trainable = "fp32", False, "none"

    def __init__(self, width=3):
        super().__init__()
        self.facts = EncoderFacts(
            name="colours", fingerprint="", widths=(3,), strides=(8,), prefix=(), pooled="mean", pooled_width=3,
            final_norm=False, mean=(0, 0, 0), std=(1, 1, 1), native_grid=None, position_kernel=None, parameters=0,
            aligned_width=width,
        )  # fmt: skip
        self.asked = []

    def blocks_for(self, aligned):
        if aligned.mode == "qkv" and aligned.mlp:
            raise UserError("not this way")

    def features(self, images, taps=None, canvas=None, pooled=False, aligned=None):
        self.asked.append((taps, canvas, pooled, aligned, len(images)))
        pixels = torch.stack(list(images)).float()
        size = tuple(pixels.shape[-2:])
        place = Geometry(size, (0, 0, *size), size, size, size)
        return Features({}, (place,) * len(images), aligned=F.avg_pool2d(pixels, 8))


def colours(**options):
    settings = dict(classes=["red", "green", "blue"], text=dict(type="ColourTexts"), encoder=ColourEncoder())
    return ZeroShot(**{**settings, **options})


def painted(*columns, height=24, width=16):
    """Upright stripes of colours, each ``width`` wide."""
    stripes = [torch.tensor(COLOURS[name])[:, None, None].expand(3, height, width) * 200 for name in columns]
    return torch.cat(stripes, dim=2).to(torch.uint8)


def test_known_cosines_give_the_known_label_map():
    model = colours().eval()
    image = painted("blue", "red", "green", "red")
    found = model.predict([image])[0]["segmentation"]
    expected = torch.tensor([2, 0, 1, 0]).repeat_interleave(16).expand(24, 64)
    assert torch.equal(found, expected)
    assert model.encoder.asked == [((), None, False, Alignment(), 1)]


def test_raw_maps_are_scaled_cosines_of_cells_with_unit_length():
    """Olive is at 45 degrees to red and to green, and however dark at the same."""
    model = colours(scale=10.0)
    for brightness in (1, 0.25):
        raw = model([(painted("olive") * brightness).to(torch.uint8)])["segmentation"]
        assert raw.shape == (1, 3, 3, 2) and raw.dtype == torch.float32
        cosine = torch.tensor([0.5**0.5, 0.5**0.5, 0])
        assert (raw - 10 * cosine.view(1, 3, 1, 1)).abs().max() < 1e-5


def test_several_names_stand_for_one_class():
    model = colours(classes=["warm", "blue"], queries=dict(warm=["red", "olive"]))
    found = model.predict([painted("red", "blue", "olive")])[0]["segmentation"]
    assert torch.equal(found, torch.tensor([0, 1, 0]).repeat_interleave(16).expand(24, 48))


def test_unsure_pixels_are_background():
    """Olive is as near to red as to green: at the scale 10 both have exp(7.07) / (2 exp(7.07) + 2) < 0.5."""
    options = dict(classes=["background", "red", "green"], queries=dict(background=["blue"]), scale=10.0)
    image = painted("red", "olive", "blue")
    for threshold, expected in ((None, [1, 1, 0]), (0.6, [1, 0, 0])):
        found = colours(**options, background_threshold=threshold).predict([image])[0]["segmentation"]
        assert found[:, 8::16].tolist() == [expected] * 24  # in the middle of each stripe
    with pytest.raises(UserError, match="would become 'red'"):
        colours(background_threshold=0.5)
    with pytest.raises(UserError, match="'red' alone is sure everywhere"):
        colours(classes=["background", "red"], queries=dict(background=[]), background_threshold=0.5)


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("flip", [False, True])
def test_windows_equal_the_whole_on_a_constant_image(threshold, flip):
    options = dict(classes=["background", "green"], queries=dict(background=["red"]), background_threshold=threshold)
    image = painted("green", height=56, width=72)
    whole = colours(**options).predict([image])[0]["segmentation"]
    model = colours(**options, inference=dict(mode="slide", crop=24, stride=16, flip=flip))
    found = model.predict([image])[0]["segmentation"]
    assert torch.equal(found, whole) and whole.unique().tolist() == [1]
    assert sum(count for *_, count in model.encoder.asked) == 12 * (2 if flip else 1)  # 3 rows of 4 windows


def test_images_of_an_evaluation_come_at_their_original_sizes():
    model = colours(inference=dict(mode="slide", crop=32, stride=16))
    images = [painted("red", "blue"), painted("green", height=40, width=32)]
    samples = [
        Sample(image=image, original_size=size) for image, size in zip(images, [(48, 64), (80, 64)], strict=True)
    ]
    found = model(images, samples, mode="predict")
    assert [tuple(one["segmentation"].shape) for one in found] == [(48, 64), (80, 64)]
    assert found[0]["segmentation"][:, :24].unique().tolist() == [0]
    assert found[0]["segmentation"][:, -24:].unique().tolist() == [2]


def test_a_vocabulary_after_another():
    """The same as a model built for it, also for a class of several names, and without the old background."""
    model = colours(classes=["background", "red"], background_threshold=0.6, scale=10)
    image = painted("red", "olive", "blue", "green")
    model.set_vocabulary(["blue", "green, olive"], {"blue": ["blue", "red"]})
    built = colours(classes=["blue", "green, olive"], queries={"blue": ["blue", "red"]}, scale=10)
    assert model.describe() == built.describe() and model.describe()["background_threshold"] is None
    assert torch.equal(model.heads["segmentation"].text, built.heads["segmentation"].text)
    for one in (model, built):
        assert one.predict([image])[0]["segmentation"][0, 8::16].tolist() == [0, 1, 0, 1]
    model.to(torch.float64).set_vocabulary("voc20")
    text = model.heads["segmentation"].text
    assert text.shape == (20, 3) and text.dtype == torch.float64 and "text" not in model.state_dict()


def test_synonyms_are_a_setting_of_the_model():
    model = colours(classes=["red, green", "blue"], synonyms="mean")
    assert torch.allclose(model.heads["segmentation"].text[0], torch.tensor([0.5**0.5, 0.5**0.5, 0]))
    model.set_vocabulary(["blue, green"])
    assert torch.allclose(model.heads["segmentation"].text, torch.tensor([[0, 0.5**0.5, 0.5**0.5]]))
    assert colours(classes=["red, green", "blue"], synonyms="first").describe()["queries"]["red, green"] == ["red"]


def test_it_has_nothing_to_train_and_says_what_it_did():
    model = colours(queries=dict(red=["red", "olive"]), scale=7, templates=["a {}"], alignment=dict(mode="qkv"))
    assert not model.state_dict() and not list(model.parameters())
    assert model.taps == () and model.pooled is False and model.aligned == Alignment("qkv")
    assert model.describe() == {
        "templates": ["a {}"],
        "alignment": dict(mode="qkv", residual="none", mlp=False),
        "scale": 7,
        "classes": ["red", "green", "blue"],
        "queries": {"red": ["red", "olive"], "green": ["green"], "blue": ["blue"]},
        "synonyms": "each",
        "background_threshold": None,
    }
    assert model.texts == dict(type="ColourTexts", fingerprint="colours", tokenization={"names": "none"})
    with pytest.raises(UserError, match="nothing to learn"):
        model([painted("red")], [Sample()], mode="loss")
    assert model.to(torch.float64).heads["segmentation"].text.dtype == torch.float64  # it moves along


def test_what_does_not_fit_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="did you mean 'residual'"):
        colours(alignment=dict(residuals="own"))
    with pytest.raises(UserError, match="4 dimensions, the maps of colours 3"):
        colours(text=dict(type="ColourTexts", width=4))
    with pytest.raises(UserError, match="no text space"):
        colours(encoder=ColourEncoder(width=None))
    with pytest.raises(UserError, match=r"text=dict\(type"):
        colours(text=None)
    with pytest.raises(UserError, match="not this way"):
        colours(alignment=dict(mode="qkv", mlp=True))
    with pytest.raises(UserError, match="nothing trains here"):
        colours(encoder=dict(type="FrozenEncoder", name="clip-base-16-224", trainable="all"))
    tiny = dict(type="FrozenEncoder", name="clip-base-16-224", weights="random", model_args=dict(depth=2))
    with pytest.raises(UserError, match="clip-base-32-224 was not trained with clip-base-16-224"):
        colours(encoder=tiny, text=dict(name="clip-base-32-224"))
    with pytest.raises(UserError, match="text='clip'"):
        colours(encoder=tiny, text="clip")
    for scale in (0, -1, "large", True):
        with pytest.raises(UserError, match="above 0"):
            colours(scale=scale)


TINY = {  # towers with random weights: a CLIP, a SigLIP, one at native aspect
    "clip-base-16-224": dict(depth=2),
    "siglip2-base-16-256": dict(depth=2),
    "siglip2-base-16-naflex": dict(depth=2),
}


@pytest.mark.parametrize("name", TINY)
def test_whole_models_with_random_weights(name):
    """The class map is the arg-max of cosines of ``dense_embed`` on each window, enlarged and averaged by hand."""
    encoder = build(MODELS, dict(type="FrozenEncoder", name=name, weights="random", model_args=TINY[name]))
    width = encoder.facts.aligned_width
    windows = dict(mode="slide", crop=64, stride=32)
    model = colours(encoder=encoder, text=dict(type="ColourTexts", width=width), inference=windows)
    texts = F.normalize(torch.randn(3, width, generator=torch.Generator().manual_seed(0)), dim=1)
    model.heads["segmentation"].text = texts
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    total, count = torch.zeros(3, 64, 96), torch.zeros(64, 96)
    for left in (0, 32):
        dense = encoder.dense_embed(image[None, :, :, left : left + 64])
        cosine = torch.einsum("behw,ke->bkhw", F.normalize(dense, dim=1), texts)
        total[:, :, left : left + 64] += F.interpolate(cosine, (64, 64), mode="bilinear", align_corners=False)[0]
        count[:, left : left + 64] += 1
    found = model.predict([image])[0]["segmentation"]
    assert found.shape == (64, 96)
    assert (found == (total / count).argmax(0)).float().mean() > 0.999


def test_the_text_encoder_is_by_default_the_encoders_own():
    """CLIP's tokenizer comes with open_clip; the weights of both towers are random."""
    name = "clip-base-16-224"
    model = ZeroShot(
        encoder=dict(type="FrozenEncoder", name=name, weights="random:1", model_args=dict(depth=2)),
        text=dict(model_args=dict(layers=1), cache=False),
        classes=["cat", "dog"],
        templates=["a photo of a {}."],
    )
    own = build(MODELS, dict(type="TextEncoder", name=name, weights="random:1", model_args=dict(layers=1), cache=False))
    assert torch.equal(model.heads["segmentation"].text, own.encode(["cat", "dog"], ["a photo of a {}."]).cpu())
    assert [model.texts[key] for key in ("type", "name", "weights")] == ["TextEncoder", name, "random:1"]
    assert model.texts["fingerprint"] == own.fingerprint


def test_a_head_file_is_refused_where_nothing_trains():
    from mmengine.config import Config

    from siglip2_dense.engine.evaluate import test

    config = Config(dict(seed=0, model=dict(type="ZeroShot"), test_dataloader=dict(dataset=dict(type="ADE20K"))))
    with pytest.raises(UserError, match=r"ZeroShot has nothing to train; leave out the head file head\.safetensors"):
        test(config, "head.safetensors")


def test_swapping_the_encoder_swaps_its_texts(tmp_path):
    from argparse import Namespace

    from siglip2_dense.cli.common import load_config
    from siglip2_dense.engine.configs import find_config

    ours = find_config("zeroshot_voc20")
    text = ours.read_text().replace('"_base_/', f'"{ours.parent}/_base_/')
    (tmp_path / "own.py").write_text(f"{text}\nmodel['text'] = dict(name='clip-base-16-224', cache=False)\n")
    common = dict(config=str(tmp_path / "own.py"), weights=None, work_dir=None, launcher="none", cfg_options=[])
    assert load_config(Namespace(encoder=None, **common)).model.text == dict(name="clip-base-16-224", cache=False)
    assert load_config(Namespace(encoder="clip-base-32-224", **common)).model.text == dict(cache=False)
