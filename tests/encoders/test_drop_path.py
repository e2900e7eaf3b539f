"""Stochastic depth: which branches go, how often, and that what stays is not made larger."""

import pytest
import torch

from siglip2_dense.encoders import FrozenEncoder
from siglip2_dense.encoders.drop_path import drop_paths
from siglip2_dense.encoders.text import TextEncoder
from siglip2_dense.errors import UserError

SMALL = dict(depth=3, embed_dim=48, num_heads=4)
WORDS = dict(embed_dim=32, width=32, heads=4, layers=3)


def image_encoder(name="siglip2-base-16-256", **more):
    return FrozenEncoder(name, "random", trainable="all", model_args=SMALL, **more)


def text_encoder(**more):
    return TextEncoder("clip-base-16-224", "random", cache=False, model_args=WORDS, trainable="all", **more)


@pytest.mark.parametrize("encoder", [image_encoder(drop_path=0.4), text_encoder(drop_path=0.4)])
def test_rates_grow_with_depth_and_what_stays_is_as_it_was(encoder):
    rates = [path.drop_prob for path in encoder._paths]
    assert rates == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4])
    encoder.train()
    branch = torch.ones(4000, 3, 2)
    kept = encoder._paths[-1](branch)
    assert set(kept.unique().tolist()) == {0.0, 1.0} and torch.equal(kept.amax((1, 2)), kept.amin((1, 2)))
    assert kept[:, 0, 0].mean().item() == pytest.approx(0.6, abs=0.05)
    encoder.eval()
    assert torch.equal(encoder._paths[-1](branch), branch)
    assert not encoder.train().tower.training


@pytest.mark.parametrize("name", ["siglip2-base-16-256", "siglip2-base-16-naflex", "eva02clip-base-16-224"])
def test_both_branches_of_each_image_go_by_themselves(name):
    encoder = image_encoder(name, drop_path=0.7).train()
    plain = image_encoder(name)
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)] * 6
    torch.manual_seed(0)
    with torch.no_grad():
        (dropped,) = encoder.features(images).maps.values()
        (still,) = encoder.eval().features(images).maps.values()
        (expected,) = plain.features(images).maps.values()
    assert torch.equal(still, expected)
    assert len({one.abs().sum().item() for one in dropped}) >= 3


def test_texts_too_and_only_while_they_train():
    texts = text_encoder(drop_path=0.6)
    names = [f"thing {number}" for number in range(8)]
    with torch.no_grad():
        first, second = texts.encode(names), texts.encode(names)
        moving = texts.train().embed(names, "single")[:, 0]
        alike = texts(texts.tokenize(["a cat"] * 16))
    assert torch.equal(first, second) and not torch.allclose(moving, first, atol=1e-4)
    assert len({one.abs().sum().item() for one in alike}) >= 3  # each text by itself


def test_all_of_a_text_tower_trains():
    texts = text_encoder()
    assert set(texts.trained.state_dict()) == set(dict(texts.tower.named_parameters()))
    groups = texts.rate_groups(1.0, 0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(texts.tower.parameters()))
    texts.embed(["a", "b"]).sum().backward()
    assert all(parameter.grad is not None for parameter in texts.tower.parameters())


@pytest.mark.parametrize(("rate", "sentence"), [(1.0, "below 1"), (-0.1, "below 1"), (True, "below 1")])
def test_rates_that_are_none(rate, sentence):
    with pytest.raises(UserError, match=sentence):
        image_encoder(drop_path=rate)


def test_towers_without_a_place_for_it_and_frozen_ones():
    with pytest.raises(UserError, match="have no place for it"):
        drop_paths(torch.nn.Linear(2, 2), 0.1, "some encoder")
    with pytest.raises(UserError, match="have no place for it"):
        FrozenEncoder("test_convnext", "random", trainable="all", drop_path=0.1)
    with pytest.raises(UserError, match="nothing of siglip2-base-16-256 trains"):
        FrozenEncoder("siglip2-base-16-256", "random", drop_path=0.1)


def test_what_is_too_long_for_a_tower():
    texts = TextEncoder("clip-base-16-224", "random", cache=False, model_args=dict(WORDS, context_length=8))
    names = ["cat", "one two three four five six", "one two three four five six seven"]
    assert texts.too_long(names, "name") == [names[2]]
    assert texts.too_long(names, ["{}", "a {}"]) == ["a one two three four five six", names[2], f"a {names[2]}"]
    assert texts.tokenize([names[1]]).squeeze().tolist()[-1] == 49407
    assert texts.too_long(["Hot-dog_(food)"], "name", clean="canonical") == []
