"""Compare three cascades on the same tree features: one layer per level, the last layer for all, and two levels.

    python benchmarks/cascade.py SOURCE… --model FOLDER --out FOLDER [--epochs N…] [--set KEY=VALUE …]

SOURCE is anything that `diptych prepare` reads, or a prepared dataset; --epochs has one value, or one per source.
Every run has its own process; those that --out already has are not repeated, and a stopped one is resumed. The page is
written after each source. The test split is read once per run, at its end, and selects nothing.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from benchmarks.measuring.running import count, open_or_prepare, run_command
from benchmarks.measuring.scoring import Scorer
from benchmarks.measuring.systems import RecipeRun, RunResult, run_recipe
from retrieval.errors import BadInput
from retrieval.metrics import Ratio
from training.data.dataset import Dataset
from training.evaluation.headline import UNIFIED
from training.evaluation.significance import Contrast, compare
from training.recipe.loading import load_recipe
from training.recipe.sections import PropensityRecipe

RECIPE = "systems/cascadexml"
CASCADE, LAST_LAYER, TWO_LEVELS = "cascade", "last layer for all levels", "two levels"
METRICS = ("P@1", "P@3", "P@5", "nDCG@5", "PSP@1", "PSP@5", "R@10")
LABELS_PER_CLUSTER = 8  # of the last level of clusters, about; as in the recipe for keywords
Results = dict[str, RunResult]


def main() -> int:
    """Run the missing variants, then write the page."""
    return run_command(measure, arguments())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CascadeXML: does each level need its own layer?")
    parser.add_argument("sources", type=Path, nargs="+", help="anything that `diptych prepare` reads, or datasets")
    parser.add_argument("--model", type=Path, required=True, help="folder of a pretrained encoder with six layers")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; finished ones are not repeated")
    parser.add_argument("--epochs", type=count, nargs="+", default=[15], help="epochs: one number, or one per source")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of all runs")
    parser.add_argument("--threads", type=count, default=1, help="threads to train with (default: 1)")
    parser.add_argument("--finished-only", action="store_true", help="train nothing; write the page of finished runs")
    parser.add_argument("--markdown", type=Path, help="the page (default: OUT/cascade.md)")
    return parser.parse_args()


def measure(options: argparse.Namespace, console: Console) -> Path:
    """Run the variants on each source and write the page; return its path."""
    if len(options.epochs) not in (1, len(options.sources)):
        raise BadInput(f"--epochs has {len(options.epochs)} numbers for {len(options.sources)} sources: give one each")
    epochs = options.epochs * len(options.sources) if len(options.epochs) == 1 else options.epochs
    path: Path = options.markdown or options.out / "cascade.md"
    sections: list[list[str]] = []
    for source, number in zip(options.sources, epochs, strict=True):
        dataset = open_or_prepare(source, options.out.resolve() / _name(source) / "dataset")
        results: Results = {}
        for title, overrides in variants(dataset.n_labels).items():
            run = RecipeRun(":".join([RECIPE, *overrides]), 0, (*settings(options, number),))
            folder = options.out.resolve() / _name(source) / title.replace(" ", "-")
            if options.finished_only and not (folder / "run.json").is_file():
                continue
            console.rule(f"{dataset.meta.name}: {title}", align="left")
            results[title] = run_recipe(run, dataset.folder.resolve(), dataset.fingerprint, folder, options.threads)
        sections.append(section(dataset, results, number))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*introduction(options), *(line for of in sections for line in of)]) + "\n", "utf-8")
    return path


def settings(options: argparse.Namespace, epochs: int) -> list[str]:
    """Return the overrides of every run: encoder, epochs, phases that fit them, and those of the command line."""
    phases = [f"cascade.warmup_epochs={min(1.0, epochs / 4):g}", f"cascade.final_epochs={min(3.0, epochs / 2):g}"]
    every = f"validation.every_epochs={max(1, epochs // 3)}"
    model = f"encoder.model={options.model.resolve()}"
    return [model, f"optimizer.epochs={epochs}", *phases, every, *options.overrides]


def variants(n_labels: int) -> dict[str, list[str]]:
    """Return the overrides of each variant by its name.

    All score about as many labels per query. The clusters are halved until the last level has about LABELS_PER_CLUSTER
    labels per cluster.
    """
    recipe = load_recipe(RECIPE).cascade
    assert recipe is not None
    last = 1 << max(1, round(n_labels / LABELS_PER_CLUSTER).bit_length() - 1)
    clusters = f"cascade.clusters={_listed(max(1, last // 16), max(1, last // 4), last)}"
    two: dict[str, list[object]] = {
        "clusters": [last // 2], "layers": [[3, 4], [6]],
        "shortlist": [max(1, recipe.shortlist[-1] // 2)], "dropout": [recipe.dropout[0], recipe.dropout[-1]],
        "loss_weights": [1.0, recipe.loss_weights[-1]],
    }  # fmt: skip
    layers = _listed(*(list(recipe.layers[-1]) for _ in recipe.layers))
    return {
        CASCADE: [clusters],
        LAST_LAYER: [clusters, f"cascade.layers={layers}"],
        TWO_LEVELS: [f"cascade.{key}={_listed(*value)}" for key, value in two.items()],
    }


def _listed(*values: object) -> str:
    return str(list(values)).replace(" ", "")


def introduction(options: argparse.Namespace) -> list[str]:
    words = ["python", "benchmarks/cascade.py", *(source.name for source in options.sources), "--model",
             options.model.name, "--epochs", *map(str, options.epochs),
             *(word for override in options.overrides for word in ("--set", override))]  # fmt: skip
    return [
        "# CascadeXML: layers per level, and number of levels",
        "",
        f"`{shlex.join(words)}`",
        "",
        f"Recipe `{RECIPE}` on the test split, {options.threads} thread{'s' if options.threads > 1 else ''}, seed 0. "
        "Percent; differences in points with 95 % intervals (paired bootstrap over queries); p: paired permutation "
        f"test, corrected for {len(METRICS)} metrics (maxT). The epoch was selected on validation.",
        "Shortlist recall: the share of a query's true clusters that a level keeps; of labels, the share below a kept "
        "cluster.",
        "",
    ]  # fmt: skip


def section(dataset: Dataset, results: Mapping[str, RunResult], epochs: int) -> list[str]:
    """Return the tables of one dataset: metrics, shortlist recall and paired differences, for all and seen labels."""
    constants = PropensityRecipe()
    scorer = Scorer(dataset, constants.a, constants.b)
    lines = [
        f"## {dataset.meta.name}",
        "",
        f"{dataset.meta.splits['train'].rows:,} training queries, {dataset.n_labels:,} labels, "
        f"{len(scorer.queries):,} test queries, {epochs} epoch{'s' if epochs > 1 else ''}.",
        "",
    ]
    for seen in (False, True):
        if seen and scorer.data.seen is None:
            continue
        lines += [
            *([] if not seen else ["Labels with training positives only:", ""]),
            *metrics_table(results, scorer, seen=seen),
            "",
        ]
    lines += [*recall_table(results), ""]
    for other in (LAST_LAYER, TWO_LEVELS):
        if CASCADE in results and other in results:
            lines += [*difference_table(results[CASCADE], results[other], other, scorer), ""]
    return lines


def metrics_table(results: Mapping[str, RunResult], scorer: Scorer, *, seen: bool) -> list[str]:
    """Return a row of metrics, and of costs, per variant."""
    costs = [] if seen else ["CPU time, s", "memory, MiB"]
    lines = [f"| | {' | '.join([*METRICS, *costs])} |", "|---|" + "---:|" * (len(METRICS) + len(costs))]
    for title, result in results.items():
        rankings = result.seen_rankings if seen else result.rankings
        values = scorer.seen_metrics(rankings[UNIFIED]) if seen else scorer.metrics(rankings[UNIFIED])
        cells = [f"{values[metric]:.2f}" for metric in METRICS]
        known = (result.cost["train_cpu_seconds"], result.cost["peak_mib"])
        cells += [] if seen else ["–" if cost is None else f"{cost:,.0f}" for cost in known]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def recall_table(results: Mapping[str, RunResult]) -> list[str]:
    """Return a row of shortlist recall per variant and level, for all true labels and for seen ones in parentheses."""
    levels = max((len(result.cost["shortlist_recall"]["all"]) for result in results.values()), default=1)
    names = [*(f"level {level}" for level in range(levels - 1)), "labels"]
    lines = [f"| shortlist recall (seen labels only) | {' | '.join(names)} |", "|---|" + "---:|" * levels]
    for title, result in results.items():
        recalls = result.cost["shortlist_recall"]
        cells = [f"{of_all:.1f} ({seen:.1f})" for of_all, seen in zip(recalls["all"], recalls["seen"], strict=True)]
        missing = ["–"] * (levels - len(cells))
        lines.append(f"| {title} | {' | '.join([*cells[:-1], *missing, cells[-1]])} |")
    return lines


def difference_table(first: RunResult, second: RunResult, other: str, scorer: Scorer) -> list[str]:
    """Return the paired differences per metric, for all labels and among the seen ones."""
    lines = [f"| {CASCADE} − {other} | all labels | p | seen labels only | p |", "|---|---|---:|---|---:|"]
    contrasts = [_contrasts(first, second, scorer, seen=seen) for seen in (False, True)]
    for metric in METRICS:
        cells = [cell for of in contrasts for cell in _cells(of[metric])]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    return lines


def _contrasts(first: RunResult, second: RunResult, scorer: Scorer, *, seen: bool) -> dict[str, Contrast[str]]:
    def ratios(result: RunResult) -> dict[str, Ratio]:
        of = scorer.ratios((result.seen_rankings if seen else result.rankings)[UNIFIED], seen=seen)
        return {metric: of[metric] for metric in METRICS}

    return {contrast.key: contrast for contrast in compare(ratios(first), ratios(second))}


def _cells(contrast: Contrast[str]) -> tuple[str, str]:
    difference = contrast.difference
    p = "<0.001" if contrast.p_corrected < 0.001 else f"{contrast.p_corrected:.3f}"
    if difference.low is None or difference.high is None:
        return f"{difference.value:+z.2f}", p
    return f"{difference.value:+z.2f} ({difference.low:+z.2f} … {difference.high:+z.2f})", p


def _name(source: Path) -> str:
    return source.name.split(".")[0]


if __name__ == "__main__":
    sys.exit(main())
