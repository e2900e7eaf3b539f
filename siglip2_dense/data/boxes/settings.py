"""What a mixture may be told."""

from __future__ import annotations

from collections.abc import Sequence

from siglip2_dense.errors import UserError


def check_mixture(sets: Sequence[dict], size: int, mosaics: Sequence[float], merge: float) -> None:
    """Raises UserError for settings of ``DetectionMixture`` that cannot be."""
    if not sets:
        raise UserError("DetectionMixture: sets is empty; give at least one dict(dataset=...).")
    for one in sets:
        if unknown := sorted(set(one) - {"dataset", "weight", "prompts"}):
            raise UserError(f"DetectionMixture: sets have dataset, weight and prompts, not {unknown[0]!r}.")
        weight = one.get("weight", 1)
        if "dataset" not in one or not isinstance(weight, (int, float)) or not weight > 0:
            raise UserError(f"DetectionMixture: {one!r}: give the config of a dataset, and a weight above 0.")
    if not mosaics or min(mosaics) < 0 or sum(mosaics) <= 0:
        raise UserError(
            f"DetectionMixture: mosaics={mosaics!r}: give a probability of 1 x 1 images, of 2 x 2, and so on."
        )
    for k, probability in enumerate(mosaics, start=1):
        if probability and size % k:
            raise UserError(f"DetectionMixture: size={size} is no multiple of {k}, of mosaics of {k} x {k} images.")
    if not isinstance(merge, (int, float)) or not merge > 0:  # of 0 boxes would be merged again and again
        raise UserError(f"DetectionMixture: merge={merge!r}: give an overlap above 0; above 1 nothing is merged.")


def check_counts(**settings: tuple[int, int]) -> None:
    """Raises UserError for a setting, given with the least that it can be, that is no such whole number."""
    for name, (value, least) in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"DetectionMixture: {name}={value!r}; give a whole number from {least} on.")
