"""Traced, written and loaded: torch's exported programs (``.pt2``) and ONNX."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from siglip2_dense.contracts import Size
from siglip2_dense.errors import UserError
from siglip2_dense.export.graph import Graph

ONNX, PT2 = ".onnx", ".pt2"
INPUT = "images"
ABOUT = "siglip2_dense.json"  # beside a program in its .pt2: what ``describe`` says
AXES = ("batch", "height", "width")
Run = Callable[[Tensor], dict[str, Tensor]]
"""(B, 3, H, W) uint8 -> {output: tensor}."""


def check_name(out: str | Path) -> None:
    """Raise UserError for a file of another kind, and where what writes it is missing."""
    if Path(out).suffix not in (ONNX, PT2):
        raise UserError(f"--out {out}: give a file that ends in {ONNX}, or in {PT2} for torch's exported program.")
    needed = ("onnx", "onnxscript", "onnxruntime") if Path(out).suffix == ONNX else ()
    if missing := [name for name in needed if find_spec(name) is None]:
        raise UserError(
            f"--out {out}: ONNX needs {' and '.join(missing)}; run pip install 'siglip2_dense[export]', or export to "
            f"{PT2}."
        )


def trace(probe, size: Size, free: bool) -> ExportedProgram:
    """The program for batches of any number of images; free: and of any size, or else of this one.

    Raises whatever torch.export does where the size cannot be free.
    """
    dims = dict.fromkeys((0, 2, 3) if free else (0,), Dim.DYNAMIC)
    example = torch.zeros(2, 3, *size, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to programmers
        program = torch.export.export(
            Graph(probe), (example,), dynamic_shapes={INPUT: dims}, prefer_deferred_runtime_asserts_over_guards=True
        )
    return _unbounded(program)


def _unbounded(program: ExportedProgram) -> ExportedProgram:
    """Without what was noted of the example on the way, such as that it is no multiple of the patch.

    At run time it would be demanded of every image. Whether the program is right for others is seen by comparison.
    """
    for module in program.graph_module.modules():  # and the regions in it
        if isinstance(module, torch.fx.GraphModule):
            for node in list(module.graph.nodes):
                if node.target is torch.ops.aten._assert_scalar.default:
                    module.graph.erase_node(node)
            module.graph.eliminate_dead_code()
            module.recompile()
    for symbol in program.range_constraints:
        program.range_constraints[symbol] = ValueRanges(1, int_oo)
    return program


def describe(probe, size: Size | None) -> dict:
    """What goes in, what comes out, and whose it is, as plain data; size: of the images, none where it is free."""
    height, width = AXES[1:] if size is None else size
    outputs, heads = {}, {}

    def give(name: str, shape: list, kind: str, what: str) -> None:
        outputs[name] = {"shape": [AXES[0], *shape], "type": kind, "what": what}

    for name, task in probe.tasks.items():
        heads[name] = {"task": type(task).__name__}
        if hasattr(task, "classes"):
            heads[name]["classes"] = list(task.classes)
        if task.target == "boxes":
            give(f"{name}_boxes", ["boxes", 4], "float32", "x0 y0 x1 y1 in pixels of the image, the surest first")
            give(f"{name}_scores", ["boxes"], "float32", "probabilities, 0 to 1")
            give(f"{name}_labels", ["boxes"], "int64", "numbers of classes, from 0")
        elif task.target == "labels":
            give(name, [height, width], "int64", "numbers of classes, from 0")
        elif task.target == "depth":
            heads[name] |= {"unit": task.unit, "min_depth": task.min_depth, "max_depth": task.max_depth}
            give(name, [1, height, width], "float32", f"depth in {task.unit}")
        else:
            give(name, [3, height, width], "float32", "unit vectors: x right, y down, z into the scene")
    encoder, what = probe.encoder, "RGB, 0 to 255"
    return {
        "format": "siglip2_dense export, version 1",
        "inputs": {INPUT: {"shape": [AXES[0], 3, height, width], "type": "uint8", "what": what}},
        "outputs": outputs,
        "heads": heads,
        "inference": probe.inference,
        "encoder": {
            "name": encoder.facts.name, "fingerprint": encoder.facts.fingerprint, "trained": encoder.trainable,
        },
    }  # fmt: skip


def write(program: ExportedProgram, about: dict, path: Path) -> None:
    """``path`` says which kind. Weights of 1.5 GiB and more lie beside an ONNX file, in one with ``.data`` behind."""
    if path.suffix == PT2:
        torch.export.save(program, path, extra_files={ABOUT: json.dumps(about, indent=1)})
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=list(about["outputs"]), verbose=False
        )
    graph = onnx.model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()  # where in whose files it comes from
    shapes = {name: one["shape"] for name, one in (about["inputs"] | about["outputs"]).items()}
    for value in (*graph.inputs, *graph.outputs):
        value.shape = type(value.shape)(shapes[value.name])
    for key, said in about.items():
        onnx.model.metadata_props[key] = said if isinstance(said, str) else json.dumps(said)
    onnx.save(path)


def load(path: Path) -> Run:
    """What was written, as anybody would run it, on the CPU."""
    if path.suffix == PT2:
        return torch.export.load(path).module()

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {INPUT: images.numpy()})
        return {name: torch.from_numpy(one) for name, one in zip(names, found, strict=True)}

    return run
