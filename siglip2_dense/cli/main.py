"""Train and run dense-prediction heads on frozen image encoders."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

import siglip2_dense
from siglip2_dense.cli.common import NAME, run
from siglip2_dense.errors import nearest

VERBS = {  # each is cli/VERB.py, with main(argv)
    "demo": "train three heads on generated scenes, in minutes on a CPU, without any download",
    "train": "train the heads of a config on a frozen encoder",
    "test": "evaluate a head on the test data of a config",
    "predict": "run a head, or names alone, on your own images",
    "configs": "the configs that come with the package: which there are, and one in full",
    "encoders": "the encoders: which there are, what is known of one, and whether it loads",
    "data": "data sets: fetch, verify, and look at samples",
    "show": "the images that a head does worst on, beside the truth",
    "report": "records beside the paper's tables, as Markdown and one page",
    "reproduce": "a row of one of the paper's tables, from the data to the report",
    "export": "encoder and heads as one ONNX or torch.export file",
    "heads": "share heads: push, pull, list, show",
    "page": "a page in the browser, to drop images on",
    "features": "stored features: extract, verify, list, remove",
    "plan": "what a run will cost, before anything runs",
    "compare": "differences between records, with paired intervals",
    "convert-head": "published heads as head files",
    "benchmark": "measure what the documentation claims",
}
EXAMPLES = f"""examples:
  {NAME} demo
  {NAME} train probe_ade20k --encoder siglip2-base-16-256
  {NAME} test probe_ade20k work_dirs/probe_ade20k_siglip2-base-16-256/head.safetensors
  torchrun --nproc_per_node 8 -m siglip2_dense train probe_ade20k --launcher pytorch

{NAME} VERB --help says more of each. Exit codes: 0, 1 with a sentence that says what to mend, 2 for a command that
cannot be read, 130 when interrupted.
"""


def main(argv: list[str] | None = None) -> int:
    """Call the verb that the first argument names; gives the exit code."""
    first, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if first in VERBS:
        sys.argv = [f"{NAME} {first}", *rest]  # usage lines and command_line() read it
        return run(import_module(f"siglip2_dense.cli.{first.replace('-', '_')}").main, rest)
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb.ljust(width)}  {words}" for verb, words in VERBS.items())
    parser = argparse.ArgumentParser(
        prog=NAME, usage=f"{NAME} VERB ...", description=__doc__, epilog=f"verbs:\n{verbs}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"{NAME} {siglip2_dense.__version__}")
    if first.startswith("-"):
        parser.parse_args([first])  # ends here, unless it is neither of the two
    known = ", ".join(VERBS)
    parser.error(f"there is no verb {first!r}: {nearest(first, VERBS, known)}" if first else f"give a verb: {known}")
