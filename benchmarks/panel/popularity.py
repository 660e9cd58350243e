"""Measure wider grids of popularity bonuses on finished runs of the panel, without training.

    python -m benchmarks.panel.popularity RUNS NAME… [--run default-seed0] [--highest 0.3 0.4 0.5 0.6 0.7]

RUNS is the --out of `quality.py --panel`. A grid has the bonuses of the recipe, and further ones in steps of 0.1 up to
the highest. For each grid, the mix is selected again on one half of the checkpoint's validation queries and measured on
the other half, both ways: a wider grid is never worse on the queries that select. Epoch and cone fraction are those of
the run. The rule of benchmarks/panel/decide.py decides between the grids. Test metrics, with the mix selected on all
validation queries, are printed, but decide nothing.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.panel.decide import decide, report_lines
from retrieval.errors import DiptychError
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.data.dataset import Dataset
from training.evaluation.checkpoint_evaluation import checkpoint_data, checkpoint_ranker
from training.evaluation.headline import KEY_METRICS
from training.evaluation.ranking import LabelRows
from training.evaluation.results import EvaluationData, MetricValues
from training.evaluation.scoring import ScoreMix
from training.evaluation.selection.select import choose_mix, list_ranker

STEP = 0.1


@dataclass(frozen=True)
class GridResult:
    """The mix that a grid selects on all validation queries, its test metrics, and the CPU seconds of the selection.

    `validation`: metrics of each half with the mix that the other half selects, the mean of both.
    """

    mix: ScoreMix
    validation: dict[str, float]
    test: MetricValues
    seconds: float


def grid_results(checkpoint: Path, dataset: Dataset, highest: Sequence[float]) -> dict[float, GridResult]:
    """Select a mix from each grid on validation, and measure it on the test split."""
    opened, cpu = load_checkpoint(checkpoint), torch.device("cpu")
    data, names = checkpoint_data(opened), opened.recipe.validation.metrics
    exact = checkpoint_ranker(opened, data.queries, cpu)
    ranker = list_ranker(exact, ScoreMix(0.5, max(highest)), opened.cone_fraction)
    selected, validation, seconds = {}, {}, {}
    for top in highest:
        started = time.process_time()
        rankings = ranker.rank(mixes(opened, top))
        selected[top], _ = choose_mix(scores(rankings, data, names))
        seconds[top] = time.process_time() - started
        validation[top] = held_out_metrics(rankings, data, names)
    queries = dataset.scored("test")
    on_test = checkpoint_ranker(opened, queries, cpu).rank(list(selected.values()))
    test = EvaluationData(queries, opened.positives_L, opened.inverse_propensity_L)
    return {
        top: GridResult(mix, validation[top], test.metrics(on_test[mix]), seconds[top]) for top, mix in selected.items()
    }


def held_out_metrics(
    rankings: Mapping[ScoreMix, LabelRows], data: EvaluationData, names: Sequence[str]
) -> dict[str, float]:
    """Return metrics of each half of the queries with the mix that the other half selects, the mean of both."""
    halves = []
    for first in (0, 1):
        rows_N = np.arange(first, len(data.queries), 2)
        half = EvaluationData(data.queries.take(rows_N), data.positives_L, data.inverse_propensity_L)
        halves.append((half, {mix: row_QK[rows_N] for mix, row_QK in rankings.items()}))
    metrics = []
    for (selecting, of_selecting), (measured, of_measured) in (halves, halves[::-1]):
        mix, _ = choose_mix(scores(of_selecting, selecting, names))
        metrics.append(measured.metrics(of_measured[mix]))
    return {name: float(np.mean([of[name] for of in metrics])) for name in KEY_METRICS}


def scores(rankings: Mapping[ScoreMix, LabelRows], data: EvaluationData, names: Sequence[str]) -> dict[ScoreMix, float]:
    """Return the mean of the named metrics of each ranking."""
    metrics = {mix: data.metrics(row_QK) for mix, row_QK in rankings.items()}
    return {mix: float(np.mean([values[name] for name in names])) for mix, values in metrics.items()}


def mixes(opened: Checkpoint, highest: float) -> list[ScoreMix]:
    """Return the grid of the checkpoint's weights and bonuses, extended in steps of STEP up to `highest`."""
    bonuses = [bonus for bonus in opened.recipe.validation.popularities if bonus <= highest] or [0.0]
    bonuses += [round(bonus, 2) for bonus in np.arange(bonuses[-1] + STEP, highest + STEP / 2, STEP).tolist()]
    return [
        ScoreMix(weight, bonus)
        for weight in opened.recipe.validation.weights
        for bonus in (bonuses if weight else [0.0])
    ]  # fmt: skip


def main() -> int:
    """Print a line per dataset and grid, and the decision."""
    parser = argparse.ArgumentParser(description="Popularity grids on finished runs of the panel.")
    parser.add_argument("runs", type=Path, help="--out of quality.py --panel")
    parser.add_argument("names", nargs="+", metavar="NAME", help="datasets with a finished run")
    parser.add_argument("--run", default="default-seed0", help="folder of the run (default: default-seed0)")
    parser.add_argument("--highest", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7], help="ends of the grids")
    options = parser.parse_args()
    torch.set_num_threads(1)
    values = {}
    try:
        for name in options.names:
            folder = options.runs / name
            results = grid_results(
                folder / options.run / "checkpoint", Dataset.open(folder / "dataset"), options.highest
            )
            for top, of in results.items():
                print(f"{name}, up to {top:g}: {line(of)}", flush=True)
            values[name] = {f"{top:g}": of.validation for top, of in results.items()}
        base, *others = [f"{top:g}" for top in options.highest]
        print("\n".join(report_lines(decide(values, base, others), base)))
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def line(of: GridResult) -> str:
    """Return a result as text."""
    validation, test = (
        " / ".join(f"{values[name]:.2f}" for name in KEY_METRICS) for values in (of.validation, of.test)
    )
    chosen = f"w {of.mix.weight:g}, bonus {of.mix.popularity:g}"
    return f"{chosen}, validation {validation}, test {test}, {of.seconds:.1f} CPU s"


if __name__ == "__main__":
    sys.exit(main())
