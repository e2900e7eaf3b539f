"""Small pieces of work in several threads, each of which computes alone.

Were each piece shared among torch's own threads, these would wait for each other at every operation, for many times as
long as they compute when another process takes one of the cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Piece, Result = TypeVar("Piece"), TypeVar("Result")


@contextmanager
def computing_alone() -> Iterator[int]:
    """Torch uses one thread, in this thread and in new ones; gives the number that it may use otherwise.

    What is done before the pieces belongs in here too: torch's threads keep a core busy for milliseconds after an
    operation, waiting for the next one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def map_in_threads(
    work: Callable[[Piece, Tensor], Result], pieces: Iterable[Piece], buffer: Callable[[], Tensor], threads: int
) -> Iterator[Result]:
    """``work(piece, the thread's own buffer)`` of each piece, in their order; to be used while ``computing_alone``.

    Buffers on another device than the CPU are worked on in the calling thread.
    """
    buffers = [buffer()]
    if threads == 1 or buffers[0].device.type != "cpu":
        yield from (work(piece, buffers[0]) for piece in pieces)
        return
    buffers += [buffer() for _ in range(threads - 1)]
    own = threading.local()

    def begin() -> None:
        own.buffer = buffers.pop()

    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        yield from pool.map(lambda piece: work(piece, own.buffer), pieces)
