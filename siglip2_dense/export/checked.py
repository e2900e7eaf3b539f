"""An export, which is there only if it says what the model says."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from siglip2_dense.contracts import Size
from siglip2_dense.errors import UserError, first_line
from siglip2_dense.export.parity import LIMIT, differences
from siglip2_dense.export.program import check_name, describe, load, trace, write
from siglip2_dense.files import atomic


class Exported(NamedTuple):
    """What was written."""

    size: Size | None  # of the images that it takes; none where any will do
    reason: str  # why the size is fixed where nobody asked for it
    differences: dict[str, float]  # from the model, of each head


def export(probe, out: str | Path, size: Size | None = None) -> Exported:
    """Write a probe's encoder and heads to a file that takes images and gives finished maps, and compare what it gives
    with the probe's own predictions.

    probe: as ``opening`` builds it. out: ends in .onnx or .pt2. size: (height, width) of all images; by default they
    are free, or the encoder's own where it, or a head, takes no others. Raises UserError, and leaves what there was,
    where no export can be made and where the largest difference is above ``LIMIT``.
    """
    check_name(out)
    facts = probe.facts
    if facts.sequence_length is not None:
        raise UserError(
            f"{facts.name} cuts each image into patches by its own aspect, which a traced program cannot; export a "
            "head on a fixed-resolution encoder."
        )
    fixed, reason = (size, "") if size else _given_size(probe)
    if fixed is None:
        try:
            return _checked(probe, Path(out), _native(probe), True)
        except UserError:
            raise
        except Exception as error:  # torch.export and what writes ONNX answer in many ways to a size that decides
            fixed, reason = _native(probe), f"the size cannot be free ({first_line(error)}); --size gives another"
    return _checked(probe, Path(out), fixed, False)._replace(reason=reason)


def _given_size(probe) -> tuple[Size | None, str]:
    """The size that all images must have, and why; none where it is worth a try to leave it free."""
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame

    if probe.encoded((1, 1)) != (1, 1):  # the model itself brings images to a size
        return None, ""
    if probe.encoder.fixed_size:
        return probe.encoder.fixed_size, f"{probe.facts.name} takes no other size"
    if any(isinstance(part, (AvgPool2dSame, Conv2dSame, MaxPool2dSame)) for part in probe.encoder.tower.modules()):
        return _native(probe), f"{probe.facts.name} pads its maps by their sizes, layer by layer; --size gives another"
    return None, ""


def _native(probe) -> Size:
    """The size of images that the encoder was made for."""
    if probe.facts.native_grid is not None:
        return tuple(side * probe.encoder.patch_size for side in probe.facts.native_grid)
    return tuple(probe.encoder.tower.pretrained_cfg["input_size"][1:])


def _checked(probe, out: Path, size: Size, free: bool) -> Exported:
    step = probe.facts.multiple
    probe.read([torch.zeros(3, *size, dtype=torch.uint8)])  # a size that the model does not take is refused here
    cases = [(1, size), (3, size)]
    if free:  # sizes that are no multiple of the patch, and grids of odd and even sides
        cases = [(1, size), (3, (3 * step + 1, 5 * step - 1)), (2, (4 * step, 7 * step // 2 + 1))]
    traced = (5 * step + 1, 7 * step - 2) if free else size
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        path = Path(folder) / out.name
        write(trace(probe, traced, free), describe(probe, None if free else size), path)
        found = differences(probe, load(path), cases)
        for name, difference in found.items():
            if not difference <= LIMIT:
                advice = "give --size HEIGHT WIDTH" if free else "give a file of the other kind"
                raise UserError(
                    f"{out}: heads.{name} would differ from the model by {difference:.2g}, more than {LIMIT:g}, and is "
                    f"not written; {advice}."
                )
        for staged in sorted(Path(folder).iterdir(), reverse=True):  # weights beside the program come before it
            with atomic(out.with_name(staged.name)) as temporary:
                os.replace(staged, temporary)
    return Exported(None if free else size, "", found)
