"""The record of a run, ``results.json``: numbers, and every knob that two numbers must share to be compared."""

from __future__ import annotations

import json
import math
import platform
import resource
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from siglip2_dense.contracts import EncoderFacts
from siglip2_dense.errors import UserError, first_line
from siglip2_dense.files import write_text

RECORD = "results.json"  # of a work dir
LIBRARIES = (
    "siglip2_dense", "torch", "timm", "onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation", "numpy", "opencv-python",
)  # fmt: skip

FIXED = {
    "padding": "centred, mean colour after normalisation, to the smallest multiple of the patch; cut off again",
    "resizing": "scores and depths bilinear, directions bicubic, in float32, half-pixel centres",
    "windows": "averaged where they overlap",
    "resolution": "metrics at the size the image was read at",
    "checkpoint": "last",
}  # what this package always does, written down so that other records can differ from it
FROZEN = "frozen, eval"  # the mode of an encoder of which nothing trains


def protocol(config: dict, heads: dict, data: dict, world: int, synchronised_norm: bool) -> dict:
    """The knobs that are not the encoder's. Records may stand in one column only where these agree.

    config: the run's config as plain data. heads: as ``engine.run.describe_heads`` gives them. data: of the training
    set, as ``describe_data`` gives it.
    """
    train, model, stored = config["train_dataloader"], config["model"], config.get("feature_store")
    return {
        **FIXED,
        "encoder_mode": _encoder_mode(model),
        "heads": of_protocol(heads),
        "canvas": model.get("canvas"),
        "precision": model.get("precision", "fp32"),
        **{key: model[key] for key in ("clip_norm", "example_clip") if model.get(key)},
        "inference": model.get("inference", {"mode": "whole"}),
        "optimisation": {
            "iterations": config["train_cfg"]["max_iters"],
            "images_per_step": train["batch_size"] * world,
            "images_per_process": train["batch_size"],
            "schedule": config.get("param_scheduler", []),
            "accumulation": 1,
            "batch_norm": "over all processes" if synchronised_norm else "over one process",
        },
        "train_data": data,
        "train_transforms": train["dataset"].get("transforms", []),
        "test_transforms": config["val_dataloader"]["dataset"].get("transforms", []),
        "views": "live" if stored is None else stored.get("views", 1),  # of each image, where features are stored
    }


def untrained_protocol(probe) -> dict:
    """The same of a model that has nothing to train and describes itself."""
    fixed = {key: value for key, value in FIXED.items() if key != "checkpoint"}
    heads = {name: {**probe.describe(), "scoring": task.scoring} for name, task in probe.tasks.items()}
    return {**fixed, "encoder_mode": FROZEN, "heads": heads}


def scored_otherwise(content, described: dict) -> dict:
    """The protocol of a head file, with its heads scored as a config describes them."""
    heads = {
        name: {**parts, "scoring": described[name]["scoring"]} for name, parts in of_protocol(content.heads).items()
    }
    return {**content.protocol, "heads": heads}


def _encoder_mode(model: dict) -> dict | str:
    towers = {name: model.get(name) or {} for name in ("encoder", "text")}
    trains = {name: tower.get("trainable", "none") for name, tower in towers.items()}
    if all(parts == "none" for parts in trains.values()):
        return FROZEN
    text = {} if trains["text"] == "none" else {"text_trains": trains["text"]}
    if model.get("text_optim"):
        text["text_optim"] = model["text_optim"]
    paths = {name: tower["drop_path"] for name, tower in towers.items() if tower.get("drop_path")}
    mode = {"mode": "eval, but for its drop paths", "drop_path": paths} if paths else {"mode": "eval"}
    return {"trains": trains["encoder"], **text, "optim": model.get("encoder_optim"), **mode}


def of_protocol(heads: dict) -> dict:
    """Of described heads all but the numbers of blocks, which are the encoder's (the rule that names them is ours), and
    the seed, in which two runs under one protocol may differ.
    """
    left_out = ("reads", "seed")
    return {name: {key: value for key, value in parts.items() if key not in left_out} for name, parts in heads.items()}


def describe_data(dataset) -> dict:
    """Which images a data set has, what it has left out of them, and how a mixture makes its samples."""
    return {
        "name": dataset.name,
        "split": dataset.split,
        "images": len(dataset),
        "fingerprint": dataset.fingerprint(),
        **({"left_out": list(notes)} if (notes := getattr(dataset, "notes", ())) else {}),
        **({"mixing": dataset.mixing} if hasattr(dataset, "mixing") else {}),
    }


def describe_encoder(probe, stored: str | None = None) -> dict:
    """Which encoder a probe reads, which of its blocks, and at what precision.

    stored: the type that its features were stored in, none where they went straight to the heads.
    """
    facts: EncoderFacts = probe.facts
    known = facts.to_dict()
    kept = ("name", "fingerprint", "mean", "std", "native_grid", "position_kernel", "parameters", "sequence_length")
    return {
        **{key: known[key] for key in kept},
        "blocks": facts.num_blocks,
        "pads_to": facts.multiple,
        "taps": [{"block": tap.block, "norm": tap.norm} for tap in probe.taps],
        "pooled": facts.pooled if probe.pooled else "none",
        "precision": probe.encoder.precision,
        "features": "live" if stored is None else f"stored, {stored}",
        **({"text": probe.texts} if hasattr(probe, "texts") else {}),
    }


def read_by(heads: dict, facts: EncoderFacts) -> dict:
    """Of a described encoder what only some of a probe's heads, as ``head_file.describe`` gives them, read of it."""
    reads = [one["reads"] for one in heads.values()]
    taps = sorted({tuple(tap) for one in reads for tap in one["taps"]})
    return {
        "taps": [{"block": block, "norm": norm} for block, norm in taps],
        "pooled": facts.pooled if any(one["pooled"] != "none" for one in reads) else "none",
    }


def describe_run(probe, command: str, seed: int, seconds: float, images_per_second: float) -> dict:
    """images_per_second: of training steps, or of a test; seconds: of everything."""
    return {
        "command": command,
        "seed": seed,
        "head_seeds": probe.seeds,
        "seconds": round(seconds, 2),
        "images_per_second": round(images_per_second, 3),
        "peak_memory_mib": round(peak_memory_mib(), 1),
        "device": device_name(),
        "head_parameters": sum(p.numel() for p in probe.heads.parameters()),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "revision": revision(),
        "versions": versions(),
    }


def revision() -> str | None:
    """The commit of the checkout that the package runs from, with a mark when it was changed; none when installed."""
    if not (Path(__file__).parents[1] / ".git").exists():  # an installed package may lie in the user's own checkout
        return None
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(libraries: Sequence[str] = LIBRARIES) -> dict:
    found = {"python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_memory_mib() -> float:
    """Of the GPU where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def read(path: str | Path) -> tuple[Path, dict]:
    """Where a record is, and what it says. path: of the record, or a work dir with ``results.json``.

    Raises UserError when it is no record.
    """
    path = Path(path) / RECORD if Path(path).is_dir() else Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        lacking = {"metrics", "encoder", "protocol", "data", "run"} - set(record)
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; give a work dir of a finished run, or a record of a test.") from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as a record ({first_line(error)}); give a work dir, or its results*.json."
        ) from error
    if lacking:
        raise UserError(f"{path} is no record of a run or a test (it has no {min(lacking)!r}); give results*.json.")
    return path, record


def write(path: str | Path, record: dict | list) -> None:
    """Atomically; a number that is not finite becomes null."""
    write_text(path, as_json(record))


def as_json(record: dict | list) -> str:
    return json.dumps(_finite(record), indent=2) + "\n"


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
