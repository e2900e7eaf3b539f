"""Sweeps: every head as if trained alone, chosen on images held out from training, exported as any head."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from safetensors.torch import load_file

from siglip2_dense import head_file
from siglip2_dense.cli import test as test_verb
from siglip2_dense.cli import train as train_verb
from siglip2_dense.engine import sweep as module
from siglip2_dense.engine.grid import Member, members
from siglip2_dense.errors import UserError

FAST = """
train_dataloader["num_workers"] = 0
vis_backends = []
pictures = 0
train_cfg = dict(max_iters=6, val_interval=6, save_interval=3)
"""
PART = """
train_dataloader["dataset"] = dict(
    type="Subset", part="kept", holdout=0.4, transforms=train_dataloader["dataset"].pop("transforms"),
    dataset=train_dataloader["dataset"])
"""


def train(config, work_dir, *flags):
    train_verb.main([str(config), "--work-dir", str(work_dir), *flags])
    return json.loads((work_dir / "results.json").read_text())


def same(swept, name, alone, head="segmentation"):
    """The largest difference between a swept head's tensors and those of the head alone."""
    alone = {key.removeprefix(f"{head}."): tensor for key, tensor in alone.items() if key.startswith(f"{head}.")}
    own = {key.removeprefix(f"{name}."): tensor for key, tensor in swept.items() if key.startswith(f"{name}.")}
    assert own and set(own) == set(alone)
    return max((own[key].double() - alone[key].double()).abs().max().item() for key in own)


def test_what_a_sweep_leaves_and_says(tiny, tmp_path, capsys):
    config = tiny(FAST + "sweep = dict(lr=[1e-3, 1e-2], weight_decay=[0, 1e-2], holdout=0.4)\nseeds = 2\npictures = 1")
    record = train(config, tmp_path / "run")
    told, summary = capsys.readouterr().out, json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert "chosen on train, held out (2 images), marked *; val was read afterwards" in told
    assert [one["setting"] for one in summary["settings"]] == [
        f"lr={lr},weight_decay={decay}" for lr in ("1e-3", "1e-2") for decay in ("0", "1e-2")
    ]
    for one in summary["settings"]:
        for split in ("holdout", "validation"):
            scores = one[split]["mIoU"]
            assert scores["mean"] == pytest.approx(np.mean(scores["values"])) and len(scores["values"]) == 2
            assert scores["std"] == pytest.approx(np.std(scores["values"], ddof=1))
    best = max(summary["settings"], key=lambda one: one["holdout"]["mIoU"]["mean"])
    chosen = summary["chosen"]["segmentation"]
    assert chosen["setting"] == best["setting"] and chosen["seed"] == int(np.argmax(best["holdout"]["mIoU"]["values"]))
    assert next(line for line in told.splitlines() if line.startswith("*")).split()[1].endswith(best["setting"])
    # each setting against the chosen one, on the validation images
    for one in summary["settings"]:
        against = one["against_chosen"]
        if one is best:
            assert against is None
            continue
        assert set(against) == set(one["validation"])
        for metric, found in against.items():
            low, high = found["interval"]
            difference = one["validation"][metric]["mean"] - best["validation"][metric]["mean"]
            assert found["difference"] == pytest.approx(difference) and low <= high
            assert found["excludes_0"] == (low > 0 or high < 0)
        line = next(line for line in told.splitlines() if f"segmentation/{one['setting']} " in line)
        assert re.search(r"[+-]\d+\.\d+ \[[+-]\d+\.\d+, [+-]\d+\.\d+\]$", line)
    # the record and the file are those of the chosen head, under its plain name
    assert record["metrics"] == chosen["validation"] and record["data"]["split"] == "val"
    assert record["protocol"]["selection"]["split"] == "train, held out"
    assert record["protocol"]["selection"]["grid"] == {"segmentation": {"lr": [1e-3, 1e-2], "weight_decay": [0, 1e-2]}}
    assert record["protocol"]["train_data"]["images"] == 3 and record["best"] is None
    assert record["protocol"]["train_transforms"][0]["type"] == "RandomFlip"
    assert record["protocol"]["heads"]["segmentation"]["optim"]["lr"] == best["values"]["lr"]
    content = head_file.read(tmp_path / "run" / "head.safetensors")
    assert set(content.heads) == {"segmentation"} and content.step == 6
    for name in ("sweep.png", "per_image.safetensors", "chosen.py"):
        assert (tmp_path / "run" / name).is_file()
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 1
    assert not list((tmp_path / "run").rglob("best_head*"))
    assert not list((tmp_path / "run" / "all_heads").glob("*.json"))
    assert Image.open(tmp_path / "run" / "sweep.png").size[0] > 400
    # any config with such a head tests it, with the same numbers: that without the sweep, and the one that it left
    plain = tiny("", "plain.py")
    for name, config in (("plain", plain), ("chosen", tmp_path / "run" / "chosen.py")):
        out = tmp_path / f"{name}.json"
        head = str(tmp_path / "run" / "head.safetensors")
        test_verb.main([str(config), head, "--out", str(out), "--work-dir", str(tmp_path / "t")])
        again = json.loads(out.read_text())
        for key in ("metrics", "per_class", "intervals", "encoder", "protocol"):
            assert again[key] == record[key], key
        for key in ("head_parameters", "head_seeds"):
            assert again["run"][key] == record["run"][key]
    with pytest.raises(UserError, match=r"run holds a run already \(head.safetensors\)"):
        train(tmp_path / "run" / "chosen.py", tmp_path / "run")


HEADS = {  # word of the sweep: the head
    "LinearHead_0": 'type="LinearHead", layers="last4", pooled="concat"',
    "LinearHead_1": 'type="LinearHead", layers="last"',
    "LinearHead_2": 'type="LinearHead", layers="even4", batch_norm=False',
    "DPTHead_3": 'type="DPTHead", width=8',
}


def test_a_swept_head_is_the_one_trained_alone(tiny, tmp_path):
    """With weight decay and clipping, under a schedule, at another learning rate than its neighbours."""
    optim = 'model["heads"]["segmentation"]["optim"].update(weight_decay=1e-2, clip_norm=0.1)\n'
    heads = ", ".join(f"dict({head})" for head in HEADS.values())
    train(tiny(FAST + optim + f"sweep = dict(head=[{heads}], lr=[1e-3, 1e-2], holdout=0.4)"), tmp_path / "swept")
    swept = load_file(tmp_path / "swept" / "all_heads" / "head.safetensors")
    assert len({name.partition(".")[0] for name in swept}) == 8
    for word, head in HEADS.items():
        lines = [FAST, optim, f'model["heads"]["segmentation"]["head"] = dict({head})', PART]  # at lr=1e-2
        train(tiny("\n".join(lines), "alone.py"), tmp_path / word)
        alone = load_file(tmp_path / word / "head.safetensors")
        assert same(swept, f"segmentation/head={word},lr=1e-2,seed=0", alone) <= 1e-5, word
        assert same(swept, f"segmentation/head={word},lr=1e-3,seed=0", alone) > 1e-3, word  # its neighbour is another


THREE = """
model["heads"] = dict(
    segmentation=model["heads"]["segmentation"],
    depth=dict(
        head=dict(type="LinearHead", batch_norm=False, upsample=2),
        task=dict(type="Depth", min_depth=0.1, max_depth=10.0, bins=16, gradient=0.5, warm_up=3),
        optim=dict(type="AdamW", lr=1e-3, clip_norm=35),
    ),
    normals=dict(
        head=dict(type="LinearHead", layers="even4"),
        task=dict(type="Normals"),
        optim=dict(type="SGD", lr=1e-2, momentum=0.9),
    ),
)
sweep = dict(lr=[1e-3, 1e-2], segmentation=dict(layers=["last", "even4"]), depth=dict(upsample=[1, 2]), holdout=0.4)
"""


def test_each_of_several_tasks_chooses_for_itself_and_resuming_changes_nothing(tiny, tmp_path, monkeypatch):
    record = train(tiny(FAST + THREE), tmp_path / "whole")
    summary = json.loads((tmp_path / "whole" / "sweep.json").read_text())
    assert set(summary["chosen"]) == {"segmentation", "depth", "normals"}
    for head, chosen in summary["chosen"].items():
        own = [one for one in summary["settings"] if one["head"] == head]
        sign = 1 if head == "segmentation" else -1  # depth and normals have errors
        best = max(own, key=lambda one: sign * one["holdout"][one["metric"]]["mean"])
        assert chosen["setting"] == best["setting"] and len(own) == (2 if head == "normals" else 4)
        for metric, value in chosen["validation"].items():
            assert record["metrics"][f"{head}.{metric}"] == value
    assert set(head_file.read(tmp_path / "whole" / "head.safetensors").heads) == set(summary["chosen"])

    config = tiny(FAST + THREE)
    with monkeypatch.context() as patch:  # stopped at the last step, between saving and measuring
        patch.setattr(module.KeepMembers, "_evaluate", lambda *a: (_ for _ in ()).throw(UserError("stopped")))
        patch.setattr(module.KeepMembers, "_is_due", staticmethod(lambda runner, step, interval: step == 3))
        with pytest.raises(UserError, match="stopped"):
            train(config, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "all_heads" / "resume.pt", weights_only=True)["step"] == 3
    with pytest.raises(UserError, match=r"all_heads holds a run already .* --resume"):
        train(config, tmp_path / "run")
    again = train(config, tmp_path / "run", "--resume")
    assert again["metrics"] == record["metrics"]
    for file in ("all_heads/head.safetensors", "head.safetensors"):
        whole, resumed = (load_file(tmp_path / name / file) for name in ("whole", "run"))
        assert set(whole) == set(resumed) and all(torch.equal(resumed[key], value) for key, value in whole.items())
    train(config, tmp_path / "run", "--resume")  # already finished
    assert json.loads((tmp_path / "run" / "sweep.json").read_text())["chosen"] == summary["chosen"]


def test_the_choice_never_reads_the_validation_set(tiny, tmp_path, monkeypatch):
    """Nor an image of it; and what is held out is no image of it, and none that was trained on."""
    from siglip2_dense.data.generated import FIRST_SCENE, GeneratedScenes

    read, choose, seen, at_choice = GeneratedScenes.read, module.choose, [], []

    def noting(data, entry):
        seen.append((data.split, entry))
        return read(data, entry)

    monkeypatch.setattr(GeneratedScenes, "read", noting)
    monkeypatch.setattr(module, "choose", lambda *given: at_choice.extend(seen) or choose(*given))
    train(tiny(FAST + "sweep = dict(lr=[1e-3, 1e-2], holdout=0.4)"), tmp_path / "run")
    assert at_choice and {split for split, _ in at_choice} == {"train"}
    assert {entry for split, entry in seen if split == "val"} == set(range(FIRST_SCENE["val"], FIRST_SCENE["val"] + 7))
    held = {entry for _, entry in at_choice[-2:]}  # the last that were read were scored
    assert len(held) == 2 and not held & {entry for _, entry in at_choice[:-2]}


@pytest.mark.parametrize(
    ("lines", "read"), [("sweep = dict(lr=[1e-3, 1e-2], holdout=0.4)", [2, 7]), ("seeds = 2", [7])]
)
def test_nothing_is_scored_twice_or_before_it_decides_and_no_second_encoder_is_built(
    tiny, tmp_path, monkeypatch, lines, read
):
    from siglip2_dense.encoders import FrozenEncoder
    from siglip2_dense.engine import evaluate as evaluating

    scored, built, start = [], [], FrozenEncoder.__init__
    monkeypatch.setattr(FrozenEncoder, "__init__", lambda self, *a, **k: built.append(1) or start(self, *a, **k))

    def counted(probe, loader, *more):
        scored.append(len(loader.dataset))
        return evaluating.evaluate(probe, loader, *more)

    for place in ("siglip2_dense.engine.train", "siglip2_dense.engine.sweep"):
        monkeypatch.setattr(f"{place}.evaluate", counted)
    train(tiny(FAST + "train_cfg['val_interval'] = 2\n" + lines), tmp_path / "run")
    assert scored == read and len(built) == 1


def test_seeds_alone_train_on_everything_and_choose_nothing(tiny, tmp_path, capsys):
    record = train(tiny(FAST + "seeds = 3\nseed = 5"), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "sweep.json").read_text())
    (one,) = summary["settings"]
    assert one["seeds"] == [5, 6, 7] and len(set(one["validation"]["mIoU"]["values"])) == 3
    assert summary["selection"] is None and record["protocol"]["selection"] is None
    assert record["protocol"]["train_data"]["images"] == 5
    assert record["metrics"]["mIoU"] == one["validation"]["mIoU"]["values"][0]  # of the config's own seed
    told = capsys.readouterr().out
    assert "one setting, all seeds" in told and "± over 3 seeds of first weights and dropout; the images" in told
    assert summary["seeds"]["count"] == 3 and "order" in summary["seeds"]["vary"]
    train(tiny(FAST + "seed = 5", "alone.py"), tmp_path / "alone")
    swept = load_file(tmp_path / "run" / "head.safetensors")
    assert same(swept, "segmentation", load_file(tmp_path / "alone" / "head.safetensors")) <= 1e-5


def test_a_schedule_that_rises_takes_every_head_to_its_own_learning_rate(tiny, tmp_path):
    schedule = "param_scheduler = [dict(type='OneCycleLR', total_steps=6, by_epoch=False{})]\n"
    train(tiny(FAST + schedule.format("") + "sweep = dict(lr=[1e-3, 1e-2], holdout=0.4)"), tmp_path / "swept")
    settings = json.loads((tmp_path / "swept" / "sweep.json").read_text())["settings"]
    assert [one["lr"] for one in settings] == [1e-3, 1e-2]
    swept = load_file(tmp_path / "swept" / "all_heads" / "head.safetensors")
    alone = {}
    for rate in ("1e-3", "1e-2"):  # as mmengine does it where the rate is given
        lines = [FAST, schedule.format(f", eta_max={rate}"), PART]
        record = train(tiny("\n".join(lines), "alone.py"), tmp_path / rate)
        assert record["protocol"]["peak_learning_rate"]["segmentation"] <= float(rate)
        alone[rate] = load_file(tmp_path / rate / "head.safetensors")
        assert same(swept, f"segmentation/lr={rate},seed=0", alone[rate]) <= 1e-5
    assert not torch.equal(*(tensors["segmentation.conv.weight"] for tensors in alone.values()))


def test_a_seed_decides_what_its_head_drops_too_and_as_alone(tiny, tmp_path, monkeypatch):
    drawn, dropout = [], torch.nn.functional.dropout2d
    monkeypatch.setattr(
        torch.nn.functional, "dropout2d", lambda *given: drawn.append(torch.initial_seed()) or dropout(*given)
    )
    dropping = "dict(type='mmseg.FCNHead', _scope_='mmseg', channels=8, num_convs=1, dropout_ratio=0.5)"
    lines = f"{FAST}\nmodel['heads']['segmentation']['head'] = {dropping}\ntrain_cfg['max_iters'] = 2\n"
    train(tiny(lines + "seeds = 2"), tmp_path / "swept")
    steps = drawn[:4]
    assert len(set(steps)) == 4  # by step and seed
    drawn.clear()
    train(tiny(lines + "seed = 1", "alone.py"), tmp_path / "alone")
    assert drawn[:2] == steps[1::2]


def test_a_setting_that_diverges_is_left_out_and_harms_no_other(tiny, tmp_path):
    train(tiny(FAST + "sweep = dict(lr=[1e-3, 1e-2], holdout=0.4)"), tmp_path / "good")
    schedule = "param_scheduler = [dict(type='PolyLR', power=1.0, begin=0, end=12, by_epoch=False)]\n"
    train(tiny(FAST + schedule + "sweep = dict(lr=[1e-3, 1e37, 1e-2], holdout=0.4)"), tmp_path / "bad")
    good, bad = (json.loads((tmp_path / name / "sweep.json").read_text()) for name in ("good", "bad"))
    assert good["chosen"] == bad["chosen"]
    lost = bad["settings"][1]
    assert lost["values"]["lr"] == 1e37 and lost["diverged"]["0"] <= 6 and lost["validation"] is lost["holdout"] is None
    a, b = (load_file(tmp_path / name / "all_heads" / "head.safetensors") for name in ("good", "bad"))
    assert not all(tensor.isfinite().all() for key, tensor in b.items() if "1e37" in key)
    assert max((a[key].double() - b[key].double()).abs().max() for key in a) <= 1e-5
    with pytest.raises(UserError, match=r"no loss of the sweep was a finite number by step \d+; give lower"):
        train(tiny(FAST + schedule + "sweep = dict(lr=[1e37, 1e38], holdout=0.4)"), tmp_path / "none")


def grid(sweep, seeds=1):
    parts = dict(head=dict(type="LinearHead"), task=dict(type="Segmentation"), optim=dict(type="AdamW", lr=1e-3))
    return members(Config(dict(model=dict(heads=dict(seg=parts)), seed=2, seeds=seeds, sweep=sweep)))


def test_a_head_may_have_axes_of_its_own():
    parts = dict(head=dict(type="LinearHead"), task=dict(type="Segmentation"), optim=dict(type="AdamW", lr=1e-3))
    bare = {**parts, "head": dict(type="mmseg.FCNHead", channels=8), "optim": dict(type="SGD", lr=0.1)}

    def settings(sweep, **heads):
        found = members(Config(dict(model=dict(heads=heads), seed=0, sweep=sweep)))
        return {name: [member.setting for member in found if member.head == name] for name in heads}

    sweep = dict(lr=[1e-3, 1e-2], a=dict(upsample=[1, 2]), b=dict(lr=[0.1], momentum=[0, 0.9]))
    assert settings(sweep, a=parts, b=bare, c=parts) == {
        "a": ["lr=1e-3,upsample=1", "lr=1e-3,upsample=2", "lr=1e-2,upsample=1", "lr=1e-2,upsample=2"],
        "b": ["lr=1e-1,momentum=0", "lr=1e-1,momentum=9e-1"],
        "c": ["lr=1e-3", "lr=1e-2"],
    }
    assert settings(dict(a=dict(upsample=[1, 2])), a=parts, b=bare) == {"a": ["upsample=1", "upsample=2"], "b": [""]}
    for sweep, sentence in {
        "upsample": r"sweep.upsample: heads.b has no such setting: .* sweep=dict\(NAME=dict\(upsample=",
        "d": r"sweep.d={'lr': \[1\]}: give the values to try as a list.* a dict under its name \(a, b\)",
        "a": r"sweep.a.lr=1: give the values",
    }.items():
        values = {"upsample": [1, 2], "d": dict(lr=[1]), "a": dict(lr=1)}
        with pytest.raises(UserError, match=sentence):
            settings({sweep: values[sweep]}, a=parts, b=bare)


def test_names_and_places_of_settings():
    found = grid(dict(lr=[1e-4, 0.0015], betas=[(0.9, 0.99)], layers=["last", [2, 5]], holdout=0.2), seeds=2)
    assert [member.name for member in found[:3]] == [
        "seg/lr=1e-4,betas=9e-1+99e-2,layers=last,seed=2",
        "seg/lr=1e-4,betas=9e-1+99e-2,layers=last,seed=3",
        "seg/lr=1e-4,betas=9e-1+99e-2,layers=2+5,seed=2",
    ]
    assert len(found) == 8 and not any("." in member.name for member in found)
    parts = found[-1].parts
    assert parts["optim"] == dict(type="AdamW", lr=0.0015, betas=(0.9, 0.99)) and parts["seed"] == 3
    assert parts["head"] == dict(type="LinearHead", layers=[2, 5])
    assert [member.seed for member in grid(dict(lr=[1e-3]), seeds=None)] == [2]
    heads = [dict(type="LinearHead", batch_norm=False), dict(type="LinearHead"), dict(type="mmseg.FCNHead", channels=8)]
    found = grid(dict(head=heads))
    assert [member.setting for member in found] == ["head=LinearHead_0", "head=LinearHead_1", "head=FCNHead_2"]
    found = grid(dict(head=heads[2:], channels=[8, 16], layers=["even4"]))
    assert [member.parts["head"]["channels"] for member in found] == [8, 16]


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        (dict(lr=1e-3), r"sweep.lr=0.001: give the values to try as a list, such as lr=\[0.001\]"),
        (dict(lr=[]), "sweep.lr"),
        (dict(lr=["fast"]), "sweep.lr: 'fast' is no lr of heads.seg; give numbers above 0"),
        (dict(lr=[True]), "sweep.lr"),
        (dict(lr=[0.0]), "numbers above 0"),
        (dict(lr=[float("nan")]), "numbers above 0"),
        (dict(weight_decay=[None]), "sweep.weight_decay: None .* numbers from 0 on"),
        (dict(betas=[0.9]), "sweep.betas: 0.9 .* give lists such as"),
        (dict(betas=[[0.9, 0.95], [0.9, 2.0]]), r"heads.seg cannot be trained with .*2.0.*\(ValueError: Invalid beta"),
        (dict(eps=[-1]), "Invalid epsilon value: -1.*; give other values"),
        (dict(eps=["small"]), "give numbers"),
        (dict(amsgrad=[1]), "True or False"),
        (dict(layers=[3]), "sweep.layers: 3 .* words, such as 'last', or lists"),
        (dict(upsample=["2"]), "sweep.upsample: '2' .* whole numbers"),
        (dict(stride=[7.5]), "sweep.stride: 7.5 .* whole numbers"),
        (dict(pooled=[1]), "sweep.pooled"),
        (dict(batch_norm=["no"]), "True or False"),
        (dict(layer=["last"]), "sweep.layer: heads.seg has no such setting: did you mean 'layers'"),
        (dict(wd=[0]), "sweep.wd: heads.seg has no such setting"),
        (dict(params=[0]), "no such setting"),
        (dict(lr=[1e-3, 0.001]), "sweep.lr has 0.001 twice"),
        (dict(head=["LinearHead"]), "given as dict"),
        (dict(head=[dict(type="LinearHed")]), "did you mean 'LinearHead'"),
        (dict(head=[dict(type="LinearHead", layer=2)]), "did you mean 'layers'"),
        (dict(), "sweep names no setting"),
        (dict(holdout=0.2), "sweep names no setting"),
        ([1e-3], "sweep="),
    ],
)
def test_a_value_that_cannot_be_one_is_named(sweep, sentence):
    with pytest.raises(UserError, match=sentence):
        grid(sweep)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("seeds = 0", "seeds=0"),
        ("seeds = 2.5", "seeds=2.5"),
        ("seeds = True", "seeds=True"),
        ("sweep = dict(lr=[1e-3], holdout=2)", "holdout=2: give the fraction"),
        ("sweep = dict(lr=[1e-3], holdout=None)", r"sweep.holdout=None: .*leave it out for 0.1"),
        ("sweep = dict(pooled=['readout'])", "pooled='readout'; give 'none' or 'concat'"),
        ("sweep = dict(layers=[[9]])", "has blocks 0 to 5"),
        (
            "sweep = dict(lr=[1e-3])\nparam_scheduler = [dict(type='OneCycleLR', eta_max=1, total_steps=8)]",
            "OneCycleLR in param_scheduler takes every learning rate to eta_max",
        ),
        ("seeds = 2\nmodel['encoder']['trainable'] = 'norms'", "model.encoder.trainable='norms' would change that"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_trained(tiny, tmp_path, lines, sentence):
    with pytest.raises(UserError, match=sentence):
        train(tiny(FAST + lines), tmp_path / "run")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_choice_by_hand():
    def member(head, setting, seed):
        return Member(f"{head}/{setting},seed={seed}", head, setting, {}, seed, {})

    heads = [member(head, setting, seed) for head in ("a", "b") for setting in ("x", "y", "z") for seed in (0, 1)]
    values = {"x": (3, 4), "y": (1, 7), "z": (9, 9)}
    scores = {m.name: {"score": values[m.setting][m.seed]} for m in heads}
    lost = {"a/z,seed=1": 4, "b/z,seed=0": 4}
    tasks = {name: SimpleNamespace(headline="score", higher_is_better=name == "a") for name in "ab"}
    assert [m.name for m in module.choose(heads, tasks, scores, lost)] == ["a/y,seed=1", "b/x,seed=0"]
    lost |= {"a/x,seed=0": 1, "a/y,seed=0": 1}
    with pytest.raises(UserError, match=r"heads.a: a seed of every setting has diverged"):
        module.choose(heads, tasks, scores, lost)
    first = module.choose(heads, tasks, {}, lost)  # nothing to choose: the first that is whole
    assert [m.name for m in first] == ["a/x,seed=1", "b/x,seed=0"]


def test_two_processes_choose_alike_and_count_every_image_once(tiny, tool, tmp_path):
    config = tiny(FAST + "sweep = dict(lr=[1e-3, 1e-2], holdout=0.4)")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = tool("train", config, "--work-dir", tmp_path / "pair", "--launcher", "pytorch", launcher=launcher)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "pair" / "results.json").read_text())
    assert record["data"]["images"] == 7 and record["protocol"]["selection"]["images"] == 2
    arguments = [str(config), str(tmp_path / "pair" / "head.safetensors"), "--work-dir", str(tmp_path / "t")]
    test_verb.main([*arguments, "--out", str(tmp_path / "alone.json")])
    assert json.loads((tmp_path / "alone.json").read_text())["metrics"] == record["metrics"]


def test_from_stored_features_a_swept_head_is_the_one_trained_alone(tiny, tmp_path):
    store = f"feature_store = dict(dir={str(tmp_path / 'store')!r}, views=2)\n"
    train(
        tiny(FAST + store + "sweep = dict(lr=[1e-3, 1e-2], pooled=['none', 'concat'], holdout=0.4)"), tmp_path / "swept"
    )
    swept = load_file(tmp_path / "swept" / "all_heads" / "head.safetensors")
    pooled = 'model["heads"]["segmentation"]["head"]["pooled"] = "concat"\n'
    train(tiny(FAST + store + pooled + PART, "alone.py"), tmp_path / "alone")
    alone = load_file(tmp_path / "alone" / "head.safetensors")
    assert same(swept, "segmentation/lr=1e-2,pooled=concat,seed=0", alone) <= 1e-5
