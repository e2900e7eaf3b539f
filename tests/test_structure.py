"""What the package promises of its own structure: who imports whom, and where things may be done."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "siglip2_dense"
CONFIGS = PACKAGE.parent / "configs"
EVERYBODY = {"contracts", "errors", "files", "label_sets"}
BASIC = {"registry", "resample"}
LATER = {"losses", "metrics", "viz"}
ALLOWED = {
    "contracts": set(),
    "errors": set(),
    "files": set(),
    "label_sets": set(),
    "registry": set(),
    "resample": set(),
    "threads": set(),
    "losses": {"resample", "threads"},
    "metrics": {"resample"},
    "viz": {"resample"},
    "data": BASIC,
    "encoders": BASIC,
    "heads": BASIC,
    "tasks": BASIC | LATER | {"threads"},
    "store": set(),
    "models": BASIC | {"losses"},
    "head_file": {"registry", "encoders"},
    "records": {"registry", "encoders"},
    "convert": {"registry", "head_file", "resample"},
    "compare": {"metrics", "records"},
    "published": set(),
}
ALLOWED["engine"] = set(ALLOWED)
ALLOWED["card"] = {"data", "encoders", "head_file", "registry", "tasks"}
ALLOWED["hub"] = set()
ALLOWED["share"] = {"card", "head_file", "hub"}
ALLOWED["report"] = set(ALLOWED)
ALLOWED["predict"] = set(ALLOWED) - {"report"}
for user in ("page", "export"):
    ALLOWED[user] = set(ALLOWED) - {"report"}
ALLOWED["benchmark"] = set(ALLOWED) - {"benchmark"}
ALLOWED["cli"] = set(ALLOWED) - {"cli"}
ALLOWED["__main__"] = {"cli"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST):
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module]
            if node.module == "siglip2_dense":
                names = [f"siglip2_dense.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("siglip2_dense."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    own = room(path)
    if own == "__init__":
        return
    for other in imported_rooms(ast.parse(path.read_text())):
        assert other in ALLOWED[own] | EVERYBODY | {own}, f"{own} may not import {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_resample_interpolates_and_only_the_command_line_reads_argv(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            if node.attr in ("interpolate", "grid_sample", "warpAffine", "warpPerspective", "remap") or (
                node.attr == "resize" and ast.unparse(node) == "cv2.resize"
            ):
                assert room(path) == "resample", ast.unparse(node)
            if ast.unparse(node) == "sys.argv":
                assert room(path) in ("cli", "benchmark")
            if node.attr in ("load", "unpickle") and ast.unparse(node) == "torch.load":
                assert room(path) == "files"


def test_nothing_is_created_empty_and_tools_are_thin():
    assert all(path.read_text().strip() for path in FILES)
    for tool in (PACKAGE.parent / "tools").glob("*.py"):
        assert len(tool.read_text().splitlines()) <= 12


def test_every_room_of_the_package_is_in_the_wheel():
    import tomllib

    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    listed = set(settings["tool"]["setuptools"]["packages"])
    rooms = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in FILES}
    configs = {f"siglip2_dense.{path.parent.relative_to(PACKAGE.parent)}" for path in CONFIGS.rglob("*.py")}
    assert listed == rooms | {name.replace("/", ".") for name in configs}
    assert all(
        settings["tool"]["setuptools"]["package-data"].get(name.replace("/", ".")) == ["*.py"] for name in configs
    )


def test_who_cites_it_cites_this_version():
    from siglip2_dense import __version__

    assert f"\nversion: {__version__}\n" in (PACKAGE.parent / "CITATION.cff").read_text()


def test_no_module_is_heavy_to_ask_for_help():
    for path in (PACKAGE / "cli").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            text = ast.unparse(node) if isinstance(node, (ast.Import, ast.ImportFrom)) else ""
            assert not re.search(r"\b(torch|mmengine|mmseg|timm|numpy|cv2)\b", text), f"{path.name}: {text}"
