"""Open-vocabulary detection: OWL-ViT on SigLIP 2 B/16, trained on Objects365 and Visual Genome, for any names.

    torchrun --nproc_per_node 8 -m siglip2_dense train owlvit_siglip2_base --launcher pytorch
    siglip2-dense train owlvit_siglip2_base
    siglip2-dense test owlvit_siglip2_base HEAD_FILE
    siglip2-dense predict IMAGE --task detect --config owlvit_siglip2_base --head HEAD_FILE --prompts NAMES

Published (SigLIP 2, Table 4), on COCO 2017 val and LVIS v1 val:

                           COCO AP   LVIS AP   LVIS APr
    SigLIP 2 B/16             42.8      34.4       32.7    configs/owlvit_siglip2_base.py
    SigLIP B/16               42.2      33.0       31.0    configs/owlvit_siglip_base.py
    SigLIP 2 So400m/14        45.2      40.5       42.3    configs/owlvit_siglip2_so400m.py
    SigLIP So400m/14          44.3      39.5       40.9    configs/owlvit_siglip_so400m.py

How OWL-ViT was put on SigLIP is not published: "data and optimizer settings closely follow" its paper, in which towers
with attention pooling (LiT) had that removed, as here. Open are resolution, data, steps, learning rates and drop paths.
Here they are those of CLIP B/16 in the paper (LiT B/16 had a rate of 2e-4 and no drop paths). COCO's classes are scored
with val_dataloader.dataset as dict(type="CocoDetection", split="val").
"""

_base_ = ["_base_/runtime.py", "_base_/owlvit.py"]

model = dict(encoder=dict(name="siglip2-base-16-384"))
