"""Starting the process group before mmengine does.

mmengine selects a GPU whenever it starts a group itself, which fails without a driver; a group that is already up it
leaves alone. NCCL on GPUs, gloo on CPUs.
"""

from __future__ import annotations

import os
import subprocess

import torch
import torch.distributed as dist
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from siglip2_dense.engine.memory import keep_freed_memory
from siglip2_dense.errors import UserError

SRUN = "srun --ntasks GPUS siglip2-dense ... --launcher slurm"


@MODEL_WRAPPERS.register_module()
class OwnSteps(nn.Module):
    """Around a model that averages its gradients over the ranks itself, where mmengine wants a wrapper."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def train_step(self, data: dict, optim_wrapper) -> dict:
        return self.module.train_step(data, optim_wrapper)


def wrapper_of(probe: nn.Module) -> dict:
    """Config of what several ranks train a probe in: DDP, unless gradients are clipped before they are averaged.

    mmengine's default takes the GPU of the launcher's local rank, whether there is one or not.
    """
    if probe.example_clip is not None:
        return dict(type="OwnSteps")
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else None
    return dict(type="MMDistributedDataParallel", device_ids=devices, broadcast_buffers=False)


def start(launcher: str) -> None:
    """Set up this process for work, and join the group of "pytorch" (torchrun) or "slurm", if there is one and not yet.

    Raises UserError when the launcher's environment variables are missing.
    """
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # "fp32" in a record means float32, in convolutions too
    if launcher == "none" or dist.is_initialized():
        return
    if launcher == "slurm":
        _slurm_environment()
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
    if missing:
        start_with = {"pytorch": "torchrun --nproc_per_node GPUS -m siglip2_dense ...", "slurm": SRUN}[launcher]
        raise UserError(f"--launcher {launcher}: {', '.join(missing)} not set; start with {start_with}")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _slurm_environment() -> None:
    """Torch's variables from Slurm's; the first node of the list is the master."""
    if "SLURM_PROCID" not in os.environ:
        raise UserError(f"--launcher slurm: not inside a Slurm step; start with {SRUN}")
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_NODELIST"]  # a step may have a part of the job's
    if "MASTER_ADDR" not in os.environ:
        try:
            shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"scontrol cannot name the nodes {nodes} ({error}); set MASTER_ADDR.") from error
        os.environ["MASTER_ADDR"] = shown.stdout.split()[0]
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ["SLURM_JOB_ID"]) % 20000))
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
