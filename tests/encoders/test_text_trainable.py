"""Text towers of which parts train: exactly what was named, with the vectors and gradients of the whole."""

import pytest
import torch
from torch import nn

from siglip2_dense.encoders import TextEncoder
from siglip2_dense.encoders.text_trainable import choose
from siglip2_dense.errors import UserError

SMALL = dict(width=32, heads=4, layers=2, embed_dim=24)
NAMES = ["cat", "red car", "wall-brick"] * 30


def build(trainable="none", **more):
    return TextEncoder("clip-base-16-224", "random", cache=False, trainable=trainable, model_args=SMALL, **more)


def own(encoder):
    return {name.removeprefix("trained.") for name, _ in encoder.named_parameters()}


def test_splitting_projections_changes_no_vector():
    plain, split = build(), build(["q", "v"])
    assert own(split) == {f"transformer.resblocks.{i}.attn.{part}_proj_weight" for i in (0, 1) for part in "qv"}
    assert not own(plain) and split.fingerprint == plain.fingerprint
    expected = plain.encode(NAMES, ["a {}", "{}"], average=False)
    assert torch.allclose(split.encode(NAMES, ["a {}", "{}"], average=False), expected, atol=1e-6)
    found = split.embed(NAMES, ["a {}", "{}"])
    assert torch.allclose(found, expected, atol=1e-6) and found.requires_grad
    assert torch.allclose(split.encode(NAMES, "7-best"), plain.encode(NAMES, "7-best"), atol=1e-6)


def test_gradients_are_those_of_the_fused_projection_with_and_without_checkpointing():
    fused = build()
    fused.tower.requires_grad_()
    weights = torch.randn(90, 1, 24, generator=torch.Generator().manual_seed(0))
    (fused.embed(NAMES) * weights).sum().backward()
    for checkpointing in (False, True):
        split = build(["q", "v", "fc1", "positions"], checkpointing=checkpointing)
        (split.embed(NAMES) * weights).sum().backward()
        theirs = dict(fused.tower.named_parameters())
        for name, parameter in split.trained.named_parameters():
            if "_proj_weight" in name:
                whole = theirs[name.replace("q_proj", "in_proj").replace("v_proj", "in_proj")].grad.chunk(3)
                expected = whole[0] if "q_proj" in name else whole[2]
            else:
                expected = theirs[name].grad
            assert expected.abs().max() > 1e-6 and torch.allclose(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def test_a_few_texts_at_a_time_run_again():
    for checkpointing, runs in ((False, 1), (True, 6)):  # 65 distinct texts in parts of 32, there and back
        encoder, seen = build(["v"], checkpointing=checkpointing), []
        encoder.tower.ln_final.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        encoder.embed([f"name {i}" for i in range(65)]).sum().backward()
        assert len(seen) == runs


def test_only_what_trains_moves_and_nothing_stale_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    encoder = TextEncoder("clip-base-16-224", "random", trainable=["q", "v"], model_args=SMALL)
    before, vectors = {k: v.clone() for k, v in encoder.tower.state_dict().items()}, encoder.encode(NAMES)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2, weight_decay=0.5, fused=True)
    encoder.embed(NAMES).square().sum(-1).mul(torch.randn(90, 1)).sum().backward()
    encoder.embed(NAMES)[..., 0].sum().backward()
    optimizer.step()
    moved = {key for key, value in encoder.tower.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == own(encoder)
    assert not torch.equal(encoder.encode(NAMES), vectors)
    assert not list(tmp_path.rglob("*.safetensors"))  # what it gives changes at every step


def test_what_trains_loads_moves_and_has_rates_by_depth():
    encoder, other = build(["q", "positions"]), TextEncoder(
        "clip-base-16-224", "random:1", cache=False, trainable=["q", "positions"], model_args=SMALL
    )  # fmt: skip
    encoder.trained.load_state_dict(other.trained.state_dict())
    assert torch.equal(encoder.tower.positional_embedding, other.tower.positional_embedding)
    assert encoder.double().tower.positional_embedding.dtype == torch.float64
    assert encoder.tower.positional_embedding is dict(encoder.trained.named_parameters())["positional_embedding"]
    groups = encoder.rate_groups(1.0, 0.5)
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.5, 1), (0.25, 1), (0.125, 1)]


def test_towers_of_transformers_have_their_projections_apart():
    attention = nn.ModuleDict(dict(q_proj=nn.Linear(4, 4), k_proj=nn.Linear(4, 4), v_proj=nn.Linear(4, 4)))
    block = nn.ModuleDict(dict(self_attn=attention, mlp=nn.ModuleDict(dict(fc1=nn.Linear(4, 8)))))
    tower = nn.ModuleDict(dict(model=nn.ModuleDict(dict(layers=nn.ModuleList([block])))))
    assert set(choose(tower, "x", ["q", "fc1"])) == {
        f"model.layers.0.{n}.weight" for n in ("self_attn.q_proj", "mlp.fc1")
    }
    with pytest.raises(UserError, match="the text tower of x has no fc2 by itself"):
        choose(tower, "x", ["fc2"])


@pytest.mark.parametrize("wrong", ["some", 1, [], ["w"], "q"])
def test_wrong_words(wrong):
    with pytest.raises(UserError, match="text: trainable="):
        build(wrong)
