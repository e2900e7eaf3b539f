"""Open-vocabulary segmentation: CAT-Seg on SigLIP 2, trained on COCO-Stuff, for any class names.

    siglip2-dense train catseg_siglip2_large
    siglip2-dense test catseg_siglip2_large HEAD_FILE --benchmarks all
    siglip2-dense train catseg_siglip2_large --encoder siglip2-so400m-16-384

Published mIoU (SigLIP 2, Table 3), on the six sets of configs/_base_/open_vocabulary.py:

                      ade847  pc459  ade150   pc59  voc20  voc21
    SigLIP 2 L/16       14.3   24.1    38.8   62.4   97.0   82.3
    SigLIP L/16         14.0   23.9    37.5   61.6   96.1   81.1    configs/catseg_siglip_large.py
    CLIP "L/16"         10.8   20.4    31.5   62.0   96.6   81.8    configs/catseg_clip_large.py
    OpenCLIP G/14       13.3   21.4    36.2   61.5   97.1   81.4    configs/catseg_openclip_bigg.py

How CAT-Seg was put on SigLIP is not published. Here the maps in the text space are the values of the attention pooling
(siglip2_dense/encoders/aligned.py), images have 384 pixels, and hyphens in class names are blanks, since SigLIP's
tokenizers would drop them. The two CLIP rows are those of CAT-Seg's first version, with a Swin-B beside the encoder and
a text tower that did not train; its later version, which this is, has better ones (configs/catseg_clip_large.py).
"""

_base_ = ["_base_/runtime.py", "_base_/open_vocabulary.py", "_base_/catseg.py"]

model = dict(encoder=dict(name="siglip2-large-16-384"))
