"""CAT-Seg's aggregator and decoder written out from its description, by the published tensors' names.

Slow and plain: attention in windows is attention over all cells under a mask, attention between classes adds up every
pair, filler classes are there one by one, guidance is repeated and laid beside what it guides.
"""

import torch
import torch.nn.functional as F

A = "sem_seg_head.predictor.transformer."


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def conv(p, name, x):
    weight = p[f"{name}.weight"]
    return F.conv2d(x, weight, p.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def norm(p, name, x):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def same_window(height, width, shifted, window=12):
    """(h w, h w) bool: which cells see each other in Swin's (shifted) windows of the padded grid.

    Of padded sides the coordinate moves back cyclically by half a window; then cells of one window see each other if
    they are also in one of the three regions of each axis.
    """
    places = []
    for side in (height, width):
        y = torch.arange(side)
        if side <= window:
            places.append([torch.zeros_like(y), torch.zeros_like(y)])
            continue
        padded = -(-side // window) * window
        moved = (y - window // 2) % padded if shifted else y
        region = (moved >= padded - window).long() + (moved >= padded - window // 2).long() if shifted else 0 * y
        places.append([moved // window, region])
    keys = [torch.cartesian_prod(places[0][i], places[1][i]) for i in (0, 1)]
    keys = torch.cat(keys, dim=1)
    return (keys[:, None] == keys[None]).all(-1)


def swin(p, name, x, guidance, shifted, size):
    """x: (T, h w, 128); guidance: (h w, 128)."""
    z = norm(p, f"{name}.norm1", x)
    both = torch.cat([z, guidance.expand_as(z)], dim=-1)
    q, k, v = linear(p, f"{name}.attn.q", both), linear(p, f"{name}.attn.k", both), linear(p, f"{name}.attn.v", z)
    q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in (q, k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~same_window(*size, shifted), -torch.inf)
    x = x + linear(p, f"{name}.attn.proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return x + linear(p, f"{name}.mlp.fc2", F.gelu(linear(p, f"{name}.mlp.fc1", norm(p, f"{name}.norm2", x))))


def between_classes(p, name, x, guidance, filled=256):
    """x: (T, n, 128) of n positions; guidance: (T, 128)."""
    missing = max(filled - len(x), 0)
    count = len(x)
    x = torch.cat([x, p[f"{name}.padding_tokens"].reshape(1, 1, -1).expand(missing, x.shape[1], -1)])
    guidance = torch.cat([guidance, p[f"{name}.padding_guidance"].reshape(1, -1).expand(missing, -1)])
    z = norm(p, f"{name}.norm1", x)
    both = torch.cat([z, guidance[:, None].expand_as(z)], dim=-1)
    q, k = (F.elu(linear(p, f"{name}.attention.{part}", both)) + 1 for part in "qk")
    v = linear(p, f"{name}.attention.v", z)
    q, k, v = (part.unflatten(-1, (4, -1)) for part in (q[:count], k, v))
    weights = torch.einsum("lnhd,snhd->nhls", q, k)  # of every pair of classes
    out = torch.einsum("nhls,snhd->lnhd", weights, v) / (weights.sum(-1).permute(2, 0, 1)[..., None] + 1e-6)
    x = x[:count] + out.flatten(2)
    return x + linear(p, f"{name}.MLP.2", F.relu(linear(p, f"{name}.MLP.0", norm(p, f"{name}.norm2", x))))


def up(p, name, x, guidance):
    x = F.conv_transpose2d(x, p[f"{name}.up.weight"], p[f"{name}.up.bias"], stride=2)
    x = torch.cat([x, guidance.expand(len(x), -1, -1, -1)], dim=1)
    for number in (0, 3):
        x = conv(p, f"{name}.conv.double_conv.{number}", x)
        affine = (p[f"{name}.conv.double_conv.{number + 1}.{kind}"] for kind in ("weight", "bias"))
        x = F.relu(F.group_norm(x, x.shape[1] // 16, *affine))
    return x


def logits(p, cells, text, middle, pool=1):
    """One image: cells (E, h, w) in the text space; text (T, P, E) of any length; middle: two maps (W, h, w)."""
    size = cells.shape[-2:]
    text = F.normalize(text, dim=-1)
    cosines = torch.einsum("ehw,tpe->tphw", F.normalize(cells, dim=0), text)
    x = conv(p, f"{A}conv1", cosines).flatten(2).mT  # (T, h w, 128)
    appearance = F.relu(conv(p, f"{A}guidance_projection.0", cells[None]))[0].flatten(1).T
    words = F.relu(linear(p, f"{A}text_guidance_projection.0", F.normalize(text.mean(1), dim=-1)))
    layer = 0
    while f"{A}layers.{layer}.swin_block.guidance_norm.weight" in p:
        name = f"{A}layers.{layer}"
        guidance = norm(p, f"{name}.swin_block.guidance_norm", appearance)
        x = swin(p, f"{name}.swin_block.block_1", x, guidance, False, size)
        x = swin(p, f"{name}.swin_block.block_2", x, guidance, True, size)
        maps = x.mT.unflatten(2, size)
        pooled = F.avg_pool2d(maps, pool)
        y = between_classes(p, f"{name}.attention", pooled.flatten(2).mT, words)
        y = F.interpolate(y.mT.unflatten(2, pooled.shape[-2:]), size, mode="bilinear", align_corners=True)
        x, layer = (maps + y).flatten(2).mT, layer + 1
    maps = x.mT.unflatten(2, size)
    for number, (block, factor) in enumerate(zip(middle, (2, 4), strict=True)):
        finer = (p[f"upsample{number + 1}.{kind}"] for kind in ("weight", "bias"))
        guidance = F.conv_transpose2d(block[None], *finer, stride=factor)
        guidance = F.relu(conv(p, f"{A}decoder_guidance_projection.{number}.0", guidance))
        maps = up(p, f"{A}decoder{number + 1}", maps, guidance)
    return conv(p, f"{A}head", maps)[:, 0]
