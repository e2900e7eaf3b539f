"""Converted heads against the published architectures, written out, on random weights in the published layouts."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from siglip2_dense import head_file
from siglip2_dense.cli.common import run
from siglip2_dense.cli.convert_head import main
from siglip2_dense.contracts import Features, Geometry
from siglip2_dense.convert import Wishes, convert
from siglip2_dense.errors import UserError
from siglip2_dense.models.probe import DenseProbe
from siglip2_dense.registry import MODELS, TASKS, build

WIDTH, FUSION = 32, 256  # of a small encoder; of every published fusion
GRID = (3, 5)


def encoder(name="dinov2-base-14", depth=12, width=WIDTH):
    return dict(
        type="FrozenEncoder", name=name, weights="random", model_args=dict(embed_dim=width, depth=depth, num_heads=2)
    )


TIPS = encoder("tipsv2-base-14-448")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Torch:
    """Layers on a state dict of torch."""

    @staticmethod
    def made(kind, size, inner, outer, bias):
        shape = {"dense": (outer, inner), "conv": (outer, inner, size, size), "up": (inner, outer, size, size)}[kind]
        found = {".weight": torch.randn(shape) * (1.5 / (inner * (size**2 if kind == "conv" else 1))) ** 0.5}
        return found | ({".bias": torch.randn(outer) * 0.1} if bias else {})

    @staticmethod
    def conv(p, name, x, stride=1):
        weight = p[f"{name}.weight"]
        return F.conv2d(x, weight, p.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)

    @staticmethod
    def up(p, name, x, factor):
        return F.conv_transpose2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=factor)

    @staticmethod
    def dense(p, name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


class Flax:
    """Layers on parameters of Flax: channels last, kernels (height, width, in, out)."""

    @staticmethod
    def made(kind, size, inner, outer, bias):
        shape = (inner, outer) if kind == "dense" else (size, size, inner, outer)
        found = {"/kernel": torch.randn(shape) * (1.5 / (inner * (size**2 if kind == "conv" else 1))) ** 0.5}
        return found | ({"/bias": torch.randn(outer) * 0.1} if bias else {})

    @staticmethod
    def conv(p, name, x, stride=1):
        kernel = p[f"{name}/kernel"]
        bias = p.get(f"{name}/bias")
        return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride=stride, padding=kernel.shape[0] // 2)

    @staticmethod
    def up(p, name, x, factor):
        """lax.conv_transpose: zeros between the cells, then a correlation with the kernel as it stands."""
        kernel = p[f"{name}/kernel"]
        spread = x.new_zeros(*x.shape[:2], factor * (x.shape[2] - 1) + 1, factor * (x.shape[3] - 1) + 1)
        spread[..., ::factor, ::factor] = x
        return F.conv2d(spread, kernel.permute(3, 2, 0, 1), p[f"{name}/bias"], padding=factor - 1)

    @staticmethod
    def dense(p, name, x):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def dinov2_name(part, i=0):
    return (
        "decode_head."
        + {
            "readout": f"reassemble_blocks.readout_projects.{i}.0",
            "reassemble": f"reassemble_blocks.projects.{i}.conv",
            "resize": f"reassemble_blocks.resize_layers.{i}",
            "conv": f"convs.{i}.conv",
            "residual1": f"fusion_blocks.{i}.res_conv_unit1.conv1.conv",
            "residual2": f"fusion_blocks.{i}.res_conv_unit1.conv2.conv",
            "main1": f"fusion_blocks.{i}.res_conv_unit2.conv1.conv",
            "main2": f"fusion_blocks.{i}.res_conv_unit2.conv2.conv",
            "out": f"fusion_blocks.{i}.project.conv",
            "project": "project.conv",
        }[part]
    )


def tips_name(task):
    def name(part, i=0):
        return (
            f"{task}_head."
            + {
                "readout": f"reassemble.readout_projects.{i}",
                "reassemble": f"reassemble.out_projections.{i}",
                "resize": f"reassemble.resize_layers.{i}",
                "conv": f"convs.{i}",
                "residual1": f"fusion_blocks.{i}.residual_unit.conv1",
                "residual2": f"fusion_blocks.{i}.residual_unit.conv2",
                "main1": f"fusion_blocks.{i}.main_unit.conv1",
                "main2": f"fusion_blocks.{i}.main_unit.conv2",
                "out": f"fusion_blocks.{i}.out_conv",
                "project": "project",
            }[part]
        )

    return name


def flax_name(part, i=0):
    main = f"fusion_blocks_{i}/PreActResidualConvUnit_{1 if i else 0}"
    return (
        "decoder/dpt/"
        + {
            "readout": f"reassemble_blocks/readout_projects_{i}",
            "reassemble": f"reassemble_blocks/out_projection_{i}",
            "resize": f"reassemble_blocks/resize_layers_{i}",
            "conv": f"convs_{i}",
            "residual1": f"fusion_blocks_{i}/PreActResidualConvUnit_0/conv1",
            "residual2": f"fusion_blocks_{i}/PreActResidualConvUnit_0/conv2",
            "main1": f"{main}/conv1",
            "main2": f"{main}/conv2",
            "out": f"fusion_blocks_{i}/Conv_0",
            "project": "project",
        }[part]
    )


def dpt_weights(kit, name):
    """Random weights of a DPT up to its last 3x3 convolution, in a kit's layout and by a project's names."""
    p = {}

    def add(part, i, *spec):
        p.update({name(part, i) + leaf: tensor for leaf, tensor in kit.made(*spec).items()})

    for i in range(4):
        inner = WIDTH // (8, 4, 2, 1)[i]
        add("readout", i, "dense", 1, 2 * WIDTH, WIDTH, True)
        add("reassemble", i, "conv", 1, WIDTH, inner, True)
        if i != 2:
            add("resize", i, "conv" if i == 3 else "up", (4, 2, 0, 3)[i], inner, inner, True)
        add("conv", i, "conv", 3, inner, FUSION, False)
        for part in ("residual1", "residual2") * (i > 0) + ("main1", "main2"):
            add(part, i, "conv", 3, FUSION, FUSION, False)
        add("out", i, "conv", 1, FUSION, FUSION, True)
    add("project", 0, "conv", 3, FUSION, FUSION, True)
    return p


def stretched(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def dpt(kit, name, p, maps, tokens, gelu):
    """The published decoder up to its last 3x3 convolution."""
    levels = []
    for i, (x, token) in enumerate(zip(maps, tokens, strict=True)):
        both = torch.cat([x, token[:, :, None, None].expand_as(x)], 1).permute(0, 2, 3, 1)
        x = F.gelu(kit.dense(p, name("readout", i), both), approximate=gelu).permute(0, 3, 1, 2)
        x = kit.conv(p, name("reassemble", i), x)
        if i < 2:
            x = kit.up(p, name("resize", i), x, (4, 2)[i])
        if i == 3:
            x = kit.conv(p, name("resize", i), x, stride=2)
        levels.append(kit.conv(p, name("conv", i), x))

    def unit(x, part, i):
        y = kit.conv(p, name(f"{part}1", i), F.relu(x))
        return kit.conv(p, name(f"{part}2", i), F.relu(y)) + x

    x = levels[3]
    for i in range(4):
        if i:
            skip = levels[3 - i]
            if skip.shape != x.shape:
                skip = F.interpolate(skip, size=x.shape[2:], mode="bilinear", align_corners=False)
            x = x + unit(skip, "residual", i)
        x = kit.conv(p, name("out", i), stretched(unit(x, "main", i)))
    return kit.conv(p, name("project"), x)


def expected_depth(scores, shift, largest):
    weights = F.relu(scores) + shift
    weights = weights / weights.sum(1, keepdim=True)
    return torch.einsum("bkhw,k->bhw", weights, torch.linspace(1e-3, largest, scores.shape[1]))[:, None]


def inputs(count):
    maps = [torch.randn(2, WIDTH, *GRID) for _ in range(count)]
    return maps, [torch.randn(2, WIDTH) for _ in range(count)]


def ours(content, name, maps, tokens=None):
    """The task and the raw map of a converted head on given maps; a register token stands behind each class token."""
    described = content.heads[name]
    task = build(TASKS, described["task"])
    head = build(MODELS, described["head"], facts=content.encoder, channels=task.channels).eval()
    own = {key.partition(".")[2]: tensor for key, tensor in content.tensors.items() if key.startswith(f"{name}.")}
    head.load_state_dict(own)
    prefix = None
    if tokens is not None:
        others = len(content.encoder.prefix) - 1
        prefix = {
            tap: torch.cat([token[:, None], torch.randn(2, others, WIDTH)], 1)
            for tap, token in zip(head.taps, tokens, strict=True)
        }
    size = tuple(side * content.encoder.strides[-1] for side in GRID)
    geometry = (Geometry(size, (0, 0, *size), size, size, size),) * 2
    with torch.no_grad():
        return task, head(Features(dict(zip(head.taps, maps, strict=True)), geometry, prefix))


def saved(path, tensors, **meta):
    torch.save({"state_dict": tensors, "meta": meta}, path)
    return path


def segmentation_weights(layers, classes):
    width = layers * WIDTH
    return {
        "decode_head.conv_seg.weight": torch.randn(classes, width, 1, 1),
        "decode_head.conv_seg.bias": torch.randn(classes),
        "decode_head.bn.weight": torch.randn(width),
        "decode_head.bn.bias": torch.randn(width),
        "decode_head.bn.running_mean": torch.randn(width),
        "decode_head.bn.running_var": torch.rand(width) + 0.5,
        "decode_head.bn.num_batches_tracked": torch.tensor(40_000),
    }


@pytest.mark.parametrize(
    ("layers", "classes", "blocks", "names"),
    [(1, 150, [11], "ade20k"), (4, 21, [8, 9, 10, 11], "pascal")],
)
def test_dinov2_segmentation(tmp_path, layers, classes, blocks, names):
    p = segmentation_weights(layers, classes)
    content = convert(saved(tmp_path / "seg.pth", p, CLASSES=["a"]), encoder())
    maps, _ = inputs(layers)
    x = torch.cat(maps, 1)
    side = [value[None, :, None, None] for key, value in p.items() if ".bn." in key and value.dim()]
    gain, bias, mean, variance = side
    x = (x - mean) / (variance + 1e-5).sqrt() * gain + bias
    expected = torch.einsum("bchw,kc->bkhw", x, p["decode_head.conv_seg.weight"][:, :, 0, 0])
    expected = expected + p["decode_head.conv_seg.bias"][None, :, None, None]
    task, raw = ours(content, "segmentation", maps)
    assert (raw - expected).abs().max() < 1e-4
    assert content.heads["segmentation"]["reads"]["taps"] == [[block, True] for block in blocks]
    assert content.heads["segmentation"]["task"]["classes"] == names and len(task.classes) == classes


@pytest.mark.parametrize(
    ("layers", "blocks", "depth"), [(1, [11], 12), (4, [2, 5, 8, 11], 12), (4, [4, 11, 17, 23], 24)]
)
def test_dinov2_linear_depth(tmp_path, layers, blocks, depth):
    p = {
        "decode_head.conv_depth.weight": torch.randn(256, 2 * layers * WIDTH, 1, 1),
        "decode_head.conv_depth.bias": torch.randn(256),
    }
    content = convert(saved(tmp_path / "depth.pth", p), encoder(depth=depth), Wishes(max_depth=80.0))
    maps, tokens = inputs(layers)
    both = [torch.cat([x, token[:, :, None, None].expand_as(x)], 1) for x, token in zip(maps, tokens, strict=True)]
    fine = [F.interpolate(x, size=(12, 20), mode="bilinear", align_corners=False) for x in both]
    scores = F.conv2d(torch.cat(fine, 1), p["decode_head.conv_depth.weight"], p["decode_head.conv_depth.bias"])
    task, raw = ours(content, "depth", maps, tokens)
    assert (task.depth_of(raw) - expected_depth(scores, 0.1, 80.0)).abs().max() < 1e-4
    assert content.heads["depth"]["reads"]["taps"] == [[block, False] for block in blocks]
    assert content.heads["depth"]["meaning"]["max_depth"] == 80.0


def dinov2_dpt_weights():
    p = dpt_weights(Torch, dinov2_name)
    for layer, spec in ((0, (3, FUSION, 128)), (2, (3, 128, 32)), (4, (1, 32, 1))):
        made = Torch.made("conv", *spec, True)
        p.update({f"decode_head.conv_depth.head.{layer}{leaf}": tensor for leaf, tensor in made.items()})
    return p


def test_dinov2_dpt_depth(tmp_path):
    p = dinov2_dpt_weights()
    assert len(p) == 56
    content = convert(saved(tmp_path / "dpt.pth", p), encoder(depth=24), Wishes(max_depth=10.0))
    maps, tokens = inputs(4)
    x = F.relu(dpt(Torch, dinov2_name, p, maps, tokens, "none"))
    x = stretched(Torch.conv(p, "decode_head.conv_depth.head.0", x))
    x = F.relu(Torch.conv(p, "decode_head.conv_depth.head.2", x))
    expected = F.relu(Torch.conv(p, "decode_head.conv_depth.head.4", x)) + 1e-3
    task, raw = ours(content, "depth", maps, tokens)
    assert raw.shape == (2, 1, 64, 96) and expected.std() > 0.1
    assert (task.depth_of(raw) - expected).abs().max() < 1e-4
    assert content.heads["depth"]["reads"] == {
        "taps": [[4, False], [11, False], [17, False], [23, False]],
        "pooled": "readout",
        "stride": 14,
    }


OUTPUTS = {"segmentation": 150, "depth": 256, "normals": 3}


@pytest.mark.parametrize(
    ("task", "layer", "activation"),
    [
        ("segmentation", "pixel_segmentation", None),
        ("depth", "pixel_depth_classif", None),
        ("depth", "pixel_depth_classif", "none"),
        ("normals", "pixel_normals", None),
    ],
)
def test_tips_from_flax(tmp_path, task, layer, activation):
    p = dpt_weights(Flax, flax_name)
    made = Flax.made("dense", 1, FUSION, OUTPUTS[task], True)
    p.update({f"decoder/{layer}{leaf}": tensor for leaf, tensor in made.items()})
    assert len(p) == 52
    with open(tmp_path / "head.zip", "wb") as stream:
        np.savez(stream, **{name: tensor.numpy() for name, tensor in p.items()})
    content = convert(tmp_path / "head.zip", TIPS, Wishes(activation=activation))
    maps, tokens = inputs(4)
    x = dpt(Flax, flax_name, p, maps, tokens, "tanh")
    if task == "depth" and activation != "none":
        x = F.relu(x)
    expected = Flax.dense(p, f"decoder/{layer}", x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    told, raw = ours(content, task, maps, tokens)
    assert raw.shape == (2, OUTPUTS[task], 32, 48)
    assert (raw - expected).abs().max() < 1e-5 * expected.abs().max()
    if task == "depth":
        assert (told.depth_of(raw) - expected_depth(expected, 1e-3, 10.0)).abs().max() < 1e-4
    assert content.heads[task]["reads"]["taps"] == [[2, True], [5, True], [8, True], [11, True]]


def tips_weights(*tasks):
    p = {"vision_encoder.cls_token": torch.zeros(1, 1, WIDTH)}
    for task in tasks:
        p |= dpt_weights(Torch, tips_name(task))
        made = Torch.made("dense", 1, FUSION, OUTPUTS[task], True)
        p |= {f"{task}_head.{task}_head{leaf}": tensor for leaf, tensor in made.items()}
    return p


def test_tips_of_one_file(tmp_path):
    """All heads beside the encoder, or the wanted one."""
    p = tips_weights("depth", "normals")
    save_file(p, tmp_path / "model.safetensors")
    content = convert(tmp_path / "model.safetensors", TIPS)
    assert list(content.heads) == ["depth", "normals"]
    maps, tokens = inputs(4)
    for task in content.heads:
        x = dpt(Torch, tips_name(task), p, maps, tokens, "tanh")
        x = F.relu(x) if task == "depth" else x
        expected = Torch.dense(p, f"{task}_head.{task}_head", x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert (ours(content, task, maps, tokens)[1] - expected).abs().max() < 1e-5 * expected.abs().max()
    alone = convert(tmp_path / "model.safetensors", TIPS, Wishes(only="normals"))
    assert list(alone.heads) == ["normals"] and {key.split(".")[0] for key in alone.tensors} == {"normals"}
    with pytest.raises(UserError, match=r"--only segmentation: .* holds depth and normals"):
        convert(tmp_path / "model.safetensors", TIPS, Wishes(only="segmentation"))


class Hostile:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "ran"),)


def test_numpy_numbers_beside_the_tensors(tmp_path):
    """DINOv2's depth files note their best score as a NumPy 1 number; other objects are refused unread."""
    p = segmentation_weights(1, 21)
    path = saved(tmp_path / "new.pth", p, hook_msgs={"best_score": np.float64(0.1)})
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            data = new.read(name)
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in data
                data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            old.writestr(name, data)
    for file in ("new.pth", "old.pth"):
        assert list(convert(tmp_path / file, encoder()).heads) == ["segmentation"]
    hostile = tmp_path / "hostile.pth"
    hostile.write_bytes(pickle.dumps({"state_dict": Hostile(tmp_path)}, protocol=2))
    with pytest.raises(UserError, match=r"hostile.pth: "):
        convert(hostile, encoder())
    assert not (tmp_path / "ran").exists()


def without(p, name):
    return {key: tensor for key, tensor in p.items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "built", "wishes", "sentence"),
    [
        (
            lambda: without(segmentation_weights(1, 21), "decode_head.bn.bias"),
            {},
            {},
            "no tensor 'decode_head.bn.bias'",
        ),
        (
            lambda: segmentation_weights(1, 21) | {"decode_head.convs.0.weight": torch.zeros(1)},
            {},
            {},
            "holds a tensor 'decode_head.convs.0.weight', which DINOv2's linear segmentation head of one layer has not",
        ),
        (lambda: segmentation_weights(3, 21), {}, {}, r"reads 96 channels, .* \(32\) nor four \(128\)"),
        (lambda: segmentation_weights(1, 7), {}, {}, "has 7 classes, as no known label set; .*--classes"),
        (
            lambda: segmentation_weights(1, 7),
            {},
            dict(classes="pascal"),
            "7 classes, but --classes pascal names 21",
        ),
        (
            lambda: segmentation_weights(1, 21),
            dict(name="dinov2-base-14-reg"),
            {},
            "trained on dinov2 with class tokens, and dinov2-base-14-reg is another .*register",
        ),
        (lambda: segmentation_weights(1, 21), dict(name="deit_tiny_patch16_224"), {}, "give --encoder dinov2-SIZE"),
        (lambda: segmentation_weights(1, 21), {}, dict(activation="relu"), "--activation is for"),
        (lambda: {"decode_head.conv_depth.weight": torch.zeros(256, 2 * WIDTH, 1, 1)}, {}, {}, "give --max-depth, 10"),
        (
            lambda: {"decode_head.conv_depth.weight": torch.zeros(100, 2 * WIDTH, 1, 1)},
            {},
            dict(max_depth=10.0),
            "100 depth outputs; published heads have 256 bins",
        ),
        (
            dinov2_dpt_weights,
            dict(width=64),
            dict(max_depth=10.0),
            r"is \(32, 64\), .* needs \(64, 128\)",
        ),
        (lambda: {"decode_head.query_embed.weight": torch.zeros(2)}, {}, {}, "none of DINOv2's linear segmentation"),
        (lambda: {"blocks.0.norm.weight": torch.zeros(2)}, {}, {}, "no head of DINOv2 or TIPS v2"),
        (lambda: tips_weights("depth"), {}, {}, "trained on tipsv2 with class and register tokens"),
        (lambda: {"a": 1}, {}, {}, "holds no state dict of tensors"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, tensors, built, wishes, sentence):
    path = saved(tmp_path / "head.pth", tensors())
    with pytest.raises(UserError, match=sentence):
        convert(path, encoder(**built), Wishes(**wishes))


def test_archives_that_are_none(tmp_path):
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match="not an archive of arrays"):
        convert(tmp_path / "cut.zip", TIPS)
    np.savez(tmp_path / "objects.npz", a=np.array([Hostile(tmp_path)]))
    with pytest.raises(UserError, match="not an archive of arrays"):
        convert(tmp_path / "objects.npz", TIPS)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="no such file"):
        convert(tmp_path / "none.npz", TIPS)
    p = {name: tensor.numpy() for name, tensor in dpt_weights(Flax, flax_name).items()}
    np.savez(tmp_path / "headless.npz", **p)
    with pytest.raises(UserError, match="no output layer of TIPS v2"):
        convert(tmp_path / "headless.npz", TIPS)
    four = {f"decoder/pixel_normals{leaf}": x.numpy() for leaf, x in Flax.made("dense", 1, FUSION, 4, True).items()}
    np.savez(tmp_path / "four.npz", **p, **four)
    with pytest.raises(UserError, match="4 outputs for normals"):
        convert(tmp_path / "four.npz", TIPS)


def test_a_probe_takes_the_file(tmp_path):
    """Saved, read, and loaded by the head's own description into a probe on that encoder, it predicts."""
    p = segmentation_weights(4, 21)
    content = convert(saved(tmp_path / "seg.pth", p), encoder())
    head_file.save(tmp_path / "head.safetensors", content)
    content = head_file.read(tmp_path / "head.safetensors")
    described = content.heads["segmentation"]
    parts = {key: described[key] for key in ("head", "task", "optim")}
    probe = DenseProbe(heads={"segmentation": parts}, encoder=content.encoder_config).eval()
    head_file.load_into(probe, content.heads, content, "head.safetensors")
    image = torch.randint(0, 256, (3, 30, 45), dtype=torch.uint8)
    (found,) = probe.predict([image])
    assert found["segmentation"].shape == (30, 45)
    assert torch.equal(probe.heads["segmentation"].bn.running_mean, p["decode_head.bn.running_mean"])
    assert content.protocol["origin"]["file"] == "seg.pth" and content.step == 0 and not content.metrics


def test_command_line(tmp_path, tool, capsys):
    p = {
        "decode_head.conv_depth.weight": torch.randn(256, 2 * 384, 1, 1),
        "decode_head.conv_depth.bias": torch.randn(256),
    }
    source, out = saved(tmp_path / "head.pth", p), tmp_path / "nyu.safetensors"
    arguments = [str(source), str(out), "--encoder", "dinov2-small-14", "--weights", "random"]
    assert run(main, arguments) == 1 and not out.exists()
    assert capsys.readouterr().err.startswith("error: ")
    assert run(main, [*arguments[:1], str(tmp_path / "nyu.pth"), *arguments[2:], "--max-depth", "10"]) == 1
    assert "head files end in .safetensors" in capsys.readouterr().err
    assert run(main, [*arguments, "--max-depth", "10"]) == 0
    assert "head={'type': 'LinearHead', 'layers': 'last', 'norm': False, 'pooled'" in capsys.readouterr().out
    content = head_file.read(out)
    assert torch.equal(content.tensors["depth.conv.weight"], p["decode_head.conv_depth.weight"])
    assert content.encoder.name == "dinov2-small-14" and content.encoder_config["weights"] == "random"
    assert "--max-depth METRES" in tool("convert_head", "--help").stdout
