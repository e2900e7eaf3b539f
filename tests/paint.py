"""A model of names whose results are known beforehand: classes are colours."""

import torch
import torch.nn.functional as F
from torch import nn

from siglip2_dense.contracts import EncoderFacts, Features, Geometry
from siglip2_dense.registry import MODELS

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "olive": (255, 255, 0), "grey": (128,) * 3}


@MODELS.register_module()
class PaintTexts(nn.Module):
    """Texts whose vectors are known: colours by name, any other name is grey."""

    fingerprint, tokenization, width = "paint", {}, 3

    def __init__(self, name, weights):
        super().__init__()

    def encode(self, class_names, templates):
        return F.normalize(torch.tensor([COLOURS.get(n, COLOURS["grey"]) for n in class_names]).float(), dim=-1)


@MODELS.register_module()
class PaintEncoder(nn.Module):
    """Maps in the text space are the mean colours of patches of 4 pixels."""

    precision, trains, trainable = "fp32", False, "none"

    def __init__(self, name, weights="hub"):
        super().__init__()
        self.facts = EncoderFacts(
            name=name, fingerprint="", widths=(3,), strides=(4,), prefix=(), pooled="mean", pooled_width=3,
            final_norm=False, mean=(0, 0, 0), std=(1, 1, 1), native_grid=None, position_kernel=None, parameters=0,
            aligned_width=3,
        )  # fmt: skip

    def blocks_for(self, aligned):
        pass

    def features(self, images, taps=None, canvas=None, pooled=False, aligned=None):
        pixels = torch.stack(list(images)).float()
        size = tuple(pixels.shape[-2:])
        padded = tuple(-(-side // 4) * 4 for side in size)
        pixels = F.pad(pixels, (0, padded[1] - size[1], 0, padded[0] - size[0]))
        place = Geometry(padded, (0, 0, *size), size, size, size)
        return Features({}, (place,) * len(pixels), aligned=F.avg_pool2d(pixels, 4) + 1e-3)


CONFIG = """
seed = 0
model = dict(
    type="ZeroShot",
    encoder=dict(type="PaintEncoder", name="paint"),
    text=dict(type="PaintTexts"),
    classes="ade20k",
    scale=10.0,
    inference=dict(mode="slide", crop=64, stride=32),
)
test_dataloader = dict(
    dataset=dict(type="ADE20K", split="val", transforms=[dict(type="ResizeShortSide", short=64, long=512)])
)
"""
