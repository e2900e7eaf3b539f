"""Features extracted into a store, and runs from it: the same as the encoder's own, whatever happened on the way."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import TWO_RANKS
from safetensors.torch import load_file

from siglip2_dense.cli import common
from siglip2_dense.cli import test as test_verb
from siglip2_dense.cli import train as train_verb
from siglip2_dense.contracts import Alignment, Features, Sample
from siglip2_dense.data import scenes
from siglip2_dense.data.base import PixelDataset
from siglip2_dense.engine import encoding, extract
from siglip2_dense.engine.encoding import expected_bytes, row_bytes
from siglip2_dense.engine.run import build_probe
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build
from siglip2_dense.store import origins
from siglip2_dense.store.folder import find
from siglip2_dense.store.key import digest
from siglip2_dense.store.loader import StoredLoader
from siglip2_dense.store.reader import Reader
from siglip2_dense.store.store import Store

NAFLEX = """
model["encoder"] = dict(
    type="FrozenEncoder", name="siglip2-base-16-naflex", weights="random", sequence_length=12,
    model_args=dict(depth=2, embed_dim=48, num_heads=3))
model["heads"]["segmentation"]["head"] = dict(type="LinearHead", pooled="concat")
train_dataloader["dataset"]["transforms"].insert(0, dict(type="RandomResize", short=48))
"""
LARGER = "train_dataloader['dataset']['length'] = 21\n"
RENDER = scenes.render
PYRAMID = "model['encoder']['name'] = 'test_convnext'\n"
TEXTS = """
model["encoder"] = dict(
    type="FrozenEncoder", name="siglip2-base-32-256", weights="random", model_args=dict(depth=2))
model["heads"]["segmentation"]["head"]["layers"] = "last"
model["heads"]["names"] = dict(head=dict(type="TextSimilarity", scale=9.0), task=dict(type="Segmentation"))
"""


@pytest.fixture(autouse=True)
def quick_scenes(monkeypatch):
    """Coloured blocks in place of ray-cast rooms, and no threads that wait for each other over such small images."""
    monkeypatch.setattr(scenes, "render", blocks)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def blocks(entry, size):
    numbers = np.random.default_rng(entry)

    def enlarged(values):
        return np.kron(values, np.ones((8, 8, 1), values.dtype))[: size[0], : size[1]]

    labels = enlarged(numbers.integers(0, 6, (-(-size[0] // 8), -(-size[1] // 8), 1)))
    image = (labels * 40 + numbers.integers(0, 40, (*size, 3))).astype(np.uint8)
    depth = torch.from_numpy(1 + labels + numbers.random((*size, 1))).permute(2, 0, 1).float()
    normals = torch.nn.functional.normalize(torch.from_numpy(numbers.normal(size=(3, *size))).float(), dim=0)
    return Sample(
        image=torch.from_numpy(image).permute(2, 0, 1),
        labels=torch.from_numpy(labels[..., 0]).long(),
        depth=depth,
        normals=normals,
        intrinsics=torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]),
    )


@pytest.fixture
def parts(tiny, tmp_path):
    """``parts(extra)`` -> config, probe, training data and validation data; features go to ``tmp_path/features``."""

    def made(extra="", features="features", **more):
        arguments = dict(encoder=None, weights=None, work_dir=None, launcher="none", cfg_options=[])
        arguments |= dict(config=str(tiny(extra)), features=str(tmp_path / features), **more)
        config = common.load_config(Namespace(**arguments))
        config.train_dataloader.num_workers = 0
        train, val = (
            build(DATASETS, config[f"{split}_dataloader"].dataset, seed=config.seed) for split in ("train", "val")
        )
        return config, build_probe(config, train), train, val

    return made


@pytest.fixture
def small_files(monkeypatch):
    """Eight images a file."""
    monkeypatch.setattr(extract, "SHARD_BYTES", 1)


def close(stored, live):
    """To what 11 bits can say."""
    return torch.allclose(stored.float(), live, rtol=2**-11, atol=1e-6)


def assert_same(stored: Features, live: Features):
    assert set(stored.maps) == set(live.maps) and stored.geometry == live.geometry
    for tap, maps in live.maps.items():
        cells = slice(None) if live.valid is None else live.valid[:, None].expand_as(maps)
        assert close(stored.maps[tap][cells], maps[cells])
    if live.pooled is not None:
        assert close(stored.pooled, live.pooled)
    if live.valid is not None:
        assert torch.equal(stored.valid, live.valid)


@pytest.mark.parametrize("extra", ["", NAFLEX, PYRAMID, "model['canvas'] = (56, 64)\n" + LARGER])
def test_a_view_is_what_the_transforms_draw_in_that_epoch(parts, extra):
    config, probe, data, _ = parts(extra + "feature_store = dict(views=2)")
    loader = extract.training_loader(config, probe, data)
    order = loader.reader.store.order()
    steps = zip(loader.sampler, loader, strict=False)
    for _ in range(2 * len(data) // 2 + 1):
        items, batch = next(steps)
        samples = [data[(epoch % 2, int(order[position]))] for epoch, position in items]
        assert_same(batch["inputs"], probe.features([sample.image for sample in samples], probe.canvas))
        for stored, sample in zip(batch["data_samples"], samples, strict=True):
            assert torch.equal(stored.labels, sample.labels) and stored.index == sample.index
            assert (stored.path, stored.original_size) == (sample.path, sample.original_size)


def test_in_bfloat16(parts):
    config, probe, data, _ = parts("feature_store = dict(dtype='bf16')")
    batch = next(iter(extract.training_loader(config, probe, data)))
    live = probe.features([data[(0, sample.index)].image for sample in batch["data_samples"]])
    for tap, maps in live.maps.items():
        assert batch["inputs"].maps[tap].dtype == torch.bfloat16
        assert torch.allclose(batch["inputs"].maps[tap].float(), maps, rtol=2**-8, atol=1e-6)


def test_all_targets_are_kept_for_heads_to_come(parts):
    config, probe, data, _ = parts()
    store = extract.ensure(config, probe, data, config.train_dataloader)
    loader = StoredLoader(Reader(store, probe.taps, probe.pooled, ("depth", "normals")), data, 5, seed=0)
    for sample in next(iter(loader))["data_samples"]:
        live = data[(0, sample.index)]
        assert torch.equal(sample.depth, live.depth) and torch.equal(sample.normals, live.normals)
        assert torch.equal(sample.intrinsics, live.intrinsics) and sample.labels is None


@pytest.mark.parametrize(
    "extra", ["model['inference']['flip'] = True", NAFLEX, "model['inference'] = dict(mode='whole')"]
)
def test_predictions_from_stored_windows_are_those_of_the_images(parts, extra):
    config, probe, _, data = parts(extra)
    probe.eval()
    images = extract.test_images(config, probe, data, config.val_dataloader)
    pixels, same = 0, 0
    for index, batch in enumerate(images):
        (found,) = probe(**batch, mode="predict")
        (wanted,) = probe([data[index].image], [data[index]], mode="predict")
        same += (found["segmentation"] == wanted["segmentation"]).sum().item()
        pixels += wanted["segmentation"].numel()
    assert index == 6 and same >= 0.999 * pixels


def test_windows_of_several_images_go_through_the_encoder_together(parts, monkeypatch):
    config, probe, _, data = parts("model['inference'] = dict(mode='whole')\nval_dataloader['batch_size'] = 4")
    passes, features = [], probe.encoder.features
    monkeypatch.setattr(
        probe.encoder, "features", lambda images, *more: passes.append(len(images)) or features(images, *more)
    )
    extract.ensure(config, probe, data, config.val_dataloader, windows=True)
    assert passes == [4, 3]


def test_a_mirrored_window_is_turned_back(parts):
    """With the mirror's half of the rows wrong, predictions are not those of the images."""
    config, probe, _, data = parts("model['inference']['flip'] = True")
    probe.eval()
    batch = next(iter(extract.test_images(config, probe, data, config.val_dataloader)))
    (features,) = batch["inputs"]
    count = len(features) // 2
    swapped = Features.cat([features[count:], features[:count]])
    right, wrong = (probe.predict_stored(each)["segmentation"] for each in (features, swapped))
    assert (right != wrong).any()


def test_a_killed_extraction_goes_on_with_what_is_missing(parts, small_files, monkeypatch, tmp_path):
    config, probe, data, _ = parts(LARGER)
    whole = extract.ensure(config, probe, data, config.train_dataloader)
    assert whole.shards_per_view == 3
    config, *_ = parts(LARGER, features="killed")
    monkeypatch.setattr(encoding, "own_order", list)
    write, written = Store.write, []

    def killed(store, view, number, *content):
        if number == 1:
            raise KeyboardInterrupt
        write(store, view, number, *content)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            extract.ensure(config, probe, data, config.train_dataloader)
    store = find(tmp_path / "killed", whole.key)
    assert store.missing() == [(0, 1), (0, 2)]
    monkeypatch.setattr(Store, "write", lambda store, *content: written.append(content[:2]) or write(store, *content))
    extract.ensure(config, probe, data, config.train_dataloader)
    assert written == [(0, 1), (0, 2)] and store.missing() == []
    for shard in store.shards(1):
        assert store.file(*shard).read_bytes() == whole.file(*shard).read_bytes()
    extract.ensure(config, probe, data, config.train_dataloader)
    store.file(0, 1).write_bytes(store.file(0, 1).read_bytes()[:-7])
    extract.ensure(config, probe, data, config.train_dataloader)
    assert written == [(0, 1), (0, 2), (0, 1)] and store.missing() == []


@pytest.fixture
def folder_set(tmp_path):
    """A data set of files, labels of one size whatever is in them, and the lines of a config that names it."""
    numbers = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "set" / kind / split).mkdir(parents=True)
        for index in range(21 if split == "train" else 2):
            image, labels = numbers.integers(0, 256, (48, 64, 3)), numbers.integers(0, 2, (48, 64))
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / "set" / "images" / split / f"{index:02d}.png")
            save_labels(tmp_path / "set" / "labels" / split / f"{index:02d}.png", labels)
    (tmp_path / "set" / "classes.txt").write_text("a\nb\n")
    return "\n".join(
        f"{s}_dataloader['dataset'] = dict(type='ImageFolder', root='{tmp_path}/set', split='{s}')"
        for s in ("train", "val")
    )


def save_labels(path, labels):
    Image.fromarray(labels.astype(np.uint8)).save(path, compress_level=0)


def test_an_image_or_label_file_that_is_replaced_is_extracted_again(
    parts, folder_set, small_files, monkeypatch, tmp_path, capsys
):
    config, probe, data, _ = parts(folder_set)
    store = extract.ensure(config, probe, data, config.train_dataloader)
    write, written = Store.write, []
    monkeypatch.setattr(Store, "write", lambda store, *content: written.append(content[:2]) or write(store, *content))
    labels = tmp_path / "set" / "labels" / "train" / "07.png"
    before = labels.stat()
    save_labels(labels, 1 - np.asarray(Image.open(labels)))
    os.utime(labels, ns=(before.st_atime_ns, before.st_mtime_ns - 10**9))  # older than the store
    assert labels.stat().st_size == before.st_size
    capsys.readouterr()
    assert extract.ensure(config, probe, data, config.train_dataloader) == store
    number = next(number for number in range(3) if 7 in store.held(number))
    assert written == [(0, number)]
    assert (
        f"{store.file(0, number)} is extracted again: {labels} is another than it was made of"
        in capsys.readouterr().out
    )
    for batch, _ in zip(extract.training_loader(config, probe, data), range(11), strict=False):
        for sample in batch["data_samples"]:
            assert torch.equal(sample.labels, data[sample.index].labels)
    for path in (tmp_path / "set").rglob("*.png"):  # as a copy without its times
        os.utime(path)
    extract.ensure(config, probe, data, config.train_dataloader)
    assert len(written) == 1
    monkeypatch.setattr(origins, "digest", None)  # the new times are known now
    extract.ensure(config, probe, data, config.train_dataloader)


def test_a_store_with_more_layers_does_not_serve_when_a_file_was_replaced(parts, folder_set, tmp_path):
    config, probe, data, _ = parts(folder_set)
    store = extract.ensure(config, probe, data, config.train_dataloader)
    labels = tmp_path / "set" / "labels" / "train" / "07.png"
    save_labels(labels, 1 - np.asarray(Image.open(labels)))
    config, probe, data, _ = parts(folder_set + "\nmodel['heads']['segmentation']['head']['layers'] = 'last'")
    other = extract.ensure(config, probe, data, config.train_dataloader)
    assert other.path != store.path and other.missing() == store.missing() == []


def test_jobs_of_an_array_share_the_files(parts, small_files):
    config, probe, data, _ = parts(LARGER + "feature_store = dict(views=2)")
    left = []
    for part in ((2, 2), (1, 2)):
        store = extract.ensure(config, probe, data, config.train_dataloader, part=part)
        left.append(store.missing(2))
    assert left == [[(0, 0), (0, 2), (1, 1)], []]


def test_what_is_left_of_an_extraction_is_divided_among_the_ranks(parts, small_files, monkeypatch):
    config, probe, data, _ = parts(LARGER)
    store = extract.ensure(config, probe, data, config.train_dataloader)
    for number in (0, 2):  # both even
        store.forget(0, number)
    monkeypatch.setattr(extract, "get_rank", lambda: 1)
    monkeypatch.setattr(extract, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="not all files are there"):  # the other rank is none
        extract.ensure(config, probe, data, config.train_dataloader)
    assert store.missing() == [(0, 0)]


def test_two_runs_that_start_together_share_the_work(parts, small_files, monkeypatch):
    extra = "train_dataloader['dataset']['length'] = 61"
    config, probe, data, _ = parts(extra, features="other")
    other = extract.ensure(config, probe, data, config.train_dataloader)
    config, *_ = parts(extra)
    write, written = Store.write, []

    def overtaken(store, *content):
        write(store, *content)
        written.append(content[:2])
        if len(written) == 1:
            shutil.copytree(other.path, store.path, dirs_exist_ok=True)

    monkeypatch.setattr(Store, "write", overtaken)
    store = extract.ensure(config, probe, data, config.train_dataloader)
    assert len(written) < store.shards_per_view / 2 and store.missing() == []
    orders = [encoding.own_order(list(range(20))) for _ in range(4)]
    assert len(set(map(tuple, orders))) > 1 and all(sorted(order) == list(range(20)) for order in orders)


def test_more_views_are_added_to_those_there(parts, small_files, monkeypatch):
    config, probe, data, _ = parts(LARGER)
    store = extract.ensure(config, probe, data, config.train_dataloader)
    before = {path: path.stat().st_mtime_ns for path in store.path.glob("0-*")}
    config, *_ = parts(LARGER + "feature_store = dict(views=2)")
    assert extract.ensure(config, probe, data, config.train_dataloader) == store
    assert store.missing(2) == [] and all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_what_would_change_the_features_is_another_store(parts, monkeypatch, tmp_path):
    config, probe, data, _ = parts()
    first = extract.ensure(config, probe, data, config.train_dataloader)
    changes = [
        "model['encoder']['weights'] = 'random:1'",
        "model['encoder']['precision'] = 'bf16'",
        "model['encoder']['model_args'] = dict(init_values=1e-5)",
        "model['heads']['segmentation']['head']['layers'] = [1, 3]",
        "model['heads']['segmentation']['head']['pooled'] = 'concat'",
        "model['canvas'] = (64, 64)",
        "train_dataloader['dataset']['length'] = 6",
        "train_dataloader['dataset']['seed'] = 6",
        "train_dataloader['dataset']['transforms'].pop()",
        "seed = 1",
        "feature_store = dict(dtype='bf16')",
    ]
    found = {first.path.name.rpartition("-")[2]}
    for change in changes:
        other, probe, data, _ = parts(change)
        key = extract.key_of(other, probe, data, other.train_dataloader, windows=False)
        assert find(tmp_path / "features", key) is None, change
        found.add(digest(key))
    assert len(found) == len(changes) + 1
    monkeypatch.setattr(type(data), "fingerprint", lambda data: "changed")
    key = extract.key_of(config, probe, data, config.train_dataloader, windows=False)
    assert find(tmp_path / "features", key) is None  # a file of the list was replaced


def test_defaults_are_part_of_what_a_store_is_of(parts):
    def settings(extra=""):
        config, probe, data, _ = parts(extra)
        return extract.key_of(config, probe, data, config.train_dataloader, windows=False)["data"]["settings"]

    found = settings()
    flip, crop = found["transforms"]
    assert flip["p"] == 0.5 and crop["cat_max_ratio"] == 1.0 and found["size"] == [48, 64]
    assert settings("train_dataloader['dataset']['transforms'][0]['p'] = 0.5") == found
    part = settings(
        "whole = train_dataloader['dataset']\ntransforms = whole.pop('transforms')\nwhole.pop('size')\n"
        "train_dataloader['dataset'] = dict(\n"
        "    type='Subset', part='kept', holdout=0.4, transforms=transforms, dataset=whole)\n"
        "del whole, transforms"
    )
    assert part["dataset"]["size"] == [192, 256] and part["transforms"][0]["p"] == 0.5
    assert (
        "seed" not in part and "root" not in part["dataset"]
    )  # the one is in its own place, the other changes nothing


def test_other_versions_of_what_makes_features_are_told(parts, small_files, monkeypatch, capsys):
    config, probe, data, _ = parts(LARGER)
    store = extract.ensure(config, probe, data, config.train_dataloader)
    here = encoding.made_with()
    assert set(here) >= {"torch", "timm", "pillow", "torchvision"} and store.versions(1) == {
        n: {v} for n, v in here.items()
    }
    capsys.readouterr()
    extract.ensure(config, probe, data, config.train_dataloader)
    assert capsys.readouterr().out == ""
    with monkeypatch.context() as patch:
        for module in (encoding, extract):
            patch.setattr(module, "made_with", lambda: here | {"timm": "99.0"})
        store.forget(0, 1)
        extract.ensure(config, probe, data, config.train_dataloader)
    told = capsys.readouterr().out
    assert f"{store.path} were made with timm {here['timm']}, here is 99.0; siglip2-dense features prune " in told
    extract.ensure(config, probe, data, config.train_dataloader)
    assert "were made with timm 99.0, here is" in capsys.readouterr().out  # one file of it


def test_what_draws_nothing_serves_every_seed(parts):
    keys = []
    for seed in (0, 1):
        config, probe, train, val = parts(f"seed = {seed}")
        keys.append(
            [
                extract.key_of(config, probe, train, config.train_dataloader, windows=False),
                extract.key_of(config, probe, val, config.val_dataloader, windows=True),
            ]
        )
    assert keys[0][0] != keys[1][0] and keys[0][1] == keys[1][1]


def test_fewer_layers_come_from_the_store_that_has_more(parts):
    config, probe, data, _ = parts()
    store = extract.ensure(config, probe, data, config.train_dataloader)
    config, probe, data, _ = parts("model['heads']['segmentation']['head']['layers'] = 'last'")
    loader = extract.training_loader(config, probe, data)
    assert loader.reader.store.path == store.path
    assert set(next(iter(loader))["inputs"].maps) == set(probe.taps)


def test_a_part_of_the_images_comes_from_the_store_of_all(parts):
    config, probe, data, _ = parts(LARGER)
    store = extract.ensure(config, probe, data, config.train_dataloader)
    whole = config.train_dataloader.dataset.to_dict()
    transforms = whole.pop("transforms")
    config.train_dataloader.dataset = dict(
        type="Subset", dataset=whole, part="kept", holdout=0.3, transforms=transforms
    )
    kept = build(DATASETS, config.train_dataloader.dataset, seed=config.seed)
    loader = extract.training_loader(config, probe, kept)
    assert loader.reader.store == store and 0 < len(kept) < 21
    seen = []
    for _, batch in zip(range(len(kept) // 2), loader, strict=False):
        for row, sample in enumerate(batch["data_samples"]):
            live = kept[(0, sample.index)]
            assert_same(batch["inputs"][row : row + 1], probe.features([live.image]))
            assert torch.equal(sample.labels, live.labels) and sample.path == live.path
            seen.append(sample.index)
    assert len(set(seen)) == len(seen)


def test_the_size_is_known_before_and_a_disk_that_is_too_small_refused(parts, monkeypatch, capsys, tmp_path):
    config, probe, data, val = parts(NAFLEX + LARGER)
    store = extract.ensure(config, probe, data, config.train_dataloader)
    assert "features of 21 images of generated train: about " in capsys.readouterr().out
    predicted = 21 * expected_bytes(probe, data, windows=False)
    maps = sum(path.stat().st_size for path in store.path.glob("*.safetensors"))
    assert predicted == pytest.approx(maps, rel=0.25)  # what is known of each image comes on top: much, of tiny maps
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Namespace(free=10_000))
    with pytest.raises(UserError, match=r"need about .* kB in .*features, which has 10 kB free"):
        extract.ensure(config, probe, val, config.val_dataloader, windows=True)


def test_a_refused_extraction_leaves_nothing_and_leftovers_do_not_count(parts, monkeypatch, tmp_path):
    config, probe, data, val = parts()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Namespace(free=10_000))
        with pytest.raises(UserError, match="has 10 kB free"):
            extract.ensure(config, probe, data, config.train_dataloader)
    assert not (tmp_path / "features").exists()
    store = extract.ensure(config, probe, data, config.train_dataloader)
    leftover = store.path / ".0-00000.safetensors.killed.tmp"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Namespace(free=0 if leftover.exists() else 10**12))
    extract.ensure(config, probe, val, config.val_dataloader, windows=True)


def test_why_something_is_extracted_again_is_said(parts, folder_set, small_files, tmp_path, capsys):
    config, probe, _, val = parts(folder_set)

    def told(extra="", **more):
        config, probe, data, _ = parts(folder_set + extra, **more)
        store = extract.ensure(config, probe, data, config.train_dataloader)
        return store, capsys.readouterr().out.splitlines()

    extract.ensure(config, probe, val, config.val_dataloader, windows=True)
    first, lines = told()
    assert len(lines) == 2 and all(line.startswith("features of ") for line in lines)  # nothing of these was there
    for number in range(3):
        first.file(0, number).write_bytes(first.file(0, number).read_bytes()[:-1])
    lines = told()[1]
    assert all(f"0-0000{number}.safetensors is extracted again: truncated: " in lines[number] for number in range(3))
    assert told()[1] == []
    serve = "no features that are stored already serve: in "
    transforms = "\ntrain_dataloader['dataset']['transforms'] = "
    changes = {
        f"{transforms}[dict(type='RandomFlip', p=0.3)]": "data.settings.transforms was [] there and is [{",
        "\nmodel['encoder']['weights'] = 'random:1'": "encoder.fingerprint was ",
        "\nmodel['encoder']['name'] = 'test_vit2'": "encoder.name was 'test_vit' there and is 'test_vit2' now",
        "\nmodel['canvas'] = (64, 64)": "canvas was None there and is [64, 64] now",
    }
    for change, sentence in changes.items():
        lines = told(change)[1]
        assert lines[0].startswith(serve) and f", {sentence}" in lines[0], lines
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind / "train" / "20.png").unlink()
    assert f"{first.path}, data.images was 21 there and is 20 now" in told()[1][0]


def test_predicted_bytes_are_those_of_the_tensors(parts):
    for extra in ("model['heads']['segmentation']['head']['pooled'] = 'concat'", NAFLEX):
        _, probe, data, _ = parts(extra)
        image = data[0].image
        features = probe.features([image])
        tensors = [*features.maps.values(), *(features.prefix or {}).values(), features.pooled]
        size = tuple(image.shape[-2:])
        assert row_bytes(probe.facts, probe.taps, True, False, size) == sum(2 * t.numel() for t in tensors)


def test_a_disk_that_fills_up(parts, small_files, monkeypatch):
    import safetensors.torch

    config, probe, data, _ = parts(LARGER)
    monkeypatch.setattr(encoding, "own_order", list)
    save, saved = safetensors.torch.save_file, []

    def save_two(tensors, path):
        if len(saved) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(path)
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", save_two)
        with pytest.raises(UserError, match="the disk is full"):
            extract.ensure(config, probe, data, config.train_dataloader)
    store = find(
        extract.Path(config.feature_store.dir), extract.key_of(config, probe, data, config.train_dataloader, False)
    )
    assert store.missing() == [(0, 2)] and len(list(store.path.glob(".*"))) == 0
    assert extract.ensure(config, probe, data, config.train_dataloader).missing() == []


def test_no_file_is_written_with_what_belonged_into_one_that_failed(parts, small_files, monkeypatch):
    """The last file is smaller, waits while the one before it fails, and would fit on the disk."""
    import safetensors.torch

    config, probe, data, _ = parts(LARGER + "train_dataloader['batch_size'] = 8")
    monkeypatch.setattr(encoding, "own_order", list)
    whole = extract.ensure(config, probe, data, config.train_dataloader)
    config, *_ = parts(LARGER + "train_dataloader['batch_size'] = 8", features="full")
    save, asked = safetensors.torch.save_file, []

    def second_fails(tensors, path):
        asked.append(path)
        if len(asked) == 2:
            time.sleep(0.3)
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", second_fails)
        with pytest.raises(UserError, match="the disk is full"):
            extract.ensure(config, probe, data, config.train_dataloader)
    store = find(extract.Path(config.feature_store.dir), whole.key)
    assert store.missing()
    extract.ensure(config, probe, data, config.train_dataloader)
    for shard in whole.shards(1):
        assert store.file(*shard).read_bytes() == whole.file(*shard).read_bytes()


def test_a_broken_store_does_not_keep_others_from_serving(parts, tmp_path):
    config, probe, data, _ = parts()
    for name in ("another", "zebra"):
        (tmp_path / "features" / name).mkdir(parents=True)
        (tmp_path / "features" / name / "manifest.json").write_text("{")
    store = extract.ensure(config, probe, data, config.train_dataloader)
    config, probe, data, _ = parts("model['heads']['segmentation']['head']['layers'] = 'last'")
    assert extract.ensure(config, probe, data, config.train_dataloader) == store


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ("model['encoder']['trainable'] = 1\nmodel['encoder_optim'] = dict(lr_mult=0.1)", "trainable=1: features"),
        ("feature_store = dict(views=0)", "feature_store.views=0"),
        ("feature_store = dict(dtype='fp32')", "feature_store.dtype='fp32': give 'fp16' or 'bf16'"),
        (
            "feature_store = dict(views=2)\ntrain_dataloader['dataset']['transforms'] = []",
            "feature_store.views=2: the transforms of training draw nothing",
        ),
        ("feature_store = dict(view=2)", "feature_store has no setting 'view': did you mean 'views'"),
        ("train_dataloader['dataset']['transforms'] = [dict(type='RandomResize', short=48)]", "sizes .*model.canvas"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored(parts, extra, sentence):
    with pytest.raises(UserError, match=sentence):
        config, probe, data, _ = parts(extra)
        extract.ensure(config, probe, data, config.train_dataloader)


def test_a_folder_that_is_none(parts, tmp_path):
    (tmp_path / "file").write_text("")
    config, probe, data, _ = parts(features="file")
    with pytest.raises(UserError, match=r"file: no features can be kept here \(.*\); give another folder"):
        extract.ensure(config, probe, data, config.train_dataloader)


def test_a_config_that_says_not_where(tiny, tmp_path):
    with pytest.raises(UserError, match="give --features DIR"):
        train_verb.main([str(tiny("feature_store = dict(views=2)")), "--work-dir", str(tmp_path)])


def train(config, work_dir, features, *options):
    more = [] if features is None else ["--features", str(features)]
    train_verb.main([str(config), "--work-dir", str(work_dir), *more, *options])
    return json.loads((work_dir / "results.json").read_text())


def test_a_run_from_a_store_is_the_live_run_up_to_rounding(tiny, tmp_path, monkeypatch):
    """Seven epochs from seven views, against live training in the order of the store."""
    from siglip2_dense.data import loading
    from siglip2_dense.store.loader import BlockSampler

    class Ordered(BlockSampler):
        """The store's order, of images one by one, as a DataLoader wants it."""

        def __iter__(self):
            order = Store.order(Namespace(key={"windows": None}, images=self.size))
            for batch in super().__iter__():
                yield from ((epoch, int(order[position])) for epoch, position in batch)

    config = tiny(LARGER + "feature_store = dict(views=2)\ntrain_cfg['max_iters'] = 18")
    stored = train(config, tmp_path / "stored", tmp_path / "features")
    monkeypatch.setattr(loading, "StepSampler", Ordered)
    live = train(tiny(LARGER + "train_cfg['max_iters'] = 18"), tmp_path / "live", None)
    heads = [load_file(tmp_path / name / "head.safetensors") for name in ("stored", "live")]
    for name, value in heads[1].items():
        assert torch.allclose(heads[0][name], value, atol=2e-3), name
    assert stored["metrics"]["mIoU"] == pytest.approx(live["metrics"]["mIoU"], abs=0.3)
    assert (stored["protocol"].pop("views"), live["protocol"].pop("views")) == (2, "live")
    assert stored["protocol"] == live["protocol"] and stored["data"] == live["data"]
    assert (stored["encoder"].pop("features"), live["encoder"].pop("features")) == ("stored, fp16", "live")
    assert stored["encoder"] == live["encoder"]
    assert len(list((tmp_path / "stored" / "pictures").glob("*.png"))) == 2


def test_once_stored_nothing_goes_through_the_encoder(tiny, tmp_path, monkeypatch):
    from siglip2_dense.encoders import FrozenEncoder

    config = tiny("model['inference']['flip'] = True\npictures = 0")
    first = train(config, tmp_path / "one", tmp_path / "features")
    monkeypatch.setattr(FrozenEncoder, "features", None)
    monkeypatch.setattr(PixelDataset, "__getitem__", None)
    again = train(config, tmp_path / "two", tmp_path / "features")
    assert again["metrics"] == first["metrics"]
    head = tmp_path / "two" / "head.safetensors"
    arguments = [str(config), str(head), "--features", str(tmp_path / "features"), "--work-dir", str(tmp_path / "t")]
    test_verb.main([*arguments, "--out", str(tmp_path / "tested.json")])
    tested = json.loads((tmp_path / "tested.json").read_text())
    assert tested["metrics"] == first["metrics"] and tested["per_class"] == first["per_class"]
    assert tested["encoder"] == first["encoder"]


def test_a_head_trained_live_is_tested_from_a_store(tiny, tmp_path):
    live = train(tiny(), tmp_path / "live", None)
    arguments = [str(tiny()), str(tmp_path / "live" / "head.safetensors"), "--work-dir", str(tmp_path / "t")]
    test_verb.main([*arguments, "--features", str(tmp_path / "features"), "--out", str(tmp_path / "tested.json")])
    tested = json.loads((tmp_path / "tested.json").read_text())
    assert tested["metrics"]["mIoU"] == pytest.approx(live["metrics"]["mIoU"], abs=0.1)
    assert tested["protocol"] == live["protocol"] and tested["encoder"]["features"] == "stored, fp16"


def test_a_resumed_run_from_a_store_is_the_uninterrupted_one_bit_for_bit(tiny, tmp_path, monkeypatch):
    from siglip2_dense.engine import train as module

    config = tiny("feature_store = dict(views=2)\ntrain_cfg['save_interval'] = 4")
    train(config, tmp_path / "whole", tmp_path / "features")
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", lambda *a: (_ for _ in ()).throw(UserError("stopped")))
        with pytest.raises(UserError, match="stopped"):
            train(config, tmp_path / "run", tmp_path / "features")
    train(config, tmp_path / "run", tmp_path / "features", "--resume")
    whole, resumed = (load_file(tmp_path / name / "head.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    with pytest.raises(UserError, match=r"cannot be resumed: .*live"):
        train(tiny("train_cfg['save_interval'] = 4"), tmp_path / "run", None, "--resume")


RANK_SCRIPT = """
import sys
from pathlib import Path
import torch.distributed as dist
from siglip2_dense.cli import train
from siglip2_dense.engine import encoding, extract
from siglip2_dense.engine.encoding import expected_bytes, row_bytes
from siglip2_dense.store.store import Store

extract.SHARD_BYTES = 1
write = Store.write
def remember(store, view, number, *content):
    write(store, view, number, *content)
    with open(Path(sys.argv[1], f"rank{dist.get_rank()}"), "a") as stream:
        stream.write(f"{store.path.name} {view} {number}\\n")
Store.write = remember
train.main(sys.argv[2:])
"""


def test_two_ranks_share_the_extraction_and_train_from_it(tiny, parts, small_files, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "render", RENDER)  # as in the processes
    script = tmp_path / "rank.py"
    script.write_text(RANK_SCRIPT)
    options = [tmp_path, tiny(LARGER), "--launcher", "pytorch", "--work-dir", tmp_path / "run"]
    command = [sys.executable, *TWO_RANKS, script, *options, "--features", tmp_path / "pair"]
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = [set((tmp_path / f"rank{rank}").read_text().splitlines()) for rank in (0, 1)]
    assert written[0] and written[1] and not written[0] & written[1]
    config, probe, data, _ = parts(LARGER)
    alone = extract.ensure(config, probe, data, config.train_dataloader)
    pair = find(tmp_path / "pair", alone.key)
    assert pair.missing() == []
    for shard in alone.shards(1):
        stored, single = (load_file(store.file(*shard)) for store in (pair, alone))
        assert set(stored) == set(single)
        assert all(torch.allclose(stored[n].float(), single[n].float(), rtol=2e-3, atol=1e-5) for n in single)
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["data"]["images"] == 7 and record["protocol"]["optimisation"]["images_per_step"] == 4


def test_maps_in_the_text_space_are_stored_too(parts):
    config, probe, _, data = parts(TEXTS)
    probe.aligned = Alignment()
    probe.heads["names"].text = torch.randn(6, 768)
    probe.eval()
    features = [batch["inputs"][0] for batch in extract.test_images(config, probe, data, config.val_dataloader)]
    for index in (0, 6):
        window = data[index].image[:, :48, :48]
        assert close(features[index].aligned[0], probe.encoder.dense_embed([window])[0])
        (wanted,) = probe([data[index].image], [data[index]], mode="predict")
        found = probe.predict_stored(features[index])
        assert (found["names"] == wanted["names"]).float().mean() > 0.999
    probe.aligned = Alignment("raw")
    assert (
        find(extract.Path(config.feature_store.dir), extract.key_of(config, probe, data, config.val_dataloader, True))
        is None
    )
