"""How the benchmarks measure time and memory, and how they show it."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from siglip2_dense.errors import UserError
from siglip2_dense.files import write_text

ROOT = Path(__file__).parents[2]
VARIABLE = "SIGLIP2_DENSE_TEST_DATA"


def interleave(sides: dict[str, Callable], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each side in each round. Sides take turns, and each round begins with the next one."""
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            sides[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], side: str, baseline: str) -> float:
    """Median over the rounds of the time of ``side`` in parts of that of ``baseline``."""
    return median(a / b for a, b in zip(seconds[side], seconds[baseline], strict=True))


def milliseconds(seconds: dict[str, list[float]]) -> str:
    """``ours 12 ms (least 11), ...``: median and least of each side, for the detail of a figure."""
    return ", ".join(f"{name} {median(s) * 1e3:.0f} ms (least {min(s) * 1e3:.0f})" for name, s in seconds.items())


def peak_increase(function: Callable) -> int:
    """Bytes by which this process grows at most while ``function`` runs. Call it in a process of its own.

    Needs Linux: writing 5 to ``clear_refs`` resets the peak. What the C library keeps of freed memory, of weights drawn
    before say, is given back first, or its use again would not be seen.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # a C library without it keeps none
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def in_own_process(module: str, call: str) -> float:
    """The number that ``call`` on a module of the benchmarks gives in a fresh process: ``("evaluate", "memory()")``."""
    return numbers_of_own_process(module, f"{call},")[0]


def numbers_of_own_process(module: str, call: str) -> list[float]:
    """The numbers that ``call`` gives there, if it gives several."""
    code = f"from siglip2_dense.benchmark import {module}; print(*({module}.{call}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def data_folder(name: str) -> Path:
    """The folder of real test data; raises UserError where it, its weights or the set ``name`` is missing."""
    folder = Path(os.environ.get(VARIABLE, ""))
    if VARIABLE not in os.environ or not (folder / name).is_dir() or not (folder / "weights").is_dir():
        raise UserError(f"set {VARIABLE} to a folder with {name}/ and weights/ (looked in {folder.resolve()}).")
    return folder.resolve()


def verb(name: str, *arguments: str) -> None:
    """Run a verb of the command line in a process of its own; raises UserError with its last line when it fails."""
    command = [sys.executable, "-m", "siglip2_dense", name, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise UserError(f"{name} {' '.join(arguments)} failed: {done.stdout.strip().splitlines()[-1]}")


def figure(name: str, value: float, target: float | None = None, better: str = "lower", detail: str = "") -> dict:
    """One line of a benchmark's result; ``better`` is "lower" or "higher"."""
    return {"name": name, "value": value, "target": target, "better": better, "detail": detail}


def shrink(source: Path, target: Path) -> None:
    """A picture for a page: some hundred kilobytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        picture.thumbnail((1600, 1600))
        picture.convert("RGB").save(target, quality=85)


def machine() -> dict:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),  # of torch's kernels; logarithms differ by three times
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def table(figures: Iterable[dict]) -> str:
    """The figures as lines of text, with the target and whether it is met."""
    rows = [("figure", "value", "target", "", "detail")]
    for f in figures:
        target, met = "", ""
        if f["target"] is not None:
            sign = "<=" if f["better"] == "lower" else ">="
            reached = f["value"] <= f["target"] if f["better"] == "lower" else f["value"] >= f["target"]
            target, met = f"{sign} {f['target']:g}", "met" if reached else "NOT MET"
        rows.append((f["name"], f"{f['value']:.6g}", target, met, f["detail"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*map(str.ljust, row, widths), row[4]]).rstrip() for row in rows)


def write(figures: list[dict], path: str | Path) -> None:
    """The figures and the machine, as JSON."""
    write_text(path, json.dumps({"figures": figures, "machine": machine()}, indent=2) + "\n")


def _status(field: str) -> int:
    """Bytes of a field of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
