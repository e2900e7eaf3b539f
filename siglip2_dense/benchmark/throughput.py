"""What makes an encoder's pass faster on this CPU, and whether images are loaded as fast as they are encoded.

Convolutional networks are given channels last, and keep freed memory (``engine/memory.py``), without being asked; each
is compared with the default, in a process of its own. bf16 is the encoder's ``precision``, with heads in float32;
``compile`` is compared where there is a C++ compiler. The loader is that of the ADE20K protocol, with all its random
transforms, on generated JPEG files of that set's size; one worker is one core. CUDA graphs and GPUs are not measured.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from siglip2_dense.benchmark.measure import figure, interleave, milliseconds, numbers_of_own_process, ratio
from siglip2_dense.data.loading import stop_workers, train_loader
from siglip2_dense.encoders import FrozenEncoder
from siglip2_dense.engine.configs import find_config
from siglip2_dense.engine.devices import DEVICES
from siglip2_dense.engine.memory import keep_freed_memory
from siglip2_dense.engine.plan import plan
from siglip2_dense.registry import DATASETS, build
from siglip2_dense.resample import resize_logits

VIT, BATCH, SIZE = "siglip2-base-16-512", 2, (512, 512)
CONVOLUTIONAL = {"efficientnet-lite0": (8, 336, 448), "dinov3-convnext-tiny": (2, 512, 512)}
ADE20K, PHOTO = "probe_ade20k", (512, 683)  # the most frequent size of that set
PHOTOS, QUALITY = 32, 85


def run(quick: bool) -> list[dict]:
    """Figures: ratios of an encoder's passes, and images a second of loaders in parts of those of encoders."""
    figures = []
    for name, shape in CONVOLUTIONAL.items():
        figures += _convolutional(name, shape, rounds=3 if quick else 9)
    sides = {precision: _passes(precision=precision) for precision in ("bf16", "fp32")}
    seconds = interleave(sides, rounds=1 if quick else 3)
    where, fp32 = f"{VIT}, {BATCH} x {SIZE[0]} px", median(seconds["fp32"])
    figures.append(figure(f"bf16 / fp32, {where}", ratio(seconds, "bf16", "fp32"), detail=milliseconds(seconds)))
    if not quick and _has_compiler():
        figures.append(_compiled(where, sides["fp32"]))
    return figures + _loading(BATCH / fp32, batches=4 if quick else 12)


def _convolutional(name: str, shape: tuple[int, int, int], rounds: int) -> list[dict]:
    """Figures of one network: each of the two changes beside the other, and both."""
    found = numbers_of_own_process("throughput", f"layouts({name!r}, {shape}, {rounds})")
    plain, last, plain_kept, last_kept = found
    where = f"{name}, {' x '.join(map(str, shape))} px"
    detail = (
        f"contiguous {plain * 1e3:.0f} ms, channels last {last * 1e3:.0f} ms, with freed memory kept "
        f"{plain_kept * 1e3:.0f} and {last_kept * 1e3:.0f} ms"
    )
    return [
        figure(f"channels last and freed memory kept / neither, {where}", last_kept / plain, 1, detail=detail),
        figure(f"channels last / contiguous, {where}", last_kept / plain_kept, detail="freed memory kept"),
        figure(f"freed memory kept / given back, {where}", last_kept / last, detail="channels last"),
    ]


@torch.no_grad()
def layouts(name: str, shape: tuple[int, int, int], rounds: int) -> list[float]:
    """Seconds of a pass, contiguous and channels last, with freed memory given back and then kept, which cannot be
    undone: call it in a process of its own.

    shape: images, height, width.
    """
    encoder = FrozenEncoder(name, weights="random")
    plain = deepcopy(encoder.tower).to(memory_format=torch.contiguous_format)
    pixels, _ = encoder._pixels(torch.randint(0, 256, (shape[0], 3, *shape[1:]), dtype=torch.uint8), None)
    flat = pixels.contiguous()
    sides = {"contiguous": lambda: plain.forward_features(flat), "last": lambda: encoder.tower.forward_features(pixels)}
    found = [median(seconds) for seconds in interleave(sides, rounds).values()]
    keep_freed_memory()
    return found + [median(seconds) for seconds in interleave(sides, rounds).values()]


def _passes(**settings) -> Callable[[], object]:
    """A pass of the transformer with random weights."""
    encoder = FrozenEncoder(VIT, weights="random", **settings)
    images = torch.randint(0, 256, (BATCH, 3, *SIZE), dtype=torch.uint8)
    return lambda: encoder.features(images)


def _has_compiler() -> bool:
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _compiled(where: str, plain: Callable[[], object]) -> dict:
    """Figure of torch.compile, for which nothing was compiled before."""
    with TemporaryDirectory() as folder, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        compiled, start = _passes(compile=True), time.perf_counter()
        compiled()
        first = time.perf_counter() - start
        seconds = interleave({"compiled": compiled, "plain": plain}, rounds=3, warmup=0)
    detail = f"{milliseconds(seconds)}; the first pass took {first:.0f} s, and so does the first of each other size"
    return figure(f"compiled / plain, {where}", ratio(seconds, "compiled", "plain"), detail=detail)


def _loading(encoded: float, batches: int) -> list[dict]:
    """Figures of the loader; encoded: images a second of the transformer in float32 on this CPU."""
    config = Config.fromfile(find_config(ADE20K))
    with TemporaryDirectory() as folder:
        size = write_photos(Path(folder), config.seed)
        data = build(DATASETS, {**config.train_dataloader.dataset.to_dict(), "root": folder}, seed=config.seed)
        loaded = {workers: _loaded(data, workers, batches) for workers in (1, os.cpu_count())}
        parts = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in _parts(data).items())
    one, detail = loaded[1], f"JPEG files of {size / 1e3:.0f} kB; milliseconds of an image: {parts}"
    figures = [
        figure(f"images/s of a loader of {workers} worker{'s' * (workers > 1)}", speed, detail=detail)
        for workers, speed in loaded.items()
    ]
    name = f"images/s, loader of one worker / {VIT} in fp32 on this CPU"
    figures.append(figure(name, one / encoded, 1, "higher", f"{one:.0f} and {encoded:.2f} images/s"))
    for encoder in (VIT, "siglip2-so400m-14-384"):
        config.model.encoder.update(name=encoder, precision="bf16")
        wanted = plan(config, DEVICES["h100"])["images_per_second"]["straight"]
        detail = f"such cores for the {wanted:.0f} images/s of training that tools/plan.py expects"
        figures.append(figure(f"workers for one H100, {encoder} in bf16", wanted / one, detail=detail))
    return figures


def write_photos(root: Path, seed: int) -> float:
    """Files of ADE20K's training split with content as rough as a photograph's; gives the mean bytes of an image."""
    draw, sizes = np.random.default_rng(seed), []
    folders = [root / kind / "training" for kind in ("images", "annotations")]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(PHOTOS):
        pixels = torch.zeros(3, *PHOTO)
        for coarse in 2 ** np.arange(8):  # noise whose amplitude grows with its scale, as in photographs
            noise = draw.standard_normal((1, 3, *(side // coarse + 2 for side in PHOTO)), np.float32)
            pixels += resize_logits(torch.from_numpy(noise), PHOTO)[0] * float(coarse) ** 0.9
        pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 120
        labels = draw.integers(0, 151, [side // 64 + 1 for side in PHOTO], np.uint8).repeat(64, 0).repeat(64, 1)
        image, target = (folder / f"{number}{end}" for folder, end in zip(folders, (".jpg", ".png"), strict=True))
        Image.fromarray(pixels.clamp(0, 255).byte().permute(1, 2, 0).numpy()).save(image, quality=QUALITY)
        Image.fromarray(np.ascontiguousarray(labels[: PHOTO[0], : PHOTO[1]])).save(target)
        sizes.append(image.stat().st_size)
    return float(np.mean(sizes))


def _loaded(data, workers: int, batches: int) -> float:
    """Images a second once the workers are at work."""
    loader = train_loader(data, 16, workers, seed=0, targets=("labels",))
    try:
        ready = iter(loader)
        for _ in range(3 * workers):  # those that were begun while the workers started
            next(ready)
        start = time.perf_counter()
        seen = sum(len(batch["inputs"]) for batch in islice(ready, batches * workers))
        return seen / (time.perf_counter() - start)
    finally:
        stop_workers(loader)


def _parts(data) -> dict[str, float]:
    """Seconds of an image in this thread, alone: reading both files, and each transform."""
    import cv2

    threads, found = (torch.get_num_threads(), cv2.getNumThreads()), defaultdict(list)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for index, entry in enumerate(data.entries):
        start = time.perf_counter()
        sample = data.read(entry)
        found["reading"].append(time.perf_counter() - start)
        draw = np.random.default_rng(index)
        for transform in data.transforms:
            start = time.perf_counter()
            sample = transform(sample, draw)
            found[type(transform).__name__].append(time.perf_counter() - start)
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])
    return {name: float(np.mean(seconds)) for name, seconds in found.items()}
