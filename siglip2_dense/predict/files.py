"""Predictions of whole folders: what exists already is skipped, what cannot be read is named, and the rest goes on."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from siglip2_dense.data.images import pixels_of
from siglip2_dense.engine.progress import Progress
from siglip2_dense.errors import UserError
from siglip2_dense.predict import video
from siglip2_dense.predict.coco import FILE, write_coco
from siglip2_dense.predict.inputs import Source
from siglip2_dense.predict.predictor import THRESHOLD, Predictor
from siglip2_dense.predict.result import keys

PICTURES = ("_overlay.png", "_boxes.png")


@dataclass
class Wanted:
    """What is to be written of each image or video."""

    threshold: float = THRESHOLD  # least probability of a box
    floats: bool = False  # depths and normals as NPZ too
    frames: bool = False  # the maps of each frame of a video too
    overwrite: bool = False  # what exists already


@dataclass
class Outcome:
    """What became of a call: plain data for people and machines."""

    predicted: list[dict] = field(default_factory=list)  # "image" and its "files"
    skipped: list[str] = field(default_factory=list)  # they were there already
    failed: list[dict] = field(default_factory=list)  # "image" and "why"


def predict_files(
    predictor: Predictor,
    found: Sequence[Source],
    out: str | Path,
    wanted: Wanted | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Predict images and videos, as ``inputs.sources`` finds them, into ``out``.

    Of an image ``Result.save`` says what is written, of a video ``video.predict_video``; boxes of all images are in
    ``OUT/detections.json`` too. What an earlier call with the same heads and settings has finished is skipped, unless
    it has changed since. One that cannot be read is named and left out. say: gets a line for each.

    Raises UserError where files are there that something else has written, or that are of another image, and for a disk
    that is full: what was finished stays.
    """
    wanted, out, outcome = wanted or Wanted(), Path(out), Outcome()
    made_by = predictor.made_by(wanted.threshold)
    left = [one for one in found if wanted.overwrite or not _is_done(predictor, one, out, made_by, wanted)]
    again = set(left)
    outcome.skipped = [str(one.path) for one in found if one not in again]
    if outcome.skipped:
        say(f"{len(outcome.skipped)} of {len(found)} are there already; --overwrite predicts them again.")
    images, videos = ([one for one in left if one.is_video is kind] for kind in (False, True))
    total = len(images) + sum(video.length(one.path) for one in videos)
    try:
        with _writing(out), Progress("predicting", total) as progress:
            _predict_images(predictor, images, out, wanted, outcome, say, progress)
            for source in videos:
                with _named(source, outcome, say):
                    files = video.predict_video(
                        predictor, source.path, out / source.place, wanted.threshold, wanted.floats, wanted.frames,
                        progress.update,
                    )  # fmt: skip
                    _note(source, files, outcome)
                    say(f"{source.path} -> {files[0]}")
    finally:  # what was found is kept, whatever became of the rest
        with _writing(out):
            _write_boxes(predictor, found, out, made_by, say)
    return outcome


def _predict_images(predictor, images: Sequence[Source], out: Path, wanted: Wanted, outcome, say, progress) -> None:
    waiting: deque[Source] = deque()

    def readable() -> Iterator[np.ndarray]:
        for source in images:
            with _named(source, outcome, say):
                pixels = pixels_of(source.path)
                waiting.append(source)
                yield pixels

    for result in predictor.stream(readable(), wanted.threshold):
        source = waiting.popleft()
        place = out / source.place
        files = replace(result, path=str(source.path)).save(place.parent, place.name, wanted.floats)
        _note(source, files, outcome)
        shown = next(path for path in files if path.name.endswith(PICTURES))
        say(f"{source.path} -> {shown}: {result.words}")
        progress.update(1)


def _note(source: Source, files: Sequence[Path], outcome: Outcome) -> None:
    outcome.predicted.append({"image": str(source.path), "files": [str(path) for path in files]})


@contextmanager
def _named(source: Source, outcome: Outcome, say: Callable[[str], None]) -> Iterator[None]:
    """What is wrong with one file is said, and kept for the end."""
    try:
        yield
    except UserError as error:
        outcome.failed.append({"image": str(source.path), "why": str(error)})
        say(f"{source.path} is left out: {error}")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); what is finished is there and will be skipped, so "
            "make room and call again."
        ) from error


def _is_done(predictor: Predictor, source: Source, out: Path, made_by: dict, wanted: Wanted) -> bool:
    """Whether an earlier call has finished a file. Raises UserError where something else lies in its place."""
    place = out / source.place
    path = place.with_name(f"{place.name}.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        before, files, of = record["made_by"], record["files"], Path(record.get("image", record.get("video")))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} was not written by a prediction; give another --out, or --overwrite.") from error
    if before != made_by:
        raise UserError(
            f"{path} was predicted by other heads or with other settings; give --overwrite, or another --out."
        )
    if of.resolve() != source.path.resolve():
        raise UserError(
            f"{path} is what was predicted of {of}, not of {source.path}; give another --out, or --overwrite."
        )
    if not source.path.is_file() or source.path.stat().st_mtime > path.stat().st_mtime:  # changed since
        return False
    has_floats = any(task.target in ("depth", "normals") for task in predictor.tasks.values())
    has_maps = not source.is_video or wanted.frames  # of a video they are of its frames
    lacks_floats = wanted.floats and has_floats and has_maps and not any(name.endswith(".npz") for name in files)
    lacks_frames = wanted.frames and source.is_video and not record["frames_in"]
    return not lacks_floats and not lacks_frames and all((place.parent / name).exists() for name in files)


def _write_boxes(
    predictor: Predictor, found: Sequence[Source], out: Path, made_by: dict, say: Callable[[str], None]
) -> None:
    """The boxes of all images, those of earlier calls included, in a COCO file for each head that finds some."""
    tasks = predictor.tasks
    for name, key in keys({name: task.target for name, task in tasks.items()}).items():
        if tasks[name].target != "boxes":
            continue
        path = out / f"{key.removesuffix('boxes')}{FILE}"
        images, boxes = write_coco(path, _records(found, out, made_by), tasks[name].classes, key)
        say(f"{path}: {boxes} boxes of {images} images")


def _records(found: Sequence[Source], out: Path, made_by: dict) -> Iterator[dict]:
    """What was written of images, but not by other heads, which a call that ended early leaves where it overwrites."""
    for source in found:
        path = (out / source.place).with_name(f"{source.place.name}.json")
        if source.is_video or not path.is_file():
            continue
        with suppress(ValueError, AttributeError):  # a user's own file
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.get("made_by") == made_by:
                yield record
