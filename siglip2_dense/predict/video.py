"""Videos: frame after frame through a Predictor, into a video of overlays, and the maps of each frame where asked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from siglip2_dense.errors import UserError
from siglip2_dense.files import atomic, write_text
from siglip2_dense.predict.found import DepthMap, beside
from siglip2_dense.predict.predictor import Predictor
from siglip2_dense.predict.result import Result
from siglip2_dense.viz.layout import grid

CODEC = "mp4v"  # MPEG-4, which OpenCV's wheels can write
FRAMES_A_SECOND = 25.0  # where a file does not say
WHOLE = 0.9  # of the frames that a file says it has; headers are not exact


def length(path: Path) -> int:
    """Frames, as the file's header says; 0 where it does not, or cannot be read."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        return max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) if capture.isOpened() else 0
    finally:
        capture.release()


def predict_video(
    predictor: Predictor,
    path: Path,
    place: Path,
    threshold: float,
    floats: bool = False,
    frames: bool = False,
    seen: Callable[[int], None] = lambda count: None,
) -> list[Path]:
    """Write PLACE_overlay.mp4, with all heads side by side, and PLACE.json; a few frames are held at a time.

    frames: also what ``Result.save`` writes, without pictures, as PLACE_frames/000000…; floats: with NPZ files. seen:
    called with the number of frames that were done. Returns the files. Raises UserError for what is no whole video.
    """
    target, folder = beside(place, "overlay.mp4"), beside(place, "frames")
    kept, scales = [], {}
    with atomic(target) as temporary:
        with _Writer(temporary, _rate(path)) as writer:
            for number, result in enumerate(predictor.stream(_frames(path), threshold)):
                writer.write(_overlay(result, scales))
                if frames:
                    kept += result.save(folder, f"{number:06d}", floats, pictures=False)
                seen(1)
        if not writer.written or writer.written < WHOLE * length(path):
            raise UserError(
                f"{path}: ends after {writer.written} of {length(path)} frames; truncated, or no video that OpenCV can "
                "read; fetch it again, or convert it to MP4."
            )
    record = {
        "video": str(path),
        "frames": writer.written,
        "frames_a_second": writer.rate,
        "frames_in": folder.name if frames else None,
        "made_by": predictor.made_by(threshold),
        "files": [str(file.relative_to(place.parent)) for file in (target, *kept)],
    }
    about = place.with_name(f"{place.name}.json")
    write_text(about, json.dumps(record, indent=2) + "\n")
    return [target, *kept, about]


def _frames(path: Path) -> Iterator[np.ndarray]:
    import cv2

    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path.")
    capture = cv2.VideoCapture(str(path))
    try:
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def _rate(path: Path) -> float:
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        rate = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    return rate if np.isfinite(rate) and rate > 0 else FRAMES_A_SECOND


def _overlay(result: Result, scales: dict[str, tuple[float, float]]) -> np.ndarray:
    """All heads over the frame, side by side. scales: of depths, those of the first frame, or colours would flicker."""
    pictures = []
    for name, found in result.heads.items():
        more = {}
        if isinstance(found, DepthMap):
            more = {"scale": scales.setdefault(name, found.scale)}
        pictures.append(found.over(result.image, **more))
    return pictures[0] if len(pictures) == 1 else grid(pictures, columns=2)


class _Writer:
    """OpenCV's writer of a video, which itself says nothing when it fails."""

    def __init__(self, path: Path, rate: float):
        # OpenCV sees the format from the name's end
        self.path, self.named, self.rate = path, path.with_name(f"{path.name}.mp4"), rate
        self.written, self._size = 0, None
        self._writer: Any = None  # OpenCV's

    def __enter__(self) -> _Writer:
        return self

    def write(self, picture: np.ndarray) -> None:
        """picture: (H, W, 3) uint8 RGB. Raises UserError where OpenCV cannot write, or the size is not the first's."""
        import cv2

        height, width = picture.shape[:2]
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # the codec wants even sides
        if self._writer is None:
            self._size = picture.shape[1::-1]
            self._writer = cv2.VideoWriter(str(self.named), cv2.VideoWriter.fourcc(*CODEC), self.rate, self._size)
            if not self._writer.isOpened():
                raise UserError(
                    f"{self.path.parent}: OpenCV cannot write a video of {width}x{height} pixels there; make the "
                    "frames smaller, or look whether there is room."
                )
        if picture.shape[1::-1] != self._size:
            raise UserError(f"the frames of a video change their size to {width}x{height}; convert it to one size.")
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self.written += 1

    def __exit__(self, kind, *_) -> None:
        try:
            if self._writer is not None:
                self._writer.release()
            if kind is None and self.written:
                if length(self.named) != self.written:
                    raise UserError(f"{self.path.parent}: the video could not be written whole; is the disk full?")
                os.replace(self.named, self.path)
        finally:
            self.named.unlink(missing_ok=True)
