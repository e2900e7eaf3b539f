"""Open-vocabulary segmentation: CAT-Seg on the first SigLIP; see configs/catseg_siglip2_large.py.

    siglip2-dense train catseg_siglip_large
    siglip2-dense test catseg_siglip_large HEAD_FILE --benchmarks all

Published mIoU (SigLIP 2, Table 3), on the six sets of configs/_base_/open_vocabulary.py:

                      ade847  pc459  ade150   pc59  voc20  voc21
    SigLIP L/16         14.0   23.9    37.5   61.6   96.1   81.1
"""

_base_ = ["_base_/runtime.py", "_base_/open_vocabulary.py", "_base_/catseg.py"]

model = dict(encoder=dict(name="siglip-large-16-384"))
