"""Batches from a store, as the loaders of images give them, without an encoder, worker processes or decoding.

Memory is bounded whatever the store's size: AHEAD + 2 batches of features and targets, used in turn, and about a
hundred bytes for each image of each view.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import Size
from siglip2_dense.errors import UserError
from siglip2_dense.store.reader import Reader

BLOCK = 8  # neighbouring images that stay together when an epoch is shuffled: one read
AHEAD = 2  # batches that wait to be used


class BlockSampler:
    """Endless steps of one rank: (epoch, position) of each of ``batch_size`` images.

    The k-th image that all ranks together draw is a function of (seed, k): an epoch is a permutation of the blocks of
    BLOCK neighbours, from (seed, epoch), and a step takes the next ``batch_size * world`` images, each rank its own.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world = rank, world
        self.start = 0

    def skip(self, num_samples: int) -> None:
        """Begin after the first ``num_samples`` of this rank, whole steps; mmengine calls it when a run is resumed."""
        self.start = num_samples // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The positions (size,) in the order of this epoch."""
        blocks = np.random.default_rng([self.seed, epoch]).permutation(-(-self.size // BLOCK))
        positions = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        return positions[positions < self.size]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        current, order, step = None, None, self.start
        while True:
            batch, first = [], (step * self.world + self.rank) * self.batch_size
            for number in range(first, first + self.batch_size):
                epoch, k = divmod(number, self.size)
                if epoch != current:
                    current, order = epoch, self.order(epoch)
                batch.append((epoch, int(order[k])))
            yield batch
            step += 1

    def __len__(self) -> int:
        return self.size


class StoredLoader:
    """Endless batches for training: what ``data.loading.train_loader`` gives, with Features in place of images.

    In epoch e an image is in its view e modulo ``views``.

    Args:
        dataset: of these images.
        images: those to train on, by their places in the stored data set, ascending; by default all.

    Raises UserError where images have several sizes, as a batch cannot (those of a NaFlex encoder can).
    """

    def __init__(
        self,
        reader: Reader,
        dataset,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        images: Sequence[int] | None = None,
    ):
        self.reader, self.dataset, self.batch_size = reader, dataset, batch_size
        self.images = np.arange(reader.store.images) if images is None else np.asarray(images)
        self.positions = np.flatnonzero(np.isin(reader.store.order(), self.images))
        self.sampler = BlockSampler(len(self.images), batch_size, seed, rank, world)
        sizes = sorted(reader.sizes())
        if len(sizes) > 1 and reader.store.facts.sequence_length is None:
            raise UserError(several_sizes(sizes))

    def __len__(self) -> int:
        """Steps of an epoch, at least one; mmengine's hooks ask for it."""
        return max(len(self.sampler) // (self.batch_size * self.sampler.world), 1)

    def __iter__(self) -> Iterator[dict]:
        for buffers, batch in ahead(self._batches()):
            yield batch
            buffers.release()

    def _batches(self) -> Iterator[tuple[Buffers, dict]]:
        # one in the hands of the trainer, AHEAD that wait, one that is being filled
        ring = [Buffers() for _ in range(AHEAD + 2)]
        for number, items in enumerate(self.sampler):
            views = len(self.reader.views)
            places = [self.reader.place(epoch % views, int(self.positions[k])) for epoch, k in items]
            buffers = ring[number % len(ring)]
            features, samples = self.reader.read(places, buffers.take)
            samples = [replace(s, index=int(np.searchsorted(self.images, s.index))) for s in samples]
            yield buffers, {"inputs": features, "data_samples": samples}


class StoredImages:
    """This rank's part of a data set, once and in order, for evaluation: batches of one image, which is given as the
    Features of its windows.
    """

    def __init__(self, reader: Reader, dataset, rank: int = 0, world: int = 1):
        self.reader, self.dataset = reader, dataset
        self.sampler = range(rank, reader.store.images, world)

    def __iter__(self) -> Iterator[dict]:
        return ahead(self._images())

    def _images(self) -> Iterator[dict]:
        for index in self.sampler:
            place = self.reader.place(0, index)
            features, samples = self.reader.read([place], lambda name, shape, dtype: torch.empty(shape, dtype=dtype))
            yield {"inputs": [features], "data_samples": samples}


def several_sizes(sizes: Sequence[Size]) -> str:
    """The sentence for images that a batch cannot hold together."""
    named = " and ".join(f"{height}x{width}" for height, width in sizes[:2])
    return (
        f"the training images have several sizes ({named} pixels), and stored features of one batch one: set "
        "model.canvas=(HEIGHT, WIDTH), or crop or resize them to one size in the transforms."
    )


class Buffers:
    """The tensors that a batch is read into, used again after its step: fresh ones would cost page faults."""

    def __init__(self):
        self._held: dict[str, Tensor] = {}
        self._copied = None

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self._copied is not None:
            self._copied.synchronize()  # a GPU may still be copying from it
        held = self._held.get(name)
        if held is None or held.shape != shape:
            held = self._held[name] = torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())
        return held

    def release(self) -> None:
        """The step is taken, as far as the CPU is concerned."""
        if torch.cuda.is_available():
            self._copied = torch.cuda.Event()
            self._copied.record()


def ahead(items: Iterator) -> Iterator:
    """The same items, made in a thread, AHEAD of them before they are asked for.

    The thread ends with this generator, or with the main thread: one that Python's exit finds at work in torch would
    abort the process.
    """
    waiting, stopped = queue.Queue(AHEAD), threading.Event()

    def put(entry) -> bool:
        while not stopped.is_set() and threading.main_thread().is_alive():
            try:
                waiting.put(entry, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, None))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
