"""Measure the choice of κ on validation, with and without distractors.

    python -m benchmarks.distractors CHECKPOINT [--shares 0 0.25 0.5 1]

Prints a table per share of distractors: the metrics at each κ, and the share of untrained labels among the first five
answers. The last table has the metrics without distractors, for all labels and for labels with training positives.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from retrieval.errors import DiptychError
from training.checkpoint.opened import load_checkpoint
from training.evaluation.checkpoint_evaluation import checkpoint_data, checkpoint_ranker, selected_mix
from training.evaluation.headline import UNIFIED
from training.evaluation.imputation import CONE_FRACTIONS
from training.evaluation.ranking import ExactRanker
from training.evaluation.results import evaluate
from training.evaluation.selection.distractors import choose_originals, distractor_vectors, hidden_distractors
from training.evaluation.selection.select import ListRanker
from training.evaluation.selection.shortlists import list_labels, spanning_mixes

FIRST_ANSWERS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all tables. Prints an error and returns 1 for a checkpoint that cannot be read."""
    try:
        measure(parse(arguments), Console())
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def measure(options: argparse.Namespace, console: Console) -> None:
    """Print all tables."""
    opened = load_checkpoint(options.checkpoint)
    data, mix, names = checkpoint_data(opened), selected_mix(opened), opened.recipe.validation.metrics
    ranker = checkpoint_ranker(opened, data.queries, torch.device("cpu"))
    labels = ranker.labels.with_imputation(1.0)
    mixes = spanning_mixes(mix.popularity)
    lists = list_labels(ranker.queries, labels, data.queries.exclude, mixes)
    for share in options.shares:
        original_X = choose_originals(labels, data, share, opened.recipe.seed, lists.listed(len(labels.dual)))
        queries = dataclasses.replace(
            data,
            positives_L=np.append(data.positives_L, np.zeros(len(original_X), np.int64)),
            inverse_propensity_L=np.append(data.inverse_propensity_L, np.ones(len(original_X))),
        )
        listed = lists
        if len(original_X):
            copies = distractor_vectors(labels, original_X)
            hidden = hidden_distractors(data, original_X)
            listed = lists.merged(list_labels(ranker.queries, copies, hidden, mixes), row_offset=len(labels.dual))
        is_untrained = np.concatenate([~opened.trained_L, np.ones(len(original_X), np.bool_)])
        table = _table(f"{len(original_X):,} distractors ({share:g} per trained label)", [*names, "untrained answers"])
        for cone_fraction in CONE_FRACTIONS:
            row_QK = ListRanker(listed, cone_fraction).rank([mix])[mix]
            untrained = 100 * float(is_untrained[row_QK[:, :FIRST_ANSWERS]].mean())
            _add(table, f"{cone_fraction:g}", {**queries.metrics(row_QK), "untrained answers": untrained})
        console.print(table)
    table = _table("no distractors", names)
    for cone_fraction in CONE_FRACTIONS:
        imputed = ranker.labels.with_imputation(cone_fraction)
        result = evaluate(ExactRanker(ranker.queries, imputed, data.queries.exclude), data, {UNIFIED: mix})
        _add(table, f"{cone_fraction:g}, all labels", result.metrics[UNIFIED])
        if result.seen is not None:
            _add(table, f"{cone_fraction:g}, seen labels", result.seen.metrics[UNIFIED])
    console.print(table)


def _table(title: str, headings: Sequence[str]) -> Table:
    return Table("κ", *headings, title=title)


def _add(table: Table, name: str, values: Mapping[str, float]) -> None:
    headings = [str(column.header) for column in table.columns[1:]]
    table.add_row(name, *(f"{values[heading]:.1f}" for heading in headings))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(description="The choice of κ with distractors.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25, 0.5, 1.0])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
