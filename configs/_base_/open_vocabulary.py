"""The six sets of open-vocabulary segmentation, for ``siglip2-dense test CONFIG --benchmarks all``.

Classes are asked for by the names of CAT-Seg's lists, which are the data sets' own but for the table of pc59; where
those of ade847 or pc459 are not beside the data, ``benchmarks.ade847.dataset.classes=ade847.json`` says them. In voc21
(CAT-Seg's PAS-20b) what is best named by one of the 39 other names of PASCAL Context is background.
"""

benchmarks = dict(
    ade847=dict(dataset=dict(type="ADE20KFull", split="val")),
    pc459=dict(dataset=dict(type="PascalContext459", split="val")),
    ade150=dict(dataset=dict(type="ADE20K", split="val")),
    pc59=dict(dataset=dict(type="PascalContext", split="val"), queries=dict(table=["diningtable"])),
    voc20=dict(dataset=dict(type="PascalVOC", split="val", background=False)),
    voc21=dict(
        dataset=dict(type="PascalVOC", split="val"),
        queries=dict(
            background=[
                "bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "cloth", "computer", "cup", "door",
                "fence", "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain", "mouse",
                "curtain", "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky", "snow",
                "bedclothes", "track", "tree", "truck", "wall", "water", "window", "wood",
            ],
        ),
    ),
)  # fmt: skip
