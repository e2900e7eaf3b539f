"""The configs that come with the package: their names, which do wherever one is asked for, and what is in one."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from siglip2_dense.cli.common import add_json_argument, read_config, show
from siglip2_dense.engine.configs import config_folder, find_config, known_configs
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  siglip2-dense configs list nyuv2
  siglip2-dense configs show probe_ade20k
  siglip2-dense configs show probe_folder > mine.py      (then edit it, and: siglip2-dense train mine.py)
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list", help="names, each with its first line")
    listing.add_argument("part", nargs="?", default="", metavar="SUBSTRING", help="of the name")
    showing = verbs.add_parser("show", help="one in full, as a config by itself")
    showing.add_argument("config", help="a config file, or the name of one that comes with the package")
    for verb in (listing, showing):
        add_json_argument(verb)
    arguments = parser.parse_args(argv)
    {"list": _list, "show": _show}[arguments.verb](arguments)


def _list(arguments: argparse.Namespace) -> None:
    names = [name for name in known_configs() if arguments.part in name]
    if not names:
        raise UserError(f"no config has {arguments.part!r} in its name; leave it out to see all.")
    found = [{"name": name, "about": _docstring(config_folder() / f"{name}.py").partition("\n")[0]} for name in names]
    width = max(len(one["name"]) for one in found)
    show(found, "\n".join(f"{one['name'].ljust(width)}  {one['about']}" for one in found), arguments.json)


def _show(arguments: argparse.Namespace) -> None:
    path = find_config(arguments.config)
    config = read_config(path)
    text = path.read_text(encoding="utf-8")
    first = ast.parse(text).body[0]
    head = ast.get_source_segment(text, first) if _is_text(first) else ""
    show(config.to_dict(), f"{head}\n\n{config.pretty_text.rstrip()}".lstrip(), arguments.json)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
