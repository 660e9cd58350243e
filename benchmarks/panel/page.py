"""Render the page of the panel from its results."""

import platform
from collections.abc import Sequence

from benchmarks.panel.catalogue import SETS
from benchmarks.panel.results import PanelResults
from benchmarks.panel.scores import GROUPS, DatasetScores, SystemScores
from training.evaluation.headline import KEY_METRICS
from training.evaluation.significance import Estimate

GROUP_TITLES = {"all": "All labels", "seen": "Labels with training positives only"}


def panel_page(results: PanelResults) -> str:
    """Return the page as Markdown."""
    lines = [
        "# Panel: quality on the test splits",
        "",
        f"`{results.command}`",
        "",
        "Percent, with 95 % intervals (bootstrap over the test queries, seeds averaged). The best value of a column is "
        "bold. Peers train on training and validation queries; recipes train on training queries and select on "
        "validation. The second table of a dataset restricts rankings and true labels to labels with a training "
        "positive. The last column is the CPU time of training in seconds.",
        "",
        f"Trained with {results.threads} thread{'s' if results.threads > 1 else ''} ({platform.machine()}).",
        "",
        *sizes(results),
        "",
        *targets(results),
    ]
    for name, failed in results.failures.items():
        if name not in results.datasets:
            lines += ["", *(f"- {name}, {title}: no result. {reason}" for title, reason in failed.items())]
    for name, dataset in results.datasets.items():
        lines += ["", f"## {name}", ""]
        lines += [f"{SETS[name].character[0].upper()}{SETS[name].character[1:]}.", ""] if name in SETS else []
        for group in GROUPS:
            if all(group in system.figures for system in dataset.systems.values()):
                lines += [f"{GROUP_TITLES[group]}:", "", *table(dataset, group), ""]
        lines += [f"- {title}: no result. {reason}" for title, reason in results.failures.get(name, {}).items()]
        lines = lines[:-1] if not lines[-1] else lines
    return "\n".join(lines) + "\n"


def sizes(results: PanelResults) -> list[str]:
    """Return a table of the datasets' sizes."""
    lines = [
        "| dataset | training queries | test queries | labels | true labels per test query | of seen labels |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, of in results.datasets.items():
        counts = f"{of.train:,} | {of.test:,} | {of.labels:,}"
        lines.append(f"| {name} | {counts} | {of.labels_per_query:.1f} | {of.seen_positives:.0f} % |")
    return lines


def targets(results: PanelResults) -> list[str]:
    """Return how many datasets the first system leads on every metric, with the metrics that it does not lead."""
    lines = []
    for group in GROUPS:
        behind = {name: metrics_behind(of, group) for name, of in results.datasets.items() if _has_peers(of, group)}
        if behind:
            leads = [name for name, metrics in behind.items() if not metrics]
            lines.append(
                f"{GROUP_TITLES[group]}: on {len(leads)} of {len(behind)} datasets, the first system is ahead of every "
                f"other one on all of {', '.join(KEY_METRICS)}."
            )
            lines += ["", *(f"- {name}: behind on {', '.join(of)}" for name, of in behind.items() if of), ""]
    return lines[:-1]


def metrics_behind(dataset: DatasetScores, group: str) -> list[str]:
    """Return the metrics on which another system is ahead of the first one, with its title and the difference."""
    _, *others = dataset.systems.items()
    worst = {metric: min((of.behind[group][metric].value, title) for title, of in others) for metric in KEY_METRICS}
    return [f"{metric} ({title} {-value:+.1f})" for metric, (value, title) in worst.items() if value < 0]


def table(dataset: DatasetScores, group: str) -> list[str]:
    """Return a row per system: each metric with its interval, and the difference to the first system."""
    lines = ["| system | " + " | ".join(KEY_METRICS) + " | CPU, s |", "|---|" + "---:|" * (len(KEY_METRICS) + 1)]
    best = {name: max(of.figures[group][name].value for of in dataset.systems.values()) for name in KEY_METRICS}
    for title, system in dataset.systems.items():
        cells = [figure(system.figures[group][name], best[name]) for name in KEY_METRICS]
        lines.append(f"| {_titled(title, system)} | {' | '.join(cells)} | {_seconds(system)} |")
    first, *others = dataset.systems.items()
    for title, system in others:
        cells = [difference(system.behind[group][name]) for name in KEY_METRICS]
        lines.append(f"| {first[0]} − {title} | {' | '.join(cells)} | |")
    return lines


def figure(estimate: Estimate, best: float) -> str:
    """Return a metric with its interval; bold if it is the best."""
    value = f"{estimate.value:.1f}"
    text = f"**{value}**" if value == f"{best:.1f}" else value
    return text if estimate.low is None else f"{text} ({estimate.low:.1f}–{estimate.high:.1f})"


def difference(estimate: Estimate) -> str:
    """Return a difference in points with its interval."""
    text = f"{estimate.value:+.1f}"
    return text if estimate.low is None else f"{text} ({estimate.low:+.1f} … {estimate.high:+.1f})"


def _titled(title: str, system: SystemScores) -> str:
    return f"{title}, {system.seeds} seed{'s' if system.seeds > 1 else ''}" if system.is_recipe else title


def _seconds(system: SystemScores) -> str:
    seconds = system.cost.get("train_cpu_seconds")
    return "–" if seconds is None else f"{seconds:,.0f}"


def _has_peers(dataset: DatasetScores, group: str) -> bool:
    systems: Sequence[SystemScores] = list(dataset.systems.values())
    return len(systems) > 1 and all(group in system.figures for system in systems)
