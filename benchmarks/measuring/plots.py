"""Plot a table: quality by system, recall by label frequency, quality against training time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt

from benchmarks.measuring.summary import HEADLINE, System
from benchmarks.measuring.tables import GROUPS

OURS, THEIRS, INK = "#c2410c", "#94a3b8", "#1e293b"
NAME_INCHES, AROUND_INCHES = 0.17, 1.0  # height of a line of text, and of the space above and below a panel
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "diptych",  # equal data give equal files
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
    groups = [group for group in GROUPS if any(system.metric(group) for system in systems)]
    names = []
    with plt.rc_context(STYLE):
        for suffix, figure in (
            ("quality", bars(f"{name}: quality, percent", systems, HEADLINE)),
            ("frequency", bars(f"{name}: recall of frequent and rare labels, percent", systems, groups)),
            ("time", against_time(f"{name}: quality against training time", systems, ("P@1", "PSP@5"))),
        ):
            names.append(f"{stem}-{suffix}.svg")
            figure.savefig(folder / names[-1], metadata={"Date": None})
            plt.close(figure)
    return names


def bars(title: str, systems: Sequence[System], metrics: Sequence[str]) -> Any:
    """Draw a panel per metric and a bar per system with its value, and a line over the range of the seeds."""
    figure, panels = plt.subplots(
        1, len(metrics), sharey=True, squeeze=False, figsize=(2.3 * len(metrics) + 1.4, 0.34 * len(systems) + 1.1)
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    positions = range(len(systems))
    for metric, panel in zip(metrics, panels[0], strict=True):
        cells = [system.metric(metric) for system in systems]
        heights = [cell.median if cell else 0.0 for cell in cells]
        panel.barh(positions, heights, height=0.7, color=[colour_of(system) for system in systems])
        for position, cell in zip(positions, cells, strict=True):
            if cell and cell.low < cell.high:
                panel.plot([cell.low, cell.high], [position, position], color=INK, linewidth=1)
            if cell:
                panel.annotate(
                    f"{cell.median:.1f}", (cell.high, position), (4, 0), textcoords="offset points", va="center"
                )
        panel.set_title(metric)
        panel.set_xlim(0, 1.25 * max(*heights, 1e-9))
        panel.set_xticks([])
        panel.spines["bottom"].set_visible(False)
        panel.tick_params(axis="y", length=0)
    panels[0][0].set_yticks(list(positions), [system.title for system in systems])
    panels[0][0].invert_yaxis()
    return figure


def against_time(title: str, systems: Sequence[System], metrics: Sequence[str]) -> Any:
    """Draw a panel per metric and a point per system: quality against training seconds (logarithmic)."""
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
            seconds, quality = system.cost("train_seconds"), system.metric(metric)
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
    """Write names in a column to the right of the panel, each with a line to its point, without overlaps."""
    low, high = panel.get_ylim()
    points = sorted(points, key=lambda point: point[0])
    gap = NAME_INCHES / (panel.figure.get_figheight() - AROUND_INCHES)
    positions = spread([(quality - low) / (high - low) for quality, _, _ in points], gap)
    for (quality, seconds, system), position in zip(points, positions, strict=True):
        panel.annotate(
            system.title, (seconds, quality), (1.04, position), textcoords="axes fraction", va="center", fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "#cbd5e1", "linewidth": 0.7},
        )  # fmt: skip


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move ascending positions apart: at least `gap` between neighbours, none above 1."""
    moved: list[float] = []
    for position in positions:
        moved.append(max(position, moved[-1] + gap) if moved else position)
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], 1.0 - gap * (len(moved) - 1 - index))
    return moved


def colour_of(system: System) -> str:
    """Return one colour for Diptych, another for peers."""
    return OURS if system.ours else THEIRS
