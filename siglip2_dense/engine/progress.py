"""How far a pass over images is: a bar on a terminal, whole lines in a log file, and its speed at the end."""

from __future__ import annotations

import sys
import time

from mmengine.dist import get_world_size, is_main_process
from tqdm import tqdm

BETWEEN = 30  # seconds between lines in a log file


class Progress:
    """Counts the images of a pass, on the first process its own, and says so on stderr."""

    def __init__(self, label: str, total: int):
        world = get_world_size()
        self.label = label if world == 1 else f"{label}, the first of {world} processes"
        self.total, self.done = total, 0
        self.shown = is_main_process()
        on_terminal = self.shown and sys.stderr.isatty()
        self.bar = tqdm(desc=label, total=total, unit="image", leave=False, disable=not on_terminal)
        self.started = self.told = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def skip(self, images: int) -> None:
        """So many less are to be done."""
        self.total = self.bar.total = self.total - images

    def update(self, images: int) -> None:
        self.done += images
        self.bar.update(images)
        now = time.monotonic()
        if self.bar.disable and now - self.told >= BETWEEN and self.done < self.total:
            self.told = now
            left = (now - self.started) * (self.total - self.done) / self.done
            self._say(f"{self.done} of {self.total} images, {self._speed(now)}, {tqdm.format_interval(left)} left")

    def __exit__(self, kind, *_) -> None:
        self.bar.close()
        if kind is None and self.done:
            now = time.monotonic()
            images = f"{self.done} image{'s' * (self.done > 1)}"
            self._say(f"{images} in {tqdm.format_interval(now - self.started)}, {self._speed(now)}")

    def _speed(self, now: float) -> str:
        return f"{self.done / max(now - self.started, 1e-9):.3g} images/s"

    def _say(self, words: str) -> None:
        if self.shown:
            print(f"{self.label}: {words}", file=sys.stderr, flush=True)
