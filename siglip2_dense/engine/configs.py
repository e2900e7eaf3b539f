"""Configs by name, in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

from siglip2_dense.errors import UserError, nearest


def config_folder() -> Path:
    """Where the configs are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def find_config(name: str) -> Path:
    """A path as it is, else the config of that name, with or without ``.py``."""
    if Path(name).is_file():
        return Path(name)
    folder = config_folder()
    found = folder / Path(name).with_suffix(".py").name
    if found.is_file() and Path(name).parent in (Path("."), Path("configs")):
        return found
    known = [path.stem for path in folder.glob("*.py")]
    raise UserError(
        f"config {name!r} is neither a file nor one of ours: {nearest(Path(name).stem, known, ', '.join(known))}"
    )
