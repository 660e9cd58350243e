"""Draw line and column charts with matplotlib, as SVG elements to be placed inside an HTML page.

Colours become the page's CSS variables, so a chart follows its light and dark mode. Equal data give equal bytes.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from training.pages.page import compact

Point = tuple[float, float]

WIDTH, HEIGHT = 340, 210  # in points; small, so that several fit side by side
MARGINS = (0.13, 0.18, 0.84, 0.78)  # left, bottom, width and height of the axes, as shares of the figure
MAX_POINTS_WITH_DOTS = 12  # a longer curve is drawn without a dot per point
COLORS = {  # CSS variable: a distinct colour that stands for it while matplotlib draws
    "ink": "#1b1f26", "soft": "#5b6472", "rule": "#dfe3e8", "paper": "#fefefe", "unified": "#2458c5",
    "dual": "#b4540a", "classifier": "#147a55",
}  # fmt: skip
CURVE_COLORS = {"unified": "unified", "dual_encoder": "dual", "classifier": "classifier", "chosen": "unified"}
DASHES = {"bce": (0, (3, 2.5)), "supcon": (0, (0.5, 2.5))}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 11,
    "lines.solid_capstyle": "round",
}
NAME_CHARACTERS = 40  # that fit side by side below the columns of a chart
MAX_READ = 12  # columns whose values are in the text alternative
ROUND_STEPS = [1, 2, 5, 10]  # of ticks, times a power of ten
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def line_chart(
    title: str,
    curves: Mapping[str, Sequence[Point]],
    x_title: str,
    *,
    mark: float | None = None,
    notes: Mapping[Point, str] | None = None,
    integer_x: bool = True,
    logarithmic: bool = False,
) -> str:
    """Draw curves by name over common axes; return an <svg> element with a text alternative.

    A name is a head, `head/term` or "total", and sets colour and dashes. `mark` draws a vertical line at an x; `notes`
    are words beside points of the curves. logarithmic: both axes; all values must be positive.
    """
    with _drawing(title, f"{title} by {x_title}") as drawing:
        axes, slug = drawing.axes, drawing.slug
        _style_axes(axes, x_title, integer_x)
        if logarithmic:
            _set_logarithmic(axes)
        if mark is not None:
            axes.axvline(
                mark, color=COLORS["soft"], linewidth=1, linestyle=(0, (2, 3)), clip_on=False, gid=f"{slug}-mark"
            )
        for name, curve in curves.items():
            _draw_curve(axes, name, curve, f"{slug}-{name.replace('/', '-')}")
        _widen_single_values(axes, [point for curve in curves.values() for point in curve])
        for index, ((x, y), text) in enumerate((notes or {}).items()):
            _draw_note(axes, x, y, text, f"{slug}-note-{index}")
    return drawing.svg


def column_chart(title: str, columns: Mapping[str, float], x_title: str, groups: Sequence[str] | None = None) -> str:
    """Draw a column per name; return an <svg> element with a text alternative, which has the values of few columns.

    groups: a curve name per column, which sets its colour. Names that would overlap are left out.
    """
    values = "".join(f"; {name}: {value:,.0f}" for name, value in columns.items()) if len(columns) <= MAX_READ else ""
    with _drawing(title, f"{title} by {x_title}{values}") as drawing:
        axes, places = drawing.axes, range(len(columns))
        _style_axes(axes, x_title, integer_x=True)
        colors = [COLORS[CURVE_COLORS.get(group, "ink")] for group in groups or ["unified"] * len(columns)]
        bars = axes.bar(places, list(columns.values()), width=0.8 if len(columns) < 60 else 1, color=colors)
        for place, bar in enumerate(bars):
            bar.set_clip_on(False)
            bar.set_gid(f"{drawing.slug}-column-{place}")
        longest = max(map(len, columns), default=0)
        step = -(-len(columns) * (longest + 2) // NAME_CHARACTERS)
        axes.set_xticks(places[::step], list(columns)[::step])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.set_ylim(0, max([*columns.values(), 1]) * 1.06)
    return drawing.svg


@dataclass
class _Drawing:
    """An empty chart; `svg` is the finished one."""

    slug: str
    axes: Axes
    svg: str = ""


@contextmanager
def _drawing(title: str, text_alternative: str) -> Iterator[_Drawing]:
    """Yield a chart to draw in, and render it when the block ends."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": slug}):  # ids that are fixed, and distinct in a page
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        FigureCanvasSVG(figure)
        drawing = _Drawing(slug, figure.add_axes(MARGINS))
        yield drawing
        drawing.svg = _svg_element(figure, text_alternative, slug)


def _set_logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def _style_axes(axes: Axes, x_title: str, integer_x: bool) -> None:
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=COLORS["soft"], pad=5)
    axes.grid(axis="y", color=COLORS["rule"], linewidth=1, clip_on=False)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_title, color=COLORS["soft"], labelpad=2)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=integer_x, steps=ROUND_STEPS, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND_STEPS))
    axes.margins(0.04, 0.06)


def _draw_curve(axes: Axes, name: str, curve: Sequence[Point], gid: str) -> None:
    head, _, term = name.partition("/")
    color = COLORS[CURVE_COLORS.get(head, "ink")]
    marks: dict[str, Any] = {"marker": "o", "markersize": 5.2} if len(curve) <= MAX_POINTS_WITH_DOTS else {}
    if name == "chosen":
        marks = {"marker": "o", "markersize": 9, "markerfacecolor": COLORS["paper"], "markeredgewidth": 2.5}
    axes.plot(
        [x for x, _ in curve], [y for _, y in curve], color=color, linewidth=2.6 if name == "unified" else 2,
        linestyle=DASHES.get(term, "solid"), clip_on=False, gid=gid, **marks,
    )  # fmt: skip


def _widen_single_values(axes: Axes, points: Sequence[Point]) -> None:
    """Centre a single x or y on its axis; matplotlib's own margins would show fractions of epochs."""
    (x_low, x_high), (y_low, y_high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    if x_low == x_high:
        axes.set_xlim(x_low - 0.5, x_high + 0.5)
    if y_low == y_high:
        low = y_low / 2 if axes.get_yscale() == "log" else y_low - 1
        axes.set_ylim(low, y_high + 1)


def _draw_note(axes: Axes, x: float, y: float, text: str, gid: str) -> None:
    low, high = axes.get_xlim()
    right = x > (low + high) / 2
    axes.annotate(
        text, (x, y), (-8 if right else 8, 0), textcoords="offset points", ha="right" if right else "left",
        va="center_baseline", color=COLORS["ink"], gid=gid, annotation_clip=False,
    )  # fmt: skip


def _svg_element(figure: Figure, text_alternative: str, slug: str) -> str:
    """Render the figure without what must not be in a page: prolog, global style, size, fonts, ids without the slug."""
    with StringIO() as buffer:
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
        svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    label = html.escape(text_alternative)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{label}">', svg, count=1)
    for unwanted in (
        r"<defs>\s*<style.*?</style>\s*</defs>", r"font-size: [^;]*; font-family: [^;]*; ",
        r' transform="rotate\(-0 [^)]*\)"',
        rf' id="(?!m[0-9a-f]{{10}}"|{slug}-)[^"]*"',
    ):  # fmt: skip
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = re.sub(r">\s+<", "><", svg).replace("<g/>", "").replace("xlink:href", "href").replace(" \n", " ")
    for variable, color in COLORS.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg.strip()
