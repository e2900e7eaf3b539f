"""Scores against a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Points = Sequence[tuple[float, float, float | None]]
"""(x, y, half the length of a bar through the point or none)."""

HEIGHT, WIDTH, DPI = 4.5, 6.0, 120  # of a panel, in inches
LABEL, LINE = 0.075, 0.2  # room for a character and a line of the legend, in inches


def curves(panels: Mapping[str, Mapping[str, Points]], x_label: str, y_labels: Sequence[str]) -> np.ndarray:
    """(H, W, 3) uint8: panels side by side, each with its title, a line for each label, and an x axis in powers of ten.

    Points that are not finite are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = {label for lines in panels.values() for label in lines}
    beside = LABEL * max(map(len, labels)) + 1 if len(labels) > 1 else 0
    height = max(HEIGHT, LINE * max(len(lines) for lines in panels.values()) + 1)
    figure = Figure(figsize=((WIDTH + beside) * len(panels), height), dpi=DPI, layout="constrained")
    for axes, (title, lines), y_label in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), y_labels, strict=True
    ):
        draw(axes, lines, x_label, y_label, "log")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw(axes, lines: Mapping[str, Points], x_label: str, y_label: str, x_scale: str) -> None:
    """A line for each label in matplotlib's axes, in the order of x; points that are not finite are left out.

    x_scale: "log" or "linear".
    """
    for number, (label, points) in enumerate(lines.items()):
        points = sorted((point for point in points if np.isfinite(point[1])), key=lambda point: point[:2])
        x, y, bars = zip(*points, strict=True) if points else ((), (), ())
        style = dict(color=f"C{number % 10}", linestyle=("-", "--", ":", "-.")[number // 10 % 4], marker="o")
        bars = [bar or 0 for bar in bars] if any(bars) else None
        axes.errorbar(x, y, bars, label=label, capsize=3, markersize=4, **style)
    axes.set(xlabel=x_label, ylabel=y_label, xscale=x_scale)
