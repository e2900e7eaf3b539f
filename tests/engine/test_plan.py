"""Costs on paper: operations against torch's counter, bytes against tensors, and times that follow from both."""

import dataclasses

import pytest
import torch
from mmengine.config import Config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from siglip2_dense import DPTHead, FrozenEncoder, LinearHead
from siglip2_dense.cli.common import read_config
from siglip2_dense.contracts import Tap
from siglip2_dense.engine.configs import find_config
from siglip2_dense.engine.devices import BESIDE, DEVICES, LOSS, Device, measured_cpu
from siglip2_dense.engine.flops import Bare, bare_encoder, blank_features, encoder_cost, head_cost, padded
from siglip2_dense.engine.plan import plan
from siglip2_dense.engine.plan_data import images_of
from siglip2_dense.errors import UserError
from siglip2_dense.store.shard import tensors_of

SLOW = Device(  # numbers that make every part of a step count
    name="slow",
    operations={"fp32": 1e9},
    exponentials=1e9,
    memory=1e9,
    reached={"fp32": 0.5},
    disk=1e9,
    keeps=1e6,
    step=1e-3,
)


def counted(tower, size, blocks, pooled=False):
    """What torch's counter says of a tower on the meta device."""
    pixels, counter = torch.empty(1, 3, *size, device="meta"), FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        if pooled:
            tower.forward_head(tower.forward_features(pixels), pre_logits=True)
        else:
            tower.forward_intermediates(pixels, indices=[blocks - 1], intermediates_only=True, stop_early=True)
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [(256, 256), (384, 256), (512, 512), (250, 500)])
def test_operations_of_a_base_model_are_those_that_torch_counts(size):
    encoder = bare_encoder(dict(name="siglip2-base-16-256"))
    for block in (11, 4):
        found = encoder_cost(encoder, size, [Tap(block, True)], pooled=False)
        expected = counted(encoder.tower, padded(encoder.facts, size), block + 1)
        assert found.operations == pytest.approx(expected, rel=0.02)
    pooled = encoder_cost(encoder, size, [Tap(4, True)], pooled=True)
    assert pooled.operations == pytest.approx(counted(encoder.tower, padded(encoder.facts, size), 12, True), rel=0.002)
    assert pooled.parts["pooling"] > 0


def test_operations_by_hand():
    """12 blocks of 768, an MLP of four times that, 256 patches of 16 x 16 pixels, no other token."""
    found = encoder_cost(bare_encoder(dict(name="siglip2-base-16-256")), (256, 256), [Tap(11, True)], False)
    n, d = 256, 768
    assert found.parts == {
        "patches": 2 * n * d * 3 * 16**2,
        "projections": 12 * 2 * n * 4 * d * d,
        "attention": 12 * 4 * n * n * d,
        "mlp": 12 * 2 * n * 8 * d * d,
        "pooling": 0,
    }


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (70, 33)])
def test_operations_of_a_built_encoder_are_those_of_its_pass(size):
    encoder = FrozenEncoder("test_vit", weights="random")
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the CPU's fused attention is not counted
        encoder.features(torch.zeros(1, 3, *size), pooled=True)
    found = encoder_cost(bare_encoder(dict(name="test_vit")), size, encoder.taps, pooled=True)
    assert found.operations == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(
    "name",
    ["clip-base-16-224", "dinov2-giant-14", "eva02_base_patch16_clip_224", "vit_base_patch16_dinov3",
     "vit_base_patch16_radio_v3", "vit_pe_core_base_patch16_224", "test_vit_relpos"],
)  # fmt: skip
def test_families_have_the_same_formula(name):
    encoder = bare_encoder(dict(name=name))
    size, blocks = padded(encoder.facts, (224, 160)), encoder.facts.num_blocks
    if encoder.facts.native_grid is None:
        size = tuple(encoder.tower.patch_embed.img_size)
    found = encoder_cost(encoder, size, [Tap(blocks - 1, False)], False)
    assert set(found.parts) > {"attention"} and found.operations == pytest.approx(
        counted(encoder.tower, size, blocks), rel=0.02
    )


@pytest.mark.parametrize("name", ["test_convnext", "efficientnet-lite0", "vit_base_mci_224"])
def test_other_networks_are_counted_and_leave_no_hook_behind(name):
    encoder = bare_encoder(dict(name=name))
    found = encoder_cost(encoder, (224, 224), [Tap(encoder.facts.num_blocks - 1, False)], False)
    assert found.parts == {"network": counted(encoder.tower, (224, 224), encoder.facts.num_blocks)}
    largest = 3 * 224**2
    assert found.live > largest and not any(layer._forward_hooks for layer in encoder.tower.modules())


def test_what_a_convolutional_network_moves_by_hand():
    """Two layers on 64 x 96 pixels: 3 channels in, 8 at half the size out, and those in and out of an activation."""

    class Tower(torch.nn.Sequential):
        def forward_intermediates(self, pixels, **_):
            return [self(pixels)]

    facts = dataclasses.replace(bare_encoder(dict(name="resnet18")).facts, strides=(2,), widths=(8,))
    with torch.device("meta"):
        tower = Tower(torch.nn.Conv2d(3, 8, 2, stride=2), torch.nn.ReLU(inplace=True))
    found = encoder_cost(Bare(tower, facts), (64, 96), [Tap(0, False)], False)
    assert found.moved == 3 * 64 * 96 + 3 * (8 * 32 * 48) and found.live == 3 * 64 * 96 + 8 * 32 * 48
    assert found.parts == {"network": 2 * 8 * 3 * 2 * 2 * 32 * 48}


@pytest.mark.parametrize(("precision", "number"), [("fp32", 4), ("bf16", 2)])
def test_a_convolutional_pass_takes_its_operations_and_its_bytes(tiny, precision, number):
    config = read_config(tiny())
    config.model.encoder.update(name="test_convnext", precision=precision)
    rates = dict(operations={"fp32": 1e9, "bf16": 4e9}, reached={"fp32": 0.5, "bf16": 0.5})
    device = dataclasses.replace(SLOW, **rates, disk=1e15)
    encoder = bare_encoder(dict(name="test_convnext"))
    cost = encoder_cost(encoder, (40, 48), [Tap(encoder.facts.num_blocks - 1, False)], False)
    seconds = cost.operations / (device.operations[precision] / 2) + number * cost.moved / 0.7e9
    assert plan(config, device)["seconds"]["stored"]["extraction"] == pytest.approx(5 * seconds)


def test_a_naflex_encoder_is_counted_at_the_grid_of_its_budget():
    encoder = bare_encoder(dict(name="siglip2-base-16-naflex", sequence_length=128))
    found = encoder_cost(encoder, (256, 256), [Tap(11, True)], False)
    assert found.parts["attention"] == 12 * 4 * 121**2 * 768  # 11 x 11 of at most 128 patches


@pytest.mark.parametrize(
    "make",
    [
        lambda facts: LinearHead(facts, 7, layers="last4", pooled="concat", batch_norm=False, upsample=2),
        lambda facts: DPTHead(facts, 7, width=16),
    ],
)
def test_a_head_costs_what_it_does_on_real_numbers(make):
    encoder = FrozenEncoder("test_vit", weights="random")
    head = make(encoder.facts).train()
    features = encoder.features(torch.zeros(3, 3, 48, 64), head.taps, pooled=True)
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward:
        raw = head(features)
    with backward:
        raw.sum().backward()
    bare = bare_encoder(dict(name="test_vit"))
    with torch.device("meta"):
        again = make(bare.facts)
    found = head_cost([again], blank_features(bare.facts, again.taps, True, (48, 64), batch=2))
    assert found.forward * 3 == forward.get_total_flops() > 0
    assert found.training * 3 == forward.get_total_flops() + backward.get_total_flops()


def test_a_linear_head_by_hand():
    """A 1x1 convolution, and its weights' gradient: that of the frozen features is nobody's business."""
    facts = bare_encoder(dict(name="siglip2-base-16-256")).facts
    with torch.device("meta"):
        head = LinearHead(facts, 128, batch_norm=False)
    found = head_cost([head], blank_features(facts, head.taps, False, (512, 512), batch=2))
    assert found.forward == 2 * 768 * 128 * 32 * 32 and found.training == 2 * found.forward


def test_stored_bytes_are_those_of_the_tensors(tiny):
    config = read_config(tiny())
    found = plan(config, SLOW)
    encoder, taps = FrozenEncoder("test_vit", weights="random"), [Tap(block, True) for block in (1, 2, 4, 5)]

    def size(*pixels):
        features = encoder.features(torch.zeros(1, 3, *pixels), taps)
        return sum(values.half().nbytes for values in tensors_of(features).values())

    assert found["bytes"]["stored_image"] == size(40, 48)
    assert found["bytes"]["stored_train"] == found["bytes"]["read_each_epoch"] == 5 * size(40, 48)
    # 48 x 64 becomes 56 x 75, and that two by two windows of 48 x 48
    assert found["bytes"]["stored_windows"] == 7 * 4 * size(48, 48) and found["data"]["val"]["passes"] == 4
    config.feature_store = dict(views=3)
    assert plan(config, SLOW)["bytes"]["stored_train"] == 15 * size(40, 48)


def test_times_scale_as_what_they_are_times_of(tiny):
    config = read_config(tiny())
    base = plan(config, SLOW)
    straight, stored = base["seconds"]["straight"], base["seconds"]["stored"]
    assert straight["total"] == pytest.approx(straight["training"] + straight["evaluation"])
    assert stored["training"] < straight["training"] and stored["evaluation"] < straight["evaluation"]
    for change, expected in (
        (dict(train_cfg=dict(max_iters=24, val_interval=6)), dict(training=2, evaluation=2, extraction=1)),
        (dict(train_cfg=dict(max_iters=12, val_interval=5)), dict(training=1, evaluation=1.5, extraction=1)),
        (dict(feature_store=dict(views=2)), dict(training=1, evaluation=1, extraction=2)),
    ):
        changed = read_config(tiny())
        changed.update(change)
        found = plan(changed, SLOW)["seconds"]
        for phase, factor in expected.items():
            assert found["stored"][phase] == pytest.approx(factor * stored[phase]), phase
            if phase in straight and "feature_store" not in change:
                assert found["straight"][phase] == pytest.approx(factor * straight[phase]), phase
    twice = {name: getattr(SLOW, name) * 2 for name in ("exponentials", "memory", "disk")}
    faster = dataclasses.replace(SLOW, operations={"fp32": 2e9}, step=5e-4, **twice)
    for way, phases in plan(config, faster)["seconds"].items():
        for phase, seconds in phases.items():
            assert seconds == pytest.approx(base["seconds"][way][phase] / 2), (way, phase)


def test_an_encoder_pass_is_its_operations_over_the_rate_that_is_reached(tiny):
    found = plan(read_config(tiny()), dataclasses.replace(SLOW, disk=1e15))
    operations = sum(found["encoder"]["operations"].values())
    assert found["seconds"]["stored"]["extraction"] == pytest.approx(5 * operations / 0.5e9)
    more = found["seconds"]["straight"]["training"] - found["seconds"]["stored"]["training"]
    assert more == pytest.approx(12 * 2 * operations / 0.5e9)


def test_a_loss_of_samples_takes_the_time_of_those_alone(tiny):
    config, found = read_config(tiny()), []
    for loss in (dict(), dict(loss="sampled", samples=192), dict(loss="sampled", samples=10**6)):
        config.model.heads.segmentation.task.update(loss)
        found.append(plan(config, SLOW)["seconds"]["stored"])
    pixels, classes = 40 * 48, 6
    saved = found[0]["training"] - found[1]["training"]
    assert saved == pytest.approx(12 * 2 * LOSS * (classes + BESIDE) * (pixels - 192) / 0.7e9)
    assert found[2] == found[0] and found[1]["evaluation"] == found[0]["evaluation"]


def test_a_sweep_trains_all_its_heads_on_what_is_not_held_out(tiny):
    one = plan(read_config(tiny()), SLOW)
    found = plan(read_config(tiny("sweep = dict(lr=[1e-3, 1e-2, 1e-1], holdout=0.2)\nseeds = 2\n")), SLOW)
    ((names, cost),) = found["heads"].items()
    (alone,) = one["heads"].values()
    assert len(names.split(", ")) == 6 and cost["parameters"] == 6 * alone["parameters"]
    assert cost["forward"] == 6 * alone["forward"] and cost["kept"] < 6 * alone["kept"]
    assert cost["raw"] == 6 * alone["raw"] == 6 * 6 * 3 * 3 * 4  # six classes on 3 x 3 cells, in float32
    more = found["bytes"]["activations"] - one["bytes"]["activations"]  # a raw map and its gradient for each more head
    assert more == 2 * (2 * 5 * alone["raw"] + cost["kept"] - alone["kept"])
    schedule = found["schedule"]
    assert (schedule["images_trained"], schedule["images_held_out"], schedule["images_tested"]) == (4, 1, 1 + 7)
    assert schedule["evaluations"] == 1 and one["schedule"]["evaluations"] == 2
    for size in ("stored_image", "stored_train"):  # a store has the whole set, for any part of it
        assert found["bytes"][size] == one["bytes"][size]
    assert found["seconds"]["stored"]["extraction"] == one["seconds"]["stored"]["extraction"]
    assert found["bytes"]["read_each_epoch"] == 4 / 5 * one["bytes"]["read_each_epoch"]
    seeds = plan(read_config(tiny("seeds = 2\n")), SLOW)["schedule"]
    assert (seeds["evaluations"], seeds["images_trained"], seeds["images_tested"]) == (1, 5, 7)
    assert found["bytes"]["stored_windows"] == 8 / 7 * one["bytes"]["stored_windows"]
    assert found["seconds"]["straight"]["training"] < 2 * one["seconds"]["straight"]["training"]


def test_a_slow_disk_limits_what_is_stored_unless_memory_keeps_it(tiny):
    config = read_config(tiny())
    slow = dataclasses.replace(SLOW, disk=1e3, keeps=0)
    base, found, kept = (plan(config, one) for one in (SLOW, slow, dataclasses.replace(slow, keeps=1e9)))
    assert found["disk_limits_stored"] and kept["disk_limits_stored"] and not base["disk_limits_stored"]
    assert found["seconds"]["straight"] == kept["seconds"]["straight"] == base["seconds"]["straight"]
    size = found["bytes"]
    stored, once = found["seconds"]["stored"], kept["seconds"]["stored"]
    assert stored["extraction"] == once["extraction"] == 5 * size["stored_image"] / 1e3
    assert stored["training"] == 12 * 2 * size["stored_image"] / 1e3  # every image of every step
    assert once["training"] == size["stored_train"] / 1e3
    assert stored["evaluation"] == 2 * once["evaluation"] == 2 * size["stored_windows"] / 1e3


def test_no_weights_are_built_and_published_counts_stand_in_for_data(monkeypatch, tmp_path):
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", str(tmp_path / "none"))
    monkeypatch.setattr("siglip2_dense.encoders.weights.load_tensors", None)
    found = plan(read_config(find_config("probe_ade20k")), DEVICES["h100"])
    train, val = found["data"]["train"], found["data"]["val"]
    assert (train["images"], val["images"], train["counted"]) == (20_210, 2_000, "published")
    assert found["encoder"]["pixels"] == (518, 518) and val["passes"] == 2 and train["typical_sizes"]
    assert found["schedule"]["epochs"] == pytest.approx(40_000 * 16 / 20_210)
    assert found["heads"]["segmentation"]["parameters"] == 1152 * 150 + 150 + 2 * 1152
    assert sum(found["encoder"]["operations"].values()) == pytest.approx(1.3605e12, rel=1e-3)


def test_what_nobody_has_counted_is_unknown_until_it_is_given(monkeypatch, tmp_path):
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", str(tmp_path / "none"))
    config = read_config(find_config("probe_navi_depth"))
    found = plan(config, DEVICES["a100"])
    assert found["data"]["train"]["counted"] == "unknown"
    assert found["bytes"]["stored_train"] is found["seconds"]["stored"]["total"] is None
    assert found["seconds"]["straight"]["training"] > 0
    given = plan(config, DEVICES["a100"], images=(2024, 555))
    assert given["bytes"]["stored_train"] == 2024 * given["bytes"]["stored_image"]
    assert given["seconds"]["stored"]["total"] > given["seconds"]["stored"]["training"]


def test_classes_that_only_the_data_know_have_to_be_given(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = read_config(find_config("probe_camvid"))
    with pytest.raises(
        UserError, match=r"segmentation.task.classes: only the data say .* data/camvid is .*task.classes=\[…\]"
    ):
        plan(config, DEVICES["h100"], images=(367, 101))
    config.model.heads.segmentation.task.classes = [f"class {number}" for number in range(11)]
    assert plan(config, DEVICES["h100"], images=(367, 101))["seconds"]["straight"]["total"] > 0
    with pytest.raises(UserError, match="--images -5 101: give how many"):
        plan(config, DEVICES["h100"], images=(-5, 101))


def test_images_that_are_there_are_counted_and_looked_at(tmp_path):
    import numpy as np
    from PIL import Image

    for folder, mode in (("images", (3,)), ("labels", ())):
        (tmp_path / folder / "val").mkdir(parents=True)
        for name, size in (("a", (40, 60)), ("b", (90, 30))):
            Image.fromarray(np.zeros((*size, *mode), np.uint8)).save(tmp_path / folder / "val" / f"{name}.png")
    (tmp_path / "classes.txt").write_text("wall\nfloor\n")
    config = dict(
        type="ImageFolder", root=str(tmp_path), split="val", transforms=[dict(type="ResizeShortSide", short=20)]
    )
    found = images_of(config, seed=0)
    assert found.count == 2 and found.counted == "here" and found.measured
    assert found.sizes == ((20, 30), (60, 20)) and found.classes == ("wall", "floor")
    given = images_of(config, seed=0, given=9)
    assert (given.count, given.counted, given.classes) == (9, "given", ("wall", "floor"))
    elsewhere = images_of({**config, "root": str(tmp_path / "none")}, seed=0)
    assert elsewhere.count is None and elsewhere.sizes == ((20, 27),) and not elsewhere.measured


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model.encoder.trainable": 2}, "frozen encoder"),
        ({"model.encoder.precision": "fp16"}, "no rate on slow; give fp32"),
        ({"model.encoder.precission": "fp16"}, "did you mean 'precision'"),
        ({"feature_store": {"views": 0}}, "feature_store.views=0: give how many views"),
        ({"train_dataloader.dataset.split": "trian"}, "did you mean 'train'"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_sentence(tiny, change, sentence):
    config: Config = read_config(tiny())
    config.merge_from_dict(change)
    with pytest.raises(UserError, match=sentence):
        plan(config, SLOW)


def test_mixtures_are_not_planned():
    with pytest.raises(UserError, match="DetectionMixture: its images are made of those of other sets"):
        images_of(dict(type="DetectionMixture", sets=[], size=48), seed=0)


def test_the_rates_of_this_cpu_are_measured():
    found = measured_cpu()
    assert 1e8 < found.operations["fp32"] < 1e14 and 1e8 < found.memory < 1e13 and 1e6 < found.exponentials < 1e12
