"""Open-vocabulary segmentation: CAT-Seg on OpenCLIP bigG/14; see configs/catseg_siglip2_large.py.

    siglip2-dense train catseg_openclip_bigg
    siglip2-dense test catseg_openclip_bigg HEAD_FILE --benchmarks all
    siglip2-dense train catseg_openclip_bigg --encoder openclip-huge-14-224

Published mIoU, on the six sets of configs/_base_/open_vocabulary.py:

                                                 ade847  pc459  ade150   pc59  voc20  voc21
    OpenCLIP G/14 (SigLIP 2, Table 3)              13.3   21.4    36.2   61.5   97.1   81.4
    CAT-Seg, first version, with a Swin-B          14.1   21.4    36.2   61.5   97.1   81.4

They had a Swin-B beside the encoder and a text tower that did not train, which this has not and does; the encoder sees
336 pixels in both.
"""

_base_ = ["_base_/runtime.py", "_base_/open_vocabulary.py", "_base_/catseg.py"]

model = dict(
    encoder=dict(name="openclip-bigg-14-224", position_kernel="bicubic", checkpointing=True),
    heads=dict(segmentation=dict(head=dict(checkpointing=True), task=dict(clean_names=False))),
)
