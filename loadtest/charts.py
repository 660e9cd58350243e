"""Line charts as SVG, drawn by hand: nothing to install, nothing to run in the reader's browser."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 44

Point = tuple[float, float]
Span = tuple[float, float]


def chart(
    title: str, x_title: str, y_title: str, curves: Mapping[str, Sequence[Point]], *,
    spans: Sequence[Span] = (), mark: tuple[float, str] | None = None, dots: bool = False, logarithmic: bool = False,
) -> str:  # fmt: skip
    """A figure of curves by name (also the name of their colour); `spans` are stretches of x to shade, `mark` an x to
    point out, and `logarithmic` tells of the vertical axis."""
    every = [point for curve in curves.values() for point in curve]
    across = Axis([x for x, _ in every] + [x for span in spans for x in span], LEFT, WIDTH - RIGHT)
    up = Axis([y for _, y in every], HEIGHT - BOTTOM, TOP, logarithmic=logarithmic)
    parts = [
        f'<rect class="span" x="{across.at(low):.1f}" y="{TOP}" width="{max(1, across.at(high) - across.at(low)):.1f}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/>'
        for low, high in spans
    ]
    parts += _axes(across, up, x_title, y_title)
    if mark:
        x = across.at(mark[0])
        side, anchor = (-6, "end") if x > WIDTH / 2 else (6, "start")
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(_text(x + side, TOP + 12, mark[1], "note", anchor))
    for name, curve in curves.items():
        placed = [(round(across.at(x), 1), round(up.at(y), 1)) for x, y in curve]
        points = " ".join(f"{x},{y}" for x, y in placed)
        parts.append(f'<polyline class="line {name}" points="{points}"/>')
        parts += [f'<circle class="dot {name}" cx="{x}" cy="{y}" r="3"/>' for x, y in placed if dots]
    drawing = "\n".join(parts)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">\n{drawing}\n</svg></figure>'
    )


class Axis:
    """From values to places between two ends of the drawing; from zero, or from the least value when logarithmic."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, logarithmic: bool = False) -> None:
        self._start, self._end, self._logarithmic = start, end, logarithmic
        most = max(values, default=1.0) or 1.0
        if logarithmic:
            least = min((value for value in values if value > 0), default=most)
            self.ticks = decades(least, max(most, least * 1.01))
        else:
            self.ticks = steps(most)
        self._low, self._high = self.ticks[0], self.ticks[-1]

    def at(self, value: float) -> float:
        """Where a value stands."""
        low, high = self._low, self._high
        if self._logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return self._start + (value - low) / (high - low) * (self._end - self._start)


def steps(most: float, count: int = 6) -> list[float]:
    """Round numbers from 0 to `most` or a little beyond."""
    power = 10.0 ** math.floor(math.log10(most / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= most / count * (1 - 1e-9))
    return [round(step * number, 10) for number in range(math.ceil(most / step - 1e-9) + 1)]


def decades(least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten, around `least` and `most`."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    every = [round(factor * 10.0**power, 12) for power in powers for factor in (1, 2, 5)]
    first = max(place for place, value in enumerate(every) if value <= least * (1 + 1e-9))
    last = min(place for place, value in enumerate(every) if value >= most * (1 - 1e-9))
    return every[first : max(last, first + 1) + 1]


def _axes(across: Axis, up: Axis, x_title: str, y_title: str) -> list[str]:
    parts = []
    for value in up.ticks:
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:,g}", "tick", "end"))
    parts += [_text(across.at(value), HEIGHT - BOTTOM + 17, f"{value:,g}", "tick", "middle") for value in across.ticks]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_title, "title", "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="title" transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_title)}</text>"
    )
    return parts


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
