"""What two processes do for tests/engine/test_sharding.py: the same runs by DDP and in shards, one after the other.

torchrun --nproc_per_node 2 tests/sharded_runs.py FOLDER, with a config FOLDER/NAME.py for each of RUNS
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

import torch
import torch.distributed as dist

from siglip2_dense.cli.common import load_config
from siglip2_dense.encoders import text
from siglip2_dense.engine import distributed, sharding
from siglip2_dense.engine.run import Run
from siglip2_dense.engine.train import KeepHeads, train

RUNS = ("owlvit", "bf16", "catseg", "probe")
RESUMED = (("sharded", "sharded"), ("ddp", "sharded"), ("ddp", "ddp"))
STOP = 4


class Stopping(KeepHeads):
    def before_train_iter(self, runner, *rest, **more):
        if runner.iter == STOP:
            raise KeyboardInterrupt
        super().before_train_iter(runner, *rest, **more)


class Measuring(KeepHeads):
    """Notes the bytes that this rank has, and those that there are."""

    def after_train(self, runner):
        super().after_train(runner)
        parts = {"weights": list(self.run.probe.parameters()), "moments": []}
        for wrapper in runner.optim_wrapper.values():
            parts["moments"] += [one for state in wrapper.optimizer.state.values() for one in state.values()]
        self.notes["bytes"] = {
            name: [sum(sharding.local(one).nbytes for one in found), sum(one.numel() * 4 for one in found)]
            for name, found in parts.items()
        }


def run(folder: Path, name: str, work_dir: str, sharded: bool, resume: bool = False, keep=KeepHeads) -> dict | None:
    arguments = Namespace(
        config=str(folder / f"{name}.py"), encoder=None, weights=None, work_dir=str(folder / work_dir),
        launcher="pytorch", cfg_options=[],
    )  # fmt: skip
    config = load_config(arguments)
    config.train_cfg.sharded = sharded
    try:
        return train(Run(config), resume, keep)
    except KeyboardInterrupt:
        return None


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    text.CHECKPOINTED = 2  # so that ranks differ in how many parts their texts have
    for name in RUNS:
        run(folder, name, f"{name}_ddp", sharded=False)
        notes = run(folder, name, f"{name}_sharded", sharded=True, keep=Measuring)
        (folder / f"{name}_{dist.get_rank()}.json").write_text(json.dumps(notes["bytes"]))
    for before, after in RESUMED:
        work_dir = f"{before}_then_{after}"
        run(folder, "owlvit", work_dir, sharded=before == "sharded", keep=Stopping)
        run(folder, "owlvit", work_dir, sharded=after == "sharded", resume=True)
    distributed.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
