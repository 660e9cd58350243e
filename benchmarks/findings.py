"""Compare the systems of the literature on one dataset with equal epochs, and check the findings of the papers.

    python benchmarks/findings.py SOURCE --out FOLDER [--epochs 30] [--seeds 1] [--systems NAME ...]

SOURCE is anything that `diptych prepare` reads, or a prepared dataset. Every system is a recipe of this framework with
the same encoder and runs in its own process. Runs that FOLDER already has are not repeated. A claim is checked if both
of its systems were run. The test split is read once per run, at its end, and selects nothing.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.measuring.claims import CLAIMS, FULL, POOLED, WARM, ClaimResult, findings, ratios, systems
from benchmarks.measuring.plots import draw
from benchmarks.measuring.running import count, open_or_prepare, run_command
from benchmarks.measuring.scoring import Scorer
from benchmarks.measuring.summary import System, as_json, scored
from benchmarks.measuring.systems import RecipeRun, RunResult, run_recipe
from retrieval.errors import BadInput
from training.checkpoint.files import read_facts
from training.evaluation.significance import Bootstrap
from training.recipe.sections import PropensityRecipe

COLUMNS = ("P@1", "P@5", "R@10", "PSP@1", "PSP@5", "C@5", "tail R@10")
Runs = dict[str, list[RunResult]]


def main() -> int:
    """Run the missing systems, then write the page, its data and its plots."""
    return run_command(measure, arguments())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Systems of the literature on one dataset, and the findings of their papers."
    )
    parser.add_argument("source", type=Path, help="anything that `diptych prepare` reads, or a prepared dataset")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the runs; finished runs in it are not repeated"
    )
    parser.add_argument("--epochs", type=count, default=30, help="epochs of every system (default: 30)")
    parser.add_argument("--seeds", type=count, default=1, help="seeds 0, 1, … of each system (default: 1)")
    parser.add_argument("--systems", nargs="*", metavar="NAME", help="only these systems, by their names in the table")
    parser.add_argument(
        "--threads", type=count, default=os.cpu_count() or 1, help="threads to train with (default: all)"
    )
    parser.add_argument(
        "--markdown",
        type=Path,
        help="the page; its data (.json) and plots go to the same folder (default: OUT/findings.md)",
    )
    return parser.parse_args()


def measure(options: argparse.Namespace, console: Console) -> Path:
    """Run the systems and write the page; return its path."""
    out = options.out.resolve()
    dataset = open_or_prepare(options.source, out / "dataset")
    scorer = Scorer(dataset, PropensityRecipe().a, PropensityRecipe().b)
    chosen = _chosen(systems(dataset.n_labels), options.systems)
    runs, pools = Runs(), dict[str, float]()
    for name, spec in chosen.items():
        runs[name] = []
        for seed in range(options.seeds):
            console.rule(f"{name}, seed {seed}", align="left")
            run = _run_of(name, spec, seed, options.epochs, chosen, out)
            folder = out / run.folder
            runs[name].append(run_recipe(run, dataset.folder.resolve(), dataset.fingerprint, folder, options.threads))
            pools[name] = read_facts(folder / "checkpoint").history[-1].stats.labels_per_pool
    return write(options, scorer, runs, pools, options.markdown or out / "findings.md")


def _chosen(known: dict[str, str], names: Sequence[str] | None) -> dict[str, str]:
    for name in names or ():
        if name not in known:
            raise BadInput(f"--systems '{name}' is none of {', '.join(known)}")
    chosen = {name: spec for name, spec in known.items() if names is None or name in names}
    for name, before in WARM.items():
        if name in chosen and before not in chosen:
            raise BadInput(f"--systems '{name}' begins with the encoder of '{before}': add that system")
    return chosen


def _run_of(name: str, spec: str, seed: int, epochs: int, chosen: Mapping[str, str], out: Path) -> RecipeRun:
    """Return the run of a system, with the checkpoint of the system whose encoder it begins with, if any."""
    spec = f"{spec}:optimizer.epochs={epochs}"
    if name not in WARM:
        return RecipeRun(spec, seed)
    before = _run_of(WARM[name], chosen[WARM[name]], seed, epochs, chosen, out)
    return RecipeRun(spec, seed, (f"warm_start={out / before.folder / 'checkpoint'}",))


def write(options: argparse.Namespace, scorer: Scorer, runs: Runs, pools: Mapping[str, float], path: Path) -> Path:
    """Write page, data and plots to one folder, with the same stem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [System(name, True, tuple(scored(ran, scorer) for ran in of)) for name, of in runs.items()]
    plots = draw(scorer.dataset.meta.name, columns, path.parent, path.stem)
    lines = [
        f"# {scorer.dataset.meta.name}: systems and findings on the test split ({len(scorer.queries):,} queries)",
        "",
        f"`{_command(options)}`",
        "",
        f"{scorer.dataset.meta.splits['train'].rows:,} training queries, {scorer.dataset.n_labels:,} labels. Every "
        f"system has the same static encoder and {options.epochs} epochs, {options.threads} thread"
        f"{'s' if options.threads > 1 else ''}, and no popularity bonus. Percent, median over "
        f"{options.seeds} seed{'s' if options.seeds > 1 else ''}; PSP with A={scorer.a:g}, B={scorer.b:g}. Pool: "
        "labels that a query is compared with per step. Renee starts from NGAME's encoder; its cost excludes NGAME's.",
        "",
        *table(columns, pools),
        "",
        *seen_table(columns),
        "",
        *(f"![]({name})" for name in plots),
        "",
        "## Findings of the papers",
        "",
        *claims(runs, scorer),
        *cost_of_all_labels(runs, columns, scorer),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"command": _command(options), "dataset_fingerprint": scorer.dataset.fingerprint, "pools": dict(pools),
            "systems": as_json(columns)}  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def table(columns: Sequence[System], pools: Mapping[str, float]) -> list[str]:
    """Return a table with one row per system."""
    heads = [*COLUMNS, "pool", "CPU time, s", "memory, MiB"]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for system in columns:
        figures = [system.metric(metric) for metric in COLUMNS]
        seconds, memory = system.cost("train_cpu_seconds"), system.cost("peak_mib")
        cells = [f"{figure.median:.1f}" if figure else "–" for figure in figures]
        cells += [f"{pools[system.title]:,.0f}", f"{seconds.median:,.0f}" if seconds else "–"]
        cells += [f"{memory.median:,.0f}" if memory else "–"]
        lines.append(f"| {system.title} | " + " | ".join(cells) + " |")
    return lines


def seen_table(columns: Sequence[System]) -> list[str]:
    """Return a table of the metrics among the labels with a training positive; no lines if the test has no others."""
    if not columns or columns[0].metric(COLUMNS[0], seen=True) is None:
        return []
    lines = ["Labels with training positives only:", "", "| | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---|" + "---:|" * len(COLUMNS))
    for system in columns:
        spreads = [system.metric(metric, seen=True) for metric in COLUMNS]
        cells = [f"{spread.median:.1f}" if spread else "–" for spread in spreads]
        lines.append(f"| {system.title} | {' | '.join(cells)} |")
    return lines


def claims(runs: Runs, scorer: Scorer) -> list[str]:
    """Return a row per metric of each claim whose two systems were run."""
    lines = [
        "Differences in points, the first system minus the second, with 95 % intervals (paired bootstrap over queries, "
        "seeds averaged). A claim is decided if the interval does not contain 0.",
        "",
        "| finding | compared systems | published | measured | | seen labels only | |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        if claim.first[0] not in runs or claim.second[0] not in runs:
            continue
        compared = f"{_side(claim.first)} − {_side(claim.second)}"
        pairs = zip(findings(claim, runs, scorer), findings(claim, runs, scorer, seen=True), strict=True)
        for finding, among_seen in pairs:
            cells = (_format(finding), finding.verdict, _format(among_seen), among_seen.verdict)
            lines.append(f"| {claim.text} | {compared} | {claim.published} | {' | '.join(cells)} |")
    return lines


def _side(of: tuple[str, str]) -> str:
    name, head = of
    return name if head == "unified" else f"its {head.replace('_', ' ')}"


def _format(finding: ClaimResult) -> str:
    difference = finding.difference
    interval = (
        ""
        if difference.low is None or difference.high is None
        else f" ({difference.low:+.1f} … {difference.high:+.1f})"
    )
    return f"{finding.metric} {difference.value:+.1f}{interval}, expected {finding.expected}"


def cost_of_all_labels(runs: Runs, columns: Sequence[System], scorer: Scorer) -> list[str]:
    """Compare a pool of at most L/30 with all labels in every step; return no lines unless both were run."""
    by_name = {system.title: system for system in columns}
    if POOLED not in runs or FULL not in runs:
        return []
    sides = {name: ratios(runs[name], "unified", scorer) for name in (POOLED, FULL)}
    bootstrap = Bootstrap(
        {(name, metric): of[metric] for name, of in sides.items() for metric in ("P@1", "P@5", "PSP@5")}
    )
    differences = {metric: bootstrap.difference((POOLED, metric), (FULL, metric)) for metric in ("P@1", "P@5", "PSP@5")}
    pooled, full = (by_name[name].cost("train_cpu_seconds") for name in (POOLED, FULL))
    share = f"{pooled.median / full.median:.2f}" if pooled and full else "–"
    return [
        "",
        "## A pool of at most L/30 compared with all labels",
        "",
        "Published: within one point, at a quarter of the cost or less. Measured with the same loss and encoder, pool "
        "minus all labels: "
        + ", ".join(
            f"{metric} {difference.value:+.1f} ({difference.low:+.1f} … {difference.high:+.1f})"
            for metric, difference in differences.items()
        )
        + f"; CPU time {share} of that with all labels.",
    ]


def _command(options: argparse.Namespace) -> str:
    words = ["python", "benchmarks/findings.py", options.source.name, "--out", "FOLDER"]
    words += ["--epochs", str(options.epochs), "--seeds", str(options.seeds), "--threads", str(options.threads)]
    words += ["--systems", *options.systems] if options.systems else []
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
