"""Configs: found by name, in a checkout and in an installed package, and checked before anything is built."""

from __future__ import annotations

from pathlib import Path

from siglip2_dense.errors import UserError, nearest

LOADER = {"batch_size", "num_workers", "dataset"}
KEYS = {  # what may stand at the top level, and inside it
    "seed": None, "work_dir": None, "launcher": None, "model": None, "param_scheduler": None, "log_interval": None,
    "pictures": None, "vis_backends": None, "custom_imports": None, "sweep": None, "seeds": None,
    "benchmarks": None,
    "model_wrapper_cfg": None,  # in the config that a run of several processes leaves
    "feature_store": {"dir", "views", "dtype"},
    "train_cfg": {"max_iters", "val_interval", "save_interval", "sharded"},
    "train_dataloader": LOADER, "val_dataloader": LOADER, "test_dataloader": LOADER,
}  # fmt: skip
OF_OPTIM = {"clip_norm", "norm_decay"}  # settings of an optimizer that the engine reads itself
NEEDED = ("seed", "model.type")
NEEDED_TO_TRAIN = (
    "log_interval", "model.heads", "train_cfg.max_iters", "train_cfg.val_interval", "train_dataloader.batch_size",
    "train_dataloader.dataset", "val_dataloader.dataset",
)  # fmt: skip
COUNTS = ("seeds", "log_interval", "train_cfg.max_iters", "train_cfg.val_interval", "train_cfg.save_interval")


def config_folder() -> Path:
    """Where the configs are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def known_configs() -> list[str]:
    """The names of all that come with the package."""
    folder = config_folder()
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*.py")))
    return [path.with_suffix("").as_posix() for path in paths if not path.parts[0].startswith("_")]


def find_config(name: str) -> Path:
    """A path as it is, else the config of that name, with or without ``.py``: ``probe_ade20k``, or, of a recipe that
    others have published, ``protocols/dinov2_linear_ade20k``.
    """
    if Path(name).is_file():
        return Path(name)
    folder = config_folder()
    inner = Path(name).with_suffix("").as_posix().removeprefix("configs/")
    known = known_configs()
    if inner in known:
        return folder / f"{inner}.py"
    hint = nearest(inner, known, ", ".join(known))
    raise UserError(f"config {name!r} is neither a file nor one of ours: {hint}")


def read_config(path: Path):
    """The mmengine Config of a file."""
    from mmengine.config import Config

    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is Python: whatever it raises is a fault of the file
        raise UserError(f"{path} cannot be read as a config: {type(error).__name__}: {error}") from error


def check_keys(config) -> None:
    """Raise UserError for a key that nothing reads, a needed one that is missing, or a count that is none."""
    for key, inside in KEYS.items():
        for inner in (config.get(key) or {}) if inside else ():
            if inner not in inside:
                raise UserError(f"{key} has no setting {inner!r}: {nearest(inner, inside, ', '.join(sorted(inside)))}")
    for key in config:
        if key not in KEYS:
            raise UserError(f"the config has an unknown key {key!r}: {nearest(key, KEYS, ', '.join(sorted(KEYS)))}")
    _check_set(config, NEEDED)
    for key in COUNTS:
        value = _value(config, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{key}={value!r}: give a whole number from 1 on.")
    if not isinstance(sharded := _value(config, "train_cfg.sharded") or False, bool):
        raise UserError(f"train_cfg.sharded={sharded!r}: give True or False.")
    if isinstance(config.seed, bool) or not isinstance(config.seed, int) or config.seed < 0:
        raise UserError(f"seed={config.seed!r}: give a whole number from 0 on.")


def check_trains(config) -> None:
    """Raise UserError when a config does not say all that training needs."""
    if _value(config, "train_dataloader") is None and _value(config, "test_dataloader") is not None:
        raise UserError("the config has nothing to train; it is for siglip2-dense test.")
    _check_set(config, NEEDED_TO_TRAIN)


def _check_set(config, keys: tuple[str, ...]) -> None:
    for key in keys:
        if _value(config, key) is None:
            raise UserError(f"the config does not set {key!r}; `siglip2-dense configs show NAME` shows how.")


def _value(config, key: str):
    for part in key.split("."):
        config = config.get(part) if hasattr(config, "get") else None
    return config
