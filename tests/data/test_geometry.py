"""Normals from depth: planes and spheres by hand, a reference pixel by pixel, and the generated scenes' own normals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.data import geometry
from siglip2_dense.data.geometry import check_intrinsics, fitted_normals, neighbour_normals, read_intrinsics
from siglip2_dense.data.scenes import render
from siglip2_dense.errors import UserError

SKEWED = torch.tensor([[70.0, 4.0, 33.0], [-3.0, 55.0, 19.0], [0, 0, 1]])


def _camera(focal, size):
    return torch.tensor([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]])


def _rays(camera, size):
    """(3, H, W) float64, of length 1 along the camera's axis."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    return torch.from_numpy((np.linalg.inv(camera.double().numpy()) @ pixels).reshape(3, *size))


def _plane(normal, distance, camera, size):
    """(1, H, W) float32 depth of the points whose product with the unit ``normal`` is -distance."""
    return (-distance / torch.einsum("i,ihw->hw", normal.double(), _rays(camera, size)))[None].float()


def _sphere(centre, radius, camera, size):
    """Depth (1, H, W), 0 beside it, and outward normals (3, H, W)."""
    rays, centre = _rays(camera, size), torch.tensor(centre, dtype=torch.float64)
    a, b = (rays * rays).sum(0), torch.einsum("i,ihw->hw", centre, rays)
    square = b * b - a * (centre @ centre - radius**2)
    depth = torch.where(square > 0, (b - square.clamp(min=0).sqrt()) / a, 0)
    normals = (depth * rays - centre[:, None, None]) / radius * (depth > 0)
    return depth[None].float(), normals.float()


def _angles(one, other):
    """(H, W) degrees; 90 where one has no normal and the other has."""
    one, other = one.double(), other.double()
    return torch.rad2deg(2 * torch.atan2((one - other).norm(dim=0), (one + other).norm(dim=0)))


def _unit(*vector):
    vector = torch.tensor(vector, dtype=torch.float64)
    return vector / vector.norm()


def _grown(mask, radius):
    return F.max_pool2d(mask[None, None].float(), 2 * radius + 1, 1, radius)[0, 0] > 0


@pytest.mark.parametrize("normal", [_unit(0, 0, -1), _unit(0.6, 0.1, -0.8), _unit(-0.2, -0.7, -0.4)])
@pytest.mark.parametrize("size", [(20, 31), (33, 9)])
def test_a_plane_has_one_normal(normal, size):
    for camera in (_camera(60.0, size), SKEWED):
        depth = _plane(normal, 1.5, camera, size)
        assert (depth > 0).all()
        wanted = normal[:, None, None]
        for window in (3, 5, 7):
            assert _angles(fitted_normals(depth, camera, window), wanted).max() < 0.01
        inside = neighbour_normals(depth, camera)[:, 1:-1, 1:-1]
        assert _angles(inside, wanted).max() < 0.01


def test_normals_are_float32_unit_vectors_towards_the_camera():
    scene = render(4, (48, 64))
    rays = _rays(scene.intrinsics, (48, 64))
    for normals in (fitted_normals(scene.depth, scene.intrinsics), neighbour_normals(scene.depth, scene.intrinsics)):
        assert normals.dtype == torch.float32 and normals.shape == (3, 48, 64)
        length = normals.norm(dim=0)
        assert ((length - 1).abs() < 1e-6).logical_or(length == 0).all()
        assert ((normals * rays).sum(0)[length > 0] < 0).all()


def _own_slope(inverse, i, j, step):
    """The smaller of the inverse depth's changes to the pixels on both sides that have depth, or 0."""
    changes = [0.0]
    for sign in (-1, 1):
        y, x = i + sign * step[0], j + sign * step[1]
        if 0 <= y < inverse.shape[0] and 0 <= x < inverse.shape[1] and inverse[y, x] > 0:
            changes.append(sign * (inverse[y, x] - inverse[i, j]))
    return min(changes[1:] or changes, key=abs)


def _by_least_squares(depth, camera, window, jump):
    """Pixel by pixel: a plane through the inverse depths in absolute pixel coordinates."""
    depth, camera = depth[0].double().numpy(), camera.double().numpy()
    inverse = np.where(depth > 0, 1 / np.where(depth > 0, depth, 1), 0)
    (height, width), radius = depth.shape, window // 2
    normals = np.zeros((3, height, width))
    for i, j in np.argwhere(depth > 0):
        rows, values = [], []
        down, right = _own_slope(inverse, i, j, (1, 0)), _own_slope(inverse, i, j, (0, 1))
        for y in range(max(i - radius, 0), min(i + radius + 1, height)):
            for x in range(max(j - radius, 0), min(j + radius + 1, width)):
                q, middle = inverse[y, x], inverse[i, j]
                if q > 0 and abs(q - middle - down * (y - i) - right * (x - j)) <= jump * min(q, middle):
                    rows.append([x + 0.5, y + 0.5, 1])
                    values.append(q)
        if len(rows) > window**2 / 4 and np.linalg.matrix_rank(np.array(rows)) == 3:
            plane = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
            normals[:, i, j] = -camera.T @ plane / np.linalg.norm(camera.T @ plane)
    return torch.from_numpy(normals)


@pytest.mark.parametrize("window", [3, 5])
@pytest.mark.parametrize("camera", [_camera(25.0, (13, 17)), SKEWED])
def test_the_fit_is_that_of_least_squares(window, camera, monkeypatch):
    rng = np.random.default_rng(window)
    depth = rng.uniform(1.9, 2.1, (1, 13, 17)) + (rng.random((1, 13, 17)) < 0.2)
    depth[rng.random(depth.shape) < 0.3] = 0
    depth = torch.from_numpy(depth).float()
    before = depth.clone()
    expected = _by_least_squares(depth, camera, window, 0.05)
    found = fitted_normals(depth, camera, window)
    assert torch.equal(found.norm(dim=0) == 0, expected.norm(dim=0) == 0)
    assert 0.02 < (found.norm(dim=0) == 0)[depth[0] > 0].float().mean() < 0.9
    assert (found - expected).abs().max() < 1e-4
    assert torch.equal(depth, before)
    monkeypatch.setattr(geometry, "STRIP", 30)  # one row at a time
    assert (fitted_normals(depth, camera, window) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("size", "window"), [((96, 128), 3), ((240, 320), 7)])
def test_fits_find_the_normals_of_generated_scenes(size, window):
    """Away from edges: no other label and no crease within the window."""
    angles = []
    for index in range(3):
        scene = render(index, size)
        edges = torch.zeros(size, dtype=torch.bool)
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            edges |= scene.labels.roll(step, axis) != scene.labels
            edges |= (scene.normals.roll(step, axis + 1) * scene.normals).sum(0) < np.cos(np.radians(20))
        edges[[0, -1]] = edges[:, [0, -1]] = False  # there, a roll compares the opposite borders
        away = ~_grown(edges, window // 2)
        assert away.float().mean() > 0.6
        angles.append(_angles(fitted_normals(scene.depth, scene.intrinsics, window), scene.normals)[away])
    angles = torch.cat(angles)
    assert angles.median() < 0.01
    assert (angles < 1).float().mean() > 0.99


def test_a_sphere_has_the_normals_of_its_radius():
    size = (160, 200)
    for camera in (_camera(220.0, size), torch.tensor([[200.0, 3, 60], [0, 240.0, 90], [0, 0, 1]])):
        depth, outward = _sphere((0.1, -0.05, 3.0), 0.7, camera, size)
        inner = (outward * _rays(camera, size)).sum(0) < -0.5  # not close to the silhouette
        assert inner.sum() > 2000
        for window, most in ((3, 0.3), (7, 1.5)):
            assert _angles(fitted_normals(depth, camera, window), outward)[inner].max() < most
        assert _angles(neighbour_normals(depth, camera), outward)[inner].max() < 0.2


def test_neighbour_normals_are_those_of_probe3d_with_the_sign_reversed():
    """Its four cross products, with its camera in the corner: those of a fronto-parallel plane point into the scene."""
    size, focal = (40, 50), 60.0
    corner = torch.tensor([[focal, 0, 0], [0, focal, 0], [0, 0, 1]])
    depth, _ = _sphere((0.9, 0.7, 2.0), 0.4, corner, size)
    depth = depth + 0.01 * torch.rand(depth.shape, generator=torch.Generator().manual_seed(0)) * (depth > 0)
    z = torch.where(depth > 0, depth, 1e6).double()
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    points = torch.cat([z * x / focal, z * y / focal, z])
    middle = points[:, 1:-1, 1:-1]
    left, right = points[:, 1:-1, :-2] - middle, points[:, 1:-1, 2:] - middle
    top, bottom = points[:, :-2, 1:-1] - middle, points[:, 2:, 1:-1] - middle
    pairs = [(left, top), (top, right), (right, bottom), (bottom, left)]
    mean = sum(torch.linalg.cross(a, b, dim=0) for a, b in pairs) / 4
    theirs = F.pad(mean / mean.norm(dim=0), (1, 1, 1, 1)) * (depth > 0)
    ours = neighbour_normals(depth, corner)
    assert (ours + theirs).abs().max() < 1e-5
    assert (depth > 0).sum() > 200 and (ours[2][1:-1, 1:-1][depth[0, 1:-1, 1:-1] > 0] < 0).float().mean() > 0.8


def test_neighbour_normals_have_an_empty_frame_and_leave_their_input():
    depth = torch.full((1, 5, 6), 2.0)
    depth[0, 2, 3] = 0
    before = depth.clone()
    normals = neighbour_normals(depth, _camera(10.0, (5, 6)))
    assert torch.equal(depth, before)
    found = normals.norm(dim=0) > 0
    assert found[1:-1, 1:-1].sum() == 3 * 4 - 1 and found.sum() == 11
    assert torch.allclose(normals[:, 1, 1], torch.tensor([0.0, 0, -1]))


def test_holes_have_no_normal_and_do_not_disturb_others():
    size, normal = (30, 40), _unit(0.5, 0.3, -0.7)
    camera = _camera(80.0, size)
    depth = _plane(normal, 2, camera, size)
    depth[0, 10:13, 5:30] = 0
    depth[torch.rand(depth.shape, generator=torch.Generator().manual_seed(1)) < 0.2] = 0
    normals = fitted_normals(depth, camera, 5)
    assert (normals.norm(dim=0)[depth[0] == 0] == 0).all()
    assert (normals.norm(dim=0)[depth[0] > 0] > 0).float().mean() > 0.95
    found = normals.norm(dim=0) > 0
    assert _angles(normals, normal[:, None, None])[found].max() < 0.01


def test_a_few_pixels_or_a_line_have_no_normal():
    depth = torch.zeros(1, 20, 40)
    depth[0, 3, 3] = 2  # alone
    depth[0, 10, 12:30] = 2  # a line, fewer than a quarter of 7 x 7
    assert (fitted_normals(depth, _camera(50.0, (20, 40)), 7) == 0).all()
    assert (fitted_normals(depth, _camera(50.0, (20, 40)), 3) == 0).all()  # a line of three is more than a quarter
    assert (fitted_normals(torch.zeros(1, 4, 5), _camera(50.0, (4, 5))) == 0).all()


def test_a_jump_is_an_edge_and_a_slant_is_none():
    size = (24, 24)
    camera = _camera(60.0, size)
    depth = torch.full((1, *size), 2.0)
    depth[..., 12:] = 2.2
    ahead = torch.tensor([0.0, 0, -1])[:, None, None]
    assert _angles(fitted_normals(depth, camera), ahead).max() < 0.01
    assert _angles(fitted_normals(depth, camera, jump=0.2), ahead)[:, 11:13].min() > 5
    size = (40, 60)
    camera = _camera(200.0, size)
    slanted = _unit(0, -np.sin(np.radians(80)), -np.cos(np.radians(80)))  # a floor that runs away from the camera
    depth = _plane(slanted, 1, camera, size)
    assert depth[0, 0, 0] > 1.06 * depth[0, 1, 0]  # more than a jump a pixel
    assert _angles(fitted_normals(depth, camera), slanted[:, None, None]).max() < 0.01


def test_a_larger_window_smooths_the_steps_of_structured_light():
    """Disparities in eighths of a pixel, as a Kinect measures them: 12 mm steps at 2 m."""
    size, normal = (60, 80), _unit(0.3, 0.2, -0.8)
    camera = _camera(292.0, size)
    exact = _plane(normal, 1.9, camera, size)
    constant = 580 * 0.075 * 8
    depth = constant / (constant / exact).round()
    assert 20 < len(depth.unique()) < 200
    errors = [float(_angles(fitted_normals(depth, camera, w), normal[:, None, None]).mean()) for w in (3, 5, 7, 11)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2] > 2 * errors[3]
    assert errors[2] < 8


@pytest.mark.parametrize("window", [1, 4, 0, -3])
def test_a_window_without_a_middle_is_refused(window):
    with pytest.raises(ValueError, match="odd number of pixels, 3 or more"):
        fitted_normals(torch.ones(1, 5, 5), torch.eye(3), window)


# Cameras


def test_intrinsics_are_read_with_or_without_a_comment(tmp_path):
    path = tmp_path / "intrinsics.txt"
    path.write_text("# of 320x240\n292.5 0 160\n 0 290.25 120\n0 0 1\n\n")
    camera = read_intrinsics(path)
    assert camera.dtype == torch.float32
    assert camera.tolist() == [[292.5, 0, 160], [0, 290.25, 120], [0, 0, 1]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has 0 numbers instead of 3x3"),
        ("1 0 0\n0 1 0\n", "has 2x3 numbers instead of 3x3"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n", "has 3x4 numbers"),
        ("1 0 0\n0 1\n0 0 1\n", "not a 3x3 matrix of numbers"),
        ("fx 0 0\n0 1 0\n0 0 1\n", "not a 3x3 matrix of numbers .*'fx'"),
        ("nan 0 5\n0 9 5\n0 0 1\n", "is no pinhole camera"),
        ("inf 0 5\n0 9 5\n0 0 1\n", "is no pinhole camera"),
        ("0 0 5\n0 9 5\n0 0 1\n", "is no pinhole camera"),
        ("9 0 5\n0 -9 5\n0 0 1\n", "is no pinhole camera"),
        ("9 0 0\n0 9 0\n5 5 1\n", "is no pinhole camera"),
    ],
)
def test_what_is_no_camera_is_named(tmp_path, text, problem):
    (tmp_path / "camera.txt").write_text(text)
    with pytest.raises(
        UserError, match=rf"camera\.txt: .*{problem}.*; write the camera as three lines, fx 0 cx, 0 fy cy"
    ):
        read_intrinsics(tmp_path / "camera.txt")


def test_a_missing_camera_is_named(tmp_path):
    with pytest.raises(UserError, match=r"camera\.txt: no such file; write the camera as three lines"):
        read_intrinsics(tmp_path / "camera.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes\.txt: not a 3x3 matrix"):
        read_intrinsics(tmp_path / "bytes.txt")


def test_the_camera_of_half_the_size_is_named():
    camera = torch.tensor([[292.5, 0, 160], [0, 292.5, 120], [0, 0, 1]])
    with pytest.raises(UserError, match="far from the middle"):
        check_intrinsics(camera, "mine", (480, 640))


@pytest.mark.parametrize(
    ("size", "fits"), [((240, 320), True), ((200, 280), True), ((480, 640), False), ((120, 160), False)]
)
def test_a_camera_of_another_size_is_named(size, fits):
    camera = torch.tensor([[292.5, 0, 155], [0, 292.5, 116], [0, 0, 1]])
    if fits:
        assert check_intrinsics(camera, "mine", size) is camera
    else:
        with pytest.raises(
            UserError, match=r"mine: the camera's axis is at column 155, row 116, far from the middle of"
        ):
            check_intrinsics(camera, "mine", size)
