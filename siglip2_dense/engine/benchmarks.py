"""Several data sets in one process: a model that takes any class names is loaded once and asked for each set's."""

from __future__ import annotations

import time

import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import is_main_process

from siglip2_dense.engine import distributed
from siglip2_dense.engine.configs import check_keys
from siglip2_dense.engine.evaluate import open_probe, read_head, score, test_loading
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.published import rows_of
from siglip2_dense.registry import DATASETS, build

ALL = "all"
PARTS = ("dataset", "queries")
HEADLINE = "mIoU_labelled"  # what open-vocabulary work publishes


def test_benchmarks(config: Config, path: str | None, wanted: str, command: str = "") -> dict[str, dict]:
    """Evaluate a model on the config's ``benchmarks``, each with its ``WORK_DIR/results_NAME.json``, and print a table.

    ``benchmarks = dict(NAME=dict(dataset=..., queries=...))``: the classes are the data set's, queries as the model
    takes them. A data set without transforms has those of the config's test data.

    path: of a head file, none for a model that has nothing to train. wanted: "all", or names with commas between them.
    Returns the records by name. A set that cannot be read is left out, and the error, a UserError, comes at the end.
    """
    check_keys(config)
    distributed.start(config.get("launcher", "none"))
    content = read_head(config, path)
    loadings, data, failed = _chosen(config, wanted), {}, {}
    for name, loading in loadings.items():
        data[name], failed[name] = _built(loading["dataset"], config.seed)
        if failed[name] and is_main_process():
            print(f"{name} is left out: {failed[name]}")
    data = {name: one for name, one in data.items() if one is not None and not failed[name]}
    records = {}
    if data:
        probe = open_probe(config, content, path)
        for name, one in data.items():
            started = time.time()
            try:
                probe.set_vocabulary(one.classes, config.benchmarks[name].get("queries"))
                record, _ = score(config, probe, content, one, loadings[name], name, command, started)
            except UserError as error:
                if dist.is_initialized():  # the other ranks may not have met it, and would wait
                    raise
                failed[name] = str(error)
                print(f"{name} is left out: {error}")
                continue
            if record:
                records[name] = record
                print(f"{name}: {HEADLINE} {record['metrics'][HEADLINE]:.2f}, {time.time() - started:.0f} s")
        if records:
            print("\n" + table(records, type(probe).__name__))
    if lacking := [name for name, problem in failed.items() if problem]:
        raise UserError(
            f"{len(lacking)} of {len(failed)} benchmarks are not scored: {', '.join(lacking)}; why is said above."
        )
    return records


def table(records: dict[str, dict], model: str) -> str:
    """Ours by both rules, and beside them what is published of this model on this encoder."""
    encoder = next(iter(records.values()))["encoder"]["name"]
    published = [row for row in rows_of(model, encoder) if row.scores.keys() & records.keys()]
    letters = "abcdefgh"[: len(published)]
    cells = [("benchmark", "images", "classes", HEADLINE, "95 %", "mIoU", *letters)]
    for name, record in records.items():
        metrics, (low, high) = record["metrics"], record["intervals"][HEADLINE]
        cells.append((
            name, f"{record['data']['images']:,}", str(len(record["per_class"]["IoU"])), f"{metrics[HEADLINE]:.2f}",
            f"{low:.2f} to {high:.2f}", f"{metrics['mIoU']:.2f}",
            *(f"{row.scores[name]:.1f}" if name in row.scores else "-" for row in published),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in cells]
    notes = [f"{letter}: {row.printed}, {row.source}" for letter, row in zip(letters, published, strict=True)]
    return "\n".join([*lines, *notes])


def _chosen(config: Config, wanted: str) -> dict[str, dict]:
    """The loaders of the benchmarks that are asked for, by name."""
    known = {name: one.to_dict() for name, one in (config.get("benchmarks") or {}).items()}
    if not known:
        raise UserError("the config has no benchmarks; give benchmarks = dict(NAME=dict(dataset=...)).")
    names = list(known) if wanted == ALL else list(dict.fromkeys(filter(None, map(str.strip, wanted.split(",")))))
    for name in names:
        if name not in known:
            raise UserError(f"benchmark {name!r} is unknown: {nearest(name, known, ', '.join(known))}")
        for part in known[name]:
            if part not in PARTS:
                raise UserError(f"benchmarks.{name} has no part {part!r}: {nearest(part, PARTS, ', '.join(PARTS))}")
    if not names:
        raise UserError(f"--benchmarks {wanted!r} names none; give {ALL}, or some of {', '.join(known)}.")
    loading = test_loading(config)
    shared = {"transforms": loading["dataset"].get("transforms", [])}
    return {name: {**loading, "dataset": {**shared, **known[name]["dataset"]}} for name in names}


def _built(dataset: dict, seed: int) -> tuple[object | None, str]:
    """A data set, or what keeps it from being read, on this or another rank: all ranks leave out the same."""
    built, problem = None, ""
    try:
        built = build(DATASETS, dataset, seed=seed)
    except UserError as error:
        problem = str(error)
    if dist.is_initialized():
        problems = [""] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
        problem = next(filter(None, problems), "")
    return built, problem
