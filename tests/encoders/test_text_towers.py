"""Text towers, and the layouts that their weights come in, against open_clip and transformers."""

import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file

from siglip2_dense.encoders import TextEncoder, text_towers
from siglip2_dense.encoders.catalogue import catalogue

SIZES = dict(width=32, layers=3, heads=4, vocab_size=300)
TINY = dict(**SIZES, embed_dim=24)  # in open_clip's names
VISION = dict(layers=1, width=32, head_width=16, patch_size=16, image_size=32)
THEIRS = dict(  # in transformers' names
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=300, intermediate_size=128
)
IMAGES = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)


def randomise(model, seed=0):
    """All parameters random: zero biases and unit norms hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + ("norm" in name or "ln_" in name))
    return model.eval()


def ids(context, count=3, vocabulary=300):
    """Ids with CLIP's end (the highest) somewhere inside."""
    drawn = torch.randint(2, vocabulary - 1, (count, context), generator=torch.Generator().manual_seed(1))
    for row, end in zip(drawn, (3, context - 1, context // 2), strict=False):
        row[end] = vocabulary - 1
        row[end + 1 :] = 0
    return drawn


def text_cfg(model, **changes):
    return {**open_clip.get_model_config(model)["text_cfg"], **SIZES, **changes}


def assert_equal(encoder, numbers, expected):
    difference = (encoder(numbers) - expected).abs().max().item()
    print(f"max abs difference {difference:.1e} of {expected.abs().max():.2f}")
    assert difference <= 1e-5 and expected.abs().max() > 0.1


@pytest.mark.parametrize("name, quick", [("clip-base-16-224", True), ("openclip-base-16-224", False)])
@torch.no_grad()
def test_equals_clip_of_open_clip(name, quick, tmp_path):
    theirs = randomise(CLIP(24, VISION, text_cfg("ViT-B-16"), quick_gelu=quick))
    save_file(theirs.state_dict(), tmp_path / "clip.safetensors")
    encoder = TextEncoder(name, weights=tmp_path, model_args=TINY)
    assert_equal(encoder, ids(77), theirs.encode_text(ids(77)))
    assert encoder.scale == pytest.approx(theirs.logit_scale.exp().item()) and encoder.bias is None


@pytest.mark.parametrize(
    "name, model",
    [
        ("siglip2-base-16-256", "ViT-B-16-SigLIP2-256"),
        ("eva02clip-base-16-224", "EVA02-B-16"),
        ("pecore-base-16-224", "PE-Core-B-16"),
        ("clipa-large-14-224", "ViT-L-14-CLIPA"),
        ("mobileclip2-s0-256", "MobileCLIP2-S0"),
        ("msiglip-so400m-16-256", None),
    ],
)
@torch.no_grad()
def test_equals_separate_text_towers_of_open_clip(name, model, tmp_path):
    """As a whole model in a training checkpoint. mSigLIP So400m has no projection, and open_clip the wrong GELU."""
    config = text_cfg(
        model or "ViT-SO400M-16-SigLIP-i18n-256", **({} if model else {"act_kwargs": {"approximate": "tanh"}})
    )
    theirs = randomise(CustomTextCLIP(24, VISION, config, init_logit_bias=-10 if "siglip" in name else None))
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    encoder = TextEncoder(name, weights=tmp_path / "epoch_3.pt", model_args=TINY)
    numbers = ids(config["context_length"])
    assert_equal(encoder, numbers, theirs.encode_text(numbers))
    assert encoder.width == (24 if model else 32)
    if "siglip" in name:
        assert encoder.bias == pytest.approx(theirs.logit_bias.item())


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("name", ["siglip-base-16-256", "siglip2-base-16-256"])
@torch.no_grad()
def test_equals_siglip_of_transformers(name, alone, tmp_path):
    """Its GELU is the approximate one for both; the whole model is saved in parts."""
    config = dict(**THEIRS, projection_size=24 if alone else 32, max_position_embeddings=64)
    if alone:
        theirs = randomise(transformers.SiglipTextModel(transformers.SiglipTextConfig(**config)))
    else:
        theirs = randomise(
            transformers.SiglipModel(transformers.SiglipConfig(text_config=config, vision_config=IMAGES))
        )
    theirs.save_pretrained(tmp_path, max_shard_size="1GB" if alone else "100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or not alone
    text = theirs if alone else theirs.text_model
    encoder = TextEncoder(name, weights=tmp_path, model_args={**TINY, "embed_dim": 24 if alone else 32})
    assert_equal(encoder, ids(64), text(input_ids=ids(64)).pooler_output)
    assert encoder.scale == (None if alone else pytest.approx(theirs.logit_scale.exp().item()))
    assert encoder.bias == (None if alone else pytest.approx(theirs.logit_bias.item()))


@pytest.mark.parametrize("alone", [True, False])
@torch.no_grad()
def test_naflex_equals_siglip2_of_transformers(alone, tmp_path):
    config = dict(**THEIRS, projection_size=32, max_position_embeddings=64)
    if alone:
        theirs = randomise(transformers.Siglip2TextModel(transformers.Siglip2TextConfig(**config)))
    else:
        theirs = randomise(
            transformers.Siglip2Model(transformers.Siglip2Config(text_config=config, vision_config=IMAGES))
        )
    theirs.save_pretrained(tmp_path)
    encoder = TextEncoder("siglip2-base-16-naflex", weights=tmp_path, model_args={**TINY, "embed_dim": 32})
    text = theirs if alone else theirs.text_model
    assert_equal(encoder, ids(64), text(input_ids=ids(64)).pooler_output)


@pytest.mark.parametrize("whole", [True, False])
@torch.no_grad()
def test_equals_clip_of_transformers(whole, tmp_path):
    # with an end id of 2 transformers pools at the highest id, as CLIP does
    config = dict(**THEIRS, hidden_act="quick_gelu", projection_dim=24, eos_token_id=2, bos_token_id=1)
    if whole:
        theirs = randomise(
            transformers.CLIPModel(transformers.CLIPConfig(text_config=config, vision_config=IMAGES, projection_dim=24))
        )
        expected = theirs.get_text_features(ids(77)).pooler_output
    else:
        theirs = randomise(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config)))
        expected = theirs(ids(77)).text_embeds
    theirs.save_pretrained(tmp_path)
    encoder = TextEncoder("clip-base-16-224", weights=tmp_path, model_args=TINY)
    assert_equal(encoder, ids(77), expected)


def big_vision(model, stacked):
    """big_vision's archive of a transformers SigLIP: dense kernels are (in, out), heads have an axis of their own."""
    state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    heads, width = 4, 32
    content = {
        "params/txt/Embed_0/embedding": state["text_model.embeddings.token_embedding.weight"],
        "params/txt/pos_embedding": state["text_model.embeddings.position_embedding.weight"][None],
        "params/txt/Encoder_0/encoder_norm/scale": state["text_model.final_layer_norm.weight"],
        "params/txt/Encoder_0/encoder_norm/bias": state["text_model.final_layer_norm.bias"],
        "params/txt/head/kernel": state["text_model.head.weight"].T,
        "params/txt/head/bias": state["text_model.head.bias"],
        "params/t": state["logit_scale"],
        "params/b": state["logit_bias"],
        "params/img/embedding/bias": np.zeros(3, np.float32),
    }
    blocks = []
    for number in range(3):
        at = f"text_model.encoder.layers.{number}"
        block = {}
        for one, norm in (("LayerNorm_0", "layer_norm1"), ("LayerNorm_1", "layer_norm2")):
            block[f"{one}/scale"], block[f"{one}/bias"] = (state[f"{at}.{norm}.{kind}"] for kind in ("weight", "bias"))
        for one, layer in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            block[f"MlpBlock_0/{one}/kernel"] = state[f"{at}.mlp.{layer}.weight"].T
            block[f"MlpBlock_0/{one}/bias"] = state[f"{at}.mlp.{layer}.bias"]
        attention = "MultiHeadDotProductAttention_0"
        for one, layer in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            kernel = np.empty((width, heads, width // heads), np.float32)
            for head in range(heads):
                kernel[:, head] = state[f"{at}.self_attn.{layer}.weight"][8 * head : 8 * head + 8].T
            block[f"{attention}/{one}/kernel"] = kernel
            block[f"{attention}/{one}/bias"] = state[f"{at}.self_attn.{layer}.bias"].reshape(heads, 8)
        out = np.empty((heads, width // heads, width), np.float32)
        for head in range(heads):
            out[head] = state[f"{at}.self_attn.out_proj.weight"][:, 8 * head : 8 * head + 8].T
        block[f"{attention}/out/kernel"] = out
        block[f"{attention}/out/bias"] = state[f"{at}.self_attn.out_proj.bias"]
        blocks.append(block)
    if stacked:
        for key in blocks[0]:
            content[f"params/txt/Encoder_0/encoderblock/{key}"] = np.stack([block[key] for block in blocks])
    else:
        for number, block in enumerate(blocks):
            content |= {f"params/txt/Encoder_0/encoderblock_{number}/{key}": value for key, value in block.items()}
    return content


@pytest.mark.parametrize("stacked", [True, False])
@torch.no_grad()
def test_reads_archives_of_big_vision(stacked, tmp_path):
    config = transformers.SiglipConfig(
        text_config=dict(**THEIRS, projection_size=32, max_position_embeddings=64), vision_config=IMAGES
    )
    theirs = randomise(transformers.SiglipModel(config))
    np.savez(tmp_path / "siglip.npz", **big_vision(theirs, stacked))
    encoder = TextEncoder("siglip2-base-16-256", weights=tmp_path, model_args={**TINY, "embed_dim": 32})
    assert_equal(encoder, ids(64), theirs.text_model(input_ids=ids(64)).pooler_output)
    assert encoder.scale == pytest.approx(theirs.logit_scale.exp().item(), rel=1e-6)
    assert encoder.bias == pytest.approx(theirs.logit_bias.item())


@pytest.mark.parametrize("alone", [True, False])
@torch.no_grad()
def test_equals_tips_of_transformers(alone, tmp_path):
    if alone:
        theirs = randomise(transformers.Tipsv2TextModel(transformers.Tipsv2TextConfig(**THEIRS)))
    else:
        theirs = randomise(
            transformers.Tipsv2Model(transformers.Tipsv2Config(text_config=THEIRS, vision_config=IMAGES))
        )
        theirs.temperature.fill_(0.01)
    theirs.save_pretrained(tmp_path)
    encoder = TextEncoder("tipsv2-base-14-448", weights=tmp_path, model_args=SIZES)
    text = theirs if alone else theirs.text_model
    mask = (ids(64) != 0).long()
    assert_equal(encoder, ids(64), text(input_ids=ids(64), attention_mask=mask).pooler_output)
    assert encoder.width == 32 and encoder.scale == (None if alone else pytest.approx(100))


def test_every_encoder_with_texts_has_a_plan():
    """Context, rows, width and kind of tokenizer of each family; none is built at its size."""
    known = {name: text_towers.plan_of(entry) for name, entry in catalogue().items() if entry.text}
    assert len(known) > 60
    for plan in known.values():
        if plan.kind == "open_clip":  # the tag exists, and the weights are for the activation that is built
            weights = open_clip.get_pretrained_cfg(*plan.where.split("/"))
            assert weights and plan.quick_gelu == bool(weights.get("quick_gelu")), plan.encoder
    for name, plan in known.items():
        assert plan.width == catalogue()[name].embed_dim, name
    rules = {name: (plan.rules.style, plan.rules.context, plan.rules.rows) for name, plan in known.items()}
    assert rules["clip-large-14-336"] == ("clip", 77, 49408)
    assert rules["pecore-base-16-224"] == ("clip", 32, 49408)
    assert rules["pecore-giant-14-448"] == ("clip", 72, 49408)
    assert rules["siglip-base-16-256"] == ("t5", 64, 32000)
    assert rules["siglip-so400m-14-224"] == ("t5", 16, 32000)
    assert rules["msiglip-so400m-16-256"] == ("t5", 64, 250000)
    assert rules["clipa-large-14-224"] == ("bert", 32, 32000)
    assert rules["tipsv2-giant-14-448"] == ("tips", 64, 32000)
    for name in ("siglip2-base-16-naflex", "siglip2-so400m-14-384", "siglip2-giantopt-16-256"):
        assert rules[name] == ("gemma", 64, 256000)
    for name, plan in known.items():
        assert (plan.config.get("act_kwargs") == {"approximate": "tanh"}) == ("siglip" in name)
        assert plan.quick_gelu == (name.startswith(("clip-", "metaclip", "dfn")))
        assert (plan.bias is not None) == ("siglip" in name)
        assert plan.rules.repository or plan.rules.style == "clip"
    sizes = {name: (plan.config["width"], plan.config["layers"], plan.config["heads"]) for name, plan in known.items()}
    assert sizes["siglip2-giantopt-16-256"] == (1152, 27, 16)
    assert sizes["siglip2-so400m-16-naflex"] == (1152, 27, 16)
    assert sizes["siglip2-base-16-naflex"] == (768, 12, 12)
    assert sizes["tipsv2-so400m-14-448"] == (1152, 27, 16)


def test_siglip_pools_the_last_position_and_clip_the_end():
    """A changed pad changes SigLIP's vector; what stands after CLIP's end does not matter."""
    siglip = TextEncoder("siglip2-base-16-256", weights="random", model_args=TINY)
    clip = TextEncoder("clip-base-16-224", weights="random", model_args=TINY)
    for encoder, matters in ((siglip, True), (clip, False)):
        numbers = ids(encoder.plan.rules.context)[:1]
        changed = numbers.clone()
        changed[0, -1] = 7
        assert torch.allclose(encoder(numbers), encoder(changed), atol=1e-6) != matters
