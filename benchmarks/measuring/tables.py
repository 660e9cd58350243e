"""The markdown of a report: one table with a column a system, then the halves of each of our runs and their gaps."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.measuring.summary import HEADLINE, Spread, System
from retrieval.metrics import KS
from training.data.dataset import Dataset
from training.evaluation.significance import Estimate

METRICS = [f"{metric}@{k}" for metric in ("P", "PSP", "nDCG", "R", "C") for k in KS]
GROUPS = [f"{group} R@{max(KS)}" for group in ("head", "torso", "tail", "unseen")]
COSTS = {
    "train_seconds": ("training, s", "{:.1f}"),
    "wall_seconds": ("with tokenizing and validation, s", "{:.1f}"),
    "train_cpu_seconds": ("processor time of it, s", "{:.1f}"),
    "peak_mib": ("peak memory, MiB", "{:,.0f}"),
    "seconds_per_thousand": ("a thousand queries, s", "{:.2f}"),
}
HEADS = {"unified": "unified", "dual_encoder": "dual encoder", "classifier": "classifier"}


@dataclass(frozen=True)
class Setting:
    """What a reader must know to read the figures, or make them again."""

    command: str
    dataset: Dataset
    queries: int
    constants: tuple[float, float]
    threads: int


def report(setting: Setting, systems: Sequence[System], plots: Sequence[str]) -> str:
    """The whole report; `plots` are file names beside it."""
    lines = [
        f"# {setting.dataset.meta.name}: quality on the test split ({setting.queries:,} queries)",
        "",
        f"`{setting.command}`",
        "",
        *notes(setting, systems),
        "",
        *table(systems),
        "",
        *(f"![]({name})" for name in plots),
    ]
    for system in systems:
        if system.ours:
            lines += ["", *halves(system)]
    return "\n".join(lines) + "\n"


def notes(setting: Setting, systems: Sequence[System]) -> list[str]:
    """How to read the table."""
    a, b = setting.constants
    counts = setting.dataset.meta.splits
    seeds = any(len(system.runs) > 1 for system in systems)
    ours, peers = (any(system.ours is which for system in systems) for which in (True, False))
    paragraphs = [
        f"{counts['train'].rows:,} training and {counts['validation'].rows:,} validation queries, "
        f"{setting.dataset.n_labels:,} labels. Percent; PSP with A={a:g}, B={b:g}; excluded labels count neither as "
        "prediction nor as truth. Head, torso and tail hold a third of the training positives each; unseen labels have "
        "none; their R@10 is the recall of their own true labels."
        + (" Cells over several seeds: median (least–greatest)." if seeds else "")
        + " The best of a row is bold."
    ]
    if peers:
        paragraphs.append(
            "Peers see TF-IDF of words and of character 3- to 5-grams, and learn from training and validation queries "
            "together, since they choose nothing on validation: an advantage, as recipes learn from the training "
            "queries alone and choose their epoch and weight on validation. Where a dataset's validation rows leave "
            "out their reciprocal pairs, as its test rows do, peers do not learn those."
        )
    paragraphs.append(
        f"Trained with {setting.threads} thread{'s' if setting.threads > 1 else ''} "
        f"({platform.machine()}, Python {platform.python_version()}); peak memory is the resident memory of the "
        "process that trains and answers. A thousand queries: text in, ten labels out, processor time of one thread"
        + ("; ours look at every label, as no index is built here." if ours else ".")
    )
    return "\n\n".join(paragraphs).split("\n")


def table(systems: Sequence[System]) -> list[str]:
    """A row a metric, a column a system."""
    lines = ["| | " + " | ".join(system.title for system in systems) + " |", "|---|" + "---:|" * len(systems)]
    for name in METRICS + GROUPS:
        lines += row(name, [system.figure(name) for system in systems], "{:.1f}", max)
    for name, (title, form) in COSTS.items():
        lines += row(title, [system.cost(name) for system in systems], form, None)
    return lines


def row(
    title: str, cells: Sequence[Spread | None], form: str, best: Callable[[list[float]], float] | None
) -> list[str]:
    """One line, or none when no system has the figure."""
    known = [cell.median for cell in cells if cell]
    if not known:
        return []
    winner = form.format(best(known)) if best else None
    shown = [_cell(cell, form) for cell in cells]
    bold = [f"**{text}**" if cell and form.format(cell.median) == winner else text
            for cell, text in zip(cells, shown, strict=True)]  # fmt: skip
    return [f"| {title} | " + " | ".join(bold) + " |"]


def _cell(cell: Spread | None, form: str) -> str:
    if cell is None:
        return "–"
    low, middle, high = (form.format(value) for value in (cell.low, cell.median, cell.high))
    return middle if low == high else f"{middle} ({low}–{high})"


def halves(system: System) -> list[str]:
    """Each run of a recipe by head, the medians, and what the unified model adds to each head alone."""
    lines = [
        f"## {system.title}: the two halves",
        "",
        "| seed | head | " + " | ".join(HEADLINE) + " |",
        "|---|---|" + "---:|" * len(HEADLINE),
    ]
    for run in system.runs:
        for head, name in HEADS.items():
            figures = " | ".join(f"{run.figures[head][metric]:.2f}" for metric in HEADLINE)
            lines.append(f"| {run.seed} | {name} | {figures} |")
    for head, name in HEADS.items():
        medians = (system.figure(metric, head) for metric in HEADLINE)
        lines.append(f"| median | **{name}** | " + " | ".join(f"{cell.median:.2f}" for cell in medians if cell) + " |")
    for run in system.runs:
        lines += ["", f"Seed {run.seed}, classifier weight {run.cost['classifier_weight']:g}:", ""]
        lines += [
            f"- P@{k}: unified − {HEADS[head]} = {gap.value:+.2f} points ({_interval(gap)})"
            for head, at in run.gaps.items()
            for k, gap in at.items()
        ]
    return lines


def _interval(gap: Estimate) -> str:
    if gap.low is None or gap.high is None:
        return "one query has no interval"
    return f"95 % interval {gap.low:+.2f} … {gap.high:+.2f}, paired bootstrap"
