"""Open-vocabulary detection: OWL-ViT on SigLIP B/16, trained on Objects365 and Visual Genome, for any names.

    torchrun --nproc_per_node 8 -m siglip2_dense train owlvit_siglip_base --launcher pytorch
    siglip2-dense train owlvit_siglip_base
    siglip2-dense test owlvit_siglip_base HEAD_FILE
    siglip2-dense predict IMAGE --task detect --config owlvit_siglip_base --head HEAD_FILE --prompts NAMES

Published (SigLIP 2, Table 4): COCO AP 42.2, LVIS AP 33.0, APr 31.0; see configs/owlvit_siglip2_base.py.
"""

_base_ = ["_base_/runtime.py", "_base_/owlvit.py"]

model = dict(encoder=dict(name="siglip-base-16-384"))
