"""The model of head files, as an export wants it: on the CPU, in float32, and with one pass over each image.

This is the only place of an export that knows how heads are opened.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from mmengine.config import Config

from siglip2_dense.engine.configs import check_keys
from siglip2_dense.engine.evaluate import open_probe, read_head
from siglip2_dense.predict.heads import encoder_of, probe_of, read_heads
from siglip2_dense.predict.prompts import parse_prompts

PLAIN = dict(precision="fp32", compile=False, checkpointing=False)
LEFT_OUT = ("flip", "classes")  # of an inference: mirror images, and the choice among many classes


def open_heads(paths: Sequence[str], weights: str | None = None):
    """The probe of one or several head files that were trained on one encoder.

    weights: of the encoder, where they are elsewhere than in training. Raises UserError for files that do not go
    together, and for heads that are asked for names.
    """
    files = read_heads(paths)
    return probe_of(encoder_of(*files[0], weights, **PLAIN), files, dict(mode="whole")).cpu().eval()


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
