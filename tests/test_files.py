"""Files are whole or not there; hints name what is near."""

import hashlib
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from siglip2_dense.errors import UserError, first_difference, nearest
from siglip2_dense.files import atomic, digest, free_bytes, load_tensors, size_text, write_text


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]
    assert digest(path) == hashlib.sha256(b"new").hexdigest() and digest(path, "md5") == hashlib.md5(b"new").hexdigest()


def test_bytes_for_a_person():
    sizes = (0, 999, 1000, 2.5e6, 3.14159e9, 12e12, 5e15)
    assert [size_text(size) for size in sizes] == ["0 B", "999 B", "1 kB", "2.5 MB", "3.14 GB", "12 TB", "5e+03 TB"]


def test_free_bytes_where_a_folder_will_be(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=7))
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert free_bytes(tmp_path / "a" / "b") == free_bytes(tmp_path / "file") == free_bytes(Path("a/b")) == 7
    assert set(asked) == {tmp_path}


def test_arrays_of_numpy_are_tensors(tmp_path):
    """Names keep their slashes; JAX writes bfloat16 as two bytes without a type."""
    path = tmp_path / "arrays.npz"
    half = torch.tensor([1.5, -2.0, 3.140625]).bfloat16()
    arrays = {"params/t": np.float32(2), "params/w": np.arange(6, dtype=np.float16).reshape(2, 3)}
    np.savez(path, **arrays, half=half.view(torch.int16).numpy().view("V2"))
    loaded = load_tensors(path)
    assert torch.equal(loaded["half"], half) and loaded["half"].dtype == torch.bfloat16
    assert loaded["params/t"].shape == () and loaded["params/t"] == 2
    assert torch.equal(loaded["params/w"], torch.arange(6).half().view(2, 3))


@pytest.mark.parametrize("content", ["truncated", "objects", "words"])
def test_archives_that_are_not_loaded(tmp_path, content):
    path = tmp_path / "arrays.npz"
    bomb = np.array([pytest.fail], dtype=object)  # would have to be unpickled
    np.savez(path, a=bomb if content == "objects" else np.zeros(1000))
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    if content == "words":
        path.write_text("# Read me")
    with pytest.raises(UserError, match=r"arrays\.npz: truncated or not a file of tensors.*; delete it") as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_program_is_not_run(tmp_path):
    """OpenAI gives CLIP as TorchScript, which holds code."""
    path = tmp_path / "ViT-B-16.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
        with pytest.raises(UserError, match="TorchScript archive"):
            load_tensors(path)


def test_nearest():
    assert nearest("layer", ["layers", "norm", "pooled"]) == "did you mean 'layers'?"
    assert nearest("zzz", ["layers"], "there is layers.") == "there is layers."


def test_first_difference():
    same = {"a": [1, {"b": (2, 3)}], "c": None}
    assert first_difference(same, {"a": [1, {"b": [2, 3]}], "c": None}) == ""
    assert first_difference(same, {"a": [1, {"b": (2, 4)}], "c": None}) == "a.1.b.1 was 3 in the saved run and is 4 now"
    assert first_difference({"a": 1}, {}) == "a is set only in the saved run"
    assert first_difference({}, {"x": {"y": 1}}, "top") == "top.x is set only now"
