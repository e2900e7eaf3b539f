"""A folder of stores: nothing is mistaken for anything else, and nothing is lost."""

import copy
import errno
import json
import os
import time
from dataclasses import replace

import pytest
import torch
from toys import FACTS, TAPS, fill, toy_features, toy_key, toy_sample

from siglip2_dense.contracts import Alignment, Tap
from siglip2_dense.errors import UserError
from siglip2_dense.store import folder
from siglip2_dense.store import store as store_module
from siglip2_dense.store.folder import (
    contents,
    described,
    find,
    load,
    nearest,
    planned,
    remove,
    remove_leftovers,
    stores,
)
from siglip2_dense.store.key import covers, digest
from siglip2_dense.store.packing import pack_targets
from siglip2_dense.store.shard import ShardWriter, narrowed


def leaves(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    children = [leaf for key, inner in items for leaf in leaves(inner, (*path, key))]
    return children or [path]


def test_every_field_of_a_key_counts():
    key = toy_key(5, windows=dict(mode="slide", crop=48, stride=32, flip=True), canvas=(48, 48), aligned=Alignment())
    found = {digest(key)}
    places = leaves(key)
    for path in places:
        changed = copy.deepcopy(key)
        inner = changed
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = "another"
        found.add(digest(changed))
    assert len(found) == len(places) + 1
    named = {path[0] for path in places} | {path[1] for path in places if path[0] in ("encoder", "data")}
    assert {
        "fingerprint", "precision", "sequence_length", "position_kernel", "mean", "std", "taps", "pooled", "aligned",
        "dtype", "name", "split", "images", "settings", "seed", "canvas", "windows",
    } <= named  # fmt: skip


def test_a_key_does_not_depend_on_the_order_in_which_things_are_named():
    again = dict(reversed(toy_key(5).items()))
    assert digest(again) == digest(toy_key(5)) == digest(toy_key(5, taps=TAPS[::-1]))


def test_more_taps_serve_where_fewer_are_asked_for():
    held = toy_key(5)
    assert covers(held, toy_key(5, taps=TAPS[:1], pooled=False))
    assert not covers(toy_key(5, pooled=False), held)
    for wanted in (dict(taps=[Tap(3, False)]), dict(seed=1), dict(dtype="bf16"), dict(canvas=(16, 16))):
        assert not covers(held, toy_key(5, **wanted))


def test_a_store_is_found_by_its_key_alone(toy_store):
    store = toy_store(views=2)
    place = store.path.parent
    assert find(place, toy_key(21)) == store == load(store.path)
    assert find(place, toy_key(21, taps=TAPS[1:])) == store
    assert find(place, toy_key(21, taps=TAPS[1:]), views=3) is None  # it is not whole then
    assert find(place, toy_key(21, seed=1)) is None
    other = toy_key(21, facts=replace(FACTS, fingerprint="0" * 64))
    assert find(place, other) is None


def test_the_store_that_nearly_serves_is_named(toy_store):
    store = toy_store()
    place = store.path.parent
    toy_store(canvas=(16, 16), dtype="bf16")
    assert nearest(place, toy_key(21, seed=1)) == f"in {store.path}, seed was 0 there and is 1 now"
    other = replace(FACTS, fingerprint="0" * 64, name="another")
    assert "encoder.name was 'toy' there and is 'another' now" in nearest(place, toy_key(21, facts=other))
    assert "encoder.fingerprint was 'fff" in nearest(place, toy_key(21, facts=replace(FACTS, fingerprint="0" * 64)))
    assert nearest(place, toy_key(21, windows=dict(mode="whole"))) == ""
    assert "has more layers, but not extracted" in nearest(place, toy_key(21, taps=TAPS[1:]), views=2)


def test_files_that_are_missing_cut_or_changed(toy_store):
    store = toy_store(views=2)
    assert store.missing(2) == [] and store.views() == 2 and store.shards_per_view == 2
    assert store.missing(3) == [(2, 0), (2, 1)]
    content = store.file(0, 1).read_bytes()
    store.file(0, 1).write_bytes(content[:-1])
    assert "truncated" in store.problem(0, 1)
    store.file(1, 0).unlink()
    assert store.problem(1, 0) == "gone"
    store.file(1, 1).with_suffix(".json").write_text("{")
    assert store.missing(2) == [(0, 1), (1, 0), (1, 1)]
    for shard in store.missing(2):
        fill(store, *shard)
    assert store.missing(2) == [] and store.file(0, 1).read_bytes() == content


def test_a_file_of_the_right_size_that_was_changed_is_read_and_not_used(toy_store):
    store = toy_store()
    path = store.file(0, 0)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert store.problem(0, 0) == "changed since it was written"  # it is younger than its checksum
    old = time.time_ns() - 10**12
    os.utime(path, ns=(old, old))
    assert store.problem(0, 0) == ""
    assert store.problem(0, 0, thorough=True) == "changed since it was written"


def test_a_copy_without_its_times_is_read_once(toy_store, monkeypatch):
    store = toy_store()
    later = time.time_ns() + 10**9
    os.utime(store.file(0, 0), ns=(later, later))
    read, checksum = [], store_module.checksum
    monkeypatch.setattr(store_module, "checksum", lambda path: read.append(path) or checksum(path))
    time.sleep(1.1)
    assert store.problem(0, 0) == store.problem(0, 0) == "" and len(read) == 1


def test_a_full_disk_leaves_what_was_there(toy_store, monkeypatch):
    store = toy_store()
    before = sorted(path.name for path in store.path.iterdir())

    def full(path, algorithm="sha256"):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "checksum", full)
        with pytest.raises(UserError, match=r"the disk is full .* what was extracted before is kept"):
            fill(store, 1, 0)
    assert sorted(path.name for path in store.path.iterdir()) == before and store.missing() == []

    import safetensors.torch

    def half(tensors, path):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: IoError(Os { message: 'No space left on device' })")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(UserError, match="the disk is full"):
        fill(store, 1, 1)
    assert sorted(path.name for path in store.path.iterdir()) == before


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_whatever_the_disk_refuses_is_a_sentence(toy_store, monkeypatch, number):
    import safetensors.torch

    store, error = toy_store(), OSError(number, os.strerror(number))

    def refused(*arguments, **options):
        raise error

    reason = "the disk quota is used up" if number == errno.EDQUOT else f"no file can be written, {error.strerror}"
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", refused)
        with pytest.raises(UserError, match=rf"{reason} \(.*\); what was extracted before is kept.*the same command"):
            fill(store, 0, 0)
    text = f"Error while serializing: I/O error: {error.strerror} (os error {number})"
    with monkeypatch.context() as patch:
        patch.setattr(
            safetensors.torch, "save_file", lambda *_: (_ for _ in ()).throw(safetensors.SafetensorError(text))
        )
        with pytest.raises(UserError, match="quota is used up" if number == errno.EDQUOT else error.strerror):
            fill(store, 0, 0)
    fill(store, 0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(type(store.path), "unlink", refused)
        with pytest.raises(UserError, match=reason):
            store.forget(0, 1)
        remove_leftovers(store.path.parent)
    with monkeypatch.context() as patch:
        patch.setattr(folder.shutil, "rmtree", refused)
        with pytest.raises(UserError, match=rf"cannot be removed \({error.strerror}\)"):
            list(remove(store.path.parent, [store.path.name]))
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "checksum", refused)
        assert store.problem(0, 1, thorough=True) == f"cannot be read ({error.strerror})"
    assert store.missing() == []


def test_only_the_images_of_a_shard_go_into_it(toy_store):
    store = toy_store()
    content = store.file(0, 1).read_bytes()
    for wrong in ([0, 1, 2, 3, 4], list(store.order()[16:20]), [*store.order()[16:], 3], list(store.order()[20:15:-1])):
        writer = ShardWriter()
        for index in wrong:
            sample = toy_sample(int(index))
            writer.add(narrowed(toy_features(int(index)), torch.float16, [sample]), sample, pack_targets(sample))
        with pytest.raises(UserError, match=r"0-00001.safetensors was to hold the images .* and was given"):
            store.write(0, 1, writer)
    assert store.missing() == [] and store.file(0, 1).read_bytes() == content


def test_others_may_read_what_one_has_extracted(toy_store):
    store = toy_store()
    modes = {path.stat().st_mode for path in store.path.iterdir()}
    assert len(modes) == 1


def test_a_note_that_is_gone_between_two_looks(toy_store):
    store = toy_store()
    store.forget(0, 0)
    assert store.changed(0, 0, lambda index: []) == "" and store.changed(0, 0, lambda index: [store.path])


def test_images_of_training_lie_mixed_and_those_of_evaluation_in_order(tmp_path):
    mixed = planned(tmp_path, toy_key(50), FACTS, 16).order()
    assert sorted(mixed) == list(range(50)) and list(mixed) != list(range(50))
    straight = planned(tmp_path, toy_key(50, windows=dict(mode="whole")), FACTS, 16)
    assert list(straight.order()) == list(range(50))
    assert list(straight.positions(3)) == [48, 49] and straight.shards_per_view == 4


def test_a_folder_of_something_else(toy_store):
    store = toy_store()
    manifest = store.path / "manifest.json"
    values = json.loads(manifest.read_text())
    values["key"]["seed"] = 3
    manifest.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"changed by hand: seed was 3 in the store and is 0 now"):
        find(store.path.parent, toy_key(21))
    manifest.write_text(json.dumps({**values, "format": "siglip2_dense features, version 0"}))
    with pytest.raises(UserError, match=r"another version .*prune .*features train-"):
        load(store.path)
    manifest.write_text("{")
    with pytest.raises(UserError, match="cannot be read as a store's"):
        load(store.path)


def test_what_cannot_be_read_is_passed_over_listed_and_removed(toy_store):
    store, old = toy_store(), toy_store(seed=7)
    place = store.path.parent
    manifest = json.loads((old.path / "manifest.json").read_text())
    (old.path / "manifest.json").write_text(json.dumps({**manifest, "format": "siglip2_dense features, version 0"}))
    (place / "a").mkdir()
    (place / "a" / "manifest.json").write_text("[]")
    assert list(stores(place)) == [store] and find(place, toy_key(21, taps=TAPS[1:])) == store
    assert nearest(place, toy_key(21, seed=1)) == f"in {store.path}, seed was 0 there and is 1 now"
    found = {one.path: one for one in contents(place)}
    assert set(found) == {store.path, old.path, place / "a"} and "version 0" in found[old.path].problem
    rows = {row["store"]: row for row in described(list(found.values()))}
    assert rows[old.path.name]["complete"] == rows["a"]["complete"] == "cannot be read"
    with pytest.raises(UserError, match="has no store 'b'; it has a, train-"):
        list(remove(place, ["a", "b"]))
    assert len(list(remove(place, ["a", old.path.name]))) == 2 and list(place.iterdir()) == [store.path]


def test_stores_that_look_alike_are_told_apart(toy_store):
    found = [
        toy_store(),
        toy_store(seed=1, canvas=(32, 48)),
        toy_store(encoder={"precision": "bf16"}),
        toy_store(taps=TAPS[:1]),
    ]
    rows = [row.get("otherwise") for row in described(found)]
    assert rows == [
        "canvas=None encoder.precision=fp32 seed=0",
        "canvas=[32, 48] encoder.precision=fp32 seed=1",
        "canvas=None encoder.precision=bf16 seed=0",
        None,
    ]
    rows = described([found[0], found[2]])
    assert [row["otherwise"] for row in rows] == ["encoder.precision=fp32", "encoder.precision=bf16"]
    many = dict(name="toys", split="train", images=21, fingerprint="e" * 64, settings=dict.fromkeys("abcd", 1))
    words = described([toy_store(data=many), found[0]])[0]["otherwise"].split(" ")
    assert words == [f"data.fingerprint={'e' * 23}…", "a=1", "b=1", "c=1", "…"]


def test_half_written_files_of_killed_runs_are_swept_in_time(toy_store):
    store = toy_store()
    fresh, stale = (store.path / f".0-00000.safetensors.{name}.tmp" for name in ("fresh", "stale"))
    for path in (fresh, stale):
        path.write_bytes(b"x")
    os.utime(stale, (0, 0))
    remove_leftovers(store.path.parent)
    assert fresh.exists() and not stale.exists()
