"""From a published checkpoint to a head file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import EncoderFacts
from siglip2_dense.convert import dinov2, tips
from siglip2_dense.convert.published import Published, Wishes
from siglip2_dense.errors import UserError
from siglip2_dense.files import digest, load_tensors
from siglip2_dense.head_file import HeadFile, describe
from siglip2_dense.registry import MODELS, TASKS, build


def convert(source: str | Path, encoder: dict, wishes: Wishes | None = None) -> HeadFile:
    """The content of a head file for a published checkpoint, on the encoder of a config.

    The layout is seen from the tensors' names. Raises UserError for a file of no known layout, and for one that does
    not fit the encoder, names the tensor.
    """
    wishes = wishes or Wishes()
    tensors = read_checkpoint(source)
    for layout in (dinov2, tips):
        if layout.recognises(tensors):
            break
    else:
        raise UserError(
            f"{source} is no head of DINOv2 or TIPS v2 (its first tensor is {next(iter(tensors), 'missing')!r}); give "
            "a file as their authors publish it."
        )
    if wishes.activation and layout is not tips:
        raise UserError(f"--activation is for depth heads of TIPS v2, which {source} is not; leave it out.")
    facts = build(MODELS, encoder).facts
    found = {one.name: one for one in layout.heads(tensors, facts, source, wishes)}
    if wishes.only and wishes.only not in found:
        raise UserError(f"--only {wishes.only}: {source} holds {' and '.join(found)}.")
    found = {name: one for name, one in found.items() if wishes.only in (None, name)}
    converted, described = {}, {}
    for name, one in found.items():
        head, task, loaded = _loaded(one, facts, source)
        converted |= {f"{name}.{key}": tensor for key, tensor in loaded.items()}
        described[name] = describe(head, task, {"head": one.head, "task": one.task})
    return HeadFile(
        tensors=converted,
        encoder=facts,
        encoder_config=encoder,
        heads=described,
        protocol={
            "origin": {
                "file": Path(source).name,
                "sha256": digest(source),
                "heads": {name: one.what for name, one in found.items()},
                "note": "trained and published by others; converted, not trained here",
            }
        },
        metrics={},
        step=0,
    )


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors, .pth or .pt file, a state dict in it or alone, or a .npz or .zip of arrays.

    Raises UserError for anything else.
    """
    if Path(path).suffix in (".npz", ".zip"):
        return _read_arrays(path)
    with torch.serialization.safe_globals(_numpy_numbers()):
        content = load_tensors(path)
    for wrapper in ("state_dict", "model"):
        content = content.get(wrapper, content) if isinstance(content, dict) else {}
    if not content or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(f"{path} holds no state dict of tensors; give the checkpoint of a head.")
    return dict(content)


def _read_arrays(path: str | Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the path.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}
    except Exception as error:  # zipfile.BadZipFile, ValueError for pickles, TypeError for types torch has not
        raise UserError(f"{path}: truncated or not an archive of arrays ({error}); fetch it again.") from error


def _numpy_numbers() -> list:
    """What builds a NumPy number, under NumPy 1's name and 2's: DINOv2's depth checkpoints note their best score."""
    builder = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    return [*((builder, name) for name in names), np.dtype, *kinds]


def _loaded(one: Published, facts: EncoderFacts, source: str | Path):
    """The head and task of our config, and the checkpoint's tensors by the head's names."""
    task = build(TASKS, one.task)
    head = build(MODELS, one.head, facts=facts, channels=task.channels)
    loaded, used = {}, set()
    for ours, wanted in head.state_dict().items():
        theirs = one.named(ours)
        if theirs not in one.tensors:
            raise UserError(f"{source} has no tensor {theirs!r}, which {one.what} needs; fetch the file again.")
        tensor = one.turned(theirs, one.tensors[theirs])
        if (*tensor.shape, 1, 1) == wanted.shape:  # a linear layer where ours is a 1x1 convolution
            tensor = tensor[..., None, None]
        if tensor.shape != wanted.shape:
            raise UserError(
                f"{source}: {theirs!r} is {tuple(tensor.shape)}, but {one.what} on {facts.name} needs "
                f"{tuple(wanted.shape)}; give the --encoder it was trained on."
            )
        loaded[ours] = tensor.to(wanted.dtype).clone()
        used.add(theirs)
    if left := sorted(set(one.tensors) - used):
        raise UserError(f"{source} holds a tensor {left[0]!r}, which {one.what} has not; such heads are not converted.")
    head.load_state_dict(loaded)
    return head, task, loaded
