"""Write the page of `benchmarks/serving.py`: a table of all limits, then each figure with its details."""

import math
from collections.abc import Mapping

from benchmarks.measuring.serving.load import SATURATION_TOOL
from benchmarks.measuring.serving.record import Figure, Limit


def page(figures: Mapping[int, Figure]) -> list[str]:
    """Return the page as Markdown lines, without figures that were never measured."""
    lines = [
        "# The service under load",
        "",
        f"Saturation is measured with {SATURATION_TOOL}; loads at a rate with `diptych loadtest`, an open loop in "
        "which latency counts from the moment each request was due. Unless a figure says otherwise, generator and "
        "service share all CPUs. Distinct queries of a prepared dataset, one per request, k = 10; the service has its "
        "default settings, without a response cache.",
        "",
        "| figure | | measured | limit | |",
        "|---|---|---:|---:|---|",
    ]
    for number, figure in sorted(figures.items()):
        lines += [
            f"| {number} | {limit.name} | {_number(limit.value)} | {_limit(limit)} | {_met(limit)} |"
            for limit in figure.limits
        ]
    for number, figure in sorted(figures.items()):
        lines += ["", *section(number, figure)]
    return lines


def section(number: int, figure: Figure) -> list[str]:
    """Return the lines of one figure: limits with details, notes, command and load of the machine."""
    lines = [f"## {number}. {figure.title}", ""]
    for limit in figure.limits:
        detail = f": {limit.detail}" if limit.detail else ""
        lines.append(f"- {_met(limit)}: {limit.name} {_number(limit.value)} ({_limit(limit)}){detail}.")
    before, after = figure.load
    return [
        *lines,
        *([""] if figure.notes else []),
        *figure.notes,
        "",
        f"`{figure.command}`, {figure.seconds:,.0f} s. {figure.machine}; load average {before:.1f} before and "
        f"{after:.1f} at the end, with this benchmark.",
    ]


def _met(limit: Limit) -> str:
    return "reached" if limit.met else "**missed**"


def _limit(limit: Limit) -> str:
    return f"{'≥' if limit.at_least else '≤'} {_number(limit.limit)}"


def _number(value: float) -> str:
    """Format whole numbers as such, others with three significant digits."""
    if value == math.inf:
        return "never"
    return f"{value:,.0f}" if value == int(value) or value >= 1000 else f"{value:.3g}"
