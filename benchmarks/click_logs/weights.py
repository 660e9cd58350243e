"""Measure training with click weights: α = 0 against α > 0, and position weighting against the simulated truth.

    python -m benchmarks.click_logs.weights --out FOLDER [--sets wordnet bigrams cities simulated …]
        [--queries keywords.jsonl.xz] [--seeds 3] [--variants NAME …] [--set KEY=VALUE …] [--markdown FILE]

`unweighted` is the simulated log without its position column. `--build-only` builds the sources and prints random rows.
Choose on validation; the test split is for the report. Finished runs in FOLDER are not repeated.

Shapes: Q queries, K ranks.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.click_logs.recovery import Truth
from benchmarks.click_logs.sets import SETS, SIMULATED_TRUTH, build_source, prepare_set, run_diptych, sample_lines
from benchmarks.click_logs.simulated import Simulation
from benchmarks.measuring.running import count, run_command
from retrieval.metrics import Ratio, click_ratios
from training.data.dataset import Dataset
from training.evaluation.checkpoint_evaluation import CheckpointEvaluation, evaluate_checkpoint
from training.evaluation.headline import UNIFIED
from training.evaluation.results import SliceMetric
from training.evaluation.significance import Bootstrap

BY_CLICKS = "validation.metrics=[wP@1, wP@5, wR@10]"
BASE = "α = 0"
# Overrides of the recipe. The base is training as without weights; "selected by clicks" only selects by other metrics.
VARIANTS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "selected by clicks": (BY_CLICKS,),
    "α = 0.5": (BY_CLICKS, "clicks.sampling=0.5", "clicks.loss=0.5", "clicks.popularity=0.5"),
    "α = 1": (BY_CLICKS, "clicks.sampling=1", "clicks.loss=1", "clicks.popularity=1"),
    "sampling 1": (BY_CLICKS, "clicks.sampling=1"),
    "loss 1": (BY_CLICKS, "clicks.loss=1"),
    "popularity 1": (BY_CLICKS, "clicks.popularity=1"),
}
DEFAULT_VARIANTS = (BASE, "selected by clicks", "α = 0.5", "α = 1")
METRICS = ("P@1", "P@5", "R@10", "wP@1", "wP@5", "wR@10")
TRUE_METRICS = ("true wP@1", "true wP@5", "true wR@10")
Ratios = dict[str, Ratio]  # by metric
Runs = dict[str, list[dict[str, Ratios]]]  # by variant: for each seed, metrics by split


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(description="Training with click weights.")
    parser.add_argument("--out", type=Path, required=True, help="folder of sources, datasets and runs")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--queries", type=Path, help="JSON lines (.xz) with query and labels, for the simulated log")
    parser.add_argument("--days", type=count, default=Simulation.days, help="of the simulated log")
    parser.add_argument("--searches", type=count, default=Simulation.searches, help="of the simulated log")
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(DEFAULT_VARIANTS))
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="KEY=VALUE for every variant")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--markdown", type=Path, help="default: OUT/click-weights.md")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, console: Console) -> Path:
    """Build, prepare and train the chosen sets; write the page and return its path."""
    plan = Simulation(days=options.days, searches=options.searches)
    lines = ["# Click weights", "", f"Median of {options.seeds} seeds, percent, unified ranking."]
    for name in options.sets:
        source = build_source(name, options.out / name, options.queries, plan)
        lines += ["", f"## {name}", ""]
        if options.build_only:
            lines += sample_lines(source)
            continue
        truth = Truth(pq.read_table(source.parent / SIMULATED_TRUTH)) if SETS[name].has_truth else None
        dataset = prepare_set(name, source)
        if truth is not None:
            lines += recovery_table(truth, source, dataset, plan)
        lines += metric_table(train_all(name, dataset, truth, options, console))
    page: Path = options.markdown or options.out / "click-weights.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return page


def recovery_table(truth: Truth, source: Path, dataset: Dataset, plan: Simulation) -> list[str]:
    """Return a table of the agreement with the true relevance, of the log's clicks and of the dataset's weights."""
    rows = pq.read_table(source)
    recoveries = {"weights of the training split": truth.from_dataset(dataset)}
    if "position" in rows.column_names:
        recoveries |= truth.from_log(rows, plan.examination_K)
    lines = ["| agreement with the true relevance | ordered pairs, % | overlap, % |", "|---|---:|---:|"]
    return [*lines, *(f"| {name} | {of.ordered:.2f} | {of.overlap:.2f} |" for name, of in recoveries.items()), ""]


def train_all(name: str, dataset: Dataset, truth: Truth | None, options: argparse.Namespace, console: Console) -> Runs:
    """Train each variant with each seed, unless its folder has the finished run, and evaluate it."""
    runs: Runs = {}
    for variant in options.variants:
        for seed in range(options.seeds):
            console.rule(f"{name}, {variant}, seed {seed}", align="left")
            checkpoint = options.out / name / f"{variant.replace(' ', '')}-seed{seed}"
            overrides = [*VARIANTS[variant], *options.overrides, f"seed={seed}"]
            settings = [word for override in overrides for word in ("--set", override)]
            folders = ("--dataset", str(dataset.folder), "--out", str(checkpoint))
            run_diptych("train", *folders, "--recipe", options.recipe, *settings)
            evaluations = {split: evaluate_checkpoint(checkpoint, dataset, split) for split in ("validation", "test")}
            ratios = {split: ratios_of(evaluation, truth) for split, evaluation in evaluations.items()}
            runs.setdefault(variant, []).append(ratios)
    return runs


def ratios_of(evaluation: CheckpointEvaluation, truth: Truth | None) -> Ratios:
    """Return the metrics of the unified ranking per query; with the truth also those by true relevance."""
    ratios = {metric: evaluation.ratios[SliceMetric("head", UNIFIED, metric)] for metric in METRICS}
    if truth is None:
        return ratios
    dataset, queries = evaluation.dataset, evaluation.result.data.queries
    labels, value_V = truth.relevant_labels(queries.texts, dataset.label_table["id"].to_pylist())
    true = click_ratios(evaluation.result.rankings[UNIFIED], labels, value_V, dataset.n_labels)
    return ratios | {f"true {metric}": true[metric] for metric in ("wP@1", "wP@5", "wR@10")}


def metric_table(runs: Runs) -> list[str]:
    """Return a table of the variants: validation wP@1, metrics on test, and the difference from the base on test."""
    metrics = list(next(iter(runs.values()))[0]["test"])
    lines = [f"| | validation wP@1 | {' | '.join(metrics)} | wP@1 − base (95 % interval) |"]
    lines.append("|---|" + "---:|" * (len(metrics) + 2))
    for variant, seeds in runs.items():
        figures = [np.median([of["validation"]["wP@1"].percent for of in seeds])]
        figures += [np.median([of["test"][metric].percent for of in seeds]) for metric in metrics]
        cells = [f"{figure:.2f}" for figure in figures]
        difference = "" if variant == BASE or BASE not in runs else _difference(runs, variant)
        lines.append(f"| {variant} | {' | '.join(cells)} | {difference} |")
    return lines


def _difference(runs: Runs, variant: str, metric: str = "wP@1") -> str:
    """Return the difference of a variant from the base on test; metrics are averaged over seeds per query."""
    sides: Mapping[str, Ratio] = {name: _over_seeds(runs[name], metric) for name in (variant, BASE)}
    difference = Bootstrap(sides).difference(variant, BASE)
    interval = "" if difference.low is None else f" ({difference.low:+.2f} … {difference.high:+.2f})"
    return f"{difference.value:+.2f}{interval}"


def _over_seeds(seeds: Sequence[Mapping[str, Ratios]], metric: str) -> Ratio:
    ratios = [of["test"][metric] for of in seeds]
    return Ratio(np.mean([ratio.gain_Q for ratio in ratios], axis=0), ratios[0].base_Q)


if __name__ == "__main__":
    sys.exit(run_command(measure, parse()))
