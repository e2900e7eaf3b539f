"""The probe: heads of ours and of mmsegmentation, losses by hand, predictions window by window."""

import pytest
import torch
import torch.nn.functional as F

from siglip2_dense import DenseProbe
from siglip2_dense.contracts import IGNORE, Features, Sample
from siglip2_dense.errors import UserError

ENCODER = dict(type="FrozenEncoder", name="test_vit", weights="random")


def probe(head=None, encoder=ENCODER, classes=5, **options):
    task = dict(type="Segmentation", classes=[f"class {k}" for k in range(classes)])
    task.update(options.pop("task", {}))
    return DenseProbe(dict(seg=dict(head=head or dict(type="LinearHead"), task=task)), encoder=encoder, **options)


def sample(height, width, classes=5, seed=0, **kwargs):
    numbers = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=numbers)
    labels = torch.randint(-1, classes, (height, width), generator=numbers)
    return Sample(image=image, labels=labels, original_size=(height, width), **kwargs)


def batch(*samples):
    return {"inputs": [s.image for s in samples], "data_samples": list(samples)}


@pytest.mark.parametrize(("average", "denominator"), [("valid", None), ("all", 2 * 64 * 80)])
def test_loss_is_cross_entropy_on_the_image_without_padding(average, denominator):
    """Images of two sizes on a 64 x 80 canvas; scores up-sampled to the padded canvas, then cut."""
    model = probe(canvas=(64, 80), task=dict(average=average)).eval()
    samples = [sample(64, 50), sample(39, 80, seed=1)]
    found = model(**batch(*samples), mode="loss")
    features = model.features([s.image for s in samples], (64, 80))
    raw = model.heads["seg"](features)
    total, count = 0.0, 0
    for scores, place, one in zip(raw, features.geometry, samples, strict=True):
        top, left, height, width = place.box
        large = F.interpolate(scores[None], place.padded, mode="bilinear", align_corners=False)
        cut = large[:, :, top : top + height, left : left + width]
        total += F.cross_entropy(cut, one.labels[None], ignore_index=IGNORE, reduction="sum")
        count += int((one.labels != IGNORE).sum())
    assert set(found) == {"seg.loss_ce"}
    assert torch.allclose(found["seg.loss_ce"], total / (denominator or count), rtol=1e-5)


def test_an_image_without_a_counted_pixel_costs_nothing():
    model = probe()
    empty = sample(32, 32)
    empty.labels.fill_(IGNORE)
    loss = model(**batch(empty), mode="loss")["seg.loss_ce"]
    loss.backward()
    assert loss == 0 and all(p.grad.isfinite().all() for p in model.parameters())


def test_several_heads_share_one_pass():
    heads = {
        name: dict(head=dict(type="LinearHead", **head), task=dict(type="Segmentation", classes=["a", "b"]))
        for name, head in {"last": {}, "raw": dict(layers=[2, 5], norm=False), "pooled": dict(pooled="concat")}.items()
    }
    model = DenseProbe(heads, encoder=ENCODER)
    calls = []
    model.encoder.tower.register_forward_hook(lambda *_: calls.append(1))
    model.encoder.tower.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    one = sample(32, 48, classes=2)
    losses = model(**batch(one), mode="loss")
    assert set(losses) == {"last.loss_ce", "raw.loss_ce", "pooled.loss_ce"} and len(calls) == 1
    predictions = model.eval()(**batch(one), mode="predict")[0]
    assert set(predictions) == set(heads)
    raw = model(**batch(one))["raw"]
    alone = DenseProbe({"raw": heads["raw"]}, encoder=ENCODER).eval()
    alone.heads.load_state_dict({k: v for k, v in model.heads.state_dict().items() if k.startswith("raw.")})
    assert torch.allclose(alone(**batch(one))["raw"], raw, atol=1e-6)


@pytest.mark.parametrize("mode", [dict(mode="whole"), dict(mode="slide", crop=48, stride=32)])
def test_images_of_different_sizes_in_one_evaluation_equal_each_alone(mode):
    model = probe(inference=mode).eval()
    samples = [sample(48, 64), sample(90, 31, seed=1), sample(48, 48, seed=2), sample(100, 117, seed=3)]
    samples[2].original_size = (77, 60)  # the targets stay at original size when the image is resized
    together = model(**batch(*samples), mode="predict")
    for one, prediction in zip(samples, together, strict=True):
        alone = model(**batch(one), mode="predict")[0]["seg"]
        assert tuple(alone.shape) == one.original_size
        assert (alone == prediction["seg"]).float().mean() > 0.999


def test_heads_can_be_built_without_the_encoder():
    model = probe().eval()
    facts = type(model.facts).from_dict(__import__("json").loads(__import__("json").dumps(model.facts.to_dict())))
    twin = probe(encoder=None, facts=facts).eval()
    twin.heads.load_state_dict(model.heads.state_dict())
    one = sample(32, 48)
    features = model.features([one.image])
    assert isinstance(features, Features)
    assert torch.equal(twin(features)["seg"], model(**batch(one))["seg"])
    with pytest.raises(UserError, match="give an encoder"):
        probe(encoder=None)


@pytest.mark.parametrize(
    "head",
    [
        dict(type="mmseg.FCNHead", _scope_="mmseg", channels=8, num_convs=1, layers="last"),
        dict(type="mmseg.UPerHead", _scope_="mmseg", channels=8, layers="even4", norm=False),
    ],
)
def test_heads_of_mmsegmentation_train(head):
    model = probe(head)
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = batch(sample(64, 80), sample(64, 80, seed=1))
    losses = []
    for _ in range(12):
        loss = model(**data, mode="loss")["seg.loss_ce"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert model.eval()(**data, mode="predict")[0]["seg"].shape == (64, 80)


def test_a_plain_mmsegmentation_config_trains_a_step_on_our_encoder(tmp_path):
    """UPerHead of mmsegmentation on our encoder, built by mmengine from a config with one custom import."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmengine.structures import PixelData

    (tmp_path / "plain.py").write_text(
        """
custom_imports = dict(imports=['siglip2_dense'])
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', bgr_to_rgb=True, mean=[0] * 3, std=[1] * 3, size=(64, 64), seg_pad_val=255),
    backbone=dict(type='siglip2_dense.FrozenEncoder', name='test_vit', weights='random', layers='even4'),
    decode_head=dict(
        type='UPerHead', in_channels=[64] * 4, in_index=[0, 1, 2, 3], channels=16, num_classes=3,
        loss_decode=dict(type='CrossEntropyLoss')),
    auxiliary_head=dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_classes=3, num_convs=1),
    test_cfg=dict(mode='slide', crop_size=(48, 48), stride=(32, 32)))
"""
    )
    config = Config.fromfile(tmp_path / "plain.py")
    import mmseg.models  # noqa: F401
    from mmengine.optim import OptimWrapper
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    from siglip2_dense.encoders.weights import fingerprint

    init_default_scope("mmseg")
    try:
        model = MODELS.build(config.model)
        before = fingerprint(model.backbone.tower)
        model.init_weights()
        model.train()
        one = sample(64, 50, classes=3)
        seg = SegDataSample(gt_sem_seg=PixelData(data=one.labels[None] % 3), metainfo=dict(img_shape=(64, 50)))
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
        logs = model.train_step(dict(inputs=[one.image.flip(0)], data_samples=[seg]), optimizer)
        assert torch.isfinite(logs["loss"])
        assert fingerprint(model.backbone.tower) == before
        assert not any("backbone" in key for key in model.state_dict())
        seg.set_metainfo(dict(ori_shape=(64, 50)))
        predicted = model.eval().test_step(dict(inputs=[one.image.flip(0)], data_samples=[seg]))
        assert predicted[0].pred_sem_seg.data.shape == (1, 64, 50)
    finally:
        init_default_scope("mmengine")


def test_sliding_windows_by_hand():
    """Windows of 48 every 32 over 70 x 101 pixels, the last of each axis moved back inside; scores averaged."""
    model = probe(inference=dict(mode="slide", crop=48, stride=32)).eval()
    one = sample(70, 101)
    total, count = torch.zeros(5, 70, 101), torch.zeros(70, 101)
    for y in (0, 22):
        for x in (0, 32, 53):
            raw = model([one.image[:, y : y + 48, x : x + 48]])["seg"]
            large = F.interpolate(raw, (48, 48), mode="bilinear", align_corners=False)[0]
            total[:, y : y + 48, x : x + 48] += large
            count[y : y + 48, x : x + 48] += 1
    expected = (total / count).argmax(0)
    found = model(**batch(one), mode="predict")[0]["seg"]
    assert (found == expected).float().mean() > 0.999


@pytest.mark.parametrize("width", [64, 75])  # 75 is padded to 80, by 2 on the left and 3 on the right
@pytest.mark.parametrize("mode", [dict(mode="whole"), dict(mode="slide", crop=48, stride=32)])
def test_flip_averages_with_the_mirrored_image(width, mode):
    """The reference predicts the mirrored image as an image of its own and turns its map back."""
    torch.manual_seed(0)
    heads = {
        "depth": dict(head=dict(type="LinearHead"), task=dict(type="Depth", bins=8)),
        "normals": dict(head=dict(type="LinearHead"), task=dict(type="Normals", uncertainty=False)),
        "seg": dict(head=dict(type="LinearHead"), task=dict(type="Segmentation", classes=["a", "b", "c"])),
    }
    model = DenseProbe(heads, encoder=ENCODER, inference={**mode, "flip": True}).eval()
    for module in model.heads.values():
        torch.nn.init.normal_(module.conv.weight, std=0.5)
    image = sample(48, width).image
    found = model.predict([image])[0]
    model.inference = mode
    plain = model.predict([image])[0]
    turned = {name: values.flip(-1) for name, values in model.predict([image.flip(-1)])[0].items()}
    if mode["mode"] == "whole" or width == 64:  # other windows of the mirrored image lie elsewhere
        torch.testing.assert_close(found["depth"], (plain["depth"] + turned["depth"]) / 2, rtol=1e-4, atol=1e-4)
    if mode["mode"] == "whole":  # where windows overlap their directions are averaged before they get unit length
        direction = plain["normals"] + turned["normals"] * torch.tensor([-1.0, 1, 1]).view(3, 1, 1)
        torch.testing.assert_close(found["normals"], F.normalize(direction, dim=0), rtol=0, atol=1e-4)
    assert not torch.equal(found["depth"], plain["depth"])
    assert (found["seg"] == plain["seg"]).float().mean() > 0.3 and found["seg"].shape == plain["seg"].shape


def test_heads_in_bfloat16_give_float32():
    model = probe(precision="bf16").eval()
    exact = probe().eval()
    exact.load_state_dict(model.state_dict())
    one = sample(64, 80)
    half, full = (m([one.image], mode="tensor")["seg"] for m in (model, exact))
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0, atol=0.02 * full.abs().max().item())
    with pytest.raises(UserError, match="fp32"):
        probe(precision="fp16")


def heads_of(settings, classes=("a", "b", "c")):
    task = dict(type="Segmentation", classes=list(classes))
    return {
        name: dict(head=dict(type="LinearHead", **head), task=task, **more) for name, (head, more) in settings.items()
    }


def test_what_a_head_begins_with_is_of_its_own_settings_and_seed_alone():
    def built(settings, seed=0, **options):
        torch.manual_seed(seed)
        return DenseProbe(heads_of(settings), **{"encoder": ENCODER, **options}).heads.state_dict()

    both = built({"a": ({}, {}), "b": (dict(layers="last4"), {}), "c": ({}, dict(seed=3)), "d": ({}, dict(seed=0))})
    alone = built({"b": (dict(layers="last4"), {})})
    assert all(torch.equal(both[name], tensor) for name, tensor in alone.items())
    assert torch.equal(both["a.conv.weight"], both["d.conv.weight"])  # torch's stream was at seed 0
    assert not torch.equal(both["a.conv.weight"], both["c.conv.weight"])
    assert torch.equal(built({"c": ({}, {})}, seed=3)["c.conv.weight"], both["c.conv.weight"])
    facts = probe().facts  # nor of whether an encoder was built before
    assert torch.equal(built({"a": ({}, {})}, encoder=None, facts=facts)["a.conv.weight"], both["a.conv.weight"])
    with pytest.raises(UserError, match=r"heads.a: seed='x'; give a whole number"):
        built({"a": ({}, dict(seed="x"))})


def test_an_encoder_whose_weights_are_loaded_does_not_change_what_heads_begin_with(test_data):
    file = test_data / "weights" / "tf_efficientnet_lite0_in1k_fp16.safetensors"
    found = []
    for weights in ("random", str(file)):
        torch.manual_seed(0)
        found.append(probe(encoder=dict(type="FrozenEncoder", name="tf_efficientnet_lite0", weights=weights)))
    assert torch.equal(found[0].heads["seg"].conv.weight, found[1].heads["seg"].conv.weight)


def test_heads_that_see_the_same_are_computed_together_and_as_alone(monkeypatch):
    heads = {"a": {}, "other": dict(layers="last4"), "b": dict(batch_norm=True), "c": dict(upsample=2)}
    settings = {name: (head, {}) for name, head in heads.items()}
    model = DenseProbe(heads_of(settings), encoder=ENCODER)
    features = model.features([sample(48, 64, seed=k).image for k in (0, 1)])
    product, calls = F.linear, []
    monkeypatch.setattr(F, "linear", lambda x, w, *more: calls.append(len(w)) or product(x, w, *more))
    raw = model.raw(features)
    assert calls == [48, 16] and list(raw) == list(settings)  # rows: 3 classes, filled up to 16
    for name, head in model.heads.items():
        assert (raw[name] - head(features)).abs().max() < 1e-6


def test_what_a_head_draws_in_a_step_does_not_depend_on_the_heads_before_it():
    mmseg = dict(type="mmseg.FCNHead", _scope_="mmseg", channels=8, num_convs=1, dropout_ratio=0.5)
    task = dict(type="Segmentation", classes=["a", "b"])
    model = DenseProbe({name: dict(head=mmseg, task=task) for name in "abc"}, encoder=ENCODER).train()
    features = model.features([sample(48, 64).image])
    model.draws = {"a": 7, "b": 8, "c": 7}
    raw = model.raw(features)
    assert torch.equal(raw["a"], raw["c"]) and not torch.equal(raw["a"], raw["b"])
    model.draws = dict.fromkeys("abc", 8)
    assert torch.equal(model.raw(features)["a"], raw["b"])
