"""What trains of an encoder: exactly what was named, and nothing else moves."""

import pytest
import torch

from siglip2_dense.contracts import Tap
from siglip2_dense.encoders import FrozenEncoder
from siglip2_dense.encoders.trainable import layers
from siglip2_dense.errors import UserError

IMAGES = torch.randint(0, 256, (2, 3, 48, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(trainable, name="test_vit", **more):
    return FrozenEncoder(name, "random", trainable=trainable, **more)


def weighted_sum(features):
    """A loss that the final norm does not make a constant."""
    (map,) = features.maps.values()
    return (map * torch.randn(map.shape, generator=torch.Generator().manual_seed(1))).sum()


def names(encoder):
    return set(dict(encoder.named_parameters()))


@pytest.mark.parametrize("name", ["test_vit", "eva02_base_patch16_clip_224", "test_convnext", "resnet18"])
def test_layers_follow_the_blocks(name):
    encoder = build("none", name, model_args=dict(depth=2) if name.startswith("eva") else None)
    at = layers(encoder.tower)
    assert min(at.values()) == 0 and max(at.values()) <= encoder.num_blocks + 1
    for block, info in enumerate(encoder.tower.feature_info):
        inside = [layer for key, layer in at.items() if key.startswith(f"{info['module']}.")]
        assert all(layer == block + 1 for layer in inside)
    order = [at[key] for key, _ in encoder.tower.named_parameters()]
    assert order == sorted(order)


def test_named_projections_are_the_only_ones_and_the_features_do_not_change():
    plain, split = build("none"), build(["q", "v"])
    assert names(split) == {f"trained.blocks.{block}.attn.qkv.{part}" for block in range(6) for part in "qv"}
    assert split.fingerprint == plain.fingerprint
    a, b = (encoder.features(IMAGES, pooled=True) for encoder in (plain, split))
    for tap in a.maps:
        assert torch.equal(a.maps[tap], b.maps[tap])
    assert torch.equal(a.pooled, b.pooled)


def test_split_projections_of_towers_that_have_them_apart():
    encoder = build(["q", "v"], "eva02_base_patch16_clip_224", model_args=dict(depth=2))
    assert names(encoder) == {f"trained.blocks.{block}.attn.{part}_proj.weight" for block in range(2) for part in "qv"}


def test_only_what_trains_moves_under_weight_decay_and_momentum():
    encoder = build(["q", "v"])
    before = {key: value.clone() for key, value in encoder.tower.state_dict().items()}
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        weighted_sum(encoder.features(IMAGES)).backward()
        optimizer.step()
    moved = {key for key, value in encoder.tower.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {name.removeprefix("trained.") for name in names(encoder)}


def test_last_blocks_and_all():
    two = names(build(2))
    assert {name.split(".")[2] for name in two if "blocks" in name} == {"4", "5"}
    assert "trained.norm.weight" in two and "trained.pos_embed" not in two
    encoder = build("all")
    assert names(encoder) == {f"trained.{name}" for name, _ in encoder.tower.named_parameters()}
    convolutional = names(build(1, "resnet18"))
    assert convolutional and all(name.startswith("trained.layer4.") for name in convolutional)


def test_what_the_heads_do_not_read_does_not_train():
    encoder = build("all", "test_vit3")  # it pools by attention
    encoder.keep_reached((Tap(4, False),), pooled=False)
    kept = names(encoder)
    assert "trained.blocks.4.mlp.fc2.weight" in kept and "trained.pos_embed" in kept
    assert not [name for name in kept if any(part in name for part in ("blocks.5", "trained.norm", "attn_pool"))]
    pooling = build("all", "test_vit3")
    pooling.keep_reached((Tap(4, False),), pooled=True)
    assert "trained.attn_pool.latent" in names(pooling)
    fixed = build(1, "test_vit_relpos")  # which takes images of its own size only
    fixed.keep_reached(fixed.taps, pooled=True)
    assert any("blocks.8" in name for name in names(fixed))
    with pytest.raises(UserError, match="nothing that would train"):
        build(1).keep_reached((Tap(2, False),), pooled=False)


def test_a_training_position_table_gets_its_gradient_through_the_resampling():
    encoder, frozen = build("all"), build("none")
    features = encoder.features(IMAGES)  # another grid than the stored one
    tap = encoder.taps[0]
    assert torch.allclose(features.maps[tap], frozen.features(IMAGES).maps[tap], atol=1e-5)
    weighted_sum(features).backward()
    assert encoder.tower.pos_embed.grad.abs().max() > 1e-4


def test_checkpointing_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        encoder = build(["v"], checkpointing=checkpointing)
        weighted_sum(encoder.features(IMAGES)).backward()
        found.append([parameter.grad for parameter in encoder.parameters()])
    assert all(a.abs().max() > 1e-4 and torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


def test_checkpointing_runs_blocks_again():
    for checkpointing, runs in ((False, 1), (True, 2)):
        encoder, seen = build(["v"], checkpointing=checkpointing), []
        encoder.tower.blocks[2].mlp.fc1.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        weighted_sum(encoder.features(IMAGES)).backward()
        assert len(seen) == runs


def test_what_trains_loads_what_it_saves():
    encoder, other = build(["q"]), FrozenEncoder("test_vit", "random:1", trainable=["q"])
    report = encoder.load_state_dict(other.state_dict())
    assert not report.missing_keys and not report.unexpected_keys
    assert torch.equal(encoder.tower.blocks[3].attn.qkv.q, other.tower.blocks[3].attn.qkv.q)
    with pytest.raises(RuntimeError, match="Missing"):
        encoder.load_state_dict(build(["v"]).state_dict())


def test_no_gradient_without_asking_and_eval_mode_always():
    encoder = build("all").train()
    assert not encoder.tower.training
    with torch.no_grad():
        assert not next(iter(encoder.features(IMAGES).maps.values())).requires_grad
    assert not next(iter(build("none").features(IMAGES).maps.values())).requires_grad


def test_rates_fall_with_the_depth():
    groups = build("all").rate_groups(1.0, 0.5)
    assert [group["lr"] for group in groups] == [0.5**depth for depth in range(8)]
    assert sum(len(group["params"]) for group in groups) == len(list(build("all").parameters()))
    assert [group["lr"] for group in build(1).rate_groups(2.0, 1.0)] == [2.0, 2.0]


def test_moving_keeps_the_parameters_of_the_tower():
    encoder = build(["q"]).double()
    assert encoder.tower.blocks[0].attn.qkv.q.dtype == torch.float64
    assert encoder.tower.blocks[0].attn.qkv.q is dict(encoder.named_parameters())["trained.blocks.0.attn.qkv.q"]


def test_one_choice_has_one_way_of_writing():
    assert build(("v", "q", "q")).trainable == ["q", "v"] and build(2).trainable == 2


def test_the_position_table_is_a_part_by_itself():
    encoder = build(["v", "positions"])
    assert names(encoder) == {"trained.pos_embed", *(f"trained.blocks.{block}.attn.qkv.v" for block in range(6))}
    order = [name for name, _ in encoder.tower.named_parameters()]
    weighted_sum(encoder.features(IMAGES)).backward()
    assert encoder.tower.pos_embed.grad.abs().max() > 1e-4
    assert isinstance(encoder.tower.pos_embed, torch.nn.Parameter)
    assert [name for name, _ in encoder.tower.named_parameters()] == order
    assert build(["positions", "q"]).trainable == ["q", "positions"]
    with pytest.raises(UserError, match="no position table"):
        build(["positions"], "vit_small_patch16_dinov3")


@pytest.mark.parametrize("wrong", ["q", 0, 7, True, ["w"], [], "last", 1.5])
def test_wrong_words(wrong):
    with pytest.raises(UserError, match="trainable="):
        build(wrong)


def test_projections_that_are_not_there():
    with pytest.raises(UserError, match="no attention"):
        build(["q"], "test_convnext")
    with pytest.raises(UserError, match="have no fc1"):
        build(["fc1"], "eva02_base_patch16_clip_224", model_args=dict(depth=1))
    with pytest.raises(UserError, match="fp16"):
        build("all", precision="fp16")
