"""CAT-Seg as a model: whole, with small random towers of CLIP and SigLIP."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.contracts import Features, Sample
from siglip2_dense.errors import UserError
from siglip2_dense.registry import MODELS, build
from siglip2_dense.tasks.open_vocabulary import blend_probabilities

NAMES = ["cat", "dog, hound", "sky", "wall-brick"]
SMALL = dict(depth=3, embed_dim=48, num_heads=4, num_classes=32)
TEXT = dict(model_args=dict(embed_dim=32, width=64, heads=4, layers=2), cache=False)
PIXELS = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def config(encoder=None, text=None, head=None, task=None, **model):
    settings = dict(
        type="CATSeg",
        encoder=dict(
            type="FrozenEncoder", name="clip-base-16-224", weights="random", model_args=SMALL, **(encoder or {})
        ),
        text={**TEXT, **(text or {})},
        heads=dict(
            segmentation=dict(
                head=dict(type="CATSegHead", grid=3, **(head or {})),
                task=dict(type="OpenVocabulary", **{"classes": NAMES, **(task or {})}),
                optim=dict(type="AdamW", lr=1e-3),
            )
        ),
        inference=dict(mode="slide", crop=48, stride=32, size=(80, 80), overview=True),
    )
    return {**settings, **model}


def built(**settings):
    torch.manual_seed(0)
    return build(MODELS, config(**settings)).eval()


TRAINS = dict(trainable=["q", "v"])
TUNED = dict(encoder=TRAINS, text=TRAINS, encoder_optim=dict(lr_mult=0.1), clip_norm=0.01)


@pytest.fixture(scope="module")
def model():
    return built()


def predicted(model, image=PIXELS, original=(50, 60)):
    return model.predict([image], [Sample(original_size=original)])[0]["segmentation"]


def test_a_prediction_is_that_of_the_views_written_out(model):
    """The published inference, from the pixels on, at a size of our own."""

    def raw(view):
        seen = F.interpolate(view[None], (48, 48), mode="bilinear", align_corners=False)
        features = model.encoder.features(seen, model.taps, aligned=model.aligned)
        return model.raw(features)["segmentation"]

    image = PIXELS.float()
    square = F.interpolate(image[None], (80, 80), mode="bilinear", align_corners=False)[0]
    total, count = torch.zeros(4, 80, 80), torch.zeros(80, 80)
    with torch.no_grad():
        for top in (0, 32):
            for left in (0, 32):
                window = (slice(top, top + 48), slice(left, left + 48))
                scores = raw(square[:, *window])
                total[:, *window] += F.interpolate(scores, (48, 48), mode="bilinear", align_corners=False)[0].sigmoid()
                count[window] += 1
        whole = F.interpolate(image[None], (48, 48), mode="bilinear", align_corners=False)[0]
        whole = F.interpolate(raw(whole), (48, 48), mode="bilinear", align_corners=False).sigmoid()
    whole = F.interpolate(whole, (80, 80), mode="bilinear", align_corners=False)[0]
    expected = F.interpolate(((total / count + whole) / 2)[None], (50, 60), mode="bilinear", align_corners=False)[0]
    views = model.views(PIXELS, (50, 60))
    with torch.no_grad():
        seen = model.window_features([PIXELS], [Sample(original_size=(50, 60))])
        parts = [part for _, mirrored, features in seen for part in model._read(features, mirrored)]
    found = blend_probabilities([part["segmentation"][:2] for part in parts])
    assert len(views) == 5 and (found - expected).abs().max() < 1e-5
    clear = (expected.topk(2, dim=0).values.diff(dim=0).abs() > 1e-4)[0]
    assert torch.equal(predicted(model)[clear], expected.argmax(0)[clear]) and clear.float().mean() > 0.9


def test_its_own_aspect_and_a_mirror_are_options():
    model = built(inference=dict(mode="slide", crop=48, stride=32, overview=True, flip=True))
    sizes = [tuple(pixels.shape[-2:]) for pixels, _ in model.views(PIXELS, (50, 60))]
    assert sizes == [(48, 48)] * 7 and model.views(PIXELS, (50, 60))[-1][1].window == (0, 0, 70, 90)
    symmetric = torch.cat([PIXELS[..., :56], PIXELS[..., :56].flip(-1)], dim=-1)  # as its windows are
    found = predicted(model, symmetric, (70, 112))
    assert (found == found.flip(-1)).float().mean() > 0.99
    whole = built(inference=dict(mode="whole"))
    assert predicted(whole).shape == (50, 60)


def test_images_come_to_the_grid_whatever_their_size_and_labels_stay(model):
    images = [PIXELS[:, :40, :60], PIXELS[:, 10:50, :60]]
    features = model.features(images, canvas=(44, 64))
    assert features.aligned.shape == (2, 32, 3, 3)
    assert {(place.padded, place.box) for place in features.geometry} == {((44, 64), (2, 2, 40, 60))}
    mean = model.encoder.mean.expand(3, 44, 64).clone()
    mean[:, 2:42, 2:62] = images[1]
    seen = F.interpolate(mean[None], (48, 48), mode="bilinear", align_corners=False)
    expected = model.encoder.features(seen, aligned=model.aligned).aligned
    assert (features.aligned[1:] - expected).abs().max() < 1e-4
    samples = [Sample(labels=torch.zeros(40, 60, dtype=torch.int64), path="x") for _ in images]
    assert model(images, samples, mode="loss")["segmentation.loss_bce"] > 0
    with pytest.raises(UserError, match=r"does not fit on model\.canvas"):
        model.features(images, canvas=(39, 64))


def test_without_a_grid_any_shape_will_do():
    model = built(head=dict(blocks=1), inference=dict(mode="whole"))
    model.grid = None
    features = model.features([PIXELS])
    assert features.aligned.shape[-2:] == (5, 6) and features.geometry[0].padded == (80, 96)
    assert model.raw(features)["segmentation"].shape == (1, 4, 20, 24)


def test_a_vocabulary_that_is_set_is_as_one_that_was_built_with(model):
    other = ["red car", "dog, hound", "a", "b", "c"]
    fresh = built(task=dict(classes=other, queries={"a": ["x", "y"]}))
    fresh.load_trained(model.trained_state())
    first = predicted(model)
    model.set_vocabulary(other, {"a": ["x", "y"]})
    assert torch.equal(predicted(model), predicted(fresh)) and model.tasks["segmentation"].channels == 6
    model.set_vocabulary(NAMES)
    assert torch.equal(predicted(model), first)
    model.set_vocabulary(["background", *NAMES], {"background": []}, 0.999999)
    assert not predicted(model).any()
    model.set_vocabulary(NAMES)
    before = model.tasks["segmentation"]
    with pytest.raises(UserError, match="both called 'a'"):
        model.set_vocabulary(["a", "a"])
    assert model.tasks["segmentation"] is before and torch.equal(predicted(model), first)


def test_texts_are_those_of_the_text_encoder_in_every_template(model):
    text = build(MODELS, dict(type="TextEncoder", name="clip-base-16-224", weights="random", **TEXT))
    names = ["cat", "dog", "sky", "wall-brick"]
    expected = text.encode(names, "scene", average=False)
    assert torch.equal(model._texts_of("segmentation"), expected)
    raw = built(task=dict(clean_names=False))
    assert torch.equal(raw._texts_of("segmentation")[:3], expected[:3])
    assert not torch.equal(raw._texts_of("segmentation")[3], expected[3])
    means = built(task=dict(synonyms="mean", templates=["{}", "a {}"]), head=dict(prompts=2))
    vectors = text.encode(["dog", "hound"], ["{}", "a {}"], average=False).mean(0)
    assert torch.allclose(means._texts_of("segmentation")[1], F.normalize(vectors, dim=-1), atol=1e-6)
    assert predicted(means).shape == (50, 60)


def test_frozen_texts_are_computed_once_for_a_vocabulary(monkeypatch):
    from siglip2_dense.encoders.text import TextEncoder

    asked = []
    encode = TextEncoder.encode
    monkeypatch.setattr(TextEncoder, "encode", lambda self, *a, **k: asked.append(a[0]) or encode(self, *a, **k))
    model = built()
    for _ in range(2):
        predicted(model.train().eval())
    assert len(asked) == 1 and model.text is None
    task = model.tasks["segmentation"]
    model.tasks["segmentation"] = type(task)(["x", "y", "z", "w"])  # not as it should be done
    predicted(model)
    assert len(asked) == 2 and list(asked[1]) == ["x", "y", "z", "w"]


def step(model, optimizers=None):
    from siglip2_dense.engine.train import JointOptimWrapper, optimizers_of

    joint = JointOptimWrapper(**(optimizers or optimizers_of(model)))
    joint.clip_norm = model.clip_norm
    labels = torch.randint(-1, 4, (2, 48, 48))
    samples = [Sample(labels=one, path="x") for one in labels]
    joint.update_params(model.train()([PIXELS[:, :48, :48]] * 2, samples, mode="loss")["segmentation.loss_bce"])
    return joint


def test_what_trains_is_what_is_named_and_texts_follow():
    model = built(**TUNED)
    state = model.trained_state()
    own = {key for key in state if not key.startswith("segmentation.")}
    # the last block's queries are read by nobody
    assert own == {f"encoder.blocks.{i}.attn.qkv.{p}" for i in range(3) for p in "qv" if (i, p) != (2, "q")} | {
        f"text.transformer.resblocks.{i}.attn.{p}_proj_weight" for i in range(2) for p in "qv"
    }
    start = {key: value.clone() for key, value in state.items()}
    towers = {name: {k: v.clone() for k, v in tower.tower.state_dict().items()} for name, tower in model.towers.items()}
    before = model._texts_of("segmentation").clone()
    step(model)
    assert all(not torch.equal(model.trained_state()[key], start[key]) for key in own)
    for name, tower in model.towers.items():
        moved = {k for k, v in tower.tower.state_dict().items() if not torch.equal(v, towers[name][k])}
        assert moved == {key.removeprefix(f"{name}.") for key in own if key.startswith(name)}
    after = model.eval()._texts_of("segmentation").clone()
    assert not torch.equal(after, before)
    step(model)
    assert not torch.equal(model.eval()._texts_of("segmentation"), after)  # not what the last evaluation saw
    model.load_trained(start)
    assert torch.equal(model._texts_of("segmentation"), before)


def test_texts_of_a_tower_that_trained_are_computed_once_for_an_evaluation(monkeypatch):
    """Whoever predicts asks for eval mode before each image."""
    from siglip2_dense.encoders.text import TextEncoder

    asked, encode = [], TextEncoder.encode
    monkeypatch.setattr(TextEncoder, "encode", lambda self, *a, **k: asked.append(a[0]) or encode(self, *a, **k))
    model = built(**TUNED)
    for _ in range(3):
        predicted(model.eval())
    assert len(asked) == 1
    model.set_vocabulary(["a", "b"])
    predicted(model.eval())
    assert len(asked) == 2
    model.train().set_vocabulary(NAMES)  # while it trains
    step(model)
    predicted(model.eval())
    assert len(asked) == 4


def test_checkpointing_and_batches_of_texts_change_no_gradient():
    found = []
    for checkpointing in (False, True):
        own = dict(TUNED, text=dict(TRAINS, checkpointing=checkpointing), head=dict(checkpointing=checkpointing))
        model = built(**own)
        torch.manual_seed(1)
        labels = torch.randint(-1, 4, (48, 48))
        model.train()([PIXELS[:, :48, :48]], [Sample(labels=labels, path="x")], mode="loss")[
            "segmentation.loss_bce"
        ].backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(value is not None for value in found[0].values())
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-4, atol=1e-7), name


def test_one_clip_over_heads_and_towers():
    model = built(**TUNED)
    joint = step(model)
    groups = [group for wrapper in joint.values() for group in wrapper.optimizer.param_groups]
    gradients = [p.grad for group in groups for p in group["params"]]
    assert len(joint) == 3 and len(gradients) == len(list(model.parameters()))
    assert torch.stack([g.norm() for g in gradients]).norm() == pytest.approx(0.01, rel=1e-4)


def test_norms_and_embeddings_have_a_decay_of_their_own():
    from siglip2_dense.engine.train import optimizers_of

    settings = config(**{**TUNED, "encoder": dict(trainable="all")})
    settings["heads"]["segmentation"]["optim"] = dict(type="AdamW", lr=1e-3, weight_decay=0.1, norm_decay=0.0)
    torch.manual_seed(0)
    model = build(MODELS, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {
        names[id(p)]: group["weight_decay"]
        for wrapper in optimizers_of(model).values()
        for group in wrapper.optimizer.param_groups
        for p in group["params"]
    }
    assert set(decays) == set(names.values())
    for name, decay in decays.items():
        assert (decay == 0) == ("norm" in name), name  # GroupNorms and LayerNorms of the head, LayerNorms of the tower
    rates = {
        name: {group["lr"] for group in wrapper.optimizer.param_groups}
        for name, wrapper in optimizers_of(model).items()
    }
    assert rates == {"segmentation": {1e-3}, "encoder": {1e-4}, "text": {1e-4}}


def test_siglip_through_its_attention_pooling():
    torch.manual_seed(0)
    encoder = dict(
        type="FrozenEncoder", name="siglip2-base-16-256", weights="random", trainable=["q", "v"],
        model_args=dict(depth=3, embed_dim=48, num_heads=4),
    )  # fmt: skip
    text = dict(type="Vectors", width=48)
    model = build(MODELS, {**config(), "encoder": encoder, "text": text, "encoder_optim": dict(lr_mult=0.1)})
    assert model.aligned.residual == "none" and predicted(model.eval()).shape == (50, 60)
    trained = set(model.encoder.trained.state_dict())
    assert "blocks.2.attn.qkv.q" in trained and not any("attn_pool" in name for name in trained)


@MODELS.register_module()
class Vectors(torch.nn.Module):
    """Texts without a tower: a random vector for each name."""

    fingerprint, tokenization = "vectors", {}

    def __init__(self, name="", weights="", width=48):
        super().__init__()
        self.width = width

    def encode(self, class_names, templates, average, clean):
        rows = [torch.randn(1, self.width, generator=torch.Generator().manual_seed(len(name))) for name in class_names]
        return F.normalize(torch.stack(rows), dim=-1)


def test_half_precision_trains(monkeypatch):
    model = built(**{**TUNED, "encoder": dict(TRAINS, precision="bf16"), "precision": "bf16"})
    step(model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert predicted(model.eval()).shape == (50, 60)


def test_of_more_classes_than_256_the_published_evaluation_scores_the_nearest():
    classes = [f"thing {i}" for i in range(300)]
    settings = dict(task=dict(classes=classes), head=dict(blocks=1))
    exact = built(**settings)
    nearest = built(**settings, inference=dict(mode="whole", classes="reference"))
    features = exact.features([PIXELS])
    with torch.no_grad():
        all_of_them, some = (model.raw(features)["segmentation"] for model in (exact, nearest))
    assert ((some == -100).all((2, 3)).sum() == 44) and not (all_of_them == -100).any()


def test_features_can_be_given_and_their_windows_predicted(model):
    views = model.views(PIXELS, (50, 60))
    features = model.features([pixels for pixels, _ in views])
    geometry = tuple(
        replace(seen, resized=place.resized, original=place.original, window=place.window)
        for seen, (_, place) in zip(features.geometry, views, strict=True)
    )
    assert isinstance(features, Features)
    found = model.predict_stored(replace(features, geometry=geometry))["segmentation"]
    assert torch.equal(found, predicted(model))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(encoder=dict(name="test_vit")), "no text tower|not trained with texts"),
        (dict(inference=dict(mode="whole", overview=True)), "overview=True; give True or False, beside mode='slide'"),
        (dict(inference=dict(mode="whole", size=(0, 3))), r"size=\(0, 3\)"),
        (dict(inference=dict(mode="whole", size=640)), "size=640; give"),
        (dict(inference=dict(mode="whole", classes="all")), "classes='all'; give 'exact' or 'reference'"),
        (dict(inference=dict(mode="slide", crop=48)), "give dict"),
        (dict(text=TRAINS), "text: trainable=.*say how the text trains"),
        (dict(encoder_optim=dict(lr_mult=0.1)), "nothing of the encoder trains"),
        (dict(clip_norm=0), "clip_norm=0"),
        (dict(text=dict(trainable="some"), encoder_optim={}), "text: trainable='some'"),
        (dict(head=dict(prompts=2)), "1 prompts, the head was built for 2"),
        (dict(text=dict(name="clip-large-14-224")), "was not trained with"),
    ],
)
def test_settings_that_do_not_fit(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        made = config(**settings) if "name" not in settings.get("encoder", {}) else config()
        made["encoder"].update(settings.get("encoder", {}))
        predicted(build(MODELS, made).eval())


def test_other_heads_and_tasks_are_refused():
    settings = config()
    settings["heads"]["other"] = dict(head=dict(type="LinearHead"), task=dict(type="Segmentation", classes=["a", "b"]))
    with pytest.raises(UserError, match=r"heads\.other: CATSeg has heads CATSegHead"):
        build(MODELS, settings)
    settings = config()
    more = dict(settings["heads"]["segmentation"], head=dict(type="CATSegHead", grid=4))
    settings["heads"]["more"] = more
    with pytest.raises(UserError, match="one grid for all heads"):
        build(MODELS, settings)


def test_several_heads_learn_as_each_alone_does():
    """By binary cross-entropies, though Segmentation's heads share a cross-entropy."""
    settings = config()
    parts = dict(settings["heads"]["segmentation"], seed=1)
    names = dict(type="OpenVocabulary", classes=["a", "b", "c", "d"], ignored="masked")
    settings["heads"] = {"segmentation": parts, "more": dict(parts, seed=2, task=names)}
    images, samples = [PIXELS[:, :40, :60]], [Sample(labels=torch.randint(-1, 4, (40, 60)), path="x")]
    found = build(MODELS, settings).train()(images, samples, mode="loss")
    assert set(found) == {"segmentation.loss_bce", "more.loss_bce"}
    for name in settings["heads"]:
        alone = build(MODELS, {**settings, "heads": {name: settings["heads"][name]}}).train()
        expected = alone(images, samples, mode="loss")
        assert torch.allclose(found[f"{name}.loss_bce"], expected[f"{name}.loss_bce"], rtol=1e-5)
