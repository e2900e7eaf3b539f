"""Feature maps as colours: their three principal components."""

from __future__ import annotations

import numpy as np
from PIL import Image

from siglip2_dense.contracts import Geometry
from siglip2_dense.viz.colours import NO_VALUE
from siglip2_dense.viz.layout import enlarge, grid, titled

OUTLIERS = 1  # per cent of the cells at either end of a component that do not stretch its scale
FLAT = 1e-6  # of the largest feature: a component that varies less is rounding
COLUMNS = 3


def pca_colours(features: np.ndarray) -> np.ndarray:
    """(C, h, w) floats -> (h, w, 3) uint8: the first three principal components of the cells as red, green and blue.

    Each component is scaled on its own, without the outermost 1 % of the cells at either end; one that does not vary is
    grey. Its largest weight is positive, so that equal maps have equal colours; those of two encoders, or blocks, have
    nothing to do with each other. Raises ValueError for values that are not finite.
    """
    channels, height, width = features.shape
    cells = features.reshape(channels, -1).T.astype(np.float64)
    if not np.isfinite(cells).all():
        raise ValueError("features that are not finite have no principal components.")
    colours = np.full((height * width, 3), NO_VALUE, np.uint8)
    for i, values in enumerate(_components(cells - cells.mean(0))):
        low, high = np.percentile(values, (OUTLIERS, 100 - OUTLIERS))
        if high - low > FLAT * np.abs(cells).max():
            colours[:, i] = (255 * (values - low) / (high - low)).clip(0, 255).round()
    return colours.reshape(height, width, 3)


def _components(centred: np.ndarray) -> np.ndarray:
    """(N, C) of mean 0 -> (3, N), or as many as there are: the cells along the directions of largest variance.

    By way of the products of channels or those of cells, whichever are fewer: a decomposition of the map itself takes
    ten times as long.
    """
    from scipy.linalg import eigh

    count, channels = centred.shape
    fewer = min(count, channels)
    products = centred.T @ centred if channels == fewer else centred @ centred.T
    squares, vectors = eigh(products, subset_by_index=(max(fewer - 3, 0), fewer - 1))
    squares, vectors = squares[::-1, None], vectors.T[::-1]  # the largest first
    if channels == fewer:
        weights, values = vectors, vectors @ centred.T
    else:
        weights, values = vectors @ centred, vectors * np.sqrt(squares.clip(0))
    largest = np.abs(weights).argmax(1)
    return values * np.sign(weights[np.arange(len(weights)), largest])[:, None]


def pca_panel(image: np.ndarray, maps: dict[str, np.ndarray], geometry: Geometry) -> np.ndarray:
    """The image and, beside and below it, the colours of each map over the same part of the world.

    image: (H, W, 3) uint8 at the size of the box of ``geometry``; maps: {title: (C, h, w)} over its padded canvas.
    Returns (h, w, 3) uint8.
    """
    top, left, height, width = geometry.box
    pictures = [titled("input", image)]
    for title, features in maps.items():
        stride = geometry.padded[0] // features.shape[1]
        canvas = enlarge(pca_colours(features), stride, Image.Resampling.NEAREST)
        pictures.append(titled(title, canvas[top : top + height, left : left + width]))
    return grid(pictures, COLUMNS)
