"""Orders of samples as functions of a seed and a step, and the loaders that follow them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from torch.utils.data import DataLoader, Dataset, Sampler

from siglip2_dense.contracts import TARGETS, Sample


class StepSampler(Sampler):
    """Endless pairs (epoch, index) of one rank, ``batch_size`` of them a step.

    The k-th sample that all ranks together draw is a function of (seed, k): each epoch is a permutation of the data set
    from (seed, epoch), and a step takes the next ``batch_size * world`` samples, each rank its own block of them.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world = rank, world
        self.start = 0

    def skip(self, num_samples: int) -> None:
        """Begin after the first ``num_samples`` of this rank; mmengine calls it when a run is resumed."""
        self.start = num_samples

    def __iter__(self) -> Iterator[tuple[int, int]]:
        current, order = None, None
        position = self.start
        while True:
            step, place = divmod(position, self.batch_size)
            epoch, k = divmod((step * self.world + self.rank) * self.batch_size + place, self.size)
            if epoch != current:
                current, order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.size)
            yield epoch, int(order[k])
            position += 1

    def __len__(self) -> int:
        """Samples of an epoch; mmengine's loops and hooks ask for it."""
        return self.size


class RankSampler(Sampler):
    """Every index once over all ranks; no rank repeats any to fill up."""

    def __init__(self, size: int, rank: int = 0, world: int = 1):
        self.indices = range(rank, size, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def collate(samples: Sequence[Sample], targets: Sequence[str] | None = None) -> dict:
    """A batch: images as a list, since their sizes differ, and the samples without them, so that none travels twice.

    targets: names out of TARGETS; the samples keep these alone, none = all they have.
    """
    dropped = {"image": None} if targets is None else dict.fromkeys({"image", *TARGETS} - set(targets))
    if "boxes" in dropped:
        dropped |= {"box_names": (), "queries": None}
    return {
        "inputs": [sample.image for sample in samples],
        "data_samples": [replace(sample, **dropped) for sample in samples],
    }


def worker_init(worker: int) -> None:
    """One thread for each worker process: torch sees to its own, but OpenCV would take all cores in each."""
    import cv2

    cv2.setNumThreads(0)


def train_loader(
    dataset: Dataset, batch_size: int, num_workers: int, seed: int, targets: Sequence[str] | None = None
) -> DataLoader:
    """Endless batches of ``batch_size`` for this rank, in an order that depends on ``seed`` alone.

    targets: as in ``collate``; what no task asks for does not travel from worker to trainer.
    """
    sampler = StepSampler(len(dataset), batch_size, seed, get_rank(), get_world_size())
    return _loader(dataset, sampler, batch_size, num_workers, targets)


def test_loader(
    dataset: Dataset, batch_size: int, num_workers: int, targets: Sequence[str] | None = None
) -> DataLoader:
    """This rank's part of the data set, once and in order; ``targets`` as in ``train_loader``."""
    sampler = RankSampler(len(dataset), get_rank(), get_world_size())
    return _loader(dataset, sampler, batch_size, num_workers, targets)


def stop_workers(loader: DataLoader) -> None:
    """End a loader's worker processes now; they would live until it is collected, which a traceback puts off."""
    running = getattr(loader, "_iterator", None)  # where torch keeps the iterator of persistent workers
    if running is not None:
        running._shutdown_workers()


def _loader(
    dataset: Dataset, sampler: Sampler, batch_size: int, num_workers: int, targets: Sequence[str] | None
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=partial(collate, targets=targets),
        worker_init_fn=worker_init,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else each start of a loader would advance torch's global stream
    )
