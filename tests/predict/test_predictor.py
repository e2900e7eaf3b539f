"""The Predictor against the test of the same head, each head alone, and images one by one."""

import json

import numpy as np
import pytest
import torch
from heads_made import DEPTH, ENCODER, NORMALS, SEGMENTATION, SLIDE, write_head
from runs import train

from siglip2_dense import Predictor, head_file
from siglip2_dense.cli import test as test_verb
from siglip2_dense.contracts import Sample
from siglip2_dense.data.reading import read_image
from siglip2_dense.encoders.frozen import FrozenEncoder
from siglip2_dense.engine import evaluate
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build

pytestmark = pytest.mark.usefixtures("one_thread")

THREE = """
model["heads"]["depth"] = dict(
    head=dict(type="LinearHead", layers="last", pooled="concat", upsample=4),
    task=dict(type="Depth", min_depth=0.1, max_depth=10.0, bins=16),
    optim=dict(type="AdamW", lr=1e-3),
)
model["heads"]["normals"] = dict(
    head=dict(type="LinearHead", layers=[2, 5]), task=dict(type="Normals"), optim=dict(type="AdamW", lr=1e-3)
)
train_cfg = dict(max_iters=2, val_interval=2)
test_dataloader = dict(batch_size=1, dataset=dict(
    type="GeneratedScenes", split="val", length=3, size=(48, 64), transforms=[dict(type="ResizeShortSide", short=60)]))
"""
CAMVID = """
train_dataloader["dataset"] = dict(
    type="ImageFolder", root=r"{root}", split="test", ignore=11,
    transforms=[dict(type="Resize", size=(96, 128))])
val_dataloader = dict(batch_size=1, num_workers=0, dataset=dict(
    type="ImageFolder", root=r"{root}", split="test", ignore=11,
    transforms=[dict(type="Resize", size=(96, 128), targets=False)]))
model["inference"] = dict(mode="slide", crop=96, stride=64, flip=True)
train_cfg = dict(max_iters=3, val_interval=3)
"""


def of_the_test(config, head, folder, monkeypatch):
    """{head: predictions} of a config's test images, in order, as tools/test.py has them."""
    seen, original = {}, evaluate._count

    def count(metric, task, prediction, sample):
        seen.setdefault(task.target, []).append((sample.index, prediction.clone()))
        return original(metric, task, prediction, sample)

    monkeypatch.setattr(evaluate, "_count", count)
    test_verb.main([str(config), str(head), "--work-dir", str(folder)])
    return {target: [one for _, one in sorted(found, key=lambda pair: pair[0])] for target, found in seen.items()}


def test_maps_are_those_of_the_test(tiny, tmp_path, monkeypatch):
    """Windows, resizing and all heads: the head file alone says what the config does."""
    config = tiny(THREE)
    train(config, tmp_path / "run")
    head = tmp_path / "run" / "head.safetensors"
    expected = of_the_test(config, head, tmp_path / "test", monkeypatch)
    predictor = Predictor(head)
    assert list(predictor.tasks) == ["segmentation", "depth", "normals"] == list(predictor.heads)
    scenes = build(DATASETS, dict(type="GeneratedScenes", split="val", length=3, size=(48, 64)))
    assert predictor.classes == tuple(scenes.classes)
    for number in range(3):
        result = predictor(scenes[number].image.permute(1, 2, 0).numpy())
        assert np.array_equal(result.segmentation.ids, expected["labels"][number].numpy())
        assert np.array_equal(result.depth_m, expected["depth"][number][0].numpy())
        assert np.array_equal(result.normals, expected["normals"][number].permute(1, 2, 0).numpy())
        assert result.segmentation.names == predictor.classes and result.boxes is None


def test_maps_of_photographs_are_those_of_the_test(real, tiny, tmp_path, monkeypatch):
    camvid, root = real("camvid"), tmp_path / "data"
    for kind in ("images", "labels"):
        (root / kind / "test").mkdir(parents=True)
    images = sorted((camvid / "images" / "test").iterdir())[:2]
    for image in images:
        (root / "images/test" / image.name).symlink_to(image)
        label = next((camvid / "labels" / "test").glob(f"{image.stem}*"))
        (root / "labels/test" / label.name).symlink_to(label)
    (root / "classes.txt").write_text((camvid / "classes.txt").read_text())
    config = tiny(CAMVID.format(root=root))
    train(config, tmp_path / "run")
    head = tmp_path / "run" / "best_head.safetensors"
    expected = of_the_test(config, head, tmp_path / "test", monkeypatch)["labels"]
    predictor = Predictor(head)
    for image, labels in zip(images, expected, strict=True):
        found = predictor(image).segmentation
        assert found.ids.shape == read_image(image).shape[:2] and np.array_equal(found.ids, labels.numpy())
        assert len(np.unique(found.ids)) > 1


@pytest.fixture
def heads(tmp_path):
    """Files of one head each, on one encoder, that see images in the same way."""
    for name, parts in (("segmentation", SEGMENTATION), ("depth", DEPTH), ("normals", NORMALS)):
        write_head(tmp_path / f"{name}.safetensors", {name: parts}, SLIDE)
    return [tmp_path / f"{name}.safetensors" for name in ("segmentation", "depth", "normals")]


@pytest.fixture
def passes(monkeypatch):
    """How many images each pass of an encoder has, so far."""
    seen, original = [], FrozenEncoder.features

    def features(self, images, *args, **kwargs):
        seen.append(len(images))
        return original(self, images, *args, **kwargs)

    monkeypatch.setattr(FrozenEncoder, "features", features)
    return seen


def photograph(height=70, width=100, seed=0):
    smooth = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.kron(smooth, np.ones((8, 8, 1), np.uint8))[:height, :width]


def maps(result):
    segmentation = None if result.segmentation is None else result.segmentation.ids
    return segmentation, result.depth_m, result.normals


def test_several_heads_share_one_pass_and_each_predicts_as_alone(heads, passes):
    image = photograph()
    together = Predictor(heads)
    result = together(image)
    assert passes == [4]  # windows of one image
    alone = [Predictor(path)(image) for path in heads]
    assert passes == [4] * 4
    for one, number in zip(alone, range(3), strict=True):
        assert np.array_equal(maps(result)[number], maps(one)[number])
        assert [values is not None for values in maps(one)] == [number == i for i in range(3)]
    assert result.normals.shape == (70, 100, 3) and np.allclose(np.linalg.norm(result.normals, axis=2), 1, atol=1e-5)


def test_heads_of_other_protocols_have_a_pass_of_their_own(tmp_path, passes):
    write_head(tmp_path / "a.safetensors", {"segmentation": SEGMENTATION}, SLIDE)
    resize = [dict(type="ResizeShortSide", short=40)]
    write_head(tmp_path / "b.safetensors", {"depth": DEPTH}, dict(mode="whole", flip=True), resize)
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    image = photograph()
    both = Predictor(files)(image)
    assert passes == [4, 1, 1]
    assert np.array_equal(both.segmentation.ids, Predictor(files[0])(image).segmentation.ids)
    assert np.array_equal(both.depth_m, Predictor(files[1])(image).depth_m)
    assert list(both.heads) == ["segmentation", "depth"] and both.depth_m.shape == image.shape[:2]


def test_a_list_is_predicted_as_its_images_one_by_one(heads, passes):
    images = [photograph(70, 100), photograph(70, 100, 1), photograph(33, 47, 2), photograph(1, 1), photograph(64, 64)]
    predictor = Predictor(heads)
    results = predictor(images)
    assert passes == [9, 1, 1]  # windows of one size share a pass, of whatever image
    for result, image in zip(results, images, strict=True):
        one = predictor(image)
        assert result.segmentation.ids.shape == image.shape[:2]
        assert (result.segmentation.ids == one.segmentation.ids).mean() > 0.999
        assert np.allclose(result.depth_m, one.depth_m, atol=1e-4)
        assert np.allclose(result.normals, one.normals, atol=1e-4)
    assert predictor([]) == []


def test_batches_are_bounded_by_images_and_by_pixels(heads, monkeypatch):
    predictor, sizes = Predictor(heads), []
    original = predictor._predict
    monkeypatch.setattr(predictor, "_predict", lambda batch, *more: sizes.append(len(batch)) or original(batch, *more))
    assert len(predictor([photograph(8, 8)] * 19)) == 19 and sizes == [8, 8, 3]
    sizes.clear()
    monkeypatch.setattr("siglip2_dense.predict.predictor.BATCH_PIXELS", 150)
    assert len(list(predictor.stream(photograph(8, 8) for _ in range(5)))) == 5 and sizes == [2, 2, 1]


def test_by_hand_on_real_photographs(real, tmp_path):
    """Segmentation of whole images: features, head, up-sampling and arg-max written out."""
    probe = write_head(tmp_path / "a.safetensors", {"seg": SEGMENTATION})
    predictor = Predictor(tmp_path / "a.safetensors")
    for name in ("cat.jpg", "street.jpg"):
        pixels = read_image(real("images") / name)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        with torch.no_grad():
            features = probe.encoder.features([image], probe.taps)
            logits = probe.heads["seg"](features)
        (top, left, height, width), padded = features.geometry[0].box, features.geometry[0].padded
        large = torch.nn.functional.interpolate(logits, padded, mode="bilinear")
        expected = large[0, :, top : top + height, left : left + width].argmax(0).numpy()
        found = predictor(real("images") / name)
        assert (found.segmentation.ids == expected).mean() > 0.9999
        assert found.path.endswith(name) and np.array_equal(found.image, pixels)


def test_what_a_test_cuts_off_stays_and_long_images_stay_small(tmp_path):
    cuts = [dict(type="Crop", top=4, left=4, height=40, width=40), dict(type="CenterCrop", size=[32, 32])]
    write_head(tmp_path / "a.safetensors", {"depth": DEPTH}, transforms=[*cuts, dict(type="ResizeShortSide", short=32)])
    predictor = Predictor(tmp_path / "a.safetensors")
    assert predictor(photograph(50, 60)).depth_m.shape == (50, 60)
    seen = []
    probe = predictor._views[0][0].probe
    original = probe.features
    probe.features = lambda images, *more: seen.append(tuple(images[0].shape[1:])) or original(images, *more)
    assert predictor(photograph(3, 3000)).depth_m.shape == (3, 3000)
    assert seen == [(1, 512)]  # 16 times the short side of the test, and not 32 x 32000


@pytest.mark.parametrize(("size", "given"), [((40, 50), (40, 50)), ((100, 50), (63, 31)), ((1, 4000), (1, 2828))])
def test_whole_images_are_bounded(tmp_path, size, given):
    write_head(tmp_path / "a.safetensors", {"depth": DEPTH})
    predictor = Predictor(tmp_path / "a.safetensors", max_pixels=2000)
    probe = predictor._views[0][0].probe
    image = photograph(*size)
    sample = predictor._sample(image, probe, [])
    assert isinstance(sample, Sample) and tuple(sample.image.shape[1:]) == given and sample.original_size == size
    assert predictor(image).depth_m.shape == size
    with pytest.raises(UserError, match="max_pixels=0"):
        Predictor(tmp_path / "a.safetensors", max_pixels=0)


def test_heads_of_one_name_get_numbers(tmp_path):
    for number in range(3):
        write_head(tmp_path / f"{number}.safetensors", {"depth": DEPTH}, seed=number)
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    result = Predictor(files)(photograph())
    assert list(result.heads) == ["depth", "depth_2", "depth_3"]
    for found, file in zip(result.heads.values(), files, strict=True):
        assert np.array_equal(found.values, Predictor(file)(photograph()).depth_m)


def test_an_encoder_that_trained_is_used_as_it_became(tmp_path):
    trained = dict(ENCODER, trainable=1, drop_path=0.1)
    probe = write_head(tmp_path / "a.safetensors", {"depth": DEPTH}, encoder=trained, encoder_optim=dict(lr_mult=0.1))
    image = photograph()
    sample = Sample(image=torch.from_numpy(image).permute(2, 0, 1), original_size=image.shape[:2])
    expected = probe.predict([sample.image], [sample])[0]["depth"][0].numpy()
    assert np.array_equal(Predictor(tmp_path / "a.safetensors")(image).depth_m, expected)
    write_head(tmp_path / "b.safetensors", {"depth": DEPTH})
    frozen = Predictor(tmp_path / "b.safetensors")(image).depth_m
    assert not np.allclose(frozen, expected, atol=1e-2)
    with pytest.raises(UserError, match="changed its encoder in training"):
        Predictor([tmp_path / "b.safetensors", tmp_path / "a.safetensors"])


def test_an_encoder_that_is_not_at_hand_or_another_is_one_sentence(tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    write_head(file, {"depth": DEPTH})
    assert Predictor(file, encoder_weights="random").made_by()["encoder"] == "test_vit"
    with pytest.raises(UserError, match=r"was trained on test_vit with weights .* and those of 'random:1' are"):
        Predictor(file, encoder_weights="random:1")
    with pytest.raises(UserError, match=r"needs the encoder test_vit .*, which is not at hand: weights='none.pth'"):
        Predictor(file, encoder_weights="none.pth")
    content = head_file.read(file)
    content.encoder_config["weights"] = "/another/machine/weights.pth"  # then from the hub, which has others
    head_file.save(file, content)
    asked = []
    original = FrozenEncoder.__init__

    def begin(self, name, weights="hub", **more):
        asked.append(weights)
        original(self, name, "random" if weights == "hub" else weights, **more)

    monkeypatch.setattr(FrozenEncoder, "__init__", begin)
    Predictor(file)
    assert asked == ["hub"]


def test_heads_that_do_not_go_together_are_refused(tmp_path):
    write_head(tmp_path / "a.safetensors", {"depth": DEPTH})
    write_head(tmp_path / "b.safetensors", {"depth": DEPTH}, encoder=dict(ENCODER, weights="random:1"))
    write_head(tmp_path / "c.safetensors", {"depth": DEPTH}, encoder=dict(ENCODER, precision="bf16"))
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    with pytest.raises(UserError, match="only heads of one encoder share its pass"):
        Predictor([a, b])
    with pytest.raises(UserError, match="an encoder of precision 'bf16'"):
        Predictor([a, c])
    with pytest.raises(UserError, match="give a head file"):
        Predictor([])
    with pytest.raises(UserError, match="no such file"):
        Predictor(tmp_path / "none.safetensors")
    (tmp_path / "d.safetensors").write_bytes(b"no head")
    with pytest.raises(UserError, match="truncated or not a file of tensors"):
        Predictor(tmp_path / "d.safetensors")
    predictor = Predictor(a)
    with pytest.raises(UserError, match="cannot be asked for names"):
        predictor.set_prompts(["cat"])
    with pytest.raises(UserError, match="threshold=1"):
        predictor(photograph(), threshold=1)


def test_files_of_before_the_model_was_kept(tmp_path):
    """Inference and transforms are in the protocol; converted heads have neither, and see whole images."""
    write_head(tmp_path / "a.safetensors", {"segmentation": SEGMENTATION}, SLIDE)
    expected = Predictor(tmp_path / "a.safetensors")(photograph())
    content = head_file.read(tmp_path / "a.safetensors")
    content.model = None
    head_file.save(tmp_path / "b.safetensors", content)
    found = Predictor(tmp_path / "b.safetensors")(photograph())
    assert np.array_equal(found.segmentation.ids, expected.segmentation.ids)
    content.protocol = {"origin": {}}
    head_file.save(tmp_path / "c.safetensors", content)
    assert Predictor(tmp_path / "c.safetensors")._views[0][0].probe.inference == {"mode": "whole"}


def test_predictions_say_what_they_are_made_by(heads, tmp_path):
    first, again = Predictor(heads[0]).made_by(), Predictor(heads[0]).made_by()
    assert first == again and json.loads(json.dumps(first)) == first
    write_head(tmp_path / "other.safetensors", {"segmentation": SEGMENTATION}, SLIDE, seed=1)
    others = [Predictor(heads[1]), Predictor(tmp_path / "other.safetensors"), Predictor(heads[0], max_pixels=10)]
    assert len({str(one.made_by()) for one in others} | {str(first)}) == 4
