"""The page: sound HTML that needs nothing from elsewhere, says what the Markdown says, and stays small."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from records_made import made
from runs import train

from siglip2_dense import head_file
from siglip2_dense.cli import report as verb
from siglip2_dense.cli import train as train_verb
from siglip2_dense.errors import UserError
from siglip2_dense.report import gallery, write

SEGMENTATION = "probe_ade20k"
VOID = {"meta", "img", "br", "hr", "link", "input"}
NASTY = ("<b>bold</b>", "a|b", "x & y", "*stars*", '"quoted"', "<script>alert(1)</script>")


class Page(HTMLParser):
    """Holds a page to what is promised of it: tags that close in order, ids that are one, links that lead somewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.words, self.pictures, self.tags = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open and len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        for name, value in ((name, value or "") for name, value in attributes.items()):
            assert not name.startswith("on") and name != "srcset"
            if name == "src":
                assert value.startswith("data:image/webp;base64,")
                self.pictures.append(value)
            elif name.endswith("href"):
                self.links.append((tag, value))
            elif not name.startswith("xmlns"):
                assert "http" not in value and "//" not in value

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def page_of(out, *paths):
    _, path, problems = write(paths, out)
    text = path.read_text()
    return text, Page(text), problems


def picture(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def test_a_page_is_whole_and_needs_nothing_from_elsewhere(tmp_path):
    history = [{"metrics": {"mIoU": value}, "step": step, "split": "val"} for step, value in ((1, 20.0), (2, 45.0))]
    runs = [
        made(tmp_path / name, SEGMENTATION, {"mIoU": 45.0}, encoder, history=history,
             per_class={"IoU": {"wall": 50.0, "door": None}})
        for name, encoder in (("a", "siglip2-so400m-14-384"), ("b", "clip-large-14-224"))
    ]  # fmt: skip
    picture(tmp_path / "a" / "pictures" / "00000_x_segmentation.png", (60, 80))
    text, page, _ = page_of(tmp_path / "out", *runs)
    for tag, target in page.links:
        assert target.startswith("#") or (tag, target) == ("a", "https://arxiv.org/abs/2502.14786")
        if target.startswith("#"):
            assert target[1:] in page.ids
    assert "link" not in page.tags and page.tags.count("script") == 1 and len(page.pictures) == 1
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert 'name="viewport"' in text and "beforeprint" in text
    assert {"table-2", "p1", "pictures"} <= set(page.ids)
    assert write(runs, tmp_path / "again")[1].read_text() == text


def test_names_of_classes_runs_and_encoders_mean_themselves(tmp_path):
    run = made(
        tmp_path / "a<i>b|c", "probe_folder", {"mIoU": 45.0}, "<img src=x>", data=("<my>_data", "val", 5),
        per_class={"IoU": dict.fromkeys(NASTY, 12.5)}, run__command="train.py 'a|b' <c>",
    )  # fmt: skip
    _, page, _ = page_of(tmp_path / "out", run)
    assert "img" not in page.tags and "b" not in page.tags and "i" not in page.tags
    words = "".join(page.words)
    for name in (*NASTY, "<img src=x>", "a<i>b|c", "<my>_data", "train.py 'a|b' <c>"):
        assert name in words
    markdown = (tmp_path / "out" / "report.md").read_text()
    for name, escaped in (("a|b", r"a\|b"), ("<b>bold</b>", r"\<b\>bold\</b\>"), ("*stars*", r"\*stars\*")):
        assert f"| {escaped} | 12.50 |" in markdown and f"| {name} |" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert rows and all(re.fullmatch(r"(\|(\\.|[^|\\])*)+\|", row) for row in rows)


def test_the_page_says_what_the_markdown_says(tmp_path):
    run = made(tmp_path / "a", SEGMENTATION, {"mIoU": 43.21, "aAcc": 76.54}, intervals={"mIoU": [42.0, 44.0]})
    markdown, path, _ = write([run], tmp_path / "out")
    words = " ".join("".join(Page(path.read_text()).words).split())
    for number in re.findall(r"[-+]?\d+\.\d+", re.sub(r"\]\([^)]*\)", "", markdown.read_text())):
        assert number in words


def test_pictures_are_few_and_small(tmp_path):
    run = made(tmp_path / "a", SEGMENTATION, {"mIoU": 45.0})
    first = run / "pictures" / "00000_x_segmentation.png"
    picture(first, (1000, 3000))
    for number in range(1, 8):
        shutil.copy(first, first.with_name(f"{number:05d}_x_segmentation.png"))
    (run / "pictures" / "00000_y_segmentation.png").write_text("no picture")
    _, page, problems = page_of(tmp_path / "out", run)
    assert len(page.pictures) + len(problems) == gallery.OF_HEAD
    for uri in page.pictures:
        found = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        assert found.format == "WEBP" and found.size == (gallery.WIDTH, round(gallery.WIDTH / 3))
    assert (tmp_path / "out" / "report.html").stat().st_size < 1_000_000  # of noise, which nothing makes small
    assert first.stat().st_size > 8_000_000


def test_curves_have_a_line_for_each_run_that_was_measured_on_the_way(tmp_path):
    runs = []
    for name, values in (("a", (10.0, 20.0, 30.0)), ("b", (5.0, 6.0)), ("c", (7.0,))):
        history = [{"metrics": {"mIoU": x}, "step": i, "split": "val"} for i, x in enumerate(values)]
        seed = ord(name)
        runs.append(made(tmp_path / name, SEGMENTATION, {"mIoU": values[-1]}, history=history, seed=seed))
    text, page, _ = page_of(tmp_path / "out", *runs)
    (svg,) = re.findall(r"<svg.*?</svg>", text, re.S)
    legend = [word for word in page.words if re.fullmatch(r"siglip2-so400m-14-384, [abc]", word.strip())]
    assert [word.strip()[-1] for word in legend] == ["a", "b"]
    assert {"--series-0", "--series-1", "--ink", "--rule"} == set(re.findall(r"var\((--[\w-]+)\)", svg))
    assert not re.search(r": #[0-9a-f]{6}", svg)  # no colour of its own, or it could not be seen in the dark
    alone, *_ = page_of(tmp_path / "alone", runs[2])
    assert "<svg" not in alone


@pytest.mark.filterwarnings("ignore")
def test_a_sweep_and_its_pictures_are_reported(tiny, tmp_path, one_thread, capsys):
    work_dir = tmp_path / "sweep"
    sweep = "sweep = dict(lr=[1e-3, 1e-2], layers=['last', 'last4'], holdout=0.4)"
    config = tiny(f"{sweep}\nseeds = 2\ntrain_cfg['max_iters'] = 3")
    record = train(config, work_dir)
    capsys.readouterr()
    verb.main([str(work_dir), "--out", str(tmp_path / "out")])
    told = capsys.readouterr()
    assert "report.md" in told.out and "report.html" in told.out and not told.err
    text = (tmp_path / "out" / "report.html").read_text()
    page, markdown = Page(text), (tmp_path / "out" / "report.md").read_text()
    summary = json.loads((work_dir / "sweep.json").read_text())
    assert f"chosen on train, held out ({summary['selection']['images']} images)" in markdown
    for one in summary["settings"]:
        mean = one["validation"]["mIoU"]["mean"]
        assert f"{mean:.4g} ± " in markdown and one["setting"] in markdown
    assert f"{record['metrics']['mIoU']:.2f}" in markdown and "random weights" in markdown
    assert len(page.pictures) == 2
    (svg,) = re.findall(r"<svg.*?</svg>", text, re.S)
    drawn = {word.strip() for word in re.findall(r"<text[^>]*>([^<]*)</text>", svg)}
    assert {"layers=last", "layers=last4", "learning rate", "0.001", "0.01"} <= drawn and "math" not in svg
    spoilt = json.dumps({**summary, "settings": [{"head": "segmentation"}]})
    (work_dir / "sweep.json").write_text(spoilt)
    *_, problems = write([work_dir], tmp_path / "out")
    assert len(problems) == 1 and "sweep.json is no summary of a sweep" in problems[0]


def test_features_of_an_image_are_those_of_the_runs_own_encoder(tiny, tmp_path, one_thread):
    for name, weights in (("a", "random"), ("b", "random:1")):
        options = ["--encoder", "test_vit", "--weights", weights, "--work-dir", str(tmp_path / name)]
        train_verb.main([str(tiny()), *options, "--cfg-options", "train_cfg.max_iters=2", "pictures=0"])
    photo = tmp_path / "photo.png"
    picture(photo, (900, 1200))
    (tmp_path / "c").mkdir()
    shutil.copy(tmp_path / "b" / "results.json", tmp_path / "c")
    runs = [str(tmp_path / name) for name in "acb"]  # c has no head of its own
    verb.main([*runs, "--out", str(tmp_path / "out"), "--features-of", str(photo)])
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert len(set(page.pictures)) == 2 and "features" in page.ids
    content = head_file.read(tmp_path / "a" / "head.safetensors")
    content.encoder_config["weights"] = "random:7"  # as a file that holds others now
    head_file.save(tmp_path / "a" / "head.safetensors", content)
    (tmp_path / "b" / "head.safetensors").unlink()
    _, _, problems = write(runs, tmp_path / "out", photo)
    assert len(problems) == 2 and str(tmp_path / "c") in problems[1] and "no head file" in problems[1]
    assert str(tmp_path / "a") in problems[0] and "the weights are others now" in problems[0]
    with pytest.raises(UserError, match=r"absent\.png"):
        write(runs, tmp_path / "none", tmp_path / "absent.png")
    assert not (tmp_path / "none").exists()


def test_the_verb_says_what_is_left_out_and_refuses_nothing_at_all(tmp_path, capsys):
    run = made(tmp_path / "a", SEGMENTATION, {"mIoU": 45.0})
    verb.main([str(run), str(tmp_path / "absent"), "--out", str(tmp_path / "out")])
    assert f"left out: {tmp_path / 'absent'} is not there" in capsys.readouterr().err
    with pytest.raises(UserError, match="no record to report"):
        verb.main([str(tmp_path / "absent"), "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
