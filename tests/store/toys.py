"""Small stores of random features, made without an encoder."""

import torch

from siglip2_dense.contracts import IGNORE, EncoderFacts, Features, Geometry, Sample, Tap
from siglip2_dense.store.key import make_key
from siglip2_dense.store.packing import pack_targets
from siglip2_dense.store.shard import ShardWriter, narrowed

TAPS = (Tap(1, False), Tap(3, True))
FACTS = EncoderFacts(
    name="toy", fingerprint="f" * 64, widths=(4, 6, 4, 6), strides=(16,) * 4, prefix=("class",), pooled="class",
    pooled_width=6, final_norm=True, mean=(0.5,) * 3, std=(0.5,) * 3, native_grid=(2, 3), position_kernel="bicubic",
    parameters=7,
)  # fmt: skip


def toy_features(index, view=0, cells=(2, 3), rows=1, scaled=False):
    """Of one image: everything that features may have, values of the index and the view."""
    numbers = torch.Generator().manual_seed(1000 * view + index)
    size = tuple(16 * side for side in cells)
    place = Geometry(size, (0, 0, *size), size, (30, 44), (60, 88), scaled=scaled)
    return Features(
        maps={tap: torch.randn(rows, FACTS.widths[tap.block], *cells, generator=numbers) for tap in TAPS},
        prefix={tap: torch.randn(rows, 1, FACTS.widths[tap.block], generator=numbers) for tap in TAPS},
        pooled=torch.randn(rows, 6, generator=numbers),
        geometry=(place,) * rows,
        valid=torch.ones(rows, *cells, dtype=torch.bool) if scaled else None,
    )


def toy_sample(index, view=0):
    numbers = torch.Generator().manual_seed(7 * index + view)
    return Sample(
        labels=torch.randint(IGNORE, 150, (30, 44), generator=numbers),
        depth=torch.rand(1, 30, 44, generator=numbers),
        path=f"image-{index}.jpg",
        original_size=(60, 88),
        index=index,
    )


def toy_key(images, facts=FACTS, **changes):
    data = dict(name="toys", split="train", images=images, fingerprint="d" * 64, settings={"type": "Toys"})
    parts = dict(encoder={"precision": "fp32"}, taps=TAPS, pooled=True, aligned=None, dtype="fp16", data=data, seed=0)
    return make_key(facts, **{**parts, **changes})


def fill(store, view, number, cells=lambda index: (2, 3), scaled=False):
    writer = ShardWriter()
    for position in store.positions(number):
        index = int(store.order()[position])
        sample = toy_sample(index, view)
        features = narrowed(toy_features(index, view, cells(index), scaled=scaled), torch.float16, [sample])
        writer.add(features, sample, pack_targets(sample))
    store.write(view, number, writer)
