"""Open-vocabulary detection: OWL-ViT on SigLIP 2 So400m/14, trained on Objects365 and Visual Genome, for any names.

    torchrun --nproc_per_node 8 -m siglip2_dense train owlvit_siglip2_so400m --launcher pytorch
    siglip2-dense train owlvit_siglip2_so400m
    siglip2-dense test owlvit_siglip2_so400m HEAD_FILE
    siglip2-dense predict IMAGE --task detect --config owlvit_siglip2_so400m --head HEAD_FILE --prompts NAMES

Published (SigLIP 2, Table 4): COCO AP 45.2, LVIS AP 40.5, APr 42.3; see configs/owlvit_siglip2_base.py. Resolution,
steps and learning rate are those of CLIP L/14 in OWL-ViT's paper.
"""

_base_ = ["_base_/runtime.py", "_base_/owlvit.py"]

model = dict(
    encoder=dict(name="siglip2-so400m-14-384"),
    heads=dict(detection=dict(optim=dict(lr=2e-5))),
    inference=dict(size=840),
)
train_dataloader = dict(dataset=dict(size=840))
train_cfg = dict(max_iters=70_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=1_000, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=69_000, eta_min=0.0, begin=1_000, end=70_000, by_epoch=False),
]
