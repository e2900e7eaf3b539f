"""The generated scenes are exact: every target is checked against the others and against the camera."""

import hashlib

import numpy as np
import pytest

from siglip2_dense.data.scenes import CLASSES, MIN_VISIBLE, PALETTE, render

FLOOR, WALL, CEILING, BOX, SPHERE, CYLINDER = range(6)


@pytest.fixture(scope="module")
def scenes():
    return [render(index) for index in range(50)]


def rays(sample):
    """(3, H, W) directions of length 1 along the camera's axis."""
    height, width = sample.original_size
    rows, columns = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(height * width)])
    return (np.linalg.inv(sample.intrinsics.double().numpy()) @ pixels).reshape(3, height, width)


def points(sample):
    """(3, H, W) metres in the camera's frame."""
    return rays(sample) * sample.depth.double().numpy()


def digest(sample):
    arrays = (sample.image, sample.labels, sample.depth, sample.normals, sample.boxes, sample.intrinsics)
    return hashlib.sha256(b"".join(array.numpy().tobytes() for array in arrays)).hexdigest()


def test_same_arguments_same_bits(scenes):
    assert digest(render(3)) == digest(scenes[3])
    assert render(3).box_names == scenes[3].box_names
    assert len({digest(scene) for scene in scenes}) == len(scenes)
    assert digest(render(3, seed=1)) != digest(scenes[3])


def test_kinds_and_shapes(scenes):
    scene = scenes[7]
    kinds = {
        name: (str(value.dtype), tuple(value.shape)) for name, value in vars(scene).items() if hasattr(value, "dtype")
    }
    assert kinds == {
        "image": ("torch.uint8", (3, 192, 256)),
        "labels": ("torch.int64", (192, 256)),
        "depth": ("torch.float32", (1, 192, 256)),
        "normals": ("torch.float32", (3, 192, 256)),
        "boxes": ("torch.float32", (len(scene.box_names), 4)),
        "intrinsics": ("torch.float32", (3, 3)),
    }
    assert (scene.path, scene.original_size, scene.index) == ("scene-000007", (192, 256), 7)
    assert len(PALETTE) == len(CLASSES) == len(set(PALETTE))


def test_normals_are_unit_and_face_the_camera(scenes):
    for scene in scenes:
        normals = scene.normals.double().numpy()
        assert np.abs(np.linalg.norm(normals, axis=0) - 1).max() < 1e-6
        assert ((normals * rays(scene)).sum(0) < 0).all()


def test_normals_agree_with_the_slope_of_the_depth():
    """Another way to the normals: the cross product of the surface's steps along the image's rows and columns."""
    angles, labels = [], []
    for index in range(8):
        scene = render(index, (384, 512))
        normals, place = scene.normals.double().numpy(), points(scene)
        along, across = np.gradient(place, axis=(1, 2))  # central differences
        slope = np.cross(along, across, axis=0)
        slope /= np.linalg.norm(slope, axis=0)
        angle = np.degrees(np.arccos(np.clip((slope * normals).sum(0), -1, 1)))
        smooth = np.ones_like(angle, bool)  # the label stays and the normal turns by less than 8 degrees a pixel
        for axis, step in [(0, 1), (0, -1), (1, 1), (1, -1)]:
            smooth &= np.roll(scene.labels.numpy(), step, axis) == scene.labels.numpy()
            smooth &= (np.roll(normals, step, axis + 1) * normals).sum(0) > np.cos(np.radians(8))
        smooth[[0, -1]] = smooth[:, [0, -1]] = False
        assert smooth.mean() > 0.9
        angles.append(angle[smooth])
        labels.append(scene.labels.numpy()[smooth])
    angles, labels = np.concatenate(angles), np.concatenate(labels)
    assert np.median(angles) < 0.1
    assert (angles < 1).mean() > 0.99
    assert all((angles[labels == label] < 1).mean() > 0.95 for label in range(len(CLASSES)))


def test_the_room_is_a_box(scenes):
    """One floor plane below the camera, a ceiling parallel to it, walls upright."""
    for scene in scenes:
        labels, normals, place = scene.labels.numpy(), scene.normals.numpy(), points(scene)
        floor = normals[:, labels == FLOOR]
        up = floor[:, 0]
        assert (floor == up[:, None]).all()
        heights = up @ place[:, labels == FLOOR]
        assert np.ptp(heights) < 1e-5
        assert -1.8 <= heights.mean() <= -0.9
        assert np.allclose(up @ normals[:, labels == WALL], 0, atol=1e-6)
        ceiling = labels == CEILING
        if ceiling.any():
            assert (normals[:, ceiling] == -up[:, None]).all()
            assert np.ptp(up @ place[:, ceiling]) < 1e-5


def test_spheres_are_round(scenes):
    """Points on a sphere are its centre plus radius times normal."""
    found = 0
    for scene in scenes:
        spheres = [
            box
            for box, (name,) in zip(scene.boxes.int().tolist(), scene.box_names, strict=True)
            if name.endswith("sphere")
        ]
        if len(spheres) != 1:
            continue
        x0, y0, x1, y1 = spheres[0]
        inside = scene.labels.numpy()[y0:y1, x0:x1] == SPHERE
        normals = scene.normals.double().numpy()[:, y0:y1, x0:x1][:, inside]
        place = points(scene)[:, y0:y1, x0:x1][:, inside]
        around = normals - normals.mean(1, keepdims=True)
        radius = (around * place).sum() / (around * around).sum()  # the slope of the line from normals to points
        rest = place - radius * normals
        assert np.abs(rest - rest.mean(1, keepdims=True)).max() < 1e-5
        assert 0.15 <= radius <= 0.45
        found += 1
    assert found > 5


def test_boxes_are_tight(scenes):
    outside = []
    for scene in scenes:
        labels = scene.labels.numpy()
        uncovered = labels >= BOX
        for (x0, y0, x1, y1), (name,) in zip(scene.boxes.int().tolist(), scene.box_names, strict=True):
            inside = labels[y0:y1, x0:x1] == CLASSES.index(name.split()[1])
            assert inside.sum() >= MIN_VISIBLE
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            uncovered[y0:y1, x0:x1] = False
        outside.append(uncovered.sum())
    assert max(outside) < 2 * MIN_VISIBLE  # of solids that are too small for a box
    assert np.count_nonzero(outside) < 0.2 * len(scenes)


def test_boxes_have_the_colour_they_are_called_by(scenes):
    """The names that the open vocabulary looks for: in a red thing's box, red is stronger than in the whole image."""
    channel = {"red": 0, "green": 1, "blue": 2}
    excess = []
    for scene in scenes:
        image = scene.image.float()
        share = image / image.sum(0)
        for (x0, y0, x1, y1), (name,) in zip(scene.boxes.int().tolist(), scene.box_names, strict=True):
            colour = channel.get(name.split()[0])
            if colour is not None:
                excess.append(float(share[colour, y0:y1, x0:x1].mean() - share[colour].mean()))
    assert len(excess) > 20
    assert np.mean(np.array(excess) > 0) > 0.9


def test_every_class_appears(scenes):
    seen = [np.bincount(scene.labels.numpy().ravel(), minlength=len(CLASSES)) > 0 for scene in scenes]
    often = np.mean(seen, axis=0)
    assert (often[[FLOOR, WALL]] > 0.9).all()
    assert (often > 0.25).all()


def test_another_size_shows_the_same_scene():
    """Of an image three times as large, every third pixel has the same ray."""
    for index in range(6):
        small, large = render(index, (64, 86)), render(index, (192, 258))
        assert (small.labels == large.labels[1::3, 1::3]).float().mean() > 0.9999  # a ray along an edge may round over
        same = small.labels == large.labels[1::3, 1::3]
        assert np.allclose(small.depth[0][same], large.depth[0, 1::3, 1::3][same], rtol=1e-5)
        assert np.allclose(small.intrinsics[:2] * 3, large.intrinsics[:2])
        coarse = large.image.float().unflatten(1, (64, 3)).unflatten(3, (86, 3)).mean((2, 4))
        assert (coarse - small.image.float()).abs().mean() < 8


def test_a_strip_of_rays_changes_nothing(monkeypatch, scenes):
    monkeypatch.setattr("siglip2_dense.data.scenes.STRIP", 5000)
    scene = render(2)
    assert (scene.labels == scenes[2].labels).all()
    assert np.allclose(scene.depth, scenes[2].depth)
    assert (scene.image.int() - scenes[2].image.int()).abs().max() <= 1


def test_images_look_neither_black_nor_burnt_out(scenes):
    means = np.array([scene.image.float().mean() for scene in scenes])
    assert (means > 40).all() and (means < 215).all()
    assert np.mean([(scene.image == 255).float().mean() for scene in scenes]) < 0.03


def test_negative_index_is_refused():
    with pytest.raises(ValueError):
        render(-1)


def test_things_are_called_by_their_colours_where_that_is_asked_for(scenes):
    """Every solid's pixels are those of its kind; what has no name does not count."""
    names = ["sphere", "red box", "wall", "blue box", "green cylinder"]
    seen = set()
    for index, scene in enumerate(scenes[:20]):
        labels = render(index, names=names).labels
        kind = {label: CLASSES.index(name.split()[-1]) for label, name in enumerate(names)}
        for label in labels.unique().tolist():
            seen.add(label)
            if label >= 0:
                assert (scene.labels[labels == label] == kind[label]).all()
        assert (labels[scene.labels == CLASSES.index("wall")] == 2).all()
        assert (labels[scene.labels == CLASSES.index("floor")] == -1).all()
        for box, (name,) in zip(scene.boxes.long().tolist(), scene.box_names, strict=True):
            inside = labels[box[1] : box[3], box[0] : box[2]]
            if name in names:
                assert (inside == names.index(name)).any()
            elif name.endswith("sphere"):
                assert (inside == 0).any()
    assert seen == {-1, 0, 1, 2, 3, 4}
