"""PASCAL VOC 2012 without training, its 20 objects alone: the background does not count.

    siglip2-dense test zeroshot_voc20
    siglip2-dense test zeroshot_voc20 --encoder clip-base-16-224

Nobody has published the mIoU of SigLIP 2 without training. Of others, all with CLIP B/16:

    CLIP as it is  41.8    MaskCLIP  49.5, 74.9 (measured by ClearCLIP)    SCLIP  81.5, 78.2 (measured by ClearCLIP)
    GEM  79.9              ClearCLIP  80.9                                 NACLIP with PAMR  83.0

Images and windows are ClearCLIP's. What stands for which method is in siglip2_dense/encoders/aligned.py. Classes are
asked for by the names of SCLIP, but for the potted plant, which is two words here.
"""

_base_ = ["_base_/runtime.py", "_base_/open_vocabulary.py"]

model = dict(
    type="ZeroShot",
    encoder=dict(type="FrozenEncoder", name="siglip2-so400m-14-384"),
    classes="voc20",
    queries=dict(
        boat=["ship"],
        diningtable=["table"],
        person=[
            "person", "person in shirt", "person in jeans", "person in dress", "person in sweater", "person in skirt",
            "person in jacket",
        ],
        pottedplant=["potted plant"],
        tvmonitor=["television monitor", "tv monitor", "monitor", "television", "screen"],
    ),
    templates="80",
    scale=50.0,
    background_threshold=None,
    alignment=dict(mode="value", residual="none", mlp=False),
    inference=dict(mode="slide", crop=448, stride=224),
)  # fmt: skip
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(
        type="PascalVOC",
        split="val",
        background=False,
        transforms=[dict(type="ResizeShortSide", short=448, long=2048)],
    ),
)
