"""What all verbs share: configs by name, overrides that must exist, JSON for machines, and errors in one sentence."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path

from siglip2_dense.engine.configs import KEYS, OF_OPTIM, check_keys, find_config, read_config
from siglip2_dense.errors import UserError, nearest

NAME = "siglip2-dense"
STDOUT = "-"  # where JSON goes without a file
OF_PLACES = {  # errors of the system that say something of the user's paths and disk, and not of our code
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip


def run(verb: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Call a verb and give its exit code: 0, or 1 with a sentence on stderr, of a UserError or of a path that the
    system refuses, or 130 when interrupted; argparse itself ends with 2."""
    try:
        verb(argv)
    except UserError as error:
        # one from a loader's worker process arrives inside the text of its traceback
        print(f"error: {str(error).rpartition('UserError: ')[2].strip()}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads our output, head or less, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in OF_PLACES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {where}{error.strerror}; give another path, or see to its permissions and room.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def command_line() -> str:
    """The command of this process as it can be given again, with what launched it."""
    program, *rest = sys.argv
    if program.startswith(f"{NAME} "):  # see cli/main.py
        verb = program.split()[1:]
        command, module = [NAME, *verb], ["-m", "siglip2_dense", *verb]
    else:
        command, module = ["python", program], [program]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        nodes = os.environ["GROUP_WORLD_SIZE"]
        several = [] if nodes == "1" else ["--nnodes", nodes]
        command = ["torchrun", *several, "--nproc_per_node", os.environ["LOCAL_WORLD_SIZE"], *module]
    elif "SLURM_NTASKS" in os.environ and "slurm" in (word.rpartition("=")[2] for word in rest):
        command = ["srun", "--ntasks", os.environ["SLURM_NTASKS"], *command]
    return shlex.join([*command, *rest])


def add_json_argument(parser: argparse.ArgumentParser, file: bool = False) -> None:
    """``--json``, and ``--json FILE`` where the text is to be seen as well; ``show`` reads it."""
    if file:
        words = "the same as JSON: written to FILE, or printed in its place; without FILE, put it last"
        parser.add_argument("--json", nargs="?", const=STDOUT, metavar="FILE", help=words)
    else:
        parser.add_argument("--json", action="store_const", const=STDOUT, help="print JSON in place of the text")


def show(found: dict | list, text: str, where: str | None) -> None:
    """Print a verb's result, and write it, as ``--json`` asks. A number that is not finite becomes null."""
    from siglip2_dense import records

    if where == STDOUT:
        print(records.as_json(found), end="")
        return
    print(text)
    if where:
        records.write(where, found)


def words_aside(where: str | None) -> AbstractContextManager:
    """While it lasts, what a verb says as it works goes to stderr, if its standard output is to be JSON alone."""
    return redirect_stdout(sys.stderr) if where == STDOUT else nullcontext()


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that ``load_config`` reads."""
    parser.add_argument("config", help="a config file, or the name of one that comes with the package")
    parser.add_argument(
        "--encoder", metavar="NAME", help="encoder to use instead of the config's; weights from the hub"
    )
    parser.add_argument("--weights", metavar="hub|random|PATH", help="where the encoder's weights come from")
    parser.add_argument("--work-dir", metavar="DIR", help="where results go; default work_dirs/CONFIG_ENCODER")
    parser.add_argument("--features", metavar="DIR", help="keep the encoder's features there, and work from them")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings to change, e.g. train_cfg.max_iters=100",
    )


def load_config(arguments: argparse.Namespace):
    """The Config of a run with the command line's changes in it, its keys checked."""
    from mmengine.config import DictAction

    path = find_config(arguments.config)
    config = read_config(path)
    check_keys(config)
    if arguments.encoder or arguments.weights:
        encoder = config.model.get("encoder")
        if encoder is None:
            raise UserError(f"{path} has no model.encoder for --encoder or --weights to change.")
        if arguments.encoder:
            encoder.name, encoder.weights = arguments.encoder, "hub"
            # they belong to the encoder that was there
            for key in ("model_args", "sequence_length", "position_kernel"):
                encoder.pop(key, None)
            for key in ("name", "weights", "tokenizer", "model_args"):
                (config.model.get("text") or {}).pop(key, None)
        if arguments.weights:
            encoder.weights = arguments.weights
    options = {}
    for item in arguments.cfg_options:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--cfg-options {item}: write KEY=VALUE.")
        check_override(config, key)
        try:
            options[key] = DictAction._parse_iterable(value)
        except (TypeError, ValueError, AssertionError, RecursionError) as error:
            raise UserError(f"--cfg-options {item}: the value cannot be read; lists are [1,2], pairs (1,2).") from error
    config.merge_from_dict(options)
    config.launcher = arguments.launcher
    if getattr(arguments, "features", None):
        config.feature_store = {**config.get("feature_store", {}), "dir": arguments.features}
    encoder = config.model.get("encoder", {})
    source = encoder.get("weights", "hub")
    parts = [path.stem, encoder.get("name", "stored"), *([] if source == "hub" else [Path(str(source)).stem])]
    config.work_dir = arguments.work_dir or config.get("work_dir") or f"work_dirs/{'_'.join(parts)}"
    return config


def check_override(config, key: str) -> None:
    """Raise UserError unless the config, or the part it is built into, has a setting of that name."""
    here, *rest = key.split(".")
    place, node = "", config
    while True:
        if isinstance(node, (list, tuple)):
            if not here.isdecimal() or int(here) >= len(node):
                raise UserError(f"--cfg-options {key}: {place} has {len(node)} items, 0 to {len(node) - 1}.")
            inner = node[int(here)]
        elif place == "sweep":  # any setting of a head may stand there, and the sweep judges it
            return
        elif hasattr(node, "keys"):
            known = set(node.keys()) | _arguments(place, node)
            if here not in known:
                raise UserError(
                    f"--cfg-options {key}: {place or 'the config'} has no setting {here!r}: "
                    f"{nearest(here, known, ', '.join(sorted(known)))}"
                )
            inner = node.get(here)
        else:
            raise UserError(f"--cfg-options {key}: {place} is {node!r} and has no settings of its own.")
        if not rest or inner is None:  # nothing there yet: what is built will judge what it is given
            return
        place, node = f"{place}.{here}" if place else here, inner
        here, *rest = rest


def _arguments(place: str, node) -> set[str]:
    """Settings that may stand at a place, written in the config or not: at the top, of a head, or of a part's type."""
    from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS

    from siglip2_dense.models.probe import PARTS
    from siglip2_dense.registry import DATASETS, MODELS, TASKS, TRANSFORMS, known_arguments

    if not place:
        return set(KEYS)
    if KEYS.get(place):
        return KEYS[place]
    if place.startswith("model.heads.") and "." not in place.removeprefix("model.heads."):
        return set(PARTS)
    for registry in (MODELS, TASKS, DATASETS, TRANSFORMS, OPTIMIZERS, PARAM_SCHEDULERS):
        cls = registry.get(node["type"]) if isinstance(node.get("type"), str) else None
        if cls is not None:
            return (known_arguments(cls) or set()) | (OF_OPTIM if registry is OPTIMIZERS else set())
    return set()
