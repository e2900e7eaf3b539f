"""ADE20K semantic segmentation without training: the names of the 150 classes and an encoder trained with texts.

    siglip2-dense test zeroshot_ade20k
    siglip2-dense test zeroshot_ade20k --encoder clip-base-16-224
    siglip2-dense test zeroshot_ade20k --benchmarks all     # and ADE20K-847, PASCAL Context, VOC
    siglip2-dense test zeroshot_ade20k --encoder tipsv2-large-14-448 \
        --cfg-options model.alignment.residual=own model.alignment.mlp=True

Nobody has published the mIoU of SigLIP 2 without training. Of others, with CLIP B/16 unless named:

    CLIP as it is  2.1    MaskCLIP  9.8 (measured by ClearCLIP)    SCLIP  16.5, 14.6 (measured by ClearCLIP)
    GEM  15.7             ClearCLIP  16.7                          NACLIP with PAMR  19.1
    TIPS v2, value path with residual and MLP: B/14  17.4, L/14  24.7, So400m/14  23.3, g/14  17.8

Images and windows are ClearCLIP's. TIPS v2 averages softmaxes of windows of 448 every 336 with nine templates, where
this averages cosines. What stands for which method is in siglip2_dense/encoders/aligned.py: none of the four of CLIP is
exactly one of its modes, but MaskCLIP as released, mode "value" with residual "own" and the MLP.
"""

_base_ = ["_base_/runtime.py", "_base_/open_vocabulary.py"]

model = dict(
    type="ZeroShot",
    encoder=dict(type="FrozenEncoder", name="siglip2-so400m-14-384"),
    classes="ade20k",
    templates="80",
    scale=50.0,
    background_threshold=None,
    alignment=dict(mode="value", residual="none", mlp=False),
    inference=dict(mode="slide", crop=448, stride=224),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(type="ADE20K", split="val", transforms=[dict(type="ResizeShortSide", short=448, long=2048)]),
)
