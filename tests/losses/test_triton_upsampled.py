"""The kernels for GPUs, in Triton's interpreter on a CPU; it is chosen when Triton is imported."""

import os
import subprocess
import sys

import pytest

from siglip2_dense.losses import upsampled

pytest.importorskip("triton")

INTERPRETED = """
import torch
import torch.nn.functional as F
from siglip2_dense.losses.triton_upsampled import UpsampledCrossEntropy

def plain(scores, labels):
    scores = scores.detach().double().requires_grad_()
    large = F.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=False)
    value = F.cross_entropy(large, labels, ignore_index=-1, reduction="sum")
    return value, torch.autograd.grad(value, scores)[0]

torch.manual_seed(0)
shapes = [(2, 5, (3, 4), (9, 14)), (1, 40, (2, 2), (5, 35)), (1, 3, (4, 4), (4, 4)), (1, 4, (6, 5), (4, 3)),
          (1, 1, (1, 2), (3, 2))]
for images, classes, cells, pixels in shapes:
    scores = (5 * torch.randn(images, classes, *cells)).requires_grad_()
    labels = torch.randint(-1, classes, (images, *pixels))
    labels[:, 0] = -1
    value = UpsampledCrossEntropy.apply(scores, labels)
    (gradient,) = torch.autograd.grad(3 * value, scores)
    expected, wanted = plain(scores, labels)
    assert abs(value.item() - expected.item()) <= 1e-6 * max(expected.item(), 1e-3), (value, expected)
    assert (gradient / 3 - wanted).abs().max() <= 1e-6 * wanted.abs().max().clamp(min=1e-9), classes

half = scores.detach().bfloat16().requires_grad_()
(gradient,) = torch.autograd.grad(UpsampledCrossEntropy.apply(half, labels), half)
assert gradient.dtype == torch.bfloat16
empty = UpsampledCrossEntropy.apply(scores, torch.full_like(labels, -1))
assert empty == 0 and not torch.autograd.grad(empty, scores)[0].any()
labels[0, 1, 1] = 1
assert UpsampledCrossEntropy.apply(scores, labels).isnan(), "a label without a score"
try:
    torch.autograd.grad(UpsampledCrossEntropy.apply(scores, labels), scores, create_graph=True)
except RuntimeError as error:
    assert "cannot be differentiated again" in str(error)
else:
    raise AssertionError("differentiated again")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from siglip2_dense.losses import triton_upsampled as kernels

types = dict(cells="*fp32", labels="*i64", spread="*fp32", loss="*fp32", gradient="*fp32", downs="*fp32",
             acrosses="*fp32", rows="*i32", columns="*i32", row_readers="*i32", column_readers="*i32")
fixed = dict(NONE=-1, PIXELS=kernels.PIXELS, CLASSES=kernels.CLASSES)
for kernel in (kernels._forward, kernels._backward):
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in kernel.arg_names}
    assert triton.compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""


def run(code, tmp_path, **environment):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


def test_value_and_gradient_in_the_interpreter(tmp_path):
    run(INTERPRETED, tmp_path, TRITON_INTERPRET="1")


def test_the_kernels_compile_for_a_gpu(tmp_path):
    from triton.backends import backends

    if "nvidia" not in backends:
        pytest.skip("this Triton has no compiler for NVIDIA's GPUs")
    run(COMPILED, tmp_path)


def test_they_are_chosen_for_scores_on_a_gpu(monkeypatch):
    """By what a tensor says of itself, since there is no GPU here."""
    import torch

    from siglip2_dense.losses import triton_upsampled

    class OnGPU(torch.Tensor):
        is_cuda = True

    chosen = []
    function = type("Chosen", (), {"apply": lambda *arguments: chosen.append(arguments) or torch.tensor(6.0)})
    monkeypatch.setattr(triton_upsampled, "UpsampledCrossEntropy", function)
    scores, labels = torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 3, dtype=torch.int64)
    assert upsampled.upsampled_cross_entropy(scores.as_subclass(OnGPU), labels) == 1 and len(chosen) == 1
    assert upsampled.upsampled_cross_entropy(scores, labels) != 1 and len(chosen) == 1
