"""Gradients of two processes with an image each, against one process with both images."""

import os
import subprocess
import sys

import pytest
import torch

REPOSITORY = __import__("pathlib").Path(__file__).resolve().parents[2]
STEP = """
import sys
import torch
import torch.distributed as dist
from mmengine.registry import MODEL_WRAPPERS
from siglip2_dense.contracts import Sample
from siglip2_dense.engine.distributed import start, stop, wrapper_of
from siglip2_dense.engine.optimizers import JointOptimWrapper, optimizers_of
from siglip2_dense.registry import MODELS, build

torch.set_num_threads(1)
out, how, launcher = sys.argv[1:]
start(launcher)
torch.manual_seed(0)
model = build(MODELS, dict(
    type="OWLViT",
    encoder=dict(type="FrozenEncoder", name="clip-base-16-224", weights="random", trainable="all", checkpointing=True,
                 model_args=dict(depth=2, embed_dim=48, num_heads=4, num_classes=32)),
    text=dict(model_args=dict(embed_dim=32, width=32, heads=4, layers=1), cache=False, trainable="all"),
    heads=dict(detection=dict(head=dict(type="OWLViTHead"), task=dict(type="Detection", classes=["a"]),
                              optim=dict(type="SGD", lr=0.1))),
    encoder_optim={}, text_optim={}, inference=dict(mode="square", size=48),
    **(dict(example_clip=0.3) if how == "each" else dict(clip_norm=0.3)),
))
for parameter in model.heads.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
joint = JointOptimWrapper(**optimizers_of(model))
joint.clip_norm = model.clip_norm
generator = torch.Generator().manual_seed(1)
images = [torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8, generator=generator) for _ in range(2)]
samples = [
    Sample(boxes=torch.tensor([[4.0, 5, 30, 40], [10, 8, 40, 44], [1, 1, 9, 9]]),
           box_names=(("cat",), ("dog",), ("cat",)), queries=("cat", "dog", "sun")),
    Sample(boxes=torch.zeros(0, 4), queries=("tree",)),  # ranks with and without boxes
]
rank, wrapped = 0, model
if launcher != "none":
    rank = dist.get_rank()
    images, samples = images[rank : rank + 1], samples[rank : rank + 1]
    wrapped = MODEL_WRAPPERS.build(dict(wrapper_of(model), module=model))
model.train()
logged = wrapped.train_step({"inputs": images, "data_samples": samples}, joint)
gradients = {name: p.grad for name, p in model.named_parameters()}
weights = {name: p.detach() for name, p in model.named_parameters()}
torch.save((gradients, weights, logged["loss"].detach()), f"{out}{rank}.pt")
stop()
"""


def stepped(folder, how, launcher=()):
    script, out = folder / "step.py", folder / ("pair" if launcher else "alone")
    script.write_text(STEP)
    command = [sys.executable, *launcher, str(script), str(out), how, "pytorch" if launcher else "none"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{out}{rank}.pt", weights_only=True) for rank in range(2 if launcher else 1)]


@pytest.mark.parametrize("how", ["each", "together"])
def test_two_processes_step_as_one_with_both_images(tmp_path, how):
    ((gradients, weights, loss),) = stepped(tmp_path, how)
    pair = stepped(tmp_path, how, ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    assert any(name.startswith("text.") for name in gradients)
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
    assert norm == pytest.approx(0.3, rel=1e-3) if how == "together" else norm < 0.3
    of_ranks = torch.stack([own for *_, own in pair])
    assert of_ranks.mean().item() == pytest.approx(loss.item(), rel=1e-4)  # a clipped gradient hides a factor
    for other, moved, _ in pair:
        assert other.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(other[name], gradient, rtol=1e-3, atol=1e-6), name
            assert torch.allclose(moved[name], weights[name], atol=1e-6), name
