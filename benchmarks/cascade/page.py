"""The page that compares cascades: metrics, shortlist recall per level and paired differences of each dataset."""

from collections.abc import Mapping

from benchmarks.measuring.scoring import Scorer
from benchmarks.measuring.systems import RunResult
from retrieval.metrics import Ratio
from training.data.dataset import Dataset
from training.evaluation.headline import UNIFIED
from training.evaluation.significance import Contrast, compare
from training.recipe.sections import PropensityRecipe

CASCADE, LAST_LAYER, TWO_LEVELS = "cascade", "last layer for all levels", "two levels"
METRICS = ("P@1", "P@3", "P@5", "nDCG@5", "PSP@1", "PSP@5", "R@10")
Results = dict[str, RunResult]


def introduction(command: str, recipe: str, threads: int) -> list[str]:
    """Return the title, the command and how to read the tables."""
    return [
        "# CascadeXML: layers per level, and number of levels",
        "",
        f"`{command}`",
        "",
        f"Recipe `{recipe}` on the test split, {threads} thread{'s' if threads > 1 else ''}, seed 0. "
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
    lines += [*metrics_table(results, scorer, seen=False), ""]
    if scorer.data.seen is not None:
        lines += ["Labels with training positives only:", "", *metrics_table(results, scorer, seen=True), ""]
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
