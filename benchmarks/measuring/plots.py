"""Three pictures of a table: quality by system, recall by label frequency, quality against training time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt

from benchmarks.measuring.summary import HEADLINE, System
from benchmarks.measuring.tables import GROUPS

OURS, THEIRS, INK = "#c2410c", "#94a3b8", "#1e293b"
NAME_INCHES, AROUND_INCHES = 0.17, 1.0  # of a line of text, and of what stands above and below a panel
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "diptych",  # the same figures give the same file
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#cbd5e1",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
}


def draw(name: str, systems: Sequence[System], folder: Path, stem: str) -> list[str]:
    """Write the three SVG files; return their names."""
    groups = [group for group in GROUPS if any(system.figure(group) for system in systems)]
    made = []
    with plt.rc_context(STYLE):
        for what, figure in (
            ("quality", bars(f"{name}: quality, percent", systems, HEADLINE)),
            ("frequency", bars(f"{name}: recall of frequent and rare labels, percent", systems, groups)),
            ("time", against_time(f"{name}: quality against training time", systems, ("P@1", "PSP@5"))),
        ):
            made.append(f"{stem}-{what}.svg")
            figure.savefig(folder / made[-1], metadata={"Date": None})
            plt.close(figure)
    return made


def bars(title: str, systems: Sequence[System], metrics: Sequence[str]) -> Any:
    """A panel a metric, a bar a system, its value at the end, a line from the least to the greatest seed."""
    figure, panels = plt.subplots(
        1, len(metrics), sharey=True, squeeze=False, figsize=(2.3 * len(metrics) + 1.4, 0.34 * len(systems) + 1.1)
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    places = range(len(systems))
    for metric, panel in zip(metrics, panels[0], strict=True):
        cells = [system.figure(metric) for system in systems]
        heights = [cell.median if cell else 0.0 for cell in cells]
        panel.barh(places, heights, height=0.7, color=[colour_of(system) for system in systems])
        for place, cell in zip(places, cells, strict=True):
            if cell and cell.low < cell.high:
                panel.plot([cell.low, cell.high], [place, place], color=INK, linewidth=1)
            if cell:
                panel.annotate(
                    f"{cell.median:.1f}", (cell.high, place), (4, 0), textcoords="offset points", va="center"
                )
        panel.set_title(metric)
        panel.set_xlim(0, 1.25 * max(*heights, 1e-9))
        panel.set_xticks([])
        panel.spines["bottom"].set_visible(False)
        panel.tick_params(axis="y", length=0)
    panels[0][0].set_yticks(list(places), [system.title for system in systems])
    panels[0][0].invert_yaxis()
    return figure


def against_time(title: str, systems: Sequence[System], metrics: Sequence[str]) -> Any:
    """A panel a metric: training seconds to the right (logarithmic), quality upwards, a point a system."""
    figure, panels = plt.subplots(
        1,
        len(metrics),
        squeeze=False,
        figsize=(4.6 * len(metrics), max(3.6, NAME_INCHES * len(systems) + AROUND_INCHES)),
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    for metric, panel in zip(metrics, panels[0], strict=True):
        points = []
        for system in systems:
            seconds, quality = system.cost("train_seconds"), system.figure(metric)
            if seconds and quality:
                points.append((quality.median, seconds.median, system))
                panel.scatter([seconds.median], [quality.median], color=colour_of(system), s=28, zorder=3)
        panel.set_xscale("log")
        panel.set_title(f"{metric}, percent")
        panel.set_xlabel("training, seconds")
        panel.margins(x=0.1, y=0.1)
        name_points(panel, points)
        panel.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    return figure


def name_points(panel: Any, points: Sequence[tuple[float, float, System]]) -> None:
    """Names in a column beside the panel, each with a line to its point, far enough apart to be read."""
    low, high = panel.get_ylim()
    points = sorted(points, key=lambda point: point[0])
    gap = NAME_INCHES / (panel.figure.get_figheight() - AROUND_INCHES)
    places = spread([(quality - low) / (high - low) for quality, _, _ in points], gap)
    for (quality, seconds, system), place in zip(points, places, strict=True):
        panel.annotate(
            system.title, (seconds, quality), (1.04, place), textcoords="axes fraction", va="center", fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "#cbd5e1", "linewidth": 0.7},
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Rising places at least `gap` apart and not above 1, as near to the `wanted` rising ones as that allows."""
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else place)
    for at in range(len(places) - 1, -1, -1):
        places[at] = min(places[at], 1.0 - gap * (len(places) - 1 - at))
    return places


def colour_of(system: System) -> str:
    """One colour for what is ours, one for what is not."""
    return OURS if system.ours else THEIRS
