"""What a run of OWL-ViT costs on paper: parameters and operations against built towers, memory by hand."""

import json

import pytest
import torch
from test_owlvit_runs import FROZEN, OWLVIT
from test_plan import SLOW
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from siglip2_dense import FrozenEncoder, TextEncoder
from siglip2_dense.cli import plan as verb
from siglip2_dense.cli.common import read_config
from siglip2_dense.data.generated import GeneratedBoxes
from siglip2_dense.engine.flops import bare_encoder
from siglip2_dense.engine.plan_owlvit import memory_of, plan
from siglip2_dense.engine.run import build_probe
from siglip2_dense.engine.tower_cost import Tower, image_tower, text_tower
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build

ORDINARY = 'del model["example_clip"]\n'
TOWERS = {
    "clip-base-16-224": dict(depth=3, embed_dim=48, num_heads=4, num_classes=32),
    "siglip-base-16-256": dict(depth=3, embed_dim=48, num_heads=4),
}
TEXTS = dict(embed_dim=32, width=32, heads=4, layers=2, vocab_size=100)


def counted(run):
    """What torch's counter says of a pass and the way back."""
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):  # the CPU's fused attention is not counted
        with forward:
            output = run()
        with backward:
            output.sum().backward()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", TOWERS)
def test_towers_cost_what_built_ones_do(name, checkpointing):
    settings = dict(name=name, trainable="all", checkpointing=checkpointing, model_args=TOWERS[name])
    encoder = FrozenEncoder(weights="random", **settings)
    taps = encoder.facts.taps("last", norm=True)
    encoder.keep_reached(taps, pooled=False)  # not what pools
    found = image_tower(bare_encoder(settings), settings, (64, 80), 4)
    assert found.parameters == sum(p.numel() for p in encoder.tower.parameters())
    assert found.trained == sum(p.numel() for p in encoder.trained.parameters())
    assert found.block == sum(p.numel() for p in encoder.tower.blocks[0].parameters())
    assert found.around + 3 * found.block == found.parameters
    forward, training = counted(lambda: encoder.features(torch.zeros(1, 3, 64, 80), taps).maps[taps[0]])
    assert (found.forward, found.training) == pytest.approx((forward, training), rel=0.01)
    settings = dict(name=name, trainable="all", checkpointing=checkpointing, model_args=TEXTS)
    texts = TextEncoder(weights="random", cache=False, **settings)
    found = text_tower(settings, 4)
    assert found.trained == found.parameters == sum(p.numel() for p in texts.trained.parameters())
    ids = torch.zeros(3, texts.plan.rules.context, dtype=torch.int64)
    forward, training = counted(lambda: texts._in_parts(ids))
    assert (3 * found.forward, 3 * found.training) == pytest.approx((forward, training), rel=0.01)


def test_towers_that_stay_as_they_are_go_one_way():
    image, text = (dict(name="clip-base-16-224", model_args=one) for one in (TOWERS["clip-base-16-224"], TEXTS))
    for found in (image_tower(bare_encoder(image), image, (64, 64), 4), text_tower(text, 4)):
        assert found.trained == 0 and found.training == found.forward > 0


def test_memory_by_hand():
    image = Tower(parameters=1000, trained=900, around=200, block=100, forward=0, training=0, kept=0)
    text = Tower(parameters=500, trained=500, around=500, block=0, forward=0, training=0, kept=0)
    found = memory_of(image, text, 100, activations=10_000, each=False)
    assert (found["weights"], found["gradients"], found["moments"]) == (4 * 1600, 4 * 1500, 8 * 1500)
    assert found["one_process"] == 4 * 1600 + 12 * 1500 + 10_000 and found["ddp"] == found["one_process"] + 4 * 1500
    # the text tower is larger than what is whole of the image tower at a time, 200 + 2 x 100
    assert found["sharded_over_2"] == (4 * 1600 + 12 * 1500) / 2 + 8 * 500 + 10_000
    # without activations, an evaluation with all weights is the most
    idle = memory_of(image, text, 100, activations=0, each=False)
    assert idle["sharded_over_8"] == 12 * 1500 / 8 + 4 * 1600
    each = memory_of(image, text, 100, activations=10_000, each=True)
    assert each["ddp"] == each["one_process"] == found["one_process"] + 4 * 1500 and "sharded_over_2" not in each
    # a tower that stays as it is, is whole on every device
    still = memory_of(image, text._replace(trained=0), 100, activations=10_000, each=False)
    assert still["sharded_over_2"] == (4 * 1100 + 12 * 1000) / 2 + 4 * 500 + 8 * 400 + 10_000


def test_the_bytes_are_those_of_the_model_and_its_optimizers(tiny):
    config = read_config(tiny(OWLVIT))
    probe = build_probe(config, build(DATASETS, config.train_dataloader.dataset, seed=0))
    found = plan(config, SLOW)["bytes"]
    trained = sum(p.numel() for p in probe.parameters())
    every = sum(p.numel() for part in (probe.encoder.tower, probe.text.tower, probe.heads) for p in part.parameters())
    assert (found["weights"], found["gradients"], found["moments"]) == (4 * every, 8 * trained, 8 * trained)


def test_times_scale_as_what_they_are_times_of(tiny):
    together = plan(read_config(tiny(OWLVIT + ORDINARY)), SLOW)
    kinds = len(GeneratedBoxes("train", 1).classes)
    assert together["asked"]["known"] and together["asked"]["queries"] == together["asked"]["texts"] == kinds
    step, seconds = together["seconds_of_step"], together["seconds"]
    assert seconds["training"] == pytest.approx(6 * sum(step.values())) and seconds["total"] > seconds["training"]
    assert step["image_tower"] == pytest.approx(2 * together["encoder"]["training"] / 0.5e9)
    assert step["text_tower"] == pytest.approx(kinds * together["text"]["training"] / 0.5e9)
    each = plan(read_config(tiny(OWLVIT)), SLOW)
    assert each["asked"]["texts"] == 2 * kinds and each["seconds_of_step"]["beside"] == 2 * step["beside"]
    assert each["seconds_of_step"]["text_tower"] == pytest.approx(2 * step["text_tower"])
    still = plan(read_config(tiny(OWLVIT + ORDINARY + FROZEN)), SLOW)
    assert (
        still["seconds_of_step"]["text_tower"] == 0 and still["bytes"]["activations"] < together["bytes"]["activations"]
    )
    more = plan(read_config(tiny(OWLVIT + ORDINARY + "train_cfg['val_interval'] = 3\n")), SLOW)["seconds"]
    assert more["evaluation"] == pytest.approx(2 * seconds["evaluation"])


def test_the_published_recipe_without_its_data(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", str(tmp_path / "none"))
    out = tmp_path / "plan.json"
    options = ["--json", str(out), "--cfg-options", "model.example_clip=None", "model.encoder.checkpointing=False"]
    verb.main(["owlvit_siglip2_base", "--device", "h100", *options])
    shown, found = capsys.readouterr().out, json.loads(out.read_text())
    assert "assumed: the data are not there" in shown and "sharded over 8" in shown and "1,203 classes" in shown
    assert found["head"]["tokens"] == 48 * 48 and found["data"]["images"] == 19_809
    size = found["bytes"]
    assert size["sharded_over_8"] < size["sharded_over_2"] < size["one_process"] < size["ddp"]
    assert found["encoder"]["training"] == pytest.approx(3 * found["encoder"]["forward"], rel=0.01)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model.encoder.trainable": 1}, "model.encoder.trainable=1: the plan of OWL-ViT"),
        ({"model.text.trainable": ["q"]}, "model.text.trainable"),
        ({"model.inference": dict(mode="whole", _delete_=True)}, "one head on squares"),
        ({"train_cfg.sharded": True}, "example_clip=None"),
        ({"model.encoder.precision": "fp16"}, "no rate on slow; give fp32"),
        ({"model.encoder.name": "siglip2-base-16-naflex", "model.encoder.model_args": None}, "transformers on squares"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_sentence(tiny, change, sentence):
    config = read_config(tiny(OWLVIT))
    config.merge_from_dict(change)
    with pytest.raises(UserError, match=sentence):
        plan(config, SLOW)
