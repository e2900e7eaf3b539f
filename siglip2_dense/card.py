"""The card of a shared head, README.md: what it is, what it scores, on whose terms, and how to use it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from siglip2_dense.encoders.catalogue import catalogue
from siglip2_dense.head_file import HeadFile
from siglip2_dense.registry import DATASETS, TASKS

TAG = "siglip2_dense"  # what the hub finds heads by
PIPELINES = {"Segmentation": "image-segmentation", "Depth": "depth-estimation", "Detection": "object-detection"}
NOT_STATED = "unknown"


def summary(content: HeadFile) -> dict:
    """What a list says of a head file: encoder, tasks, and the headline of each head's metrics, as plain data."""
    heads = {}
    for name, one in content.heads.items():
        task = one["task"]["type"]
        key = getattr(TASKS.get(task), "headline", None)
        flat = key if len(content.heads) == 1 else f"{name}.{key}"
        heads[name] = {
            "task": task,
            "head": one["head"]["type"],
            "metric": key,
            "value": _number(content.metrics.get(flat)),
        }
    encoder = content.encoder
    return {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "heads": heads, "step": content.step}


def is_summary(said: object) -> bool:
    """Whether what somebody's card says can be shown as a ``summary``."""
    heads = said.get("heads") if isinstance(said, dict) else None
    return isinstance(heads, dict) and all(
        isinstance(head, dict)
        and {"task", "head", "metric"} <= set(head)
        and isinstance(head.get("value"), (int, float, type(None)))
        for head in heads.values()
    )


def card(
    name: str, content: HeadFile, record: Mapping | None, where: str, picture: str | None, licence: str | None
) -> str:
    """Markdown with the hub's front matter.

    name: of the head. record: of the run, where it is of this head. where: what ``heads pull`` is given. picture: the
    file beside it. licence: of the head, as an SPDX name.
    """
    from huggingface_hub import ModelCardData

    found = summary(content)
    tasks = [head["task"] for head in found["heads"].values()]
    data = ModelCardData(
        library_name=TAG,
        tags=[TAG, "frozen-encoder", *dict.fromkeys(task.lower() for task in tasks)],
        license=licence,
        pipeline_tag=next((PIPELINES[task] for task in tasks if task in PIPELINES), None),
        base_model=_base_model(content),
        siglip2_dense=found,
    )
    kinds = ", ".join(dict.fromkeys(task.lower() for task in tasks))
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name}\n",
        f"A head for {kinds} on the frozen encoder `{content.encoder.name}`, by siglip2_dense. The encoder is not in "
        f"it: its weights have the fingerprint `{content.encoder.fingerprint[:16]}`…; on others the head is refused.\n",
        f"![input, ground truth, prediction]({picture})\n" if picture else "",
        _use(where),
        _scores(content, record),
        _terms(content, record, licence),
        _protocol(content, record),
    ]
    return "\n".join(part for part in parts if part)


def _base_model(content: HeadFile) -> str | None:
    """The hub's name of the encoder, where its weights are those of the hub's timm."""
    entry = catalogue().get(content.encoder.name)
    of_hub = content.encoder_config.get("weights", "hub") == "hub"
    return f"timm/{entry.timm}" if of_hub and entry is not None and entry.timm and not entry.weights else None


def _use(where: str) -> str:
    return (
        "## Use\n\n```bash\npip install siglip2_dense\n"
        f"siglip2-dense heads pull {where} HEAD_FOLDER        # checks every file against SHA256SUMS\n"
        "siglip2-dense predict photo.jpg --head HEAD_FOLDER/head.safetensors\n```\n"
    )


def _scores(content: HeadFile, record: Mapping | None) -> str:
    """A table of the head's metrics, with the intervals and the oracle's numbers of its record, if there is one."""
    if not content.metrics:
        return f"## Scores\n\nNone were measured at step {content.step}.\n"
    intervals, ideal = ((record or {}).get(key, {}) for key in ("intervals", "oracle"))
    lines = ["| metric | value | 95 % over images | oracle |", "|---|---|---|---|"]
    for name, value in content.metrics.items():
        low, high = intervals.get(name) or (None, None)
        digits = _digits(value)
        between = "-" if low is None else f"{_text(low, digits)} to {_text(high, digits)}"
        lines.append(f"| {name} | {_text(value, digits)} | {between} | {_text(ideal.get(name), digits)} |")
    if record is None:
        where = "The record of the run was not beside the head: which images these are of is not said."
    else:
        data = record["data"]
        where = f"Of {data['images']} images of {data['name']}, split {data['split']}, at step {content.step}."
    note = "Oracle: of a head that says of each cell of the encoder's grid what is in it, averaged."
    return "\n".join(["## Scores\n", where, "", *lines, "", *([note, ""] if ideal else [])])


def _terms(content: HeadFile, record: Mapping | None, licence: str | None) -> str:
    sets = {"trained on": content.protocol.get("train_data", {}), "scored on": (record or {}).get("data", {})}
    lines = [
        f"- this head: {licence or 'its author has not said'}",
        f"- the encoder, {content.encoder.name}: {encoder_licence(content)}",
    ]
    for role, data in sets.items():
        for name in filter(None, data.get("name", "").split(" + ")):  # of a mixture all
            lines.append(f"- {role} {name}, {data.get('split', '')}: {data_licence(name)}")
    return "\n".join(["## Licences\n", *dict.fromkeys(lines), ""])


def encoder_licence(content: HeadFile) -> str:
    """Of the encoder's weights, as the catalogue has it; unknown for weights from elsewhere."""
    weights = str(content.encoder_config.get("weights", "hub"))
    if weights.partition(":")[0] == "random":
        return "random weights"
    entry = catalogue().get(content.encoder.name)
    return entry.licence if weights == "hub" and entry is not None and entry.licence else NOT_STATED


def data_licence(name: str) -> str:
    """Of the published set of that name, as it says; a user's own set may be called like it."""
    DATASETS.import_from_location()
    for cls in DATASETS.module_dict.values():
        if getattr(cls, "name", None) == name or (name == "voc20" and getattr(cls, "name", None) == "pascal"):
            licence = cls.licence
            return licence if licence == NOT_STATED else f"{licence} (the published set of that name)"
    return NOT_STATED


def _protocol(content: HeadFile, record: Mapping | None) -> str:
    """Every knob, folded away."""
    encoder = (record or {}).get("encoder") or {"name": content.encoder.name}
    known = {"encoder": encoder, "heads": content.heads, "protocol": content.protocol}
    said = json.dumps(known, indent=1)
    title = "Protocol: every setting of training and scoring"
    return f"<details><summary>{title}</summary>\n\n```json\n{said}\n```\n</details>\n"


def _number(value) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _digits(value: float | None) -> int:
    """Of a metric, as its value needs them: its interval and its oracle have as many."""
    return 2 if abs(_number(value) or 0.0) >= 10 else 4


def _text(value: float | None, digits: int) -> str:
    value = _number(value)
    return "-" if value is None else f"{value:.{digits}f}"
