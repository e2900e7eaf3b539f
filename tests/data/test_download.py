import io
import os
import re
import tarfile
import threading
import zipfile
from collections import namedtuple
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from siglip2_dense.data import download
from siglip2_dense.data.download import fetch, open_tar, unpack
from siglip2_dense.errors import UserError

CONTENT = bytes(range(256)) * 3000
CHECKSUM = md5(CONTENT).hexdigest()


class _Server(ThreadingHTTPServer):
    """Serves CONTENT at every path; ``cuts`` answers end early, after ``cut`` bytes."""

    ranges, cuts, cut = True, 0, 300_000

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked = []  # the Range of each request
        self.url = f"http://127.0.0.1:{self.server_port}/file.bin"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop = None
        if self.server.cuts:
            self.server.cuts -= 1
            stop = start + self.server.cut
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _names(folder):
    return sorted(os.listdir(folder))


def test_a_file_is_fetched_once(server, tmp_path):
    path = tmp_path / "new" / "file.bin"
    assert fetch(server.url, path, checksum=CHECKSUM) == path
    assert path.read_bytes() == CONTENT and _names(path.parent) == ["file.bin"]
    fetch(server.url, path, checksum=CHECKSUM)
    assert server.asked == [None]


def test_a_cut_connection_is_taken_up_again(server, tmp_path):
    server.cuts = 2
    fetch(server.url, tmp_path / "file.bin", checksum=CHECKSUM)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=600000-"]


def test_a_part_of_an_earlier_run_is_gone_on_from(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    fetch(server.url, tmp_path / "file.bin", checksum=CHECKSUM)
    assert server.asked == ["bytes=1000-"] and _names(tmp_path) == ["file.bin"]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    fetch(server.url, tmp_path / "file.bin", checksum=CHECKSUM)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"], ids=["whole", "too long"])
def test_a_part_with_nothing_left_to_fetch(server, tmp_path, part):
    (tmp_path / "file.bin.part").write_bytes(part)
    fetch(server.url, tmp_path / "file.bin", checksum=CHECKSUM)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_connection_that_brings_nothing_more_ends_in_a_sentence(server, tmp_path):
    server.ranges, server.cuts = False, 99
    with pytest.raises(
        UserError, match=r"connection ended after 300,000 of 768,000 bytes\); 300,000 bytes of it are in"
    ):
        fetch(server.url, tmp_path / "file.bin", checksum=CHECKSUM)
    assert _names(tmp_path) == ["file.bin.part"] and len(server.asked) == 2


def test_a_wrong_checksum_leaves_no_file(server, tmp_path):
    with pytest.raises(
        UserError, match=rf"the md5 {CHECKSUM}, expected {'0' * 32}, and was deleted\. Run .* place it as"
    ):
        fetch(server.url, tmp_path / "file.bin", checksum="0" * 32)
    assert _names(tmp_path) == []


def test_a_file_placed_by_hand_is_checked_and_not_deleted(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"page not found")
    with pytest.raises(UserError, match=rf"file\.bin: its md5 is \w+, expected {CHECKSUM}; .*Remove it"):
        fetch(server.url, tmp_path / "file.bin", checksum=CHECKSUM)
    assert (tmp_path / "file.bin").exists() and not server.asked


def test_a_server_out_of_reach_is_named_with_what_is_kept(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    url = server.url.replace(str(server.server_port), "9")  # a port that nothing listens on
    pattern = rf"{url}: the download failed .*1,000 bytes of it are in .*part\..* place it as {tmp_path}/file\.bin\."
    with pytest.raises(UserError, match=pattern):
        fetch(url, tmp_path / "file.bin", checksum=CHECKSUM)
    assert (tmp_path / "file.bin.part").stat().st_size == 1000


def test_a_full_disk_is_noticed_before_the_download(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 0, 10)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"0\.0 GB are needed and 0\.0 GB are free; make room"):
        fetch(server.url, tmp_path / "file.bin")
    assert not (tmp_path / "file.bin.part").exists()


def _write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def _write_tar(path, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


WRITERS = {"a.zip": _write_zip, "a.tar": _write_tar, "a.tgz": _write_tar}


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_of_an_archive_takes_the_name(tmp_path, name):
    WRITERS[name](tmp_path / name, {"top/set/one/a.txt": b"a", "top/set/b.txt": b"b", "top/readme": b"r"})
    (tmp_path / ".mine.unpacking/top/set").mkdir(parents=True)  # left by a kill
    (tmp_path / ".mine.unpacking/top/set/old.txt").touch()
    unpack(tmp_path / name, tmp_path / "mine", "top/set")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == [name, "mine/b.txt", "mine/one/a.txt"] and _names(tmp_path) == [name, "mine"]


@pytest.mark.parametrize("evil", ["../evil.txt", "set/../../evil.txt", "/{}/evil.txt"])
@pytest.mark.parametrize("name", WRITERS)
def test_an_archive_that_writes_elsewhere_is_refused(tmp_path, name, evil):
    evil = evil.format(str(tmp_path).lstrip("/"))
    WRITERS[name](tmp_path / name, {"set/a.txt": b"a", evil: b"b"})
    if evil.startswith("/") and name != "a.zip":
        unpack(tmp_path / name, tmp_path / "mine", "set")  # tarfile makes absolute names relative
    else:
        with pytest.raises(UserError, match=rf"{re.escape(name)}: damaged, or not an archive that is safe .*outside"):
            unpack(tmp_path / name, tmp_path / "mine")
        assert _names(tmp_path) == [name]
    assert not (tmp_path / "evil.txt").exists() and not (tmp_path.parent / "evil.txt").exists()


@pytest.mark.parametrize("name", WRITERS)
def test_a_cut_archive_leaves_nothing(tmp_path, name):
    WRITERS[name](tmp_path / name, {"set/a.bin": os.urandom(100_000), "set/b.bin": os.urandom(100_000)})
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:150_000])
    with pytest.raises(UserError, match=rf"{re.escape(name)}: damaged"):
        unpack(tmp_path / name, tmp_path / "mine")
    assert _names(tmp_path) == [name]


def test_a_folder_with_files_is_not_touched(tmp_path):
    _write_zip(tmp_path / "a.zip", {"set/a.txt": b"a"})
    (tmp_path / "mine").mkdir()
    unpack(tmp_path / "a.zip", tmp_path / "mine", "set")  # an empty one may be there
    with pytest.raises(UserError, match="mine holds other files already; move them away"):
        unpack(tmp_path / "a.zip", tmp_path / "mine", "set")
    with pytest.raises(UserError, match=r"a\.zip has no folder sets: it is another archive"):
        unpack(tmp_path / "a.zip", tmp_path / "other", "sets")


def test_a_tar_is_read_from_front_to_back(tmp_path):
    _write_tar(tmp_path / "a.tgz", {"a": b"1", "b": b"2"})
    with open_tar(tmp_path / "a.tgz") as tar:
        assert {member.name: tar.extractfile(member).read() for member in tar} == {"a": b"1", "b": b"2"}
