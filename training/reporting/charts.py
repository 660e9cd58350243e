"""Line charts as geometry: what a template needs to draw one as SVG, in units of about a CSS pixel.

A chart is small, so that several stand side by side on a desk and one fills a phone, with letters of the same size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 38  # room for the numbers and titles of the axes
DOTS = 12  # a line of at most this many points shows each of them

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A number on an axis: where it stands and how it reads."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve: its name, which is also its style's, its points as SVG wants them, and those drawn as dots."""

    name: str
    points: str
    dots: tuple[Point, ...]


@dataclass(frozen=True)
class Note:
    """A word beside a point."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart ready to draw; `mark` is the x of a vertical line, None for none."""

    title: str
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    notes: tuple[Note, ...]
    mark: float | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    title: str,
    curves: Mapping[str, Sequence[Point]],
    x_title: str,
    *,
    mark: float | None = None,
    notes: Mapping[Point, str] | None = None,
    whole_x: bool = True,
) -> Chart:
    """Curves by name over one pair of axes; `mark` an x to point out, `notes` words beside points of the curves.

    With `whole_x` the horizontal axis counts something and shows whole numbers alone.
    """
    every = [point for curve in curves.values() for point in curve]
    x_ticks = ticks([x for x, _ in every], whole=whole_x)
    y_ticks = ticks([y for _, y in every])
    x_low, x_high = _ends([x for x, _ in every], x_ticks if not whole_x else [])
    y_low, y_high = _ends([y for _, y in every], y_ticks)

    def across(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def up(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for name, curve in curves.items():
        placed = tuple((across(x), up(y)) for x, y in curve)
        points = " ".join(f"{x},{y}" for x, y in placed)
        lines.append(Line(name, points, placed if len(placed) <= DOTS else ()))
    return Chart(
        title=title, x_title=x_title,
        x_ticks=tuple(Tick(across(x), _number(x)) for x in x_ticks),
        y_ticks=tuple(Tick(up(y), _number(y)) for y in y_ticks),
        lines=tuple(lines),
        notes=tuple(Note(across(x), up(y), text) for (x, y), text in (notes or {}).items()),
        mark=None if mark is None else across(mark),
    )  # fmt: skip


def ticks(values: Sequence[float], *, whole: bool = False, most: int = 5) -> list[float]:
    """At most about `most` round numbers that span `values`: steps of 1, 2 or 5 times a power of ten.

    Whole numbers stay within the values, others reach around them.
    """
    low, high = min(values), max(values)
    if high - low < 1e-9:
        return [low] if whole else [low - 1, low, low + 1]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    if whole:
        step = max(1.0, step)
        first, last = math.ceil(low / step), math.floor(high / step)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * place, 10) for place in range(first, last + 1)]


def _ends(values: Sequence[float], at: Sequence[float]) -> Point:
    """The ends of an axis; a single value stands in its middle."""
    low, high = min([*values, *at]), max([*values, *at])
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _number(value: float) -> str:
    return f"{value:.6g}"
