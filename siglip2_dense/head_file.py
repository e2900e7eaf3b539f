"""A head on disk: its tensors in a safetensors file, and in the metadata all that is needed to use them.

The encoder is named with its fingerprint, not stored: a head file has megabytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from siglip2_dense.contracts import EncoderFacts
from siglip2_dense.errors import UserError, first_difference
from siglip2_dense.files import atomic, load_tensors

FORMAT = "siglip2_dense heads, version 1"


@dataclass
class HeadFile:
    """The content of a head file."""

    tensors: dict[str, Tensor]  # "HEAD.parameter"
    encoder: EncoderFacts
    encoder_config: dict  # how the encoder was asked for: name, weights, precision, model_args
    heads: dict[str, dict]  # per head: its config, its task's with the classes, what it reads of the encoder
    protocol: dict
    metrics: dict
    step: int


def save(path: str | Path, content: HeadFile) -> None:
    """Write atomically."""
    from safetensors.torch import save_file

    metadata = {
        "format": FORMAT,
        "encoder": json.dumps(content.encoder.to_dict()),
        "encoder_config": json.dumps(content.encoder_config),
        "heads": json.dumps(content.heads),
        "protocol": json.dumps(content.protocol),
        "metrics": json.dumps(content.metrics),
        "step": str(content.step),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content.tensors.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata)


def read(path: str | Path) -> HeadFile:
    """Read a head file. Raises UserError when it is truncated or not a head file."""
    from safetensors import safe_open

    tensors = load_tensors(path)
    metadata = {}
    if Path(path).suffix == ".safetensors":
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not a head file of this version (its format is {metadata.get('format')!r}).")
    return HeadFile(
        tensors=tensors,
        encoder=EncoderFacts.from_dict(json.loads(metadata["encoder"])),
        encoder_config=json.loads(metadata["encoder_config"]),
        heads=json.loads(metadata["heads"]),
        protocol=json.loads(metadata["protocol"]),
        metrics=json.loads(metadata["metrics"]),
        step=int(metadata["step"]),
    )


def load_into(heads, described: dict, facts: EncoderFacts, content: HeadFile, path: str | Path) -> None:
    """Load a file's tensors into the probe's heads (an ``nn.ModuleDict``), on the encoder they were trained on.

    described: the heads as the config builds them, in the form of ``HeadFile.heads``.
    Raises UserError when the file belongs to another encoder, its heads are others, or read or mean something else.
    """
    check_encoder(content.encoder, facts, path)
    saved, now = ({name: (one["reads"], one["task"].get("classes")) for name, one in side.items()}
                  for side in (content.heads, json.loads(json.dumps(described))))  # fmt: skip
    if difference := first_difference(saved, now, "heads", "in the file"):
        raise UserError(f"{path} does not fit the config: {difference}; use the config it was trained with.")
    wanted = heads.state_dict()
    differing = sorted(set(wanted) ^ set(content.tensors))
    differing += [k for k in wanted if k in content.tensors and wanted[k].shape != content.tensors[k].shape]
    if differing:
        raise UserError(
            f"{path} holds other heads than the config builds ({', '.join(content.heads)}; first difference: "
            f"{differing[0]}); use the config it was trained with."
        )
    heads.load_state_dict(content.tensors)


def check_encoder(trained_on: EncoderFacts, given: EncoderFacts, path: str | Path) -> None:
    """Raise UserError unless both are the same tower with the same weights."""
    if trained_on.fingerprint == given.fingerprint:
        return
    raise UserError(
        f"{path} was trained on {trained_on.name} (weights {trained_on.fingerprint[:12]}) and does not fit "
        f"{given.name} (weights {given.fingerprint[:12]}); give --encoder {trained_on.name} with the same weights."
    )
