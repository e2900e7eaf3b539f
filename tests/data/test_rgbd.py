import json

import cv2
import numpy as np
import pytest
import torch

from siglip2_dense.contracts import IGNORE
from siglip2_dense.data.geometry import fitted_normals, read_intrinsics
from siglip2_dense.data.rgbd import RGBDFolder
from siglip2_dense.data.scenes import CLASSES, render
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build

SIZE = (24, 32)
CAMERA = "30 0 16\n0 30 12\n0 0 1\n"


def _write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def root(tmp_path):
    """Two captures of a train split with depth in millimetres, labels and a camera."""
    root = tmp_path / "mine"
    for number, name in enumerate(("a", "b")):
        _write(root / f"images/train/{name}.jpg", np.full((*SIZE, 3), 90, np.uint8))
        rough = np.random.default_rng(number).integers(0, 40, SIZE)
        depth = (1500 + 100 * number + rough).astype(np.uint16)
        depth[0, :4] = 0, 65535, 65534, 1500 + 100 * number
        _write(root / f"depth/train/{name}.png", depth)
        labels = np.ones(SIZE, np.uint8)
        labels[0, :3] = 0, 255, 7
        _write(root / f"labels/train/{name}.png", labels)
    (root / "classes.txt").write_text("floor\nwall\n")
    (root / "intrinsics.txt").write_text(CAMERA)
    return root


def test_depth_is_in_metres_with_its_camera(root):
    data = RGBDFolder(root, "train", invalid=65535)
    assert len(data) == 2 and data.targets == ("depth",) and data.name == "mine" and data.classes == ()
    sample = data[1]
    assert sample.image.shape == (3, *SIZE) and sample.original_size == SIZE
    assert sample.depth.shape == (1, *SIZE) and sample.depth.dtype == torch.float32
    assert sample.depth[0, 0, :4].tolist() == pytest.approx([0, 0, 65.534, 1.6])
    assert sample.intrinsics.tolist() == [[30, 0, 16], [0, 30, 12], [0, 0, 1]]
    assert sample.normals is None and sample.labels is None
    assert sample.path == str(root / "images/train/b.jpg")
    other = RGBDFolder(root, "train", scale=500, invalid=(65535, 65534))[0]
    assert other.depth[0, 0, :4].tolist() == [0, 0, 0, 3]


def test_one_folder_has_all_targets(root):
    data = RGBDFolder(root, "train", ("labels", "depth", "normals"), invalid=[65535, 65534], ignore=(255, 7), window=3)
    assert data.entries[0] == ("images/train/a.jpg", "depth/train/a.png", "labels/train/a.png")
    sample = data[0]
    assert data.classes == ("floor", "wall") and sample.labels[0, :4].tolist() == [0, IGNORE, IGNORE, 1]
    assert torch.equal(sample.normals, fitted_normals(sample.depth, sample.intrinsics, 3))
    assert sample.normals[:, 10, 10].norm() == pytest.approx(1) and sample.normals[2, 10, 10] < 0
    assert (sample.normals[:, 0, :3] == 0).all()
    alone = RGBDFolder(root, "train", "normals", invalid=(65535, 65534), window=3)[0]
    assert torch.equal(alone.normals, sample.normals) and alone.depth is None and alone.labels is None


def test_generated_scenes_come_back_from_files(tmp_path):
    """Depth in millimetres, then normals of the folder's own camera file, against the analytic ones."""
    scene = render(3, (120, 160))
    _write(tmp_path / "rgb/x.png", scene.image.permute(1, 2, 0).numpy()[..., ::-1].copy())
    _write(tmp_path / "mm/x.png", (1000 * scene.depth[0]).round().numpy().astype(np.uint16))
    _write(tmp_path / "classes/x.png", scene.labels.numpy().astype(np.uint8))
    camera = tmp_path / "pinhole.txt"
    camera.write_text("\n".join(" ".join(map(str, row)) for row in scene.intrinsics.tolist()))
    folders = {"images": "rgb", "depth": "mm", "labels": "classes"}
    data = RGBDFolder(tmp_path, "x", ("labels", "depth", "normals"), intrinsics=camera, classes=CLASSES, **folders)
    sample = data[0]
    assert torch.equal(sample.image, scene.image) and torch.equal(sample.labels, scene.labels)
    assert (sample.depth - scene.depth).abs().max() < 0.00051
    angles = torch.rad2deg(torch.acos((sample.normals * scene.normals).sum(0).clamp(-1, 1)))
    assert angles.median() < 0.5 and (angles < 3).float().mean() > 0.75


def test_the_kitchen_loads_as_it_is(real):
    root = real("sevenscenes_redkitchen")
    train, test = (RGBDFolder(root, split, invalid=(65535,)) for split in ("train", "test"))
    assert (len(train), len(test)) == (150, 50)
    depth = torch.stack([test[i].depth for i in range(0, 50, 5)] + [train[0].depth])
    valid = depth[depth > 0]
    assert depth.shape[1:] == (1, 240, 320)
    assert valid.min() >= 0.8 and valid.max() < 4 and 1.6 < valid.mean() < 2.2  # figures of its README
    assert 0.05 < (depth == 0).float().mean() < 0.25
    marked = RGBDFolder(root, "test")  # 65535 taken for depth, as it would be without ``invalid``
    assert max(float(marked[i].depth.max()) for i in range(0, 50, 5)) > 60
    sample = RGBDFolder(root, "test", ("depth", "normals"), invalid=65535)[10]
    found = sample.normals.norm(dim=0) > 0
    assert found[sample.depth[0] > 0].float().mean() > 0.98 and not found[sample.depth[0] == 0].any()
    assert (sample.normals[1] < -0.7)[found].float().mean() > 0.2  # the table and the floor face upwards
    assert (sample.normals[1] > 0.7)[found].float().mean() < 0.05  # and hardly anything downwards


def test_a_missing_partner_is_named(root):
    (root / "depth/train/b.png").unlink()
    with pytest.raises(UserError, match=r"images/train/b\.jpg has no depth, looked for .*depth/train/b\.png; add"):
        RGBDFolder(root, "train")
    (root / "labels/train/a.png").unlink()
    with pytest.raises(UserError, match=r"images/train/a\.jpg has no labels, looked for .*labels/train/a\.png; add"):
        RGBDFolder(root, "train", ("depth", "labels"))


def test_what_is_missing_can_be_collected(root):
    """How a data set is verified: every problem is heard of, and the rest can be read."""

    class Lenient(RGBDFolder):
        problems = []

        def missing(self, problem, remedy):
            self.problems.append(problem)

    (root / "depth/train/b.png").unlink()
    _write(root / "images/train/c.jpg", np.zeros((*SIZE, 3), np.uint8))
    data = Lenient(root, "train")
    assert [entry[0] for entry in data.entries] == ["images/train/a.jpg"]
    assert [problem.split(" has")[0].split("/")[-1] for problem in Lenient.problems] == ["b.jpg", "c.jpg"]


def test_the_file_that_is_wrong_is_the_one_named(root):
    _write(root / "depth/train/a.png", np.full((6, 8), 900, np.uint16))
    with pytest.raises(UserError, match=r"a\.jpg is 24x32 .* but its depth, .*depth/train/a\.png, are 6x8"):
        RGBDFolder(root, "train", ("depth", "labels"))[0]
    with pytest.raises(UserError, match=r"labels/train/b\.png: holds the label 7, but mine has 2 classes"):
        RGBDFolder(root, "train", ("depth", "labels"))[1]
    _write(root / "depth/train/a.png", np.full(SIZE, 65535, np.uint16))
    with pytest.raises(UserError, match=r"depth/train/a\.png: has no depth at any pixel"):
        RGBDFolder(root, "train", invalid=65535)[0]


def test_normals_need_a_camera_of_the_images_and_depth_does_not(root):
    camera = root / "intrinsics.txt"
    camera.write_text("300 0 160\n0 300 120\n0 0 1\n")
    with pytest.raises(
        UserError, match=r"mine/intrinsics\.txt: the camera's axis is at column 160, row 120, .* 24x32 pixels .*; give"
    ):
        RGBDFolder(root, "train", ("normals",))[0]
    camera.write_text("300 0 160\n")
    with pytest.raises(UserError, match=r"mine/intrinsics\.txt: has 1x3 numbers instead of 3x3; write the camera"):
        RGBDFolder(root, "train", ("normals",))
    camera.unlink()
    with pytest.raises(UserError, match=r"mine/intrinsics\.txt: no such file; write the camera as three lines"):
        RGBDFolder(root, "train", ("normals",))
    assert RGBDFolder(root, "train")[0].intrinsics is None
    with pytest.raises(UserError, match=r"other\.txt: no such file"):
        RGBDFolder(root, "train", intrinsics=root / "other.txt")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"targets": ("normal",)}, r"has no target 'normal': did you mean 'normals'"),
        ({"targets": ()}, r"targets is empty; name one or more of labels, depth, normals"),
        ({"scale": 0}, r"scale=0"),
        ({"window": 4}, r"window=4; give .* odd one"),
    ],
)
def test_settings_that_cannot_be_are_refused(root, settings, problem):
    with pytest.raises(UserError, match=problem):
        RGBDFolder(root, "train", **settings)


def test_a_folder_that_is_not_there_says_what_to_put_where(root):
    with pytest.raises(UserError, match=r"looked in .*mine/images/val; put the images in images/val, 16-bit PNG depth"):
        RGBDFolder(root, "val")
    (root / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"looked in .*mine/classes\.txt; .* labels in labels/train, the names in clas"):
        RGBDFolder(root, "train", ("labels",))


def test_the_fingerprint_follows_files_and_camera(root):
    first = RGBDFolder(root, "train").fingerprint()
    assert first == RGBDFolder(root, "train").fingerprint() and len(first) == 64
    (root / "intrinsics.txt").write_text(CAMERA.replace("30", "31"))
    second = RGBDFolder(root, "train").fingerprint()
    _write(root / "depth/train/a.png", np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE))
    assert len({first, second, RGBDFolder(root, "train").fingerprint()}) == 3


def test_it_is_built_from_a_config_and_its_transforms_see_all_targets(root):
    transforms = [{"type": "RandomFlip", "p": 1.0}, {"type": "CenterCrop", "size": (20, 20)}]
    config = {"type": "RGBDFolder", "root": str(root), "split": "train", "targets": ["depth", "normals"]}
    sample = build(DATASETS, config | {"invalid": 65535, "transforms": transforms}, seed=1)[(3, 0)]
    sizes = {tuple(values.shape[-2:]) for values in (sample.image, sample.depth, sample.normals)}
    assert sizes == {(20, 20)} and sample.original_size == (20, 20)
    assert sample.intrinsics[:2, 2].tolist() == [10, 10]
    assert torch.equal(read_intrinsics(root / "intrinsics.txt")[0, :2], torch.tensor([30.0, 0]))  # the set's own stays


def test_the_fingerprint_follows_how_the_files_are_read(root):
    settings = [
        {},
        {"scale": 500},
        {"invalid": 65535},
        {"targets": ("normals",), "window": 9},
        {"targets": ("labels",)},
    ]
    found = {
        RGBDFolder(root, "train", **one).fingerprint() for one in [*settings, {"targets": ("labels",), "ignore": 7}]
    }
    assert len(found) == 6


def test_depth_without_any_value_is_named_when_only_normals_are_asked_for(root):
    _write(root / "depth/train/a.png", np.zeros(SIZE, np.uint16))
    with pytest.raises(UserError, match=r"a\.png: gives no normal at any pixel"):
        RGBDFolder(root, "train", ("normals",))[0]


@pytest.mark.parametrize("settings", [{"scale": "abc"}, {"window": 7.0}, {"scale": 0}])
def test_settings_of_a_wrong_type_are_sentences(root, settings):
    with pytest.raises(UserError, match="give a number above 0 and an odd one above 1"):
        RGBDFolder(root, "train", **settings)


def test_a_folder_in_the_place_of_the_camera_is_named(root):
    with pytest.raises(UserError, match="mine: cannot be read"):
        RGBDFolder(root, "train", intrinsics=root)


def test_the_config_trains_its_heads_and_one_for_labels_on_one_folder(tmp_path):
    """As the docstring of probe_rgbd says: labels among the targets, and another head."""
    from mmengine.config import Config

    from siglip2_dense.cli.train import main
    from siglip2_dense.engine.configs import find_config

    root = tmp_path / "rooms"
    for split, number in (("train", 3), ("val", 4)):
        scene = render(number, (96, 128))
        _write(root / f"images/{split}/x.png", scene.image.permute(1, 2, 0).numpy()[..., ::-1].copy())
        _write(root / f"depth/{split}/x.png", (1000 * scene.depth[0]).round().numpy().astype(np.uint16))
        _write(root / f"labels/{split}/x.png", scene.labels.numpy().astype(np.uint8))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    (root / "intrinsics.txt").write_text("\n".join(" ".join(map(str, row)) for row in scene.intrinsics.tolist()))
    config = Config.fromfile(find_config("probe_rgbd"))
    optim = dict(type="AdamW", lr=1e-3)
    segmentation = dict(head=dict(type="LinearHead", layers="last4"), task=dict(type="Segmentation"), optim=optim)
    config.model.heads["segmentation"] = segmentation
    config.model.heads.depth.head.width = config.model.heads.normals.head.width = 8
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset.update(root=str(root), targets=("depth", "normals", "labels"))
        loader.update(batch_size=1, num_workers=0)
        loader.dataset.transforms[0].short = 96
    config.train_cfg.max_iters = 1
    config.dump(tmp_path / "mine.py")
    arguments = ["--encoder", "test_vit", "--weights", "random", "--work-dir", str(tmp_path / "run")]
    main([str(tmp_path / "mine.py"), *arguments])
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    heads = {name.partition(".")[0] for name in record["metrics"]}
    assert heads == {"depth", "depth_linear", "normals", "segmentation"} and record["data"]["images"] == 1
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 4
    assert set(record["per_class"]) == {"segmentation"}
