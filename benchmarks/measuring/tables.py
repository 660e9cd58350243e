"""Write the report: one table with a column per system, then both heads of each Diptych run and the gaps."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.measuring.summary import HEADLINE, Spread, System
from retrieval.metrics import KS
from training.data.dataset import Dataset
from training.evaluation.headline import shown_heads
from training.evaluation.significance import Estimate

METRICS = [f"{metric}@{k}" for metric in ("P", "PSP", "nDCG", "R", "C") for k in KS]
GROUPS = [f"{group} R@{max(KS)}" for group in ("head", "torso", "tail", "unseen")]
SEEN_NOTE = (
    "Rankings and true labels without the labels that have no training positive. A label table is not always complete: "
    "labels that occur only in test rows are in the catalogue because they are correct for a test query, and only "
    "systems that read label texts can return them."
)
COSTS = {
    "train_seconds": ("training, s", "{:.1f}"),
    "wall_seconds": ("with tokenizing and validation, s", "{:.1f}"),
    "train_cpu_seconds": ("CPU time of training, s", "{:.1f}"),
    "peak_mib": ("peak memory, MiB", "{:,.0f}"),
    "seconds_per_thousand": ("per thousand queries, s", "{:.2f}"),
}


@dataclass(frozen=True)
class Setting:
    """Command, dataset, number of queries, constants of the propensity model, and threads."""

    command: str
    dataset: Dataset
    queries: int
    constants: tuple[float, float]
    threads: int


def report(setting: Setting, systems: Sequence[System], plots: Sequence[str]) -> str:
    """Return the report as Markdown; `plots` are file names in its folder."""
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
    if any(system.metric(METRICS[0], seen=True) for system in systems):
        lines += ["", "## Labels with training positives only", "", SEEN_NOTE, "", *table(systems, seen=True)]
    for system in systems:
        if system.ours:
            lines += ["", *heads_section(system)]
    return "\n".join(lines) + "\n"


def notes(setting: Setting, systems: Sequence[System]) -> list[str]:
    """Explain the table."""
    a, b = setting.constants
    counts = setting.dataset.meta.splits
    seeds = any(len(system.runs) > 1 for system in systems)
    ours, peers = (any(system.ours is is_ours for system in systems) for is_ours in (True, False))
    paragraphs = [
        f"{counts['train'].rows:,} training and {counts['validation'].rows:,} validation queries, "
        f"{setting.dataset.n_labels:,} labels. Percent; PSP with A={a:g}, B={b:g}; excluded labels count neither as "
        "answers nor as true labels. Head, torso and tail have a third of the training positives each, unseen labels "
        "none; R@10 of a group is the recall of its true labels."
        + (" Cells over several seeds: median (minimum–maximum)." if seeds else "")
        + " The best value of a row is bold."
    ]
    if peers:
        paragraphs.append(
            "Peers use TF-IDF of words and of character 3- to 5-grams. They train on training and validation queries, "
            "because they select nothing on validation. This is an advantage: recipes train only on the training "
            "queries, and select epoch and weight on validation. If a dataset's validation rows exclude reciprocal "
            "pairs, as its test rows do, peers do not train on these pairs."
        )
    paragraphs.append(
        f"Trained with {setting.threads} thread{'s' if setting.threads > 1 else ''} "
        f"({platform.machine()}, Python {platform.python_version()}); peak memory is the resident memory of the "
        "process that trains and ranks. Per thousand queries: CPU time of one thread from text to ten labels"
        + ("; recipes score every label, without an index." if ours else ".")
    )
    return "\n\n".join(paragraphs).split("\n")


def table(systems: Sequence[System], *, seen: bool = False) -> list[str]:
    """Return a row per metric (and cost, for all labels), with a column per system."""
    lines = ["| | " + " | ".join(system.title for system in systems) + " |", "|---|" + "---:|" * len(systems)]
    for name in METRICS + GROUPS:
        lines += row(name, [system.metric(name, seen=seen) for system in systems], "{:.1f}", max)
    for name, (title, form) in COSTS.items() if not seen else ():
        lines += row(title, [system.cost(name) for system in systems], form, None)
    return lines


def row(
    title: str, cells: Sequence[Spread | None], form: str, best: Callable[[list[float]], float] | None
) -> list[str]:
    """Return one line, or none if no system has the value."""
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


def heads_section(system: System) -> list[str]:
    """Return the metrics of each run by head, the medians, and the gaps between the unified model and each head."""
    lines = [
        f"## {system.title}: both heads",
        "",
        "| seed | head | " + " | ".join(HEADLINE) + " |",
        "|---|---|" + "---:|" * len(HEADLINE),
    ]
    for run in system.runs:
        for head, name in shown_heads(run.metrics).items():
            values = " | ".join(f"{run.metrics[head][metric]:.2f}" for metric in HEADLINE)
            lines.append(f"| {run.seed} | {name} | {values} |")
    heads = shown_heads(system.runs[0].metrics)
    for head, name in heads.items():
        medians = (system.metric(metric, head) for metric in HEADLINE)
        lines.append(f"| median | **{name}** | " + " | ".join(f"{cell.median:.2f}" for cell in medians if cell) + " |")
    for run in system.runs:
        lines += ["", f"Seed {run.seed}, classifier weight {run.cost['classifier_weight']:g}:", ""]
        lines += [
            f"- P@{k}: unified − {heads[head]} = {gap.value:+.2f} points ({_interval(gap)})"
            for head, at in run.gaps.items()
            for k, gap in at.items()
        ]
    return lines


def _interval(gap: Estimate) -> str:
    if gap.low is None or gap.high is None:
        return "no interval for one query"
    return f"95 % interval {gap.low:+.2f} … {gap.high:+.2f}, paired bootstrap"
