"""The published recipes of ``configs/protocols`` side by side, read from the configs themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from siglip2_dense.engine.configs import config_folder

HEADING = ("recipe", "data", "training images", "test", "head", "task", "optimizer", "steps")


def table() -> list[str]:
    """Lines of Markdown, a row for each recipe and head."""
    from mmengine.config import Config

    lines = [f"| {' | '.join(HEADING)} |", "|---" * len(HEADING) + "|"]
    for path in sorted((config_folder() / "protocols").glob("*.py")):
        config = Config.fromfile(path)
        train, test, model = config.train_dataloader, config.val_dataloader.dataset, config.model
        inference = model.get("inference", {"mode": "whole"})
        how = [in_words(inference), *map(in_words, test.get("transforms", []))]
        for parts in model.heads.values():
            cells = [
                f"`protocols/{path.stem}`",
                f"{train.dataset.type} {train.dataset.split}, scored on {test.type} {test.split}",
                "; ".join(map(in_words, train.dataset.get("transforms", []))) or "as they are",
                "; ".join(how),
                *(in_words(parts[part]) for part in ("head", "task", "optim")),
                f"{config.train_cfg.max_iters:,} of {train.batch_size}; {', '.join(_schedules(config))}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def in_words(settings: Mapping) -> str:
    """Settings of a part: its type, or mode, and what else is set."""
    rest = ", ".join(f"{key} {_value(value)}" for key, value in settings.items() if key not in ("type", "mode"))
    name = settings.get("type") or settings["mode"]
    return f"{name} ({rest})" if rest else name


def _schedules(config) -> Sequence[str]:
    return [f"{one['type']} {one['begin']:,} to {one['end']:,}" for one in config.param_scheduler]


def _value(value) -> str:
    if isinstance(value, (list, tuple)):
        return " x ".join(map(str, value)) if len(value) == 2 and all(isinstance(n, int) for n in value) else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
