"""Where the curves of a run go, by one word of its config: ``vis_backends = "tensorboard"``, or another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.visualization import MLflowVisBackend, WandbVisBackend
from mmengine.visualization.vis_backend import force_init_env

from siglip2_dense.errors import UserError, nearest

PACKAGES = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow",), "json": ()}  # that each needs
SERVER = "MLFLOW_TRACKING_URI"  # the variable that names one
PROJECT = "siglip2_dense"  # what runs are filed under, where the service has projects or experiments
MOST_PARAMETERS, LONGEST = 100, 500  # of a call to MLflow, and characters of one


def backends(given: str | Sequence[dict] | None, work_dir: Path) -> list[dict]:
    """mmengine's backends of a word, or those of a list as it is; none for None.

    Raises UserError for another word, and one whose package is not installed.
    """
    if not isinstance(given, str):
        return list(given or ())
    if given not in PACKAGES:
        raise UserError(f"vis_backends={given!r}: {nearest(given, PACKAGES, ', '.join(PACKAGES))}")
    needed = PACKAGES[given]
    if given == "mlflow" and SERVER not in os.environ:
        needed += ("sqlalchemy",)  # for a data base of its own; mlflow-skinny has none
    if any(find_spec(package) is None for package in needed):
        raise UserError(f"curves were to go to {given}, which is not installed; pip install {given}, or take another.")
    if given == "wandb":
        return [dict(type=Wandb, init_kwargs=dict(project=PROJECT, name=work_dir.name))]
    if given == "mlflow":
        names = dict(exp_name=PROJECT, run_name=work_dir.name, artifact_suffix=("results.json",))
        return [dict(type=MLflow, **names, **_store(work_dir.resolve().parent))]
    return [dict(type="LocalVisBackend" if given == "json" else "TensorboardVisBackend")]


def _store(folder: Path) -> dict:
    """MLflow's server, or one data base for all runs of a folder, so that they stand in one table."""
    if uri := os.environ.get(SERVER):
        return dict(tracking_uri=uri)
    folder.mkdir(parents=True, exist_ok=True)
    return dict(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", artifact_location=(folder / "mlartifacts").as_uri())


class Wandb(WandbVisBackend):
    """mmengine's, which leaves out the step, uploads the code in the working directory, and ends by a function that
    newer versions of the package lack.
    """

    @force_init_env
    def add_config(self, config: Config, **kwargs) -> None:
        self._wandb.config.update(config.to_dict())

    @force_init_env
    def add_scalar(self, name: str, value, step: int = 0, **kwargs) -> None:
        self._wandb.log({name: value}, step=step)

    @force_init_env
    def add_scalars(self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **kwargs) -> None:
        self._wandb.log(scalar_dict, step=step)

    def close(self) -> None:
        if hasattr(self, "_wandb"):
            self._wandb.finish()


class MLflow(MLflowVisBackend):
    """mmengine's, but for settings: MLflow takes a hundred at a time and none that is long, as a list of classes."""

    @force_init_env
    def add_config(self, config: Config, **kwargs) -> None:
        self.cfg = config  # from which ``close`` knows the work dir
        self._mlflow.log_text(config.pretty_text, "config.py")
        settings = [(name, str(value)) for name, value in self._flatten(config.to_dict()).items()]
        short = [(name, value) for name, value in settings if len(value) <= LONGEST]
        for first in range(0, len(short), MOST_PARAMETERS):
            self._mlflow.log_params(dict(short[first : first + MOST_PARAMETERS]))
