"""Registries, children of mmengine's, and the building of their parts with errors for people.

mmengine imports the modules in ``locations`` at the first build, and this module itself whenever a config of another
framework names a part as ``siglip2_dense.NAME``. So a config needs no imports.
"""

from __future__ import annotations

import inspect

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

from siglip2_dense.errors import UserError, nearest

SCOPE = "siglip2_dense"

MODELS = Registry(
    "model",
    parent=MMENGINE_MODELS,
    scope=SCOPE,
    locations=["siglip2_dense.encoders", "siglip2_dense.heads", "siglip2_dense.models"],
)
TASKS = Registry("task util", parent=MMENGINE_TASK_UTILS, scope=SCOPE, locations=["siglip2_dense.tasks"])
DATASETS = Registry("dataset", parent=MMENGINE_DATASETS, scope=SCOPE, locations=["siglip2_dense.data"])
TRANSFORMS = Registry("transform", parent=MMENGINE_TRANSFORMS, scope=SCOPE, locations=["siglip2_dense.data"])


def resolve(registry: Registry, name: str) -> type:
    """The class that ``name`` stands for in our registry or its parents."""
    found = registry.get(name)
    if found is None:
        known = set(registry.module_dict)
        raise UserError(
            f"type={name!r} is not a known {registry.name}: {nearest(name, known, ', '.join(sorted(known)))}"
        )
    return found


def known_arguments(cls: type) -> set[str] | None:
    """Names that ``cls`` accepts, itself or through ``**kwargs`` by its bases; none where it takes any."""
    names: set[str] = set()
    for base in inspect.getmro(cls):
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return None


def check_arguments(registry: Registry, config: dict) -> type:
    """The class of a config. Raises UserError for an unknown type or key, naming the nearest known one."""
    if not isinstance(config, dict) or "type" not in config:
        raise UserError(f"a {registry.name} is given as dict(type=...), got {config!r}.")
    cls = resolve(registry, config["type"]) if isinstance(config["type"], str) else config["type"]
    known = known_arguments(cls)
    for key in config if known is not None else ():
        if key != "type" and key not in known:
            raise UserError(f"{cls.__name__} has no setting {key!r}: {nearest(key, known, ', '.join(sorted(known)))}")
    return cls


def build(registry: Registry, config: dict, **default_args):
    """Build ``config`` (a dict with ``type``); ``default_args`` are handed on, the config's own keys win.

    Raises UserError for an unknown type or key, naming the nearest known one.
    """
    cls = check_arguments(registry, config)
    arguments = {**default_args, **config}
    del arguments["type"]
    parameters = inspect.signature(cls).parameters.values()
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if missing := sorted(required - set(arguments)):
        raise UserError(f"{cls.__name__} needs {', '.join(missing)}, which the config does not give.")
    return cls(**arguments)
