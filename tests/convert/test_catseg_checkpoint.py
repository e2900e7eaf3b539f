"""A checkpoint in CAT-Seg's published layout, with a small random CLIP, against the whole model written out."""

import catseg_reference as reference
import pytest
import torch
import torch.nn.functional as F

from siglip2_dense import head_file
from siglip2_dense.cli.common import run
from siglip2_dense.cli.convert_head import main
from siglip2_dense.contracts import Sample
from siglip2_dense.convert import catseg
from siglip2_dense.errors import UserError
from siglip2_dense.registry import MODELS, build

WIDTH, DEPTH, HEADS, E, TEXT = 48, 3, 4, 32, 16
CLIP, VISUAL = catseg.CLIP, f"{catseg.CLIP}visual."
MEAN, STD = (122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)
NAMES = ["cat", "wall-brick", "sky"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(catseg, "ENCODERS", {WIDTH: "clip-base-16-224"})
    config = catseg.model_config

    def smaller(encoder, weights="hub"):
        found = config(encoder, weights)
        found["encoder"]["model_args"] = dict(depth=DEPTH, embed_dim=WIDTH, num_heads=HEADS, num_classes=E, img_size=64)
        found["text"] |= dict(model_args=dict(embed_dim=E, width=TEXT, heads=HEADS, layers=2), cache=False)
        return found

    monkeypatch.setattr(catseg, "model_config", smaller)


def tower(prefix, width, blocks):
    """The blocks of a transformer, in CAT-Seg's copy of CLIP."""
    shapes = {}
    for i in range(blocks):
        block = f"{prefix}transformer.resblocks.{i}."
        shapes |= {f"{block}attn.{part}_proj_weight": (width, width) for part in "qkv"}
        shapes |= {f"{block}attn.in_proj_bias": (3 * width,)}
        modules = {
            "attn.out_proj": (width, width), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width),
            "ln_1": (width,), "ln_2": (width,),
        }  # fmt: skip
        for name, shape in modules.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    return shapes


def published(seed=0):
    """Tensors by their published names; those of the head have the shapes of CLIP B/16's but for the two widths."""
    shapes = {
        "upsample1.weight": (WIDTH, 256, 2, 2), "upsample1.bias": (256,),
        "upsample2.weight": (WIDTH, 128, 4, 4), "upsample2.bias": (128,),
        f"{VISUAL}class_embedding": (WIDTH,), f"{VISUAL}positional_embedding": (17, WIDTH), f"{VISUAL}proj": (WIDTH, E),
        f"{VISUAL}conv1.weight": (WIDTH, 3, 16, 16), f"{CLIP}positional_embedding": (77, TEXT),
        f"{CLIP}text_projection": (TEXT, E), f"{CLIP}logit_scale": (), f"{CLIP}token_embedding.weight": (49408, TEXT),
        **{f"{VISUAL}{name}.{kind}": (WIDTH,) for name in ("ln_pre", "ln_post") for kind in ("weight", "bias")},
        **{f"{CLIP}ln_final.{kind}": (TEXT,) for kind in ("weight", "bias")},
        **tower(VISUAL, WIDTH, DEPTH), **tower(CLIP, TEXT, 2),
    }  # fmt: skip
    a = reference.A
    modules = {
        "conv1": (128, 1, 7, 7), "guidance_projection.0": (128, E, 3, 3), "text_guidance_projection.0": (128, E),
        "decoder_guidance_projection.0.0": (32, 256, 3, 3), "decoder_guidance_projection.1.0": (16, 128, 3, 3),
        "head": (1, 32, 3, 3),
    }  # fmt: skip
    for number, (channels, guided, out) in {1: (128, 32, 64), 2: (64, 16, 32)}.items():
        convolutions = f"decoder{number}.conv.double_conv."
        shapes |= {f"{a}{convolutions}0.weight": (out, channels, 3, 3), f"{a}{convolutions}3.weight": (out, out, 3, 3)}
        shapes |= {f"{a}{convolutions}{i}.{kind}": (out,) for i in (1, 4) for kind in ("weight", "bias")}
        shapes |= {f"{a}decoder{number}.up.weight": (channels, channels - guided, 2, 2)}
        shapes |= {f"{a}decoder{number}.up.bias": (channels - guided,)}
    for i in range(2):
        spatial, between = f"layers.{i}.swin_block.", f"layers.{i}.attention."
        shapes |= {f"{a}{spatial}block_2.attn_mask": (4, 144, 144)}
        shapes |= {f"{a}{between}{name}": (1, 1, 128) for name in ("padding_tokens", "padding_guidance")}
        modules |= {f"{spatial}guidance_norm": (128,)}
        modules |= {f"{between}norm1": (128,), f"{between}norm2": (128,)}
        modules |= {f"{between}attention.q": (128, 256), f"{between}attention.k": (128, 256)}
        modules |= {f"{between}attention.v": (128, 128), f"{between}MLP.0": (512, 128), f"{between}MLP.2": (128, 512)}
        for block in ("block_1.", "block_2."):
            modules |= {f"{spatial}{block}norm{n}": (128,) for n in (1, 2)}
            modules |= {f"{spatial}{block}attn.{part}": (128, 256) for part in "qk"}
            modules |= {f"{spatial}{block}attn.{part}": (128, 128) for part in ("v", "proj")}
            modules |= {f"{spatial}{block}mlp.fc1": (512, 128), f"{spatial}{block}mlp.fc2": (128, 512)}
    for name, shape in modules.items():
        shapes |= {f"{a}{name}.weight": shape, f"{a}{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        inner = max(torch.Size(shape[1:]).numel(), 1)
        values = torch.randn(shape, generator=generator)
        is_scale = name.endswith("weight") and len(shape) == 1
        tensors[name] = 1 + 0.1 * values if is_scale else values * (0.1 if len(shape) < 2 else inner**-0.5)
    return tensors


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "model_base.pth"
    torch.save({"model": published(), "iteration": 79_999}, path)
    return path


# CLIP as CAT-Seg has it, written out


def block(p, name, x, mask=None, dense=False):
    """x: (B, N, C). dense: of attention the values alone, and the first token's input as the residual of all."""
    z = reference.norm(p, f"{name}.ln_1", x)
    biases = p[f"{name}.attn.in_proj_bias"].chunk(3)
    q, k, v = (z @ p[f"{name}.attn.{part}_proj_weight"].T + bias for part, bias in zip("qkv", biases, strict=True))
    if not dense:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.mT * q.shape[-1] ** -0.5 + (0 if mask is None else mask)
        v = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    x = (x[:, :1] if dense else x) + reference.linear(p, f"{name}.attn.out_proj", v)
    hidden = reference.linear(p, f"{name}.mlp.c_fc", reference.norm(p, f"{name}.ln_2", x))
    return x + reference.linear(p, f"{name}.mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))


def image_maps(p, image):
    """(3, 384, 384), 0-255 -> (E, 24, 24) in the text space and the blocks at the thirds of the depth (C, 24, 24)."""
    pixels = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    x = F.conv2d(pixels[None], p[f"{VISUAL}conv1.weight"], stride=16).flatten(2).mT
    table = p[f"{VISUAL}positional_embedding"]
    grid = table[1:].T.reshape(1, WIDTH, 4, 4)
    grid = F.interpolate(grid, size=(24, 24), mode="bicubic", align_corners=False).flatten(2).mT
    first = p[f"{VISUAL}class_embedding"].view(1, 1, -1) + table[0]
    x = reference.norm(p, f"{VISUAL}ln_pre", torch.cat([first, x + grid], dim=1))
    outputs = []
    for i in range(DEPTH):
        x = block(p, f"{VISUAL}transformer.resblocks.{i}", x, dense=i == DEPTH - 1)
        outputs.append(x[0, 1:].T.reshape(-1, 24, 24))
    x = reference.norm(p, f"{VISUAL}ln_post", x) @ p[f"{VISUAL}proj"]
    return x[0, 1:].T.reshape(-1, 24, 24), [outputs[0], outputs[1]]


def texts(p, names):
    """(T, 1, E) of the published prompt."""
    from open_clip.tokenizer import SimpleTokenizer

    ids = SimpleTokenizer()([f"A photo of a {name} in the scene" for name in names])
    x = p[f"{CLIP}token_embedding.weight"][ids] + p[f"{CLIP}positional_embedding"]
    causal = torch.full((77, 77), -torch.inf).triu(1)
    for i in range(2):
        x = block(p, f"{CLIP}transformer.resblocks.{i}", x, causal)
    x = reference.norm(p, f"{CLIP}ln_final", x)[range(len(ids)), ids.argmax(-1)] @ p[f"{CLIP}text_projection"]
    return x[:, None]


def loaded(file, content, names=NAMES, weights=None):
    config = catseg.model_config("clip-base-16-224", str(weights or file))
    config["heads"]["segmentation"]["task"]["classes"] = names
    model = build(MODELS, config).eval()
    head, task = model.heads["segmentation"], model.tasks["segmentation"]
    described = {"segmentation": head_file.describe(head, task, config["heads"]["segmentation"])}
    head_file.load_into(model, described, content, file)
    return model


def test_logits_are_those_of_the_published_model(file):
    content, _ = catseg.convert(file, weights=str(file))
    model = loaded(file, content)
    image = torch.randint(0, 256, (3, 384, 384), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        found = model.raw(model.features([image]))["segmentation"][0]
    p = published()
    cells, middle = image_maps(p, image.float())
    expected = reference.logits(p, cells, texts(p, NAMES), middle)
    assert found.shape == (3, 96, 96) and expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4


def test_what_was_trained_of_clip_comes_from_the_checkpoint_and_the_rest_is_checked(file, tmp_path):
    start = tmp_path / "clip.pth"
    tensors = published()
    for name, tensor in published(seed=1).items():
        if name.endswith(("q_proj_weight", "v_proj_weight")):
            tensors[name] = tensor  # as before training
    torch.save(tensors, start)
    content, _ = catseg.convert(file, weights=str(start))
    own, _ = catseg.convert(file, weights=str(file))
    assert content.encoder.fingerprint != own.encoder.fingerprint
    assert all(torch.equal(content.tensors[key], own.tensors[key]) for key in own.tensors)
    a, b = loaded(file, content, weights=start), loaded(file, own)
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    assert torch.equal(*(m.predict([image], [Sample(original_size=(20, 30))])[0]["segmentation"] for m in (a, b)))
    wrong = {
        f"{VISUAL}transformer.resblocks.1.attn.k_proj_weight": r"encoder in 'blocks\.1\.attn\.qkv\.k'",
        f"{VISUAL}proj": r"encoder in 'projection\.weight'",
        f"{CLIP}ln_final.bias": r"text in 'ln_final\.bias'",
    }
    for name, sentence in wrong.items():
        torch.save({**tensors, name: tensors[name] * 1.1}, start)
        with pytest.raises(UserError, match=f"its CLIP differs from {sentence}"):
            catseg.convert(file, weights=str(start))


def test_each_tensor_is_used_or_left_for_a_reason(file, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert run(main, ["catseg", str(file), str(out), "--weights", str(file)]) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = {line.split()[1].rstrip(":"): line for line in printed if line.startswith(("used", "left"))}
    assert lines.keys() == published().keys()
    a = reference.A
    assert lines[f"{a}conv1.weight"].endswith("-> segmentation.embed.weight") and "used" in lines[f"{a}conv1.weight"]
    left = {name for name, line in lines.items() if line.startswith("left")}
    trained = {name for name in lines if name.endswith(("q_proj_weight", "v_proj_weight"))}
    assert left & trained == {f"{VISUAL}transformer.resblocks.{DEPTH - 1}.attn.q_proj_weight"}
    assert {name for name in left if not name.startswith(CLIP)} == {
        f"{a}layers.{i}.swin_block.block_2.attn_mask" for i in range(2)
    }
    content = head_file.read(out)
    assert content.heads["segmentation"]["task"]["classes"] == "coco_stuff" and content.protocol["origin"]["sha256"]
    assert content.encoder_config["position_kernel"] == "bicubic" and content.text["trainable"] == ["q", "v"]
    assert f"{len(lines) - len(left)} of {len(lines)} tensors used, {len(left)} left" in "\n".join(printed)


def changed(file, tmp_path, change):
    tensors = published()
    change(tensors)
    torch.save(tensors, tmp_path / "changed.pth")
    return str(tmp_path / "changed.pth")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: p.pop(f"{reference.A}decoder2.up.bias"), r"has no tensor '.*decoder2\.up\.bias'"),
        (lambda p: p.pop(f"{reference.A}conv1.weight"), "no checkpoint of CAT-Seg's CVPR version"),
        (lambda p: p[f"{reference.A}conv1.weight"].fill_(torch.nan), "'segmentation.embed.weight' holds NaN"),
        (lambda p: p[f"{VISUAL}ln_post.weight"].fill_(torch.nan), "its CLIP differs from encoder in 'norm.weight'"),
        (lambda p: p.update({f"{reference.A}layers.2.x": torch.zeros(1)}), "which a published CAT-Seg has not"),
        (lambda p: p.update({"upsample1.weight": torch.zeros(64, 256, 2, 2)}), "'upsample1.weight' is"),
        (lambda p: p.update({f"{VISUAL}conv1.weight": torch.zeros(64, 3, 16, 16)}), "its image tower is 64 wide"),
    ],
)
def test_other_files_are_refused(file, tmp_path, change, sentence):
    with pytest.raises(UserError, match=sentence):
        catseg.convert(changed(file, tmp_path, change), weights=str(file))
