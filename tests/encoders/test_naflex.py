"""Images at their own aspect, against timm's and transformers' NaFlex."""

import random
from functools import cache

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.naflex_transforms import Patchify, ResizeToSequence, get_image_size_for_seq
from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from siglip2_dense.encoders.naflex import grid_of, pack, pool, run, unpack, valid_cells
from siglip2_dense.errors import UserError

HALF = torch.full((3, 1, 1), 127.5)  # SigLIP's mean and deviation
BUDGETS = (256, 576, 784, 1024)
# height, width and budget of images that become the grids 16x16, 14x18, 9x27, 5x50, 20x39
SHAPES = [(224, 224), (480, 640), (427, 1280), (100, 1000), (1024, 2048)]
GRIDS = [(16, 16), (14, 18), (9, 27), (5, 50)]


def images(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def packed_of(pictures, budget=256):
    return pack(pictures, 16, budget, HALF, HALF)


@cache
def towers():
    """The same random weights as transformers' model and as timm's."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=96, intermediate_size=200, num_hidden_layers=3, num_attention_heads=4)
    reference = Siglip2VisionModel(Siglip2VisionConfig(**sizes)).eval()
    for name, parameter in reference.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() == 1 else 0.1)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1
    tower = timm.create_model(
        "naflexvit_base_patch16_siglip", num_classes=0, embed_dim=96, depth=3, num_heads=4, mlp_ratio=200 / 96
    ).eval()
    state = reference.state_dict()
    both = "weight", "bias"
    found = {f"norm.{x}": state[f"post_layernorm.{x}"] for x in both}
    found |= {f"embeds.proj.{x}": state[f"embeddings.patch_embedding.{x}"] for x in both}
    found["embeds.pos_embed"] = state["embeddings.position_embedding.weight"].view(1, 16, 16, 96)
    for i in range(3):
        old, new = f"encoder.layers.{i}.", f"blocks.{i}."
        for x in both:
            parts = [state[f"{old}self_attn.{part}_proj.{x}"] for part in "qkv"]
            found[f"{new}attn.qkv.{x}"] = torch.cat(parts)
            found[f"{new}attn.proj.{x}"] = state[f"{old}self_attn.out_proj.{x}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"{new}{name}.{x}"] = state[f"{old}{name.replace('norm', 'layer_norm')}.{x}"]
    found["attn_pool.latent"] = state["head.probe"]
    for x in both:
        joint = state[f"head.attention.in_proj_{x}"]
        found[f"attn_pool.q.{x}"], found[f"attn_pool.kv.{x}"] = joint[:96], joint[96:]
        found[f"attn_pool.proj.{x}"] = state[f"head.attention.out_proj.{x}"]
        for name in ("norm", "mlp.fc1", "mlp.fc2"):
            found[f"attn_pool.{name}.{x}"] = state[f"head.{name.replace('norm', 'layernorm')}.{x}"]
    tower.load_state_dict(found, strict=True)
    return reference, tower


def test_grids_are_those_of_timm_and_transformers():
    draw = random.Random(0)
    for _ in range(2000):
        size = tuple(round(2 ** draw.uniform(0, 13)) for _ in range(2))
        budget = draw.choice(BUDGETS)
        found = grid_of(size, 16, budget)
        assert found == tuple(side // 16 for side in get_image_size_for_seq(size, 16, budget)[1]), (size, budget)
        assert found == tuple(side // 16 for side in get_image_size_for_max_num_patches(*size, 16, budget))
        assert 0 < found[0] * found[1] <= budget
    for _ in range(500):  # another patch, and budgets of a few patches
        size, budget = (draw.randint(1, 3000), draw.randint(1, 3000)), draw.randint(1, 40)
        assert grid_of(size, 14, budget) == tuple(x // 14 for x in get_image_size_for_seq(size, 14, budget)[1])


def test_grids_by_hand():
    for size, budget, grid in [
        ((480, 640), 256, (14, 18)),
        ((333, 500), 576, (19, 29)),
        ((16, 16), 784, (28, 28)),  # small images are enlarged
        ((1024, 2048), 784, (20, 39)),
        ((100, 1000), 1024, (10, 100)),
        ((5, 3000), 256, (1, 256)),
    ]:
        assert grid_of(size, 16, budget) == grid


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_without_a_patch(budget):
    with pytest.raises(UserError, match=f"sequence_length={budget} leaves no patch for an image of 40x50 pixels"):
        packed_of(images((40, 50)), budget)


def test_pixels_are_resized_in_floating_point_with_antialiasing():
    """Pillow's filter for floating-point images; up, down and both."""
    for size in [(40, 56), (480, 640), (1000, 90), (223, 225)]:
        (image,) = images(size)
        packed = packed_of([image.float()], 64)
        h, w = packed.grid
        expected = [
            np.asarray(Image.fromarray(x.numpy()).resize((w * 16, h * 16), Image.Resampling.BILINEAR))
            for x in image.float()
        ]
        expected = (torch.tensor(np.stack(expected)) - 127.5) / 127.5
        for row, column in [(0, 0), (h - 1, w - 1), (h // 2, 0)]:
            block = expected[:, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16].permute(1, 2, 0)
            found = packed.patches[0, row * w + column]
            assert (found - block.reshape(-1)).abs().max() < 5e-5
        assert (packed_of([image], 64).patches - packed.patches).abs().max() == 0


@pytest.mark.parametrize("budget", [64, 256, 1024])
def test_patches_are_those_of_timm_and_transformers(budget):
    """Up to their rounding to whole grey values, 2 / 255, after resizing; exactly where nothing is resized."""
    pictures = images((480, 640), (37, 53), (100, 700), (333, 200))
    packed = packed_of(pictures, budget)
    processor = Siglip2ImageProcessor(max_num_patches=budget)
    theirs = processor(pictures, return_tensors="pt")
    length = packed.patches.shape[1]
    assert torch.equal(theirs["pixel_attention_mask"][:, :length].bool(), packed.valid)
    assert not theirs["pixel_attention_mask"][:, length:].any() and packed.valid.sum(1).max() == length
    assert (theirs["pixel_values"][:, :length] - packed.patches).abs().max() < 1.1 * 2 / 255
    steps = ResizeToSequence(16, budget, interpolation="bilinear"), Patchify(16)
    for number, picture in enumerate(pictures):
        resized = steps[0](Image.fromarray(picture.permute(1, 2, 0).numpy()))
        pixels = (torch.tensor(np.asarray(resized)).permute(2, 0, 1) - 127.5) / 127.5
        patches, coordinates, valid = (steps[1](pixels)[key] for key in ("patches", "patch_coord", "patch_valid"))
        count = len(patches)
        assert valid.all() and packed.valid[number].sum() == count
        assert torch.equal(packed.coordinates[number, :count], coordinates)
        assert (packed.patches[number, :count] - patches).abs().max() < 1.1 * 2 / 255
        for filled in (packed.patches, packed.coordinates, packed.valid):
            assert not filled[number, count:].any()
    side = int(budget**0.5) * 16
    (exact,) = images((side, side))
    theirs = processor([exact], return_tensors="pt")["pixel_values"]
    assert (packed_of([exact], budget).patches - theirs).abs().max() < 1e-6


def test_geometry_says_where_each_image_lies_on_the_common_grid():
    packed = packed_of(images(*SHAPES[:4]))
    assert packed.grid == (16, 50)
    for place, size, grid in zip(packed.geometry, SHAPES, GRIDS, strict=False):
        assert place.box == (0, 0, 16 * grid[0], 16 * grid[1]) and place.padded == place.canvas == (256, 800)
        assert place.resized == place.original == size and place.window is None


def test_tokens_are_laid_on_the_grid():
    packed = packed_of(images((32, 48), (64, 16), (32, 32)), 6)
    grids = [(2, 3), (4, 1), (2, 2)]
    assert packed.grid == (4, 3) and packed.patches.shape == (3, 6, 768)
    tokens = torch.arange(1.0, 19).view(3, 6, 1).repeat(1, 1, 2) * torch.tensor([1, 100])
    for number, (h, w) in enumerate(grids):
        tokens[number, h * w :] = float("nan")  # whatever an encoder says of no patch
    maps, valid = unpack(tokens, packed), valid_cells(packed)
    assert maps.shape == (3, 2, 4, 3) and valid.shape == (3, 4, 3) and valid.dtype == torch.bool
    for number, (h, w) in enumerate(grids):
        expected = torch.zeros(4, 3)
        expected[:h, :w] = torch.arange(1.0, h * w + 1).view(h, w) + 6 * number
        assert torch.equal(maps[number, 0], expected) and torch.equal(maps[number, 1], 100 * expected)
        assert torch.equal(valid[number], expected > 0)


@pytest.mark.parametrize("mixed", [True, False])
@torch.no_grad()
def test_tokens_and_pooled_vector_are_those_of_transformers(mixed):
    """Five grids in one padded batch, with tables that grow along one side and shrink along the other; one alone."""
    reference, tower = towers()
    if mixed:
        parts = [packed_of(images(*SHAPES[:4])), packed_of(images(SHAPES[4], seed=1), 784)]
        together = pack_as_one(parts)
    else:
        together = packed_of(images((100, 1000)))
    shapes = torch.tensor([[side // 16 for side in place.box[2:]] for place in together.geometry])
    assert shapes.tolist() == ([*map(list, GRIDS), [20, 39]] if mixed else [[5, 50]])
    theirs = reference(
        pixel_values=together.patches,
        pixel_attention_mask=together.valid.int(),
        spatial_shapes=shapes,
        output_hidden_states=True,
    )
    tokens, final = run(tower, together, [0, 1, 2], final=True)
    for found, expected in zip([*tokens, final], [*theirs.hidden_states[1:], theirs.last_hidden_state], strict=True):
        assert expected[together.valid].std() > 0.5
        assert (found - expected)[together.valid].abs().max() < 1e-4
    assert (pool(tower, final, together) - theirs.pooler_output).abs().max() < 1e-4


def pack_as_one(parts):
    """Images of several budgets in one batch."""
    length = max(part.patches.shape[1] for part in parts)
    fields = []
    for name in ("patches", "coordinates", "valid"):
        values = [getattr(part, name) for part in parts]
        padded = [torch.cat([x, x.new_zeros(len(x), length - x.shape[1], *x.shape[2:])], 1) for x in values]
        fields.append(torch.cat(padded))
    return parts[0]._replace(
        **dict(zip(("patches", "coordinates", "valid"), fields, strict=True)),
        geometry=sum((part.geometry for part in parts), ()),
    )


@torch.no_grad()
def test_an_image_sees_neither_the_others_nor_the_padding_nor_what_came_before():
    _, tower = towers()
    pictures = images(*SHAPES[:4])
    state = {name: values.clone() for name, values in tower.state_dict().items()}
    alone = [run(tower, packed_of([picture]), [0, 2], final=True) for picture in pictures]
    packed = packed_of(pictures)
    packed.patches[~packed.valid] = 1e3
    tokens, final = run(tower, packed, [0, 2], final=True)
    pooled = pool(tower, final, packed)
    for number, (own, last) in enumerate(alone):
        count = packed.valid[number].sum()
        for found, expected in zip([*tokens, final], [*own, last], strict=True):
            assert (found[number, :count] - expected[0]).abs().max() < 2e-5
        single = pool(tower, last, packed_of([pictures[number]]))
        assert (pooled[number] - single[0]).abs().max() < 2e-5
    again = run(tower, packed_of([pictures[0]]), [0, 2], final=True)[1]
    assert torch.equal(again, alone[0][1])
    assert all(torch.equal(values, state[name]) for name, values in tower.state_dict().items())


@torch.no_grad()
def test_only_the_blocks_that_are_asked_for():
    _, tower = towers()
    packed = packed_of(images((40, 60), (60, 40)), 12)
    every, final = run(tower, packed, [0, 1, 2], final=True)
    assert torch.equal(tower.norm(every[2]), final)
    hook = tower.blocks[2].register_forward_hook(lambda *_: pytest.fail("block 2 was run for block 1"))
    try:
        tokens, nothing = run(tower, packed, [1], final=False)
    finally:
        hook.remove()
    assert nothing is None and len(tokens) == 1 and torch.equal(tokens[0], every[1])


@torch.no_grad()
def test_class_and_register_tokens_are_neither_images_nor_masked():
    """A tower with both, whose table keeps the aspect: each image as by timm's own path for one whole image."""
    torch.manual_seed(0)
    tower = timm.create_model("naflexvit_base_patch16_radio_v3", num_classes=0, depth=2, embed_dim=48, num_heads=3)
    tower.eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pictures = images((256, 256), (160, 400), (640, 96))  # each as large as its grid
    packed = packed_of(pictures)
    outputs, final = run(tower, packed, [0, 1], final=True)
    vectors = pool(tower, final, packed)
    for number, picture in enumerate(pictures):
        whole = ((picture - HALF) / HALF)[None]
        last, theirs = tower.forward_intermediates(whole, return_prefix_tokens=True, output_fmt="NLC")
        for (tokens, prefix), (expected, first) in zip(outputs, theirs, strict=True):
            assert (tokens[number, : expected.shape[1]] - expected[0]).abs().max() < 2e-5
            assert prefix.shape[1] == 8 and (prefix[number] - first[0]).abs().max() < 2e-5
        assert (vectors[number] - tower.forward_head(last, pre_logits=True)[0]).abs().max() < 2e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype):
    _, tower = towers()
    packed = packed_of(images(*SHAPES[:4]))
    exact, final = run(tower, packed, [2], final=True)
    vector = pool(tower, final, packed)
    with torch.autocast("cpu", dtype):
        found, final = run(tower, packed, [2], final=True)
        near = pool(tower, final, packed)
    error = (found[0] - exact[0])[packed.valid].abs().max()
    assert error < 0.05 * exact[0][packed.valid].abs().max() and (near - vector).abs().max() < 0.05 * vector.abs().max()
    assert found[0].isfinite().all()
