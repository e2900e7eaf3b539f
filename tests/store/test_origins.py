"""Files that are replaced are noticed, and those that are only copied are not."""

import os

import pytest

from siglip2_dense.store import origins
from siglip2_dense.store.origins import Origin, compared


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("image.png", "labels.png")]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100)
        os.utime(path, ns=(10**18, 10**18))
    return paths


def noted(files):
    return [Origin.of(path).note() for path in files]


def test_the_same_files_are_not_read(files, monkeypatch):
    notes = noted(files)
    monkeypatch.setattr(origins, "digest", None)
    assert compared(files, notes) == ("", notes)


def test_a_copy_with_another_time_is_read_and_its_time_learnt(files):
    notes = noted(files)
    os.utime(files[1], ns=(10**18, 2 * 10**18))
    problem, today = compared(files, notes)
    assert problem == "" and today == [notes[0], [100, 2 * 10**18, notes[1][2]]]


@pytest.mark.parametrize("time", [10**17, 2 * 10**18])
def test_another_content_of_the_same_size(files, time):
    notes = noted(files)
    files[1].write_bytes(b"x" * 100)
    os.utime(files[1], ns=(time, time))
    problem, today = compared(files, notes)
    assert problem == f"{files[1]} is another than it was made of" and today == notes


def test_a_file_that_was_changed_while_it_was_read_is_not_trusted(files):
    before = [Origin.of(path) for path in files]
    files[0].write_bytes(b"y" * 100)
    files[1].unlink()
    notes = [origin.note() for origin in before]
    assert [note[2] for note in notes] == ["", ""]
    files[1].write_bytes(bytes([1]) * 100)
    os.utime(files[1], ns=(10**18, 10**18))
    assert compared(files[1:], notes[1:])[0] and compared(files[:1], notes[:1])[0]


def test_notes_of_other_files(files):
    assert compared(files, noted(files)[:1])[0] == "it is not known which files it was made of"
    assert compared([], []) == ("", [])


def test_one_large_file_of_all_images_is_read_once(files, monkeypatch):
    digest, read = origins.digest, []
    monkeypatch.setattr(origins, "digest", lambda path: read.append(path) or digest(path))
    noted([files[0]] * 5)
    assert len(read) == 1
