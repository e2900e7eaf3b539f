"""Records as runs of the package's own configs leave them, with scores that are given."""

import json
from pathlib import Path

from mmengine.config import Config

from siglip2_dense import records
from siglip2_dense.data.recipes import RECIPES
from siglip2_dense.encoders.catalogue import catalogue
from siglip2_dense.engine.configs import find_config


def made(
    path, config, metrics, encoder="siglip2-so400m-14-384", data=("ade20k", "val"), intervals=None, seed=0, **changes
) -> Path:
    """Write ``path/results.json``, or ``path`` itself where it names a file. changes: settings by their places, as in
    ``protocol__canvas=None``, after all else; data: name, split and, where it is not the whole set, images.
    """
    config = Config.fromfile(find_config(config)).to_dict()
    name, split, *count = data
    described = {name: {**parts, "seed": seed, "reads": {}} for name, parts in config["model"]["heads"].items()}
    recipe = RECIPES.get({"voc20": "pascal"}.get(name, name))
    images = count[0] if count else (recipe and recipe.counts.get(split)) or 555
    entry = catalogue().get(encoder)
    record = {
        "metrics": metrics,
        "best": None,
        "per_class": {},
        "intervals": intervals or {},
        "encoder": {
            "name": encoder,
            "fingerprint": encoder.encode().hex().ljust(64, "0")[:64],
            "parameters": entry.parameters if entry else 1,
            "taps": [{"block": 26, "norm": True}],
            "precision": "fp32",
        },
        "protocol": records.protocol(config, described, {"name": name, "split": "train", "images": 1000}, 1, False),
        "data": {"name": name, "split": split, "images": images, "fingerprint": "f" * 64},
        "run": {"command": "train.py", "seed": seed, "seconds": 3600.0, "device": "one GPU", "versions": {}},
        "history": [{"metrics": metrics, "step": 40_000, "split": split}],
    }
    for key, value in changes.items():
        *place, last = key.split("__")
        node = record
        for part in place:
            node = node[part]
        node[last] = value
    path = path if path.suffix == ".json" else path / "results.json"
    records.write(path, record)
    return path if path.name != "results.json" else path.parent


def changed(path, **changes) -> None:
    """Top-level parts of a written record, anew."""
    path = path if path.suffix == ".json" else path / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
