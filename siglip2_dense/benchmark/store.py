"""Stored features: what a pass over the data costs from them and through the encoder, and what it costs to make them.

A linear probe of 150 classes on a ViT-B/16 of random weights at 512 pixels, the loss at full resolution. Images are
noise in memory, so that decoding, which a store saves too, is no part of it; labels are blocks of 32 pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import nn
from torch.utils.data import Dataset

from siglip2_dense.benchmark.measure import figure, in_own_process, interleave, milliseconds, peak_increase, ratio
from siglip2_dense.contracts import IGNORE, EncoderFacts, Features, Geometry, Sample, Tap
from siglip2_dense.encoders import FrozenEncoder
from siglip2_dense.engine import extract
from siglip2_dense.models import DenseProbe
from siglip2_dense.store.folder import create, planned
from siglip2_dense.store.key import make_key
from siglip2_dense.store.loader import StoredLoader
from siglip2_dense.store.packing import pack_targets
from siglip2_dense.store.reader import Reader
from siglip2_dense.store.shard import ShardWriter
from siglip2_dense.store.store import Store

VIT, WIDTH, PATCH, SIZE = "vit_base_patch16_siglip_256", 768, 16, (512, 512)
CLASSES = [f"class {number}" for number in range(150)]
HEADS = dict(segmentation=dict(head=dict(type="LinearHead"), task=dict(type="Segmentation", classes=CLASSES)))
PER_FILE = 32  # images; 48 MiB
FACTS = EncoderFacts(
    name="noise", fingerprint="", widths=(WIDTH,), strides=(PATCH,), prefix=(), pooled="map", pooled_width=WIDTH,
    final_norm=True, mean=(0.5,) * 3, std=(0.5,) * 3, native_grid=None, position_kernel=None, parameters=0,
)  # fmt: skip


class Noise(Dataset):
    """Labelled images that cost nothing to read."""

    name, split, classes, targets = "noise", "train", tuple(CLASSES), ("labels",)

    def __init__(self, length: int):
        self.samples = [labelled(index) for index in range(length)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        return replace(self.samples[item[1]], image=torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8))

    def files_on_disk(self, index: int) -> list[Path]:
        return []

    def fingerprint(self) -> str:
        return str(len(self))


def labelled(index: int) -> Sample:
    numbers = torch.Generator().manual_seed(index)
    labels = torch.randint(IGNORE, len(CLASSES), [side // 32 for side in SIZE], generator=numbers)
    labels = labels.repeat_interleave(32, 0).repeat_interleave(32, 1)
    return Sample(labels=labels, path=str(index), original_size=SIZE, index=index)


@contextmanager
def noise_store(files: int) -> Iterator[Store]:
    """A store of random maps: one file under many names, so that it is soon made and the kernel keeps it in memory."""
    data = dict(name="noise", split="train", images=files * PER_FILE, fingerprint="", settings={})
    key = make_key(FACTS, {"precision": "fp32"}, [Tap(0, True)], False, None, "fp16", data, seed=0)
    place = Geometry(SIZE, (0, 0, *SIZE), SIZE, SIZE, SIZE)
    with TemporaryDirectory() as folder:
        store, writer = create(planned(Path(folder), key, FACTS, PER_FILE)), ShardWriter()
        for index in store.held(0):
            maps = torch.randn(1, *(side // PATCH for side in SIZE), WIDTH).half().permute(0, 3, 1, 2)
            writer.add(Features({Tap(0, True): maps}, (place,)), labelled(index), pack_targets(labelled(index)))
        store.write(0, 0, writer)
        for number in range(1, files):
            for suffix in (".safetensors", ".json"):
                os.link(store.file(0, 0).with_suffix(suffix), store.file(0, number).with_suffix(suffix))
        yield store


def batches(store: Store, batch_size: int) -> Iterator[dict]:
    return iter(StoredLoader(Reader(store, [Tap(0, True)], False, ("labels",)), None, batch_size, seed=0))


def exact(probe: DenseProbe) -> Callable[[dict], None]:
    """A step with the loss at full resolution."""

    def step(batch: dict) -> None:
        sum(probe(**batch, mode="loss").values()).backward()
        probe.zero_grad()

    return step


def on_the_grid(head: nn.Module) -> Callable[[dict], None]:
    """The cheapest step there is: cross-entropy at one pixel of each cell."""

    def step(batch: dict) -> None:
        middle = slice(PATCH // 2, None, PATCH)
        labels = torch.stack([sample.labels[middle, middle] for sample in batch["data_samples"]])
        F.cross_entropy(head(batch["inputs"]), labels, ignore_index=IGNORE).backward()
        head.zero_grad()

    return step


def epoch(rounds: int, steps: int, size: int = 8) -> dict:
    """Seconds of an image through the encoder and of one from the store."""
    live = DenseProbe(HEADS, encoder=FrozenEncoder(VIT, weights="random")).train()
    stored = DenseProbe(HEADS, facts=FACTS).train()
    images = Noise(2)
    seen = [images[(0, index)] for index in range(2)]
    batch = {"inputs": [sample.image for sample in seen], "data_samples": seen}
    through, straight = exact(live), exact(stored)
    with noise_store(2) as store:
        ready = batches(store, size)
        sides = {
            "encoder": lambda: through(batch),
            "store": lambda: [straight(batch) for batch in islice(ready, steps)],
        }
        seconds = interleave(sides, rounds)
        ready.close()
    per_image = {"encoder": len(seen), "store": steps * size}
    return {side: [value / per_image[side] for value in values] for side, values in seconds.items()}


def cheapest_step(rounds: int, steps: int, size: int = 16) -> dict:
    """Seconds of ``steps`` steps from the store, and of the same on tensors in memory."""
    step = on_the_grid(DenseProbe(HEADS, facts=FACTS).train().heads["segmentation"])
    with noise_store(4) as store:
        ready = batches(store, size)
        held = [
            {"inputs": replace(b["inputs"], maps={tap: maps.clone() for tap, maps in b["inputs"].maps.items()}),
             "data_samples": b["data_samples"]}
            for b in islice(batches(store, size), 4)
        ]  # fmt: skip
        memory = cycle(held)
        sides = {
            "store": lambda: [step(batch) for batch in islice(ready, steps)],
            "memory": lambda: [step(batch) for batch in islice(memory, steps)],
        }
        seconds = interleave(sides, rounds)
        ready.close()
    return seconds


def extraction(rounds: int, images: int, size: int = 4) -> dict:
    """Seconds of extracting a data set into a new store, and of the encoder's passes over the same batches."""
    data, numbers = Noise(images), iter(range(1000))
    probe = DenseProbe(HEADS, encoder=FrozenEncoder(VIT, weights="random"))
    loading = dict(batch_size=size, dataset=dict(type="Noise"))
    with TemporaryDirectory() as folder:

        def extracted() -> None:
            store = dict(dir=f"{folder}/{next(numbers)}")
            config = Config(dict(seed=0, feature_store=store, model=dict(encoder=dict(type="FrozenEncoder"))))
            extract.ensure(config, probe, data, loading)

        def bare() -> None:
            for start in range(0, images, size):
                probe.encoder.features([data[(0, index)].image for index in range(start, start + size)], probe.taps)

        return interleave({"extraction": extracted, "encoder": bare}, rounds, warmup=0)


def memory(files: int) -> int:
    """Bytes by which this process grows at most in two epochs of training from a store of so many files."""
    step = on_the_grid(DenseProbe(HEADS, facts=FACTS).train().heads["segmentation"])

    def epochs(store: Store) -> None:
        ready = batches(store, 8)
        for batch in islice(ready, 2 * store.images // 8):
            step(batch)
        ready.close()

    with noise_store(1) as store:
        epochs(store)  # what the libraries set up at their first use is no part of it
    with noise_store(files) as store:
        return peak_increase(lambda: epochs(store))


def run(quick: bool = False) -> list[dict]:
    """The four ratios; ``quick`` makes fewer rounds."""
    seconds = epoch(rounds=3 if quick else 5, steps=3)
    detail = ", ".join(f"{side} {median(values) * 1e3:.0f} ms an image" for side, values in seconds.items())
    figures = [
        figure("epoch from a store / through the encoder", ratio(seconds, "store", "encoder"), 0.05, detail=detail)
    ]
    seconds = cheapest_step(rounds=3 if quick else 7, steps=12)
    name = "step from a store / from memory, loss on the grid"
    figures.append(figure(name, ratio(seconds, "store", "memory"), 1.2, detail=milliseconds(seconds)))
    seconds = extraction(rounds=1 if quick else 5, images=8)
    name = "speed of extraction / of the encoder alone"
    figures.append(figure(name, ratio(seconds, "encoder", "extraction"), 0.95, "higher", milliseconds(seconds)))
    small, large = (in_own_process("store", f"memory({files})") for files in (2, 8))
    detail = f"{small / 2**20:.0f} MiB with {2 * 48} MiB of features, {large / 2**20:.0f} MiB with {8 * 48} MiB"
    figures.append(figure("peak memory with a store four times as large", large / small, 1.1, detail=detail))
    return figures
