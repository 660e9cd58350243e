"""Find where a model is wrong, and why: send the validation queries of a dataset to a store's active bundle.

    python examples/errors/errors.py demo/store demo/dataset [--explain "a query" …]

Prints the kinds of error and their shares. Then explains some queries: their answers and right labels with both parts'
contributions and clicks, and the nearest training queries. Does not use the test split, because looking at errors
influences later decisions.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retrieval import Retriever, open_bundle
from training.data.dataset import Dataset

K = 10
SHOWN = 4  # answers and right labels per query
NEIGHBOURS = 3
RARE = 3  # clicks or fewer


class Outcome(NamedTuple):
    """One query with its answers and its right labels, as rows of the label table."""

    query: str
    answers: list[int]
    right: list[int]

    @property
    def kind(self) -> str:
        if not self.right:
            return "not a validation query; its right labels are unknown"
        if set(self.answers[:1]) & set(self.right):
            return "the first answer is right"
        return "a lower answer is right" if set(self.answers) & set(self.right) else f"none of the {K} is right"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="a store with an active bundle")
    parser.add_argument("dataset", type=Path, help="the dataset it was trained on")
    parser.add_argument("--explain", nargs="*", default=[], metavar="QUERY", help="queries to explain")
    options = parser.parse_args()
    dataset = Dataset.open(options.dataset)
    with open_bundle(options.store) as retriever:
        outcomes = search_validation_queries(retriever, dataset)
        clicks_L = np.bincount(dataset.split("train").labels.values, minlength=dataset.n_labels)
        print_kinds(outcomes, clicks_L)
        wrong = [one for one in outcomes if one.kind.startswith("none")]
        for one in outcomes_of(options.explain, outcomes, retriever) or wrong[:2]:
            explain(one, retriever, dataset, clicks_L)


def search_validation_queries(retriever: Retriever, dataset: Dataset) -> list[Outcome]:
    """Search every validation query that has a right label."""
    split = dataset.split("validation")
    k = min(K + 50, dataset.n_labels)  # more than K, because excluded labels are removed afterwards
    rows_QK = retriever.search_rows(split.texts, k).rows_QK
    outcomes = []
    for row, text in enumerate(split.texts):
        right, excluded = set(split.labels[row].tolist()), set(split.exclude[row].tolist())
        if right:
            answers = [label for label in rows_QK[row].tolist() if label not in excluded][:K]
            outcomes.append(Outcome(text, answers, sorted(right)))
    return outcomes


def outcomes_of(queries: list[str], outcomes: list[Outcome], retriever: Retriever) -> list[Outcome]:
    """Return the outcome of each query; a query outside the validation split has answers but no right labels."""
    known = {one.query: one for one in outcomes}
    answers = [retriever.search_rows([query], K).rows_QK[0].tolist() for query in queries]
    return [known.get(query, Outcome(query, labels, [])) for query, labels in zip(queries, answers, strict=True)]


def print_kinds(outcomes: list[Outcome], clicks_L: np.ndarray) -> None:
    """Print the share of each kind, and how often the right labels of missed queries were clicked."""
    print(f"{len(outcomes):,} validation queries, {K} answers each")
    for kind, count in Counter(one.kind for one in outcomes).most_common():
        print(f"  {count / len(outcomes):6.1%}  {kind}")
    missed = [one for one in outcomes if one.kind.startswith("none")]
    if not missed:
        return
    never = sum(1 for one in missed if clicks_L[one.right].max() == 0) / len(missed)
    rare = sum(1 for one in missed if 0 < clicks_L[one.right].max() <= RARE) / len(missed)
    print(f"of the {len(missed):,} without a right answer:")
    print(f"  {never:6.1%}  have only labels without clicks in training")
    print(f"  {rare:6.1%}  have only labels with at most {RARE} clicks")
    print(f"  {1 - never - rare:6.1%}  have a label with more clicks")


def explain(outcome: Outcome, retriever: Retriever, dataset: Dataset, clicks_L: np.ndarray) -> None:
    """Print scores and clicks of the answers and of the right labels, and the nearest training queries."""
    texts = dataset.label_texts
    exact = retriever.search_rows([outcome.query], dataset.n_labels, exact=True)
    rank_of = {label: rank for rank, label in enumerate(exact.rows_QK[0].tolist())}
    print(f"\n{outcome.query!r}: {outcome.kind}")
    print(f"  {'':28}{'rank':>7}{'score':>8}{'dual':>8}{'class.':>8}{'clicks':>8}")
    for title, labels in (("answer", outcome.answers[:SHOWN]), ("right", outcome.right[:SHOWN])):
        for label in labels:
            rank = rank_of[label]
            numbers = (exact.scores_QK[0, rank], exact.dual_QK[0, rank], exact.classifier_QK[0, rank])
            contributions = "".join(f"{number:8.2f}" for number in numbers)
            print(f"  {title:9}{texts[label][:18]:19}{rank + 1:7,}{contributions}{clicks_L[label]:8,}")
    train = dataset.split("train")
    query_QD, train_ND = retriever.encode([outcome.query])[0], retriever.encode(train.texts)[0]
    nearest = np.argsort(-(train_ND @ query_QD[0]))[:NEIGHBOURS]
    for row in nearest.tolist():
        clicked = ", ".join(texts[label] for label in train.labels[row].tolist()[:6])
        print(f"  trained, similarity {train_ND[row] @ query_QD[0]:.2f}: {train.texts[row]!r} → {clicked}")


if __name__ == "__main__":
    main()
