"""What heads are given: the features of one image as colours, by each encoder as its run asked for it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from siglip2_dense.errors import UserError, first_line
from siglip2_dense.report.blocks import Heading, Pictures
from siglip2_dense.report.gallery import embedded
from siglip2_dense.report.runs import Run, encoder_name

SHORT = 448  # pixels of the image's short side
TITLE = "three principal components of each map as red, green and blue, which mean nothing from one map to another"


def feature_pictures(runs: Sequence[Run], image: str | Path) -> tuple[list, list[str]]:
    """The maps that the first run of each encoder reads, and a sentence for each encoder that cannot be built.

    image: a file. Raises UserError when it cannot be read.
    """
    from siglip2_dense.data.images import pixels_of

    pixels = pixels_of(image)
    first: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: not run.encoder):  # those first that know their encoder
        first.setdefault(str(run.record["encoder"].get("fingerprint")), run)
    blocks, problems = [], []
    for number, run in enumerate(first.values(), 1):
        name = encoder_name(run)
        try:
            picture = embedded(io.BytesIO(_drawn(run, pixels)), TITLE)
        except (UserError, OSError) as error:
            said = str(error) if isinstance(error, UserError) else first_line(error)
            problems.append(f"{run.path}: features of {name} are left out: {said}")
            continue
        blocks += [Heading(name, f"features-{number}", 3), Pictures([picture])]
    return blocks, problems


def _drawn(run: Run, pixels) -> bytes:
    """A PNG. Raises UserError where the run's encoder is not to be had, or another than it was."""
    import torch
    from PIL import Image

    from siglip2_dense.contracts import Tap
    from siglip2_dense.data.transforms import fitted
    from siglip2_dense.registry import MODELS, build
    from siglip2_dense.resample import resize_image
    from siglip2_dense.viz.pca import pca_panel

    if not run.encoder:
        raise UserError("there is no head file of this run beside the record, which says where its weights are.")
    encoder = build(
        MODELS, {**run.encoder, "trainable": "none", "drop_path": 0.0, "checkpointing": False, "compile": False}
    )
    said = run.record["encoder"]
    if encoder.fingerprint != said.get("fingerprint"):
        raise UserError(f"the weights are others now ({encoder.fingerprint[:12]}) than they were in the run.")
    encoder = encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    pixels = resize_image(pixels, encoder.fixed_size or fitted(pixels.shape[:2], SHORT, None))
    taps = [Tap(tap["block"], tap["norm"]) for tap in said["taps"]]
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    features = encoder.features([image.to(encoder.mean.device)], taps)
    (geometry,) = features.geometry
    maps = {f"block {tap.block}": features.maps[tap][0].float().cpu().numpy() for tap in taps}
    stream = io.BytesIO()
    shown = pca_panel(resize_image(pixels, geometry.box[2:]), maps, geometry)  # NaFlex scales the image
    Image.fromarray(shown).save(stream, "PNG")
    return stream.getvalue()
