"""Runs in processes of their own: killed ones, and several ranks."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from runs import TWO_RANKS
from safetensors.torch import load_file

REPOSITORY = __import__("pathlib").Path(__file__).resolve().parents[2]


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tiny, tool, tmp_path):
    config = tiny(
        "train_cfg = dict(max_iters=60, val_interval=20, save_interval=7)\n"
        "param_scheduler = [dict(type='OneCycleLR', eta_max=1e-2, total_steps=60, by_epoch=False)]"
    )
    whole = tool("train", config, "--work-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    work_dir = tmp_path / "killed"
    command = [sys.executable, REPOSITORY / "tools" / "train.py", config, "--work-dir", work_dir, "--resume"]
    kills, delay = 0, 0.0
    while kills < 3:
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=os.environ)
        while not (work_dir / "resume.pt").exists() and process.poll() is None:
            time.sleep(0.005)
        before = (work_dir / "resume.pt").stat().st_mtime_ns
        while process.poll() is None and (work_dir / "resume.pt").stat().st_mtime_ns == before:
            time.sleep(0.005)  # it has gone on from where it was
        time.sleep(delay)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills, delay = kills + 1, delay + 0.11
    assert kills, (tmp_path / "log").read_text()
    finished = tool("train", config, "--work-dir", work_dir, "--resume")
    assert finished.returncode == 0 and "resumed at step" in finished.stderr + finished.stdout
    first, second = (load_file(tmp_path / name / "head.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[key], second[key]) for key in first) and set(first) == set(second)
    records = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed")]
    for key in ("metrics", "per_class", "best", "history"):
        assert records[0][key] == records[1][key]


def test_two_ranks_train_alike_and_count_seven_images_once(tiny, tool, tmp_path):
    config = tiny()
    pair = tool("train", config, "--work-dir", tmp_path / "pair", "--launcher", "pytorch", launcher=TWO_RANKS)
    assert pair.returncode == 0, pair.stderr
    record = json.loads((tmp_path / "pair" / "results.json").read_text())
    assert record["data"]["images"] == 7
    assert record["protocol"]["optimisation"]["images_per_step"] == 4
    head = tmp_path / "pair" / "head.safetensors"
    alone = tool("test", config, head, "--work-dir", tmp_path / "t", "--out", tmp_path / "alone.json")
    assert alone.returncode == 0, alone.stderr
    again = json.loads((tmp_path / "alone.json").read_text())
    for key in ("metrics", "per_class", "intervals"):
        assert again[key] == record[key]


RANK_SCRIPT = """
import sys
from pathlib import Path
from siglip2_dense.cli import train
from siglip2_dense.encoders.frozen import FrozenEncoder
from siglip2_dense.encoders.weights import fingerprint
import torch.distributed as dist

built = []
initialise = FrozenEncoder.__init__
def remember(self, *arguments, **options):
    initialise(self, *arguments, **options)
    built.append((self, fingerprint(self.tower)))
FrozenEncoder.__init__ = remember
stop = dist.destroy_process_group
def report():
    (encoder, before), = built
    Path(sys.argv[1], f"rank{dist.get_rank()}").write_text(f"{before} {fingerprint(encoder.tower)}")
    stop()
dist.destroy_process_group = report
train.main(sys.argv[2:])
"""


def test_the_encoder_is_unchanged_on_every_rank(tiny, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK_SCRIPT)
    command = [
        sys.executable,
        *TWO_RANKS,
        script,
        tmp_path,
        tiny("train_cfg['max_iters'] = 2"),
        "--launcher",
        "pytorch",
    ]
    done = subprocess.run(
        [*map(str, command), "--work-dir", str(tmp_path / "run")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {word for rank in (0, 1) for word in (tmp_path / f"rank{rank}").read_text().split()}
    assert len(found) == 1


def test_one_rank_under_torchrun(tiny, tool, tmp_path):
    one = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
    done = tool(
        "train", tiny("train_cfg['max_iters'] = 1"), "--work-dir", tmp_path / "r", "--launcher", "pytorch", launcher=one
    )
    assert done.returncode == 0, done.stderr


def test_a_broken_image_is_named_from_inside_a_worker(tiny, tool, tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "set" / kind / split).mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(tmp_path / "set" / "images" / split / "one.jpg")
        Image.new("L", (64, 48)).save(tmp_path / "set" / "labels" / split / "one.png")
    (tmp_path / "set" / "classes.txt").write_text("a\nb\n")
    broken = tmp_path / "set" / "images" / "train" / "one.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    sets = [
        f"{s}_dataloader['dataset'] = dict(type='ImageFolder', root='{tmp_path}/set', split='{s}')"
        for s in ("train", "val")
    ]
    done = tool("train", tiny("\n".join(sets)), "--work-dir", tmp_path / "run")
    last = done.stderr.strip().splitlines()[-1]
    assert (
        done.returncode == 1 and last.startswith("error: ") and str(broken) in last and "Traceback" not in done.stderr
    )


def test_errors_are_one_line_and_help_is_fast(tiny, tool, tmp_path):
    wrong = tool("train", tiny(), "--encoder", "siglip2-base-16-265")
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr
    assert wrong.stderr.strip().splitlines()[-1].startswith("error: encoder 'siglip2-base-16-265'")
    lonely = tool("train", tiny(), "--launcher", "pytorch", "--work-dir", tmp_path)
    assert lonely.returncode == 1 and "start with torchrun" in lonely.stderr
    started = time.perf_counter()
    assert tool("train", "--help").returncode == 0
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize("name", ["train", "test", "data", "benchmark", "convert_head"])
def test_every_tool_has_help(tool, name):
    shown = tool(name, "--help")
    assert shown.returncode == 0 and "usage:" in shown.stdout
