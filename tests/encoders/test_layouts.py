"""Random weights, saved by another library in its own files and loaded through ours, give the same features."""

import numpy as np
import open_clip.timm_model
import pytest
import timm
import torch
import transformers as hf
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import load_file, save_file
from torch import nn

from siglip2_dense import FrozenEncoder
from siglip2_dense.contracts import Tap
from siglip2_dense.encoders.catalogue import find
from siglip2_dense.encoders.layouts import to_timm
from siglip2_dense.encoders.weights import build_tower, create
from siglip2_dense.errors import UserError

TOLERANCE = 1e-4
DEPTH, WIDTH, HEADS, HIDDEN, TEXT = 3, 64, 2, 96, 32
OURS = dict(depth=DEPTH, embed_dim=WIDTH, num_heads=HEADS)
THEIRS = dict(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=HIDDEN)
TEXTS = dict(THEIRS, vocab_size=50, bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=8)
RATIO = HIDDEN / WIDTH


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Zero biases and unit norms would hide what goes missing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.15
        parameter.data.copy_(noise + (parameter.ndim == 1 and name.endswith("weight")))
    return model.eval().requires_grad_(False)


def images(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(1)).byte()


def ours(name: str, path, pixels, **model_args):
    """The encoder, its features at every block with and without the norm, and its pixels as it normalises them."""
    encoder = FrozenEncoder(name, str(path), model_args=model_args)
    taps = [Tap(block, norm) for block in range(encoder.num_blocks) for norm in (False, True)]
    return encoder, encoder.features(pixels, taps, pooled=True), encoder._pixels(pixels, None)[0]


def tokens(features, block: int, norm: bool) -> torch.Tensor:
    """(B, prefix + N, C)."""
    tap = Tap(block, norm)
    patches = features.maps[tap].flatten(2).mT
    return torch.cat([features.prefix[tap], patches], dim=1) if features.prefix else patches


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    assert first.shape == second.shape
    return (first - second).abs().max() < TOLERANCE < second.abs().max()


def siglip(**changes):
    vision = dict(THEIRS, image_size=64, patch_size=16, **changes)
    return hf.SiglipModel(hf.SiglipConfig(vision_config=vision, text_config=TEXTS))


SIGLIP = dict(OURS, mlp_ratio=RATIO, img_size=64)


@pytest.mark.parametrize("form", ["two towers", "in parts", "vision, new file", "vision, older file"])
@pytest.mark.parametrize("name", ["siglip-so400m-14-224", "siglip2-base-16-256"])
def test_siglip_of_transformers(tmp_path, form, name):
    model = randomised(siglip())
    vision = hf.SiglipVisionModel(model.config.vision_config).eval()
    vision.load_state_dict(model.vision_model.state_dict())
    if form == "in parts":
        model.save_pretrained(tmp_path, max_shard_size="100KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    else:
        (model if form == "two towers" else vision).save_pretrained(tmp_path)
    if form == "vision, older file":
        file = tmp_path / "model.safetensors"
        older = {f"vision_model.{key}": tensor for key, tensor in load_file(file).items()}
        save_file(older | {"vision_model.embeddings.position_ids": torch.arange(16)[None]}, file)
    encoder, features, pixels = ours(name, tmp_path, images(64, 64), patch_size=16, **SIGLIP)
    theirs = vision(pixel_values=pixels, output_hidden_states=True)
    for block in range(DEPTH):
        assert same(tokens(features, block, False), theirs.hidden_states[block + 1])
        assert same(tokens(features, block, True), vision.post_layernorm(theirs.hidden_states[block + 1]))
    assert same(tokens(features, DEPTH - 1, True), theirs.last_hidden_state)
    assert same(features.pooled, theirs.pooler_output)
    assert encoder.projection is None


CLIP_ARGS = dict(OURS, mlp_ratio=RATIO, patch_size=16)


@pytest.mark.parametrize("form", ["two towers", "with projection", "vision alone"])
def test_clip_of_transformers(tmp_path, form):
    vision = dict(THEIRS, image_size=64, patch_size=16)
    model = randomised(hf.CLIPModel(hf.CLIPConfig(vision_config=vision, text_config=TEXTS, projection_dim=512)))
    saved = model
    if form == "with projection":
        saved = hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**vision, projection_dim=512))
    elif form == "vision alone":
        saved = hf.CLIPVisionModel(hf.CLIPVisionConfig(**vision))
    saved.load_state_dict((model.vision_model if form == "vision alone" else model).state_dict(), strict=False)
    saved.save_pretrained(tmp_path)
    encoder, features, pixels = ours("clip-base-32-224", tmp_path, images(64, 64, 1), img_size=64, **CLIP_ARGS)
    theirs = model.vision_model(pixel_values=pixels, output_hidden_states=True)
    for block in range(DEPTH):
        assert same(tokens(features, block, False), theirs.hidden_states[block + 1])
        expected = model.vision_model.post_layernorm(theirs.hidden_states[block + 1])
        assert same(tokens(features, block, True), expected)
    assert same(features.pooled, theirs.pooler_output)
    if form == "vision alone":
        assert encoder.projection is None
    else:
        assert encoder.projection.bias is None
        embedded = model.get_image_features(pixel_values=pixels).pooler_output
        assert same(encoder.projection(features.pooled), embedded)


def open_clip_model(quick_gelu=False, **vision):
    vision = (
        dict(layers=DEPTH, width=WIDTH, head_width=32, mlp_ratio=RATIO, patch_size=16, image_size=(48, 80)) | vision
    )
    text = dict(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
    return randomised(CLIP(TEXT, vision, text, quick_gelu=quick_gelu))


@pytest.mark.parametrize(
    ("name", "form"),
    [("clip-base-16-224", "OpenAI"), ("openclip-base-16-224", "release"), ("dfn-base-16-224", "training")],
)
def test_clip_of_open_clip_and_openai(tmp_path, name, form):
    model = open_clip_model(quick_gelu=name != "openclip-base-16-224")
    state = model.state_dict()
    if form == "OpenAI":  # half precision, and its sizes among the tensors
        model = model.half().float()
        state = {key: tensor.half() for key, tensor in model.state_dict().items()}
        state |= dict(input_resolution=torch.tensor(64), context_length=torch.tensor(8), vocab_size=torch.tensor(50))
    if form == "training":
        state = {"epoch": 3, "name": "run", "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    arguments = dict(CLIP_ARGS, img_size=(48, 80), num_classes=TEXT)
    encoder, features, pixels = ours(name, tmp_path, images(48, 80), **arguments)
    for norm in (False, True):
        theirs = model.visual.forward_intermediates(
            pixels, normalize_intermediates=norm, output_fmt="NLC", output_extra_tokens=True
        )
        for block in range(DEPTH):
            expected = [theirs[f"image_intermediates{part}"][block] for part in ("_prefix", "")]
            assert same(tokens(features, block, norm), torch.cat(expected, dim=1))
    assert same(encoder.projection(features.pooled), model.encode_image(pixels))


def test_clipa_of_open_clip(tmp_path):
    """No norm before the blocks; the mean of the patches' tokens, and the norm after it; a class token all the same."""
    model = open_clip_model(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    arguments = dict(CLIP_ARGS, img_size=(48, 80), num_classes=TEXT)
    encoder, features, pixels = ours("clipa-large-14-224", tmp_path, images(48, 80), **arguments)
    theirs = model.visual.forward_intermediates(pixels, output_fmt="NLC", output_extra_tokens=True)
    for block in range(DEPTH):
        expected = torch.cat([theirs[f"image_intermediates{part}"][block] for part in ("_prefix", "")], dim=1)
        assert same(tokens(features, block, False), expected)
        assert same(tokens(features, block, True), model.visual.ln_post(expected))
    assert encoder.facts.prefix == ("class",) and encoder.facts.pooled == "mean"
    assert same(features.pooled, model.visual.ln_post(expected[:, 1:].mean(dim=1)))
    assert same(encoder.projection(features.pooled), model.encode_image(pixels))


@pytest.mark.parametrize(
    ("name", "trunk", "arguments"),
    [
        ("eva02clip-base-16-224", "eva02_base_patch16_clip_224", dict(OURS, img_size=(48, 80))),
        ("siglip2-so400m-16-256", "vit_so400m_patch16_siglip_256", dict(OURS, img_size=(48, 80))),
        ("pecore-base-16-224", "vit_pe_core_base_patch16_224", dict(OURS, img_size=(48, 80))),
        ("mobileclip2-s0-256", "fastvit_mci0", dict(layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64))),
    ],
)
def test_towers_that_open_clip_takes_from_timm(tmp_path, monkeypatch, name, trunk, arguments):
    pooling = {"siglip2-so400m-16-256": "map", "pecore-base-16-224": "map", "mobileclip2-s0-256": "avg"}
    projected = name != "siglip2-so400m-16-256"
    text = dict(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
    vision = dict(timm_model_name=trunk, timm_pool=pooling.get(name, "token"), timm_proj=None if projected else "none")
    make = timm.create_model
    with monkeypatch.context() as patch:  # open_clip itself cannot make them small
        patch.setattr(open_clip.timm_model.timm, "create_model", lambda *a, **k: make(*a, **{**k, **arguments}))
        model = randomised(CustomTextCLIP(TEXT if projected else WIDTH, vision, text))
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    extra = dict(num_classes=TEXT) if projected else {}
    encoder = FrozenEncoder(name, str(tmp_path), model_args=arguments | extra)
    taps = [Tap(block, False) for block in range(encoder.num_blocks)]
    pixels = images(48, 80) if "img_size" in arguments else images(64, 96)
    features = encoder.features(pixels, taps, pooled=True)
    normalised = encoder._pixels(pixels, None)[0]
    theirs = model.visual.forward_intermediates(normalised)
    for block, expected in enumerate(theirs["image_intermediates"]):
        assert same(features.maps[Tap(block, False)], expected)
    embedded = encoder.projection(features.pooled) if projected else features.pooled
    assert same(embedded, model.encode_image(normalised))
    assert (encoder.projection is None) == (not projected)


def dinov2(registers: bool = False, gated: bool = False):
    settings = dict(THEIRS, image_size=56, patch_size=14, mlp_ratio=4, use_swiglu_ffn=gated)
    if registers:
        return hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**settings, num_register_tokens=4))
    return hf.Dinov2Model(hf.Dinov2Config(**settings))


@pytest.mark.parametrize("form", ["file", "memory"])
@pytest.mark.parametrize(
    ("name", "registers", "gated"),
    [
        ("dinov2-base-14", False, False),
        ("dinov2-base-14-reg", True, False),
        ("dinov2-giant-14", False, True),
        ("dinov2-giant-14-reg", True, True),
    ],
)
def test_dinov2_of_transformers(tmp_path, form, name, registers, gated):
    model = randomised(dinov2(registers, gated))
    if form == "file":
        model.save_pretrained(tmp_path)
    else:
        torch.save(model.state_dict(), tmp_path / "state.pth")
    arguments = dict(OURS, img_size=56, **(dict(mlp_ratio=5.5) if gated else {}))
    encoder, features, pixels = ours(name, tmp_path, images(56, 56), **arguments)
    theirs = model(pixel_values=pixels, output_hidden_states=True)
    for block in range(DEPTH):
        assert same(tokens(features, block, False), theirs.hidden_states[block + 1])
    assert same(tokens(features, DEPTH - 1, True), theirs.last_hidden_state)
    assert same(features.pooled, theirs.pooler_output)
    assert encoder.facts.prefix == ("class",) + ("register",) * 4 * registers


@pytest.mark.parametrize("prefix", ["", "vision_encoder."], ids=["DINOv2", "TIPS"])
@pytest.mark.parametrize("gated", [False, True])
def test_dinov2s_own_file_is_that_of_transformers(tmp_path, prefix, gated):
    """Its names as its repository has them; TIPS 2 has the same behind a prefix, beside its text tower."""
    model = randomised(dinov2(registers=True, gated=gated))
    state = {
        "cls_token": model.embeddings.cls_token,
        "pos_embed": model.embeddings.position_embeddings,
        "mask_token": model.embeddings.mask_token,
        "register_tokens": model.embeddings.register_tokens,
        "patch_embed.proj.weight": model.embeddings.patch_embeddings.projection.weight,
        "patch_embed.proj.bias": model.embeddings.patch_embeddings.projection.bias,
        "norm.weight": model.layernorm.weight,
        "norm.bias": model.layernorm.bias,
    }
    for i, layer in enumerate(model.encoder.layer):
        parts = {"norm1": [layer.norm1], "norm2": [layer.norm2], "attn.proj": [layer.attention.o_proj]}
        parts["attn.qkv"] = [layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj]
        if gated:
            parts |= {"mlp.w12": [layer.mlp.gate_proj, layer.mlp.up_proj], "mlp.w3": [layer.mlp.down_proj]}
        else:
            parts |= {"mlp.fc1": [layer.mlp.fc1], "mlp.fc2": [layer.mlp.fc2]}
        for part, modules in parts.items():
            state[f"blocks.{i}.{part}.weight"] = torch.cat([module.weight for module in modules])
            state[f"blocks.{i}.{part}.bias"] = torch.cat([module.bias for module in modules])
        state[f"blocks.{i}.ls1.gamma"] = layer.layer_scale1.lambda1
        state[f"blocks.{i}.ls2.gamma"] = layer.layer_scale2.lambda1
    state = {prefix + key: tensor.detach() for key, tensor in state.items()}
    if prefix:
        state["text_encoder.ln_final.weight"] = torch.ones(8)
    torch.save(state, tmp_path / "own.pth")
    (tmp_path / "hf").mkdir()
    model.save_pretrained(tmp_path / "hf")
    name = "dinov2-giant-14-reg" if gated else "dinov2-base-14-reg"
    arguments = dict(OURS, img_size=56, **(dict(mlp_ratio=5.5) if gated else {}))
    towers = [build_tower(find(name), str(tmp_path / file), arguments) for file in ("own.pth", "hf")]
    assert towers[0].fingerprint == towers[1].fingerprint


def flax(name: str, module, heads: int = 0) -> dict[str, np.ndarray]:
    """Kernel and bias of a linear layer as Flax has them: (in, out), or (in, heads, width), or (heads, width, out)."""
    kernel, bias = module.weight.detach().numpy().T, module.bias.detach().numpy()
    if heads and name.endswith("out"):
        kernel = kernel.reshape(heads, -1, kernel.shape[1])
    elif heads:
        kernel, bias = kernel.reshape(len(kernel), heads, -1), bias.reshape(heads, -1)
    return {f"{name}/kernel": kernel, f"{name}/bias": bias}


def flax_norm(name: str, module) -> dict[str, np.ndarray]:
    return {f"{name}/scale": module.weight.detach().numpy(), f"{name}/bias": module.bias.detach().numpy()}


def big_vision(vision, stacked: bool) -> dict[str, np.ndarray]:
    """The image tower of transformers' SigLIP as big_vision's ``models/vit.py`` names and shapes it."""
    embeddings, head = vision.embeddings, vision.head
    kernel = embeddings.patch_embedding.weight.detach().numpy()
    table = embeddings.position_embedding.weight.detach().numpy()
    naflex = kernel.ndim == 2
    tree = {
        "embedding/kernel": kernel.T if naflex else kernel.transpose(2, 3, 1, 0),
        "embedding/bias": embeddings.patch_embedding.bias.detach().numpy(),
        "pos_embedding": table.reshape(16, 16, -1) if naflex else table[None],
        **flax_norm("Transformer/encoder_norm", vision.post_layernorm),
        "MAPHead_0/probe": head.probe.detach().numpy(),
        **flax_norm("MAPHead_0/LayerNorm_0", head.layernorm),
        **flax("MAPHead_0/MlpBlock_0/Dense_0", head.mlp.fc1),
        **flax("MAPHead_0/MlpBlock_0/Dense_1", head.mlp.fc2),
        **flax("MAPHead_0/MultiHeadDotProductAttention_0/out", head.attention.out_proj, HEADS),
    }
    for i, part in enumerate(("query", "key", "value")):
        linear = nn.Linear(WIDTH, WIDTH)
        linear.weight.data = head.attention.in_proj_weight.data[i * WIDTH : (i + 1) * WIDTH]
        linear.bias.data = head.attention.in_proj_bias.data[i * WIDTH : (i + 1) * WIDTH]
        tree |= flax(f"MAPHead_0/MultiHeadDotProductAttention_0/{part}", linear, HEADS)
    blocks = []
    for layer in vision.encoder.layers:
        attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
        block = flax_norm("LayerNorm_0", layer.layer_norm1) | flax_norm("LayerNorm_1", layer.layer_norm2)
        block |= flax("MlpBlock_0/Dense_0", layer.mlp.fc1) | flax("MlpBlock_0/Dense_1", layer.mlp.fc2)
        for part, linear in attention.items():
            block |= flax(f"MultiHeadDotProductAttention_0/{part}", getattr(layer.self_attn, linear), HEADS)
        blocks.append(block)
    for name in blocks[0]:
        if stacked:
            tree[f"Transformer/encoderblock/{name}"] = np.stack([block[name] for block in blocks])
        else:
            tree |= {f"Transformer/encoderblock_{i}/{name}": block[name] for i, block in enumerate(blocks)}
    return {f"params/img/{name}": array for name, array in tree.items()}


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "listed"])
@pytest.mark.parametrize("naflex", [True, False], ids=["naflex", "fixed"])
def test_big_vision_file_is_that_of_transformers(tmp_path, stacked, naflex):
    name, arguments = "siglip2-base-16-256", SIGLIP
    model = siglip()
    if naflex:
        name, arguments = "siglip2-base-16-naflex", dict(OURS, mlp_ratio=RATIO)
        vision = dict(THEIRS, num_patches=256, patch_size=16)
        model = hf.Siglip2Model(hf.Siglip2Config(vision_config=vision, text_config=TEXTS))
    model = randomised(model)
    arrays = big_vision(model.vision_model, stacked)
    arrays |= {"params/txt/Embed_0/embedding": np.zeros((5, 4)), "params/t": np.zeros(1), "params/b": np.zeros(1)}
    np.savez(tmp_path / "siglip2.npz", **arrays)
    (tmp_path / "hf").mkdir()
    model.save_pretrained(tmp_path / "hf")
    ours, theirs = (build_tower(find(name), str(tmp_path / file), arguments) for file in ("siglip2.npz", "hf"))
    assert ours.fingerprint == theirs.fingerprint
    save_file(ours.tower.state_dict(), tmp_path / "timm.safetensors")
    assert build_tower(find(name), str(tmp_path / "timm.safetensors"), arguments).fingerprint == ours.fingerprint


def test_naflex_values_arrive(tmp_path):
    """Which value lands where; that the encoder then computes the same is shown with its packing."""
    vision = dict(THEIRS, num_patches=256, patch_size=16)
    model = randomised(hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**vision)))
    model.save_pretrained(tmp_path)
    tower = build_tower(find("siglip2-base-16-naflex"), str(tmp_path), dict(OURS, mlp_ratio=RATIO)).tower
    assert torch.equal(tower.embeds.proj.weight, model.embeddings.patch_embedding.weight)
    assert torch.equal(tower.embeds.pos_embed[0, 3, 5], model.embeddings.position_embedding.weight[3 * 16 + 5])
    layer = model.encoder.layers[1].self_attn
    assert torch.equal(tower.blocks[1].attn.qkv.weight[WIDTH : 2 * WIDTH], layer.k_proj.weight)
    assert torch.equal(tower.attn_pool.kv.bias, model.head.attention.in_proj_bias[WIDTH:])


def test_bfloat16_of_jax(tmp_path):
    model = randomised(siglip())
    arrays = big_vision(model.vision_model, stacked=True)
    halves = {k: torch.from_numpy(np.ascontiguousarray(v)).bfloat16() for k, v in arrays.items()}
    np.savez(tmp_path / "half.npz", **{k: v.view(torch.int16).numpy().view("V2") for k, v in halves.items()})
    np.savez(tmp_path / "full.npz", **{k: v.float().numpy() for k, v in halves.items()})
    first, second = (
        build_tower(find("siglip2-base-16-256"), str(tmp_path / f"{name}.npz"), SIGLIP) for name in ("half", "full")
    )
    assert first.fingerprint == second.fingerprint


def test_a_projection_of_the_wrong_width_is_named(tmp_path):
    from siglip2_dense.errors import UserError

    torch.save(open_clip_model().state_dict(), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"head.weight has shape \(32, 64\) instead of \(512, 64\)"):
        build_tower(find("clip-base-16-224"), str(tmp_path / "model.pt"), dict(CLIP_ARGS, img_size=(48, 80)))


def test_what_a_layout_does_not_explain_keeps_its_name():
    with torch.device("meta"):
        tower = create(find("siglip2-base-16-256"), SIGLIP)
    one = torch.zeros(WIDTH, WIDTH)
    state = {
        "embeddings.patch_embedding.weight": one,
        "encoder.layers.0.self_attn.q_proj.weight": one,
        "new.weight": one,
    }
    converted = to_timm(state, tower)
    assert set(converted) == {"patch_embed.proj.weight", "blocks.0.attn.q.weight", "new.weight"}
    assert to_timm({"conv.weight": one}, tower) == {"conv.weight": one}


def test_of_several_image_towers_none_is_guessed(tmp_path):
    """A training file may hold an optimizer's moments, or a teacher, in the same form as the weights."""
    tower = create(find("test_vit"))
    one = {"ln_post.weight": torch.zeros(3)}
    both = {f"{whose}.{name}": value for whose in ("student", "teacher") for name, value in one.items()}
    with pytest.raises(UserError, match=r"several image towers, under 'student\.', 'teacher\.'"):
        to_timm(both, tower)
    own, moment = "params/img/embedding/kernel", "opt/0/mu/img/embedding/kernel"
    for names in ((own, moment), (moment, own)):
        state = {name: torch.full((4, 4, 3, 2), float(name == own)) for name in names}
        assert to_timm(state, tower)["patch_embed.proj.weight"].mean() == 1
