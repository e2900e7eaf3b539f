"""The types: moved, sliced and joined as wholes."""

import json

import pytest
import torch

from siglip2_dense.contracts import Detections, EncoderFacts, Features, Geometry, RawDetections, Sample, Tap

TAP, OTHER = Tap(3, True), Tap(5, False)


def features(batch, seed=0, **changes):
    numbers = torch.Generator().manual_seed(seed)
    places = tuple(Geometry((32, 32), (0, 0, 30, 32), (30, 32), (30, 32), (seed, k)) for k in range(batch))
    parts = dict(
        maps={TAP: torch.randn(batch, 4, 2, 2, generator=numbers), OTHER: torch.randn(batch, 6, 2, 2)},
        prefix={TAP: torch.randn(batch, 1, 4)},
        pooled=torch.randn(batch, 4),
        geometry=places,
    )
    return Features(**{**parts, **changes})


def test_detections_move_with_their_texts():
    raw = RawDetections(
        torch.zeros(2, 3, 4),
        torch.ones(2, 3, 5),
        torch.zeros(2, 3),
        torch.ones(2, 3),
        (torch.zeros(1, 5), torch.zeros(7, 5)),
    )
    moved = raw.to(torch.float64)
    assert {tensor.dtype for tensor in (moved.boxes, moved.shift, *moved.texts)} == {torch.float64}
    assert moved[1].logits().shape == (3, 7) and moved[1].texts[0].shape == (7, 5)
    found = Detections(torch.zeros(2, 4), torch.ones(2), torch.tensor([1, 0])).to("cpu")
    assert found.labels.tolist() == [1, 0]


def test_features_are_sliced_and_joined():
    first, second = features(2), features(3, seed=1)
    joined = Features.cat([first, second])
    assert len(joined) == 5 and joined.geometry == first.geometry + second.geometry and joined.valid is None
    again = joined[2:]
    assert torch.equal(again.maps[TAP], second.maps[TAP]) and torch.equal(again.prefix[TAP], second.prefix[TAP])
    assert torch.equal(again.pooled, second.pooled) and again.geometry == second.geometry
    assert again.maps[TAP].data_ptr() == joined.maps[TAP][2:].data_ptr()  # a view
    bare = Features.cat([features(1, prefix=None, pooled=None), features(1, prefix=None, pooled=None)])
    assert bare.prefix is None and bare.pooled is None


def test_all_tensors_move_together():
    moved = features(2).to(torch.float64)
    assert {t.dtype for t in (*moved.maps.values(), *moved.prefix.values(), moved.pooled)} == {torch.float64}
    sample = Sample(image=torch.zeros(3, 4, 5), labels=torch.zeros(4, 5), path="a.jpg", index=3, box_names=(("cup",),))
    moved = sample.to("meta")
    assert moved.image.is_meta and moved.labels.is_meta and not sample.image.is_meta
    assert (moved.path, moved.index, moved.box_names, moved.depth) == ("a.jpg", 3, (("cup",),), None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning memory needs a GPU")
def test_pinned():
    assert features(1).pin_memory().maps[TAP].is_pinned()


def test_facts_survive_a_file():
    facts = EncoderFacts(
        name="x", fingerprint="f", widths=(4, 6), strides=(16, 16), prefix=("class",), pooled="class", pooled_width=6,
        final_norm=True, mean=(0.5,) * 3, std=(0.5,) * 3, native_grid=None, position_kernel=None, parameters=7,
    )  # fmt: skip
    assert EncoderFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
    assert facts.num_blocks == 2 and facts.multiple == 16 and facts.taps("last", True) == (Tap(1, True),)
