"""The page that `benchmarks/serving.py` writes: a table of the bars, then each figure with its circumstances."""

import math
from collections.abc import Mapping

from benchmarks.measuring.serving_load import BY
from benchmarks.measuring.serving_record import Figure, Limit


def page(figures: Mapping[int, Figure]) -> list[str]:
    """Markdown; a figure that was never measured is left out."""
    lines = [
        "# The service under load",
        "",
        f"Saturation by {BY}; loads at a rate by `diptych loadtest`, an open loop whose latencies count from when a "
        "request was due. Both share all processors with the service, unless a figure says otherwise. Distinct queries "
        "of a prepared dataset in turn, one a request, k = 10; the service's default settings. "
        "Its answer cache is off.",
        "",
        "| figure | | measured | bar | |",
        "|---|---|---:|---:|---|",
    ]
    for number, figure in sorted(figures.items()):
        lines += [
            f"| {number} | {bar.asked} | {_number(bar.value)} | {_limit(bar)} | {_met(bar)} |" for bar in figure.bars
        ]
    for number, figure in sorted(figures.items()):
        lines += ["", *section(number, figure)]
    return lines


def section(number: int, figure: Figure) -> list[str]:
    """One figure: absolute rates beside every ratio, and the load of the machine."""
    lines = [f"## {number}. {figure.title}", ""]
    for bar in figure.bars:
        beside = f": {bar.beside}" if bar.beside else ""
        lines.append(f"- {_met(bar)}: {bar.asked} {_number(bar.value)} ({_limit(bar)}){beside}.")
    before, after = figure.load
    return [
        *lines,
        *([""] if figure.notes else []),
        *figure.notes,
        "",
        f"`{figure.command}`, {figure.seconds:,.0f} s. {figure.machine}; {before:.1f} processes wanted a core in the "
        f"minute before, {after:.1f} in the last one, this benchmark's own among them.",
    ]


def _met(bar: Limit) -> str:
    return "reached" if bar.met else "**missed**"


def _limit(bar: Limit) -> str:
    return f"{'≥' if bar.least else '≤'} {_number(bar.limit)}"


def _number(value: float) -> str:
    """Whole numbers whole, others with three digits that count."""
    if value == math.inf:
        return "never"
    return f"{value:,.0f}" if value == int(value) or value >= 1000 else f"{value:.3g}"
