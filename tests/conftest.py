"""Threads, and where real data for tests lies."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a network

import pytest
import torch

torch.set_num_threads(2)

REPOSITORY = Path(__file__).resolve().parents[1]
VARIABLE = "SIGLIP2_DENSE_TEST_DATA"


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images and weights; tests that need it say so where it is missing."""
    folder = Path(os.environ.get(VARIABLE) or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real test data: set {VARIABLE} (looked in {folder})")
    return folder


@pytest.fixture
def real(test_data):
    """``real(name)``: a folder or file of it; the test is skipped, and says so, where that is missing."""

    def place(name: str) -> Path:
        if not (test_data / name).exists():
            pytest.skip(f"no {name} in {test_data}; set {VARIABLE} to a folder that has it")
        return test_data / name

    return place


@pytest.fixture
def one_thread():
    """Small runs wait for each other's threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Fingerprints of test files do not go to the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


TINY = """
model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="test_vit", weights="random"),
    heads=dict(
        segmentation=dict(
            head=dict(type="LinearHead", layers="even4"),
            task=dict(type="Segmentation"),
            optim=dict(type="AdamW", lr=1e-2),
        )
    ),
    inference=dict(mode="slide", crop=48, stride=32),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        type="GeneratedScenes",
        split="train",
        length=5,
        size=(48, 64),
        transforms=[dict(type="RandomFlip"), dict(type="RandomCrop", size=(40, 48))],
    ),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(
        type="GeneratedScenes",
        split="val",
        length=7,
        size=(48, 64),
        transforms=[dict(type="ResizeShortSide", short=56)],
    ),
)
train_cfg = dict(max_iters=12, val_interval=6, save_interval=3)
param_scheduler = [dict(type="PolyLR", power=1.0, begin=0, end=12, by_epoch=False)]
seed = 0
log_interval = 2
pictures = 2
vis_backends = "tensorboard"
"""


@pytest.fixture
def tiny(tmp_path):
    """``tiny(**changes)`` -> the path of a config that trains in seconds; changes are further top-level lines."""

    def write(extra: str = "", name: str = "tiny.py") -> Path:
        path = tmp_path / name
        path.write_text(TINY + extra)
        return path

    return write


@pytest.fixture
def tool():
    """``tool("train", *arguments)`` runs a tool in its own process and returns it finished."""
    import subprocess
    import sys

    def call(name: str, *arguments, launcher: tuple[str, ...] = (), **environment) -> subprocess.CompletedProcess:
        command = [sys.executable, *launcher, str(REPOSITORY / "tools" / f"{name}.py"), *map(str, arguments)]
        threads = {"OMP_NUM_THREADS": "1"} if launcher else {}
        return subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **threads, **environment}, timeout=300
        )

    return call
