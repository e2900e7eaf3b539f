"""From a config with ``sweep`` and ``seeds`` to the heads that are trained in one pass."""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from dataclasses import dataclass
from decimal import Decimal

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from siglip2_dense.engine.configs import OF_OPTIM
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.registry import MODELS, check_arguments, known_arguments

HOLDOUT = 0.1  # of the training images, where the config does not say


@dataclass(frozen=True)
class Member:
    """One of the heads that are trained together."""

    name: str  # "segmentation/lr=1e-3,seed=0"
    head: str  # "segmentation", of the config
    setting: str  # "lr=1e-3": what heads that differ in their seed alone share
    values: dict  # {"lr": 1e-3}
    seed: int
    parts: dict  # of the model's heads: head, task, optim, seed


def has_several(config: Config) -> bool:
    """Whether the config asks for more than one head of each name."""
    return config.get("sweep") is not None or config.get("seeds") is not None


def members(config: Config) -> list[Member]:
    """Every head of the config with every combination of the sweep's values and every seed.

    Values of an optimizer's settings go to the heads' optimizers, those of a head's settings to the heads, and "head"
    stands for the head itself. The first seed is the config's own.
    Raises UserError for a setting that a head has not, a value that cannot be one, or the same value twice.
    """
    axes = _axes(config)
    found = []
    for name, parts in config.model.heads.to_dict().items():
        for combination in itertools.product(*axes.values()):
            values, words = {}, []
            for key, (word, value) in zip(axes, combination, strict=True):
                values[key] = value
                words.append(f"{key}={word}")
            with_values = _with_values(name, parts, values)
            for seed in range(config.seed, config.seed + config.get("seeds", 1)):
                full = f"{name}/{','.join([*words, f'seed={seed}'])}"
                found.append(Member(full, name, ",".join(words), values, seed, {**with_values, "seed": seed}))
    return found


def holdout(config: Config) -> float | None:
    """The fraction of the training images to choose by; none where there is nothing to choose."""
    return None if config.get("sweep") is None else config.sweep.get("holdout", HOLDOUT)


def _axes(config: Config) -> dict[str, list[tuple[str, object]]]:
    """{setting: [(word for names, value), …]}."""
    sweep = config.get("sweep")
    if sweep is None:
        return {}
    if not isinstance(sweep, dict):
        raise UserError(f"sweep={sweep!r}: give dict(SETTING=[VALUE, …]), such as dict(lr=[1e-4, 1e-3]).")
    axes = {}
    for key, values in sweep.to_dict().items():
        if key == "holdout":
            continue
        if not isinstance(values, (list, tuple)) or not values:
            raise UserError(f"sweep.{key}={values!r}: give the values to try as a list, such as {key}=[{values!r}].")
        words = [_word(value) for value in values]
        if key == "head" and len(set(words)) < len(words):  # heads of one type, with other settings
            words = [f"{word}_{number}" for number, word in enumerate(words)]
        for number, word in enumerate(words):
            if word in words[:number]:
                raise UserError(f"sweep.{key} has {values[number]!r} twice; leave one out.")
        axes[key] = list(zip(words, values, strict=True))
    if not axes:
        raise UserError("sweep names no setting: give the values to try, such as sweep=dict(lr=[1e-4, 1e-3]).")
    return axes


def _word(value: object) -> str:
    """A value as a part of a name, which has no dots: 1e-3, last4, 2+5, LinearHead."""
    if isinstance(value, dict):
        return str(value.get("type", "")).rpartition(".")[2]
    if isinstance(value, (list, tuple)):
        return "+".join(map(_word, value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
        if isinstance(exponent, int):  # not so of what is not finite
            number = "".join(map(str, digits)) + ("0" * exponent if 0 <= exponent < 6 else f"e{exponent}")
            return "-" * sign + number
    return re.sub(r"[^\w+-]", "_", str(value))


def _with_values(name: str, parts: dict, values: dict) -> dict:
    """The parts of a head with these settings in their places."""
    parts = copy.deepcopy({"optim": {}, **parts})
    if "head" in values:
        parts["head"] = copy.deepcopy(values["head"])
    optimizer = check_arguments(OPTIMIZERS, {k: v for k, v in parts["optim"].items() if k not in OF_OPTIM})
    head, of_head = _settings_of_head(parts.get("head", {}))
    of_optimizer = (known_arguments(optimizer) or set()) - {"params"} | OF_OPTIM
    for key, value in values.items():
        if key in of_optimizer:
            _check_value(name, key, value, optimizer)
            parts["optim"][key] = value
        elif key in of_head:
            _check_value(name, key, value, head)
            parts["head"][key] = value
        elif key != "head":
            known = of_optimizer | of_head | {"head", "holdout"}
            hint = nearest(key, known, f"{', '.join(sorted(known))}.")
            raise UserError(f"sweep.{key}: heads.{name} has no such setting: {hint}")
    return parts


def _settings_of_head(head: dict) -> tuple[type, set[str]]:
    """Its class, and what a config can set of it; of a head of mmsegmentation also what it sets already."""
    mmseg = isinstance(head, dict) and str(head.get("type", "")).startswith("mmseg.")
    cls = check_arguments(MODELS, dict(type="MMSegHead") if mmseg else head)
    known = (known_arguments(cls) or set()) - {"facts", "channels", "head"}
    return cls, known | (set(head) - {"type", "_scope_"} if mmseg else set())


def _check_value(name: str, key: str, value: object, cls: type) -> None:
    """Raise UserError for a value of another kind than the setting's default; the rest is for the class to judge."""
    parameter = inspect.signature(cls).parameters.get(key)
    default = parameter.default if parameter else None
    if key in ("lr", "clip_norm"):
        fits, wanted = _is_number(value) and 0 < value < float("inf"), "numbers above 0"
    elif key == "weight_decay":
        fits, wanted = _is_number(value) and 0 <= value < float("inf"), "numbers from 0 on"
    elif isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "True or False"
    elif isinstance(default, int) or (default is None and "int" in str(getattr(parameter, "annotation", ""))):
        fits, wanted = isinstance(value, int) and not isinstance(value, bool), "whole numbers"
    elif isinstance(default, float):
        fits, wanted = _is_number(value), "numbers"
    elif isinstance(default, str):  # or, as for layers, a list of numbers
        fits, wanted = isinstance(value, (str, list, tuple)), f"words, such as {default!r}, or lists"
    elif isinstance(default, tuple):
        fits = isinstance(value, (list, tuple)) and len(value) == len(default) and all(map(_is_number, value))
        wanted = f"lists such as {list(default)}"
    else:
        return
    if not fits:
        raise UserError(f"sweep.{key}: {value!r} is no {key} of heads.{name}; give {wanted}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
