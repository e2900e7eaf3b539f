"""Every config in ``configs/`` is read, dumped and built, with a tiny encoder; and says what it is for."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from siglip2_dense.cli.common import load_config
from siglip2_dense.engine.run import build_probe, check_keys
from siglip2_dense.label_sets import CLASSES
from siglip2_dense.registry import TRANSFORMS, build

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))


def load(name, encoder="test_vit", options=()):
    return load_config(
        Namespace(
            config=name, encoder=encoder, weights="random", work_dir=None, launcher="none", cfg_options=list(options)
        )
    )


def test_none_is_missed():
    assert len(NAMES) == 5 and len(list(CONFIGS.rglob("*.py"))) == 10


@pytest.mark.parametrize("name", NAMES)
def test_config(name, tmp_path):
    text = (CONFIGS / f"{name}.py").read_text()
    assert (text.startswith('"""') and f"tools/train.py configs/{name}.py" in text) or "make demo" in text
    config = load(name)
    check_keys(config)
    config.dump(tmp_path / "dumped.py")
    assert type(config).fromfile(tmp_path / "dumped.py").to_dict() == config.to_dict()
    classes = CLASSES.get(name.removeprefix("probe_"), CLASSES["generated"])
    if name == "probe_camvid":  # it names stages of a convolutional network
        config = load(name, "tf_efficientnet_lite0")
    probe = build_probe(config, classes).eval()
    images = [torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)]
    assert probe(images, None, mode="predict")[0]["segmentation"].shape == (70, 90)
    for loader in (config.train_dataloader, config.val_dataloader):
        for transform in loader.dataset.get("transforms", []):
            build(TRANSFORMS, transform)


@pytest.mark.parametrize("encoder", ["test_vit", "test_vit3", "test_convnext", "resnet18", "vit_small_patch16_dinov3"])
def test_the_main_job_takes_any_encoder_by_one_word(encoder):
    probe = build_probe(load("probe_ade20k", encoder), CLASSES["ade20k"]).eval()
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
    from mmengine.optim import OptimWrapper
    from mmengine.registry import PARAM_SCHEDULERS

    config = load("probe_ade20k")
    optim = config.model.heads.segmentation.optim
    assert (optim.type, optim.lr, optim.weight_decay) == ("AdamW", 1e-3, 1e-4)
    assert config.train_dataloader.batch_size == 16 and config.train_cfg.max_iters == 40_000
    assert config.model.inference.to_dict() == dict(mode="slide", crop=512, stride=341)
    optimizer = OptimWrapper(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3))
    schedules = [PARAM_SCHEDULERS.build({**s, "optimizer": optimizer}) for s in config.param_scheduler]
    rates = []
    for _ in range(2_000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert max(rates) == pytest.approx(0.9625e-3, rel=1e-3)  # warm-up multiplies the decay
    assert rates[750] == pytest.approx(1e-3 * (1 - 750 / 40_000) * 0.5, rel=2e-3)
