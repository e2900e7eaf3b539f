"""The memory that a large image takes, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PEAK = """
import resource, sys
import numpy as np
from heads_made import write_head
from siglip2_dense import Predictor

head = dict(head=dict(type="LinearHead", layers="last"), task=dict(type="Segmentation", classes="ade20k"))
inference, transforms = eval(sys.argv[1])
write_head(sys.argv[2], {"seg": head}, inference, transforms)
predictor = Predictor(sys.argv[2])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

predictor(np.zeros((300, 400, 3), np.uint8))
image = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), dtype=np.uint8)
before = peak()
result = predictor(image)
print((peak() - before) / 2**10, result.segmentation.ids.shape)
"""
SLIDE = dict(mode="slide", crop=512, stride=512)
SHORT = [dict(type="ResizeShortSide", short=160)]


@pytest.mark.parametrize(("inference", "transforms"), [(SLIDE, []), (dict(SLIDE, flip=True), SHORT)])
def test_the_scores_of_all_classes_are_never_built(tmp_path, inference, transforms):
    """150 classes of 1000 x 1500 pixels would take 858 MiB."""
    command = [sys.executable, "-c", PEAK, repr((inference, transforms)), str(tmp_path / "a.safetensors")]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    increase, shape = done.stdout.split(maxsplit=1)
    assert float(increase) < 150 and shape.strip() == "(1000, 1500)"
