"""The linear head and what heads share, by hand."""

import pytest
import torch
import torch.nn.functional as F

from siglip2_dense import FrozenEncoder, LinearHead
from siglip2_dense.errors import UserError
from siglip2_dense.heads.joining import join


@pytest.fixture(scope="module")
def vit():
    return FrozenEncoder("test_vit", weights="random")


@pytest.fixture(scope="module")
def cnn():
    return FrozenEncoder("tf_efficientnet_lite0", weights="random")


def features(encoder, head, batch=2, size=(64, 96)):
    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return encoder.features(images, head.taps, pooled=True)


def test_is_batch_norm_and_a_linear_layer_at_each_position(vit):
    head = LinearHead(vit.facts, 5, layers=[2, 5])
    seen = features(vit, head)
    raw = head.train()(seen)
    x = torch.cat([seen.maps[tap] for tap in head.taps], 1).permute(0, 2, 3, 1).reshape(-1, 128)
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    expected = F.linear(x, head.conv.weight[:, :, 0, 0], head.conv.bias).reshape(2, 4, 6, 5).permute(0, 3, 1, 2)
    assert raw.shape == (2, 5, 4, 6) and (raw - expected).abs().max() < 1e-4
    assert head.conv.bias.abs().sum() == 0 and 0.008 < head.conv.weight.std() < 0.012


def test_pooled_vector_behind_each_map(vit, cnn):
    """A class token is each tap's own; without one the encoder's vector is at every tap."""
    head = LinearHead(vit.facts, 3, layers=[1, 5], pooled="concat")
    seen = features(vit, head)
    joined = join(seen, head.taps, vit.facts, head.stride, pooled=True)
    assert joined.shape[1] == head.conv.in_channels == 4 * 64
    for place, tap in enumerate(head.taps):
        token = joined[:, 128 * place + 64 : 128 * place + 128]
        assert torch.equal(token, seen.prefix[tap][:, 0, :, None, None].expand_as(token))
    head = LinearHead(cnn.facts, 3, pooled="concat")
    joined = join(features(cnn, head), head.taps, cnn.facts, head.stride, pooled=True)
    assert joined.shape[1] == 320 + 1280 and head(features(cnn, head)).shape == (2, 3, 2, 3)


def test_strides_are_joined_at_the_named_one(cnn):
    head = LinearHead(cnn.facts, 3, layers=[2, 3, 4], stride=16)
    seen = features(cnn, head)
    fine, middle, coarse = (seen.maps[tap] for tap in head.taps)
    joined = join(seen, head.taps, cnn.facts, 16, pooled=False)
    assert torch.allclose(joined[:, :40], F.avg_pool2d(fine, 2), atol=1e-6)
    assert torch.equal(joined[:, 40:152], middle)
    assert torch.equal(joined[:, 152:], F.interpolate(coarse, scale_factor=2, mode="bilinear"))
    assert LinearHead(cnn.facts, 3, layers=[2, 3, 4]).stride == 8
    with pytest.raises(UserError, match="stride=14 does not divide 32"):
        LinearHead(cnn.facts, 3, layers=[2, 3, 4], stride=14)
    with pytest.raises(UserError, match="pooled="):
        LinearHead(cnn.facts, 3, pooled="readout")
    for upsample in (0, 0.5):
        with pytest.raises(UserError, match="upsample="):
            LinearHead(cnn.facts, 3, upsample=upsample)


@pytest.mark.parametrize("layers", ["last", "even4"])
def test_depth_form_in_the_published_order(vit, layers):
    """DINOv2: [map, its class token] of each tap, each made 4 times finer, joined, then the convolution."""
    head = LinearHead(vit.facts, 7, layers=layers, norm=False, pooled="concat", batch_norm=False, upsample=4)
    torch.nn.init.normal_(head.conv.bias)
    assert sorted(head.state_dict()) == ["conv.bias", "conv.weight"]
    seen = features(vit, head, 1, (48, 80))
    fine = []
    for tap in head.taps:
        token = seen.prefix[tap][:, 0, :, None, None].expand_as(seen.maps[tap])
        fine.append(F.interpolate(torch.cat([seen.maps[tap], token], 1), scale_factor=4, mode="bilinear"))
    expected = F.conv2d(torch.cat(fine, 1), head.conv.weight, head.conv.bias)
    raw = head(seen)
    assert raw.shape == (1, 7, 12, 20) and (raw - expected).abs().max() < 1e-5


@pytest.mark.parametrize("upsample", [1, 4])
def test_raw_map_is_float32_under_autocast(vit, upsample):
    """And is made finer in float32: interpolated bins of bfloat16 would be 8 bits wide again."""
    head = LinearHead(vit.facts, 5, upsample=upsample).eval()
    seen = features(vit, head)
    with torch.autocast("cpu", torch.bfloat16):
        raw = head(seen)
    assert raw.dtype == torch.float32
    if upsample == 4:
        assert (raw.bfloat16().float() != raw).float().mean() > 0.5
    assert (raw - head(seen)).abs().max() < 0.02 * raw.abs().max() + 1e-2


@pytest.mark.parametrize("size", [(16, 16), (33, 95)])
def test_batch_of_one_and_odd_sizes(vit, size):
    head = LinearHead(vit.facts, 2).eval()
    assert head(features(vit, head, 1, size)).isfinite().all()


@pytest.mark.parametrize("pooled", ["none", "concat"])
def test_dropout_takes_whole_channels_of_each_image_before_the_norm(vit, pooled):
    head = LinearHead(vit.facts, 3, pooled=pooled, batch_norm=False, dropout=0.5)
    seen = features(vit, head, batch=3)
    torch.manual_seed(0)
    raw = head.train()(seen)
    torch.manual_seed(0)
    maps = F.dropout2d(seen.maps[head.taps[0]], 0.5)
    joined = [maps]
    if pooled == "concat":
        token = seen.prefix[head.taps[0]][:, 0, :, None, None]
        joined.append(F.dropout2d(token, 0.5).expand(-1, -1, *maps.shape[2:]))
    expected = F.conv2d(torch.cat(joined, 1), head.conv.weight, head.conv.bias)
    assert (raw - expected).abs().max() < 1e-5
    plain = LinearHead(vit.facts, 3, pooled=pooled, batch_norm=False)
    plain.load_state_dict(head.state_dict())
    assert torch.equal(head.eval()(seen), plain.eval()(seen)) and head.kin == plain.kin
    assert head.train().kin != plain.train().kin  # it must not share what others see
    with pytest.raises(UserError, match="dropout=1; give the part"):
        LinearHead(vit.facts, 3, dropout=1)
