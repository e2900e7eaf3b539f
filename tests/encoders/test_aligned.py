"""Maps in the text space against the native modules of open_clip and transformers, and against timm's own attention
under a mask that leaves each token only itself.
"""

from functools import partial

import pytest
import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU
from open_clip.transformer import VisionTransformer as NativeCLIP
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from siglip2_dense.contracts import Alignment
from siglip2_dense.encoders.aligned import aligned_map, blocks_of
from siglip2_dense.encoders.trainable import SplitQKV
from siglip2_dense.errors import UserError

GRID = (3, 5)
FORMS = {  # as Alignment(residual, mlp)
    "pure": ("none", False),
    "released MaskCLIP": ("own", True),
    "CAT-Seg": ("class", True),
    "own alone": ("own", False),
    "MLP alone": ("none", True),
}


def randomise(module, seed=0):
    """Zero biases and unit norms would hide errors."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            scale = 0.3 if tensor.ndim < 2 else tensor.shape[-1] ** -0.5
            tensor.copy_(torch.randn(tensor.shape, generator=numbers) * scale + ("norm" in name or "ln_" in name))
    return module.eval().requires_grad_(False)


def tiny(**options):
    settings = dict(img_size=(24, 40), patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=0)
    return randomise(VisionTransformer(**{**settings, **options}))


def norm_of_clip(size, **options):
    return nn.LayerNorm(size, eps=1e-5, **options)


def siglip(**options):
    return tiny(class_token=False, global_pool="map", **options)


def pixels(batch=1, height=24, width=40):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def block_outputs(tower, images, **options):
    """{block: (B, prefix + N, C)} as the encoder gives them."""
    found = {}
    handles = [
        block.register_forward_hook(lambda *call, number=number: found.__setitem__(number, call[-1]))
        for number, block in enumerate(tower.blocks)
    ]
    tower.forward_features(images, **options)
    for handle in handles:
        handle.remove()
    return found


def ours(tower, projection, images, how, **options):
    outputs = block_outputs(tower, images)
    return aligned_map(tower, projection, {block: outputs[block] for block in blocks_of(tower, how)}, how, **options)


def only_itself(count):
    """An additive mask under which attention gives each token its own value."""
    return torch.full((count, count), -torch.inf).fill_diagonal_(0)


def difference(found, expected):
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


@pytest.fixture(scope="module")
def native():
    """A CLIP tower of open_clip, and the same in timm."""
    model = randomise(
        NativeCLIP(
            image_size=(24, 40), patch_size=8, width=32, layers=3, heads=4, mlp_ratio=4, output_dim=20,
            act_layer=QuickGELU, output_tokens=True,
        ),
    )  # fmt: skip
    tower = tiny(pre_norm=True, act_layer="quick_gelu", norm_layer=norm_of_clip)
    state = {
        "cls_token": model.class_embedding[None, None],
        "pos_embed": model.positional_embedding[None],
        "patch_embed.proj.weight": model.conv1.weight,
    }
    names = {"ln_pre": "norm_pre", "ln_post": "norm"}
    inner = {"ln_1": "norm1", "ln_2": "norm2", "attn.out_proj": "attn.proj", "mlp.c_fc": "mlp.fc1"}
    inner["mlp.c_proj"] = "mlp.fc2"
    for i, block in enumerate(model.transformer.resblocks):
        names |= {f"transformer.resblocks.{i}.{theirs}": f"blocks.{i}.{name}" for theirs, name in inner.items()}
        state |= {f"blocks.{i}.attn.qkv.{kind}": getattr(block.attn, f"in_proj_{kind}") for kind in ("weight", "bias")}
    for theirs, name in names.items():
        state |= {f"{name}.{kind}": getattr(model.get_submodule(theirs), kind) for kind in ("weight", "bias")}
    tower.load_state_dict(state, strict=True)
    projection = nn.Linear(32, 20, bias=False).requires_grad_(False)
    projection.weight.copy_(model.proj.T)
    return model, tower, projection


def native_dense(model, images, attend, residual, mlp):
    """What open_clip's modules give with ``attend`` in the place of the last block's attention."""
    found = {}
    last = model.transformer.resblocks[-1]
    handle = last.register_forward_pre_hook(lambda module, inputs: found.setdefault("x", inputs[0]))
    model(images)
    handle.remove()
    x = found["x"]
    z = attend(last.attn, last.ln_1(x))
    z = z + {"none": 0, "own": x, "class": x[:, :1]}[residual]
    if mlp:
        z = z + last.mlp(last.ln_2(z))
    return (model.ln_post(z) @ model.proj)[:, 1:]


@pytest.mark.parametrize("form", FORMS)
def test_values_of_clip_equal_open_clips_modules(native, form):
    model, tower, projection = native
    residual, mlp = FORMS[form]

    def itself(attention, x):
        return attention(x, x, x, attn_mask=only_itself(x.shape[1]), need_weights=False)[0]

    expected = native_dense(model, pixels(2), itself, residual, mlp)
    found = ours(tower, projection, pixels(2), Alignment("value", residual, mlp))
    assert difference(found, expected) < 1e-5 and expected.abs().max() > 1
    others = [ours(tower, projection, pixels(2), Alignment("value", *other)) for name, other in FORMS.items()]
    assert sum(difference(other, expected) > 1e-2 for other in others) == len(FORMS) - 1


@pytest.mark.parametrize("form", FORMS)
def test_attention_to_alike_of_clip_equals_open_clips_modules(native, form):
    """The native attention with the same rows as query and key, once with each of its three parts."""
    model, tower, projection = native
    residual, mlp = FORMS[form]

    def alike(attention, x):
        found = 0
        rows = [attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)]
        for part in range(3):
            twin = nn.MultiheadAttention(32, 4, batch_first=True).requires_grad_(False)
            twin.in_proj_weight.copy_(torch.cat([rows[0][part], rows[0][part], rows[0][2]]))
            twin.in_proj_bias.copy_(torch.cat([rows[1][part], rows[1][part], rows[1][2]]))
            twin.out_proj.load_state_dict(attention.out_proj.state_dict())
            found = found + twin(x, x, x, need_weights=False)[0] / 3
        return found

    expected = native_dense(model, pixels(2), alike, residual, mlp)
    found = ours(tower, projection, pixels(2), Alignment("qkv", residual, mlp))
    assert difference(found, expected) < 1e-5
    assert difference(ours(tower, projection, pixels(2), Alignment("value", residual, mlp)), expected) > 1e-2


def test_raw_tokens_of_clip_equal_open_clips(native):
    model, tower, projection = native
    tokens = model(pixels(1))[1] @ model.proj  # open_clip gives them after the norm, before the projection
    assert difference(ours(tower, projection, pixels(1), Alignment("raw")), tokens) < 1e-5


def test_values_of_clip_equal_those_of_transformers():
    """The released form of MaskCLIP written with the modules of a CLIPVisionModelWithProjection."""
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=40, patch_size=8,
        projection_dim=20, hidden_act="quick_gelu",
    )  # fmt: skip
    model = randomise(CLIPVisionModelWithProjection(config))
    tower = tiny(img_size=40, depth=2, act_layer="quick_gelu", norm_layer=norm_of_clip)
    last = next(module for name, module in model.named_modules() if name.endswith("encoder.layers.1"))
    attention = last.self_attn
    block = tower.blocks[-1]
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for name, theirs in {**names, "attn.proj": "self_attn.out_proj"}.items():
        block.get_submodule(name).load_state_dict(last.get_submodule(theirs).state_dict())
    for kind in ("weight", "bias"):
        rows = [getattr(getattr(attention, f"{part}_proj"), kind) for part in "qkv"]
        getattr(block.attn.qkv, kind).copy_(torch.cat(rows))
    norm = next(module for name, module in model.named_modules() if name.endswith("post_layernorm"))
    tower.norm.load_state_dict(norm.state_dict())
    x = model(pixels(2, 40, 40), output_hidden_states=True).hidden_states[1]
    z = x + attention.out_proj(attention.v_proj(last.layer_norm1(x)))
    z = z + last.mlp(last.layer_norm2(z))
    expected = model.visual_projection(norm(z))[:, 1:]
    found = aligned_map(tower, model.visual_projection, {0: x}, Alignment("value", "own", True))
    assert difference(found, expected) < 1e-5


def test_values_of_an_attention_pool_equal_the_pool_on_each_token_alone():
    tower = siglip()
    y = tower.norm(block_outputs(tower, pixels(2))[2])
    expected = tower.attn_pool(y.flatten(0, 1)[:, None]).view(2, 15, 32)
    assert difference(ours(tower, None, pixels(2), Alignment()), expected) < 1e-6
    assert difference(expected.mean(1), tower(pixels(2))) > 1e-2  # the pool's MLP bends: this is no mean of them


def test_values_of_an_attention_pool_equal_those_of_transformers():
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=128, num_attention_heads=4, hidden_act="gelu_pytorch_tanh"
    )
    head = randomise(SiglipMultiheadAttentionPoolingHead(config))
    tower = siglip(act_layer="gelu_tanh")
    pool = tower.attn_pool
    for kind in ("weight", "bias"):
        rows = getattr(head.attention, f"in_proj_{kind}")
        getattr(pool.q, kind).copy_(rows[:32])
        getattr(pool.kv, kind).copy_(rows[32:])
    pool.latent.copy_(head.probe)
    pool.proj.load_state_dict(head.attention.out_proj.state_dict())
    pool.norm.load_state_dict(head.layernorm.state_dict())
    pool.mlp.fc1.load_state_dict(head.mlp.fc1.state_dict())
    pool.mlp.fc2.load_state_dict(head.mlp.fc2.state_dict())
    y = tower.forward_features(pixels(2))
    expected = head(y.flatten(0, 1)[:, None]).view(2, 15, 32)
    assert difference(ours(tower, None, pixels(2), Alignment()), expected) < 1e-5


def test_attention_to_alike_before_an_attention_pool_keeps_the_block_whole():
    tower = siglip()
    outputs = block_outputs(tower, pixels(2))
    block = tower.blocks[-1]
    x = outputs[1]
    parts = block.attn.qkv(block.norm1(x)).view(2, 15, 3, 4, 8).permute(2, 0, 3, 1, 4)
    weights = sum((part @ part.mT / 8**0.5).softmax(-1) for part in parts) / 3
    x = x + block.attn.proj((weights @ parts[2]).transpose(1, 2).reshape(2, 15, 32))
    y = tower.norm(x + block.mlp(block.norm2(x)))
    expected = tower.attn_pool(y.flatten(0, 1)[:, None]).view(2, 15, 32)
    assert difference(ours(tower, None, pixels(2), Alignment("qkv")), expected) < 1e-5
    assert difference(ours(tower, None, pixels(2), Alignment("raw")), tower.norm(outputs[2])) == 0


@pytest.fixture(scope="module")
def eva():
    """open_clip's EVA02, which wraps timm's, of three blocks; the projection is its trunk's classifier."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", partial(timm.create_model, depth=3, embed_dim=48, num_heads=4))
        model = TimmModel("eva02_base_patch16_clip_224", embed_dim=20, pool="token", proj=None)
    model.set_input_size((48, 80))
    return randomise(model)


@pytest.mark.parametrize("form", FORMS)
def test_values_of_eva02_equal_open_clips(eva, form):
    """Split projections without a key bias, a norm between attention and projection, rotary positions, SwiGLU."""
    residual, mlp = FORMS[form]
    trunk, images = eva.trunk, pixels(1, 48, 80)
    x, last = block_outputs(trunk, images)[1], trunk.blocks[-1]
    z = last.attn(last.norm1(x), attn_mask=only_itself(16)) + {"none": 0, "own": x, "class": x[:, :1]}[residual]
    if mlp:
        z = z + last.mlp(last.norm2(z))
    expected = trunk.head(trunk.norm(z))[:, 1:]
    assert difference(ours(trunk, trunk.head, images, Alignment("value", residual, mlp)), expected) < 1e-4


def test_the_class_token_through_the_same_path_is_what_open_clip_compares_with_texts(eva):
    trunk, images = eva.trunk, pixels(1, 48, 80)
    outputs = block_outputs(trunk, images)
    with_class = torch.cat([outputs[2][:, :1], outputs[2][:, :1]], dim=1)  # as if it were an image token
    found = aligned_map(trunk, trunk.head, {2: with_class}, Alignment("raw"))
    assert difference(found[:, 0], eva(images)) < 1e-4


def test_attention_to_alike_of_eva02_compares_content_without_positions(eva):
    trunk, images = eva.trunk, pixels(1, 48, 80)
    x, last = block_outputs(trunk, images)[1], trunk.blocks[-1]
    attention, normed = last.attn, last.norm1(x)
    parts = [
        p(normed).view(1, 16, 4, 12).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    weights = sum((part @ part.mT / 12**0.5).softmax(-1) for part in parts) / 3
    z = attention.proj(attention.norm((weights @ parts[2]).transpose(1, 2).reshape(1, 16, 48)))
    expected = trunk.head(trunk.norm(z))[:, 1:]
    assert difference(ours(trunk, trunk.head, images, Alignment("qkv")), expected) < 1e-4


def test_pe_core_pools_by_attention_and_projects_after_it():
    tower = randomise(timm.create_model("vit_pe_core_tiny_patch16_384", img_size=(48, 80), num_classes=0, depth=2))
    projection = randomise(nn.Linear(192, 20, bias=False), seed=2)
    y = tower.forward_features(pixels(1, 48, 80))
    expected = projection(tower.attn_pool(y[0, 1:, None]))[None]
    assert tower.num_prefix_tokens == 1
    assert difference(ours(tower, projection, pixels(1, 48, 80), Alignment()), expected) < 1e-5
    assert ours(tower, projection, pixels(1, 48, 80), Alignment("qkv")).shape == (1, 15, 20)
    with pytest.raises(UserError, match="stands the pooling"):
        ours(tower, projection, pixels(1, 48, 80), Alignment("raw"))


def test_tips_has_layer_scale_and_registers_and_its_own_space():
    """The value path of TIPS v2's zero-shot notebook."""
    tower = tiny(init_values=0.5, reg_tokens=1, no_embed_class=True)
    x, block = block_outputs(tower, pixels(1))[1], tower.blocks[-1]
    z = x + block.ls1(block.attn(block.norm1(x), attn_mask=only_itself(17)))
    z = z + block.ls2(block.mlp(block.norm2(z)))
    assert difference(ours(tower, None, pixels(1), Alignment("value", "own", True)), tower.norm(z)[:, 2:]) < 1e-5
    z = x[:, :1] + block.ls1(block.attn(block.norm1(x), attn_mask=only_itself(17)))
    assert difference(ours(tower, None, pixels(1), Alignment("value", "class")), tower.norm(z)[:, 2:]) < 1e-5


def test_layer_scale_of_eva_blocks():
    tower = timm.models.eva.Eva(
        img_size=(48, 80), patch_size=16, embed_dim=32, depth=2, num_heads=4, num_classes=0, init_values=0.5,
        attn_type="rope", use_rot_pos_emb=True, qkv_fused=True, global_pool="token",
    )  # fmt: skip
    randomise(tower)
    x, block = block_outputs(tower, pixels(1, 48, 80))[0], tower.blocks[-1]
    z = x + block.gamma_1 * block.attn(block.norm1(x), attn_mask=only_itself(16))
    z = z + block.gamma_2 * block.mlp(block.norm2(z))
    found = ours(tower, None, pixels(1, 48, 80), Alignment("value", "own", True))
    assert difference(found, tower.norm(z)[:, 1:]) < 1e-5


def test_a_norm_behind_the_pooling_ends_each_token():
    """Towers that average their tokens (CLIPA) have timm's norm there."""
    tower = tiny(global_pool="avg")
    assert isinstance(tower.norm, nn.Identity)
    found = ours(tower, None, pixels(1), Alignment("raw"))
    assert difference(found, tower.fc_norm(block_outputs(tower, pixels(1))[2])[:, 1:]) == 0


def test_tokens_that_are_none_are_not_attended_to():
    tower = siglip()
    x = block_outputs(tower, pixels(1))[1]
    padded = torch.cat([x, torch.full((1, 4, 32), 50.0)], dim=1)
    valid = torch.arange(19)[None] < 15
    expected = aligned_map(tower, None, {1: x}, Alignment("qkv"))
    found = aligned_map(tower, None, {1: padded}, Alignment("qkv"), valid)
    assert difference(found[:, :15], expected) < 1e-5
    assert difference(aligned_map(tower, None, {1: padded}, Alignment("qkv"))[:, :15], expected) > 1e-2


@pytest.mark.parametrize("mode", ["value", "qkv"])
def test_parts_of_a_split_projection_are_used_and_trained(native, mode):
    _, tower, projection = native
    expected = ours(tower, projection, pixels(1), Alignment(mode))
    fused = tower.blocks[-1].attn.qkv
    split = tower.blocks[-1].attn.qkv = SplitQKV(fused)
    try:
        for part in "qv":
            getattr(split, part).requires_grad_()
        found = ours(tower, projection, pixels(1), Alignment(mode))
        assert difference(found, expected) < 1e-6
        found.square().sum().backward()
        assert split.v.grad.abs().max() > 0
        assert (split.q.grad is not None) == (mode == "qkv")  # values have no queries
    finally:
        tower.blocks[-1].attn.qkv = fused


@pytest.mark.parametrize("mode", ["value", "qkv", "raw"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_half_precision_is_finite_and_near(native, mode, kind):
    tower, projection = native[1:] if kind == "clip" else (siglip(), None)
    exact = ours(tower, projection, pixels(2), Alignment(mode))
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(tower, projection, pixels(2), Alignment(mode)).float()
    assert found.isfinite().all() and 0 < difference(found, exact) < 0.1 * exact.abs().max()


def test_what_cannot_be_is_refused_in_a_sentence():
    clip, map_pooled = tiny(), siglip()
    for how in (Alignment("values"), Alignment(residual="cls"), Alignment(mlp="yes")):
        with pytest.raises(UserError, match="give mode value, qkv, raw"):
            blocks_of(clip, how)
    for how in (Alignment(residual="own"), Alignment(mlp=True), Alignment("qkv", "class")):
        with pytest.raises(UserError, match="pools by attention keeps its own"):
            blocks_of(map_pooled, how)
    with pytest.raises(UserError, match="mode='raw' keeps its own"):
        blocks_of(clip, Alignment("raw", "own"))
    with pytest.raises(UserError, match="no class token"):
        blocks_of(tiny(class_token=False, global_pool="avg"), Alignment(residual="class"))
    with pytest.raises(UserError, match="take a transformer"):
        blocks_of(timm.create_model("test_convnext", num_classes=0), Alignment())
    with pytest.raises(UserError, match="one block"):
        blocks_of(tiny(depth=1), Alignment())
    assert blocks_of(clip, Alignment()) == (1,) and blocks_of(clip, Alignment("raw")) == (2,)
    assert blocks_of(map_pooled, Alignment()) == (2,) and blocks_of(map_pooled, Alignment("qkv")) == (1,)
    assert blocks_of(siglip(depth=1), Alignment()) == (0,)
