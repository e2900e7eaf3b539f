"""The page: its functions on awkward uploads, and real clicks in a browser where one is installed."""

import json
import shutil
import socket
import zipfile
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from paint import CONFIG
from PIL import Image
from runs import train

from siglip2_dense import page
from siglip2_dense.cli import page as verb
from siglip2_dense.data.images import pixels_of
from siglip2_dense.errors import UserError
from siglip2_dense.predict.found import Boxes
from siglip2_dense.predict.predictor import Predictor
from siglip2_dense.predict.result import Result


@pytest.fixture(scope="module")
def paint():
    """A model that is asked for colours."""
    config = Config.fromstring(CONFIG, ".py")
    return page.Model("names (paint)", Predictor.open_vocabulary(config, "red, green, blue"), "red, green, blue")


@pytest.fixture
def upload(tmp_path):
    """A file of a picture, red above blue."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :, 0] = pixels[32:, :, 2] = 255
    path = tmp_path / "flag of mine.png"
    Image.fromarray(pixels).save(path)
    return path


def test_names_are_asked_for(paint, upload):
    found = page.predict(paint, str(upload), "blue\n red,", 0).segmentation
    assert found.names == ("blue", "red")
    assert (found.ids[:28] == 1).all() and (found.ids[36:] == 0).all()


def test_a_file_of_this_machine_is_never_read_as_names(paint, upload, tmp_path):
    (tmp_path / "secret.txt").write_text("red\nblue\n")
    found = page.predict(paint, str(upload), str(tmp_path / "secret.txt"), 0).segmentation
    assert found.names == (str(tmp_path / "secret.txt"),)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("none", "Drop an image"),
        ("text", "cannot be read"),
        ("cut", "^flag of mine.png: truncated"),
        ("large", "60 x 50 pixels"),
        ("empty", "no name"),
    ],
)
def test_what_cannot_be_shown_is_said(kind, says, paint, upload, monkeypatch):
    if kind in ("text", "cut"):
        upload.write_bytes(b"no picture" if kind == "text" else upload.read_bytes()[:150])
    if kind == "large":
        Image.new("L", (60, 50)).save(upload)
        monkeypatch.setattr(page, "MAX_IMAGE", 2999)
    with pytest.raises(UserError, match=says):
        page.predict(paint, None if kind == "none" else str(upload), " ,\n" if kind == "empty" else "red", 0)


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA", "P", "1"])
def test_awkward_images(mode, paint, tmp_path):
    Image.fromarray(np.full((1, 1), 200, np.uint16) if mode == "I;16" else np.full((1, 1), 200, np.uint8)).save(
        tmp_path / "a.png"
    )
    if mode != "I;16":
        Image.open(tmp_path / "a.png").convert(mode).save(tmp_path / "a.png")
    assert page.predict(paint, str(tmp_path / "a.png"), "red", 0).segmentation.ids.shape == (1, 1)


def test_the_slider_leaves_the_surest_boxes():
    classes, palette = ("cat", "dog"), [(255, 0, 0), (0, 255, 0)]
    corners = np.arange(12, dtype=np.float32).reshape(3, 4)
    boxes = Boxes(corners, np.float32([0.9, 0.5, 0.1]), np.array([1, 0, 1]), classes, palette)
    result = Result(np.zeros((20, 20, 3), np.uint8), {"detection": boxes})
    assert page.surest(result, 0.5).boxes.names == ["dog", "cat"]
    np.testing.assert_array_equal(page.surest(result, 0.5).boxes.xyxy, corners[:2])
    assert len(page.surest(result, 0.95).boxes) == 0 and len(result.boxes) == 3


def test_files_of_a_result(paint, upload, tmp_path):
    packed = page.pack(page.predict(paint, str(upload), "red", 0), tmp_path)
    assert packed.name == "flag of mine.zip"
    assert set(zipfile.ZipFile(packed).namelist()) >= {
        "flag of mine_labels.png",
        "flag of mine_overlay.png",
        "flag of mine.json",
    }


def test_a_port_that_is_taken_is_said_before_anything_is_loaded():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be had"):
            verb.main(["--head", "nowhere.safetensors", "--port", str(port)])


@pytest.fixture
def trained(tiny, tmp_path, one_thread):
    train(tiny(), tmp_path / "run")
    return page.models_of([tmp_path / "run" / "head.safetensors"])


@pytest.fixture
def browser():
    """A page of a headless browser; skipped, and said so, where none is installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no browser: install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened.new_page(viewport={"width": 1200, "height": 900})
        opened.close()


@contextmanager
def served(models):
    """The page of some models, at its address; until the block ends."""
    pytest.importorskip("gradio", reason="no gradio: pip install 'siglip2_dense[page]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = page.serve(models, "127.0.0.1", port, block=False)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.close()


class TwoBoxes:
    """In the place of a predictor: finds the same two boxes in any image."""

    heads = {"detection": None}
    tasks = {"detection": SimpleNamespace(target="boxes")}

    def stream(self, images, threshold):
        corners = np.float32([[2, 2, 40, 30], [50, 10, 90, 60]])
        boxes = Boxes(corners, np.float32([0.9, 0.5]), np.array([0, 1]), ("cat", "dog"), [(255, 0, 0), (0, 255, 0)])
        return (Result(pixels_of(image), {"detection": boxes}, image) for image in images)


def test_the_files_have_the_boxes_that_are_shown(browser, upload, tmp_path):
    with served([page.Model("boxes", TwoBoxes())]) as address:
        browser.goto(address)
        browser.locator("input[type=file]").first.set_input_files(str(upload))
        browser.get_by_text("Drop Image Here").wait_for(state="hidden")
        browser.get_by_role("button", name="Predict").click()
        browser.get_by_text("cat 0.90, dog 0.50").wait_for()
        slider = browser.get_by_label("number input for Boxes, from a probability of")
        slider.fill("0.8")
        slider.press("Enter")
        browser.get_by_text("dog 0.50").wait_for(state="hidden")
        browser.wait_for_timeout(1000)  # the files come after the picture
        with browser.expect_download() as coming:
            browser.get_by_role("button", name="ZIP").click()
        coming.value.save_as(tmp_path / "down.zip")
    written = json.loads(zipfile.ZipFile(tmp_path / "down.zip").read("flag of mine.json"))
    assert [box["name"] for box in written["boxes"]] == ["cat"]


def test_clicks(browser, trained, paint, upload, tmp_path):
    asked, failed = [], []
    browser.on("request", lambda request: asked.append(request.url))
    browser.on("pageerror", lambda error: failed.append(str(error)))
    go, files = (browser.get_by_role("button", name=name) for name in ("Predict", "ZIP"))
    names, drawn = browser.get_by_label("Names, with commas"), browser.locator("img[src*='/image.png']")
    with served([*trained, paint]) as address:
        opened = browser.goto(address)
        assert "default-src 'self'" in opened.headers["content-security-policy"]
        go.click()
        browser.get_by_text("Drop an image first.").wait_for()
        assert browser.get_by_label("number input for Opacity").is_visible() and not names.is_visible()

        browser.locator("input[type=file]").first.set_input_files(str(upload))
        browser.get_by_text("Drop Image Here").wait_for(state="hidden")
        go.click()
        drawn.wait_for()
        first = drawn.get_attribute("src")
        browser.get_by_label("range slider for Opacity").press("Home")  # to nothing but the image
        browser.wait_for_function("first => document.querySelector(`img[src*='/image.png']`).src != first", arg=first)

        browser.get_by_label("Model").click()
        browser.get_by_role("option", name="names (paint)").click()
        names.fill("blue, red")
        go.click()
        browser.get_by_text("blue 50%").wait_for()
        browser.screenshot(path=tmp_path / "names.png")
        with browser.expect_download() as coming:
            files.click()
        coming.value.save_as(tmp_path / "down.zip")
        assert "flag of mine_labels.png" in zipfile.ZipFile(tmp_path / "down.zip").namelist()

        upload.write_bytes(b"no picture")
        browser.get_by_label("Remove Image").or_(browser.get_by_label("Clear")).first.click()
        browser.locator("input[type=file]").first.set_input_files(str(upload))
        go.click()
        browser.get_by_text("cannot be read as an image").wait_for()
    assert not failed
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {address.partition("//")[2]}
