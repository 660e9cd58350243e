"""Line charts as SVG, by matplotlib: without scripts, external fonts or dates, so a page is self-contained."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

Point = tuple[float, float]
Interval = tuple[float, float]

# Legible on a light and on a dark page; the charts have no background.
COLOURS = {
    "p50": "#4f83e0", "p99": "#d0742a", "sent": "#8a93a0", "answered": "#4f83e0", "failed": "#d14d68",
}  # fmt: skip
GREY, SHADE = "#7d8794", "#e5b54a55"
STYLE: Any = {  # matplotlib's stubs want a literal type for each key
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.edgecolor": GREY,
    "axes.labelcolor": GREY, "axes.spines.top": False, "axes.spines.right": False, "xtick.color": GREY,
    "ytick.color": GREY, "text.color": GREY, "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#7d879440",
}  # fmt: skip


def line_chart(
    title: str, x_title: str, y_title: str, curves: Mapping[str, Sequence[Point]], *,
    shaded: Sequence[Interval] = (), mark: tuple[float, str] | None = None, markers: bool = False,
    log: bool = False,
) -> str:  # fmt: skip
    """Draw curves by name as a figure; `shaded` are intervals of x, `mark` is a vertical line, `log` scales y."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        axes = figure.add_subplot(xlabel=x_title, ylabel=y_title, yscale="log" if log else "linear")
        for number, (start, end) in enumerate(shaded):
            axes.axvspan(start, end, color=SHADE, linewidth=0, gid=f"shaded-{number}")
        for name, points in curves.items():
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, label=name, color=COLOURS[name], marker="o" if markers else None, markersize=4)
        if mark:
            axes.axvline(mark[0], color=GREY, linestyle="--", linewidth=1, label=mark[1])
        if log:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.legend(loc="best", frameon=False)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace('<g id="', '<g class="')  # ids would repeat in a page of several charts
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{title}"', svg, count=1)
    return f"<figure><figcaption>{title}</figcaption>\n{svg}</figure>"
