"""Folders and videos from the command line: what is written, skipped, left out, and what a full disk leaves."""

import errno
import json
import os

import cv2
import numpy as np
import pytest
from heads_made import DEPTH, NORMALS, SEGMENTATION, write_head
from PIL import Image

from siglip2_dense import Predictor
from siglip2_dense.cli import predict as verb
from siglip2_dense.cli.common import run
from siglip2_dense.errors import UserError
from siglip2_dense.predict import files as module

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    write_head(folder / "seg.safetensors", {"segmentation": SEGMENTATION})
    write_head(folder / "geometry.safetensors", {"depth": DEPTH, "normals": NORMALS})
    write_head(folder / "other.safetensors", {"segmentation": SEGMENTATION}, seed=1)
    return folder


@pytest.fixture
def predict(heads, tmp_path, capsys, monkeypatch):
    """``predict(*arguments, heads=[...])`` -> (exit code, what was printed, errors); results are in tmp_path/out."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, names=("seg",)):
        chosen = [part for name in names for part in ("--head", str(heads / f"{name}.safetensors"))]
        code = run(verb.main, [*map(str, arguments), *chosen, "--out", "out"])
        return code, *capsys.readouterr()

    return call


def photograph(path, size=(40, 50), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_sub_folders(predict, heads, tmp_path):
    images = {f"in/{name}.png": photograph(tmp_path / f"in/{name}.png", seed=i)
              for i, name in enumerate(("a", "x/a", "x/y/b"))}  # fmt: skip
    code, out, err = predict("in", "--floats", names=("seg", "geometry"))
    assert code == 0, err
    predictor = Predictor([heads / "seg.safetensors", heads / "geometry.safetensors"])
    for path, pixels in images.items():
        stem = tmp_path / "out" / path.removeprefix("in/").removesuffix(".png")
        expected = predictor(pixels)
        assert (np.asarray(Image.open(f"{stem}_labels.png")) == expected.segmentation.ids).mean() > 0.999
        with np.load(f"{stem}_depth.npz") as depth, np.load(f"{stem}_normals.npz") as normals:
            assert np.allclose(depth["depth"], expected.depth_m, atol=1e-4)
            assert np.allclose(normals["normals"], expected.normals, atol=1e-4)
        assert json.loads(stem.with_name(f"{stem.name}.json").read_text())["image"] == path
        assert f"{path} -> out/" in out
    assert len(contents(tmp_path / "out")) == 3 * 9  # labels, depth and normals twice, three pictures, JSON


def test_what_is_there_is_skipped_and_what_is_lost_is_made_again(predict, tmp_path):
    for number in range(3):
        photograph(tmp_path / f"in/{number}.png", seed=number)
    assert predict("in")[0] == 0
    before = contents(tmp_path / "out")
    (tmp_path / "out/1_labels.png").unlink()
    (tmp_path / "out/2.json").unlink()
    photograph(tmp_path / "in/3.png", seed=3)
    code, out, _ = predict("in", "--json")
    told = json.loads(out)
    assert code == 0 and told["skipped"] == ["in/0.png"] and told["failed"] == []
    assert [one["image"] for one in told["predicted"]] == ["in/1.png", "in/2.png", "in/3.png"]
    assert set(told["predicted"][0]["files"]) == {"out/1.json", "out/1_labels.png", "out/1_overlay.png"}
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert json.loads(predict("in", "--json", "--overwrite")[1])["skipped"] == []
    assert predict("in", "--json")[0] == 0


def test_floats_that_are_missing_are_made(predict, tmp_path):
    photograph(tmp_path / "a.png")
    assert predict("a.png", names=("geometry",))[0] == 0 and not (tmp_path / "out/a_depth.npz").exists()
    assert predict("a.png", "--floats", names=("geometry",))[0] == 0 and (tmp_path / "out/a_depth.npz").exists()
    assert json.loads(predict("a.png", "--floats", "--json", names=("geometry",))[1])["skipped"] == ["a.png"]


def test_another_image_of_the_same_name_is_not_taken_for_done(predict, tmp_path):
    photograph(tmp_path / "a/x.png", seed=0)
    photograph(tmp_path / "b/x.png", seed=1)
    assert predict("a/x.png")[0] == 0
    before = contents(tmp_path / "out")
    code, _, err = predict("b/x.png")
    assert code == 1 and "out/x.json is what was predicted of a/x.png, not of b/x.png" in err
    assert contents(tmp_path / "out") == before
    assert json.loads(predict(tmp_path / "a/x.png", "--json")[1])["skipped"] == [str(tmp_path / "a/x.png")]
    write_video(tmp_path / "a/x.mp4", 2)
    assert "not of a/x.mp4" in predict("a/x.mp4", "--frames")[2]


def test_images_of_one_name_and_two_kinds(predict, tmp_path):
    photograph(tmp_path / "in/x.png", seed=0)
    photograph(tmp_path / "in/x.bmp", seed=1)
    assert predict("in")[0] == 0
    assert {"x.png.json", "x.png_labels.png", "x.bmp.json", "x.bmp_labels.png"} <= set(contents(tmp_path / "out"))
    assert json.loads(predict("in", "--json")[1])["skipped"] == ["in/x.bmp", "in/x.png"]


def test_an_image_that_has_changed_is_predicted_again(predict, tmp_path):
    photograph(tmp_path / "x.png", seed=0)
    assert predict("x.png")[0] == 0
    photograph(tmp_path / "x.png", size=(30, 60), seed=1)
    later = (tmp_path / "out/x.json").stat().st_mtime + 1
    os.utime(tmp_path / "x.png", (later, later))
    assert predict("x.png")[0] == 0
    assert json.loads((tmp_path / "out/x.json").read_text())["size"] == [30, 60]


def test_files_of_others_are_not_written_over(predict, tmp_path):
    photograph(tmp_path / "a.png")
    assert predict("a.png")[0] == 0
    before = contents(tmp_path / "out")
    code, _, err = predict("a.png", names=("other",))
    assert code == 1 and "out/a.json was predicted by other heads or with other settings; give --overwrite" in err
    assert contents(tmp_path / "out") == before
    assert predict("a.png", "--overwrite", names=("other",))[0] == 0
    (tmp_path / "out/a.json").write_text('{"mine": 1}')
    code, _, err = predict("a.png")
    assert code == 1 and "out/a.json was not written by a prediction" in err
    assert (tmp_path / "out/a.json").read_text() == '{"mine": 1}'


def test_a_broken_file_is_named_and_the_rest_goes_on(predict, tmp_path):
    photograph(tmp_path / "in/a.png")
    (tmp_path / "in/b.jpg").write_bytes((tmp_path / "in/a.png").read_bytes()[:200])
    (tmp_path / "in/c.mp4").write_bytes(b"no video")
    photograph(tmp_path / "in/d.png", seed=1)
    code, out, err = predict("in", "--json")
    told = json.loads(out)
    assert code == 1 and "error: 2 of 4 images could not be read: in/b.jpg, in/c.mp4" in err
    assert [one["image"] for one in told["failed"]] == ["in/b.jpg", "in/c.mp4"]
    assert "no video that OpenCV can read" in told["failed"][1]["why"]
    assert {name.split("_")[0].split(".")[0] for name in contents(tmp_path / "out")} == {"a", "d"}


@pytest.mark.parametrize(("nth", "finished"), [(1, 0), (3, 0), (5, 1)])
def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(predict, tmp_path, monkeypatch, nth, finished):
    for number in range(3):
        photograph(tmp_path / f"in/{number}.png", seed=number)
    original, calls = os.fsync, []

    def full(stream):  # what was written before goes to the disk now
        calls.append(1)
        if len(calls) >= nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(stream)

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = predict("in")
    assert code == 1 and "out: cannot be written (No space left on device); what is finished is there" in err
    assert not any(".tmp" in name for name in contents(tmp_path / "out")) and len(calls) == nth
    monkeypatch.setattr(os, "fsync", original)
    code, out, _ = predict("in", "--json")
    assert code == 0 and len(json.loads(out)["predicted"]) == 3 - finished
    assert len(contents(tmp_path / "out")) == 9


def test_empty_folders_and_what_is_said_wrongly(predict, heads, tmp_path):
    (tmp_path / "in").mkdir()
    photograph(tmp_path / "a.png")
    seg = str(heads / "seg.safetensors")
    for arguments, names, sentence in (
        (["in"], ("seg",), "in: holds no image and no video"),
        (["none.png"], ("seg",), "none of the images is there"),
        (["a.png", "--prompts", "cat"], ("seg", "geometry"), "seg.safetensors has classes of its own"),
        (["a.png", "--head", str(heads)], (), "is a folder; give the head file in it"),
        (["a.png"], (), "say what to look for, by names (--prompts)"),
        (["a.png", "--prompts", "cat", "--config", "zeroshot_ade20k"], ("seg",), "seg.safetensors has classes of its"),
        (["a.png", "--weights", "random:7"], ("seg",), f"{seg} was trained on test_vit"),
        (["a.png", "--threshold", "2"], ("seg",), "threshold=2.0: give a probability"),
    ):
        code, _, err = predict(*arguments, names=names)
        assert code == 1 and sentence in err and err.count("\n") == 1, err
        assert not (tmp_path / "out").exists()


def write_video(path, frames, size=(48, 64), codec="mp4v"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10.0, size[::-1])
    for number in range(frames):
        frame = np.full((*size, 3), (number * 20) % 256, np.uint8)
        frame[:, : number * 5] = (0, 0, 255)
        writer.write(frame)
    writer.release()


def read_video(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = capture.read()
        if not there:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame[:, :, ::-1])


def test_a_video_becomes_a_video_and_maps_of_its_frames(predict, heads, tmp_path):
    write_video(tmp_path / "in.mp4", 11)
    code, _, err = predict("in.mp4", "--frames", names=("seg", "geometry"))
    assert code == 0, err
    originals, _ = read_video(tmp_path / "in.mp4")
    shown, rate = read_video(tmp_path / "out/in_overlay.mp4")
    assert len(shown) == len(originals) == 11 and rate == pytest.approx(10)
    assert shown[0].shape == (2 * 48 + 6, 2 * 64 + 6, 3)  # three heads, in two columns
    predictor = Predictor(heads / "seg.safetensors")
    for number, frame in enumerate(originals):
        labels = np.asarray(Image.open(tmp_path / f"out/in_frames/{number:06d}_labels.png"))
        expected = predictor(np.ascontiguousarray(frame)).segmentation
        assert (labels == expected.ids).mean() > 0.999
        close = np.asarray(expected.over(frame)).astype(int) - shown[number][:48, :64]
        assert np.abs(close).mean() < 12  # a codec lies between them
    about = json.loads((tmp_path / "out/in.json").read_text())
    assert about["frames"] == 11 and about["video"] == "in.mp4" and about["frames_in"] == "in_frames"
    assert json.loads(predict("in.mp4", "--frames", "--json", names=("seg", "geometry"))[1])["skipped"] == ["in.mp4"]


def test_of_a_video_frames_are_made_where_they_are_asked_for_later(predict, tmp_path):
    write_video(tmp_path / "v.avi", 3, codec="MJPG")
    assert predict("v.avi")[0] == 0
    assert sorted(contents(tmp_path / "out")) == ["v.json", "v_overlay.mp4"]
    assert predict("v.avi", "--frames")[0] == 0
    assert "v_frames/000002_labels.png" in contents(tmp_path / "out")
    assert predict("v.avi", "--frames", "--overwrite", names=("geometry",))[0] == 0
    assert predict("v.avi", "--frames", "--floats", names=("geometry",))[0] == 0
    assert "v_frames/000002_depth.npz" in contents(tmp_path / "out")
    told = json.loads(predict("v.avi", "--frames", "--floats", "--json", names=("geometry",))[1])
    assert told["skipped"] == ["v.avi"]


def test_odd_sides_are_made_even_and_sizes_may_not_change(tmp_path):
    with module.video._Writer(tmp_path / "v", 10.0) as writer:
        for _ in range(3):
            writer.write(np.full((47, 61, 3), 200, np.uint8))
        with pytest.raises(UserError, match="change their size to 40x40"):
            writer.write(np.zeros((40, 40, 3), np.uint8))
    frames, _ = read_video(tmp_path / "v")
    assert len(frames) == 3 and frames[0].shape == (48, 62, 3) and abs(int(frames[2][47, 61, 0]) - 200) < 10
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_a_video_that_could_not_be_written_leaves_nothing(predict, tmp_path, monkeypatch):
    write_video(tmp_path / "v.mp4", 4)
    original = module.video.length
    monkeypatch.setattr(
        module.video, "length", lambda path: original(path) - (1 if path.name.endswith(".tmp.mp4") else 0)
    )
    code, out, err = predict("v.mp4")
    assert code == 1 and "the video could not be written whole" in out + err
    assert not contents(tmp_path / "out")


def test_frames_of_a_video_are_held_a_few_at_a_time(predict, tmp_path, monkeypatch):
    write_video(tmp_path / "v.mp4", 40)
    read, written, ahead = [], [], []
    original, writes = module.video._frames, module.video._Writer.write

    def frames(path):
        for frame in original(path):
            read.append(1)
            yield frame

    def write(self, picture):
        written.append(1)
        ahead.append(len(read) - len(written))
        writes(self, picture)

    monkeypatch.setattr(module.video, "_frames", frames)
    monkeypatch.setattr(module.video._Writer, "write", write)
    assert predict("v.mp4")[0] == 0 and len(written) == 40 and max(ahead) <= 9
