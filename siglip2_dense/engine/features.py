"""Stored features of all that a config trains, validates and tests on, made ahead of its runs."""

from __future__ import annotations

from mmengine.config import Config

from siglip2_dense.engine import distributed
from siglip2_dense.engine.configs import check_keys, check_trains
from siglip2_dense.engine.extract import ensure, settings
from siglip2_dense.engine.grid import has_several, holdout, members
from siglip2_dense.engine.run import build_probe
from siglip2_dense.engine.sweep import config_of_all
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build
from siglip2_dense.store.store import Store


def extract_features(config: Config, part: tuple[int, int] | None = None) -> list[Store]:
    """The stores that runs of a config read, with whatever is missing in them extracted.

    Those of a sweep hold what its heads of any setting read, and the images that it chooses by have one too.
    part: as in ``extract.ensure``.
    """
    check_keys(config)
    distributed.start(config.get("launcher", "none"))
    if settings(config) is None:
        raise UserError("give --features DIR, the folder to keep features in.")
    run, tested = config, [config.get("val_dataloader"), config.get("test_dataloader")]
    if has_several(config):
        check_trains(config)
        run = config_of_all(config, members(config))
        if holdout(config) is not None:
            tested.insert(0, run.val_dataloader)
    probe, found = None, {}
    for loading, windows in [(run.get("train_dataloader"), False), *((loading, True) for loading in tested)]:
        if not loading or "dataset" not in loading:
            continue
        data = build(DATASETS, loading.dataset, seed=config.seed)
        probe = probe or build_probe(run, data)
        store = ensure(run, probe, data, loading, windows, part)
        found[store.path] = store
    return list(found.values())
