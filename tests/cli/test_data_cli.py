import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from boxes_made import write_coco
from PIL import Image

from siglip2_dense.cli.common import run
from siglip2_dense.cli.data import MARGIN, main
from siglip2_dense.data.rgbd import RGBDFolder
from siglip2_dense.viz.layout import GAP
from siglip2_dense.viz.panels import depth_panel, normals_panel

TOOL = Path(__file__).resolve().parents[2] / "tools/data.py"
CONFIG = """
seed = 0
model = dict(encoder=dict(type="FrozenEncoder", name="efficientnet-lite0"))
train_dataloader = dict(dataset=dict(
    type="ImageFolder", root={root!r}, split="train", ignore=9, transforms=[dict(type="RandomFlip", p=1.0)]))
val_dataloader = dict(dataset=dict(
    type="ImageFolder", root={root!r}, split="train", ignore=9, transforms=[dict(type="ResizeShortSide", short=512)]))
"""


@pytest.fixture
def folder(tmp_path):
    """Four images whose left half is white and class 0, the right half black and class 1."""
    root = tmp_path / "mine"
    pixels = np.zeros((256, 300, 3), np.uint8)
    pixels[:, :150] = 255
    for i in range(4):
        for kind, array in (("images", pixels), ("labels", (pixels[..., 0] == 0).astype(np.uint8))):
            path = root / kind / "train" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    (root / "classes.txt").write_text("sky\nroad\n")
    return root


@pytest.fixture
def config(folder):
    path = folder.parent / "look.py"
    path.write_text(CONFIG.format(root=str(folder)))
    return path


def _show(capsys, *arguments):
    assert run(main, ["show", *map(str, arguments)]) == 0
    return np.asarray(Image.open(capsys.readouterr().out.split(", row by row:")[0]))


def _picture(drawn, column, size):
    """The input (0) or the labels (1) of the first sample; 22 pixels of title, 6 between two pictures."""
    left = MARGIN + column * (size[1] + 6)
    return drawn[MARGIN + 22 : MARGIN + 22 + size[0], left : left + size[1]]


def test_help_comes_at_once():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, TOOL, "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 1 and "prepare" in done.stdout


def test_a_bare_set_is_drawn_without_transforms(folder, tmp_path, capsys):
    drawn = _show(capsys, "folder", "--root", folder, "--count", 1, "--out", tmp_path / "a.png")
    image = _picture(drawn, 0, (256, 300))
    assert (image[:, :150] == 255).all() and (image[:, 150:] == 0).all()


def test_samples_are_spread_over_the_split(folder, tmp_path, capsys):
    main(["show", "folder", "--root", str(folder), "--count", "2", "--out", str(tmp_path / "a.png")])
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()[1:]] == ["0.png", "2.png"]
    assert _show(capsys, "folder", "--root", folder, "--count", 9, "--out", tmp_path / "a.png").shape[0] > 2 * 256


def test_a_config_is_drawn_after_its_transforms(config, tmp_path, capsys):
    drawn = _show(capsys, config, "--count", 2, "--out", tmp_path / "a.png")
    image, labels = (_picture(drawn, column, (256, 300)) for column in (0, 1))
    assert (image[:, :150] == 0).all() and (image[:, 150:] == 255).all()
    assert len(np.unique(labels[:, :150].reshape(-1, 3), axis=0)) == 1  # labels are flipped too
    assert (labels[0, 0] != labels[0, -1]).any()
    assert drawn.shape[1] == 2 * (2 * 300 + 6 + 2 * MARGIN) + 6


def test_labels_that_stay_at_their_size_are_brought_to_the_image(config, tmp_path, capsys):
    drawn = _show(capsys, config, "--split", "val", "--count", 1, "--out", tmp_path / "a.png")
    labels = _picture(drawn, 1, (512, 600))
    left, right = labels[:, :295], labels[:, 305:]  # beside the blended edge of the image
    assert np.ptp(left, axis=(0, 1)).max() == 0 and np.ptp(right, axis=(0, 1)).max() == 0
    assert (left[0, 0] != right[0, 0]).any()


def test_generated_scenes_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _show(capsys, "generated", "--count", 2).shape[1] > 1000
    assert Path("work_dirs/show_generated_train.png").is_file()


RGBD_CONFIG = """
seed = 0
model = dict(encoder=dict(type="FrozenEncoder", name="efficientnet-lite0"))
val_dataloader = dict(dataset=dict(
    type="RGBDFolder", root={root!r}, split="train", targets=("depth", "normals"),
    transforms=[dict(type="ResizeShortSide", short=120)]))
"""


@pytest.fixture
def rgbd(tmp_path):
    """A slope from 1 m on the left to 2.5 m on the right, without depth at the top."""
    root = tmp_path / "captures"
    depth = np.tile(np.linspace(1000, 2500, 80).astype(np.uint16), (60, 1))
    depth[:5] = 0
    for kind, array in (("images", np.full((60, 80, 3), 90, np.uint8)), ("depth", depth)):
        path = root / kind / "train/a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(array).save(path)
    (root / "intrinsics.txt").write_text("80 0 40\n0 80 30\n0 0 1\n")
    return root


def _is_at(drawn, panel, top):
    place = drawn[top : top + panel.shape[0], MARGIN : MARGIN + panel.shape[1]]
    return place.shape == panel.shape and (place == panel).all()


def test_depth_and_normals_are_drawn_below_each_other(rgbd, tmp_path, capsys):
    drawn = _show(capsys, "rgbd", "--root", rgbd, "--out", tmp_path / "a.png")
    sample = RGBDFolder(rgbd, "train", targets=("depth", "normals"))[0]
    image = sample.image.permute(1, 2, 0).numpy()
    depth = depth_panel(image, sample.depth[0].numpy(), None)
    normals = normals_panel(image, sample.normals.numpy(), None)
    assert _is_at(drawn, depth, MARGIN) and _is_at(drawn, normals, MARGIN + depth.shape[0] + GAP)
    (rgbd / "intrinsics.txt").unlink()  # without a camera there are no normals
    drawn = _show(capsys, "rgbd", "--root", rgbd, "--out", tmp_path / "a.png")
    assert drawn.shape[0] == depth.shape[0] + 2 * MARGIN
    drawn = _show(capsys, "rgbd", "--root", rgbd, "--scale", 500, "--invalid", 2000, "--out", tmp_path / "a.png")
    other = RGBDFolder(rgbd, "train", scale=500.0, invalid=2000)[0].depth[0].numpy()
    assert _is_at(drawn, depth_panel(image, other, None), MARGIN)


def test_maps_that_stay_at_their_size_are_brought_to_the_image(rgbd, tmp_path, capsys):
    config = tmp_path / "look.py"
    config.write_text(RGBD_CONFIG.format(root=str(rgbd)))
    drawn = _show(capsys, config, "--split", "val", "--out", tmp_path / "a.png")
    sample = RGBDFolder(rgbd, "train")[0]
    image = np.full((120, 160, 3), 90, np.uint8)
    twice = sample.depth[0].numpy().repeat(2, 0).repeat(2, 1)  # nothing is blended at the edge of the hole
    assert _is_at(drawn, depth_panel(image, twice, None), MARGIN)


BOXES_CONFIG = """
seed = 0
model = dict(encoder=dict(type="FrozenEncoder", name="efficientnet-lite0"))
train_dataloader = dict(dataset=dict(
    type="DetectionMixture", size=400, mosaics=(1,),
    sets=[dict(dataset=dict(type="CocoDetection", root={root!r}, split="train"), prompts=False)],
    transforms=[dict(type="RandomFlip", p=1.0)]))
val_dataloader = dict(dataset=dict(
    type="CocoDetection", root={root!r}, split="train", transforms=[dict(type="ResizeShortSide", short=300)]))
"""


def test_boxes_are_drawn_with_their_names_where_they_are(tmp_path, capsys):
    root = tmp_path / "boxes"
    write_coco(root, [(1, 7, [60, 40, 100, 80])], images=1, size=(200, 300))
    (tmp_path / "look.py").write_text(BOXES_CONFIG.format(root=str(root)))

    def frame(*arguments):
        """Where the frame of the only box is drawn: its colour is the first of the palette, dark red."""
        drawn = _show(capsys, *arguments, "--count", 1, "--out", tmp_path / "a.png").astype(int)[MARGIN:, MARGIN:]
        red = np.abs(drawn - [128, 0, 0]).sum(-1) == 0
        rows, columns = np.flatnonzero(red.sum(1) > 60), np.flatnonzero(red.sum(0) > 60)
        return rows.max(), columns.min(), columns.max()

    assert np.allclose(frame("coco", "--root", root), (120, 60, 160), atol=3)
    assert np.allclose(frame(tmp_path / "look.py", "--split", "val"), (180, 90, 240), atol=3)
    flipped = frame(tmp_path / "look.py", "--split", "train")
    assert np.allclose(flipped, (160, 400 - 213.3, 320), atol=3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["prepare", "folder"], "error: a folder of your own is not downloaded"),
        (["verify", "pascall"], "error: data set 'pascall' is unknown: did you mean 'pascal' or 'pascal_context'?"),
        (["verify", "ade20k", "--root", "/no"], "error: ade20k is not well; the problems are listed above."),
        (["show", "generted"], "error: 'generted' is neither a data set nor a config: did you mean 'generated'"),
        (["show", "generated", "--count", "0"], "error: --count 0: give 1 or more."),
        (["show", "folder"], "error: folder: give --root DIR; the layout is"),
        (["show", "rgbd"], "error: rgbd: give --root DIR; the layout is"),
        (["prepare", "rgbd"], "error: a folder of your own is not downloaded"),
        (["show", "navi", "--root", "/no"], "error: navi is not there or not complete, looked in /no; run"),
        (["show", "probe_demo", "--split", "test"], "error: --split test: probe_demo has data for train, val."),
    ],
)
def test_errors_are_sentences(arguments, sentence, capsys):
    assert run(main, arguments) == 1
    assert capsys.readouterr().err.startswith(sentence)


def test_verify_takes_the_ignored_labels(folder, capsys):
    path = folder / "labels/train/0.png"
    labels = np.array(Image.open(path))
    labels[0] = 9
    Image.fromarray(labels).save(path)
    assert run(main, ["verify", "folder", "--root", str(folder)]) == 1
    assert run(main, ["verify", "folder", "--root", str(folder), "--ignore", "9", "255", "--all"]) == 0


def test_verify_takes_what_depth_is(rgbd):
    path = rgbd / "depth/train/a.png"
    depth = np.array(Image.open(path))
    depth[-1] = 65535
    Image.fromarray(depth).save(path)
    assert run(main, ["verify", "rgbd", "--root", str(rgbd)]) == 1
    assert run(main, ["verify", "rgbd", "--root", str(rgbd), "--invalid", "65535", "--scale", "5000"]) == 0
