"""The model of head files, as an export wants it: on the CPU, in float32, and with one pass over each image.

This is the only place of an export that knows how heads are opened.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from mmengine.config import Config

from siglip2_dense import head_file
from siglip2_dense.engine.configs import check_keys
from siglip2_dense.engine.evaluate import open_probe, read_head, take_head
from siglip2_dense.errors import UserError
from siglip2_dense.predict.prompts import parse_prompts
from siglip2_dense.registry import MODELS, TASKS, build, resolve

PLAIN = dict(precision="fp32", compile=False, checkpointing=False)
LEFT_OUT = ("flip", "classes")  # of an inference: mirror images, and the choice among many classes


def open_heads(paths: Sequence[str], weights: str | None = None):
    """The probe of one or several head files that were trained on one encoder.

    weights: of the encoder, where they are elsewhere than in training. Raises UserError for files that do not go
    together, and for heads that need a config and names.
    """
    content = _joined([head_file.read(path) for path in paths], paths)
    for name, one in content.heads.items():
        if hasattr(resolve(TASKS, one["task"]["type"]), "texts"):
            raise UserError(
                f"{paths[0]}: heads.{name} takes any names; say which with --prompts, and give its model's --config."
            )
    encoder = {**content.encoder_config, **PLAIN, **({} if weights is None else {"weights": weights})}
    heads = {name: {"head": one["head"], "task": _task(one)} for name, one in content.heads.items()}
    model = dict(type="DenseProbe", encoder=encoder, heads=heads, inference=dict(mode="whole"))
    if encoder.get("trainable", "none") != "none":
        model["encoder_optim"] = {}  # nothing trains here, but a probe wants it said
    probe = build(MODELS, model)
    take_head(Config(dict(model=model)), probe, content, ", ".join(map(str, paths)))
    return probe.cpu().eval()


def open_vocabulary(config: Config, path: str | None, prompts: str):
    """A model of class names that is asked for ``prompts``, as ``parse_prompts`` reads them.

    It sees images whole, but for CATSeg's windows of an image that was brought to one size.
    path: of its head file, or none where nothing of it was trained.
    """
    check_keys(config)
    names, queries = parse_prompts(prompts)
    config = copy.deepcopy(config)
    config.model.encoder.update(PLAIN)
    if "precision" in config.model:
        config.model.precision = "fp32"
    probe = open_probe(config, read_head(config, path), path)
    probe.set_vocabulary(names, queries)
    if probe.inference["mode"] == "slide" and "size" not in probe.inference:
        probe.inference = dict(mode="whole")
    probe.inference = {key: value for key, value in probe.inference.items() if key not in LEFT_OUT}
    for head in probe.heads.values():
        if hasattr(head, "most"):
            head.most = None
    return probe.cpu().eval()


def _task(described: dict) -> dict:
    """A head's task with its classes, which a config may leave to the data."""
    known = described["meaning"].get("classes")
    return {**({} if known is None else {"classes": known}), **described["task"]}


def _joined(contents: Sequence[head_file.HeadFile], paths: Sequence[str]) -> head_file.HeadFile:
    """One file's content with the heads of all."""
    first = copy.copy(contents[0])
    first.heads, first.tensors = dict(first.heads), dict(first.tensors)
    for content, path in zip(contents[1:], paths[1:], strict=True):
        head_file.check_encoder(content.encoder, first.encoder, path)
        for one, where in ((content, path), (contents[0], paths[0])):
            if one.encoder_config.get("trainable", "none") != "none":
                raise UserError(f"{where} has an encoder of its own, trained with its head; export it alone.")
        if twice := sorted(set(content.heads) & set(first.heads)):
            raise UserError(f"{path} and another file both have a head {twice[0]!r}; export them apart.")
        first.heads |= content.heads
        first.tensors |= content.tensors
    return first
