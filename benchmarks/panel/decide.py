"""Decide a change of the default recipe on the validation splits of the panel.

    python -m benchmarks.panel.decide PANEL_JSON BASE CANDIDATE… [--tolerance 0.5]

PANEL_JSON is written by `benchmarks/quality.py --panel`; BASE and CANDIDATE are titles of recipes in it. Only
validation metrics are read. A candidate is accepted if, over all datasets and over all but any one of them,

- its mean rank is better than that of the base, and
- its worst difference to the base on a dataset is at least −tolerance points.

A dataset's difference is the mean over P@1, P@5, R@10 and PSP@5. A rank is among all recipes that are compared, by
dataset and metric; equal values share their mean rank. The best mean rank of the accepted candidates wins.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.panel.results import read_results
from retrieval.errors import DatasetError, DiptychError
from training.evaluation.headline import KEY_METRICS

TOLERANCE = 0.5
Values = Mapping[str, Mapping[str, Mapping[str, float]]]  # dataset → recipe → validation metric → percent


@dataclass(frozen=True)
class Verdict:
    """A recipe over the panel: mean rank, difference to the base by dataset, and whether it is accepted.

    `reason` says why not. `mean_ranks_without` has the mean rank when a dataset is left out.
    """

    title: str
    mean_rank: float
    differences: dict[str, float]
    mean_ranks_without: dict[str, float]
    accepted: bool
    reason: str

    @property
    def worst(self) -> tuple[str, float]:
        """Return the dataset with the lowest difference, and the difference."""
        return min(self.differences.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class Decision:
    """The winner (the base if no candidate is accepted), and every verdict.

    `held_out`: for each dataset, the winner on the other datasets and its difference to the base on this one.
    """

    winner: str
    verdicts: dict[str, Verdict]
    held_out: dict[str, tuple[str, float]]


def decide(values: Values, base: str, candidates: Sequence[str], tolerance: float = TOLERANCE) -> Decision:
    """Apply the rule of this module. Raises DatasetError for fewer than two datasets or a missing recipe."""
    titles = [base, *candidates]
    if len(values) < 2:
        raise DatasetError(f"{len(values)} dataset has results. Measure at least two to leave one out.")
    for dataset, recipes in values.items():
        if missing := [title for title in titles if title not in recipes]:
            raise DatasetError(f"{dataset} has no validation metrics of {missing[0]}. Measure it with --recipe.")
    verdicts = judge(values, base, candidates, tolerance)
    held_out = {}
    for dataset in values:
        winner = best_accepted(judge(without(values, dataset), base, candidates, tolerance), base)
        held_out[dataset] = winner, difference(values[dataset], winner, base)
    return Decision(best_accepted(verdicts, base), verdicts, held_out)


def judge(values: Values, base: str, candidates: Sequence[str], tolerance: float) -> dict[str, Verdict]:
    """Return the verdict of each candidate and of the base, by title."""
    titles = [base, *candidates]
    ranks = mean_ranks(values, titles)
    ranks_without = {left_out: mean_ranks(without(values, left_out), titles) for left_out in values if len(values) > 1}
    verdicts = {}
    for title in titles:
        differences = {dataset: difference(of, title, base) for dataset, of in values.items()}
        of_title = {left_out: of[title] for left_out, of in ranks_without.items()}
        worst, points = min(differences.items(), key=lambda item: item[1])
        reasons = [f"loses {-points:.2f} points on {worst}"] if points < -tolerance else []
        if ranks[title] >= ranks[base]:
            reasons.append("its mean rank is not better than that of the base")
        reasons += [
            f"its mean rank is not better without {left_out}"
            for left_out, of in ranks_without.items() if of[title] >= of[base]
        ]  # fmt: skip
        reason = "it is the base" if title == base else "; ".join(reasons)
        verdicts[title] = Verdict(title, ranks[title], differences, of_title, not reason, reason)
    return verdicts


def best_accepted(verdicts: Mapping[str, Verdict], base: str) -> str:
    """Return the accepted candidate with the best mean rank, or the base."""
    accepted = [verdict for verdict in verdicts.values() if verdict.accepted]
    return min(accepted, key=lambda verdict: verdict.mean_rank).title if accepted else base


def mean_ranks(values: Values, titles: Sequence[str]) -> dict[str, float]:
    """Return the mean rank of each recipe over all datasets and metrics; 1 is the best."""
    table_NT = np.array([[of[title][name] for title in titles] for of in values.values() for name in KEY_METRICS])
    better_NTT = table_NT[:, None, :] > table_NT[:, :, None]
    equal_NTT = table_NT[:, None, :] == table_NT[:, :, None]
    rank_NT = 1 + better_NTT.sum(axis=2) + (equal_NTT.sum(axis=2) - 1) / 2
    return dict(zip(titles, rank_NT.mean(axis=0).tolist(), strict=True))


def difference(recipes: Mapping[str, Mapping[str, float]], title: str, base: str) -> float:
    """Return a recipe minus the base on one dataset, in points: the mean over the metrics."""
    return float(np.mean([recipes[title][name] - recipes[base][name] for name in KEY_METRICS]))


def without(values: Values, dataset: str) -> Values:
    """Return the values of the other datasets."""
    return {name: of for name, of in values.items() if name != dataset}


def report_lines(decision: Decision, base: str) -> list[str]:
    """Return the decision as lines of text."""
    lines = []
    for verdict in sorted(decision.verdicts.values(), key=lambda verdict: verdict.mean_rank):
        dataset, points = verdict.worst
        state = "accepted" if verdict.accepted else f"not accepted: {verdict.reason}"
        worst = "" if verdict.title == base else f", worst difference {points:+.2f} points ({dataset})"
        lines.append(f"{verdict.title}: mean rank {verdict.mean_rank:.2f}{worst}; {state}")
    for dataset, (winner, points) in decision.held_out.items():
        lines.append(f"without {dataset}: {winner} wins, {points:+.2f} points on {dataset}")
    return [*lines, f"winner: {decision.winner}"]


def main() -> int:
    """Print the decision."""
    parser = argparse.ArgumentParser(description="Decide a recipe on the validation splits of the panel.")
    parser.add_argument("results", type=Path, help="panel.json of quality.py --panel")
    parser.add_argument("base", help="title of the recipe to replace, such as default")
    parser.add_argument("candidates", nargs="+", metavar="CANDIDATE", help="titles of other recipes")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="points a dataset may lose (default: 0.5)")
    options = parser.parse_args()
    titles = [options.base, *options.candidates]
    try:
        values = {
            name: {title: of.validation for title, of in dataset.systems.items() if title in titles and of.validation}
            for name, dataset in read_results(options.results).datasets.items()
        }
        values = {name: of for name, of in values.items() if options.base in of}
        decision = decide(values, options.base, options.candidates, options.tolerance)
        print("\n".join(report_lines(decision, options.base)))
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
