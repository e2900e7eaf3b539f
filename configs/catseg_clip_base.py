"""Open-vocabulary segmentation: CAT-Seg on CLIP B/16 at 384 pixels, as published; see configs/catseg_clip_large.py.

    siglip2-dense train catseg_clip_base
    siglip2-dense test catseg_clip_base HEAD_FILE --benchmarks all

Published mIoU, on the six sets of configs/_base_/open_vocabulary.py:

                                                 ade847  pc459  ade150   pc59  voc20  voc21
    CAT-Seg, CVPR version: this                    12.0   19.0    31.8   57.5   94.6   77.3
    its first version, with a ResNet-101            8.9   16.6    27.2   57.5   93.7   78.3
"""

_base_ = ["_base_/runtime.py", "_base_/open_vocabulary.py", "_base_/catseg.py"]

model = dict(
    encoder=dict(name="clip-base-16-224", position_kernel="bicubic"),
    heads=dict(segmentation=dict(task=dict(clean_names=False))),
)
