"""Files are whole or not there; hints name what is near."""

import hashlib

import pytest

from siglip2_dense.errors import first_difference, nearest
from siglip2_dense.files import atomic, digest, write_text


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


def test_nearest():
    assert nearest("layer", ["layers", "norm", "pooled"]) == "did you mean 'layers'?"
    assert nearest("zzz", ["layers"], "there is layers.") == "there is layers."


def test_first_difference():
    same = {"a": [1, {"b": (2, 3)}], "c": None}
    assert first_difference(same, {"a": [1, {"b": [2, 3]}], "c": None}) == ""
    assert first_difference(same, {"a": [1, {"b": (2, 4)}], "c": None}) == "a.1.b.1 was 3 in the saved run and is 4 now"
    assert first_difference({"a": 1}, {}) == "a is set only in the saved run"
    assert first_difference({}, {"x": {"y": 1}}, "top") == "top.x is set only now"
