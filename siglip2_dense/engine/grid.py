"""From a config with ``sweep`` and ``seeds`` to the heads that are trained in one pass."""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import torch
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from siglip2_dense.engine.configs import OF_OPTIM
from siglip2_dense.errors import UserError, first_line, nearest
from siglip2_dense.registry import MODELS, build, check_arguments, known_arguments

HOLDOUT = 0.1  # of the training images, where the config does not say
VARIES = "first weights and dropout; the images, their order, crops and sampled pixels are the same for all seeds"
"""What the spread over ``seeds`` is of. Runs of their own, each with another ``seed``, vary the rest too."""


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
    stands for the head itself. What seeds vary, see ``VARIES``.
    Raises UserError for a setting that a head has not, a value that cannot be one, or the same value twice.
    """
    found = []
    for name, axes in axes_of(config).items():
        choices = [zip(_words(key, values), values, strict=True) for key, values in axes.items()]
        for combination in itertools.product(*choices):
            words = [f"{key}={word}" for key, (word, _) in zip(axes, combination, strict=True)]
            values = {key: value for key, (_, value) in zip(axes, combination, strict=True)}
            parts = _with_values(name, config.model.heads[name].to_dict(), values)
            for seed in seeds_of(config):
                full = f"{name}/{','.join([*words, f'seed={seed}'])}"
                found.append(Member(full, name, ",".join(words), values, seed, {**parts, "seed": seed}))
    return found


def seeds_of(config: Config) -> range:
    """Those that every setting is trained with, the config's own first."""
    count = config.get("seeds")
    return range(config.seed, config.seed + (1 if count is None else count))


def by_setting(heads: Sequence[Member]) -> dict[tuple[str, str], list[Member]]:
    """{(head, setting): its seeds}."""
    found: dict[tuple[str, str], list[Member]] = {}
    for member in heads:
        found.setdefault((member.head, member.setting), []).append(member)
    return found


def axes_of(config: Config) -> dict[str, dict[str, list]]:
    """{head: {setting: values to try}}: those for all heads, and those under a head's name, which replace them for it.

    Raises UserError for values that are no list, and where there are none.
    """
    sweep, heads = config.get("sweep"), config.model.heads
    if sweep is None:
        return {name: {} for name in heads}
    if not isinstance(sweep, dict):
        raise UserError(f"sweep={sweep!r}: give dict(SETTING=[VALUE, …]), such as dict(lr=[1e-4, 1e-3]).")
    given = {key: values for key, values in sweep.to_dict().items() if key != "holdout"}  # type: ignore[attr-defined]
    own = {name: given.pop(name) for name in heads if isinstance(given.get(name), dict)}
    for place, settings in {"sweep": given, **{f"sweep.{name}": settings for name, settings in own.items()}}.items():
        for key, values in settings.items():
            if not isinstance(values, (list, tuple)) or not values:
                raise UserError(
                    f"{place}.{key}={values!r}: give the values to try as a list, such as {key}=[{values!r}]; settings "
                    f"of one head alone stand in a dict under its name ({', '.join(heads)})."
                )
    found = {name: {key: list(values) for key, values in {**given, **own.get(name, {})}.items()} for name in heads}
    if not any(found.values()):
        raise UserError("sweep names no setting: give the values to try, such as sweep=dict(lr=[1e-4, 1e-3]).")
    return found


def holdout(config: Config) -> float | None:
    """The fraction of the training images to choose by; none where there is nothing to choose.

    Raises UserError for a sweep that would choose by nothing.
    """
    if config.get("sweep") is None:
        return None
    fraction = config.sweep.get("holdout", HOLDOUT)
    if fraction is None:
        raise UserError(
            "sweep.holdout=None: settings are chosen among by images that they were not trained on; give the fraction "
            f"of the training images to hold out, or leave it out for {HOLDOUT}."
        )
    return fraction


def _words(key: str, values: list) -> list[str]:
    """The values of a setting as parts of names. Raises UserError for a value that is there twice."""
    words = [_word(value) for value in values]
    if key == "head" and len(set(words)) < len(words):  # heads of one type, with other settings
        words = [f"{word}_{number}" for number, word in enumerate(words)]
    for number, word in enumerate(words):
        if word in words[:number]:
            raise UserError(f"sweep.{key} has {values[number]!r} twice; leave one out.")
    return words


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
    optimizer = check_arguments(OPTIMIZERS, _torchs(parts["optim"]))
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
            raise UserError(
                f"sweep.{key}: heads.{name} has no such setting: {hint} What only some heads have stands under their "
                f"names, sweep=dict(NAME=dict({key}=[…]))."
            )
    try:  # for what an optimizer takes there is no better judge
        build(OPTIMIZERS, _torchs(parts["optim"]), params=[torch.zeros(1, requires_grad=True)])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"heads.{name} cannot be trained with {_torchs(parts['optim'])} ({first_line(error)}); give other values."
        ) from error
    return parts


def _torchs(optim: dict) -> dict:
    """Of the settings of an optimizer those that are its own and not ours."""
    return {key: value for key, value in optim.items() if key not in OF_OPTIM}


def _settings_of_head(head: dict) -> tuple[type, set[str]]:
    """Its class, and what a config can set of it; of a head of mmsegmentation also what it sets already."""
    mmseg = isinstance(head, dict) and str(head.get("type", "")).startswith("mmseg.")
    cls = check_arguments(MODELS, dict(type="MMSegHead") if mmseg else head)
    known = (known_arguments(cls) or set()) - {"facts", "channels", "head"}
    return cls, known | (set(head) - {"type", "_scope_"} if mmseg else set())


def _check_value(name: str, key: str, value: object, cls: type) -> None:
    """Raise UserError for a value of another kind than the setting's default; the rest is for the class to judge."""
    parameter = inspect.signature(cls).parameters.get(key)
    default, annotation = (parameter.default, str(parameter.annotation)) if parameter else (None, "")
    if key in ("lr", "clip_norm"):
        fits, wanted = _is_number(value) and 0 < value < float("inf"), "numbers above 0"
    elif key == "weight_decay":
        fits, wanted = _is_number(value) and 0 <= value < float("inf"), "numbers from 0 on"
    elif isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "True or False"
    elif isinstance(default, float) or (isinstance(default, int) and "float" in annotation):
        fits, wanted = _is_number(value), "numbers"
    elif isinstance(default, int) or (default is None and "int" in annotation):
        fits, wanted = isinstance(value, int) and not isinstance(value, bool), "whole numbers"
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
