"""PASCAL VOC 2012 without training, its 20 objects and the background.

    siglip2-dense test zeroshot_voc21
    siglip2-dense test zeroshot_voc21 --encoder clip-base-16-224

Nobody has published the mIoU of SigLIP 2 without training. Of others, with CLIP B/16: SCLIP 59.6, NACLIP with PAMR
64.1.

The background is what is best named by one of SCLIP's 26 words for it, and where no name reaches a probability of 0.1
at the scale 65. Both numbers are SCLIP's, chosen with CLIP: other encoders' cosines are spread otherwise, and what is
best for SigLIP 2 is not known. SCLIP also gives objects of less than a tenth of all object pixels to the background;
that is left out here. Images and windows are ClearCLIP's, as in the other configs.
"""

_base_ = ["_base_/runtime.py", "_base_/open_vocabulary.py"]

model = dict(
    type="ZeroShot",
    encoder=dict(type="FrozenEncoder", name="siglip2-so400m-14-384"),
    classes="pascal",
    queries=dict(
        background=[
            "sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk", "bed",
            "building", "cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair", "floor",
            "hill", "rail", "fence",
        ],
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
    scale=65.0,
    background_threshold=0.1,
    alignment=dict(mode="value", residual="none", mlp=False),
    inference=dict(mode="slide", crop=448, stride=224),
)  # fmt: skip
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(type="PascalVOC", split="val", transforms=[dict(type="ResizeShortSide", short=448, long=2048)]),
)
