"""Building an image tower with its weights, and the fingerprint that identifies it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from siglip2_dense.encoders.catalogue import Entry
from siglip2_dense.errors import UserError
from siglip2_dense.files import load_tensors, write_text

CLASSIFIERS = ("head.", "classifier.", "fc.", "head_dist.")  # what a file may have beyond a tower without classes


def build_tower(entry: Entry, weights: str, model_args: dict | None = None) -> tuple[nn.Module, str]:
    """A timm model without classifier, in eval mode, and its fingerprint.

    weights: "hub" (or the package that the catalogue names), "random" or "random:SEED", or a file or folder.
    Raises UserError when the weights cannot be had or do not fit.
    """
    if weights.partition(":")[0] == "random":
        seed = weights.partition(":")[2] or "0"
        if not seed.isdecimal():
            raise UserError(f"weights={weights!r}: the seed after 'random:' is a whole number.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            tower = create(entry, model_args)
        return tower, fingerprint(tower)
    if weights == "hub" and not entry.package:
        tower = _from_hub(entry, model_args)
        return tower, fingerprint(tower)
    path = entry.packaged_file() if weights == "hub" else find_file(weights)
    tower = create(entry, model_args)
    load_state(tower, load_tensors(path), path, entry.name)
    return tower, _cached_fingerprint(tower, path, f"{entry.timm} {model_args}")


def create(entry: Entry, model_args: dict | None = None, pretrained: bool = False) -> nn.Module:
    """The architecture at its own grid, free in image size where timm allows it."""
    import timm

    if entry.timm.startswith("naflexvit"):
        raise UserError(f"{entry.name}: NaFlex encoders are not supported; take a fixed-resolution SigLIP 2 name.")
    arguments = dict(pretrained=pretrained, num_classes=0, **(model_args or {}))
    try:
        try:
            tower = timm.create_model(entry.timm, dynamic_img_size=True, **arguments)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            tower = timm.create_model(entry.timm, **arguments)
    except TypeError as error:
        raise UserError(f"model_args={model_args}: timm's {entry.timm} does not take them ({error}).") from error
    if not hasattr(tower, "forward_intermediates"):
        raise UserError(f"{entry.name}: timm gives no feature maps for {type(tower).__name__}; choose another encoder.")
    return tower.eval().requires_grad_(False)


def _from_hub(entry: Entry, model_args: dict | None) -> nn.Module:
    with torch.device("meta"):
        create(entry, model_args)  # a wrong argument is told apart from a hub that cannot be reached
    try:
        with _loading_all():
            return create(entry, model_args, pretrained=True)
    except UserError as error:
        raise UserError(f"the hub's weights of {entry.name} do not fit model_args={model_args}: {error}") from error
    except Exception as error:  # each hub client, and each of its versions, has its own exceptions
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(
            f"the weights of {entry.name} could not be fetched from the hub ({reason}); download them where there is a "
            f"network and give the file with --weights FILE, or try --weights random."
        ) from error


@contextmanager
def _loading_all() -> Iterator[None]:
    """Let no tensor be left at random: timm loads without looking where the number of classes differs."""
    original = nn.Module.load_state_dict

    def load(self, state_dict, strict=True, assign=False):
        _check_fit(self, state_dict)
        return original(self, state_dict, strict=False, assign=assign)

    nn.Module.load_state_dict = load
    try:
        yield
    finally:
        nn.Module.load_state_dict = original


def find_file(weights: str) -> Path:
    """The file of weights that a path names: itself, or the one in a folder."""
    path = Path(weights).expanduser()
    if path.is_dir():
        found = sorted(f for pattern in ("*.safetensors", "*.pth", "*.pt", "*.bin") for f in path.glob(pattern))
        if len(found) != 1:
            names = ", ".join(f.name for f in found[:5]) or "none"
            raise UserError(f"{path}: give one file of weights; the folder has {names}.")
        return found[0]
    if not path.is_file():
        raise UserError(f"weights={weights!r}: give 'hub', 'random', or a file or folder that exists.")
    return path


def load_state(tower: nn.Module, state: dict, path: Path, name: str) -> None:
    """Load tensors into the tower, all of them or none.

    Raises UserError naming the first few tensors that are missing, superfluous or of another shape.
    """
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} does not hold the weights of {name}: it is no table of named tensors.")
    if "_conv_stem.weight" in state and hasattr(tower, "conv_stem"):
        state = from_efficientnet_pytorch(state, tower)
    try:
        _check_fit(tower, state)
    except UserError as error:
        raise UserError(f"{path} does not hold the weights of {name}: {error}") from error
    tower.load_state_dict({k: v for k, v in state.items() if not k.startswith(CLASSIFIERS) or k in tower.state_dict()})


def _check_fit(tower: nn.Module, state: dict[str, Tensor]) -> None:
    """Raise UserError naming the first tensors that differ; a classifier in ``state`` does not matter."""
    wanted = tower.state_dict()
    state = {k: v for k, v in state.items() if k in wanted or not k.startswith(CLASSIFIERS)}
    problems = [f"{k} is missing" for k in wanted if k not in state]
    problems += [f"{k} is not part of the model" for k in state if k not in wanted]
    problems += [
        f"{k} has shape {tuple(state[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{'; '.join(problems[:3])}{more}.")


def from_efficientnet_pytorch(state: dict[str, Tensor], tower: nn.Module) -> dict[str, Tensor]:
    """Names of the efficientnet-pytorch package -> timm's; blocks are numbered through there, by stage here."""
    places = [f"blocks.{s}.{b}" for s, stage in enumerate(tower.blocks) for b in range(len(stage))]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanding = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    expanding |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for key, tensor in state.items():
        part, rest = key.split(".", 1)
        if part == "_blocks":
            number, part, rest = rest.split(".", 2)
            names = expanding if f"_blocks.{number}._expand_conv.weight" in state else plain
            renamed[f"{places[int(number)]}.{names[part]}.{rest}"] = tensor
        else:
            renamed[f"{outer[part]}.{rest}"] = tensor
    return renamed


def fingerprint(tower: nn.Module) -> str:
    """SHA-256 over sorted names and float32 bytes of the floating-point entries of the tower's persistent state."""
    state = tower.state_dict()
    total = hashlib.sha256()
    for name in sorted(state):
        if state[name].is_floating_point():
            total.update(name.encode())
            total.update(state[name].detach().float().cpu().contiguous().numpy())
    return total.hexdigest()


def _cached_fingerprint(tower: nn.Module, path: Path, architecture: str) -> str:
    """The fingerprint, remembered per file: hashing a large tower takes seconds."""
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {architecture}"
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    store = cache_home / "siglip2_dense" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        return json.loads(store.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError):
        value = fingerprint(tower)
    with suppress(OSError):  # a cache that cannot be written only costs time
        write_text(store, json.dumps({"file": key, "fingerprint": value}))
    return value
