"""Every config in ``configs/`` is read, dumped and built, with a tiny encoder; and says what it is for."""

import math
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from siglip2_dense.cli.common import load_config
from siglip2_dense.encoders.catalogue import find
from siglip2_dense.engine.configs import check_keys, check_trains, find_config, known_configs
from siglip2_dense.engine.optimizers import _optimizer
from siglip2_dense.engine.run import build_probe
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import CLASSES
from siglip2_dense.registry import DATASETS, MODELS, TRANSFORMS, build, resolve

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PROBES, CATSEG, OWLVIT, MINI = (
    sorted(path.stem for path in CONFIGS.glob(f"{kind}_*.py")) for kind in ("probe", "catseg", "owlvit", "mini")
)
PRESETS = sorted(f"protocols/{path.stem}" for path in CONFIGS.glob("protocols/*.py"))
TINY = ("catseg_coco128", "catseg_demo")  # with towers that begin at random
ZERO_SHOT = {"ade20k": "ade20k", "voc20": "voc20", "voc21": "pascal", "cocostuff": "coco_stuff"}  # set: its labels


def load(name, encoder="test_vit", options=()):
    return load_config(
        Namespace(
            config=name, encoder=encoder, weights="random", work_dir=None, launcher="none", cfg_options=list(options)
        )
    )


def data(classes):
    """A data set's facts, as far as a probe asks for them."""
    return SimpleNamespace(name="some", classes=classes, targets=("labels", "depth", "normals"))


def test_none_is_missed():
    known = {*PROBES, *CATSEG, *OWLVIT, *MINI, *(f"zeroshot_{name}" for name in ZERO_SHOT)}
    assert {path.stem for path in CONFIGS.glob("*.py")} == known and {*known_configs()} == known | {*PRESETS}
    assert len(PROBES) == 13 and len(CATSEG) == 7 and len(OWLVIT) == 5 and len(MINI) == 2 and len(PRESETS) == 15
    assert len(list(CONFIGS.rglob("*.py"))) == 65


def check_text(name, verb):
    text = (CONFIGS / f"{name}.py").read_text()
    assert text.startswith('"""') and f"siglip2-dense {verb} {name}" in text


def check_round_trip(config, folder):
    config.dump(folder / "dumped.py")
    assert type(config).fromfile(folder / "dumped.py").to_dict() == config.to_dict()


@pytest.mark.parametrize("name", CATSEG)
def test_config_of_cat_seg(name, tmp_path):
    """Models of the published ones are built in tests/models/test_catseg.py, on smaller towers."""
    check_text(name, "train")
    config = load(name, None)
    check_keys(config)
    check_trains(config)
    check_round_trip(config, tmp_path)
    assert find(config.model.encoder.name).text  # has a text tower
    if name not in TINY:
        assert config.model.clip_norm == 0.01 and config.train_cfg.max_iters == 80_000


@pytest.mark.parametrize("name", TINY)
def test_tiny_config_of_cat_seg(name):
    """Built whole: its towers are small, and nothing is fetched."""
    model = build_probe(load(name, None), data(["red sphere", "wall-other-merged", "sky"])).eval()
    assert set(model.towers) == {"encoder", "text"}
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    assert model([image], None, mode="predict")[0]["segmentation"].shape == (70, 90)


def test_the_demo_holds_back_names_whose_words_it_trains():
    config = load("catseg_demo", None)
    trained = config.train_dataloader.dataset.classes
    assert config.val_dataloader.dataset.classes == trained
    sets = {name: one.dataset.classes for name, one in config.benchmarks.items()}
    things = [name for name in trained if " " in name]
    assert set(sets["together"]) == {*trained, *sets["unseen"]} and not {*trained} & {*sets["unseen"]}
    for name in sets["unseen"]:
        assert all(sum(word in thing.split() for thing in things) >= 2 for word in name.split())
    asked = {name: query for name, (query,) in config.benchmarks.exchanged.queries.items()}
    assert sets["exchanged"] == sets["unseen"] and set(asked) == set(asked.values()) == set(sets["unseen"])
    assert all(name != query for name, query in asked.items())


@pytest.mark.parametrize("name", OWLVIT)
def test_config_of_owl_vit(name, tmp_path):
    """Models of them are built in tests/models/test_owlvit.py, on smaller towers."""
    check_text(name, "train")
    config = load(name, None)
    check_keys(config)
    check_trains(config)
    check_round_trip(config, tmp_path)
    assert config.model.example_clip == 1.0 and "clip_norm" not in config.model
    assert find(config.model.encoder.name).text  # has a text tower
    warm, cosine = config.param_scheduler
    assert warm["end"] == cosine["begin"] and cosine["end"] == config.train_cfg.max_iters
    assert cosine["T_max"] == cosine["end"] - cosine["begin"]
    if name == "owlvit_demo":
        return
    assert config.train_dataloader.dataset.size == config.model.inference.size
    optim = config.model.heads.detection.optim
    assert (optim.type, optim.lr) == ("Adam", 2e-5 if "so400m" in name else 5e-5)
    assert config.model.text_optim.lr == 2e-6 and config.train_dataloader.batch_size == 32
    size, steps = (840, 70_000) if "so400m" in name else (768, 140_000)
    assert (config.model.inference.size, config.train_cfg.max_iters) == (size, steps)
    assert all(size % (k * int(find(config.model.encoder.name).patch)) == 0 for k in (1, 2, 3))  # tiles of mosaics
    frozen = ["encoder.trainable=none", "text.trainable=none", "encoder_optim=None", "text_optim=None"]
    frozen += ["encoder.drop_path=0", "text.drop_path=0", "example_clip=None", "clip_norm=1.0"]
    changed = load(name, None, [f"model.{option}" for option in frozen])
    assert changed.model.encoder_optim is None and changed.model.clip_norm == 1.0


def test_the_detection_demo_is_built():
    boxes = SimpleNamespace(name="some", classes=("red box", "blue sphere"), targets=("boxes",))
    probe = build_probe(load("owlvit_demo", None), SimpleNamespace(**{**vars(boxes), "classes": ()}), boxes)
    assert probe.tasks["detection"].classes == boxes.classes and set(probe.towers) == {"encoder", "text"}
    images = [torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)]
    assert probe.eval()(images, None, mode="predict")[0]["detection"].boxes.shape == (12 * 12 * 2, 4)


def labels_of(name):
    """The classes of a probe's data, by the end of its name."""
    return CLASSES.get(name.rpartition("_")[2], CLASSES["generated"])


@pytest.mark.parametrize("name", [*PROBES, *MINI, *PRESETS])
def test_config(name, tmp_path):
    check_text(name, "train")
    config = load(name)
    check_keys(config)
    check_trains(config)
    check_round_trip(config, tmp_path)
    if name == "probe_camvid":  # it names stages of a convolutional network
        config = load(name, "tf_efficientnet_lite0")
    probe = build_probe(config, data(labels_of(name))).eval()
    images = [torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)]
    for prediction in probe(images, None, mode="predict")[0].values():
        assert prediction.shape[-2:] == (70, 90)
    linear = nn.Linear(2, 2)
    for settings in (parts.optim for parts in config.model.heads.values()):
        assert _optimizer(settings.to_dict(), linear).param_groups[0]["lr"] == settings.lr
    for loader in (config.train_dataloader, config.val_dataloader):
        for transform in loader.dataset.get("transforms", []):
            build(TRANSFORMS, transform)


@MODELS.register_module()
class FixedTexts(nn.Module):
    """Vectors for names, without a text tower."""

    fingerprint, tokenization, width = "fixed", {}, 768

    def __init__(self, name, weights):
        super().__init__()

    def encode(self, class_names, templates):
        return nn.functional.normalize(torch.eye(len(class_names), self.width), dim=1)


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_config_without_training(name, tmp_path, monkeypatch):
    check_text(f"zeroshot_{name}", "test")
    config = load(f"zeroshot_{name}", "siglip2-base-32-256")
    check_keys(config)
    check_round_trip(config, tmp_path)
    with pytest.raises(UserError, match=r"nothing to train; it is for siglip2-dense test"):
        check_trains(config)
    config.model.encoder.model_args, config.model.text = dict(depth=1), dict(type="FixedTexts")
    settings = config.test_dataloader.dataset
    monkeypatch.setattr(resolve(DATASETS, settings.type), "find", lambda self: [("a.jpg", "a.png")])
    dataset = build(DATASETS, settings.to_dict(), seed=config.seed)
    assert dataset.classes == CLASSES[ZERO_SHOT[name]] and dataset.split == "val"
    probe = build_probe(config, dataset).eval()
    images = [torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)]
    prediction = probe(images, None, mode="predict")[0]["segmentation"]
    assert prediction.shape == (70, 90) and prediction.min() >= 0 and prediction.max() < len(dataset.classes)


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_benchmarks_are_sets_that_can_be_built(name, tmp_path):
    """Their types, settings and splits; the data themselves are not here."""
    for benchmark, parts in load(f"zeroshot_{name}").benchmarks.to_dict().items():
        said = f"is not there or not complete, looked in {tmp_path}.*siglip2-dense data prepare"
        with pytest.raises(UserError, match=said):
            build(DATASETS, {**parts["dataset"], "root": str(tmp_path)})
        changed = load(f"zeroshot_{name}", options=[f"benchmarks.{benchmark}.dataset.root=/mine"])
        assert changed.benchmarks[benchmark].dataset.root == "/mine"


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_protocol_values_without_training(name):
    config = load(f"zeroshot_{name}")
    assert config.model.inference.to_dict() == dict(mode="slide", crop=448, stride=224)
    assert config.test_dataloader.dataset.transforms == [dict(type="ResizeShortSide", short=448, long=2048)]
    assert config.model.alignment.to_dict() == dict(mode="value", residual="none", mlp=False)
    sure = (65.0, 0.1) if name == "voc21" else (50.0, None)
    assert config.model.templates == "80" and (config.model.scale, config.model.background_threshold) == sure


@pytest.mark.parametrize("encoder", ["test_vit", "test_vit3", "test_convnext", "resnet18", "vit_small_patch16_dinov3"])
def test_the_main_job_takes_any_encoder_by_one_word(encoder):
    probe = build_probe(load("probe_ade20k", encoder), data(CLASSES["ade20k"])).eval()
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)]
    prediction = probe(images, None, mode="predict")[0]["segmentation"]
    assert prediction.shape == (64, 96) and prediction.max() < 150


def test_weights_go_back_to_the_hub_with_another_encoder():
    arguments = dict(config="probe_demo", work_dir=None, launcher="none", cfg_options=[])
    assert load_config(Namespace(encoder="clip-base-16-224", weights=None, **arguments)).model.encoder.weights == "hub"
    config = load_config(Namespace(encoder=None, weights="random", **arguments))
    assert config.model.encoder.to_dict() == dict(type="FrozenEncoder", name="efficientnet-lite0", weights="random")
    assert config.work_dir == "work_dirs/probe_demo_efficientnet-lite0_random"


def test_protocol_values_of_the_linear_probes():
    """The numbers that make a result comparable, in one place to be changed knowingly."""
    config = load("probe_ade20k")
    optim = config.model.heads.segmentation.optim
    assert (optim.type, optim.lr, optim.weight_decay) == ("AdamW", 1e-3, 1e-4)
    assert config.train_dataloader.batch_size == 16 and config.train_cfg.max_iters == 40_000
    assert config.model.inference.to_dict() == dict(mode="slide", crop=512, stride=341)
    rates = [rate for rate, _ in schedule(config, 1e-3)]
    assert max(rates) == pytest.approx(0.9625e-3, rel=1e-3)  # warm-up multiplies the decay
    assert rates[750] == pytest.approx(1e-3 * (1 - 750 / 40_000) * 0.5, rel=2e-3)


def schedule(config, lr, beta=0.9):
    """(learning rate, first beta) of each step, as the config's schedules give them."""
    from mmengine.optim import OptimWrapper
    from mmengine.registry import PARAM_SCHEDULERS

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = OptimWrapper(torch.optim.AdamW([parameter], lr=lr, betas=(beta, 0.999)))
    schedules = [PARAM_SCHEDULERS.build({**s, "optimizer": optimizer}) for s in config.param_scheduler]
    found = []
    for _ in range(config.train_cfg.max_iters):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
        optimizer.step()
        for one in schedules:
            one.step()
    return found


def test_protocol_values_of_the_depth_probes():
    """DINOv2's: warm-up times cosine peaks at 0.75 of the rate, the first beta goes from 0.95 to 0.85 and back."""
    config = load("probe_nyuv2_depth")
    optim = config.model.heads.depth.optim
    assert (optim.lr, optim.weight_decay, optim.clip_norm) == (1e-4, 0.01, 35)
    assert config.model.inference.to_dict() == dict(mode="whole", flip=True)
    steps = schedule(config, optim.lr, optim.betas[0])
    rates = [rate for rate, _ in steps]
    assert max(rates) == pytest.approx(0.75e-4, rel=5e-3) and rates.index(max(rates)) == pytest.approx(12_800, abs=10)
    assert rates[0] == pytest.approx(1e-7) and rates[-1] < 1e-10
    assert steps[0][1] == 0.95 and steps[11_520][1] == pytest.approx(0.85, abs=1e-4)
    assert steps[5_760][1] == pytest.approx(0.9, abs=1e-3) and steps[-1][1] == pytest.approx(0.95, abs=1e-4)


def test_a_preset_goes_by_the_name_of_its_folder_too():
    path = CONFIGS / "protocols/dinov2_linear_ade20k.py"
    for name in ("protocols/dinov2_linear_ade20k", "configs/protocols/dinov2_linear_ade20k.py", str(path)):
        assert find_config(name).resolve() == path
    with pytest.raises(UserError, match=r"'protocols/dinov2_linear_ade20' is neither .* did you mean 'protocols/dinov"):
        find_config("protocols/dinov2_linear_ade20")
    with pytest.raises(UserError, match="neither a file nor one of ours"):
        find_config("_base_/runtime")  # no config by itself


RECIPES = {  # images in all, AdamW's rate and decay, clip, the head's type, its settings, how it is tested
    "dinov2_linear_ade20k": (640_000, 1e-3, 1e-4, None, "LinearHead", dict(layers="last", norm=True), "slide"),
    "dinov2_linear_pascal": (640_000, 1e-3, 1e-4, None, "LinearHead", dict(layers="last", norm=True), "slide"),
    "dinov2_linear_nyuv2": (
        614_400, 1e-4, 1e-2, 35, "LinearHead",
        dict(layers="last", norm=False, pooled="concat", batch_norm=False, upsample=4), "whole, flip",
    ),
    "dinov2_linear4_nyuv2": (
        614_400, 1e-4, 1e-2, 35, "LinearHead",
        dict(layers="even4", norm=False, pooled="concat", batch_norm=False, upsample=4), "whole, flip",
    ),
    "dinov2_dpt_nyuv2": (
        614_400, 1e-4, 1e-2, 35, "DPTHead",
        dict(layers="even4", norm=False, pooled="readout", width=256, activation="relu", gelu="exact",
             output="convolutions"), "whole, flip",
    ),
    "dinov3_linear_ade20k": (
        640_000, 1e-3, 1e-3, None, "LinearHead", dict(layers="last", norm=True, dropout=0.1), "slide",
    ),
    "dinov3_linear_nyuv2": (614_400, 3e-4, 1e-4, 35, "LinearHead", dict(layers="last", norm=True), "whole, flip"),
    "radio_linear_ade20k": (1_280_000, 1e-3, 0.0, None, "LinearHead", dict(layers="last", norm=True), "whole"),
    "probe3d_depth_nyuv2": (
        309_120, 5e-4, 1e-2, None, "Probe3DHead", dict(layers="even4", norm=False, pooled="concat", width=512), "whole",
    ),
    "probe3d_normals_nyuv2": (
        309_120, 5e-4, 1e-2, None, "Probe3DHead", dict(layers="even4", norm=False, pooled="concat", width=512), "whole",
    ),
    "probe3d_depth_navi": (
        20_240, 5e-4, 1e-2, None, "Probe3DHead", dict(layers="even4", norm=False, pooled="concat", width=512), "whole",
    ),
    "probe3d_normals_navi": (
        20_240, 5e-4, 1e-2, None, "Probe3DHead", dict(layers="even4", norm=False, pooled="concat", width=512), "whole",
    ),
    "visbench_linear_pascal": (
        14_640, 5e-4, 1e-4, None, "LinearHead", dict(layers="last", norm=True, batch_norm=False), "whole",
    ),
    "tips_dpt_nyuv2": (
        614_400, 1e-4, 1e-2, 35, "DPTHead",
        dict(layers="even4", norm=True, pooled="readout", width=256, activation="relu"), "whole, flip",
    ),
    "tips_dpt_nyuv2_normals": (
        400_000, 5e-4, 1e-2, None, "DPTHead", dict(layers="even4", norm=True, pooled="readout", width=256), "whole",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_values_of_a_published_recipe(name):
    """The numbers of its source, in one place to be changed knowingly."""
    config = load(name, None)
    (parts,) = config.model.heads.to_dict().values()
    optim, head, inference = parts["optim"], parts["head"], config.model.get("inference", {"mode": "whole"})
    images = config.train_dataloader.batch_size * config.train_cfg.max_iters
    tested = inference["mode"] + ", flip" * inference.get("flip", False)
    found = images, optim["lr"], optim["weight_decay"], optim.get("clip_norm"), head.pop("type"), head, tested
    assert optim["type"] == "AdamW" and found == RECIPES[name.removeprefix("protocols/")]


def cosine(start, end, part):
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def probe3d(step, steps, warm):
    if step < warm:
        return 0.01 + 0.99 * step / (warm - 1)
    return 0.99 * math.cos(math.pi / 2 * (step - warm) / (steps - warm)) + 0.01


SCHEDULES = {  # as the sources compute them, in parts of the rate, and how near ours are
    "probe3d_depth_nyuv2": (lambda s: probe3d(s, 38_640, 5_796), 1e-6),
    "probe3d_normals_navi": (lambda s: probe3d(s, 2_530, 380), 1e-6),
    "dinov3_linear_ade20k": (
        lambda s: (1 - s / 40_000) * s / 1_500 if s < 1_500 else cosine(1, 0, (s + 1) / 40_000),
        0.035,  # in the warm-up, see its docstring
    ),
    "dinov3_linear_nyuv2": (
        lambda s: (
            1e-3 + cosine(1, 0, s / 38_400) * s / 12_800 if s < 12_800 else cosine(1, 1 / 25_000, (s + 1) / 38_400)
        ),
        1.1e-3,
    ),
    "radio_linear_ade20k": (lambda s: s / 1_500 if s < 1_500 else 1 - (s - 1_500) / 78_500, 1e-3),
    "visbench_linear_pascal": (lambda s: (s + 1) / 274 if s < 274 else cosine(1, 0, (s - 274) / 1_556), 1e-5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_of_a_published_recipe(name):
    config, (expected, tolerance) = load(f"protocols/{name}"), SCHEDULES[name]
    (parts,) = config.model.heads.values()
    beta = parts.optim.get("betas", (0.9, 0.999))[0]
    steps = schedule(config, parts.optim.lr, beta)
    for step in range(0, len(steps), 97):
        assert steps[step][0] / parts.optim.lr == pytest.approx(expected(step), abs=tolerance), step
    betas = [beta for _, beta in steps]
    if name == "dinov3_linear_nyuv2":
        assert max(betas[:12_799]) < 1e-6 and betas[12_800] == pytest.approx(0.85, abs=1e-4)
        assert betas[25_600] == pytest.approx(0.9, abs=1e-3) and betas[-1] == pytest.approx(0.95, abs=1e-4)
    else:
        assert set(betas) == {beta}


def test_protocol_values_of_the_dpt_probes():
    for name, target, lr in (("navi_depth", "depth", 5e-4), ("navi_normals", "normals", 5e-4)):
        config = load(f"probe_{name}")
        assert config.train_dataloader.batch_size * config.train_cfg.max_iters == 400_000
        assert config.train_dataloader.dataset.targets == (target,) and config.model.heads[target].optim.lr == lr
    rates = [rate for rate, _ in schedule(config, lr)]
    assert rates.index(max(rates)) == pytest.approx(7_500, abs=10)


@pytest.mark.parametrize("name", [name for name in CATSEG if name not in TINY])
def test_protocol_values_of_cat_seg(name):
    config = load(name, None)
    model, parts = config.model, config.model.heads.segmentation
    assert (parts.optim.type, parts.optim.lr, parts.optim.weight_decay, parts.optim.norm_decay) == (
        "AdamW", 2e-4, 1e-4, 0.0,
    )  # fmt: skip
    assert model.encoder_optim.to_dict() == dict(lr_mult=0.01) and model.clip_norm == 0.01
    assert model.encoder.trainable == model.text.trainable == ["q", "v"]
    assert (parts.head.grid, parts.head.blocks, parts.head.pool, parts.head.residual) == (24, 2, 2, "class")
    assert (parts.task.templates, parts.task.synonyms, parts.task.ignored) == ("scene", "first", "negative")
    assert model.inference.to_dict() == dict(
        mode="slide", crop=384, stride=256, size=(640, 640), overview=True, classes="reference"
    )
    assert config.train_dataloader.batch_size * config.train_cfg.max_iters == 320_000
    rates = [rate for rate, _ in schedule(config, 2e-4)]
    assert rates[0] == pytest.approx(2e-4) and rates[40_000] == pytest.approx(1e-4, rel=1e-3) and rates[-1] < 1e-9
    is_clip = "siglip" not in model.encoder.name
    assert (model.encoder.get("position_kernel") == "bicubic") == (not parts.task.get("clean_names", True)) == is_clip
    assert set(config.benchmarks) == {"ade847", "pc459", "ade150", "pc59", "voc20", "voc21"}
