"""The systems of the literature side by side on one dataset, for equal epochs, and the papers' findings beside ours.

    python benchmarks/findings.py SOURCE --out FOLDER [--epochs 30] [--seeds 1] [--systems NAME ...]

SOURCE is anything that `diptych prepare` reads, or a prepared dataset. Every system is a recipe of this framework with
the same encoder, run in a process of its own; what FOLDER holds already is not run again. A claim is judged when both
of its systems were run. Nothing here chooses anything: the test split is read once a run, at its end.
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
from benchmarks.measuring.running import count, ended, opened
from benchmarks.measuring.scoring import Judge
from benchmarks.measuring.summary import System, as_json, scored
from benchmarks.measuring.systems import Ran, RecipeRun, run_recipe
from retrieval.errors import BadInput
from training.checkpoint.files import read_facts
from training.evaluation.significance import Bootstrap
from training.recipe.schema import PropensityRecipe

COLUMNS = ("P@1", "P@5", "R@10", "PSP@1", "PSP@5", "tail R@10")
Runs = dict[str, list[Ran]]


def main() -> int:
    """Run what is missing, then write the page, its figures and plots."""
    return ended(measure, arguments())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Systems of the literature on one dataset, and what they found.")
    parser.add_argument("source", type=Path, help="anything that `diptych prepare` reads, or a prepared dataset")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; gone on with when there")
    parser.add_argument("--epochs", type=count, default=30, help="of every system (default: 30)")
    parser.add_argument("--seeds", type=count, default=1, help="seeds 0, 1, … of each system (default: 1)")
    parser.add_argument("--systems", nargs="*", metavar="NAME", help="only these, as the table names them")
    parser.add_argument(
        "--threads", type=count, default=os.cpu_count() or 1, help="threads to train with (default: all)"
    )
    parser.add_argument(
        "--markdown", type=Path, help="the page; figures (.json) and plots beside it (default: OUT/findings.md)"
    )
    return parser.parse_args()


def measure(options: argparse.Namespace, console: Console) -> Path:
    """Everything `main` does but reporting errors; returns the page's path."""
    out = options.out.resolve()
    dataset = opened(options.source, out / "dataset")
    judge = Judge(dataset, PropensityRecipe().a, PropensityRecipe().b)
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
    return write(options, judge, runs, pools, options.markdown or out / "findings.md")


def _chosen(known: dict[str, str], names: Sequence[str] | None) -> dict[str, str]:
    for name in names or ():
        if name not in known:
            raise BadInput(f"--systems '{name}' is none of {', '.join(known)}")
    chosen = {name: spec for name, spec in known.items() if names is None or name in names}
    for name, before in WARM.items():
        if name in chosen and before not in chosen:
            raise BadInput(f"--systems '{name}' begins with the encoder of '{before}': name that too")
    return chosen


def _run_of(name: str, spec: str, seed: int, epochs: int, chosen: Mapping[str, str], out: Path) -> RecipeRun:
    """A system's run; one that begins with another's encoder names that one's checkpoint."""
    spec = f"{spec}:optimizer.epochs={epochs}"
    if name not in WARM:
        return RecipeRun(spec, seed)
    before = _run_of(WARM[name], chosen[WARM[name]], seed, epochs, chosen, out)
    return RecipeRun(spec, seed, (f"warm_start={out / before.folder / 'checkpoint'}",))


def write(options: argparse.Namespace, judge: Judge, runs: Runs, pools: Mapping[str, float], path: Path) -> Path:
    """Page, figures and plots, side by side under one stem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [System(name, True, tuple(scored(ran, judge) for ran in of)) for name, of in runs.items()]
    plots = draw(judge.dataset.meta.name, columns, path.parent, path.stem)
    lines = [
        f"# {judge.dataset.meta.name}: systems and findings on the test split ({len(judge.asked):,} queries)",
        "",
        f"`{_command(options)}`",
        "",
        f"{judge.dataset.meta.splits['train'].rows:,} training queries, {judge.dataset.n_labels:,} labels. Every "
        f"system has the same static encoder and {options.epochs} epochs, {options.threads} thread"
        f"{'s' if options.threads > 1 else ''}; popularity counts in none. Percent, median over "
        f"{options.seeds} seed{'s' if options.seeds > 1 else ''}; PSP with A={judge.a:g}, B={judge.b:g}. Pool: labels "
        "that a query is compared with in a step. Renee's cost is on top of NGAME's, with whose encoder it begins.",
        "",
        *table(columns, pools),
        "",
        *(f"![]({name})" for name in plots),
        "",
        "## What the papers found, and what we find",
        "",
        *claims(runs, judge),
        *cost_of_the_whole_space(runs, columns, judge),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    kept = {"command": _command(options), "dataset_fingerprint": judge.dataset.fingerprint, "pools": dict(pools),
            "systems": as_json(columns)}  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return path


def table(columns: Sequence[System], pools: Mapping[str, float]) -> list[str]:
    """A row a system."""
    heads = [*COLUMNS, "pool", "processor, s", "memory, MiB"]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for system in columns:
        figures = [system.figure(metric) for metric in COLUMNS]
        seconds, memory = system.cost("train_cpu_seconds"), system.cost("peak_mib")
        cells = [f"{figure.median:.1f}" if figure else "–" for figure in figures]
        cells += [f"{pools[system.title]:,.0f}", f"{seconds.median:,.0f}" if seconds else "–"]
        cells += [f"{memory.median:,.0f}" if memory else "–"]
        lines.append(f"| {system.title} | " + " | ".join(cells) + " |")
    return lines


def claims(runs: Runs, judge: Judge) -> list[str]:
    """A row a metric of each claim whose two systems were run."""
    lines = [
        "Differences in points, the first system minus the second, with 95 % intervals (paired bootstrap over queries, "
        "seeds averaged); a claim holds, or does not, where the interval leaves 0 out.",
        "",
        "| the papers' finding | compared | theirs | ours | |",
        "|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        if claim.first[0] not in runs or claim.second[0] not in runs:
            continue
        compared = f"{_side(claim.first)} − {_side(claim.second)}"
        for finding in findings(claim, runs, judge):
            lines.append(f"| {claim.text} | {compared} | {claim.theirs} | {_told(finding)} | {finding.verdict} |")
    return lines


def _side(of: tuple[str, str]) -> str:
    name, head = of
    return name if head == "unified" else f"its {head.replace('_', ' ')}"


def _told(finding: ClaimResult) -> str:
    gap = finding.difference
    interval = "" if gap.low is None or gap.high is None else f" ({gap.low:+.1f} … {gap.high:+.1f})"
    return f"{finding.metric} {gap.value:+.1f}{interval}, expected {finding.expected}"


def cost_of_the_whole_space(runs: Runs, columns: Sequence[System], judge: Judge) -> list[str]:
    """What a pool of at most L/30 costs and finds, beside every label in every step; nothing unless both were run."""
    by_name = {system.title: system for system in columns}
    if POOLED not in runs or FULL not in runs:
        return []
    sides = {name: ratios(runs[name], "unified", judge) for name in (POOLED, FULL)}
    drawn = Bootstrap({(name, metric): of[metric] for name, of in sides.items() for metric in ("P@1", "P@5", "PSP@5")})
    gaps = {metric: drawn.difference((POOLED, metric), (FULL, metric)) for metric in ("P@1", "P@5", "PSP@5")}
    pooled, full = (by_name[name].cost("train_cpu_seconds") for name in (POOLED, FULL))
    share = f"{pooled.median / full.median:.2f}" if pooled and full else "–"
    return [
        "",
        "## A pool of at most L/30 against the whole label space",
        "",
        "The papers: within one point, at a quarter of the cost or less. Ours, the same loss and encoder, pool minus "
        "whole space: "
        + ", ".join(f"{metric} {gap.value:+.1f} ({gap.low:+.1f} … {gap.high:+.1f})" for metric, gap in gaps.items())
        + f"; processor time {share} of the whole space's.",
    ]


def _command(options: argparse.Namespace) -> str:
    words = ["python", "benchmarks/findings.py", options.source.name, "--out", "FOLDER"]
    words += ["--epochs", str(options.epochs), "--seeds", str(options.seeds), "--threads", str(options.threads)]
    words += ["--systems", *options.systems] if options.systems else []
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
