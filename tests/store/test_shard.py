"""One file of features: what is written is read, by us and by others, and damage is told."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from toys import TAPS, toy_features, toy_sample

from siglip2_dense.contracts import Features, Sample
from siglip2_dense.errors import UserError
from siglip2_dense.store.packing import pack_targets
from siglip2_dense.store.shard import Shard, ShardWriter, features_of, narrowed, tensors_of


@pytest.fixture
def written(tmp_path):
    """Five images of two sizes, in turn; the last has three windows."""
    writer, parts = ShardWriter(), []
    for index in range(5):
        cells = (2, 3) if index % 2 else (4, 1)
        parts.append(narrowed(toy_features(index, cells=cells, rows=3 if index == 4 else 1), torch.float16, [Sample()]))
        sample = toy_sample(index)
        writer.add(parts[-1], sample, pack_targets(sample))
    path = tmp_path / "shard.safetensors"
    writer.write(path)
    return path, parts


def test_rows_of_a_size_lie_side_by_side_and_are_read_at_once(written):
    path, parts = written
    shard = Shard(path)
    assert shard.rows.tolist() == [[64, 16, 0, 1], [32, 48, 0, 1], [64, 16, 1, 1], [32, 48, 1, 1], [64, 16, 2, 3]]
    names = shard.names((64, 16))
    assert sorted(names) == ["map/1/raw", "map/3/norm", "pooled", "prefix/1/raw", "prefix/3/norm"]
    tensors = {}
    for name in names:
        tensors[name] = torch.empty(4, *shard.shape((64, 16), name), dtype=torch.float16)
        shard.read((64, 16), name, 1, tensors[name])
    found = features_of(tensors, parts[2].geometry + parts[4].geometry, None)
    expected = Features.cat([parts[2], parts[4]])
    assert all(torch.equal(found.maps[tap], expected.maps[tap]) for tap in TAPS)
    assert all(torch.equal(found.prefix[tap], expected.prefix[tap]) for tap in TAPS)
    assert torch.equal(found.pooled, expected.pooled)


def test_bytes_of_some_images(written):
    shard = Shard(written[0])
    for first, last in ((0, 5), (0, 1), (2, 4), (4, 5)):
        packed = [pack_targets(toy_sample(index)) for index in range(first, last)]
        assert shard.bytes("depth", first, last) == [targets["depth"] for targets in packed]
    assert shard.bytes("normals", 1, 3) == [b"", b""]


def test_other_programs_can_read_it(written):
    with safe_open(written[0], "pt") as stream:
        maps = stream.get_slice("32x48/map/3/norm")[0:1]
    assert torch.equal(maps.permute(0, 3, 1, 2), written[1][1].maps[TAPS[1]])


def test_a_writer_begins_anew_with_each_file(written, tmp_path):
    writer, sample = ShardWriter(), toy_sample(0)
    for name in ("one", "two"):
        writer.add(narrowed(toy_features(0), torch.float16, [sample]), sample, pack_targets(sample))
        writer.write(tmp_path / name)
    assert len(Shard(tmp_path / "one")) == len(Shard(tmp_path / "two")) == 1


def test_a_writer_that_failed_holds_nothing_any_more(tmp_path, monkeypatch):
    import safetensors.torch

    writer, sample = ShardWriter(), toy_sample(0)
    writer.add(narrowed(toy_features(0), torch.float16, [sample]), sample, pack_targets(sample))
    assert writer.indices == [0]
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", None)
        with pytest.raises(TypeError):
            writer.write(tmp_path / "none")
    assert writer.indices == [] and not list(tmp_path.iterdir())


def test_features_in_the_text_space_and_without_the_rest():
    bare = Features({}, toy_features(0).geometry, aligned=torch.randn(1, 5, 2, 3))
    again = features_of(tensors_of(bare), bare.geometry, None)
    assert torch.equal(again.aligned, bare.aligned) and again.maps == {} and again.prefix is again.pooled is None


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_named(written, kept):
    path = written[0]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"shard.safetensors.*siglip2-dense features verify"):
        Shard(path).bytes("labels", 0, 5)


def test_what_the_type_cannot_hold_is_told_with_its_image():
    features, samples = toy_features(0, rows=2), [Sample(path="good.jpg"), Sample(path="loud.jpg")]
    features.maps[TAPS[0]][1, 2, 0, 1] = -7e4
    with pytest.raises(UserError, match=r'loud.jpg: features of up to 7e\+04 exceed .* feature_store.dtype="bf16"'):
        narrowed(features, torch.float16, samples)
    assert narrowed(features, torch.bfloat16, samples).maps[TAPS[0]].dtype == torch.bfloat16
    broken = replace(features, pooled=torch.full((2, 6), float("nan")))
    with pytest.raises(UserError, match=r"good.jpg: .* no finite numbers"):
        narrowed(replace(broken, maps={}), torch.float16, samples)
