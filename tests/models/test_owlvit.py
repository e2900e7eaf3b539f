"""OWL-ViT as a model: whole, with small random towers of CLIP, SigLIP and NaFlex."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from siglip2_dense.contracts import Detections, Sample
from siglip2_dense.engine.optimizers import JointOptimWrapper, optimizers_of
from siglip2_dense.errors import UserError
from siglip2_dense.losses.detection import corners
from siglip2_dense.models.owlvit import squared
from siglip2_dense.registry import MODELS, build

NAMES = ["cat", "dog_(hound)", "T--shirt"]
SMALL = dict(depth=3, embed_dim=48, num_heads=4, num_classes=32)
TEXT = dict(model_args=dict(embed_dim=32, width=32, heads=4, layers=2), cache=False)
PIXELS = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TRAINS = dict(
    encoder=dict(trainable="all"), text=dict(trainable="all"), encoder_optim=dict(), text_optim=dict(lr_mult=0.04)
)


def config(encoder=None, text=None, task=None, optim=None, **model):
    settings = dict(
        type="OWLViT",
        encoder=dict(
            type="FrozenEncoder", name="clip-base-16-224", weights="random", model_args=SMALL, **(encoder or {})
        ),
        text={**TEXT, **(text or {})},
        heads=dict(
            detection=dict(
                head=dict(type="OWLViTHead"),
                task=dict(type="Detection", **{"classes": NAMES, **(task or {})}),
                optim=optim or dict(type="Adam", lr=1e-3),
            )
        ),
        inference=dict(mode="square", size=64),
    )
    return {**settings, **model}


def built(**settings):
    torch.manual_seed(0)
    model = build(MODELS, config(**settings)).eval()
    for parameter in model.heads.parameters():  # what a head begins with hides mistakes
        nn.init.normal_(parameter, std=0.2)
    return model


def siglip(name="siglip2-base-16-256", inference=None, **encoder):
    settings = config()
    settings["encoder"] = dict(
        type="FrozenEncoder",
        name=name,
        weights="random",
        model_args=dict(depth=2, embed_dim=48, num_heads=4),
        **encoder,
    )
    settings["text"] = dict(type="Words", width=48)
    settings["inference"] = inference or settings["inference"]
    torch.manual_seed(0)
    return build(MODELS, settings).eval()


@MODELS.register_module()
class Words(nn.Module):
    """Texts without a tower: a vector for each sentence."""

    fingerprint, tokenization = "words", {}

    def __init__(self, name="", weights="", width=48, cache=True):
        super().__init__()
        self.width = width

    def too_long(self, class_names, templates, clean):
        return []

    def encode(self, class_names, templates, average=True, clean=True):
        rows = [torch.randn(1, self.width, generator=torch.Generator().manual_seed(len(n))) for n in class_names]
        rows = F.normalize(torch.stack(rows), dim=-1)
        return rows[:, 0] if average else rows


@pytest.fixture(scope="module")
def model():
    return built()


def predicted(model, image=PIXELS, original=(140, 180)):
    return model.predict([image], [Sample(original_size=original)])[0]["detection"]


def boxed(count=2, size=(70, 90), **more):
    boxes = torch.tensor([[5.0, 6, 40, 50], [30, 20, 80, 60], [1, 1, 20, 69]])[:count]
    names = (("cat",), ("dog", "hound"), ("bird",))[:count]
    return Sample(boxes=boxes, box_names=names, path="x", original_size=size, **more)


def test_a_prediction_written_out(model):
    """From pixels to boxes of the image: a grey square, the towers, the formulas of the head, and back."""
    size = (round(70 * 64 / 90), 64)
    square = torch.full((3, 64, 64), 128.0)
    square[:, : size[0]] = F.interpolate(PIXELS[None].float(), size, mode="bilinear", antialias=True)[0]
    (tap,) = model.taps
    with torch.no_grad():
        features = model.encoder.features(square[None], model.taps)
        tokens = features.maps[tap].flatten(2).transpose(1, 2) * features.prefix[tap]
        head = model.heads["detection"]
        tokens = F.layer_norm(tokens, (48,), head.norm.weight, head.norm.bias, 1e-5)[0]
        text = model.text_encoder().encode(["cat", "dog hound", "t-shirt"], "7-best", average=False, clean="canonical")
        cosines = torch.einsum("ne,qpe->npq", F.normalize(head.classes(tokens), dim=-1), text)
        logits = (cosines + head.shift(tokens)[:, None]) * (F.elu(head.scale(tokens)) + 1)[:, None]
        scores = logits.mean(1).sigmoid()
        raw = model.raw(features)["detection"]
    found = predicted(model)
    order = scores.flatten().sort(descending=True)
    assert isinstance(found, Detections) and len(found.scores) == 16 * 3
    assert torch.allclose(found.scores, order.values, atol=1e-5)
    gaps = order.values.diff().abs().min()
    assert gaps > 1e-7
    assert torch.equal(found.labels, order.indices % 3)
    boxes = raw.boxes[0, order.indices // 3] * 64 / torch.tensor([64, size[0], 64, size[0]])
    expected = corners(boxes.clamp(0, 1)) * torch.tensor([180, 140, 180, 140])
    assert torch.allclose(found.boxes, expected, atol=1e-2)


def test_a_batch_of_several_sizes_is_predicted_as_each_image_alone(model):
    images = [PIXELS, PIXELS[:, :64, :64], PIXELS[:, :, :33], PIXELS]
    samples = [Sample(original_size=tuple(image.shape[-2:])) for image in images]
    together = model.predict(images, samples)
    for image, sample, one in zip(images, samples, together, strict=True):
        (alone,) = model.predict([image], [sample])
        assert torch.allclose(one["detection"].boxes, alone["detection"].boxes, atol=1e-2)
        assert torch.allclose(one["detection"].scores, alone["detection"].scores, atol=1e-5)


def test_a_square():
    image = torch.full((3, 20, 40), 200, dtype=torch.uint8)
    pixels, size = squared(image, 80)
    assert size == (40, 80) and pixels.shape == (3, 80, 80)
    assert (pixels[:, :40] == 200).all() and (pixels[:, 40:] == 128.0).all()
    same, size = squared(image[:, :, :20], 20)
    assert size == (20, 20) and torch.equal(same, image[:, :, :20].float())
    assert squared(image[:, :1], 20)[1] == (1, 20)  # thinner than a pixel


@pytest.mark.parametrize(("mode", "cells"), [(dict(mode="square", size=56), 4 * 4), (dict(mode="whole"), 5 * 7)])
def test_patches_of_14_in_squares_and_at_their_own_aspect(mode, cells):
    settings = config(inference=mode)
    settings["encoder"]["name"] = "clip-large-14-224"
    found = predicted(build(MODELS, settings).eval())
    assert len(found.scores) == cells * 3 and found.boxes.isfinite().all() and found.boxes.abs().max() < 400


@pytest.mark.parametrize(("mode", "cells"), [(dict(mode="square", size=56), 4 * 4), (dict(mode="whole"), 5 * 6)])
def test_a_square_of_no_whole_patches(mode, cells):
    assert len(predicted(built(inference=mode)).scores) == cells * 3


def test_targets_lie_where_their_images_are(model):
    """In training too the image becomes a square, and its boxes go with it."""
    features = model.features([PIXELS])
    (place,) = features.geometry
    assert (place.padded, place.box, place.resized) == ((64, 64), (0, 0, 50, 64), (70, 90))
    whole = built(inference=dict(mode="whole")).features([PIXELS]).geometry[0]
    assert (whole.padded, whole.box) == ((80, 96), (5, 3, 70, 90))


def test_siglip_tokens_are_taken_as_they_are():
    model = siglip()
    head = model.heads["detection"]
    assert not head.merges and head.classes.out_features == 48
    found = predicted(model)
    assert len(found.scores) == 16 * 3 and found.scores.median() < 0.1  # before training


def test_naflex_takes_images_at_their_own_aspect():
    model = siglip("siglip2-base-16-naflex", dict(mode="whole"), sequence_length=24)
    images = [PIXELS, PIXELS[:, :64, :20]]
    asked = ("cat", "dog", "hound")
    samples = [boxed(queries=asked), boxed(1, (64, 20), queries=asked)]
    samples[1].boxes = torch.tensor([[2.0, 3, 15, 40]])
    together = model.predict(images, samples)
    for image, sample, one in zip(images, samples, together, strict=True):
        (alone,) = model.predict([image], [sample])
        assert torch.allclose(one["detection"].boxes, alone["detection"].boxes, atol=1e-2)
    with torch.no_grad():
        terms = model.train()(images, samples, mode="loss")
        alone = [model([image], [sample], mode="loss") for image, sample in zip(images, samples, strict=True)]
    assert all(value.isfinite() for value in terms.values())
    boxes = sum(one["detection.loss_l1"] * len(s.boxes) for one, s in zip(alone, samples, strict=True)) / 3
    assert terms["detection.loss_l1"].item() == pytest.approx(boxes.item(), rel=1e-4)
    with pytest.raises(UserError, match="takes images at their own aspect"):
        siglip("siglip2-base-16-naflex", sequence_length=24)


def test_another_vocabulary(model):
    first = predicted(model)
    model.set_vocabulary(["red car", "a", "b"], {"a": ["x", "y"]})
    fresh = built(task=dict(classes=["red car", "a", "b"], queries={"a": ["x", "y"]}))
    found, expected = predicted(model), predicted(fresh)
    assert torch.equal(found.scores, expected.scores) and found.labels.max() == 2
    model.set_vocabulary(NAMES)
    assert torch.equal(predicted(model).scores, first.scores)
    for names, sentence in (
        (["a", "a"], "both called 'a'"),
        ([], "is not a list of names"),
        (["猫"], "names nothing, written in a to z"),
        (["word " * 80], "is longer than the 77 tokens that the text tower of clip-base-16-224 takes"),
    ):
        with pytest.raises(UserError, match=sentence):
            model.set_vocabulary(names)
    assert torch.equal(predicted(model).scores, first.scores)


def test_names_of_a_data_set_that_are_too_long_are_cut_and_that_is_said():
    short = dict(text=dict(model_args=dict(TEXT["model_args"], context_length=8)))
    with pytest.warns(UserWarning, match="3 prompts are longer than the 8 tokens"):
        built(
            **short,
            task=dict(
                classes=["cat", "a very long name of something " + "long " * 3], templates=["{}", "a {}", "the {}"]
            ),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built(**short, task=dict(classes=["cat"], templates="name"))


def test_a_large_vocabulary_is_scored_in_parts(model, monkeypatch):
    from siglip2_dense.tasks import detection

    settings = config(task=dict(classes=[f"thing {i}" for i in range(500)]))
    other = build(MODELS, {**settings, "text": dict(type="Words", width=32)}).eval()
    whole = predicted(other)
    monkeypatch.setattr(detection, "SCORES_AT_ONCE", 1000)
    parts = predicted(other)
    assert len(whole.scores) == 300 and torch.allclose(whole.scores, parts.scores)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_each_image_is_asked_for_its_own_names_and_all_trains():
    model = built(**TRAINS)
    samples = [boxed(queries=("cat", "dog", "hound", "sun")), boxed(0, queries=("tree",))]
    terms = model.train()([PIXELS, PIXELS[:, :50]], samples, mode="loss")
    assert set(terms) == {"detection.loss_class", "detection.loss_l1", "detection.loss_giou"}
    sum(terms.values()).backward()
    found = gradients(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert all(gradient.isfinite().all() and gradient.any() for name, gradient in found.items() if "bias" not in name)
    assert any(name.startswith("text.") for name in found) and any(name.startswith("encoder.") for name in found)
    assert model._sampled is None
    changed = [boxed(queries=("cat", "dog", "hound", "moon")), samples[1]]
    assert (
        model([PIXELS, PIXELS[:, :50]], changed, mode="loss")["detection.loss_class"] != terms["detection.loss_class"]
    )
    # the names of what is learnt are those of the vocabulary where a sample does not say
    assert model([PIXELS], [boxed(1)], mode="loss")["detection.loss_class"].isfinite()


def test_frozen_towers_and_remembered_texts(monkeypatch):
    from siglip2_dense.encoders.text import TextEncoder

    model = built().train()
    asked, encode = [], TextEncoder.encode
    monkeypatch.setattr(TextEncoder, "encode", lambda self, *a, **k: asked.append(list(a[0])) or encode(self, *a, **k))
    samples = [boxed(queries=("cat", "dog", "sun"))]
    first = model([PIXELS], samples, mode="loss")
    model([PIXELS], [boxed(queries=("sun", "moon", "cat"))], mode="loss")
    assert asked == [["cat", "dog", "sun"], ["moon"]]
    sum(first.values()).backward()
    assert {name.partition(".")[0] for name in gradients(model)} == {"heads"}
    trained = built(text=dict(trainable="all"), text_optim=dict(lr_mult=0.1)).train()
    assert trained([PIXELS], samples, mode="loss") == model([PIXELS], samples, mode="loss")


def test_each_evaluation_asks_with_the_text_tower_as_it_is_by_then():
    model = built(**TRAINS)
    first = predicted(model)
    with torch.no_grad():
        for parameter in model.train().text.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    second = predicted(model.eval())
    model.set_vocabulary(NAMES)  # computes them anew
    assert torch.equal(second.scores, predicted(model).scores)
    assert (first.scores - second.scores).abs().max() > 1e-2


def test_nothing_asked_still_reaches_every_parameter():
    model = built(**TRAINS).train()
    model._weigh(model.tasks)
    model.tasks["detection"].asked = lambda samples: [() for _ in samples]
    sum(model([PIXELS], [boxed(0)], mode="loss").values()).backward()
    assert set(gradients(model)) == {name for name, _ in model.named_parameters()}


def test_learning_rates_and_depth():
    model = built(
        **{**TRAINS, "encoder": dict(trainable="all", drop_path=0.5), "text": dict(trainable="all", drop_path=0.1)}
    )
    rates = {
        name: {group["lr"] for group in wrapper.optimizer.param_groups}
        for name, wrapper in optimizers_of(model).items()
    }
    assert rates == {"detection": {1e-3}, "encoder": {1e-3}, "text": {0.04 * 1e-3}}
    with torch.no_grad():
        still = [model.features([PIXELS]).maps[model.taps[0]] for _ in range(2)]
        moving = [model.train().features([PIXELS]).maps[model.taps[0]] for _ in range(9)]
    assert torch.equal(*still)
    assert len({one.abs().sum().item() for one in moving}) > 2 and not model.encoder.tower.training
    assert torch.equal(model.eval().features([PIXELS]).maps[model.taps[0]], still[0])


def stepped(batch, clip, model=None, **more):
    model = model or built(**TRAINS, example_clip=clip, **more)
    joint = JointOptimWrapper(**optimizers_of(model))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    logged = model.train().train_step(batch, joint)
    return model, gradients(model), logged, start


def batch_of(*samples, image=PIXELS):
    return {"inputs": [image, image[:, :, :64], image[:, :50]][: len(samples)], "data_samples": list(samples)}


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_gradients_are_clipped_for_each_image(clip):
    """Against autograd on each image by itself, with the norm over heads and both towers."""
    asked = ("cat", "dog", "hound", "bird")
    samples = [boxed(2, queries=asked), boxed(0, queries=asked), boxed(1, queries=asked)]
    model, found, logged, start = stepped(batch_of(*samples), clip)
    reference = built(**TRAINS, example_clip=clip).train()
    names, parameters = zip(*reference.named_parameters(), strict=True)
    total, losses = [torch.zeros_like(p) for p in parameters], []
    batch = batch_of(*samples)
    norms = []
    for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        loss = sum(reference([image], [sample], mode="loss").values())
        own = torch.autograd.grad(loss, parameters)
        norms.append(torch.cat([g.flatten() for g in own]).norm())
        total = [t + g * min(1.0, clip / norms[-1].item()) / 3 for t, g in zip(total, own, strict=True)]
        losses.append(loss.item())
    assert (min(norms) > 0.05) and max(norms) < 1e6
    for name, expected in zip(names, total, strict=True):
        assert torch.allclose(found[name], expected, rtol=1e-3, atol=1e-7), name
    assert logged["loss"].item() == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert all(not torch.equal(p, start[name]) for name, p in model.named_parameters() if "bias" not in name)


def test_without_it_all_images_are_weighed_together():
    asked = ("cat", "dog", "hound", "bird")
    samples = [boxed(2, queries=asked), boxed(1, queries=asked)]
    model = built(**TRAINS, clip_norm=1.0)
    assert not model.tasks["detection"].each and built(**TRAINS, example_clip=1.0).tasks["detection"].each
    batch = batch_of(*samples)
    both = model.train()(batch["inputs"], samples, mode="loss")["detection.loss_l1"]
    alone = [
        model([image], [s], mode="loss")["detection.loss_l1"] for image, s in zip(batch["inputs"], samples, strict=True)
    ]
    assert both.item() == pytest.approx((2 * alone[0].item() + alone[1].item()) / 3, rel=1e-4)
    assert (built().clip_norm, built(clip_norm=None).clip_norm, built(example_clip=2.0).clip_norm) == (1.0, None, None)
    model.set_vocabulary(["x"])
    each = built(**TRAINS, example_clip=1.0)
    each.set_vocabulary(["x"])
    assert not model.tasks["detection"].each and each.tasks["detection"].each


def test_drop_paths_differ_from_image_to_image():
    """The same image several times in a step: were the stream set anew for each, all would drop the same."""
    model = built(**{**TRAINS, "encoder": dict(trainable="all", drop_path=0.6)}, example_clip=1.0).train()
    model.draws = {"detection": 5}
    sums = []
    forward = model.heads["detection"].forward
    model.heads["detection"].forward = lambda features, texts: (
        sums.append(features.maps[model.taps[0]].abs().sum().item()) or forward(features, texts)
    )
    samples = [boxed(1, queries=("cat",)) for _ in range(8)]
    model.train_step({"inputs": [PIXELS] * 8, "data_samples": samples}, JointOptimWrapper(**optimizers_of(model)))
    assert len(set(sums)) >= 4


def test_checkpointing_changes_no_gradient():
    samples = [boxed(2, queries=("cat", "dog"))]
    found = []
    for checkpointing in (False, True):
        parts = {
            name: dict(trainable="all", checkpointing=checkpointing, drop_path=0.3) for name in ("encoder", "text")
        }
        model = built(**{**TRAINS, **parts}).train()
        torch.manual_seed(3)
        sum(model([PIXELS], samples, mode="loss").values()).backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-6), name


def test_half_precision_trains():
    parts = dict(TRAINS, encoder=dict(trainable="all", precision="bf16"))
    model = built(**parts, precision="bf16", example_clip=1.0)
    _, found, logged, _ = stepped(batch_of(boxed(2, queries=("cat", "dog")), boxed(1)), 1.0, model)
    assert logged["loss"].isfinite() and all(value.isfinite().all() for value in found.values())
    assert predicted(model.eval()).boxes.dtype == torch.float32


def test_examples_instead_of_names(model):
    raw = model.raw(model.features([PIXELS]))["detection"]
    place = model.features([PIXELS]).geometry[0]
    task = model.tasks["detection"]
    box = (10.0, 12.0, 50.0, 60.0)
    vector = task.example(raw[0], place, box)
    model.set_examples({"mug": [(PIXELS, box)], "cup": [(PIXELS, box), (PIXELS.flip(-1), (20, 10, 60, 50))]})
    found = predicted(model)
    assert model.tasks["detection"].classes == ("mug", "cup")
    raw.texts = ((vector / (vector.norm() + 1e-6))[None],)
    best = raw.logits().sigmoid().max()
    assert found.scores[found.labels == 0].max().item() == pytest.approx(best.item(), rel=1e-4)
    mirrored = model.features([PIXELS.flip(-1)])
    other = task.example(model.raw(mirrored)["detection"][0], mirrored.geometry[0], (20, 10, 60, 50))
    mean = (vector + other) / 2
    assert torch.allclose(model._examples["detection"][1], mean / mean.norm(), atol=1e-5)
    with pytest.raises(UserError, match=r"is none in its image of 90x70 pixels"):
        model.set_examples({"mug": [(PIXELS, (10, 12, 95, 60))]})
    with pytest.raises(UserError, match="a name has none"):
        model.set_examples({"mug": []})
    model.set_vocabulary(NAMES)
    assert model.tasks["detection"].classes == tuple(NAMES) and not model._examples


def test_examples_are_kept_where_the_text_tower_trains():
    model = built(**TRAINS)
    model.set_examples({"mug": [(PIXELS, (10, 12, 50, 60))]})
    first = predicted(model)
    assert torch.equal(predicted(model.train().eval()).scores, first.scores)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(inference=dict(mode="slide", crop=48, stride=32)), r"give dict\(mode='square', size=PIXELS\)"),
        (dict(inference=dict(mode="square")), "give dict"),
        (dict(inference=dict(mode="square", size=0)), "give dict"),
        (dict(example_clip=0), "example_clip=0: give a number above 0"),
        (dict(example_clip=1.0, clip_norm=1.0), r"leave out model\.clip_norm, which would clip a second time"),
        (
            dict(example_clip=1.0, optim=dict(type="Adam", lr=1, clip_norm=3)),
            r"leave out heads\.detection\.optim\.clip",
        ),
        (dict(text=dict(trainable="all")), "text: trainable='all': say how the text trains"),
        (dict(text_optim=dict(lr_mult=1)), "text_optim is given, but nothing of the text encoder trains"),
        (dict(encoder=dict(drop_path=0.1)), "drop_path=0.1, but nothing of clip-base-16-224 trains"),
        (dict(text=dict(drop_path=0.1)), "nothing of the text tower trains"),
        (dict(text=dict(trainable="all", drop_path=1.5), text_optim={}), r"drop_path=1\.5"),
    ],
)
def test_settings_that_do_not_fit(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        built(**settings)


def test_one_norm_over_several_heads_is_refused():
    settings = config(example_clip=1.0)
    settings["heads"]["other"] = settings["heads"]["detection"]
    with pytest.raises(UserError, match="one norm over 2 heads would tie each to the others"):
        build(MODELS, settings)
    assert build(MODELS, {**settings, "example_clip": None}).clip_norm is None


def test_other_heads_and_tasks_are_refused():
    settings = config()
    settings["heads"]["detection"]["task"] = dict(type="OpenVocabulary", classes=NAMES)
    with pytest.raises(UserError, match="OWLViT has heads OWLViTHead with the task Detection"):
        build(MODELS, settings)
    plain = config()
    plain["heads"]["more"] = dict(
        head=dict(type="LinearHead"), task=dict(type="Segmentation", classes=["a", "b"]), optim=dict(type="Adam", lr=1)
    )
    with pytest.raises(UserError, match="OWLViT has heads OWLViTHead"):
        build(MODELS, plain)
