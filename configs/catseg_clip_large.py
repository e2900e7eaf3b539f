"""Open-vocabulary segmentation: CAT-Seg on CLIP L/14 at 336 pixels, as published.

    siglip2-dense train catseg_clip_large
    siglip2-dense test catseg_clip_large HEAD_FILE --benchmarks all

The published model is tested in float32; its checkpoint becomes a head file by the first of these:

    siglip2-dense convert-head catseg model_large.pth catseg_clip_large.safetensors
    siglip2-dense test catseg_clip_large catseg_clip_large.safetensors --benchmarks all \
        --cfg-options model.precision=fp32 model.encoder.precision=fp32

Published mIoU, on the six sets of configs/_base_/open_vocabulary.py:

                                            ade847  pc459  ade150   pc59  voc20  voc21
    CAT-Seg, CVPR version: this               16.0   23.8    37.9   63.3   97.0   82.5
    its first version, with a Swin-B          11.4   20.4    31.5   62.0   96.6   81.8
    CLIP "L/16" (SigLIP 2, Table 3)           10.8   20.4    31.5   62.0   96.6   81.8

Class names are written as they are, with hyphens, and positions resampled without antialiasing, as in its training.
"""

_base_ = ["_base_/runtime.py", "_base_/open_vocabulary.py", "_base_/catseg.py"]

model = dict(
    encoder=dict(name="clip-large-14-336", position_kernel="bicubic"),
    heads=dict(segmentation=dict(task=dict(clean_names=False))),
)
