"""A head on disk: its tensors in a safetensors file, and in the metadata all that is needed to use them.

The encoder is named with its fingerprint, not stored: a head file has megabytes.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from siglip2_dense.contracts import EncoderFacts
from siglip2_dense.encoders.trainable import normalised
from siglip2_dense.errors import UserError, first_difference
from siglip2_dense.files import atomic, load_tensors
from siglip2_dense.registry import MODELS

READ = ("layers", "norm", "pooled", "stride")  # settings of a head that are spelled out under "reads"
FORMAT = "siglip2_dense heads, version 2"


@dataclass
class HeadFile:
    """The content of a head file."""

    tensors: dict[str, Tensor]  # "HEAD.parameter"; where parts of a tower were trained, "encoder." or "text." too
    encoder: EncoderFacts
    encoder_config: dict  # how the encoder was asked for: name, weights, precision, model_args
    heads: dict[str, dict]  # per head: config, task, seed, what it reads of the encoder, what its map means
    protocol: dict
    metrics: dict
    step: int
    text: dict | None = None  # of a text encoder of which parts were trained: its config, and how it started
    model: dict | None = None  # its config without encoder and heads, and its "test_transforms"; none in older files


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
        **{key: json.dumps(value) for key in ("text", "model") if (value := getattr(content, key)) is not None},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content.tensors.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata)


def read(path: str | Path) -> HeadFile:
    """Read a head file. Raises UserError when it is truncated or not a head file."""
    from safetensors import safe_open

    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; give the head file in it, such as {Path(path) / 'head.safetensors'}.")
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
        **{key: json.loads(metadata[key]) for key in ("text", "model") if key in metadata},
    )


def load_into(probe, described: dict, content: HeadFile, path: str | Path) -> None:
    """Load a file's tensors into a probe with the encoder that they were trained on.

    described: the heads as the config builds them, in the form of ``HeadFile.heads``. Their seeds are then the file's.
    Raises UserError when the file belongs to another encoder, its heads are others, or read or mean something else.
    """
    check_encoder(content.encoder, probe.facts, path)
    saved, now = ({name: _function(one) for name, one in side.items()}
                  for side in (content.heads, json.loads(json.dumps(described))))  # fmt: skip
    if difference := first_difference(saved, now, "heads", "in the file"):
        raise UserError(f"{path} does not fit the config: {difference}; use the config it was trained with.")
    then, now = normalised(content.encoder_config.get("trainable", "none")), probe.trainable
    if then != now:
        raise UserError(f"{path} was trained with model.encoder.trainable={then!r}, the config has {now!r}; set that.")
    _check_text(content.text, describe_text(probe), path)
    wanted = probe.trained_state()
    differing = sorted(set(wanted) ^ set(content.tensors))
    differing += [k for k in wanted if k in content.tensors and wanted[k].shape != content.tensors[k].shape]
    if differing:
        raise UserError(
            f"{path} holds other heads than the config builds ({', '.join(content.heads)}; first difference: "
            f"{differing[0]}); use the config it was trained with."
        )
    probe.load_trained(content.tensors)
    probe.seeds = {name: one["seed"] for name, one in content.heads.items() if one.get("seed") is not None}


def describe(head, task, config: dict) -> dict:
    """A built head and its task as files and records have them.

    config: ``dict(head=..., task=..., optim=..., seed=...)``, as it was asked for; a head that was not trained here has
    no seed. reads: what the head reads of which blocks.
    """
    return {
        "head": config["head"],
        "task": config["task"],
        "optim": config.get("optim", {}),
        "seed": config.get("seed"),
        "reads": {
            "taps": [[tap.block, tap.norm] for tap in head.taps],
            "pooled": head.pooled,
            "stride": getattr(head, "stride", None),
        },
        "meaning": task.meaning,
        "scoring": task.scoring,
    }


def describe_model(config: dict) -> dict:
    """What a head file says of its model, by which it can be used without the config.

    config: of a run, as plain data.
    """
    loading = config.get("test_dataloader") or config.get("val_dataloader") or {}
    settings = {key: value for key, value in config["model"].items() if key not in ("encoder", "heads")}
    return {**settings, "test_transforms": loading.get("dataset", {}).get("transforms", [])}


def describe_text(probe) -> dict | None:
    """What a head file says of a probe's text encoder, none where nothing of it trains."""
    if probe.text is None:
        return None
    return {"trainable": probe.text.trainable, "fingerprint": probe.texts["fingerprint"], "config": probe.texts}


def _check_text(then: dict | None, now: dict | None, path: str | Path) -> None:
    """Raise UserError unless the same parts of the same text tower were trained."""
    trained = [(side or {}).get("trainable", "none") for side in (then, now)]
    if trained[0] != trained[1]:
        raise UserError(
            f"{path} was trained with model.text.trainable={trained[0]!r}, the config has {trained[1]!r}; set that."
        )
    if then and then["fingerprint"] != now["fingerprint"]:
        raise UserError(
            f"{path} was trained on a text tower with weights {then['fingerprint'][:12]}, and the config's has "
            f"{now['fingerprint'][:12]}; give the weights it was trained with, model.text.weights."
        )


def _function(described: dict) -> dict:
    """What decides how a head's tensors are used: the blocks it reads, its own settings, what its map stands for."""
    settings = described["head"]
    ours = "." not in settings["type"]  # mmsegmentation's heads are compared as they are written
    head = MODELS.get(settings["type"])
    parameters = inspect.signature(head).parameters.values() if ours else ()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    free = (*READ, *getattr(head, "free", ()))
    settings = {key: value for key, value in {**defaults, **settings}.items() if key not in free}
    return {"reads": described["reads"], "head": settings, "meaning": described["meaning"]}


def check_encoder(trained_on: EncoderFacts, given: EncoderFacts, path: str | Path) -> None:
    """Raise UserError unless both are the same tower with the same weights."""
    if trained_on.fingerprint == given.fingerprint:
        if trained_on.position_kernel != given.position_kernel:
            raise UserError(
                f"{path} was trained on positions resampled {trained_on.position_kernel!r}, the config's are resampled "
                f"{given.position_kernel!r}; set model.encoder.position_kernel, or leave it out, as it was."
            )
        return
    raise UserError(
        f"{path} was trained on {trained_on.name} (weights {trained_on.fingerprint[:12]}) and does not fit "
        f"{given.name} (weights {given.fingerprint[:12]}); give --encoder {trained_on.name} with the same weights."
    )
