"""OWL-ViT's head against its formulas, at its beginning, and on images with cells of their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from siglip2_dense.contracts import EncoderFacts, Features, Geometry, Tap
from siglip2_dense.errors import UserError
from siglip2_dense.heads.owlvit import OWLViTHead, box_bias
from siglip2_dense.losses.detection import corners

SIGLIP = EncoderFacts(
    name="toy", fingerprint="", widths=(8, 8), strides=(16, 16), prefix=(), pooled="map", pooled_width=8,
    final_norm=True, mean=(0.5,) * 3, std=(0.5,) * 3, native_grid=(3, 4), position_kernel="bicubic", parameters=0,
    aligned_width=6,
)  # fmt: skip
CLIP = replace(SIGLIP, prefix=("class",), pooled="class")
TAP = Tap(1, True)


def seen(grid=(3, 4), images=2, prefix=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = tuple(16 * side for side in grid)
    return Features(
        maps={TAP: torch.randn(images, 8, *grid, generator=generator)},
        geometry=(Geometry(size, (0, 0, *size), size, size, size),) * images,
        prefix={TAP: torch.randn(images, prefix, 8, generator=generator)} if prefix else None,
    )


def at_random(head):
    torch.manual_seed(1)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


@pytest.mark.parametrize("facts", [SIGLIP, CLIP, replace(CLIP, prefix=("register", "class", "register"))])
def test_the_formulas_written_out(facts):
    head, features = at_random(OWLViTHead(facts, 3)), seen(prefix=len(facts.prefix))
    texts = torch.randn(5, 6)
    with torch.no_grad():
        raw = head(features, texts)
    w = {name: value.detach().double().numpy() for name, value in head.named_parameters()}
    x = features.maps[TAP].double().flatten(2).transpose(1, 2).numpy()
    if facts.prefix:
        x = x * features.prefix[TAP][:, facts.prefix.index("class"), None].double().numpy()
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * w["norm.weight"] + w["norm.bias"]

    def linear(y, name):
        return y @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(y):
        return y * torch.special.ndtr(torch.from_numpy(y)).numpy()

    def sigmoid(y):
        return 1 / (1 + np.exp(-y))

    z = linear(x, "classes")
    cosine = z / (np.linalg.norm(z, axis=-1, keepdims=True) + 1e-6) @ texts.double().numpy().T
    scale = linear(x, "scale")
    logits = (cosine + linear(x, "shift")) * (np.where(scale > 0, scale, np.exp(scale) - 1) + 1)
    boxes = linear(gelu(linear(gelu(linear(x, "box.0")), "box.1")), "box.2")
    for row in range(3):
        for column in range(4):
            place = np.array([(column + 1) / 4, (row + 1) / 3, 1 / 4, 1 / 3])
            boxes[:, 4 * row + column] += np.log(place + 1e-4) - np.log1p(1e-4 - place)
    assert np.abs(raw.boxes.numpy() - sigmoid(boxes)).max() < 1e-5
    for number in range(2):
        assert np.abs(raw.logits(number).numpy() - logits[number]).max() < 1e-4
        assert torch.equal(raw[number].logits(), raw.logits(number))
        assert torch.allclose(raw.logits(number, slice(2, 4)), raw.logits(number)[:, 2:4], atol=1e-5)


@pytest.mark.parametrize("facts", [SIGLIP, CLIP])
def test_before_training_boxes_are_the_grid_and_scores_one_in_a_hundred(facts):
    torch.manual_seed(0)
    head = OWLViTHead(facts, 1)
    with torch.no_grad():
        raw = head(seen((5, 5), prefix=len(facts.prefix)), torch.nn.functional.normalize(torch.randn(7, 6), dim=-1))
    assert torch.allclose(raw.boxes, box_bias((5, 5)).sigmoid().expand(2, -1, -1))
    found = corners(raw.boxes[0, 0])  # of the first cell: a cell, half a cell to the right and down
    assert torch.allclose(found, torch.tensor([0.1, 0.1, 0.3, 0.3]), atol=1e-3)
    scores = torch.stack([raw.logits(i) for i in range(2)]).sigmoid()
    assert 0.001 < scores.median() < 0.1 and (raw.scale > 0).all()
    assert head.shift.bias.sigmoid().item() == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize(("side", "size"), [(24, -3.1332), (48, -3.8455), (60, -4.0717)])
def test_published_values_of_the_bias(side, size):
    bias = box_bias((side, side)).view(side, side, 4)
    assert bias[..., 2:].unique().numpy() == pytest.approx(size, abs=1e-4)
    assert bias[3, -1, 0].item() == pytest.approx(9.2104, abs=1e-3)  # the last column ends with the image
    assert bias[3, -1, 1].sigmoid().item() == pytest.approx(4 / side, abs=1e-3)
    wide = box_bias((2, 4)).sigmoid()
    assert wide[5].tolist() == pytest.approx([0.5, 1, 0.25, 0.5], abs=1e-3)


def test_images_with_cells_of_their_own_have_their_own_grid():
    features = seen((4, 5), images=2)
    grids = [(4, 3), (2, 5)]
    valid = torch.zeros(2, 4, 5, dtype=torch.bool)
    for own, (rows, columns) in zip(valid, grids, strict=True):
        own[:rows, :columns] = True
    geometry = tuple(
        Geometry((64, 80), (0, 0, 16 * rows, 16 * columns), (64, 80), (50, 50), (50, 50), scaled=True)
        for rows, columns in grids
    )
    head = at_random(OWLViTHead(SIGLIP, 1))
    texts = [torch.randn(2, 6), torch.randn(3, 6)]
    with torch.no_grad():
        raw = head(replace(features, valid=valid, geometry=geometry), texts)
        for number, (rows, columns) in enumerate(grids):
            alone = seen((rows, columns), images=1)
            alone.maps[TAP] = features.maps[TAP][number : number + 1, :, :rows, :columns]
            expected = head(alone, texts[number])
            assert torch.allclose(raw[number].boxes, expected.boxes, atol=1e-6)
            assert torch.allclose(raw[number].logits(), expected.logits(), atol=1e-5)


def test_half_precision_leaves_boxes_and_scores_in_float32():
    head, features = at_random(OWLViTHead(SIGLIP, 1)), seen()
    with torch.no_grad():
        exact = head(features, torch.randn(2, 6))
        with torch.autocast("cpu", torch.bfloat16):
            raw = head(features, exact.texts[0])
    assert {value.dtype for value in (raw.boxes, raw.embeddings, raw.shift, raw.scale, raw.logits())} == {torch.float32}
    assert torch.equal(raw.shift, exact.shift) and (raw.boxes - exact.boxes).abs().max() < 0.02


def test_an_encoder_without_texts_is_refused():
    with pytest.raises(UserError, match="toy has no text space"):
        OWLViTHead(replace(SIGLIP, aligned_width=None), 1)
