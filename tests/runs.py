"""Runs from a config that tests look at afterwards."""

import json

from siglip2_dense.cli import train as train_verb

TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def train(config, work_dir, *options, resume=False):
    """The record of a run in this process."""
    arguments = [str(config), "--work-dir", str(work_dir), *(["--resume"] if resume else [])]
    train_verb.main([*arguments, *(["--cfg-options", *options] if options else [])])
    return json.loads((work_dir / "results.json").read_text())
