"""Lines against a setting as SVG that takes its colours, and so light or dark, from the page it stands in."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping

from siglip2_dense.viz.curves import Points, draw

WIDTH, HEIGHT, LINE = 4.6, 2.7, 0.19  # inches; the last is of the legend
SERIES = 10  # colours of a page
# Colours that matplotlib passes on and no one would choose: they become variables of the page's style.
INK, GRID = "#010310", "#010311"
VARIABLES = {INK: "--ink", GRID: "--rule", **{f"#0103{number:02x}": f"--series-{number}" for number in range(SERIES)}}
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 9,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
}  # fmt: skip


def line_chart(lines: Mapping[str, Points], x_label: str, y_label: str, x_scale: str = "linear") -> str:
    """An SVG element with a line for each label; points are (x, y) or (x, y, half a bar).

    Its ids are its own, so that several may stand in one page.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    series = cycler(color=[colour for colour in VARIABLES if colour not in (INK, GRID)])
    legend = LINE * len(lines) if len(lines) > 1 else 0
    with matplotlib.rc_context({**STYLE, "axes.prop_cycle": series}):
        figure = Figure(figsize=(WIDTH, HEIGHT + legend), layout="constrained")
        axes = figure.subplots()
        draw(axes, lines, x_label, y_label, x_scale)
        if x_scale == "log":  # its own labels are formulas, which are not parsed
            ticks = sorted({point[0] for points in lines.values() for point in points})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xticks([], minor=True)
        if len(lines) > 1:
            figure.legend(loc="outside lower left", frameon=False, borderpad=0, labelspacing=0.3)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    return _for_page(stream.getvalue())


def _for_page(svg: str) -> str:
    """Without the frame of a file and the paper, with variables for colours and ids of its own."""
    svg = svg[svg.index("<svg") :].strip()
    prefix = f"c{hashlib.sha256(svg.encode()).hexdigest()[:8]}"
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"<svg ", '<svg class="chart" role="img" ', svg, count=1)
    return re.sub("#0103[0-9a-f]{2}", lambda match: f"var({VARIABLES[match[0]]})", svg)
