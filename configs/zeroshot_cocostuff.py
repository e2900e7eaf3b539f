"""COCO-Stuff semantic segmentation without training: the names of the 171 classes and an encoder trained with texts.

    siglip2-dense test zeroshot_cocostuff
    siglip2-dense test zeroshot_cocostuff --encoder clip-base-16-224

Nobody has published the mIoU of SigLIP 2 without training. Of others, all with CLIP B/16:

    CLIP as it is  4.4    MaskCLIP  12.5, 16.4 (measured by ClearCLIP)    SCLIP  22.8, 21.1 (measured by ClearCLIP)
    GEM  23.7             ClearCLIP  23.9                                 NACLIP with PAMR  25.7

Images and windows are ClearCLIP's. What stands for which method is in siglip2_dense/encoders/aligned.py. Classes are
asked for by COCO's own names, "wall-brick" as "wall brick".
"""

_base_ = ["_base_/runtime.py", "_base_/open_vocabulary.py"]

model = dict(
    type="ZeroShot",
    encoder=dict(type="FrozenEncoder", name="siglip2-so400m-14-384"),
    classes="coco_stuff",
    templates="80",
    scale=50.0,
    background_threshold=None,
    alignment=dict(mode="value", residual="none", mlp=False),
    inference=dict(mode="slide", crop=448, stride=224),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(type="COCOStuff", split="val", transforms=[dict(type="ResizeShortSide", short=448, long=2048)]),
)
