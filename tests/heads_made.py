"""Head files that were not trained, for tests of what is done with them."""

import torch

from siglip2_dense import head_file
from siglip2_dense.contracts import EncoderFacts


def content(name="siglip2-base-16-256", weights="hub", value=1.0, task="Segmentation", data="ade20k", **metrics):
    facts = EncoderFacts(
        name=name, fingerprint="f" * 64, widths=(8,), strides=(16,), prefix=(), pooled="map", pooled_width=8,
        final_norm=True, mean=(0.5,) * 3, std=(0.5,) * 3, native_grid=(16, 16), position_kernel="bicubic", parameters=1,
    )  # fmt: skip
    head = {
        "head": {"type": "LinearHead"}, "task": {"type": task}, "optim": {}, "seed": 0,
        "reads": {"taps": [[0, True]], "pooled": "none", "stride": 16}, "meaning": {"classes": ["sky", "sea"]},
        "scoring": {},
    }  # fmt: skip
    return head_file.HeadFile(
        tensors={"segmentation.conv.weight": torch.full((2, 8, 1, 1), value)},
        encoder=facts,
        encoder_config={"type": "FrozenEncoder", "name": name, "weights": weights},
        heads={"segmentation": head},
        protocol={"train_data": {"name": data, "split": "train"}, "optimisation": {"iterations": 12}},
        metrics={"mIoU": 41.234, "aAcc": float("nan"), **metrics},
        step=12,
    )
