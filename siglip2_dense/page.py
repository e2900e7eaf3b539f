"""A page in the browser: drop an image, choose heads or type names, and look at what is found.

Nothing is fetched from elsewhere, and the browser is told so: it works without any network but the way to this machine.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from siglip2_dense import head_file
from siglip2_dense.errors import UserError
from siglip2_dense.predict.found import Boxes
from siglip2_dense.predict.predictor import THRESHOLD, Predictor
from siglip2_dense.predict.result import Result
from siglip2_dense.viz.overlays import OPACITY

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

MAX_FILE = 40 * 2**20  # bytes of an upload
MAX_IMAGE = 50_000_000  # pixels
WAITING = 16  # requests in the queue, and visitors whose last result is kept; the next ones are told to come later
FORGOTTEN = 3600  # seconds, after which what a visitor has left is deleted
LEAST = 0.01  # probability of the boxes that the slider can still bring up
SEALED = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'self'"
)  # a browser's Content-Security-Policy: only what comes from here


class Model(NamedTuple):
    """What a visitor can choose."""

    title: str
    predictor: Predictor
    prompts: str | None = None  # of a model that is asked for names, those that stand there first

    @property
    def finds_boxes(self) -> bool:
        return any(task.target == "boxes" for task in self.predictor.tasks.values())


def models_of(paths: Sequence[str | Path], weights: str | None = None) -> list[Model]:
    """Head files as models to choose from: those of one encoder together, since they share its pass."""
    groups: dict[tuple[str, str], list] = {}
    for path in paths:
        encoder = head_file.read(path).encoder
        groups.setdefault((encoder.name, encoder.fingerprint), []).append(path)
    found = []
    for (name, _), group in groups.items():
        predictor = Predictor(group, weights)
        found.append(Model(f"{', '.join(predictor.heads)} ({name})", predictor))
    return found


def predict(model: Model, image: str | None, prompts: str, background: float) -> Result:
    """What a model finds in an uploaded file. Raises UserError for what is no image, too large, or names nothing."""
    if image is None:
        raise UserError("Drop an image first.")
    check_size(image)
    if model.prompts is not None:
        names = [name for name in prompts.replace("\n", ",").split(",") if name.strip()]  # never a file of this machine
        model.predictor.set_prompts(names, *([background] if background and not model.finds_boxes else []))
    try:
        found = next(model.predictor.stream([image], LEAST))
    except UserError as error:
        raise UserError(str(error).replace(image, Path(image).name)) from error
    return replace(found, path=Path(image).name)  # where this machine keeps it is nobody's business


def check_size(path: str | Path) -> None:
    """Raise UserError for an image that would take too long or too much memory; only its header is read."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{Path(path).name} cannot be read as an image.") from error
    if width * height > MAX_IMAGE:
        raise UserError(f"{width} x {height} pixels are too many here; {MAX_IMAGE // 10**6} million are the most.")


def surest(result: Result, threshold: float) -> Result:
    """The result without boxes whose probability is below the threshold."""
    heads = {}
    for name, found in result.heads.items():
        if isinstance(found, Boxes):
            kept = int((found.scores >= threshold).sum())  # they are in order
            found = replace(found, xyxy=found.xyxy[:kept], scores=found.scores[:kept], labels=found.labels[:kept])
        heads[name] = found
    return replace(result, heads=heads)


def pack(result: Result, folder: str | Path) -> Path:
    """All that ``Result.save`` writes of a result, as one ZIP in a folder."""
    place = Path(tempfile.mkdtemp(dir=folder))
    stem = Path(result.path).stem or "image"
    result.save(place / "files", stem, floats=True)
    return Path(shutil.make_archive(str(place / stem), "zip", place / "files"))


def build(models: Sequence[Model]):
    """The page, as Gradio's Blocks."""
    gradio = _gradio()
    by_title = {model.title: model for model in models}
    if len(by_title) < len(models):
        raise UserError("two of the models have the same heads and encoder; give each head file once.")
    folder = tempfile.mkdtemp(prefix="siglip2_dense_page_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def said(function):
        """The function, with a UserError in the corner of the page."""

        def call(*arguments):
            try:
                return function(*arguments)
            except UserError as error:
                raise gradio.Error(str(error), print_exception=False) from error

        return call

    def visible(model):
        """Of the controls for names, background and boxes."""
        names = model.prompts is not None
        return names, names and not model.finds_boxes, model.finds_boxes

    def controls(title):
        model = by_title[title]
        names, *others = (gradio.update(visible=one) for one in visible(model))
        return {**names, "value": model.prompts or ""}, *others

    def find(title, image, prompts, background):
        return predict(by_title[title], image, prompts, background)

    def draw(result, threshold, opacity):
        if result is None:
            return [gradio.skip()] * (most + 1)
        shown = surest(result, threshold)
        drawn = [gradio.update(value=shown.draw(head, opacity), label=head, visible=True) for head in shown.heads]
        return [*drawn, *[gradio.update(visible=False)] * (most - len(drawn)), shown.words]

    def download(result, threshold):
        if result is None:
            return gradio.skip()
        return gradio.update(value=str(pack(surest(result, threshold), folder)), interactive=True)

    most = max(len(model.predictor.heads) for model in models)
    names_first, background_first, boxes_first = visible(models[0])
    with gradio.Blocks(title="siglip2_dense", analytics_enabled=False, delete_cache=(FORGOTTEN, FORGOTTEN)) as page:
        result = gradio.State(None, time_to_live=FORGOTTEN)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                image = gradio.Image(label="Image", type="filepath", sources=["upload", "clipboard"], height=320)
                # the file as it was sent: our own reader knows orientation, 16 bits, and what to say of the rest
                image.preprocess = lambda sent: None if sent is None else sent.path
                title = gradio.Dropdown(list(by_title), value=models[0].title, label="Model", visible=len(models) > 1)
                prompts = gradio.Textbox(
                    models[0].prompts or "", label="Names, with commas between; sofa|couch for one thing", lines=2,
                    visible=names_first,
                )  # fmt: skip
                background = gradio.Slider(
                    0, 1, 0, label="Background, below a probability of", visible=background_first
                )
                go = gradio.Button("Predict", variant="primary")
                threshold = gradio.Slider(
                    LEAST, 0.99, THRESHOLD, label="Boxes, from a probability of", visible=boxes_first
                )
                opacity = gradio.Slider(0, 1, OPACITY, label="Opacity")
            with gradio.Column(scale=2, min_width=320):
                with gradio.Row():
                    pictures = [
                        gradio.Image(
                            format="png",
                            label="Found",
                            interactive=False,
                            visible=number == 0,
                            min_width=320,
                            buttons=["download", "fullscreen"],
                        )
                        for number in range(most)
                    ]
                words = gradio.Markdown()
                files = gradio.DownloadButton("Labels, depths, normals, boxes (ZIP)", interactive=False)
        hidden = [prompts, background, threshold]
        title.change(controls, title, hidden)
        look = dict(
            fn=said(draw), inputs=[result, threshold, opacity], outputs=[*pictures, words], show_progress="hidden"
        )
        found = gradio.on([go.click, prompts.submit], said(find), [title, image, prompts, background], result)
        packed = dict(fn=said(download), inputs=[result, threshold], outputs=files, show_progress="hidden")
        found.success(**look).success(**packed)
        opacity.input(**look, trigger_mode="always_last")
        threshold.input(**look, trigger_mode="always_last").success(**packed)  # the files have the boxes that are shown
    return page.queue(max_size=WAITING, default_concurrency_limit=1)  # one pass at a time; names belong to one visitor


def serve(models: Sequence[Model], host: str, port: int, block: bool = True):
    """Show the page at http://HOST:PORT. Raises UserError where the port is taken.

    block: wait until it is stopped; else its Blocks come back, to be closed.
    """
    gradio = _gradio()
    from starlette.middleware import Middleware

    check_free(host, port)
    page = build(models)
    print(f"http://{host}:{port}   (Ctrl-C ends it)", flush=True)
    page.launch(
        server_name=host, server_port=port, prevent_thread_lock=not block, max_file_size=MAX_FILE, quiet=True,
        footer_links=[], ssr_mode=False, pwa=False, share=False, enable_monitoring=False,
        state_session_capacity=WAITING,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        app_kwargs={"middleware": [Middleware(Sealed)]},
    )  # fmt: skip
    return page


class Sealed:
    """ASGI middleware that lets no page of ours fetch anything from elsewhere."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def sealed(message):
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", SEALED.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        await self.app(scope, receive, sealed if scope["type"] == "http" else send)


def check_free(host: str, port: int) -> None:
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} of {host} cannot be had ({error}); give another one, --port.") from error


def _gradio():
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs Gradio: pip install 'siglip2_dense[page]'") from error
    return gradio
