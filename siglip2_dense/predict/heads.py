"""Models as they are opened for use: of head files alone, or of a config or head file of open vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mmengine.config import Config

from siglip2_dense import head_file
from siglip2_dense.engine.configs import check_keys, find_config, read_config
from siglip2_dense.engine.evaluate import open_probe, read_head
from siglip2_dense.errors import UserError
from siglip2_dense.head_file import HeadFile
from siglip2_dense.models.probe import DenseProbe
from siglip2_dense.registry import MODELS, TRANSFORMS, build

CUTS = ("Crop", "CenterCrop")  # transforms of a test that leave out parts of a data set's images
MOST_ASPECT = 16  # an image that is longer is not enlarged until its short side has what a test gives it
OF_TRAINING = ("compile", "checkpointing", "drop_path")  # settings of an encoder that change no prediction


@dataclass(frozen=True)
class View:
    """Heads whose protocols see an image in the same way: one pass of the encoder serves all of them."""

    probe: DenseProbe
    transforms: Sequence[dict]  # of a test, as plain data

    def built(self) -> list:
        return [build(TRANSFORMS, one) for one in self.transforms]

    def digest(self) -> str:
        """Of all that decides a prediction, but the weights of encoder and heads."""
        probe = self.probe
        asked = ("classes", "members")
        tasks = {
            name: [task.meaning, task.scoring, *(getattr(task, key, ()) for key in asked)]
            for name, task in probe.tasks.items()
        }
        more = probe.describe() if hasattr(probe, "describe") else {}
        settings = [probe.inference, probe.precision, list(self.transforms), tasks, more, getattr(probe, "texts", {})]
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def open_heads(paths: Sequence[str | Path], encoder_weights: str | Path | None) -> list[View]:
    """The heads of some files on one encoder, those that see an image in the same way together.

    Raises UserError for files of several encoders, for one of open vocabulary, and where the encoder is not at hand or
    is another one.
    """
    files = read_heads(paths)
    with torch.random.fork_rng(devices=[]):  # heads are drawn before they are loaded
        encoder = encoder_of(*files[0], encoder_weights)
        groups: dict[str, list] = {}
        for path, content in files:
            said = content.protocol if content.model is None else content.model
            how = {
                "inference": said.get("inference") or dict(mode="whole"),
                "precision": said.get("precision", "fp32"),
                "transforms": said.get("test_transforms", []),
            }
            groups.setdefault(json.dumps(how, sort_keys=True), []).append((path, content))
        views = []
        for key, group in groups.items():
            how = json.loads(key)
            probe = probe_of(encoder, group, how["inference"], how["precision"])
            views.append(View(probe, tuple(seen_whole(how["transforms"]))))
        return views


def read_heads(paths: Sequence[str | Path]) -> list[tuple[str, HeadFile]]:
    """The content of head files with classes of their own on one encoder, each with its path.

    A head whose name an earlier file has too gets a number: "depth", "depth_2". Raises UserError for other files.
    """
    if not paths:
        raise UserError('Predictor: give a head file, Predictor("head.safetensors"), or a list of them.')
    files = [(str(path), head_file.read(path)) for path in paths]
    taken: set[str] = set()
    for path, content in files:
        if is_open(content):
            raise UserError(
                f"{path} is of open vocabulary: say what to look for, Predictor.open_vocabulary({path!r}, "
                "prompts=[...]), or --prompts."
            )
        _check_shared(*files[0], path, content, alone=len(files) == 1)
    return [(path, _renamed(content, taken)) for path, content in files]


def is_open(content: HeadFile) -> bool:
    """Whether the heads take any class names."""
    return any(one["meaning"].get("vocabulary") == "open" for one in content.heads.values())


def _check_shared(first: str, own: HeadFile, path: str, content: HeadFile, alone: bool) -> None:
    """Raise UserError unless the second file's heads can work on what the first's encoder gives."""
    if not alone and content.encoder_config.get("trainable", "none") != "none":
        raise UserError(f"{path} changed its encoder in training, so that no other head can share it; give it alone.")
    then, now = own.encoder, content.encoder
    if then.fingerprint != now.fingerprint:
        raise UserError(
            f"{path} is of {now.name} (weights {now.fingerprint[:12]}) and {first} of {then.name} (weights "
            f"{then.fingerprint[:12]}): only heads of one encoder share its pass; give those of each by themselves."
        )
    for what in ("position_kernel", "sequence_length"):
        if getattr(then, what) != getattr(now, what):
            raise UserError(
                f"{path} was trained with {what}={getattr(now, what)!r} and {first} with {getattr(then, what)!r}; give "
                "them one by one."
            )
    precisions = [one.encoder_config.get("precision", "fp32") for one in (own, content)]
    if precisions[0] != precisions[1]:
        raise UserError(
            f"{path} had an encoder of precision {precisions[1]!r} and {first} of {precisions[0]!r}; give them one by "
            "one."
        )


def encoder_of(path: str, content: HeadFile, weights: str | Path | None, **changes):
    """The encoder that a file names, with its weights from where the file says, or else from the hub.

    changes: of its settings. Raises UserError where it is not at hand, and where its weights are others.
    """
    config = {"type": "FrozenEncoder", **_encoder_config(content, weights), **changes}
    source, name, wanted = config["weights"], content.encoder.name, content.encoder.fingerprint
    try:
        encoder = build(MODELS, config)
    except UserError as error:
        raise UserError(
            f"{path} needs the encoder {name} (weights {wanted[:12]}), which is not at hand: {error}"
        ) from error
    if encoder.facts.fingerprint != wanted:
        raise UserError(
            f"{path} was trained on {name} with weights {wanted[:12]}, and those of {source!r} are "
            f"{encoder.facts.fingerprint[:12]}; give the file of the right ones (encoder_weights, --weights)."
        )
    return encoder


def _encoder_config(content: HeadFile, weights: str | Path | None = None) -> dict:
    config = {key: value for key, value in content.encoder_config.items() if key not in OF_TRAINING}
    source = str(weights or config.get("weights", "hub"))
    if weights is None and source.partition(":")[0] not in ("hub", "random") and not Path(source).expanduser().exists():
        source = "hub"  # the place was another machine's
    return {**config, "weights": source}


def _renamed(content: HeadFile, taken: set[str]) -> HeadFile:
    """The file's heads under names that are not taken yet, which then are."""
    names = {}
    for name in content.heads:
        candidates = (name if number == 1 else f"{name}_{number}" for number in range(1, len(taken) + 2))
        names[name] = next(one for one in candidates if one not in taken)
        taken.add(names[name])
    tensors = {}
    for key, tensor in content.tensors.items():
        head, _, rest = key.partition(".")
        tensors[f"{names.get(head, head)}.{rest}"] = tensor
    heads = {names[name]: described for name, described in content.heads.items()}
    return replace(content, tensors=tensors, heads=heads)


def probe_of(encoder, group: Sequence[tuple[str, HeadFile]], inference: dict, precision: str = "fp32") -> DenseProbe:
    """A probe of the heads of some files, as ``read_heads`` gives them, loaded."""
    paths, files = zip(*group, strict=True)
    heads = {name: one for content in files for name, one in content.heads.items()}
    tensors = {key: tensor for content in files for key, tensor in content.tensors.items()}
    parts = {name: dict(head=one["head"], task=_task(one)) for name, one in heads.items()}
    trains = dict(encoder_optim=dict(lr_mult=1.0)) if encoder.trains else {}  # it does not, but is there to be loaded
    probe = DenseProbe(parts, encoder, inference=inference, precision=precision, **trains)
    described = {name: head_file.describe(probe.heads[name], probe.tasks[name], parts[name]) for name in parts}
    merged = HeadFile(tensors, files[0].encoder, files[0].encoder_config, heads, {}, {}, 0)
    head_file.load_into(probe, described, merged, ", ".join(paths))
    return probe.eval()


def _task(described: dict) -> dict:
    """The config of a task; its classes are in the file, wherever the config had them from."""
    classes = described["meaning"].get("classes")
    return {**described["task"], **({} if classes is None else {"classes": classes})}


def seen_whole(transforms: Sequence[dict]) -> list[dict]:
    """Transforms of a test for images of any shape: without those that cut the border of a data set's images off."""
    found = []
    for one in transforms:
        if one["type"] in CUTS:
            continue
        if one["type"] == "ResizeShortSide" and one.get("long") is None:
            one = {**one, "long": MOST_ASPECT * one["short"]}
        found.append(dict(one))
    return found


def open_names(
    source: str | Path | Config, head: str | Path | None = None, encoder_weights: str | Path | None = None
) -> View:
    """A model of open vocabulary, to be given names or examples.

    source: a config, its path or name, or a head file that says its model. head: the head file of a config whose model
    is trained. Raises UserError for a model of other kinds, and where something is not at hand.
    """
    content = None
    if not isinstance(source, Config) and Path(source).suffix == ".safetensors":
        if head is not None:
            raise UserError(f"{source} is a head file; give {head} with a config, or leave it out.")
        head, content = source, head_file.read(source)
        config = config_of(content, source, encoder_weights)
    else:
        config = source if isinstance(source, Config) else read_config(find_config(str(source)))
        if encoder_weights is not None:
            config.model.encoder.weights = str(encoder_weights)
    check_keys(config)
    head = None if head is None else str(head)
    probe = open_probe(config, content or read_head(config, head), head)
    loading = config.get("test_dataloader") or config.get("val_dataloader") or {}
    transforms = [dict(one) for one in loading.get("dataset", {}).get("transforms", [])]
    return View(probe, tuple(seen_whole(transforms)))


def says_its_model(path: str | Path) -> bool:
    """Whether a head file of open vocabulary is enough, without a config."""
    content = head_file.read(path)
    return is_open(content) and content.model is not None


def config_of(content: HeadFile, path: str | Path, encoder_weights: str | Path | None = None) -> Config:
    """The config of a head file of open vocabulary, as far as predictions need one."""
    if content.model is None or not is_open(content):
        kind = "says nothing of its model, as files of before did" if is_open(content) else "has classes of its own"
        advice = "give its config, with the file as its head" if is_open(content) else "use it without any names"
        raise UserError(f"{path} {kind}; {advice}.")
    heads = {name: dict(head=one["head"], task=one["task"]) for name, one in content.heads.items()}
    model = {**content.model, "encoder": _encoder_config(content, encoder_weights), "heads": heads}
    dataset = dict(transforms=model.pop("test_transforms", []))
    return Config(dict(seed=0, model=model, test_dataloader=dict(dataset=dataset)))
