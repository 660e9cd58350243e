"""Where a model is wrong, and why: the validation queries of a dataset, asked of a store's active bundle.

    python examples/errors/errors.py demo/store demo/dataset [--explain "a query" …]

Prints how answers go wrong, by kind, then explains some queries: what was answered and what was true, what each half
says of both, how often each was clicked, and which training queries lie nearest. The test split is left alone: whoever
looks at errors learns from them.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retrieval import Retriever, open_bundle
from training.data.dataset import Dataset

K = 10
SHOWN = 4  # answers, and true labels, of one query
NEIGHBOURS = 3
RARE = 3  # clicks or fewer


class Outcome(NamedTuple):
    """What became of one query: its answers and its true labels, as rows of the label table."""

    query: str
    found: list[int]
    true: list[int]

    @property
    def kind(self) -> str:
        if not self.true:
            return "no validation query, what is true is not known"
        if set(self.found[:1]) & set(self.true):
            return "right"
        return "a true label is lower" if set(self.found) & set(self.true) else f"none of the {K} is true"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("store", type=Path, help="a store with an active bundle")
    options.add_argument("dataset", type=Path, help="the dataset it was trained on")
    options.add_argument("--explain", nargs="*", default=[], metavar="QUERY", help="queries to explain; any will do")
    given = options.parse_args()
    dataset = Dataset.open(given.dataset)
    with open_bundle(given.store) as retriever:
        outcomes = asked(retriever, dataset)
        clicks_L = np.bincount(dataset.split("train").labels.values, minlength=dataset.n_labels)
        tell_kinds(outcomes, clicks_L)
        wrong = [one for one in outcomes if one.kind.startswith("none")]
        for one in looked_up(given.explain, outcomes, retriever) or wrong[:2]:
            explain(one, retriever, dataset, clicks_L)


def asked(retriever: Retriever, dataset: Dataset) -> list[Outcome]:
    """Every validation query that has a true label, and what the bundle answers."""
    split = dataset.split("validation")
    enough = min(K + 50, dataset.n_labels)  # what is excluded is taken out afterwards
    rows_QK = retriever.search_rows(split.texts, enough).rows_QK
    outcomes = []
    for row, text in enumerate(split.texts):
        true, excluded = set(split.labels[row].tolist()), set(split.exclude[row].tolist())
        if true:
            found = [label for label in rows_QK[row].tolist() if label not in excluded][:K]
            outcomes.append(Outcome(text, found, sorted(true)))
    return outcomes


def looked_up(queries: list[str], outcomes: list[Outcome], retriever: Retriever) -> list[Outcome]:
    """The outcome of each query; one that is no validation query has answers, but nothing that is known to be true."""
    known = {one.query: one for one in outcomes}
    answers = [retriever.search_rows([query], K).rows_QK[0].tolist() for query in queries]
    return [known.get(query, Outcome(query, found, [])) for query, found in zip(queries, answers, strict=True)]


def tell_kinds(outcomes: list[Outcome], clicks_L: np.ndarray) -> None:
    """How many of each kind, and what those that miss everything have in common."""
    print(f"{len(outcomes):,} validation queries, {K} answers each")
    for kind, count in Counter(one.kind for one in outcomes).most_common():
        print(f"  {count / len(outcomes):6.1%}  {kind}")
    missed = [one for one in outcomes if one.kind.startswith("none")]
    if not missed:
        return
    never = sum(1 for one in missed if clicks_L[one.true].max() == 0) / len(missed)
    rare = sum(1 for one in missed if 0 < clicks_L[one.true].max() <= RARE) / len(missed)
    print(f"of the {len(missed):,} of which none is true:")
    print(f"  {never:6.1%}  have only labels that nobody clicked in training")
    print(f"  {rare:6.1%}  only labels that were clicked {RARE} times at most")
    print(f"  {1 - never - rare:6.1%}  a label that was clicked more often")


def explain(outcome: Outcome, retriever: Retriever, dataset: Dataset, clicks_L: np.ndarray) -> None:
    """What speaks for what was answered, and what for the truth."""
    texts = dataset.label_texts
    exact = retriever.search_rows([outcome.query], dataset.n_labels, exact=True)
    place = {label: rank for rank, label in enumerate(exact.rows_QK[0].tolist())}
    print(f"\n{outcome.query!r}: {outcome.kind}")
    print(f"  {'':28}{'place':>7}{'score':>8}{'dual':>8}{'class.':>8}{'clicks':>8}")
    for title, labels in (("answered", outcome.found[:SHOWN]), ("true", outcome.true[:SHOWN])):
        for label in labels:
            at = place[label]
            numbers = (exact.scores_QK[0, at], exact.dual_QK[0, at], exact.classifier_QK[0, at])
            shares = "".join(f"{number:8.2f}" for number in numbers)
            print(f"  {title:9}{texts[label][:18]:19}{at + 1:7,}{shares}{clicks_L[label]:8,}")
    train = dataset.split("train")
    query_QD, train_ND = retriever.encode([outcome.query])[0], retriever.encode(train.texts)[0]
    nearest = np.argsort(-(train_ND @ query_QD[0]))[:NEIGHBOURS]
    for row in nearest.tolist():
        clicked = ", ".join(texts[label] for label in train.labels[row].tolist()[:6])
        print(f"  learned, {train_ND[row] @ query_QD[0]:.2f} alike: {train.texts[row]!r} → {clicked}")


if __name__ == "__main__":
    main()
